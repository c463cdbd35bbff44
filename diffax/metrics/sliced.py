"""The sliced Wasserstein distance between two sets of points."""

from __future__ import annotations

import numpy as np


def sliced_wasserstein(
    x: np.ndarray, y: np.ndarray, num_directions: int = 256, seed: int = 0
) -> float:
    """The root of the mean over random directions u of W2(u . x, u . y)^2 (Bonneel 2015).

    W2 in one dimension is the root mean square distance of the two quantile functions, which are
    taken as steps. For N(m, C) and N(m', C): |m - m'| / sqrt(F) on average.

    Args:
      x, y: (N, ...) and (M, ...), flattened to (N, F) and (M, F).
      num_directions: drawn uniformly from the sphere, the same for the same `seed` and F.

    Raises:
      ValueError: points of different sizes, or none.
    """
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    if x.shape[1:] != y.shape[1:] or min(len(x), len(y)) == 0:
        raise ValueError(
            f"x and y have shapes {x.shape} and {y.shape}; they must be points of one shape, at"
            " least one of each"
        )
    x, y = (a.reshape(len(a), -1) for a in (x, y))
    directions = np.random.default_rng(seed).standard_normal((num_directions, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    projected = [np.sort(a @ directions.T, axis=0) for a in (x, y)]
    # Both quantile functions are constant between these ranks.
    ranks = np.union1d(*(np.arange(1, len(a) + 1) / len(a) for a in projected))
    widths = np.diff(ranks, prepend=0.0)
    middles = ranks - widths / 2
    quantiles = [a[np.minimum((middles * len(a)).astype(int), len(a) - 1)] for a in projected]
    squares = widths @ (quantiles[0] - quantiles[1]) ** 2
    return float(np.sqrt(squares.mean()))
