"""The report of an ablation: one HTML file, the same as Markdown, as JSON and for the terminal."""

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import diffax
from diffax.files import jsonable, write_json, write_text
from diffax.places import make_folder, workdir_of
from diffax.report.analysis import Analysis, analyse, shortened
from diffax.report.findings import POWERS, Finding
from diffax.report.formatting import legible, p_text, seeds_text, span
from diffax.report.spec import SCALES, Metric, Spec, effect_text, value_text
from diffax.report.verdict import effect_name, sentences, shown_effects

FOLDER = "report_files"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Report:
    """What `build_report` made: three files, the table for the terminal, all the numbers."""

    html: Path
    markdown: Path
    json: Path
    table: str
    analysis: Analysis


def build_report(
    spec: Spec,
    results: Sequence[Mapping[str, Any]],
    workdir: str | os.PathLike,
    partial: bool = False,
) -> Report:
    """Writes report.html, report.md and results.json, and returns them with a plain table.

    report.html needs no other file: styles, figures and samples are inside; it has no scripts. The
    figures of report.md are in the folder report_files beside it.

    Args:
      spec: question, metrics, baseline; see `spec.Spec`.
      results: one mapping per run, see `analysis.analyse`; `ablation.run_grid` returns such.
      workdir: made if it is not there.
      partial: whether runs or values may be missing; the report then says so at its top.

    Raises:
      ValueError: what `analysis.analyse` refuses, a curve without x, samples of a wrong shape.
      FileNotFoundError: a file that "samples" names.
    """
    # Load matplotlib, which worker processes never need.
    from diffax.report import sections

    analysis = analyse(spec, results, partial)
    made = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **_machines(results)}
    made |= jsonable(spec.environment, "environment")
    page, numbers = sections.make(analysis, made), report_numbers(analysis, made)
    html, (markdown, pictures) = page.html(), page.markdown(FOLDER)
    workdir = workdir_of(workdir)
    make_folder(workdir)
    paths = [workdir / name for name in ("report.html", "report.md", "results.json")]
    write_json(paths[2], numbers)
    write_text(paths[0], html)
    write_text(paths[1], markdown)
    make_folder(workdir / FOLDER)
    for old in (workdir / FOLDER).glob("*.png"):
        old.unlink()
    for name, content in pictures.items():
        (workdir / FOLDER / name).write_bytes(content)
    return Report(*paths, format_table(analysis), analysis)


def _machines(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the runs were made, as far as they tell: what differs is listed side by side."""
    known = [r["environment"] for r in results if r.get("environment")] or [environment()]
    found = {name: [e[name] for e in known if name in e] for e in known for name in e}
    return {
        name: values[0] if len(set(values)) == 1 else ", ".join(dict.fromkeys(map(str, values)))
        for name, values in found.items()
    }


def report_numbers(analysis: Analysis, made: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of the report and the raw results (without samples), as plain data."""
    spec = analysis.spec
    design = analysis.design

    def plain(findings: Sequence[Finding]) -> list[dict[str, Any]]:
        return [
            asdict(f) | {"metric": f.metric.key, "scale": f.metric.scale, "settled": f.settled}
            for f in findings
        ]

    asked = ("title", "question", "subject", "remarks", "baseline", "focus", "confidence")
    numbers = {
        **{name: getattr(spec, name) for name in (*asked, "command", "varied")},
        "verdict": sentences(analysis),
        "missing": analysis.missing,
        "metrics": [asdict(m) for m in spec.metrics],
        "summary": {
            arm: {key: asdict(cell) for (a, key), cell in analysis.cells.items() if a == arm}
            for arm in analysis.arms
        },
        "shown": analysis.shown,
        "axes": design and design.axes,
        "missing_combinations": design and design.missing,
        "effects": plain(analysis.effects),
        "comparisons": plain(analysis.comparisons),
        "config": _without(spec.config, spec.varied),
        "environment": made,
        "runs": [{k: v for k, v in r.items() if k != "samples"} for r in analysis.results],
    }
    return jsonable(numbers, "the report")


def _without(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A nested config without some dotted keys."""
    left: dict[str, Any] = {}
    for name, value in config.items():
        own = [k.removeprefix(f"{name}.") for k in keys if k.startswith(f"{name}.")]
        if name not in keys:
            left[name] = _without(value, own) if isinstance(value, Mapping) else value
    return left


def format_table(analysis: Analysis) -> str:
    """The verdict and every metric as an aligned plain-text table, for the terminal."""
    spec = analysis.spec
    blocks = [f"{spec.title}\n{spec.question}"]
    blocks += [f"NOTE: {remark}" for remark in spec.remarks]
    if analysis.missing:
        blocks.append(f"PARTIAL: missing {shortened(analysis.missing)}")
    measured = [m for m in spec.metrics if analysis.measured(m)]
    blocks += [_metric_table(analysis, metric) for metric in measured]
    if analysis.design is not None:
        blocks += [_effects_table(analysis, m) for m in measured if shown_effects(analysis, m)]
    if any(c.p_holm is not None for c in analysis.comparisons):
        blocks.append(
            "p: paired t test, Holm's correction over the comparisons of one metric"
            + " (over its effects, main and interactions, by themselves)" * bool(analysis.design)
            + "\n"
            "signs: exact sign-flip test, not corrected; 2 in 2^n at the least\n"
            "seeds: how many would find a difference of this size with a power of "
            + ", ".join(f"{100 * power:g}%" for power in POWERS)
        )
    blocks += sentences(analysis)
    # Not every terminal can write the true minus sign.
    return legible("\n\n".join(blocks)).replace("−", "-")


def _metric_table(analysis: Analysis, metric: Metric) -> str:
    spec, scale, shown = analysis.spec, SCALES[metric.scale], analysis.shown[metric.key]
    by_row = {analysis.row(c): c for c in analysis.of_metric(metric.key) if not c.repeats}
    sides = (spec.focus, "arm") if spec.focus else ("arm", spec.baseline)
    against = f" {scale.sign} ".join(shown.get(side) or spec.label(side) for side in sides)
    head = ["", scale.average, f"{spec.percent} interval", "n", against, f"{spec.percent} interval"]
    lines = [[*head, "p", "signs", "seeds"]]
    alone = [arm for arm in analysis.arms if (arm, metric.key) not in analysis.cells]
    for arm in [arm for arm in analysis.arms if arm in (*shown, *alone)]:
        cell, c = analysis.cells.get((arm, metric.key)), by_row.get(arm)
        line = [shown.get(arm) or spec.label(arm), "–", *[""] * 7]
        if cell:
            line[1:4] = (
                value_text(metric)(cell.mean),
                span(value_text(metric), cell.interval),
                len(cell.values),
            )
        if c:
            line[4:] = _numbers(c)
        lines.append([str(x) for x in line])
    if not by_row:
        lines = [line[:4] for line in lines]
    return "\n".join([_about(metric), *_aligned(lines)])


def _effects_table(analysis: Analysis, metric: Metric) -> str:
    head = ["", "effect", f"{analysis.spec.percent} interval", "p", "signs", "seeds", ""]
    found = shown_effects(analysis, metric)
    lines = [head, *([effect_name(e), *_numbers(e), e.outcome] for e in found)]
    return "\n".join([f"Effects on {_about(metric)}", *_aligned(lines)])


def _numbers(f: Finding) -> list[str]:
    """Effect, interval, p by t and by signs, seeds needed."""
    text = effect_text(f.metric)
    ps = p_text(f.p_holm), p_text(f.difference and f.difference.p_sign_flip)
    seeds = ", ".join(map(seeds_text, f.seeds_needed.values()))
    return [text(f.effect), span(text, f.difference), *ps, seeds]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:]))])
        for line in lines
    ]


def _about(metric: Metric) -> str:
    direction = {True: "lower is better", False: "higher is better", None: ""}[
        metric.lower_is_better
    ]
    unit = f" [{metric.unit}]" if metric.unit else ""
    return ", ".join([f"{metric.label}{unit}", *filter(None, (metric.basis, direction))])


def environment() -> dict[str, Any]:
    """The machine and the versions of what runs here, for the record."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    commit = {} if _commit() is None else {"commit": _commit()}
    return {
        "processor": _processor(),
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        "diffax": diffax.__version__,
        **commit,
        **{name: metadata.version(name) for name in PACKAGES},
    }


@functools.cache
def _commit() -> str | None:
    """The git commit of the code, where that is a checkout: marked if files were changed."""
    root = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    words = ["describe", "--always", "--exclude=*", "--abbrev=12", "--dirty= (files changed)"]
    command = [git, "--no-optional-locks", "-C", os.fspath(root), *words]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
