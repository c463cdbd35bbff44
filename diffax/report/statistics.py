"""Honest statistics for a few paired seeds.

An arm of an ablation is run with few seeds, so that the spread must be estimated from the same few
values and the normal quantile 1.96 is too small: with three seeds the right one is 4.30. Everything
here is therefore built on Student's t, on *paired* values (the same seed, data order and noise in
both arms, so that what the seed does to both cancels), and, for positive quantities with a long
tail such as the variance of a loss, on their logarithms. All computations are in float64.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
      mean: the estimate (a mean, a geometric mean or another statistic), in the unit of the values.
      low, high: the ends of the interval, in the same unit.
      n: how many values it rests on.
      confidence: the coverage that the interval aims at, e.g. 0.95.
    """

    mean: float
    low: float
    high: float
    n: int
    confidence: float = 0.95


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two arms, a against b.

    Attributes:
      mean: the mean of a - b; with `log_scale` the geometric mean of a / b.
      low, high: the ends of the confidence interval of `mean`.
      p_value: two-sided p of the paired t test that there is no effect.
      p_sign_flip: the same by `sign_flip`, which does without normality; 2^(1-n) or more. None for
        more pairs than that counts.
      n: the number of pairs.
      sd: the standard deviation of the differences (of the log-ratios with `log_scale`), over
        n - 1.
      confidence: the coverage that the interval aims at.
      log_scale: whether this is a ratio (no effect: 1) and not a difference (no effect: 0).
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int
    sd: float
    confidence: float = 0.95
    log_scale: bool = False
    p_sign_flip: float | None = None

    @property
    def no_effect(self) -> float:
        """The value of `mean` that means "no effect": 0 for differences, 1 for ratios."""
        return 1.0 if self.log_scale else 0.0


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean with Student's t interval, mean ± t_{n-1, (1+c)/2} · s / sqrt(n).

    Exact for independent normal values. Equal values give an interval of width zero.

    Args:
      values: (n,), real, n at least 2.
      confidence: c, the coverage, in (0, 1).

    Raises:
      ValueError: fewer than two values, a value that is not finite, a confidence outside (0, 1).

    Source: Student 1908, "The probable error of a mean".
    """
    values = _vector(values, "values")
    half = _t_quantile(values.size, confidence) * _standard_error(values)
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, values.size, confidence)


def geometric_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The geometric mean exp(mean(log x)) with the t interval of mean(log x), transformed back.

    For positive quantities that vary by factors (variances, Fréchet distances, times). The
    interval is for the geometric mean, which for a log-normal quantity is its median: it is below
    the arithmetic mean, and no statement about that one. The interval is symmetric in ratio and
    never reaches zero.

    Args and errors as `mean_interval`; a value that is not positive raises ValueError too.

    Source: Student 1908 on the logarithms; Bland & Altman 1996, "Transformations, means, and
      confidence intervals", BMJ 312:1079, for reading it back.
    """
    logs = mean_interval(np.log(_positive(values, "values")), confidence)
    return Interval(
        *(float(np.exp(v)) for v in (logs.mean, logs.low, logs.high)), logs.n, confidence
    )


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Difference:
    """The mean of d = a - b with its t interval, and the paired t test of mean(d) = 0.

    t = mean(d) sqrt(n) / s_d with n - 1 degrees of freedom, p = 2 P(T <= -|t|). If all the
    differences are equal, the interval has width zero, and p is 1 when they are zero and 0 when
    they are not. Both are exact where the differences are independent and normal, which a few of
    them can't show: `sign_flip` is beside them.

    Args:
      a, b: (n,), real, n at least 2; a[i] and b[i] come from the same seed.
      confidence: the coverage of the interval, in (0, 1).

    Raises:
      ValueError: unequal lengths, fewer than two pairs, a value that is not finite.

    Source: Student 1908 (the sleep data are paired); the interval and the test agree: p < 1 - c
      exactly where the interval leaves out zero.
    """
    return _paired(_vector(a, "a"), _vector(b, "b"), confidence, log_scale=False)


def paired_ratio(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Difference:
    """The geometric mean of the paired ratios a / b, exp(mean(log a - log b)), with its interval.

    `paired_difference` of the logarithms, transformed back, for positive quantities on a log
    scale. `sd` stays that of log(a / b), p is that of the test on the logs.

    Args and errors as `paired_difference`; a value that is not positive raises ValueError too.

    Source: Bland & Altman 1996, "The use of transformation when comparing two means", BMJ 312:1153.
    """
    return _paired(_positive(a, "a"), _positive(b, "b"), confidence, log_scale=True)


def _paired(a: np.ndarray, b: np.ndarray, confidence: float, log_scale: bool) -> Difference:
    if a.size != b.size:
        raise ValueError(f"a and b must be paired by seed, got {a.size} and {b.size} values")
    return contrast([a, b], [1, -1], confidence, log_scale)


def contrast(
    values: ArrayLike, weights: ArrayLike, confidence: float = 0.95, log_scale: bool = False
) -> Difference:
    """A contrast of several arms, sum_k w_k y_k with sum_k w_k = 0, paired by seed.

    The contrast of each seed, and of these the mean, the t interval with n - 1 degrees of freedom,
    the t test and the sign-flip test that it is zero: `paired_difference` for more arms than two.
    What a seed adds to all arms cancels. Spread and correlation of the arms may differ: the
    contrast's own spread is what counts. With `log_scale` that of logarithms, transformed back: the
    ratio prod_k y_k^w_k.

    Args:
      values: (k, n), arm by seed, real, n at least 2; above 0 with log_scale.
      weights: (k,), which add up to zero and are not all zero.
      confidence: of the interval, in (0, 1).

    Raises:
      ValueError: as `paired_difference`; weights that are no contrast, or of another length.

    Source: Yates 1937, "The Design and Analysis of Factorial Experiments"; Boik 1981, "A priori
      tests in repeated measures designs: effects of nonsphericity", Psychometrika 46:241, for the
      contrast's own error.
    """
    d = contrast_values(values, weights, log_scale)
    interval, error = mean_interval(d, confidence), _standard_error(d)
    if error > 0:
        p_value = float(2 * special.stdtr(d.size - 1, -abs(interval.mean) / error))
    else:
        p_value = 1.0 if interval.mean == 0 else 0.0
    ends = (interval.mean, interval.low, interval.high)
    return Difference(
        *(np.exp(ends).tolist() if log_scale else ends),
        p_value,
        d.size,
        float(error * np.sqrt(d.size)),
        confidence,
        log_scale,
        sign_flip(d) if d.size <= MOST_FLIPPED else None,
    )


def contrast_values(values: ArrayLike, weights: ArrayLike, log_scale: bool = False) -> np.ndarray:
    """The contrast of each seed, (n,), n at least 1, of logarithms with `log_scale`; exactly 0
    where arms of opposite weights have the same values. See `contrast`."""
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    if values.ndim != 2 or weights.shape != values.shape[:1]:
        raise ValueError(
            f"values must be (arms, seeds) and weights (arms,), got {values.shape} and"
            f" {weights.shape}"
        )
    if not weights.any() or abs(math.fsum(weights)) > 1e-9 * np.abs(weights).sum():
        raise ValueError(f"weights must add up to zero and not all be zero, got {weights.tolist()}")
    if not np.isfinite(values).all():
        raise ValueError("values: every value must be finite")
    if log_scale and values.min() <= 0:
        raise ValueError(f"values: a log scale needs positive values, got {values.min():g}")
    terms = weights[:, None] * (np.log(values) if log_scale else values)
    return np.array([math.fsum(column) for column in terms.T])


MOST_FLIPPED = 20  # pairs; a million patterns of signs


def sign_flip(differences: ArrayLike) -> float:
    """The exact two-sided p of the sign-flip (randomisation) test that there is no effect.

    Without an effect each paired difference might as well have come with the other sign. p is the
    fraction of the 2^n patterns of signs whose |mean| is at least the one seen. It assumes symmetry
    about zero alone, and is never below 2^(1-n): 1/16 with five pairs, 1/32 with six, so that
    fewer than six cannot reach 0.05.

    Args:
      differences: (n,), real, n from 2 to 20.

    Raises:
      ValueError: another number of values, or one that is not finite.

    Source: Fisher 1935, "The Design of Experiments", section 21 (Darwin's plants).
    """
    d = _vector(differences, "differences")
    if d.size > MOST_FLIPPED:
        raise ValueError(f"differences: at most {MOST_FLIPPED} can be counted out, got {d.size}")
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    # Patterns that tie but for rounding count.
    return float(np.mean(np.abs(sums) >= np.abs(d.sum()) - 1e-12 * np.abs(d).sum()))


def paired_power(
    n: int, effect: float, deviation: float, confidence: float = 0.95, comparisons: int = 1
) -> float:
    """The probability that a paired t test with n pairs finds a true difference.

    P(|T| > c), T non-central t with n - 1 degrees of freedom and non-centrality
    effect sqrt(n) / deviation, c the two-sided critical value at the level
    (1 - confidence) / comparisons. It is the mean over s, s^2 ~ chi^2_{n-1} / (n - 1), of the
    normal probability given s, by quadrature, to 1e-6.

    Args:
      n: pairs, at least 2.
      effect: the true mean difference (of logarithms, for a ratio).
      deviation: the true standard deviation of the differences, in the same unit, above 0.
      confidence: of the test, in (0, 1).
      comparisons: how many are corrected for: the first step of Holm, which is Bonferroni's.

    Source: Johnson & Welch 1940, "Applications of the non-central t-distribution".
    """
    tail = (1 - _confidence(confidence)) / comparisons / 2
    critical, shift = -special.stdtrit(n - 1, tail), abs(effect) * np.sqrt(n) / deviation
    s = np.sqrt(2 * special.gammaincinv((n - 1) / 2, _NODES) / (n - 1))
    return float(
        _WEIGHTS @ (special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s))
    )


# Gauss-Legendre on (0, 1).
_NODES, _WEIGHTS = ((a + b) / 2 for a, b in zip(np.polynomial.legendre.leggauss(200), (1.0, 0.0)))
MOST_SEEDS = 100_000


def seeds_needed(
    effect: float,
    deviation: float,
    confidence: float = 0.95,
    power: float = 0.8,
    comparisons: int = 1,
) -> int | None:
    """The least number of paired seeds with which a difference of that size would be found.

    The least n with `paired_power` of at least `power`; None if it is above 100,000 or there is no
    difference. Effect and deviation are taken for the true ones: estimated from a few seeds they
    are rough, and so is the answer.

    Args:
      effect, deviation, confidence, comparisons: as `paired_power`; a deviation of 0 needs 2.
      power: the wanted probability to find it, in (0, 1).

    Raises:
      ValueError: a value outside its range.
    """
    if not 0 < power < 1:
        raise ValueError(f"power is {power}; it must lie between 0 and 1, e.g. 0.8")
    if not (deviation >= 0 and np.isfinite(deviation) and np.isfinite(effect)):
        raise ValueError(f"effect and deviation must be finite, got {effect} and {deviation}")
    if comparisons < 1:
        raise ValueError(f"comparisons is {comparisons}; it must be at least 1")
    _confidence(confidence)
    if effect == 0:
        return None
    if deviation == 0:
        return 2

    def enough(n: int) -> bool:
        return paired_power(n, effect, deviation, confidence, comparisons) >= power

    found = bisect.bisect_left(range(2, MOST_SEEDS + 1), True, key=enough)  # power grows with n
    return found + 2 if found + 2 <= MOST_SEEDS else None


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down correction for several comparisons.

    With p sorted ascending, adjusted p_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)): the
    probability of one or more false findings among the m comparisons stays below the level,
    whatever their dependence; never weaker than Bonferroni's.

    Args:
      p_values: (m,), each in [0, 1]; m may be 0.

    Returns:
      (m,) float64, the adjusted values in the order given.

    Raises:
      ValueError: a value outside [0, 1] or NaN.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1:
        raise ValueError(f"p_values must be one-dimensional, got shape {p.shape}")
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p_values must lie in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1, p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def _t_quantile(n: int, confidence: float) -> float:
    return float(special.stdtrit(n - 1, (1 + _confidence(confidence)) / 2))


def _standard_error(values: np.ndarray) -> float:
    # Equal values must give exactly zero: numpy's mean of equal values may be off by a rounding.
    if np.ptp(values) == 0:
        return 0.0
    return float(values.std(ddof=1) / np.sqrt(values.size))


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, e.g. 0.95")
    return confidence


def _vector(values: ArrayLike | Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {values.shape}")
    if values.size < 2:
        raise ValueError(f"{name}: an interval needs at least 2 values, got {values.size}")
    for i in np.flatnonzero(~np.isfinite(values)):
        raise ValueError(f"{name}: every value must be finite, got {values[i]} at index {i}")
    return values


def _positive(values: ArrayLike, name: str) -> np.ndarray:
    values = _vector(values, name)
    if values.min() <= 0:
        raise ValueError(f"{name}: a log scale needs positive values, got {values.min():g}")
    return values
