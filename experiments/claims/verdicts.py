"""The one rule by which a claim is judged, and how its verdict is written.

A claim comes down to quantities of which each is claimed to lie in a region: a ratio of distances
between 0.85 and 0.95, a difference below 0. A quantity is estimated by its mean over seeds, paired,
with a Student t interval. Inside the region: supported. Outside it altogether: contradicted. Else
undecided at this scale. A claim is supported if all its parts are and contradicted if any is; with
m parts the intervals are of 1 - 0.05 / m each, so that they hold together with 95% or more
(Bonferroni). The regions stand in the scripts and were written down before the trainings were made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from diffax.ablation import Difference, Interval
from diffax.report import statistics
from diffax.report.formatting import ratio, signed, significant

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided at this scale"
LEVEL = 0.05  # of error, over all parts of a claim
AS_GOOD = 1.1  # a ratio of distances up to which quality counts as kept


class Part(NamedTuple):
    """A quantity and the region that it is claimed to lie in.

    Attributes:
      name: the quantity, as "distance, cosine over linear".
      estimate: confidence -> its estimate with an interval.
      low, high: the ends of the region; infinite, or 0 for a ratio, where there is none.
      inside, below, above: what is so if the interval lies there.
    """

    name: str
    estimate: Callable[[float], Difference | Interval]
    low: float
    high: float
    inside: str
    below: str
    above: str


class Finding(NamedTuple):
    """What was found for a part."""

    part: Part
    estimate: Difference | Interval
    outcome: str
    sentence: str


class Verdict(NamedTuple):
    """What is to be said of a claim.

    Attributes:
      outcome: SUPPORTED, CONTRADICTED or UNDECIDED.
      sentence: what was found, in words.
      figures: the parts with their intervals.
    """

    outcome: str
    sentence: str
    figures: tuple[Finding, ...]


def ratio_of(
    name: str, a: Sequence[float], b: Sequence[float], low: float = 0.0, high: float = math.inf,
    **says: str,
) -> Part:  # fmt: skip
    """A part about the geometric mean of a / b, paired by seed."""
    return Part(name, lambda level: statistics.paired_ratio(a, b, level), low, high, **_three(says))


def difference_of(
    name: str, a: Sequence[float], b: Sequence[float], low: float = -math.inf,
    high: float = math.inf, **says: str,
) -> Part:  # fmt: skip
    """A part about the mean of a - b, paired by seed."""
    estimate = lambda level: statistics.paired_difference(a, b, level)  # noqa: E731
    return Part(name, estimate, low, high, **_three(says))


def exact(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, **says: str
) -> Part:
    """A part about a number that is computed, not estimated: its interval has no width."""
    return Part(
        name, lambda level: Interval(value, value, value, 1, level), low, high, **_three(says)
    )


def share_of(
    name: str, flags: Sequence[bool], low: float = 0.0, high: float = 1.0, **says: str
) -> Part:
    """A part about the share of seeds of which something is so, with the exact interval of Clopper
    & Pearson 1934: that of a share of none of them is wide too."""
    flags = np.asarray(flags, bool)
    so, num = int(flags.sum()), flags.size

    def estimate(level: float) -> Interval:
        ends = scipy.stats.binomtest(so, num).proportion_ci(level, "exact")
        return Interval(so / num, ends.low, ends.high, num, level)

    return Part(name, estimate, low, high, **_three(says))


def _three(says: Mapping[str, str]) -> dict[str, str]:
    """`below` and `above` may be one sentence, `outside`, where the region has one end only."""
    outside = says.get("outside", "")
    return {
        "inside": says["inside"],
        "below": says.get("below", outside),
        "above": says.get("above", outside),
    }


def either_way(part: Part) -> Part:
    """The part about a ratio, or about its reciprocal if the ratio is found below 1: for claims
    that something differs and that name no direction. The interval stays two-sided."""

    def estimate(level: float) -> Difference | Interval:
        found = part.estimate(level)
        if found.mean >= 1:
            return found
        mean, low, high = 1 / found.mean, 1 / found.high, 1 / found.low
        return dataclasses.replace(found, mean=mean, low=low, high=high)

    return part._replace(estimate=estimate)


def judge(*parts: Part) -> Verdict:
    """The verdict from the parts, by the rule at the top."""
    found = tuple(_finding(part, 1 - LEVEL / len(parts)) for part in parts)
    outcomes = [finding.outcome for finding in found]
    if CONTRADICTED in outcomes:
        outcome = CONTRADICTED
    else:
        outcome = UNDECIDED if UNDECIDED in outcomes else SUPPORTED
    sentence = "; ".join(finding.sentence for finding in found)
    return Verdict(outcome, sentence[:1].upper() + sentence[1:] + ".", found)


def _finding(part: Part, confidence: float) -> Finding:
    estimate = part.estimate(confidence)
    if part.low <= estimate.low and estimate.high <= part.high:
        return Finding(part, estimate, SUPPORTED, part.inside)
    if estimate.high < part.low:
        return Finding(part, estimate, CONTRADICTED, part.below)
    if estimate.low > part.high:
        return Finding(part, estimate, CONTRADICTED, part.above)
    return Finding(part, estimate, UNDECIDED, f"whether {part.inside} can't be told")


# --- in words -----------------------------------------------------------------------------------


def number(estimate: Difference | Interval) -> Callable[[float], str]:
    """How the numbers of an estimate are written: ratios as such, differences with their sign."""
    if getattr(estimate, "log_scale", False):
        return ratio
    if isinstance(estimate, Difference):
        largest = max(abs(estimate.low), abs(estimate.high))
        digits = max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 1
        return lambda x: signed(x, min(digits, 4))
    return lambda x: significant(x, 3)


def region(part: Part) -> str:
    """The claimed region in words: "0.85 to 0.95", "below 1", "at most 1.1", "above 0"."""
    if part.low in (0, -math.inf) and not (part.low == 0 and part.high == math.inf):
        # no effect is itself no part of an improvement
        return f"below {part.high:g}" if part.high in (0, 1) else f"at most {part.high:g}"
    if part.high == math.inf:
        return f"above {part.low:g}"
    return f"{part.low:g} to {part.high:g}"


def column(raw: Mapping[str, Any], arm: str, metric: str) -> np.ndarray:
    """The values of an arm over the seeds, (seeds,)."""
    return np.asarray(raw["arms"][arm][metric], np.float64)
