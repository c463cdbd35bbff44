"""`npz`: an array of examples, signals for instance, from a NumPy .npz file."""

import dataclasses
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffax.data.dataset import DataConfig, Dataset, Split, cut, make_dataset
from diffax.data.stored import Stored, extremes, filled, in_npz, is_large
from diffax.files import read_npz

_LOG = logging.getLogger("diffax")
_PREFERRED_KEYS = ("x", "audio", "samples", "arr_0")
_BESIDE = ("label", "text", "control")  # of the examples
_AS_THEY_ARE = (-1.0, 1.0)
_CHUNK = 1024  # examples that are float64 at a time
# Of floats that are taken as they are: the largest without data.range, and with it.
_ABOUT_ONE, _LARGEST = 1.5, 100.0


def load(config: DataConfig) -> Dataset:
    """Reads one array (N, ..., C) of the file `config.path`, such as signals (N, length, 1). The
    file may be a .npy, which holds that array alone.

    The array is the one that `config.array` names; without a name the only one beside `label`, or
    else `x`, `audio`, `samples` or `arr_0`. What its numbers mean:

      uint8             8-bit data, 0 to 255
      int16             real data k / 32768 in [-1, 1), as audio is kept
      floats            real data as they are, if they lie in [-1, 1] and are of both signs
      anything else     needs `config.range`

    With `config.channels` the last axis must be as long. Without, shapes are refused that rather
    have none of channels, or have it elsewhere, such as (N, 28, 28) and (N, 3, 32, 32).

    With `config.range` = (low, high) low becomes -1 and high 1, and nothing may lie outside;
    (-1, 1) takes floats as they are, whatever they are, such as points or standardised data.

    An array `label` (N,) gives the classes: integers from 0, or words, whose classes are numbered
    in the order of the alphabet. An array `text` (N,) of words gives captions, and `control`,
    (N, ..., C), 8-bit or floats in [-1, 1], what each example is controlled by. A tenth of the
    examples, drawn once and for all (Philox, key 0), is the eval split.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it is no .npz, or the array is not found or not usable; it names the file.
    """
    raw, beside = _arrays(config)
    label, where = beside.pop("label", None), f"the array in {config.path!r}"
    _check_layout(raw.shape, raw.dtype, config.channels, where)
    convert = _within(raw, config.range, where) if config.range else _of_order_one(raw, where)
    x = _converted(raw, convert, config, where)
    names: tuple[str, ...] = ()
    if label is not None:
        label, names = _classes(label, len(x), config.path)
    order = np.argsort(np.random.Philox(key=0).random_raw(len(x)), kind="stable")
    whole = Split(x, label, beside)
    train, evaluation = map(whole.take, cut(len(x), order))
    return make_dataset(config.name, train, evaluation, names)


def read(config: DataConfig) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The examples, (N, ..., C) uint8 or float32, and those of `label`, `text` and `control` that
    the file has, the label as it is.

    Floats are as they are, int16 is k / 32768.
    """
    raw, beside = _arrays(dataclasses.replace(config, storage="memory"))
    convert = _numbers(raw.dtype, f"the array in {config.path!r}")
    return (convert(raw) if convert else raw), beside


def _arrays(config: DataConfig) -> tuple[np.ndarray | Stored, dict[str, np.ndarray]]:
    """The examples, and what else is known of each, checked but for the label."""
    if not os.path.isfile(config.path):
        raise FileNotFoundError(
            f"data.path={config.path!r} is not a file: data.name='npz' needs the path of an .npz."
        )

    if config.path.endswith(".npy"):
        x, beside = Stored.npy(Path(config.path)), {}
        x = x if is_large(x.nbytes, config.storage) else x[:]
    else:
        x, beside = _of_npz(config)
    if x.ndim < 2 or len(x) < 2 or 0 in x.shape:
        raise ValueError(
            f"the array in {config.path!r} has shape {x.shape}; it must be (N, ..., channels) with "
            "at least 2 examples (give a signal a last axis of length 1)."
        )
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(extremes(x)).all():
        raise ValueError(f"the array in {config.path!r} has values that are not finite.")
    if "text" in beside:
        _check_text(beside["text"], len(x), config.path)
    if "control" in beside:
        beside["control"] = _control(beside["control"], len(x), config.path)
    if isinstance(x, Stored) and not x.dtype.isnative:
        raise ValueError(f"the array in {config.path!r} has the byte order of another machine.")
    return x if isinstance(x, Stored) else x.astype(x.dtype.newbyteorder("="), copy=False), beside


def _of_npz(config: DataConfig) -> tuple[np.ndarray | Stored, dict[str, np.ndarray]]:
    large = []

    def pick(names: Sequence[str]) -> Iterable[str]:
        name = _key(config, names)
        with zipfile.ZipFile(config.path) as archive:
            size = archive.getinfo(f"{name}.npy").file_size
        large.extend([name] * is_large(size, config.storage))
        wanted = [name] * (not large) + [name for name in _BESIDE if name in names]
        return dict.fromkeys(wanted)

    found = read_npz(config.path, pick)
    name = large[0] if large else _key(config, list(found))
    x = in_npz(config.path, name) if large else found[name]
    return x, {key: array for key, array in found.items() if key != name or name == "label"}


def _check_text(text: np.ndarray, num: int, path: str) -> None:
    if text.shape != (num,) or text.dtype.kind != "U":
        raise ValueError(
            f"'text' in {path!r} must hold {num} captions, one for each example; it is {text.dtype}"
            f" {text.shape}."
        )


def _control(control: np.ndarray, num: int, path: str) -> np.ndarray:
    """The controls as uint8 or float32."""
    is_fit = control.ndim >= 2 and len(control) == num and 0 not in control.shape
    is_float = control.dtype.kind == "f"
    if not (is_fit and (control.dtype == np.uint8 or (is_float and np.all(np.abs(control) <= 1)))):
        raise ValueError(
            f"'control' in {path!r} must be an array ({num}, ..., channels) of 8-bit numbers or of"
            f" floats in [-1, 1]; it is {control.dtype} {control.shape}."
        )
    return control.astype(np.float32) if is_float else control


def _key(config: DataConfig, keys: Sequence[str]) -> str:
    candidates = [key for key in keys if key not in _BESIDE]
    listed = ", ".join(keys) or "no array"
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


def _check_layout(shape: tuple[int, ...], dtype: np.dtype, channels: int, where: str) -> None:
    """Refuses what is not (N, ..., channels), or hardly, where their number is not given."""
    if channels:
        if channels != shape[-1]:
            raise ValueError(f"{where} has shape {shape}, and data.channels={channels}.")
        return
    if len(shape) == 4 and shape[1] in (1, 3, 4) and min(shape[2:]) > 4:
        remedy = "channels come last: save x.transpose(0, 2, 3, 1)"
    elif len(shape) == 3 and shape[1] in (1, 2) and shape[2] > 16:
        remedy = "channels come last: save x.transpose(0, 2, 1)"
    elif len(shape) == 3 and shape[2] > 4 and (shape[1] == shape[2] or dtype == np.uint8):
        remedy = "images need an axis of channels, 1 for grey: save x[..., None]"
    else:
        return
    raise ValueError(
        f"{where} has shape {shape}, and {remedy}; or set data.channels={shape[-1]}, if that many "
        "channels are meant."
    )


# What makes float32 of some rows; None: they are uint8 or float32, and stay as they are.
Convert = Callable[[np.ndarray], np.ndarray] | None


def _numbers(dtype: np.dtype, where: str) -> Convert:
    """Of numbers as they are, but for int16: k / 32768."""
    if dtype in (np.uint8, np.float32):
        return None
    if dtype == np.int16:
        return lambda raw: raw.astype(np.float32) / 32768
    if not np.issubdtype(dtype, np.floating):
        raise ValueError(
            f"{where} has dtype {dtype}; it must be uint8, int16 or floating, or numbers whose "
            "(low, high) data.range gives."
        )
    return lambda raw: raw.astype(np.float32)


def _of_order_one(raw: np.ndarray | Stored, where: str) -> Convert:
    """`_numbers`; refuses what another range than [-1, 1] fits better."""
    convert = _numbers(raw.dtype, where)
    if raw.dtype == np.uint8:
        return convert
    smallest, largest = extremes(raw)
    low, high = (convert or np.asarray)(np.array([smallest, largest]))
    # Images that were resized may go a little below 0.
    if max(-low, high) > _ABOUT_ONE or low > -0.1 * high:
        raise ValueError(
            f"{where} has {raw.dtype} values from {float(smallest):g} to {float(largest):g}, "
            "and data are trained on in [-1, 1]: set data.range to the (low, high) that become -1 "
            "and 1, such as (0, 255) or (0, 1); (-1, 1) takes floats as they are."
        )
    return convert


def _within(raw: np.ndarray | Stored, ends: tuple[float, ...], where: str) -> Convert:
    """The ends of a range become -1 and 1; 8-bit data stay what they are."""
    if raw.dtype.kind not in "biuf":
        raise ValueError(f"{where} has dtype {raw.dtype}; it must be numbers.")
    low, high = ends
    smallest, largest = map(float, extremes(raw))
    as_they_are = ends == _AS_THEY_ARE and raw.dtype.kind == "f"
    allowed = (-_LARGEST, _LARGEST) if as_they_are else ends
    if smallest < allowed[0] or largest > allowed[1]:
        raise ValueError(
            f"{where} has values from {smallest:g} to {largest:g}, which is beyond "
            f"{'what can be trained on' if as_they_are else f'data.range={ends}'}."
        )
    if as_they_are or (raw.dtype == np.uint8 and ends == (0, 255)):
        return _numbers(raw.dtype, where)

    def convert(raw: np.ndarray) -> np.ndarray:
        return ((raw.astype(np.float64) - low) * (2 / (high - low)) - 1).astype(np.float32)

    return convert


def _converted(
    raw: np.ndarray | Stored, convert: Convert, config: DataConfig, where: str
) -> np.ndarray | Stored:
    """The numbers that are trained on: those of the file themselves, where they are meant so."""
    if convert is None:
        return raw

    def fill(x: Any) -> dict[str, np.ndarray]:
        for start in range(0, len(raw), _CHUNK):
            part = slice(start, start + _CHUNK)
            x[part] = convert(raw[part])
        return {}

    def key() -> list[Any]:
        found = os.stat(config.path)
        place = (os.path.abspath(config.path), found.st_size, found.st_mtime_ns)
        return [*place, config.array, list(config.range)]

    return filled(raw.shape, np.float32, fill, config.storage, where, key)[0]


def _classes(label: np.ndarray, num: int, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The classes as int32, and their names."""
    if label.shape != (num,) or label.dtype.kind not in "iuU":
        raise ValueError(
            f"'label' in {path!r} must hold {num} integers from 0 on, or words; "
            f"it is {label.dtype} {label.shape}."
        )
    if label.dtype.kind == "U":
        names, label = np.unique(label, return_inverse=True)
        return label.astype(np.int32), tuple(names.tolist())
    if label.min() < 0 or label.max() >= num:
        wrong = label.min() if label.min() < 0 else label.max()
        raise ValueError(
            f"'label' in {path!r} must hold {num} integers from 0 on, one for each example, so "
            f"below {num}; it has {wrong}."
        )
    count = int(label.max()) + 1
    missing = sorted(set(range(count)) - set(label.tolist()))
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        listed = ", ".join(map(str, missing[:10]))
        _LOG.warning("%s: no example is of class %s%s", path, listed, more)
    return label.astype(np.int32), tuple(str(i) for i in range(count))
