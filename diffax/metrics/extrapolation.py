"""The Fréchet distance that infinitely many samples would have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffax.metrics.frechet import FeatureStatistics, HasMoments, frechet_distance_to

# A part has at least so many examples per feature, and there are so many sizes. With fewer the
# distance is no longer straight in 1 / n, and the line noisier than its standard error says.
EXAMPLES_PER_FEATURE = 2
FEWEST_PARTS, MOST_PARTS = 4, 5


class Extrapolation(NamedTuple):
    """The straight line through distances by 1 / n."""

    value: float  # at 1 / n = 0; may be negative
    slope: float  # by 1 / n
    sizes: tuple[int, ...]  # n, the full size first
    distances: tuple[float, ...]  # at those sizes, means over the parts of that size


def fewest_for_infinity(width: int) -> int:
    """How many examples `frechet_infinity` asks for with features of that width."""
    return FEWEST_PARTS * EXAMPLES_PER_FEATURE * width


def frechet_infinity(features: np.ndarray, reference: HasMoments) -> Extrapolation:
    """The intercept of a line fitted to the Fréchet distance by 1 / n (Chong & Forsyth 2020).

    The distance of n samples is too large by an amount that is linear in 1 / n to first order. The
    paper draws random subsets of several sizes; here the size n = N / j is that of j equal parts,
    j = 1, 2, ..., over which the distances are averaged. So each size uses all samples, the
    sizes are evenly spaced in 1 / n, and noise that is linear in the samples is the same at all of
    them: to first order the intercept has the standard error of the distance itself,
    `frechet_standard_error`. What the line leaves of the excess is not in that: 6% of it, too small
    by so much, was measured with 2048 Gaussian features at the least N, less with more samples.

    Args:
      features: (N, F), in random order.

    Raises:
      ValueError: other shapes, different widths, or N below `fewest_for_infinity(F)`.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < fewest_for_infinity(features.shape[-1]):
        raise ValueError(
            f"features have shape {features.shape}; the extrapolation needs (N, F) with N at least"
            f" {fewest_for_infinity(1)} F"
        )
    num, width = features.shape
    most = min(MOST_PARTS, num // (EXAMPLES_PER_FEATURE * width))
    distance = frechet_distance_to(reference)
    parts = np.arange(1, most + 1)
    distances = [
        np.mean([distance(FeatureStatistics.of(part)) for part in np.array_split(features, j)])
        for j in parts
    ]
    per_part, intercept = np.polyfit(parts, distances, 1)
    return Extrapolation(
        float(intercept),
        float(per_part * num),
        tuple(int(num / j) for j in parts),
        tuple(map(float, distances)),
    )
