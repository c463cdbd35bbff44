"""The kernel distance between two sets of features (KID, Bińkowski 2018), in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class KernelDistance(NamedTuple):
    """An unbiased estimate, which may be negative, and its standard error."""

    value: float
    standard_error: float


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / F + 1)^3 for all pairs of rows, (N, F) and (M, F) -> (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def both(features: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two in float64; ValueError unless they have shapes (N, F) and (M, F)."""
    x, y = (np.asarray(a, np.float64) for a in (features, reference))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features and reference have shapes {x.shape} and {y.shape}; they must be (N, F) and"
            " (M, F)"
        )
    return x, y


def kernel_distance(
    features: np.ndarray,
    reference: np.ndarray,
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray] = cubic_kernel,
    blocks: int = 20,
) -> KernelDistance:
    """The squared maximum mean discrepancy of a kernel k, unbiased (Gretton 2012, eq. 3):

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    With the cubic kernel this is KID. All pairs count, where KID is often averaged over subsets:
    the mean is the same, the error smaller. The standard error is the jackknife's, over `blocks`
    equal parts of either set.

    Args:
      features, reference: (N, F) and (M, F).

    Raises:
      ValueError: other shapes, `blocks` below 2, or fewer than 2 `blocks` examples on a side.
    """
    x, y = both(features, reference)
    if blocks < 2 or min(len(x), len(y)) < 2 * blocks:
        raise ValueError(
            f"blocks is {blocks}; it must be at least 2, and half of the {len(x)} and {len(y)}"
            " examples at most"
        )
    parts = np.array_split(x, blocks), np.array_split(y, blocks)
    sums = _Sums(
        xx=_within(parts[0], kernel),
        yy=_within(parts[1], kernel),
        xy=_between(*parts, kernel),
        sizes=tuple(np.array([len(part) for part in side]) for side in parts),
    )
    everything = np.ones(blocks, bool)
    without = [everything ^ (np.arange(blocks) == i) for i in range(blocks)]
    variance = 0.0
    for estimates in (
        [sums.distance(kept, everything) for kept in without],
        [sums.distance(everything, kept) for kept in without],
    ):
        variance += (blocks - 1) * np.var(estimates)
    return KernelDistance(sums.distance(everything, everything), float(np.sqrt(variance)))


def _between(parts: list[np.ndarray], others: list[np.ndarray], kernel: Callable) -> np.ndarray:
    """Sums of the kernel over the pairs of each part and each other, (parts, others)."""
    return np.array([[kernel(a, b).sum() for b in others] for a in parts])


def _within(parts: list[np.ndarray], kernel: Callable) -> np.ndarray:
    """`_between` parts of one set, without the pairs of an example and itself."""
    return _between(parts, parts, kernel) - np.diag([np.trace(kernel(a, a)) for a in parts])


class _Sums(NamedTuple):
    """Sums of the kernel over pairs, by the blocks that the two are of."""

    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    sizes: tuple[np.ndarray, np.ndarray]

    def distance(self, of_x: np.ndarray, of_y: np.ndarray) -> float:
        """The estimate by some of the blocks alone, masks (blocks,)."""
        n, m = self.sizes[0][of_x].sum(), self.sizes[1][of_y].sum()
        within = self.xx[of_x][:, of_x].sum() / (n * (n - 1))
        within += self.yy[of_y][:, of_y].sum() / (m * (m - 1))
        return float(within - 2 * self.xy[of_x][:, of_y].sum() / (n * m))
