"""What a config's network is conditioned on, made ready for it."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax.config.defaults import text_encoder_keywords
from diffax.data import Dataset, Split, Table, controls
from diffax.models import text
from diffax.models.text import TextEncoder


def text_encoder(config: ConfigDict) -> TextEncoder:
    """The encoder of config.condition.text.

    Raises:
      ValueError: it doesn't take an option, or a package is missing.
    """
    section = config.condition
    given = {key: section[key] for key in text_encoder_keywords() if section[key] is not None}
    return _encoder(section.text, json.dumps(given))


@functools.lru_cache(maxsize=8)
def _encoder(name: str, options: str) -> TextEncoder:
    return text.get(name, **json.loads(options))


def encoded(config: ConfigDict, split: Split) -> Split:
    """A split whose captions are as the network of a config takes them.

    Each distinct caption is encoded once. Unchanged where the network takes no captions, or where
    they are encoded already.
    """
    captions = split.arrays.get("text")
    if not config.condition.text or captions is None or isinstance(captions, Table):
        return split
    rows = text_table(config, captions.tolist())
    return dataclasses.replace(split, arrays={**split.arrays, "text": rows})


def encoded_dataset(config: ConfigDict, dataset: Dataset) -> Dataset:
    """A data set both of whose splits are `encoded`."""
    train, evaluation = (encoded(config, split) for split in (dataset.train, dataset.eval))
    return dataclasses.replace(dataset, train=train, eval=evaluation)


def remarks_on(config: ConfigDict, captions: Sequence[str]) -> list[str]:
    """What is to be said of captions that are longer than the encoder reads, or empty."""
    encoder, found = text_encoder(config), []
    for caption in dict.fromkeys(captions):
        count = encoder.count(caption)
        if text.is_empty(caption):
            found.append("an empty prompt is no condition: what it gives is drawn without text")
        elif count > encoder.length:
            found.append(
                f"the prompt {caption[:60]!r} has {count} tokens, and the first {encoder.length}"
                " count (condition.text_length in training)"
            )
    return found


def text_table(config: ConfigDict, captions: Sequence[str]) -> Table:
    """The rows of captions; each distinct one is encoded once."""
    distinct, index = np.unique(captions, return_inverse=True)
    return Table(_rows(text_encoder(config), tuple(distinct.tolist())), index)


@functools.lru_cache(maxsize=4)
def _rows(encoder: TextEncoder, captions: tuple[str, ...]) -> Any:
    return encoder.rows(captions)


# --- samples --------------------------------------------------------------------------------------


def follow_examples(config: ConfigDict) -> bool:
    """Whether samples that are scored or shown have the captions or the controls of held-out
    examples, and so the classes of the same examples."""
    return bool(config.condition.text or controls.names_of(config.condition.control))


def example_rows(split: Split, num: int) -> np.ndarray:
    """The examples of a split whose conditions `num` samples have: all in turn."""
    return np.arange(num) % len(split)


def sample_labels(num: int, num_classes: int, split: Split | None = None) -> np.ndarray:
    """The classes of `num` samples, (num,).

    They are those of the examples of a split in turn, where the samples have the captions or the
    controls of these; without a split the classes come in turn.
    """
    if split is not None:
        return split.label[example_rows(split, num)]
    return np.arange(num) % max(num_classes, 1)


def captions_in_turn(split: Split, num: int) -> list[str]:
    """The captions of the examples of a split in turn, for `num` samples."""
    return split.arrays["text"][example_rows(split, num)].tolist()


# --- controls -------------------------------------------------------------------------------------


def control_table(config: ConfigDict, split: Split, num: int) -> Table:
    """The controls of a split in turn, for `num` samples, at full strength."""
    rows = example_rows(split, num)
    distinct = split.batch(np.unique(rows))
    image = np.concatenate(
        controls.images(distinct, controls.names_of(config.condition.control)), -1
    )
    return table_of_controls(config, image, 1.0, rows)


def table_of_controls(
    config: ConfigDict, image: np.ndarray, strength: Any, index: np.ndarray
) -> Table:
    """Controls as the network takes them: row i is image number `index`[i].

    Args:
      image: the controls side by side, (M, ..., C').
      strength: of all, or one for each control that the config names.

    Raises:
      ValueError: a strength that can't be.
    """
    names = controls.names_of(config.condition.control)
    values = np.asarray(strength, np.float32)
    if values.shape not in ((), (len(names),)) or not np.all((values >= 0) & (values < np.inf)):
        each = f", or one for each of {len(names)} controls" if len(names) > 1 else ""
        raise ValueError(f"control_strength={strength!r}: a number of at least 0{each}")
    allowed = (1.0, 0.0) if config.condition.control_dropout else (1.0,)
    if not config.condition.base and not np.isin(values, allowed).all():
        said = " or 0, which is no control" if len(allowed) > 1 else ""
        raise ValueError(
            f"control_strength={strength!r}: here the control is an input of the network, whose"
            f" strength is 1{said}; a ControlNet (condition.base) takes any"
        )
    row = np.broadcast_to(values, (len(image), len(names)))
    return Table({"image": image, "strength": np.array(row)}, index)
