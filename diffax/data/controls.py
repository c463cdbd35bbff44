"""Spatial controls: what a network follows place by place, from files or computed from the data.

`condition.control` names controls, several joined by commas. "files" is the array "control" that
the data carry (`conditioning_file_name` in a folder's metadata.jsonl). Any other name is that of a
pure function of the examples: x, (n, ..., C) float32, to (n, ..., C') float32 in [-1, 1], each
example by itself and each place where it is in x.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffax.data.dataset import Dataset, Split, to_float
from diffax.registry import Registry, unknown

_LOG = logging.getLogger("diffax")
FILES = "files"
_LOOKED_AT, _DARK = 64, 32  # controls, and the least value of 255 that is no number of a class
Function = Callable[[np.ndarray], np.ndarray]


def _axes(x: np.ndarray) -> range:
    """The spatial axes of x, (n, ..., C)."""
    return range(1, x.ndim - 1)


def _along(x: np.ndarray, axis: int, kernel: Sequence[float]) -> np.ndarray:
    """x correlated along an axis with a kernel of odd length; the border is repeated."""
    half = len(kernel) // 2
    pad = [(half, half) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = np.pad(x, pad, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis)
    return (windows @ np.asarray(kernel, np.float32)).astype(np.float32)


def edges(x: np.ndarray) -> np.ndarray:
    """1 where |g|^2 > mean |g|^2 over the example, else -1, (n, ..., 1).

    g is the gradient of the channels' mean by Sobel's kernels: the difference of the neighbours on
    either side, smoothed by (1, 2, 1) along the other axes. An example without any edge has none.
    """
    grey = x.mean(axis=-1, keepdims=True)
    square = np.zeros_like(grey)
    for axis in _axes(x):
        g = _along(grey, axis, (-0.5, 0.0, 0.5))
        for other in _axes(x):
            g = g if other == axis else _along(g, other, (0.25, 0.5, 0.25))
        square += g**2
    cut = square.mean(axis=tuple(_axes(x)), keepdims=True)
    return np.where(square > np.maximum(cut, 1e-8), np.float32(1), np.float32(-1))


def blurred(x: np.ndarray) -> np.ndarray:
    """x smoothed by a Gaussian whose deviation is a sixteenth of the longest axis, at least 1."""
    deviation = max(1.0, max(x.shape[1:-1]) / 16)
    places = np.arange(-math.ceil(3 * deviation), math.ceil(3 * deviation) + 1)
    kernel = np.exp(-0.5 * (places / deviation) ** 2)
    return functools.reduce(lambda h, axis: _along(h, axis, kernel / kernel.sum()), _axes(x), x)


def low_resolution(x: np.ndarray) -> np.ndarray:
    """The mean of x over blocks of 4 along every axis, or of 2 where 4 does not divide it."""
    for axis in _axes(x):
        block = math.gcd(x.shape[axis], 4)
        cut = (*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
        mean = x.reshape(cut).mean(axis=axis + 1)
        x = np.repeat(mean, block, axis=axis)
    return x


def grey(x: np.ndarray) -> np.ndarray:
    """The mean of the channels, (n, ..., 1)."""
    return x.mean(axis=-1, keepdims=True)


def masked(x: np.ndarray) -> np.ndarray:
    """x with 0 in the middle half of every axis, and a further channel: 1 there, else -1."""
    middle = np.full((*x.shape[:-1], 1), -1, np.float32)
    inside = tuple(slice(x.shape[a] // 4, x.shape[a] - x.shape[a] // 4) for a in _axes(x))
    middle[(slice(None), *inside)] = 1
    return np.concatenate([np.where(middle > 0, np.float32(0), x), middle], axis=-1)


CONTROLS: Registry[Function] = Registry(
    "control",
    {
        "edges": edges,
        "blurred": blurred,
        "low_resolution": low_resolution,
        "grey": grey,
        "masked": masked,
    },
)


def register_control(name: str, function: Function) -> None:
    """Makes a control that is computed from the data reachable as condition.control.

    Args:
      function: x, (n, ..., C) float32 -> (n, ..., C') float32 in [-1, 1], with NumPy. It depends on
        each example alone, and draws nothing.

    Raises:
      ValueError: the name is taken, or is "files".
    """
    if name == FILES:
        raise ValueError(f"a control can't be named {FILES!r}, which is that of the data's files")
    CONTROLS.register(name, function)


def names_of(text: str) -> tuple[str, ...]:
    """The controls that `condition.control` names."""
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def known() -> tuple[str, ...]:
    """Every name of a control."""
    return (FILES, *CONTROLS)


def array_of(name: str) -> str:
    """The name of a control's array in `Split.arrays`."""
    return "control" if name == FILES else f"control_{name}"


class Computed:
    """A control of each example, computed when it is asked for; in a `Split` as an array is."""

    dtype = np.dtype(np.float32)
    is_computed = True  # from the examples: it is no part of the data's fingerprint

    def __init__(self, x: np.ndarray, function: Function):
        self._x, self._function = x, function
        self.shape = (len(x), *self[np.arange(1)].shape[1:])

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self._function(to_float(self._x[indices])), np.float32)


def with_controls(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set whose splits have an array for each of the controls.

    Raises:
      ValueError: an unknown name; files where the data have none; data of points; or a function
        that gives another size than that of the examples.
    """
    if not names:
        return dataset
    for name in names:
        if name not in known():
            raise ValueError(unknown("condition.control", name, known()))
    if FILES in names and "control" not in dataset.train.arrays:
        raise ValueError(
            f"condition.control={FILES!r}, and the data set {dataset.name!r} has no controls: name"
            " them in a folder's metadata.jsonl by conditioning_file_name, or in an .npz as the"
            f" array 'control'; or choose one that is computed, {', '.join(CONTROLS)}"
        )
    if FILES in names:
        _check_size(dataset.train.arrays["control"].shape[1:], dataset)
    computed = [name for name in names if name != FILES]
    if computed and len(dataset.shape) < 2:
        raise ValueError(
            f"condition.control={computed[0]!r} is computed of data with an extent, and examples of"
            f" {dataset.name!r} have shape {dataset.shape}"
        )

    def extended(split: Split) -> Split:
        made = {array_of(name): Computed(split.x, CONTROLS[name]) for name in computed}
        for name, rows in zip(computed, made.values()):
            if rows.shape[:-1] != split.x.shape[:-1]:
                raise ValueError(
                    f"condition.control={name!r} gives controls of shape {rows.shape[1:]} for"
                    f" examples of {dataset.shape}: it must keep the spatial axes"
                )
        return dataclasses.replace(split, arrays={**split.arrays, **made})

    return dataclasses.replace(dataset, train=extended(dataset.train), eval=extended(dataset.eval))


def _check_size(shape: tuple[int, ...], dataset: Dataset) -> None:
    own = dataset.shape
    whole = len(shape) == len(own) and all(a % b == 0 for a, b in zip(shape[:-1], own))
    if not whole:
        raise ValueError(
            f"condition.control={FILES!r}: the controls of {dataset.name!r} have shape {shape} and"
            f" its examples {own}; each spatial axis must be as long, or a whole multiple"
        )


def remark_on_classes(dataset: Dataset) -> None:
    """Says in the log that controls of files look like numbers of classes, 0, 1, 2, ..., which are
    nearly the same control. The first of them are looked at."""
    control = dataset.train.arrays.get("control")
    if control is None:
        return
    first = np.asarray(control[np.arange(min(len(control), _LOOKED_AT))])
    if first.dtype == np.uint8 and 0 < first.max() < _DARK:
        _LOG.warning(
            "the controls of %s have values from %d to %d of 255, which the network sees as nearly"
            " equal: spread masks that hold numbers of classes over 0 to 255",
            *(dataset.name, first.min(), first.max()),
        )


def images(batch: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The controls of a batch, (n, ..., C') each."""
    return [batch[array_of(name)] for name in names]


def of_data(x: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The controls that are computed from x, (n, ..., C) float32, side by side.

    Raises:
      ValueError: one of them is of files.
    """
    if FILES in names:
        raise ValueError(
            f"control=None: {FILES!r} are controls of their own, and those of these data aren't"
            " known: give control"
        )
    return np.concatenate([CONTROLS[name](x) for name in names], axis=-1)
