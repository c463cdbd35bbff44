"""`huggingface`: image sets of Hugging Face, by name or saved on disk."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffax.data import images
from diffax.data.dataset import DataConfig, Dataset, cut, make_dataset
from diffax.data.records import Record, read_split
from diffax.registry import suggestion

_IMAGES, _LABELS, _TEXTS = ("image", "img"), ("label", "labels"), ("text", "caption")
_BATCH = 256  # rows read at a time


def load(config: DataConfig) -> Dataset:
    """Loads the image set `config.path` by the library `datasets`.

    A path of a folder is one that `save_to_disk` wrote, or one of files that `load_dataset` reads
    (parquet, images); any other is a name, as "mnist" or "user/set", with ":" and a config behind
    it if need be, which is downloaded unless it is in the library's cache.

    The images are those of the column "image" or "img", or of the only one of that type. The
    classes are a ClassLabel, "label" or "labels" or the only one; the captions, the array "text",
    strings named "text" or "caption", of which null is the empty one. `config.channels`: 0 is grey
    if every image is, else colour.

    The splits are `config.train_split` and `config.eval_split`. Of a set without the second one a
    tenth of the train split, drawn once and for all (Philox, key 0), is the eval split.

    Raises:
      ValueError: the library is not installed, there is no such split, no images, one that can't be
        read or is null, or a class that is null; the message names the row.
      FileNotFoundError: there is no such set, or it can't be downloaded.
    """
    splits = _splits(config.path)
    train = splits.get(config.train_split)
    if train is None or not len(train):
        found = ", ".join(splits)
        raise ValueError(
            f"data.train_split={config.train_split!r} is no split of {config.path!r}"
            f"{suggestion(config.train_split, splits)}, which has {found}."
        )
    names = [name for name in (config.train_split, config.eval_split) if name in splits]
    if config.eval_split not in splits and config.eval_split != DataConfig.eval_split:
        raise ValueError(
            f"data.eval_split={config.eval_split!r} is no split of {config.path!r}"
            f"{suggestion(config.eval_split, splits)}, which has {', '.join(splits)}."
        )
    image, label, text = _columns(train, config.path)
    tables = [_encoded(splits[name], image) for name in names]
    channels = config.channels or (1 if all(_is_grey(t, image) for t in tables) else 3)
    parts = [
        read_split(
            config,
            len(table),
            functools.partial(
                _records, table, image, label, text, f"{config.path!r}, split {name!r}"
            ),
            channels,
            functools.partial(lambda table, name: [table._fingerprint, name], table, name),
            f"{{}} of {config.path!r} can't be read ({{}}).",
        )
        for table, name in zip(tables, names)
    ]
    if len(parts) == 1:
        order = np.argsort(np.random.Philox(key=0).random_raw(len(parts[0])), kind="stable")
        parts = [parts[0].take(rows) for rows in cut(len(parts[0]), order)]
    classes = tuple(train.features[label].names) if label else ()
    return make_dataset(config.name, *parts, classes)


def _splits(path: str) -> Mapping[str, Any]:
    """Name -> the table of a split."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "data.name='huggingface' needs the library datasets: pip install 'diffax[huggingface]'"
        ) from None
    if not path:
        raise ValueError("data.path is empty: data.name='huggingface' needs a set's name or folder")
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(os.fspath(folder))
        elif folder.is_dir():
            found = datasets.load_dataset(os.fspath(folder))
        else:
            name, _, config = path.partition(":")
            found = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library has no one kind for what it can't have
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(f"data.path={path!r} can't be loaded ({line}).") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _columns(table: Any, path: str) -> tuple[str, str | None, str | None]:
    """The names of the images, and (or None) of the classes and the captions."""
    import datasets

    features = table.features

    def pick(kind: type, preferred: tuple[str, ...]) -> str | None:
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        named = [name for name in preferred if name in found]
        return named[0] if named else found[0] if len(found) == 1 else None

    image = pick(datasets.Image, _IMAGES)
    if image is None:
        raise ValueError(
            f"data.path={path!r} has no column of images that is meant: its columns are"
            f" {', '.join(features)}."
        )
    strings = [name for name in _TEXTS if getattr(features.get(name), "dtype", "") == "string"]
    return image, pick(datasets.ClassLabel, _LABELS), next(iter(strings), None)


def _encoded(table: Any, image: str) -> Any:
    """The table with its images as they are stored."""
    import datasets

    return table.cast_column(image, datasets.Image(decode=False))


def _content(stored: Mapping[str, Any] | None) -> bytes:
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        raise ValueError("it is null")
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()


def _rows(table: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    table = table.select_columns(columns)
    for start in range(0, len(table), _BATCH):
        batch = table[start : start + _BATCH]
        yield from zip(*(batch[name] for name in columns))


def _is_grey(table: Any, image: str) -> bool:
    """Whether all images are; one that can't be read is named later."""
    for (stored,) in _rows(table, [image]):
        try:
            if not images.header(_content(stored)).grey:
                return False
        except (ValueError, OSError):
            continue
    return True


def _records(
    table: Any, image: str, label: str | None, text: str | None, where: str
) -> Iterator[Record]:
    """The rows; `where` is for the sentence on one that can't be used."""
    names = [name for name in (image, label, text) if name]
    for i, row in enumerate(_rows(table, names)):
        of = dict(zip(names, row))
        try:
            content = _content(of[image])
        except (ValueError, OSError) as error:
            raise ValueError(f"{image!r} of row {i} of {where} can't be read ({error}).") from None
        if label and of[label] is None:
            raise ValueError(
                f"{label!r} of row {i} of {where} is null: each row needs a class; leave such rows"
                " out, or the whole column."
            )
        yield Record(content, of.get(label), (of[text] or "") if text else None)
