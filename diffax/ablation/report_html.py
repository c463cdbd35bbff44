"""The page of an ablation report: numbers and figures of an `Analysis` as one HTML text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from diffax.ablation import figures, samples
from diffax.ablation.analysis import SCALES, Analysis, Comparison, Metric, shortened
from diffax.ablation.grid import format_seconds
from diffax.ablation.jsonable import flatten, jsonable
from diffax.ablation.numerals import p_text, span
from diffax.ablation.report_style import stylesheet
from diffax.ablation.verdict import claim, conclusion, verdict

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
    "gradient_variance": (
        "Gradient variance",
        "How noisy the gradient is along training, for the arms that log it.",
    ),
}
_MARKS = {"lower": "▼", "higher": "▲"}


def page(analysis: Analysis, made: Mapping[str, Any]) -> str:
    """The whole report as HTML: no scripts, no other files, nothing from the net.

    Args:
      analysis: what to show.
      made: what to list under "Machine and versions".
    """
    spec = analysis.spec
    body = [
        f'<header><p class="eyebrow">diffax ablation</p><h1>{escape(spec.title)}</h1>'
        f'<p class="question">{escape(spec.question)}</p></header>',
        _partial(analysis),
        _verdict(analysis),
        _facts(analysis, made),
        _results(analysis),
        _differences(analysis),
        _arms(analysis),
        _curves(analysis),
        _samples(analysis),
        _making(analysis, made),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(spec.title)}</title>\n<style>{stylesheet()}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}\n</main>\n</body>\n</html>\n"
    )


def _partial(analysis: Analysis) -> str:
    if not analysis.missing:
        return ""
    return (
        '<p class="partial"><b>Partial report.</b> Not there yet: '
        f"{escape(shortened(analysis.missing))}. Comparisons use the seeds that both arms have.</p>"
    )


def _verdict(analysis: Analysis) -> str:
    stated = verdict(analysis)
    if not stated:
        return '<section class="verdict"><p class="headline">Nothing to compare yet.</p></section>'
    # The headline says how many seeds; the others only where they rest on fewer.
    lines = [
        f"{escape(claim(analysis.spec, c, pairs=i == 0 or c.pairs != stated[0].pairs))}: "
        f"<strong>{escape(conclusion(c))}.</strong>"
        for i, c in enumerate(stated)
    ]
    rest = "".join(
        f'<li><span class="mark" aria-hidden="true">{_MARKS.get(c.outcome, "○")}</span>{line}</li>'
        for c, line in zip(stated[1:], lines[1:])
    )
    total = sum(c.metric.main for c in analysis.comparisons)
    more = f"<p>All {total} comparisons are in the table below.</p>" if total > len(lines) else ""
    return (
        f'<section class="verdict" aria-label="Verdict"><p class="headline">{lines[0]}</p>'
        f"<ul>{rest}</ul>{more}</section>"
    )


def _facts(analysis: Analysis, made: Mapping[str, Any]) -> str:
    seconds = [r["seconds"] for r in analysis.results if r.get("seconds") is not None]
    facts = {
        "arms": len(analysis.arms),
        "seeds": len(analysis.seeds),
        "runs": len(analysis.results),
        "run time": format_seconds(sum(seconds)) if seconds else "not recorded",
        "made": str(made["created"])[:10],
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _results(analysis: Analysis) -> str:
    spec = analysis.spec
    metrics = [m for m in spec.metrics if analysis.measured(m)]
    head = "".join(
        f'<th scope="col">{escape(m.label)}{_arrow(m)}<small>{escape(_unit(m))}</small></th>'
        for m in metrics
    )
    rows = []
    for arm in analysis.arms:
        cells = "".join(_value(analysis.cells.get((arm, m.key)), m) for m in metrics)
        kind = ' class="focus"' if arm == spec.focus else ""
        rows.append(f'<tr{kind}><th scope="row">{_key(analysis, arm)}</th>{cells}</tr>')
    caption = (
        f"Mean over seeds, and under it the {spec.percent} interval by Student’s t; on the "
        "logarithm where marked geometric. An arrow says whether lower or higher is better. These "
        "intervals hold the spread between seeds, which a paired comparison removes: to compare "
        "two arms, look at the differences below."
    )
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return _section("Results", _table(table, "results"), caption)


def _unit(metric: Metric) -> str:
    average = "geometric" if metric.scale == "log" else ""
    return ", ".join(x for x in (metric.unit, average) if x)


def _arrow(metric: Metric) -> str:
    wish = {True: ("lower", "↓"), False: ("higher", "↑")}.get(metric.lower_is_better)
    return f'&nbsp;<abbr title="{wish[0]} is better">{wish[1]}</abbr>' if wish else ""


def _value(cell, metric: Metric) -> str:
    if cell is None:
        return "<td>–</td>"
    interval = span(metric.text, cell.interval) if cell.interval else "one seed"
    return f"<td>{metric.text(cell.mean)}<small>{interval}</small></td>"


def _differences(analysis: Analysis) -> str:
    if not analysis.comparisons:
        return ""
    main = [m for m in analysis.spec.metrics if m.main and analysis.of_metric(m.key)]
    panels = [
        _panel(
            f"forest-{i}",
            figures.forest(analysis, m),
            m.label,
            {"linear": "", "log": "Ratios, on a log axis."}[m.scale],
        )
        for i, m in enumerate(main)
    ]
    rows = "".join(_comparison(analysis, c) for c in analysis.comparisons)
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("", "effect", f"{analysis.spec.percent} interval", "pairs", "p", "reading")
    )
    table = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    caption = (
        "Each row compares two arms run with the same seeds. They differ where the interval leaves "
        "out the upright line, no effect. Filled marks are decided also after Holm’s correction "
        "for the comparisons of that metric; hollow ones are not. The tests are paired t tests, on "
        "the logarithm for ratios (÷); p is corrected."
    )
    return _section("Paired differences", _grid(panels) + _table(table, "differences"), caption)


def _comparison(analysis: Analysis, c: Comparison) -> str:
    spec, metric = analysis.spec, c.metric
    sign = SCALES[metric.scale].sign
    new = c is analysis.of_metric(metric.key)[0]
    heading = (
        f'<tr class="group"><th colspan="6" scope="rowgroup">{escape(metric.label)}'
        f"{_arrow(metric)}<small>{escape(metric.unit)}</small></th></tr>"
        if new
        else ""
    )
    words = {"suggested": "undecided after correction", "same": "the same", "unknown": "one pair"}
    side = f"{escape(spec.label(c.arm))} {sign} {escape(spec.label(c.reference))}"
    better = {True: ", better", False: ", worse", None: ""}[c.better]
    reading = f"{_MARKS.get(c.outcome, '○')} {words.get(c.outcome, c.outcome)}{better}"
    return (
        f'{heading}<tr><th scope="row">{_swatch(analysis, analysis.row(c))}{side}</th>'
        f"<td>{metric.effect_text(c.effect)}</td><td>{span(metric.effect_text, c.difference)}</td>"
        f'<td>{c.pairs}</td><td>{escape(p_text(c.p_holm))}</td><td class="text">{reading}</td></tr>'
    )


def _arms(analysis: Analysis) -> str:
    main = [m for m in analysis.spec.metrics if m.main and analysis.measured(m)]
    panels = [
        _panel(
            f"points-{i}",
            figures.metric_points(analysis, m),
            m.label,
            "Log axis: equal steps are equal factors." if m.scale == "log" else "",
        )
        for i, m in enumerate(main)
    ]
    parts = [m for m in analysis.spec.metrics if m.key in analysis.spec.parts]
    if parts and all(analysis.measured(m) for m in parts):
        names = ", ".join(m.label for m in parts)
        caption = f"From full to pale: {names}. The number is their sum."
        panels.append(_panel("parts", figures.parts(analysis), "What it is made of", caption))
    caption = (
        f"Large dots are means, bars their {analysis.spec.percent} intervals, small dots the "
        "single seeds. Look at how far the arms lie apart beside the spread of their seeds."
    )
    return _section("Each arm by itself", _grid(panels), caption)


def _curves(analysis: Analysis) -> str:
    panels = []
    learned = [_has(r, "schedule", "log_snr_before") for r in analysis.results]
    if any(_has(r, "schedule", "log_snr") for r in analysis.results):
        dashed = " Dashed: before learning." if any(learned) else ""
        panels += [
            _panel(
                "log-snr",
                figures.schedule_log_snr(analysis),
                "Schedule: log-SNR",
                f"Where a curve is flat, the schedule spends its time.{dashed}",
            ),
            _panel(
                "alpha-bar",
                figures.schedule_alpha_bar(analysis),
                "Schedule: signal left",
                "The share of the signal in the variance, ᾱ = sigmoid(log-SNR): how fast the image "
                f"goes.{dashed}",
            ),
        ]
    for i, name in enumerate(figures.curve_names(analysis)):
        title, caption = CURVES.get(name, (name.replace("_", " ").capitalize(), ""))
        panels.append(_panel(f"curve-{i}", figures.curve(analysis, name), title, caption))
    if not panels:
        return ""
    legend = "".join(f"<li>{_key(analysis, arm)}</li>" for arm in analysis.arms)
    caption = "Lines are means over the seeds, bands reach from the lowest seed to the highest."
    return _section("Curves", f'<ul class="legend">{legend}</ul>{_grid(panels)}', caption)


def _has(result: Mapping[str, Any], name: str, column: str) -> bool:
    return column in ((result.get("curves") or {}).get(name) or {})


def _samples(analysis: Analysis) -> str:
    by_seed = {}
    for r in analysis.results:
        if r.get("samples") is not None:
            by_seed.setdefault(r["seed"], {})[r["arm"]] = r
    if not by_seed:
        return ""
    # The seed that most arms have; the first of those.
    seed = max(sorted(by_seed), key=lambda s: len(by_seed[s]))
    arms = [arm for arm in analysis.arms if arm in by_seed[seed]]
    sources = [(by_seed[seed][a]["samples"], by_seed[seed][a].get("directory", ".")) for a in arms]
    titles = [_key(analysis, arm) for arm in arms]
    names = [f"samples of {analysis.spec.label(arm)}" for arm in arms]
    if analysis.spec.real_samples is not None:
        sources.insert(0, (analysis.spec.real_samples, "."))
        titles.insert(0, "real data")
        names.insert(0, "real data")
    drawn = "".join(map(_picture, samples.pictures(sources), names, titles))
    caption = f"The first samples of seed {seed}, not selected."
    return _section("Samples", f'<div class="samples">{drawn}</div>', caption)


def _picture(data: bytes, alt: str, title: str) -> str:
    source = base64.b64encode(data).decode()
    return (
        f'<figure><h3>{title}</h3><img alt="{escape(alt)}" '
        f'src="data:image/png;base64,{source}"></figure>'
    )


def _making(analysis: Analysis, made: Mapping[str, Any]) -> str:
    spec = analysis.spec
    text = "".join(f"<p>{escape(part)}</p>" for part in spec.method.split("\n\n") if part.strip())
    if spec.command:
        text += f"<h3>Run it again</h3><pre>{escape(spec.command)}</pre>"
    seconds = {
        arm: [r["seconds"] for r in analysis.results if r["arm"] == arm and r.get("seconds")]
        for arm in analysis.arms
    }
    times = {
        spec.label(arm): f"{format_seconds(sum(s) / len(s))} per run"
        for arm, s in seconds.items()
        if s
    }
    seeds = {"seeds": ", ".join(str(seed) for seed in analysis.seeds)}
    text += _listing("Time taken", times) + _listing("Machine and versions", made)
    text += _listing("Configuration", {**seeds, **flatten(jsonable(spec.config, "config"))})
    return _section("How this was made", text, "")


def _listing(title: str, items: Mapping[str, Any]) -> str:
    if not items:
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in items.items()
    )
    return f'<h3>{escape(title)}</h3><dl class="listing">{rows}</dl>'


def _section(title: str, content: str, caption: str) -> str:
    note = f'<p class="note">{escape(caption)}</p>' if caption else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>\n"


def _table(content: str, kind: str) -> str:
    return f'<div class="scroll"><table class="{kind}">{content}</table></div>'


def _grid(panels: Iterable[str]) -> str:
    return f'<div class="panels">{"".join(panels)}</div>'


def _panel(name: str, figure, title: str, caption: str) -> str:
    drawing = figures.svg(figure, name, f"{title}. {caption}")
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{drawing}{note}</figure>"


def _key(analysis: Analysis, arm: str) -> str:
    role = {analysis.spec.baseline: "<small>baseline</small>"}.get(arm, "")
    name = escape(analysis.spec.label(arm))
    return f'<span class="key">{_swatch(analysis, arm)}{name}{role}</span>'


def _swatch(analysis: Analysis, arm: str) -> str:
    index = figures.palette_index(analysis)[arm]
    dash = {"-": "none", "--": "5 3", ":": "1.5 2.5", "-.": "5 2 1.5 2"}[
        figures.line_style(index)[1]
    ]
    return (
        '<svg class="swatch" viewBox="0 0 20 8" aria-hidden="true">'
        '<line x1="1" y1="4" x2="19" y2="4" '
        f'style="stroke:var(--c{index % len(figures.PALETTE)})" stroke-dasharray="{dash}"/></svg>'
    )
