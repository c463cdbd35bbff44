"""The Fréchet distance that infinitely many samples would have."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from diffax.metrics.frechet import (
    FeatureStatistics,
    HasMoments,
    frechet_distance_to,
    normal_interval,
)

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
    bend: float  # at 1 / n = 0, what a parabola through the same points lies above the line

    def interval(self, standard_error: float, confidence: float = 0.95) -> tuple[float, float]:
        """The (low, high) about `value`, which may be negative, and so may they.

        By the standard error s of the noise in the samples, and the bend as that of the line:
        sqrt(s^2 + bend^2). For Gaussians of 64 and of 256 features, of equal and of falling
        variances, 94 to 100% of intervals of 95% held the exact distance, at the least N and at
        three times that; by s alone 0 to 96%, the least with equal variances and 256 features.
        """
        error = math.hypot(standard_error, self.bend)
        return normal_interval(self.value, error, confidence, lowest=-math.inf)


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
    With many features it exceeds the noise; `Extrapolation.interval` holds both.

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
    parabola = np.polyfit(parts, distances, 2)
    return Extrapolation(
        float(intercept),
        float(per_part * num),
        tuple(int(num / j) for j in parts),
        tuple(map(float, distances)),
        float(parabola[-1] - intercept),
    )
