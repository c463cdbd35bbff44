"""Paired comparisons and their outcomes: of two arms, or of the levels of a design's axes.

A `Finding` has an interval, a p corrected for its family, and an outcome in a word. `collect` sets
the outcomes of several feature extractors beside one another; `effects` takes the contrasts of a
factorial design.
"""

import itertools
import math
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffax.report import statistics
from diffax.report.spec import SCALES, Metric, Spec, effect_text
from diffax.report.statistics import Difference

Combination = tuple[str, ...]  # a level of every axis of a design
Values = Mapping[Combination, Mapping[int, float]]  # of one metric: cell -> seed -> value
DECIDED = ("lower", "higher")
POWERS = (0.8, 0.9)  # for which the number of seeds needed is given


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison by the metric `label`, over the features of `network`."""

    network: str
    label: str
    outcome: str


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
      repeats: whether it adds nothing: it has the values of an earlier finding, or the same values
        on both sides, as when arms share a training.
      by_network: the outcomes of the same comparison by the same measure over each pretrained
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
    by_network: Sequence[Outcome] = ()

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
        return settled(self.by_network)

    @property
    def better(self) -> bool | None:
        """Whether a decided outcome is an improvement; None if undecided or neither is better."""
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

    One that cannot be tested yet (a single pair) counts in the family as one with p = 1. A
    comparison of the same values with themselves does not count.
    """
    tests = {
        m.values: m.difference.p_value if m.difference else 1.0 for m in family if not m.nothing
    }
    corrected = dict(zip(tests, statistics.holm(list(tests.values()))))
    found, seen = [], set()
    for m in family:
        p_holm = float(corrected.get(m.values, 1.0)) if m.difference else None
        judgement = dict(
            p_holm=p_holm,
            family=len(tests),
            outcome=_outcome(metric, m.difference, p_holm, 1 - confidence),
            seeds_needed=_seeds_needed(m.difference, max(len(tests), 1)),
            repeats=m.nothing or m.values in seen,
        )
        given = dict(metric=metric, pairs=m.pairs, effect=m.effect, difference=m.difference)
        found.append(make(**given, **judgement, **m.about))
        seen.add(m.values)
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


# --- agreement of feature extractors --------------------------------------------------------------


def collect(findings: Sequence[Finding]) -> list[list[Outcome]]:
    """For each finding the outcomes of all on the same subject by the same measure.

    Empty for a metric of no pretrained network.
    """
    said: list[list[Outcome]] = []
    heard: dict[Hashable, list[Outcome]] = {}
    for c in findings:
        shared = heard.setdefault((c.metric.measure, c.subject), [])
        if c.metric.network:
            shared.append(Outcome(c.metric.network, c.metric.label, c.outcome))
        said.append(shared if c.metric.network else [])
    return said


def networks(outcomes: Sequence[Outcome]) -> list[str]:
    """The networks that have an outcome, each once."""
    return list(dict.fromkeys(outcome.network for outcome in outcomes))


def settled(outcomes: Sequence[Outcome]) -> bool:
    """Whether there are two networks or more, and all decide alike after correction."""
    found = {outcome.outcome for outcome in outcomes}
    return len(networks(outcomes)) > 1 and len(found) == 1 and found <= {*DECIDED}


# --- factorial designs ----------------------------------------------------------------------------


# Arms are the cells of a design, one for each combination of levels. An effect is a contrast of
# cells: a weighted sum whose weights add up to zero, taken within each seed, so that what the seed
# does to all cells cancels. Its interval is Student's t over the seeds, with an error of its own;
# nothing is assumed of the other cells (see `statistics.contrast`).
#
# Main effect of a level against the baseline's: the mean, over all combinations of the other axes,
# of the difference between the two. Interaction of two axes: the mean, over all combinations of the
# remaining axes, of the difference of those differences. On a log scale it is the same of
# logarithms: a geometric mean of ratios, and a ratio of ratios. If arms are left out, a combination
# enters the mean only if all cells that are compared in it are there, so the mean stays balanced.
#
# Source: Yates 1937, "The Design and Analysis of Factorial Experiments"; Box, Hunter & Hunter 2005,
# "Statistics for Experimenters", chapter 5 (whose interaction is half of this difference of
# differences); Boik 1981, Psychometrika 46:241, for an error of its own for each contrast.


@dataclass(frozen=True, kw_only=True)
class Effect(Finding):
    """A main effect (one axis) or a two-way interaction (two axes) of a metric.

    Attributes:
      axes: keys of the config.
      levels, references: of each of these axes the level, and the baseline's that it is against.
      averaged: over how many combinations of the other axes it is the mean.
      combinations: how many of them the whole design has.
    """

    axes: tuple[str, ...]
    levels: tuple[str, ...]
    references: tuple[str, ...]
    averaged: int
    combinations: int

    @property
    def subject(self) -> Hashable:
        return self.axes, self.levels, self.references

    @property
    def is_main(self) -> bool:
        return len(self.axes) == 1

    @property
    def better(self) -> bool | None:
        return super().better if self.is_main else None


@dataclass(frozen=True)
class Design:
    """The axes of an ablation.

    Attributes:
      axes: key -> its levels in order of display, the baseline's first.
      cells: combination -> arm.
    """

    axes: Mapping[str, tuple[str, ...]]
    cells: Mapping[Combination, str]

    @property
    def missing(self) -> list[Combination]:
        """The combinations that no arm has."""
        return [c for c in itertools.product(*self.axes.values()) if c not in self.cells]


def design_of(spec: Spec) -> Design | None:
    """The design of a spec's arms; None if they differ in fewer than two keys, or two in none."""
    levels = [spec.design.get(arm) for arm in spec.arms]
    if not all(levels):
        return None
    keys = [k for k in levels[0] if all(k in own for own in levels)]
    keys = [k for k in keys if len({own[k] for own in levels}) > 1]
    cells = {tuple(own[k] for k in keys): arm for own, arm in zip(levels, spec.arms)}
    if len(keys) < 2 or len(cells) < len(spec.arms):
        return None
    first = spec.design[spec.baseline]
    axes = {k: tuple(dict.fromkeys([first[k], *(own[k] for own in levels)])) for k in keys}
    return Design(axes, cells)


def effects(design: Design, metric: Metric, values: Values, confidence: float) -> list[Effect]:
    """All main effects against the baseline's levels, then all two-way interactions, of a metric.

    Together they are one family for Holm's correction. An effect that no balanced part of the
    design shows, or no seed, is left out. So is an axis that changes no value at all, such as one
    of sampling for a metric of the training.

    Args:
      values: of the cells that have the metric, seed by seed, positive on a log scale.
    """
    design, values = collapsed(design, values)
    axes = list(design.axes)
    mains = [
        _measured(design, metric, values, confidence, {axis: level})
        for axis in axes
        for level in design.axes[axis][1:]
    ]
    twos = [
        _measured(design, metric, values, confidence, {one: a, two: b})
        for one, two in itertools.combinations(axes, 2)
        for a in design.axes[one][1:]
        for b in design.axes[two][1:]
    ]
    return judged(Effect, metric, [m for m in mains + twos if m is not None], confidence)


def collapsed(design: Design, values: Values) -> tuple[Design, Values]:
    """The design of a metric without the axes along which all its values are the same."""
    for place, axis in enumerate(design.axes):
        rows: dict[Combination, list[Mapping[int, float]]] = {}
        for cell, own in values.items():
            rows.setdefault(cell[:place] + cell[place + 1 :], []).append(own)
        same = all(
            own.get(seed, other[seed]) == other[seed]
            for row in rows.values()
            for own, other in itertools.combinations(row, 2)
            for seed in other
        )
        if same and any(len(row) > 1 for row in rows.values()):
            kept = {k: levels for k, levels in design.axes.items() if k != axis}
            merged = {
                rest: {k: v for own in row for k, v in own.items()} for rest, row in rows.items()
            }
            return collapsed(Design(kept, {}), merged)
    return design, values


def weights(
    design: Design, cells: Container[Combination], changed: Mapping[str, str]
) -> dict[Combination, float]:
    """The weights of the cells whose sum is an effect, by the cells that are there.

    Args:
      changed: axis -> level, of the one or two axes whose effect or interaction it is.

    Returns:
      Of every combination of the other axes that has all of the cells with these levels and the
      baseline's: 1 or -1, over the number of such combinations.
    """
    found: list[tuple[int, Combination]] = []
    others = [(changed[k],) if k in changed else levels for k, levels in design.axes.items()]
    for rest in itertools.product(*others):
        corners = [(1, rest)]
        for place, axis in enumerate(design.axes):
            if axis in changed:
                other = design.axes[axis][0]
                corners += [
                    (-sign, (*cell[:place], other, *cell[place + 1 :])) for sign, cell in corners
                ]
        if all(cell in cells for _, cell in corners):
            found += corners
    combinations = len(found) // 2 ** len(changed)
    return {cell: sign / combinations for sign, cell in found}


def _measured(design, metric, values, confidence, changed) -> Measured | None:
    """The effect of the levels `changed`, axis -> level, against the baseline's."""
    weighted = weights(design, values, changed)
    seeds = _common(values[cell] for cell in weighted)
    if not seeds:
        return None
    table = np.array([[values[cell][seed] for seed in seeds] for cell in weighted])
    log_scale, sizes = metric.scale == "log", list(weighted.values())
    each = statistics.contrast_values(table, sizes, log_scale)
    difference = None
    if len(seeds) > 1:
        difference = statistics.contrast(table, sizes, confidence, log_scale)
    effect = difference.mean if difference else float(np.exp(each[0]) if log_scale else each[0])
    about = {
        "axes": tuple(changed),
        "levels": tuple(changed.values()),
        "references": tuple(design.axes[axis][0] for axis in changed),
        "averaged": len(weighted) // 2 ** len(changed),
        "combinations": math.prod(len(v) for k, v in design.axes.items() if k not in changed),
    }
    return Measured(
        about, (*changed.items(), *each), not each.any(), len(seeds), effect, difference
    )


def _common(measured: Iterable[Mapping[int, float]]) -> list[int]:
    """The seeds that all have."""
    sets = [set(own) for own in measured]
    return sorted(set.intersection(*sets)) if sets else []


def marginal_means(
    design: Design, metric: Metric, values: Values, axes: Sequence[str]
) -> dict[Combination, float]:
    """The mean for each pair of levels of two axes, over seeds and the same combinations of the
    others for all pairs; geometric on a log scale. Empty if no combination has all pairs."""
    design, values = collapsed(design, values)
    if any(axis not in design.axes for axis in axes):
        return {}
    places = [list(design.axes).index(axis) for axis in axes]
    by_pair: dict[Combination, dict[Combination, Mapping[int, float]]] = {}
    for cell, own in values.items():
        pair = tuple(cell[i] for i in places)
        rest = tuple(level for i, level in enumerate(cell) if i not in places)
        by_pair.setdefault(pair, {})[rest] = own
    if not by_pair:
        return {}
    rests = set.intersection(*(set(found) for found in by_pair.values()))
    seeds = _common(found[rest] for found in by_pair.values() for rest in rests)
    if not rests or not seeds:
        return {}
    mean = SCALES[metric.scale].mean
    return {
        pair: mean([found[rest][seed] for rest in sorted(rests) for seed in seeds])
        for pair, found in by_pair.items()
    }
