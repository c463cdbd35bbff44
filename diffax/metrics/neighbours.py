"""Precision, recall, density and coverage: what part of one set of features lies near another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diffax.metrics.kernel import both

_BLOCK = 2**24  # numbers held at a time: 128 MB


class PRDC(NamedTuple):
    """The four shares; density alone may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(features: np.ndarray, reference: np.ndarray, k: int = 5) -> PRDC:
    """Precision and recall (Kynkäänniemi 2019), density and coverage (Naeem 2020).

    The ball of a point reaches to its k-th nearest neighbour in its own set, itself left out.

        precision = share of samples in the ball of any reference point: fidelity
        recall    = share of reference points in the ball of any sample: diversity
        density   = mean over samples of the number of reference balls that hold it, over k
        coverage  = share of reference points whose ball holds any sample

    Args:
      features, reference: (N, F) and (M, F), of samples and of data.
      k: 5 as in Naeem 2020; Kynkäänniemi 2019 takes 3.

    Raises:
      ValueError: other shapes, or k not from 1 to below the number of examples of either.
    """
    x, y = both(features, reference)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"k is {k}; it must be at least 1 and below the numbers of examples, {len(x)} and"
            f" {len(y)}"
        )
    of_x, of_y = _radii(x, k), _radii(y, k)
    near_data, balls = [], []  # by sample
    held, covered = np.zeros(len(y), bool), np.zeros(len(y), bool)  # by reference point
    for rows in _parts(len(x), len(y)):  # some of the samples to all of y
        squares, off = _squares(x[rows], y)
        inside = _within(squares, off, x[rows], y, of_y)
        near_data.append(inside.any(axis=1))
        balls.append(inside.sum(axis=1))
        covered |= inside.any(axis=0)
        held |= _within(squares, off, x[rows], y, of_x[rows, None]).any(axis=0)
    return PRDC(
        precision=float(np.concatenate(near_data).mean()),
        recall=float(held.mean()),
        density=float(np.concatenate(balls).mean() / k),
        coverage=float(covered.mean()),
    )


# A point may lie on a ball's edge exactly: a copy of the neighbour that the ball reaches to. So
# every squared distance that decides is `_exactly` that of its two points, wherever it is asked
# for; the others are those of a product of matrices, which is many times faster.


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each point to its k-th nearest other, (N,)."""
    radii = []
    for rows in _parts(len(x), len(x)):
        squares, off = _squares(x[rows], x)
        own = np.arange(len(squares)), np.arange(len(x))[rows]
        squares[own] = np.inf
        reach = np.partition(squares, k - 1, axis=1)[:, k - 1 : k]
        near = squares <= reach + 2 * off.max(axis=1, keepdims=True)
        near[own] = False
        found = np.full(squares.shape, np.inf)
        found[near] = _exactly(x[rows], x, near)
        radii.append(np.partition(found, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _within(
    squares: np.ndarray, off: np.ndarray, x: np.ndarray, y: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """Which distances are at most the radii, (N, M), or what broadcasts to it; both squared."""
    inside = squares <= radii
    near = np.abs(squares - radii) <= off
    inside[near] = _exactly(x, y, near) <= np.broadcast_to(radii, near.shape)[near]
    return inside


def _squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All squared distances, |x|^2 - 2 x . y + |y|^2, and by how much they may be off: (N, M)."""
    norms = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)
    rounding = 4 * (x.shape[1] + 4) * np.finfo(x.dtype).eps
    return norms - 2 * x @ y.T, rounding * norms


def _exactly(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """sum (x - y)^2 of the pairs where the mask (N, M) is true, in the mask's order."""
    i, j = np.nonzero(wanted)
    found = np.empty(len(i))
    for part in _parts(len(i), x.shape[1]):
        found[part] = np.sum((x[i[part]] - y[j[part]]) ** 2, axis=1)
    return found


def _parts(length: int, width: int) -> Iterator[slice]:
    """Parts of so many rows of `width` numbers, each of which fits into a block."""
    rows = max(1, _BLOCK // width)
    return (slice(i, i + rows) for i in range(0, length, rows))
