"""What a design of several axes is made for: the effect of each axis, and how two of them interact.

Arms are the cells of a design, one for each combination of levels. An effect is a contrast of
cells, a weighted sum whose weights add up to zero, taken within each seed, so that what the seed
does to all cells cancels; its interval is Student's t over the seeds, with an error of its own and
nothing assumed of the other cells (see `statistics.contrast`).

Main effect of a level against the baseline's level: the mean, over all combinations of the other
axes, of the difference between the two. Interaction of two axes: the mean, over all combinations of
the remaining axes, of the difference of those differences. On a log scale the same of logarithms:
a geometric mean of ratios, and a ratio of ratios. Where arms are left out, only combinations
of which all the cells that are compared are there enter the mean, so that it stays balanced.

Source: Yates 1937, "The Design and Analysis of Factorial Experiments"; Box, Hunter & Hunter 2005,
"Statistics for Experimenters", chapter 5 (whose interaction is half of this difference of
differences); Boik 1981, Psychometrika 46:241, for an error of its own for each contrast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffax.ablation import statistics
from diffax.ablation.findings import Finding, Measured, judged
from diffax.ablation.spec import SCALES, Metric, Spec

Combination = tuple[str, ...]  # a level of every axis
Values = Mapping[Combination, Mapping[int, float]]  # of one metric: cell -> seed -> value


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

    Together they are one family for Holm's correction. What no balanced part of the design shows,
    or no seed, is left out, and so is an axis that changes no value at all, as one of sampling does
    where arms share their trainings: it is no axis of that metric.

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
    others for all pairs; geometric on a log scale. Empty where no combination has all pairs."""
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
