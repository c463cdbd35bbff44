"""The section of a report that compares arms pair by pair, and says which rankings are settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffax.ablation import figures
from diffax.ablation.analysis import Analysis, Comparison
from diffax.ablation.blocks import Cell, Panel, Panels, Row, Section, Table, Words
from diffax.ablation.findings import POWERS, Finding
from diffax.ablation.numerals import p_text, seeds_text, span
from diffax.ablation.opinions import networks
from diffax.ablation.spec import SCALES, Metric, effect_text

MARKS = {"lower": "▼", "higher": "▲"}
# The outcome of a comparison in a word or two; others are their own.
OUTCOMES = {"suggested": "undecided after correction", "same": "the same", "unknown": "one pair"}


def section(analysis: Analysis) -> Section:
    """Forest plots, the table of all comparisons and that of the rankings by several networks."""
    told = {c.metric.key for c in analysis.comparisons if not c.repeats}
    main = [m for m in analysis.spec.metrics if m.main and m.key in told]
    panels = [
        Panel(
            f"forest-{i}",
            figures.forest(analysis, m),
            m.label,
            captioned(m, {"linear": "", "log": "Ratios, on a log axis."}[m.scale]),
        )
        for i, m in enumerate(main)
    ]
    rows = []
    for metric in analysis.spec.metrics:
        found = [c for c in analysis.of_metric(metric.key) if not c.repeats]
        if found:
            rows.append(Row([heading(analysis, metric)], "group"))
        rows += [Row([_pair(analysis, c), *numbers(c)]) for c in found]
    blocks = [Panels(panels), Table("differences", head(analysis), rows)] if rows else []
    title = "Each arm against the baseline" if analysis.design else "Paired differences"
    return Section(title, _note(analysis), blocks + _settled(analysis))


def head(analysis: Analysis) -> list[Cell]:
    """The head of a table whose rows are a name and `numbers`."""
    powers = " / ".join(f"{100 * power:g}" for power in POWERS)
    titles = ("", "effect", f"{analysis.spec.percent} interval", "pairs", "p", "p, signs")
    return [Cell(title) for title in (*titles, f"seeds, {powers}%", "reading")]


def numbers(finding: Finding) -> list[Cell]:
    """Effect, interval, pairs, p by t and by signs, seeds needed, and how it reads."""
    f, metric = finding, finding.metric
    cells = (
        effect_text(metric)(f.effect),
        span(effect_text(metric), f.difference),
        str(f.pairs),
        p_text(f.p_holm),
        p_text(f.difference and f.difference.p_sign_flip),
        " / ".join(map(seeds_text, f.seeds_needed.values())) or "–",
        f"{_reading(f.outcome)}{_better(f)}",
    )
    return [*map(Cell, cells)]


def _settled(analysis: Analysis) -> list[Words | Table]:
    """What the networks say of each pair of arms, where a measure was taken over two or more."""
    judged: dict[str, dict[tuple[str, str], Comparison]] = {}
    for c in analysis.comparisons:
        if len(networks(c.opinions)) > 1 and not c.repeats:
            judged.setdefault(c.metric.measure, {}).setdefault((c.arm, c.reference), c)
    found = [c for pairs in judged.values() for c in pairs.values()]
    if not found:
        return []
    columns = list(dict.fromkeys(name for c in found for name in networks(c.opinions)))
    rows = []
    for measure, pairs in judged.items():
        first, *_ = pairs.values()
        rows.append(Row([replace(heading(analysis, first.metric), text=measure)], "group"))
        rows += [_ranking(analysis, c, columns) for c in pairs.values()]
    titles = [Cell(""), Cell("ranking"), *map(Cell, columns)]
    return [Words([_SETTLED]), Table("settled", titles, rows)]


_SETTLED = (
    "A network whose features judge samples has tastes of its own. The ranking of two arms is "
    "settled only where every network that was asked decides it, each after correction, and all "
    "in the same direction."
)


def _ranking(analysis: Analysis, c: Comparison, columns: Sequence[str]) -> Row:
    said = [
        " / ".join(_reading(o.outcome) for o in c.opinions if o.network == name) or "–"
        for name in columns
    ]
    settled = f"settled: {c.outcome}{_better(c)}" if c.settled else "not settled"
    return Row([_pair(analysis, c), *map(Cell, [settled, *said])])


def _pair(analysis: Analysis, c: Comparison) -> Cell:
    """The arms of a comparison, or the first where all rows have the same other one."""
    spec = analysis.spec
    sign = SCALES[c.metric.scale].sign
    against = f" {sign} {c.names[1]}" if spec.focus else ""
    return Cell(f"{c.names[0]}{against}", arm=analysis.row(c))


def _reading(outcome: str) -> str:
    return f"{MARKS.get(outcome, '○')} {OUTCOMES.get(outcome, outcome)}"


def _better(c: Finding) -> str:
    return {True: ", better", False: ", worse", None: ""}[c.better]


def heading(analysis: Analysis, metric: Metric, against: bool = True) -> Cell:
    """The metric and, where all rows have the same one, what they are compared to."""
    compared, other = analysis.of_metric(metric.key), ""
    if against and compared and not analysis.spec.focus:
        other = f"{SCALES[metric.scale].sign} {compared[0].names[1]}"
    small = ", ".join(part for part in (metric.unit, metric.basis, other) if part)
    return Cell(metric.label, small, wish=wish(metric))


def _note(analysis: Analysis) -> str:
    pairs = max((c.pairs for c in analysis.comparisons), default=0)
    least = f" (with {pairs}: {2.0 ** (1 - pairs):.2g})" if pairs > 1 else ""
    return (
        "Each row compares two arms run with the same seeds. They differ where the interval leaves "
        "out the upright line, no effect. Filled marks are decided also after Holm’s correction "
        "for the comparisons of that metric; hollow ones are not. p is that of the paired t test, "
        "on the logarithm for ratios (÷), corrected; it takes the differences for normal. “p, "
        "signs” is that of the exact sign-flip test, not corrected, which takes them for symmetric "
        f"alone, and cannot be below 2 in 2ⁿ with n pairs{least}. “Seeds” is how many pairs would "
        "find a difference of this size with that power, at the level that the correction leaves "
        "at worst, were effect and spread as measured here: a rough guide, from few seeds."
        + " Arms with the same values, as of one training, have no row of their own."
        * any(c.repeats for c in analysis.comparisons)
    )


def captioned(metric: Metric, caption: str) -> str:
    """A figure's caption, behind what the metric is measured on."""
    return f"{metric.basis}. {caption}".strip() if metric.basis else caption


def wish(metric: Metric) -> str | None:
    """What is wished for, as a `blocks.Cell` has it."""
    return {True: "lower", False: "higher", None: None}[metric.lower_is_better]
