"""Precision, recall, density and coverage: what part of one set of features lies near another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from diffax.metrics.kernel import both


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
    row = 0
    for distances in pairwise_distances_chunked(x, y):  # of some of the samples to all of y
        inside = distances <= of_y
        near_data.append(inside.any(axis=1))
        balls.append(inside.sum(axis=1))
        covered |= inside.any(axis=0)
        held |= (distances <= of_x[row : row + len(distances), None]).any(axis=0)
        row += len(distances)
    return PRDC(
        precision=float(np.concatenate(near_data).mean()),
        recall=float(held.mean()),
        density=float(np.concatenate(balls).mean() / k),
        coverage=float(covered.mean()),
    )


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """The distance of each point to its k-th nearest other, (N,)."""
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    return distances[:, -1]
