"""What a report says, in order: an `Analysis` as a `blocks.Page`, for HTML and Markdown alike."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffax.ablation import figures, samples
from diffax.ablation.analysis import POWERS, Analysis, Comparison, shortened
from diffax.ablation.blocks import (
    Cell,
    Code,
    Legend,
    Listing,
    Page,
    Panel,
    Panels,
    Picture,
    Pictures,
    Row,
    Section,
    Table,
    Verdict,
    Words,
)
from diffax.ablation.grid import format_seconds
from diffax.ablation.jsonable import flatten, jsonable
from diffax.ablation.numerals import p_text, seeds_text, span
from diffax.ablation.opinions import networks
from diffax.ablation.spec import SCALES, Metric
from diffax.ablation.verdict import claim, conclusion, needed, verdict

# name of a curve -> its title and what to look at; others are titled by their name.
CURVES = {
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
        "Variance of the schedule’s gradient",
        "How noisy the gradient of a learned schedule is along training.",
    ),
    "bound_in_training": (
        "Bound along training",
        "Bits per dimension on held-out data by each arm’s own schedule, lower is better.",
    ),
    "bound_variance_in_training": (
        "Var(VLB) along training",
        "Variance of the bound’s estimate on held-out data.",
    ),
}
MARKS = {"lower": "▼", "higher": "▲"}
# The outcome of a comparison in a word or two; others are their own.
OUTCOMES = {"suggested": "undecided after correction", "same": "the same", "unknown": "one pair"}


def make(analysis: Analysis, made: Mapping[str, Any]) -> Page:
    """The report of an analysis.

    Args:
      analysis: what to show.
      made: what to list under "Machine and versions", and when it was made as "created".
    """
    spec = analysis.spec
    partial = (
        f"Not there yet: {shortened(analysis.missing)}. Comparisons use the seeds that both arms"
        " have."
        if analysis.missing
        else ""
    )
    sections = [
        _results(analysis),
        _differences(analysis),
        _arms(analysis),
        _curves(analysis),
        _samples(analysis),
        _making(analysis, made),
    ]
    return Page(
        spec.title,
        spec.question,
        partial,
        _verdict(analysis),
        _facts(analysis, made),
        [section for section in sections if section.blocks],
        analysis,
    )


def _verdict(analysis: Analysis) -> Verdict:
    stated = verdict(analysis)
    # The headline says how many seeds; the others only where they rest on fewer.
    lines = [
        (
            MARKS.get(c.outcome, "○"),
            claim(analysis.spec, c, pairs=i == 0 or c.pairs != stated[0].pairs),
            conclusion(c),
            needed(c),
        )
        for i, c in enumerate(stated)
    ]
    total = sum(c.metric.main and not c.repeats for c in analysis.comparisons)
    more = f"All {total} comparisons are in the table below." if total > len(lines) else ""
    return Verdict(lines, more)


def _facts(analysis: Analysis, made: Mapping[str, Any]) -> dict[str, Any]:
    seconds = [r["seconds"] for r in analysis.results if r.get("seconds") is not None]
    trainings = {(r["training"]["directory"]) for r in analysis.results if r.get("training")}
    shared = {"trainings": len(trainings)} if 0 < len(trainings) < len(analysis.results) else {}
    return {
        "arms": len(analysis.arms),
        "seeds": len(analysis.seeds),
        "runs": len(analysis.results),
        **shared,
        "run time": format_seconds(sum(seconds)) if seconds else "not recorded",
        "made": str(made["created"])[:10],
    }


def _results(analysis: Analysis) -> Section:
    spec = analysis.spec
    metrics = [m for m in spec.metrics if analysis.measured(m)]
    head = [Cell(""), *(Cell(m.label, _unit(m), wish=_wish(m)) for m in metrics)]
    rows = [
        Row(
            [key(analysis, arm), *(_value(analysis.cells.get((arm, m.key)), m) for m in metrics)],
            "focus" if arm == spec.focus else "",
        )
        for arm in analysis.arms
    ]
    note = (
        f"Mean over seeds, and under it the {spec.percent} interval by Student’s t; on the "
        "logarithm where marked geometric. An arrow says whether lower or higher is better. These "
        "intervals hold the spread between seeds, which a paired comparison removes: to compare "
        "two arms, look at the differences below."
    )
    return Section("Results", note, [Table("results", head, rows)])


def _unit(metric: Metric) -> str:
    average = "geometric" if metric.scale == "log" else ""
    return ", ".join(x for x in (metric.unit, average) if x)


def _wish(metric: Metric) -> str | None:
    return {True: "lower", False: "higher", None: None}[metric.lower_is_better]


def _value(cell, metric: Metric) -> Cell:
    if cell is None:
        return Cell("–")
    interval = span(metric.text, cell.interval) if cell.interval else "one seed"
    return Cell(metric.text(cell.mean), interval)


def _differences(analysis: Analysis) -> Section:
    main = [m for m in analysis.spec.metrics if m.main and analysis.of_metric(m.key)]
    panels = [
        Panel(
            f"forest-{i}",
            figures.forest(analysis, m),
            m.label,
            {"linear": "", "log": "Ratios, on a log axis."}[m.scale],
        )
        for i, m in enumerate(main)
    ]
    powers = " / ".join(f"{100 * power:g}" for power in POWERS)
    titles = ("", "effect", f"{analysis.spec.percent} interval", "pairs", "p", "p, signs")
    head = [Cell(title) for title in (*titles, f"seeds, {powers}%", "reading")]
    rows = []
    for metric in analysis.spec.metrics:
        found = [c for c in analysis.of_metric(metric.key) if not c.repeats]
        if found:
            rows.append(Row([_heading(analysis, metric)], "group"))
        rows += [_comparison(analysis, c) for c in found]
    blocks = [Panels(panels), Table("differences", head, rows)] if rows else []
    return Section("Paired differences", _differences_note(analysis), blocks + _settled(analysis))


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
        rows.append(Row([replace(_heading(analysis, first.metric), text=measure)], "group"))
        rows += [_ranking(analysis, c, columns) for c in pairs.values()]
    head = [Cell(""), *map(Cell, columns), Cell("ranking")]
    return [Words([_SETTLED]), Table("settled", head, rows)]


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
    return Row([_pair(analysis, c), *map(Cell, [*said, settled])])


def _pair(analysis: Analysis, c: Comparison) -> Cell:
    """The arms of a comparison, or the first where all rows have the same other one."""
    spec = analysis.spec
    sign = SCALES[c.metric.scale].sign
    against = f" {sign} {spec.label(c.reference)}" if spec.focus else ""
    return Cell(f"{spec.label(c.arm)}{against}", arm=analysis.row(c))


def _reading(outcome: str) -> str:
    return f"{MARKS.get(outcome, '○')} {OUTCOMES.get(outcome, outcome)}"


def _better(c: Comparison) -> str:
    return {True: ", better", False: ", worse", None: ""}[c.better]


def _heading(analysis: Analysis, metric: Metric) -> Cell:
    """The metric and, where all rows have the same one, what they are compared to."""
    spec = analysis.spec
    against = "" if spec.focus else f"{SCALES[metric.scale].sign} {spec.label(spec.baseline)}"
    small = ", ".join(part for part in (metric.unit, against) if part)
    return Cell(metric.label, small, wish=_wish(metric))


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
        + " Arms that share a training are compared once in what does not depend on sampling."
        * any(c.repeats for c in analysis.comparisons)
    )


def _comparison(analysis: Analysis, c: Comparison) -> Row:
    metric = c.metric
    cells = (
        metric.effect_text(c.effect),
        span(metric.effect_text, c.difference),
        str(c.pairs),
        p_text(c.p_holm),
        p_text(c.difference and c.difference.p_sign_flip),
        " / ".join(map(seeds_text, c.seeds_needed.values())) or "–",
        f"{_reading(c.outcome)}{_better(c)}",
    )
    return Row([_pair(analysis, c), *map(Cell, cells)])


def _arms(analysis: Analysis) -> Section:
    main = [m for m in analysis.spec.metrics if m.main and analysis.measured(m)]
    panels = [
        Panel(
            f"points-{i}",
            figures.metric_points(analysis, m),
            m.label,
            "Log axis: equal steps are equal factors." if m.scale == "log" else "",
        )
        for i, m in enumerate(main)
    ]
    parts = [m for m in analysis.spec.metrics if m.key in analysis.spec.parts]
    means = [analysis.cells[a, m.key].mean for a, m in itertools.product(analysis.arms, parts)
             if (a, m.key) in analysis.cells]  # fmt: skip
    # Bars can't be stacked of terms below zero, as densities have.
    if means and all(analysis.measured(m) for m in parts) and min(means) >= 0:
        names = ", ".join(m.label for m in parts)
        caption = f"From full to pale: {names}. The number is their sum."
        panels.append(Panel("parts", figures.parts(analysis), "What it is made of", caption))
    note = (
        f"Large dots are means, bars their {analysis.spec.percent} intervals, small dots the "
        "single seeds. Look at how far the arms lie apart beside the spread of their seeds."
    )
    return Section("Each arm by itself", note, [Panels(panels)])


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
                f"Where a curve is flat, the schedule spends its time.{dashed}",
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
    legend = Legend([key(analysis, arm) for arm in arms], figures.legend(analysis))
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
    by_seed = {}
    for r in analysis.results:
        if r.get("samples") is not None:
            by_seed.setdefault(r["seed"], {})[r["arm"]] = r
    if not by_seed:
        return Section("Samples", "", [])
    # The seed that most arms have; the first of those.
    seed = max(sorted(by_seed), key=lambda s: len(by_seed[s]))
    arms = [arm for arm in analysis.arms if arm in by_seed[seed]]
    sources = [(by_seed[seed][a]["samples"], by_seed[seed][a].get("directory", ".")) for a in arms]
    titles = [key(analysis, arm) for arm in arms]
    if analysis.spec.real_samples is not None:
        sources.insert(0, (analysis.spec.real_samples, "."))
        titles.insert(0, Cell("real data"))
    drawn = [
        Picture(f"samples-{i}", png, title)
        for i, (png, title) in enumerate(zip(samples.pictures(sources), titles))
    ]
    note = f"The first samples of seed {seed}, not selected: from the same noise in every arm."
    return Section("Samples", note, [Pictures(drawn)])


def _making(analysis: Analysis, made: Mapping[str, Any]) -> Section:
    spec = analysis.spec
    seeds = {"seeds": ", ".join(str(seed) for seed in analysis.seeds)}
    config = {**seeds, **flatten(jsonable(spec.config, "config"))}
    blocks = [
        Words([part for part in spec.method.split("\n\n") if part.strip()]),
        Code("Run it again", spec.command),
        Listing("Time taken", _times(analysis)),
        Listing("Machine and versions", made),
        Listing("Configuration", config),
    ]
    return Section("How this was made", "", blocks)


def _times(analysis: Analysis) -> dict[str, str]:
    """Per run; where a training is shared it belongs to the first run that asked for it."""
    times = {}
    for arm in analysis.arms:
        runs = [r for r in analysis.results if r["arm"] == arm and r.get("seconds")]
        if runs:
            per_run = sum(r["seconds"] for r in runs) / len(runs)
            times[analysis.spec.label(arm)] = f"{format_seconds(per_run)} per run"
    if _shared(analysis):
        trained = {
            r["training"]["directory"]: r["training"]["seconds"]
            for r in analysis.results
            if r.get("training")
        }
        mean = sum(trained.values()) / len(trained)
        times["of which training, once for those that share it"] = format_seconds(mean)
    return times


def key(analysis: Analysis, arm: str) -> Cell:
    """An arm by its colour and its name."""
    role = "baseline" if arm == analysis.spec.baseline else ""
    return Cell(analysis.spec.label(arm), role, arm=arm)
