"""The table of data sources, and `load`."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffax.data import controls, digits, folder, huggingface, mixture, npz, tfds_images
from diffax.data.dataset import DataConfig, Dataset, check_flip
from diffax.data.stored import STORAGES
from diffax.registry import Registry, arguments, shared_arguments, suggestion, unknown


@dataclasses.dataclass(frozen=True)
class Source:
    """A way to load a data set.

    Attributes:
      load: load(config) -> `Dataset`; or load(**fields), where it is `by_keywords`.
      fields: those that it reads beyond the common ones.
    """

    load: Callable[..., Dataset]
    fields: tuple[str, ...]
    by_keywords: bool = False


_TFDS_FIELDS = ("image_size", "pad_to", "train_split", "eval_split")
_COMMON_FIELDS = ("name", "data_dir", "flip", "storage")
_MOST_PIXELS = 16_384  # a side

SOURCES: Registry[Source] = Registry(
    "data source",
    {
        "digits": Source(digits.load, _TFDS_FIELDS),
        "folder": Source(folder.load, ("path", "image_size", "pad_to", "channels", "skip_bad")),
        "npz": Source(npz.load, ("path", "array", "range", "channels")),
        "huggingface": Source(huggingface.load, ("path", "channels", *_TFDS_FIELDS)),
        "mixture2d": Source(mixture.load, ("modes", "mode_deviation")),
    },
)
_TFDS = Source(lambda config: tfds_images.load(config, also_known=tuple(SOURCES)), _TFDS_FIELDS)


def register(name: str, load: Callable[..., Dataset]) -> None:
    """Makes a data set reachable as config.data.name.

    Args:
      load: load(**fields) -> `Dataset`, by `make_dataset` for instance. Its arguments, numbers,
        words or tuples, become keys of config.data, whose default None is the argument's own; one
        that is called as a field of `DataConfig` is that field.

    Raises:
      ValueError: the name is taken, or the type of an argument isn't known or is another one than
        that of the same key for other sources.
    """
    fields = tuple(arguments(f"data source {name!r}", load))
    shared_arguments("data source", _takers() | {name: load})
    SOURCES.register(name, Source(load, fields, by_keywords=True))


def registered() -> dict[str, Callable[..., Dataset]]:
    """The functions of the sources that are registered."""
    return {name: source.load for name, source in SOURCES.items() if source.by_keywords}


def _takers() -> dict[str, Callable]:
    """What takes the fields of config.data."""
    return {"DataConfig": DataConfig, **registered()}


def key_types() -> dict[str, type]:
    """Every field of `config.data` with its type."""
    return shared_arguments("data source", _takers())


def known_fields() -> dict[str, Any]:
    """Every field of `config.data` with its default (see `DataConfig` for what they mean)."""
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    return {name: defaults.get(name) for name in key_types()}


def load(data_config) -> Dataset:
    """Loads the data set that `data_config` describes, decoded into memory, or into a file where it
    is larger (`data.storage`).

    Args:
      data_config: an `ml_collections.ConfigDict`, or any mapping, whose keys are fields of
        `DataConfig`; a field that is absent or None has its default. `name` is a key of `SOURCES`;
        any other name is that of a TFDS image set.

    Returns:
      The data set, both splits.

    Raises:
      ValueError: for a field that is unknown, of the wrong type, impossible, or set although the
        source does not read it; for data that cannot be used.
      FileNotFoundError: if the data are not there.
      Every message names the field or the file, and the remedy.
    """
    values = _read(data_config)
    name = values["name"]
    source = SOURCES.get(name, _TFDS)
    for field, default in known_fields().items():
        value = values.get(field, default)
        if value != default and field not in (*_COMMON_FIELDS, *source.fields):
            raise ValueError(
                f"data.{field}={value!r} has no meaning for data.name={name!r}, which reads "
                f"{', '.join(source.fields) or 'no further fields'}: leave it at {default!r}."
            )
    if source.by_keywords:
        dataset = source.load(
            **{field: values[field] for field in source.fields if field in values}
        )
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"data.name={name!r}: its function returned {type(dataset).__name__}; it must"
                " return a diffax.data.Dataset, as diffax.data.make_dataset does"
            )
    else:
        dataset = source.load(DataConfig(**values))
    check_flip(values["flip"], dataset.shape)
    controls.remark_on_classes(dataset)
    return dataset


def load_cached(data_config) -> Dataset:
    """`load`, but the set that was read last is kept: asked for again, nothing is read.

    For trainings and measurements that follow one another in a process. Where `path` names files,
    they are read again if one was changed. The arrays can't be written to, since they are shared.
    """
    values = _read(data_config)
    data_dir = tfds_images.data_dir(values["data_dir"])
    return _cached(tuple(sorted(values.items())), data_dir, _state_of_files(values["path"]))


@functools.lru_cache(maxsize=1)
def _cached(values: tuple, data_dir: str, files: tuple) -> Dataset:
    del data_dir, files  # what else it depends on
    dataset = load(dict(values))
    for split in (dataset.train, dataset.eval):
        for array in (split.x, split.label, *split.arrays.values()):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    return dataset


def _state_of_files(path: str) -> tuple:
    """Changes with any file at or below a path; () for none."""
    if not path:
        return ()
    root = Path(path)
    files = sorted(folder.walk(root)) if os.path.isdir(root) else [root]
    stats = [(str(file), file.stat()) for file in files if os.path.isfile(file)]
    return tuple(
        (name, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for name, found in stats
    )


def _is_range(ends: tuple) -> bool:
    numbers = len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    return numbers and -math.inf < ends[0] < ends[1] < math.inf


def _read(data_config) -> dict[str, Any]:
    """Field -> value, of those that are set and of those of `DataConfig`; checks keys, types and
    ranges."""
    defaults, types = known_fields(), key_types()
    given = {key: data_config[key] for key in data_config}
    for key, value in given.items():
        if key not in defaults:
            raise ValueError(
                f"data.{key} is not a field{suggestion(key, defaults)}; the fields are"
                f" {', '.join(defaults)}."
            )
        wanted = types[key]
        if wanted is tuple and type(value) is list:  # as JSON has it
            given[key] = value = tuple(value)
        if wanted is float and type(value) is int:
            given[key] = value = float(value)
        if value is not None and type(value) is not wanted:
            raise ValueError(
                f"data.{key}={value!r} is {type(value).__name__}; it must be {wanted.__name__}."
            )
    given = {key: value for key, value in given.items() if value is not None}
    values = {k: v for k, v in defaults.items() if v is not None} | given
    if values["storage"] not in STORAGES:
        raise ValueError(unknown("data.storage", values["storage"], STORAGES))
    for key in ("image_size", "pad_to"):
        if not 0 <= values[key] <= _MOST_PIXELS:
            raise ValueError(
                f"data.{key}={values[key]} must not be negative, nor above {_MOST_PIXELS}."
            )
    if values["range"] and not _is_range(values["range"]):
        raise ValueError(
            f"data.range={values['range']!r} must be (low, high), two finite numbers with low <"
            " high, or () for none."
        )
    if not values["name"]:
        raise ValueError(
            f"data.name is empty; it must be one of {', '.join(SOURCES)}, or a TFDS image set."
        )
    return values
