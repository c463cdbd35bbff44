"""From the results of an ablation to intervals, paired comparisons and sentences.

The input is plain data (see `spec.Spec` and `analyse`), so that a report can be made from any
experiment; the output, `Analysis`, holds every number that the report shows, computed once.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffax.report import findings
from diffax.report.findings import Design, Effect, Finding, Measured, design_of, judged
from diffax.report.spec import SCALES, Metric, Spec
from diffax.report.statistics import Interval


@dataclass(frozen=True)
class Cell:
    """A metric of one arm: its value for every seed, their mean and (from two seeds) its interval.

    The mean is the geometric one for a metric on a log scale. `on_scale`: False if a value there is
    not positive; then the mean is the arithmetic one, has no interval and is not compared.
    """

    values: Mapping[int, float]
    mean: float
    interval: Interval | None
    on_scale: bool = True


@dataclass(frozen=True, kw_only=True)
class Comparison(Finding):
    """A metric of `arm` against `reference`, paired by seed.

    `names`: of the two in the report, as `Analysis.shown` has them.
    """

    arm: str
    reference: str
    names: tuple[str, str]

    @property
    def subject(self) -> Hashable:
        return self.arm, self.reference


@dataclass(frozen=True)
class Analysis:
    """Every number of a report.

    Attributes:
      arms, seeds: in order of display.
      results: as given.
      cells: (arm, metric key) -> Cell; an arm that does not have a metric lacks the entry.
      comparisons: of arms, metric by metric.
      design: the axes, where the arms are the cells of a design of two axes or more; else None.
      effects: of these axes and their interactions, metric by metric; see `findings`.
      shown: metric key -> arm -> its name, of the arms that are shown for the metric. Of arms that
        share a training, and so the metric, one is shown, named by what they have in common.
      missing: what the report lacks, in words; empty when nothing does.
    """

    spec: Spec
    arms: Sequence[str]
    seeds: Sequence[int]
    results: Sequence[Mapping[str, Any]]
    cells: Mapping[tuple[str, str], Cell]
    comparisons: Sequence[Comparison]
    design: Design | None
    effects: Sequence[Effect]
    shown: Mapping[str, Mapping[str, str]]
    missing: Sequence[str]

    def of_metric(self, key: str) -> list[Comparison]:
        return [c for c in self.comparisons if c.metric.key == key]

    def effects_of(self, key: str) -> list[Effect]:
        return [effect for effect in self.effects if effect.metric.key == key]

    def row(self, comparison: Comparison) -> str:
        """The arm in whose row a comparison stands: with a focus that is the other one."""
        return comparison.arm if self.spec.focus is None else comparison.reference

    def measured(self, metric: Metric) -> bool:
        return any((arm, metric.key) in self.cells for arm in self.arms)


def analyse(spec: Spec, results: Sequence[Mapping[str, Any]], partial: bool = False) -> Analysis:
    """Intervals, paired comparisons with Holm's correction, and outcomes.

    Holm's correction counts the comparisons of one metric as a family: all arms of the report. Arms
    that share a training have the same values of what does not depend on sampling: such
    comparisons count once, and that of values with themselves not at all.

    Args:
      spec: what is asked.
      results: one mapping per run, as `grid.run_grid` returns them, with
        "arm": str; "seed": int; "metrics": {key: float}; and as far as there are any
        "curves": {name: {column: [...]}}, see `figures`; "samples", see `figures.sample_pictures`;
        "seconds": float; "directory": where a relative path in "samples" starts.
      partial: whether runs and values may be missing. Then means are taken over what is there and
        comparisons over the seeds that both arms have, and `missing` names what is not. An arm
        none of whose runs has a metric's key does without that metric: nothing is missing.

    Values that are not positive on a log scale are named in `missing` in either case: that arm is
    compared to none by that metric.

    Raises:
      ValueError: an unknown arm, metric or scale; a run given twice; a run or a value that is
        missing or not finite (unless `partial`).
    """
    runs = _index(spec, results)
    arms = list(spec.arms) or list(dict.fromkeys(arm for arm, _ in runs))
    seeds = sorted({*spec.seeds, *(seed for _, seed in runs)})
    spec = replace(spec, arms=arms, seeds=seeds)
    check(spec)
    missing = [
        f"arm {arm!r}, seed {seed}" for arm in arms for seed in seeds if (arm, seed) not in runs
    ]
    cells, off_scale = {}, []
    for metric in spec.metrics:
        for arm in arms:
            values = _values(metric, arm, runs)
            named = f"metric {metric.key!r} of arm {arm!r}"
            missing += [f"{named}, seed {seed}" for seed, v in values.items() if v is None]
            values = {seed: v for seed, v in values.items() if v is not None}
            if not values:
                continue
            cell = cells[arm, metric.key] = _cell(spec, metric, values)
            if not cell.on_scale:
                low = min(values, key=values.get)
                off_scale.append(f"{named} on its log scale, being {values[low]:g} with seed {low}")
        if not any((arm, metric.key) in cells for arm in arms) and not partial:
            raise ValueError(f"metric {metric.key!r} has a finite value in no run")
    if missing and not partial:
        raise ValueError(
            f"missing: {shortened(missing)}. To report on what is there, ask for a partial report."
        )
    missing += off_scale
    groups = _trained_alike(arms, runs)
    shown = {m.key: _shown(spec, m, groups, cells) for m in spec.metrics}
    comparisons = [
        c for m in spec.metrics for c in _compare(spec, m, arms, cells, groups, shown[m.key])
    ]
    design = design_of(spec)
    found = [e for m in spec.metrics for e in _effects(spec, design, m, cells)] if design else []
    if len({e.axes for e in found if e.is_main}) < 2:
        design, found = None, []
    agreed = (_with_agreement(comparisons), design, _with_agreement(found))
    return Analysis(spec, arms, seeds, list(results), cells, *agreed, shown, missing)


def _with_agreement(found: Sequence[Finding]) -> list[Any]:
    return [replace(f, by_network=own) for f, own in zip(found, findings.collect(found))]


def shortened(items: Sequence[str], most: int = 8) -> str:
    """The items in one line, the first few of many."""
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def _index(spec, results) -> dict[tuple[str, int], Mapping[str, Any]]:
    if not results:
        raise ValueError("results is empty; a report needs at least one run")
    runs = {}
    for result in results:
        absent = [name for name in ("arm", "seed", "metrics") if name not in result]
        if absent:
            raise ValueError(f"a result has no {absent[0]!r}; it has {sorted(result)}")
        key = result["arm"], result["seed"]
        if key in runs:
            raise ValueError(f"results hold arm {key[0]!r}, seed {key[1]} twice")
        if spec.arms and key[0] not in spec.arms:
            raise ValueError(f"results hold arm {key[0]!r}; the arms are {list(spec.arms)}")
        runs[key] = result
    return runs


def check(spec: Spec) -> None:
    """Raises ValueError, saying what is wrong, for a spec whose arms are given and of which no
    report can be made."""
    arms = list(spec.arms)
    for name, arm in (("baseline", spec.baseline), ("focus", spec.focus)):
        if arm is not None and arm not in arms:
            raise ValueError(f"{name} is {arm!r}; the arms are {arms}")
    if spec.focus == spec.baseline:
        raise ValueError(f"focus and baseline are both {spec.focus!r}; they must differ")
    labels = [spec.label(arm) for arm in arms]
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels must tell the arms apart, got {labels}")
    keys = [metric.key for metric in spec.metrics]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"metrics must be one or more with distinct keys, got {keys}")
    for metric in spec.metrics:
        if metric.scale not in SCALES:
            raise ValueError(
                f"metric {metric.key!r} has scale {metric.scale!r}; allowed are {list(SCALES)}"
            )


def _values(metric, arm, runs) -> dict[int, float | None]:
    """seed -> value, None if it is missing or not finite; empty if no run of the arm has any."""
    measured = {seed: r["metrics"] for (a, seed), r in runs.items() if a == arm}
    if not any(metric.key in found for found in measured.values()):
        return {}
    read = {seed: found.get(metric.key) for seed, found in measured.items()}
    values = {s: None if v is None or not math.isfinite(v) else float(v) for s, v in read.items()}
    return dict(sorted(values.items()))


def _cell(spec, metric, values) -> Cell:
    array = np.array(list(values.values()))
    if metric.scale == "log" and array.min() <= 0:
        return Cell(values, float(array.mean()), None, on_scale=False)
    if array.size == 1:
        return Cell(values, float(array[0]), None)
    interval = SCALES[metric.scale].interval(array, spec.confidence)
    return Cell(values, interval.mean, interval)


def _pairs(spec, arms) -> list[tuple[str, str]]:
    if spec.focus is None:
        return [(arm, spec.baseline) for arm in arms if arm != spec.baseline]
    others = [arm for arm in arms if arm not in (spec.focus, spec.baseline)]
    return [(spec.focus, other) for other in (spec.baseline, *others)]


def _trained_alike(arms, runs) -> dict[str, list[str]]:
    """arm -> the arms that share a training with it, itself included."""
    trained: dict[str, set[str]] = {arm: set() for arm in arms}
    for (arm, _), result in runs.items():
        if result.get("training"):
            trained[arm].add(result["training"]["directory"])
    return {
        arm: [other for other in arms if other == arm or own & trained[other]]
        for arm, own in trained.items()
    }


def _shown(spec, metric, groups, cells) -> dict[str, str]:
    own = {arm: cells[arm, metric.key] for arm in groups if (arm, metric.key) in cells}
    alike = all(
        own[arm].values.items() <= own[other].values.items()
        or own[other].values.items() <= own[arm].values.items()
        for arm in own
        for other in groups[arm]
        if other in own
    )
    names = {}
    for arm in own:
        group = [other for other in groups[arm] if other in own] if alike else [arm]
        first = [a for a in (spec.focus, spec.baseline, *group) if a in group][0]
        if arm == first:
            names[arm] = spec.label(arm) if len(group) == 1 else spec.common_label(group)
    distinct = len(set(names.values())) == len(names)
    return names if distinct else {arm: spec.label(arm) for arm in names}


def _effects(spec, design, metric, cells) -> list[Effect]:
    own = {c: cells.get((arm, metric.key)) for c, arm in design.cells.items()}
    values = {c: cell.values for c, cell in own.items() if cell and cell.on_scale}
    return findings.effects(design, metric, values, spec.confidence)


def _compare(spec, metric, arms, cells, groups, shown) -> list[Comparison]:
    scale, family = SCALES[metric.scale], []
    for pair in _pairs(spec, arms):
        both = [cells.get((arm, metric.key)) for arm in pair]
        a, b = (cell.values if cell and cell.on_scale else {} for cell in both)
        shared = [seed for seed in a if seed in b]
        if not shared:
            continue
        x, y = ([values[seed] for seed in shared] for values in (a, b))
        difference = scale.compare(x, y, spec.confidence) if len(shared) > 1 else None
        effect = difference.mean if difference else scale.effect(x[0], y[0])
        names = [next(shown[o] for o in (arm, *groups[arm]) if o in shown) for arm in pair]
        about = {"arm": pair[0], "reference": pair[1], "names": tuple(names)}
        family.append(Measured(about, (*x, *y), x == y, len(shared), effect, difference))
    return judged(Comparison, metric, family, spec.confidence)
