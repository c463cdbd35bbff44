"""What a config's network is conditioned on, made ready for it."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax.config.defaults import text_encoder_keywords
from diffax.data import Dataset, Split, Table
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
