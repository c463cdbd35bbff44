"""The section of a report on a design of several axes: what each axis does, and which depend on
one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from diffax.ablation import differences, figures
from diffax.ablation.analysis import Analysis, shortened
from diffax.ablation.blocks import Cell, Panel, Panels, Row, Section, Table
from diffax.ablation.spec import Metric
from diffax.ablation.texts import one_line
from diffax.ablation.verdict import averaged, effect_name, told

MOST_PICTURES = 12  # of interactions; the decided ones first


def section(analysis: Analysis) -> Section:
    """Forest plots of the effects, pictures of the interactions and the table of them all."""
    if analysis.design is None:
        return Section("Effects", "", [])
    main = [m for m in analysis.spec.metrics if m.main and told(analysis, m)]
    forests = [
        Panel(
            f"effects-{i}",
            figures.effects(analysis, m, told(analysis, m)),
            m.label,
            differences.captioned(m, {"linear": "", "log": "Ratios, on a log axis."}[m.scale]),
        )
        for i, m in enumerate(main)
    ]
    rows = []
    for metric in analysis.spec.metrics:
        found = told(analysis, metric)
        if found:
            heading = differences.heading(analysis, metric, against=False)
            rows.append(Row([heading], "group"))
        for e in found:
            partly = averaged(e) if e.averaged < e.combinations else ""
            rows.append(Row([Cell(effect_name(e), partly), *differences.numbers(e)]))
    pictures = _pictures(analysis, main)
    blocks = [Panels(forests), Table("effects", differences.head(analysis), rows)] if rows else []
    blocks += [Panels(pictures)] if pictures else []
    return Section("Effects of each axis", _note(analysis), blocks)


def _pictures(analysis: Analysis, metrics: Sequence[Metric]) -> list[Panel]:
    asked = []
    for metric in metrics:
        found = told(analysis, metric)
        own = [axis for axis in analysis.design.axes if any(axis in e.axes for e in found)]
        for axes in itertools.combinations(own, 2):
            decided = any(e.decided and e.axes == axes for e in found)
            asked.append((not decided, metric, axes))
    asked.sort(key=lambda row: row[0])
    panels = []
    for i, (_, metric, axes) in enumerate(asked[:MOST_PICTURES]):
        figure = figures.interaction(analysis, metric, axes)
        if figure is not None:
            title = f"{metric.label}: {axes[0]} × {axes[1]}"
            caption = "Means over the seeds and the other axes. Parallel lines: no interaction."
            panels.append(Panel(f"interaction-{i}", figure, title, caption))
    return panels


def _note(analysis: Analysis) -> str:
    design, spec = analysis.design, analysis.spec
    words = [
        "What one axis does, averaged over all combinations of the others, within each seed: level"
        " against the level of the baseline. An interaction (×) is how much the effect of one axis"
        " changes with the other: a difference of differences, or a ratio of ratios; where one is"
        " decided, the main effects of its axes are averages of unlike effects. Intervals are"
        f" Student’s t over the seeds ({spec.percent}); p is corrected by Holm’s procedure for all"
        " main effects and interactions of a measure together."
    ]
    missing = [
        one_line(", ".join(f"{axis}={level}" for axis, level in zip(design.axes, combination)))
        for combination in design.missing
    ]
    if missing:
        words.append(
            f"The grid lacks {len(missing)} of {len(missing) + len(design.cells)} combinations:"
            f" {shortened(missing, 4)}. Each mean is over the combinations that both levels have."
        )
    for metric in spec.metrics:
        axes = {axis for e in analysis.effects_of(metric.key) for axis in e.axes}
        idle = [axis for axis in design.axes if axes and axis not in axes]
        if idle and metric.main:
            words.append(f"{metric.label} does not depend on {' or '.join(idle)} at all.")
    return " ".join(words)
