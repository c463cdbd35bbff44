"""What a report says, in order: an `Analysis` as a `blocks.Page`, for HTML and Markdown alike."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffax.ablation import differences, effects, figures, samples
from diffax.ablation.about import wall_seconds
from diffax.ablation.analysis import Analysis, shortened
from diffax.ablation.blocks import (
    Cell,
    Code,
    Legend,
    Listing,
    Meanings,
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
from diffax.ablation.differences import captioned, wish
from diffax.ablation.grid import format_seconds
from diffax.ablation.numerals import span
from diffax.ablation.spec import Metric, value_text
from diffax.ablation.verdict import (
    NOTHING_DECIDED,
    claim,
    conclusion,
    nothing_decided,
    remark,
    verdict,
)
from diffax.files import flatten, jsonable

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
    sections = [
        _results(analysis),
        effects.section(analysis),
        differences.section(analysis),
        _arms(analysis),
        _curves(analysis),
        _samples(analysis),
        _making(analysis, made),
    ]
    return Page(
        spec.title,
        spec.question,
        remarks,
        _verdict(analysis),
        _meanings(analysis, main=True),
        _facts(analysis, made),
        [section for section in sections if section.blocks],
        analysis,
    )


def _verdict(analysis: Analysis) -> Verdict:
    stated, nothing = verdict(analysis), nothing_decided(analysis)
    # The first says how many seeds; the others only where they rest on fewer.
    lines = [("○", nothing, NOTHING_DECIDED, "")] if nothing else []
    lines += [
        (
            differences.MARKS.get(f.outcome, "○"),
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
    parameters = sorted({t["parameters"] for t in trained if "parameters" in t})
    if parameters:
        facts["parameters"] = " to ".join(f"{n:,}" for n in dict.fromkeys(
            (parameters[0], parameters[-1])))  # fmt: skip
    facts |= {"arms": len(analysis.arms), "seeds": len(analysis.seeds), "runs": len(results)}
    trainings = {t["directory"] for t in trained}
    if 0 < len(trainings) < len(results):
        facts["trainings"] = len(trainings)
    seconds = [r["seconds"] for r in results if r.get("seconds") is not None]
    wall = wall_seconds(results)
    if wall is not None:
        facts["wall time"] = format_seconds(wall)
    facts["summed over runs"] = format_seconds(sum(seconds)) if seconds else "not recorded"
    if "device" in made:
        facts["device"] = made["device"]
    if "diffax" in made:
        commit = f", commit {made['commit']}" if "commit" in made else ""
        facts["diffax"] = f"{made['diffax']}{commit}"
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
    return Section("Results", note, [*tables, _meanings(analysis, main=False)])


def _rows(analysis: Analysis, metric: Metric) -> tuple[str, ...]:
    """The arms in whose rows a metric stands."""
    having = [arm for arm in analysis.arms if (arm, metric.key) in analysis.cells]
    shown = [arm for arm in analysis.arms if arm in analysis.shown[metric.key]]
    return tuple(shown if len(shown) < len(having) else analysis.arms)


def _results_table(analysis: Analysis, rows: Sequence[str], metrics: Sequence[Metric]) -> Table:
    names = analysis.shown[metrics[0].key]
    head = [Cell(""), *(Cell(m.label, _unit(m), wish=wish(m)) for m in metrics)]
    return Table(
        "results",
        head,
        [
            Row(
                [
                    key(analysis, arm, names.get(arm)),
                    *(_value(analysis.cells.get((arm, m.key)), m) for m in metrics),
                ],
                "focus" if arm == analysis.spec.focus else "",
            )
            for arm in rows
        ],
    )


def _unit(metric: Metric) -> str:
    average = "geometric" if metric.scale == "log" else ""
    return ", ".join(x for x in (metric.unit, metric.basis, average) if x)


def _value(cell, metric: Metric) -> Cell:
    if cell is None:
        return Cell("–")
    if not cell.on_scale:
        return Cell(value_text(metric)(cell.mean), "arithmetic, since not all are above 0")
    interval = span(value_text(metric), cell.interval) if cell.interval else "one seed"
    return Cell(value_text(metric)(cell.mean), interval)


def _arms(analysis: Analysis) -> Section:
    main = [m for m in analysis.spec.metrics if m.main and figures.drawn_cells(analysis, m)]
    panels = [
        Panel(
            f"points-{i}",
            figures.metric_points(analysis, m),
            m.label,
            captioned(m, "Log axis: equal steps are equal factors." if m.scale == "log" else ""),
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
    by_seed = {}
    for r in analysis.results:
        if r.get("samples") is not None:
            by_seed.setdefault(r["seed"], {})[r["arm"]] = r
    if not by_seed:
        return Section("Samples", "", [])
    # The seed that most arms have; the first of those.
    seed = max(sorted(by_seed), key=lambda s: len(by_seed[s]))
    runs = {a: by_seed[seed][a] for a in analysis.arms if a in by_seed[seed]}
    sources = [(key(analysis, a), r["samples"], r.get("directory", ".")) for a, r in runs.items()]
    if analysis.spec.real_samples is not None:
        sources.insert(0, (Cell("real data"), analysis.spec.real_samples, "."))
    shown, left_out = [], {}
    for title, given, directory in sources:
        loaded = samples.load(given, directory)
        reason = samples.objection(loaded)
        if reason is None:
            shown.append((title, loaded))
        else:
            left_out.setdefault(reason, []).append(title.text)
    drawn = [
        Picture(f"samples-{i}", png, title)
        for i, ((title, _), png) in enumerate(zip(shown, samples.draw([x for _, x in shown])))
    ]
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


def key(analysis: Analysis, arm: str, name: str | None = None) -> Cell:
    """An arm by its colour and its name, or that of what it stands for."""
    role = "baseline" if arm == analysis.spec.baseline else ""
    return Cell(name or analysis.spec.label(arm), role, arm=arm)
