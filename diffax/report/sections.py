"""What a report says, in order: an `Analysis` as a `page.Page`, for HTML and Markdown alike."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffax.files import flatten, jsonable
from diffax.report import figures
from diffax.report.analysis import Analysis, Comparison, shortened
from diffax.report.findings import POWERS, Effect, Finding, networks
from diffax.report.formatting import format_seconds, one_line, p_text, seeds_text, span
from diffax.report.page import (
    Code,
    Legend,
    Listing,
    Meanings,
    Page,
    Panel,
    Panels,
    Pictures,
    Row,
    Section,
    Table,
    TableCell,
    Verdict,
    Words,
)
from diffax.report.spec import SCALES, Metric, effect_text, value_text
from diffax.report.verdict import (
    NOTHING_DECIDED,
    averaged,
    claim,
    conclusion,
    effect_name,
    nothing_decided,
    remark,
    shown_effects,
    verdict,
)

# name of a curve -> its title and what to look at; others are titled by their name.
CURVES = {
    "training_times": (
        "Training times",
        "The density of log-SNR that training draws from at its end, where it is learned.",
    ),
    "loss_by_log_snr": (
        "Loss by noise level",
        "Where along the noise levels each network errs; arms compare at the same log-SNR.",
    ),
    "training_loss": (
        "Training loss",
        "How fast each arm comes down, and whether any is still falling at the end.",
    ),
    "loss_variance": (
        "Variance of the training loss",
        "Between the examples of a batch: how much of the loss is a matter of the noise drawn.",
    ),
    "gradient_norm": (
        "Gradient norm",
        "Of the network, before it is clipped: spikes are steps that were nearly lost.",
    ),
    "gradient_variance": (
        "Variance of the gradient",
        "Of the network, between training batches: what is left to chance in a step. Its scale is"
        " that of the loss.",
    ),
    "schedule_gradient_variance": (
        "Variance of the schedule’s gradient",
        "How noisy the gradient of a learned schedule is along training.",
    ),
    "bound_in_training": (
        "Bound along training",
        "Bits per dimension on held-out data by each arm’s own schedule, lower is better; on a"
        " part of the data, unless training.eval_every says when it is measured.",
    ),
    "bound_variance_in_training": (
        "Var(VLB) along training",
        "Variance of the bound’s estimate on held-out data.",
    ),
}
ACROSS = 7  # metrics at most side by side in one table, so that it fits on paper


def make(analysis: Analysis, made: Mapping[str, Any]) -> Page:
    """The report of an analysis.

    Args:
      analysis: what to show.
      made: what to list under "Machine and versions", and when it was made as "created".
    """
    spec = analysis.spec
    remarks = [("Note.", remark) for remark in spec.remarks]
    if analysis.missing:
        missing = f"Missing: {shortened(analysis.missing)}."
        both = "Comparisons use the seeds that both arms have."
        remarks.append(("Partial report.", f"{missing} {both}"))
    parts = (_results, _effects, _differences, _arms, _curves, _samples)
    sections = [*(part(analysis) for part in parts), _making(analysis, made)]
    filled = [section for section in sections if section.blocks]
    blocks = [_verdict(analysis), _meanings(analysis, main=True), *filled]
    return Page(spec.title, spec.question, remarks, _facts(analysis, made), blocks)


def _verdict(analysis: Analysis) -> Verdict:
    stated, nothing = verdict(analysis), nothing_decided(analysis)
    # The first says how many seeds; the others only where they rest on fewer.
    lines = [("○", nothing, NOTHING_DECIDED, "")] if nothing else []
    lines += [
        (
            MARKS.get(f.outcome, "○"),
            claim(analysis.spec, f, pairs=i == 0 or f.pairs != stated[0].pairs),
            conclusion(f),
            remark(analysis, f),
        )
        for i, f in enumerate(stated)
    ]
    found = analysis.effects if analysis.design else analysis.comparisons
    total = sum(f.metric.main and not f.repeats for f in found)
    more = []
    if analysis.design is not None:
        more.append(
            "First the largest decided effect on the first measure that has one; with each measure"
            " its main effects, and the interactions that are decided."
        )
    if total > len(stated):
        kind = "main effects and interactions" if analysis.design else "comparisons"
        more.append(f"All {total} {kind} are in the table below.")
    return Verdict(lines, " ".join(more))


def _meanings(analysis: Analysis, main: bool) -> Meanings:
    measured = [m for m in analysis.spec.metrics if analysis.measured(m) and m.main == main]
    return Meanings({m.label: m.meaning for m in measured if m.meaning})


def _facts(analysis: Analysis, made: Mapping[str, Any]) -> dict[str, Any]:
    results = analysis.results
    facts = dict(analysis.spec.subject)
    trained = [r["training"] for r in results if r.get("training")]
    counts = {t["parameters"] for t in trained if "parameters" in t}
    if counts:
        facts["parameters"] = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    facts |= {"arms": len(analysis.arms), "seeds": len(analysis.seeds), "runs": len(results)}
    trainings = {t["directory"] for t in trained}
    if 0 < len(trainings) < len(results):
        facts["trainings"] = len(trainings)
    seconds = [r["seconds"] for r in results if r.get("seconds") is not None]
    wall = wall_seconds(results)
    if wall is not None:
        facts["wall time"] = format_seconds(wall)
    facts["summed over runs"] = format_seconds(sum(seconds)) if seconds else "not recorded"
    facts |= {name: made[name] for name in ("device", "diffax") if name in made}
    if {"diffax", "commit"} <= made.keys():
        facts["diffax"] += f", commit {made['commit']}"
    return facts | {"made": str(made["created"])[:10]}


def _results(analysis: Analysis) -> Section:
    spec = analysis.spec
    # Measures with the same rows side by side: a row for each training, or for each arm.
    by_rows: dict[tuple[str, ...], list[Metric]] = {}
    for m in spec.metrics:
        if analysis.measured(m):
            by_rows.setdefault(_rows(analysis, m), []).append(m)
    tables = [
        _results_table(analysis, rows, [metrics[i] for i in part])
        for rows, metrics in by_rows.items()
        for part in np.array_split(np.arange(len(metrics)), -(-len(metrics) // ACROSS))
    ]
    note = (
        f"Mean over seeds, and under it the {spec.percent} interval by Student’s t; on the "
        "logarithm where marked geometric. An arrow says whether lower or higher is better. These "
        "intervals hold the spread between seeds, which a paired comparison removes: to compare "
        "two arms, look at the differences below."
        + " What arms have in common because they share a training stands once for them."
        * (len(by_rows) > 1)
    )
    blocks = [*tables, _meanings(analysis, main=False), *_costs(analysis)]
    return Section("Results", note, blocks)


def _costs(analysis: Analysis) -> list[Table]:
    """What a training of each arm costs, where the operations of a step were counted."""
    of = {r["arm"]: r["training"] for r in analysis.results if r.get("training")}
    counted = {arm: own["operations"] for arm, own in of.items() if own.get("operations")}
    if not counted:
        return []
    head = [
        TableCell("what a training costs"),
        TableCell("parameters"),
        TableCell("operations a step", "floating point, counted by XLA"),
    ]
    rows = [
        Row([key(analysis, arm), TableCell(f"{of[arm]['parameters']:,}"), TableCell(f"{n:.3g}")])
        for arm in analysis.arms
        if (n := counted.get(arm))
    ]
    return [Table("results", head, rows)]


def _rows(analysis: Analysis, metric: Metric) -> tuple[str, ...]:
    """The arms in whose rows a metric stands."""
    having = [arm for arm in analysis.arms if (arm, metric.key) in analysis.cells]
    shown = [arm for arm in analysis.arms if arm in analysis.shown[metric.key]]
    return tuple(shown if len(shown) < len(having) else analysis.arms)


def _results_table(analysis: Analysis, rows: Sequence[str], metrics: Sequence[Metric]) -> Table:
    names = analysis.shown[metrics[0].key]
    head = [TableCell(""), *(TableCell(m.label, _unit(m), direction=direction(m)) for m in metrics)]
    lines = []
    for arm in rows:
        values = (_value(analysis.cells.get((arm, m.key)), m) for m in metrics)
        kind = "focus" if arm == analysis.spec.focus else ""
        lines.append(Row([key(analysis, arm, names.get(arm)), *values], kind))
    return Table("results", head, lines)


def _unit(metric: Metric) -> str:
    average = "geometric" if metric.scale == "log" else ""
    return ", ".join(filter(None, (metric.unit, metric.basis, average)))


def _value(cell, metric: Metric) -> TableCell:
    if cell is None:
        return TableCell("–")
    if not cell.on_scale:
        return TableCell(value_text(metric)(cell.mean), "arithmetic, since not all are above 0")
    interval = span(value_text(metric), cell.interval) if cell.interval else "one seed"
    return TableCell(value_text(metric)(cell.mean), interval)


def _arms(analysis: Analysis) -> Section:
    main = [m for m in analysis.spec.metrics if m.main and figures.drawn_cells(analysis, m)]
    on_log = "Log axis: equal steps are equal factors."
    panels = _panels("points", main, lambda m: figures.metric_points(analysis, m), on_log)
    note = (
        f"Large dots are means, bars their {analysis.spec.percent} intervals, small dots the "
        "single seeds. Look at how far the arms lie apart beside the spread of their seeds."
    )
    return Section("Each arm by itself", note, [Panels(panels)])


def _panels(
    name: str, metrics: Sequence[Metric], draw: Callable[[Metric], Figure], on_log: str
) -> list[Panel]:
    """A figure for each metric; `on_log` is said of those on a log axis."""
    return [
        Panel(f"{name}-{i}", draw(m), m.label, captioned(m, on_log if m.scale == "log" else ""))
        for i, m in enumerate(metrics)
    ]


def _curves(analysis: Analysis) -> Section:
    panels = []
    learned = [_has(r, "schedule", "log_snr_before") for r in analysis.results]
    if any(_has(r, "schedule", "log_snr") for r in analysis.results):
        dashed = " Dashed: before learning." if any(learned) else ""
        panels += [
            Panel(
                "log-snr",
                figures.schedule_log_snr(analysis),
                "Schedule: log-SNR",
                "The logarithm of signal over noise, in variance, at time t. Where a curve is flat,"
                f" the schedule spends its time.{dashed}",
            ),
            Panel(
                "alpha-bar",
                figures.schedule_alpha_bar(analysis),
                "Schedule: signal left",
                "The share of the signal in the variance, ᾱ = sigmoid(log-SNR): how fast the image "
                f"goes.{dashed}",
            ),
        ]
    for i, name in enumerate(figures.curve_names(analysis)):
        title, caption = CURVES.get(name, (name.replace("_", " ").capitalize(), ""))
        panels.append(Panel(f"curve-{i}", figures.curve(analysis, name), title, caption))
    arms = figures.drawn_arms(analysis)
    keys = [key(analysis, arm, name) for arm, name in arms.items()]
    legend = Legend(keys, figures.legend(analysis))
    note = (
        "Lines are means over the seeds, bands reach from the lowest seed to the highest."
        + " Arms that share a training are drawn as one, the first of them." * _shared(analysis)
    )
    return Section("Curves", note, [legend, Panels(panels)] if panels else [])


def _shared(analysis: Analysis) -> bool:
    trainings = [r["training"]["directory"] for r in analysis.results if r.get("training")]
    return len(set(trainings)) < len(trainings)


def _has(result: Mapping[str, Any], name: str, column: str) -> bool:
    return column in ((result.get("curves") or {}).get(name) or {})


def _samples(analysis: Analysis) -> Section:
    drawn = [r for r in analysis.results if r.get("samples") is not None]
    if not drawn:
        return Section("Samples", "", [])
    # The seed that most arms have; the first of those.
    seeds = sorted(r["seed"] for r in drawn)
    seed = max(seeds, key=seeds.count)
    runs = {r["arm"]: r for r in drawn if r["seed"] == seed}
    sources = [
        (key(analysis, arm), runs[arm]["samples"], runs[arm].get("directory", "."))
        for arm in analysis.arms
        if arm in runs
    ]
    if analysis.spec.real_samples is not None:
        sources.insert(0, (TableCell("real data"), analysis.spec.real_samples, "."))
    shown, left_out = [], {}
    for title, given, directory in sources:
        try:
            shown.append((title, figures.load_samples(given, directory)))
        except ValueError as error:
            left_out.setdefault(str(error), []).append(title.text)
    pictures = figures.draw_samples([x for _, x in shown])
    drawn = [(title, png) for (title, _), png in zip(shown, pictures)]
    note = f"The first samples of seed {seed}, not selected: from the same noise in every arm."
    words = [f"Not drawn, of {'; '.join(names)}: {why}." for why, names in left_out.items()]
    blocks = [Pictures(drawn)] * bool(drawn) + [Words(words)] * bool(words)
    return Section("Samples", note * bool(drawn), blocks)


def _making(analysis: Analysis, made: Mapping[str, Any]) -> Section:
    spec = analysis.spec
    varied = {key: f"{', '.join(levels)} (varied)" for key, levels in spec.varied.items()}
    varied["seeds"] = ", ".join(str(seed) for seed in analysis.seeds)
    fixed = flatten(jsonable(spec.config, "config"))
    config = varied | {k: v for k, v in fixed.items() if k not in varied and k != "seed"}
    blocks = [
        Words([part for part in spec.method.split("\n\n") if part.strip()]),
        Code("Run it again", spec.command),
        Listing("Time taken", _times(analysis)),
        Listing("Machine and versions", made),
        Listing("Configuration", config),
    ]
    return Section("How this was made", "", blocks)


def _times(analysis: Analysis) -> dict[str, str]:
    """Per run; a shared training counts for the first run that needed it."""
    times = {}
    for arm in analysis.arms:
        runs = [r["seconds"] for r in analysis.results if r["arm"] == arm and r.get("seconds")]
        if runs:
            mean = format_seconds(sum(runs) / len(runs))
            times[analysis.spec.label(arm)] = f"{mean} per run"
    if _shared(analysis):
        trained = {
            r["training"]["directory"]: r["training"]["seconds"]
            for r in analysis.results
            if r.get("training")
        }
        mean = sum(trained.values()) / len(trained)
        times["of which training, once for those that share it"] = format_seconds(mean)
    return times


def key(analysis: Analysis, arm: str, name: str | None = None) -> TableCell:
    """An arm with its colour and its name, or the name of the group that it stands for."""
    role = "baseline" if arm == analysis.spec.baseline else ""
    return TableCell(name or analysis.spec.label(arm), role, figures.palette_index(analysis)[arm])


def wall_seconds(results: Sequence[Mapping[str, Any]]) -> float | None:
    """How long at least one run was running, on any machine; None if a result doesn't say when it
    was finished."""
    if not all("finished" in r and r.get("seconds") is not None for r in results):
        return None
    total, until = 0.0, float("-inf")
    for start, end in sorted((r["finished"] - r["seconds"], r["finished"]) for r in results):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


# --- effects of a design's axes -------------------------------------------------------------------


MOST_PICTURES = 12  # of interactions; the decided ones first


def _effects(analysis: Analysis) -> Section:
    """Forest plots of the effects, pictures of the interactions and the table of them all."""
    if analysis.design is None:
        return Section("Effects", "", [])
    main = [m for m in analysis.spec.metrics if m.main and shown_effects(analysis, m)]
    forests = _panels(
        "effects", main, lambda m: figures.effects(analysis, m, shown_effects(analysis, m)), _RATIOS
    )

    def name(e: Effect) -> TableCell:
        return TableCell(effect_name(e), averaged(e) if e.averaged < e.combinations else "")

    rows = []
    for metric in analysis.spec.metrics:
        title = heading(analysis, metric, against=False)
        rows += _group(title, shown_effects(analysis, metric), name)
    pictures = _interactions(analysis, main)
    blocks = [Panels(forests), Table("effects", head(analysis), rows)] if rows else []
    blocks += [Panels(pictures)] if pictures else []
    return Section("Effects of each axis", _effects_note(analysis), blocks)


_RATIOS = "Ratios, on a log axis."


def _group(
    title: TableCell, found: Sequence[Finding], name: Callable[[Any], TableCell]
) -> list[Row]:
    """A heading and the rows of some findings; nothing for none."""
    rows = [Row([name(f), *numbers(f)]) for f in found]
    return [Row([title], "group"), *rows] if rows else []


def _interactions(analysis: Analysis, metrics: Sequence[Metric]) -> list[Panel]:
    asked = []
    for metric in metrics:
        found = shown_effects(analysis, metric)
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


def _effects_note(analysis: Analysis) -> str:
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


# --- arms pair by pair ----------------------------------------------------------------------------


MARKS = {"lower": "▼", "higher": "▲"}
# The outcome of a comparison in a word or two; others are their own.
OUTCOMES = {"suggested": "undecided after correction", "same": "the same", "unknown": "one pair"}


def _differences(analysis: Analysis) -> Section:
    """Forest plots, the table of all comparisons and that of the rankings by several networks."""
    compared = {c.metric.key for c in analysis.comparisons if not c.repeats}
    main = [m for m in analysis.spec.metrics if m.main and m.key in compared]
    panels = _panels("forest", main, lambda m: figures.forest(analysis, m), _RATIOS)
    rows = []
    for metric in analysis.spec.metrics:
        found = [c for c in analysis.of_metric(metric.key) if not c.repeats]
        rows += _group(heading(analysis, metric), found, lambda c: _pair(analysis, c))
    blocks = [Panels(panels), Table("differences", head(analysis), rows)] if rows else []
    title = "Each arm against the baseline" if analysis.design else "Paired differences"
    return Section(title, _differences_note(analysis), blocks + _settled(analysis))


def head(analysis: Analysis) -> list[TableCell]:
    """The head of a table whose rows are a name and `numbers`."""
    powers = " / ".join(f"{100 * power:g}" for power in POWERS)
    titles = ("", "effect", f"{analysis.spec.percent} interval", "pairs", "p", "p, signs")
    return [TableCell(title) for title in (*titles, f"seeds, {powers}%", "reading")]


def numbers(finding: Finding) -> list[TableCell]:
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
    return [*map(TableCell, cells)]


def _settled(analysis: Analysis) -> list[Words | Table]:
    """The outcome of each pair of arms by each network, if a measure was taken over two or more."""
    judged: dict[str, dict[tuple[str, str], Comparison]] = {}
    for c in analysis.comparisons:
        if len(networks(c.by_network)) > 1 and not c.repeats:
            judged.setdefault(c.metric.measure, {}).setdefault((c.arm, c.reference), c)
    found = [c for pairs in judged.values() for c in pairs.values()]
    if not found:
        return []
    columns = list(dict.fromkeys(name for c in found for name in networks(c.by_network)))
    rows = []
    for measure, pairs in judged.items():
        first, *_ = pairs.values()
        rows.append(Row([replace(heading(analysis, first.metric), text=measure)], "group"))
        rows += [_ranking(analysis, c, columns) for c in pairs.values()]
    titles = [TableCell(""), TableCell("ranking"), *map(TableCell, columns)]
    return [Words([_SETTLED]), Table("settled", titles, rows)]


_SETTLED = (
    "Scores depend on the feature extractor. So the ranking of two arms counts as settled only if "
    "two extractors or more were used, and each decides it after correction, in the same direction."
)


def _ranking(analysis: Analysis, c: Comparison, columns: Sequence[str]) -> Row:
    said = [
        " / ".join(_reading(o.outcome) for o in c.by_network if o.network == name) or "–"
        for name in columns
    ]
    settled = f"settled: {c.outcome}{_better(c)}" if c.settled else "not settled"
    return Row([_pair(analysis, c), *map(TableCell, [settled, *said])])


def _pair(analysis: Analysis, c: Comparison) -> TableCell:
    """The arms of a comparison, or the first where all rows have the same other one."""
    spec = analysis.spec
    sign = SCALES[c.metric.scale].sign
    against = f" {sign} {c.names[1]}" if spec.focus else ""
    colour = figures.palette_index(analysis)[analysis.row(c)]
    return TableCell(f"{c.names[0]}{against}", colour=colour)


def _reading(outcome: str) -> str:
    return f"{MARKS.get(outcome, '○')} {OUTCOMES.get(outcome, outcome)}"


def _better(c: Finding) -> str:
    return {True: ", better", False: ", worse", None: ""}[c.better]


def heading(analysis: Analysis, metric: Metric, against: bool = True) -> TableCell:
    """The metric and, where all rows have the same one, what they are compared to."""
    compared, other = analysis.of_metric(metric.key), ""
    if against and compared and not analysis.spec.focus:
        other = f"{SCALES[metric.scale].sign} {compared[0].names[1]}"
    small = ", ".join(part for part in (metric.unit, metric.basis, other) if part)
    return TableCell(metric.label, small, direction=direction(metric))


def _differences_note(analysis: Analysis) -> str:
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


def direction(metric: Metric) -> str | None:
    """Which values are better, as a `page.TableCell` has it."""
    return {True: "lower", False: "higher", None: None}[metric.lower_is_better]
