"""Distances between two sets of features, or of points, in float64 on the host.

The Fréchet distance, KID, precision and recall, density and coverage, the sliced Wasserstein
distance; and the Inception score, which looks at samples alone.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from scipy import stats
from scipy.special import logsumexp

from diffax.files import read_npz

# --- the Fréchet distance -------------------------------------------------------------------------


class Moments(NamedTuple):
    """A mean, (F,), and a covariance, (F, F), of an unknown number of features."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Sums from which mean and covariance of features follow; additive over batches.

    To keep the covariance's digits, sums are taken about `shift`, a point among the features.
    """

    n: int
    shift: np.ndarray  # (F,)
    total: np.ndarray  # (F,): sum of x - shift
    products: np.ndarray  # (F, F): sum of (x - shift)(x - shift)^T

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Of features (N, F); ValueError for another shape or none."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features must have shape (N, F) with N > 0, got {features.shape}")
        return cls(0, features[0], np.zeros_like(features[0]), 0.0).update(features)

    def update(self, features: np.ndarray) -> Self:
        """With further features (N, F)."""
        centred = np.asarray(features, np.float64) - self.shift
        return dataclasses.replace(
            self,
            n=self.n + len(centred),
            total=self.total + centred.sum(axis=0),
            products=self.products + centred.T @ centred,
        )

    @property
    def mean(self) -> np.ndarray:
        """(F,)."""
        return self.shift + self.total / self.n

    @property
    def covariance(self) -> np.ndarray:
        """(F, F), unbiased; ValueError for fewer than two examples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 examples, got {self.n}")
        offset = self.total / self.n
        return (self.products - self.n * np.outer(offset, offset)) / (self.n - 1)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """From its fields by name."""
        return cls(int(arrays["n"]), arrays["shift"], arrays["total"], arrays["products"])


HasMoments = FeatureStatistics | Moments


def read_moments(path: str | os.PathLike) -> Moments:
    """Of an .npz with arrays `mu`, (F,), and `sigma`, (F, F): the form in which the statistics of
    public data sets are published for FID.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file, other arrays, or numbers that are not finite; names it.
    """

    def pick(names: Sequence[str]) -> tuple[str, str]:
        if not {"mu", "sigma"} <= set(names):
            held = ", ".join(names) or "no array"
            raise ValueError(f"{path} holds {held}; wanted are arrays mu (F,) and sigma (F, F)")
        return "mu", "sigma"

    arrays = read_npz(path, pick)
    if any(array.dtype.kind not in "fiu" for array in arrays.values()):
        raise ValueError(f"{path}: mu and sigma must be numbers")
    found = Moments(*(arrays[key].astype(np.float64) for key in ("mu", "sigma")))
    if found.mean.ndim != 1 or found.covariance.shape != 2 * found.mean.shape:
        raise ValueError(
            f"{path}: mu has shape {found.mean.shape} and sigma {found.covariance.shape}; wanted"
            " are (F,) and (F, F)"
        )
    if not all(np.isfinite(a).all() for a in found):
        raise ValueError(f"{path}: mu or sigma has numbers that are not finite")
    return found


def frechet_distance(a: HasMoments, b: HasMoments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_b^1/2 C_a C_b^1/2)^1/2), as FID is reported.

    (The square of the distance of Dowson & Landau 1982.) By eigenvalues of symmetric matrices, so a
    singular covariance is no exception. Sampling noise makes it larger, by an amount of order
    F / n: compare numbers of equal sample counts only, or see `frechet_infinity`.

    Raises:
      ValueError: different feature widths, or fewer than two examples on a side.
    """
    return frechet_distance_to(b)(a)


def frechet_distance_to(reference: HasMoments) -> Callable[[HasMoments], float]:
    """a -> `frechet_distance(a, reference)`, the reference's root taken once."""
    mean, covariance = reference.mean, reference.covariance
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    total = np.trace(covariance)

    def distance(a: HasMoments) -> float:
        if a.mean.shape != mean.shape:
            raise ValueError(
                f"features are {a.mean.shape} wide on one side and {mean.shape} on the other"
            )
        ours, gap = a.covariance, a.mean - mean
        cross = np.linalg.eigvalsh(root @ ours @ root)
        spread = np.trace(ours) + total - 2 * np.sqrt(np.maximum(cross, 0.0)).sum()
        return float(gap @ gap + max(spread, 0.0))

    return distance


def frechet_standard_error(features: np.ndarray, reference: HasMoments) -> float:
    """The standard error of the distance of `features` (N, F), by its influence function.

    To first order an example x moves the distance D by psi(x) / N, with d = x - m and T the map
    that takes N(m, C) to the reference's covariance, T = C^-1/2 (C^1/2 C_r C^1/2)^1/2 C^-1/2:

        psi(x) = 2 (m - m_r) . d + d^T (1 - T) d - tr((1 - T) C)

    The error is the deviation of psi over sqrt(N): the infinitesimal jackknife (Efron 1982), which
    is what the bootstrap's tends to, for two eigendecompositions. With few examples per feature
    it is too large, by up to two fifths where measured, and the bootstrap's is larger still. The
    reference counts as known.

    Raises:
      ValueError: other shapes, different widths, or fewer than two examples.
    """
    own = FeatureStatistics.of(features)
    if own.mean.shape != reference.mean.shape:
        raise ValueError(
            f"features are {own.mean.shape} wide on one side and {reference.mean.shape} on the"
            " other"
        )
    values, vectors = np.linalg.eigh(own.covariance)
    # d lies in the span of C: what is zero but for rounding is left out.
    kept = values > max(values[-1], 0.0) * len(values) * 10 * np.finfo(float).eps
    if not kept.any():
        return 0.0
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    outer = vectors * roots
    cross, axes = np.linalg.eigh(outer.T @ reference.covariance @ outer)
    d = np.asarray(features, np.float64) - own.mean
    whitened = d @ (vectors / roots) @ axes
    psi = 2 * d @ (own.mean - reference.mean) + np.sum(d**2, axis=1)
    psi -= whitened**2 @ np.sqrt(np.maximum(cross, 0.0))
    return float(psi.std(ddof=1) / np.sqrt(len(d)))


def normal_interval(
    value: float, standard_error: float, confidence: float = 0.95, lowest: float = 0.0
) -> tuple[float, float]:
    """The (low, high) about an estimate by its standard error.

    `lowest`: cuts off what no distance can be; never the estimate itself, which both ends enclose.
    """
    margin = stats.norm.ppf(0.5 + confidence / 2) * standard_error
    return float(max(value - margin, min(value, lowest))), float(value + margin)


# --- extrapolated to infinitely many samples ------------------------------------------------------


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


# --- the kernel distance --------------------------------------------------------------------------


class KernelDistance(NamedTuple):
    """An unbiased estimate, which may be negative, and its standard error."""

    value: float
    standard_error: float


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / F + 1)^3 for all pairs of rows, (N, F) and (M, F) -> (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


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
    x, y = _checked(features, reference)
    if blocks < 2 or min(len(x), len(y)) < 2 * blocks:
        raise ValueError(
            f"blocks is {blocks}; it must be at least 2, and half of the {len(x)} and {len(y)}"
            " examples at most"
        )
    parts = np.array_split(x, blocks), np.array_split(y, blocks)
    sums = _Sums(
        xx=_within_parts(parts[0], kernel),
        yy=_within_parts(parts[1], kernel),
        xy=_between_parts(*parts, kernel),
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


def _between_parts(
    parts: list[np.ndarray], others: list[np.ndarray], kernel: Callable
) -> np.ndarray:
    """Sums of the kernel over the pairs of each part and each other, (parts, others)."""
    return np.array([[kernel(a, b).sum() for b in others] for a in parts])


def _within_parts(parts: list[np.ndarray], kernel: Callable) -> np.ndarray:
    """`_between` parts of one set, without the pairs of an example and itself."""
    return _between_parts(parts, parts, kernel) - np.diag([np.trace(kernel(a, a)) for a in parts])


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


# --- precision, recall, density, coverage ---------------------------------------------------------


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
    x, y = _checked(features, reference)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"k is {k}; it must be at least 1 and below the numbers of examples, {len(x)} and"
            f" {len(y)}"
        )
    centre = y.mean(axis=0)  # about which rounding is least
    x, y = x - centre, y - centre
    of_x, of_y = _radii(x, k), _radii(y, k)
    near_data, balls = [], []  # by sample
    held, covered = np.zeros(len(y), bool), np.zeros(len(y), bool)  # by reference point
    for rows in _parts(len(x), len(y)):  # some of the samples to all of y
        squares = _squares(x[rows], y, -1)
        inside = squares <= of_y
        near_data.append(inside.any(axis=1))
        balls.append(inside.sum(axis=1))
        covered |= inside.any(axis=0)
        held |= (squares <= of_x[rows, None]).any(axis=0)
    return PRDC(
        precision=float(np.concatenate(near_data).mean()),
        recall=float(held.mean()),
        density=float(np.concatenate(balls).mean() / k),
        coverage=float(covered.mean()),
    )


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each point to its k-th nearest other, (N,)."""
    radii = []
    for rows in _parts(len(x), len(x)):
        squares = _squares(x[rows], x, 1)
        squares[np.arange(len(squares)), np.arange(len(x))[rows]] = np.inf
        radii.append(np.partition(squares, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _squares(x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """All squared distances, |x|^2 - 2 x . y + |y|^2, (N, M), with the most that rounding may have
    taken added (side 1) or taken off (side -1). A point on a ball's edge, such as a copy of the
    neighbour that the ball reaches to, is thereby in the ball."""
    norms = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)
    rounding = 4 * (x.shape[1] + 4) * np.finfo(x.dtype).eps
    return (1 + side * rounding) * norms - 2 * x @ y.T


def _parts(length: int, width: int) -> Iterator[slice]:
    """Parts of so many rows of `width` numbers, each of which fits into a block."""
    rows = max(1, _BLOCK // width)
    return (slice(i, i + rows) for i in range(0, length, rows))


# --- the Inception score --------------------------------------------------------------------------


class InceptionScore(NamedTuple):
    """Over the splits; from 1 to the number of classes."""

    mean: float
    standard_deviation: float


def inception_score(logits: np.ndarray, splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y | x) || p(y))), p(y) = E_x p(y | x), in each of the splits (Salimans 2016).

    It never sees real data, and it depends on the size of a split: published numbers are of 50,000
    samples in 10 splits, their mean and standard deviation.

    Args:
      logits: (N, K), in random order.
      splits: equal parts in that order.

    Raises:
      ValueError: another shape, or splits not from 1 to N.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(
            f"splits is {splits} and logits have shape {logits.shape}; wanted are (N, K), and 1 to"
            " N splits"
        )
    scores = [_score(np.asarray(part, np.float64)) for part in np.array_split(logits, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: np.ndarray) -> float:
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1))))


# --- the sliced Wasserstein distance --------------------------------------------------------------


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


# --- what is shared -------------------------------------------------------------------------


def _checked(features: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two in float64; ValueError unless they have shapes (N, F) and (M, F)."""
    x, y = (np.asarray(a, np.float64) for a in (features, reference))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features and reference have shapes {x.shape} and {y.shape}; they must be (N, F) and"
            " (M, F)"
        )
    return x, y
