"""The report of an ablation: one HTML file, the same numbers as JSON, a table for the terminal."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import diffax
from diffax.ablation.analysis import SCALES, Analysis, Metric, Spec, analyse, shortened
from diffax.ablation.jsonable import jsonable, write_json
from diffax.ablation.numerals import p_text, span
from diffax.ablation.verdict import sentence, verdict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Report:
    """What `build_report` made: two files, the table for the terminal, all the numbers."""

    html: Path
    json: Path
    table: str
    analysis: Analysis


def build_report(
    spec: Spec,
    results: Sequence[Mapping[str, Any]],
    workdir: str | os.PathLike,
    partial: bool = False,
) -> Report:
    """Writes workdir/report.html and workdir/results.json, and returns them with a plain table.

    report.html needs no other file: styles, figures and samples are inside; it has no scripts.

    Args:
      spec: question, metrics, baseline; see `analysis.Spec`.
      results: one mapping per run, see `analysis.analyse`; `grid.run_grid` returns such.
      workdir: made if it is not there.
      partial: whether runs or values may be missing; the report then says so at its top.

    Raises:
      ValueError: what `analysis.analyse` refuses, a curve without x, samples of a wrong shape.
      FileNotFoundError: a file that "samples" names.
    """
    # Loads matplotlib, which worker processes never need.
    from diffax.ablation.report_html import page

    analysis = analyse(spec, results, partial)
    made = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **environment()}
    made |= jsonable(spec.environment, "environment")
    text, numbers = page(analysis, made), report_numbers(analysis, made)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    html_path, json_path = workdir / "report.html", workdir / "results.json"
    write_json(json_path, numbers)
    html_path.write_text(text, encoding="utf-8")
    return Report(html_path, json_path, format_table(analysis), analysis)


def report_numbers(analysis: Analysis, made: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of the report and the raw results (without samples), as plain data."""
    spec = analysis.spec
    summary = {
        arm: {key: asdict(cell) for (a, key), cell in analysis.cells.items() if a == arm}
        for arm in analysis.arms
    }
    comparisons = [
        asdict(c) | {"metric": c.metric.key, "scale": c.metric.scale} for c in analysis.comparisons
    ]
    runs = [{k: v for k, v in r.items() if k != "samples"} for r in analysis.results]
    numbers = {
        "title": spec.title,
        "question": spec.question,
        "verdict": [sentence(spec, c) for c in verdict(analysis)],
        "missing": analysis.missing,
        "baseline": spec.baseline,
        "focus": spec.focus,
        "confidence": spec.confidence,
        "metrics": [asdict(m) for m in spec.metrics],
        "summary": summary,
        "comparisons": comparisons,
        "command": spec.command,
        "config": spec.config,
        "environment": made,
        "runs": runs,
    }
    return jsonable(numbers, "the report")


def format_table(analysis: Analysis) -> str:
    """The verdict and every metric as an aligned plain-text table, for the terminal."""
    spec = analysis.spec
    blocks = [f"{spec.title}\n{spec.question}"]
    if analysis.missing:
        blocks.append(f"PARTIAL: missing {shortened(analysis.missing)}")
    measured = [m for m in spec.metrics if analysis.measured(m)]
    blocks += [_metric_table(analysis, metric) for metric in measured]
    if any(c.p_holm is not None for c in analysis.comparisons):
        blocks.append("p: paired t test, Holm's correction over the comparisons of one metric")
    blocks += [sentence(spec, c) for c in verdict(analysis)]
    # Not every terminal can write the true minus sign.
    return "\n\n".join(blocks).replace("−", "-")


def _metric_table(analysis: Analysis, metric: Metric) -> str:
    spec, scale = analysis.spec, SCALES[metric.scale]
    by_row = {analysis.row(c): c for c in analysis.of_metric(metric.key)}
    sides = (spec.focus, "arm") if spec.focus else ("arm", spec.baseline)
    against = f" {scale.sign} ".join(spec.label(side) for side in sides)
    head = ["", scale.average, f"{spec.percent} interval", "n", against, f"{spec.percent} interval"]
    lines = [[*head, "p"]]
    for arm in analysis.arms:
        cell, c = analysis.cells.get((arm, metric.key)), by_row.get(arm)
        line = [spec.label(arm), "–", "", "", "", "", ""]
        if cell:
            line[1:4] = metric.text(cell.mean), span(metric.text, cell.interval), len(cell.values)
        if c:
            line[4:6] = metric.effect_text(c.effect), span(metric.effect_text, c.difference)
            line[6] = p_text(c.p_holm)
        lines.append([str(x) for x in line])
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:]))])
        for line in lines
    ]
    wish = {True: "lower is better", False: "higher is better", None: ""}[metric.lower_is_better]
    unit = f" [{metric.unit}]" if metric.unit else ""
    return "\n".join([f"{metric.label}{unit}" + f", {wish}" * bool(wish), *rows])


def environment() -> dict[str, Any]:
    """The machine and the versions of what runs here, for the record."""
    versions = {"diffax": diffax.__version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
