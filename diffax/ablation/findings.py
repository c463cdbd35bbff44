"""What one paired comparison comes to, whether of two arms or of a design's levels: its interval,
its p among those of its family, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffax.ablation import opinions, statistics
from diffax.ablation.opinions import DECIDED, Opinion
from diffax.ablation.spec import Metric, effect_text
from diffax.ablation.statistics import Difference

POWERS = (0.8, 0.9)  # for which the seeds that are needed are told


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A measure, compared in pairs of seeds.

    Attributes:
      effect: the mean difference, or the geometric mean of the ratios on a log scale.
      difference: the same with interval and p; None with a single pair.
      p_holm: p corrected for the `family` findings of this metric and kind.
      seeds_needed: power -> how many paired seeds would find a difference of this size, at the
        level that the correction leaves; None where no number would (see `statistics`). Empty
        with a single pair.
      outcome: "lower" or "higher" (the interval leaves out no effect, and so does the corrected
        test), "suggested" (the interval does, the corrected test does not), "undecided", "same"
        (both ends of the interval read as no effect at the digits shown), "unknown" (one pair).
      repeats: whether it tells nothing new: it has the values of an earlier finding, or the same
        values on both sides, as where arms share a training.
      opinions: the outcomes of the same comparison by the same measure over each pretrained
        network, this one's included; empty for a metric of none.
    """

    metric: Metric
    pairs: int
    effect: float
    difference: Difference | None
    p_holm: float | None
    family: int
    outcome: str
    seeds_needed: Mapping[str, int | None]
    repeats: bool
    opinions: Sequence[Opinion] = ()

    @property
    def subject(self) -> Hashable:
        """What is compared, whatever the metric."""
        raise NotImplementedError

    @property
    def decided(self) -> bool:
        return self.outcome in DECIDED

    @property
    def settled(self) -> bool:
        """Whether two networks or more decide it, all in the same direction."""
        return opinions.settled(self.opinions)

    @property
    def better(self) -> bool | None:
        """Whether a decided outcome is to be wished for; None if undecided or neither."""
        if not self.decided or self.metric.lower_is_better is None:
            return None
        return (self.outcome == "lower") == self.metric.lower_is_better

    @property
    def size(self) -> float:
        """How large the effect is: without its sign, in the metric's unit, or as |log ratio|."""
        return abs(math.log(self.effect)) if self.metric.scale == "log" else abs(self.effect)


class Measured(NamedTuple):
    """A comparison before it is corrected for the others of its family.

    Attributes:
      about: fields of the finding's own class.
      values: what was compared; those of the same values count once.
      nothing: whether both sides are the same numbers.
      pairs, effect, difference: see `Finding`.
    """

    about: Mapping[str, Any]
    values: tuple[float, ...]
    nothing: bool
    pairs: int
    effect: float
    difference: Difference | None


def judged(
    make: Callable[..., Finding], metric: Metric, family: Sequence[Measured], confidence: float
) -> list[Any]:
    """The findings of a family: p corrected by `statistics.holm`, outcome and seeds needed.

    One that cannot be tested yet (a single pair) counts in the family, as one that shows nothing;
    a comparison of the same values with themselves does not.
    """
    tests = {
        m.values: m.difference.p_value if m.difference else 1.0 for m in family if not m.nothing
    }
    corrected = dict(zip(tests, statistics.holm(list(tests.values()))))
    found, told = [], set()
    for m in family:
        p_holm = float(corrected.get(m.values, 1.0)) if m.difference else None
        found.append(
            make(
                metric=metric,
                pairs=m.pairs,
                effect=m.effect,
                difference=m.difference,
                p_holm=p_holm,
                family=len(tests),
                outcome=_outcome(metric, m.difference, p_holm, 1 - confidence),
                seeds_needed=_seeds_needed(m.difference, max(len(tests), 1)),
                repeats=m.nothing or m.values in told,
                **m.about,
            )
        )
        told.add(m.values)
    return found


def _seeds_needed(difference: Difference | None, family: int) -> dict[str, int | None]:
    if difference is None:
        return {}
    d = difference
    effect = math.log(d.mean) if d.log_scale else d.mean
    return {
        f"{power:g}": statistics.seeds_needed(effect, d.sd, d.confidence, power, family)
        for power in POWERS
    }


def _outcome(metric: Metric, difference: Difference | None, p_holm, alpha: float) -> str:
    if difference is None:
        return "unknown"
    ends = {effect_text(metric)(end) for end in (difference.low, difference.high)}
    if ends == {effect_text(metric)(difference.no_effect)}:
        return "same"
    if difference.low <= difference.no_effect <= difference.high:
        return "undecided"
    if p_holm >= alpha:
        return "suggested"
    return "lower" if difference.high < difference.no_effect else "higher"
