"""`npz`: an array of examples, signals for instance, from a NumPy .npz file."""

from __future__ import annotations

import os
import zipfile
import zlib

import numpy as np

from diffax.data.dataset import DataConfig, Dataset, Split, cut, make_dataset

_PREFERRED_KEYS = ("x", "audio", "samples", "arr_0")


def load(config: DataConfig) -> Dataset:
    """Reads one array (N, ..., C) of the file `config.path`, such as signals (N, length, 1).

    The array is the one that `config.array` names; without a name the only one beside `label`, or
    else `x`, `audio`, `samples` or `arr_0`. int16 becomes real data k / 32768 in [-1, 1); uint8
    stays 8-bit data; floats are taken as they are and should be of order one. An array `label` (N,)
    of integers from 0 gives the classes. A tenth of the examples, drawn once and for all (Philox,
    key 0), is the eval split.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it is no .npz, or the array is not found or not usable; it names the file.
    """
    x, label = read(config)
    names: tuple[str, ...] = ()
    if label is not None:
        label = _labels(label, len(x), config)
        names = tuple(str(i) for i in range(label.max() + 1))
    order = np.argsort(np.random.Philox(key=0).random_raw(len(x)), kind="stable")
    train, evaluation = (
        Split(x[i], None if label is None else label[i]) for i in cut(len(x), order)
    )
    return make_dataset(config.name, train, evaluation, names)


def read(config: DataConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """The examples as in `load`, (N, ..., C) uint8 or float32, and `label` as it is, or None."""
    if not os.path.isfile(config.path):
        raise FileNotFoundError(
            f"data.path={config.path!r} is not a file: data.name='npz' needs the path of an .npz."
        )

    def member(archive, key: str) -> np.ndarray:
        try:
            return archive[key]
        except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{key!r} in {config.path!r} cannot be read: {error}.") from error

    if not zipfile.is_zipfile(config.path):
        raise ValueError(f"data.path={config.path!r} is not an .npz (write one with numpy.savez).")
    with np.load(config.path, allow_pickle=False) as archive:
        x = member(archive, _key(config, archive.files))
        label = member(archive, "label") if "label" in archive.files else None
    return _examples(x, config), label


def _key(config: DataConfig, keys: list[str]) -> str:
    candidates = [key for key in keys if key != "label"]
    listed = ", ".join(keys) or "nothing"
    if config.array:
        if config.array not in keys:
            raise ValueError(
                f"data.array={config.array!r} is not in {config.path!r}, which holds {listed}."
            )
        return config.array
    if len(candidates) == 1:
        return candidates[0]
    for key in _PREFERRED_KEYS:
        if key in candidates:
            return key
    raise ValueError(f"{config.path!r} holds {listed}: name the array to use by data.array.")


def _examples(x: np.ndarray, config: DataConfig) -> np.ndarray:
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(
            f"the array in {config.path!r} has shape {x.shape}; it must be (N, ..., channels) with "
            "at least 2 examples (give a signal a last axis of length 1)."
        )
    if x.dtype == np.uint8:
        return x
    if x.dtype == np.int16:
        return x.astype(np.float32) / 32768
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"the array in {config.path!r} has dtype {x.dtype}; "
            "it must be uint8, int16 or floating."
        )
    if not np.isfinite(x).all():
        raise ValueError(f"the array in {config.path!r} has values that are not finite.")
    return x.astype(np.float32)


def _labels(label: np.ndarray, num: int, config: DataConfig) -> np.ndarray:
    if label.shape != (num,) or not np.issubdtype(label.dtype, np.integer) or label.min() < 0:
        raise ValueError(
            f"'label' in {config.path!r} must hold {num} integers from 0 on; "
            f"it is {label.dtype} {label.shape}."
        )
    return label.astype(np.int32)
