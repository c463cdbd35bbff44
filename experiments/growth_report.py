"""The tables and the picture of growth.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from diffax.report.figures import MUTED, PALETTE, RULE
from diffax.report.formatting import fixed, significant, tick

Points = Mapping[str, Mapping[str, Any]]

# what grows -> its label, its number, and that number as a tick says it
AXES = {
    "batch": ("batch, examples", lambda point: point["batch"], str),
    "size": ("image, pixels", lambda point: point["size"] ** 2, lambda n: f"{math.isqrt(n)}²"),
    "channels": ("width, channels", lambda point: point["channels"], str),
}
# what a row of panels shows -> its curves, {figure: label}
ROWS = {
    "training step, s": {"step": "wall clock", "step_cpu": "CPU time"},
    "compilation, s": {"compile": "wall clock", "compile_cpu": "CPU time"},
    "checkpoint, s": {
        "first_save": "first one written",
        "save": "written",
        "restore": "read",
    },
    "memory, MB": {
        "process_mb": "process, at most",
        "program_mb": "training step",
        "checkpoint_mb": "checkpoint",
    },
}
COLUMNS = {
    "parameters": "parameters",
    "step": "step, s",
    "step_cpu": "step, CPU s",
    "compile": "compile, s",
    "compile_cpu": "compile, CPU s",
    "first_save": "first save, s",
    "save": "save, s",
    "restore": "restore, s",
    "checkpoint_mb": "checkpoint, MB",
    "program_mb": "step's memory, MB",
    "process_mb": "process, MB",
}


def point_name(point: Mapping[str, int]) -> str:
    """The name of a point, from which it can be read."""
    return f"batch{point['batch']}-size{point['size']}-channels{point['channels']}"


def along(axis: str, base: Mapping[str, int], values: Sequence[int], points: Points) -> list:
    """The points of an axis, smallest first."""
    return [points[point_name({**base, axis: value})] for value in values]


def clock(point: Mapping[str, Any]) -> str:
    """The figure that tells a step's cost best: other users of a CPU don't slow its CPU time."""
    return "step_cpu" if point["backend"] == "cpu" else "step"


def slope(axis: str, figure: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """The power of what grows with which a figure grows between two points: 1 is in proportion."""
    number = AXES[axis][1]
    return math.log(after[figure] / before[figure]) / math.log(number(after) / number(before))


# --- tables ---------------------------------------------------------------------------------------


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first row is its head."""
    head, *body = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def growth_table(axis: str, members: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each point of an axis, with the power by which the step grew from the last."""
    label, number, text = AXES[axis]
    rows = [[label, *COLUMNS.values(), "power of the step"]]
    for before, point in zip([None, *members], members):
        figures = [f"{point['parameters']:,}"]
        figures += [significant(point[name], 3) for name in list(COLUMNS)[1:]]
        power = fixed(slope(axis, clock(point), before, point), 2) if before else ""
        rows.append([text(number(point)), *figures, power])
    return markdown(rows)


def summary(axis: str, members: Sequence[Mapping[str, Any]]) -> str:
    """The powers from the first to the last point of an axis."""
    number, text = AXES[axis][1:]
    first, last = members[0], members[-1]
    named = {
        clock(first): "a step",
        "program_mb": "its memory",
        "compile_cpu": "compilation",
        "checkpoint_mb": "a checkpoint",
    }
    powers = [
        f"{label} {fixed(slope(axis, name, first, last), 2)}" for name, label in named.items()
    ]
    return f"From {text(number(first))} to {text(number(last))}, powers: {', '.join(powers)}."


def too_far(apart: Sequence[Mapping[str, Any]], tolerance: float) -> list[Mapping[str, Any]]:
    """The rows that are not within the tolerance; those that hold a NaN aren't."""
    return [
        row for row in apart if not (row["parameters"] <= tolerance and row["losses"] <= tolerance)
    ]


def difference_table(apart: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each layout."""
    rows = [["processes", "devices", "layout", "parameters", "losses", "worst array"]]
    for row in apart:
        numbers = [significant(row[name], 2) for name in ("parameters", "losses", "array")]
        rows.append([str(row["processes"]), str(row["devices"]), row["layout"], *numbers])
    return markdown(rows)


# --- the picture ----------------------------------------------------------------------------------


def draw(base: Mapping[str, int], grown: Mapping[str, Sequence[int]], points: Points) -> Figure:
    """A column for what grows, a row for what it costs; grey: in proportion, through the base.

    CPU time is left out where an accelerator does the work.
    """
    on_cpu = points[point_name(base)]["backend"] == "cpu"
    figure = Figure(figsize=(2.6 * len(grown) + 2.4, 9.2), dpi=120, layout="constrained")
    panels = figure.subplots(len(ROWS), len(grown), sharey="row", sharex="col", squeeze=False)
    for row, (title, curves) in zip(panels, ROWS.items()):
        curves = {k: v for k, v in curves.items() if on_cpu or not k.endswith("_cpu")}
        for axes, (axis, values) in zip(row, grown.items()):
            members = along(axis, base, values, points)
            _curves(axes, AXES[axis][1], members, curves, points[point_name(base)])
        row[0].set_ylabel(title)
        row[-1].legend(
            loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5,
            handlelength=1.6,
        )  # fmt: skip
    for axes, (axis, values) in zip(panels[-1], grown.items()):
        label, number, text = AXES[axis]
        ticks = [number({axis: value}) for value in values]
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _, text=text: text(round(x))))
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def _curves(axes: Axes, number, members, curves: Mapping[str, str], base) -> None:
    """One panel."""
    axes.set(xscale="log", yscale="log")
    x = [number(point) for point in members]
    for i, (name, label) in enumerate(curves.items()):
        y = [point[name] for point in members]
        axes.plot(x, y, color=PALETTE[i + 1][0], marker="o", ms=3.5, lw=1.6, label=label)
    through = list(curves)[:2][-1]  # the less noisy of the first two
    line = [base[through] * n / number(base) for n in x]
    # It doesn't stretch the panel: it is cut off where the curves end.
    axes.plot(x, line, color=MUTED, lw=0.9, ls="--", zorder=0, label="in proportion",
              scaley=False)  # fmt: skip
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color=RULE, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=MUTED)


# --- all ------------------------------------------------------------------------------------------


def write(
    out: Path,
    base: Mapping[str, int],
    grown: Mapping[str, Sequence[int]],
    points: Points,
    apart: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> str:
    """Writes growth.md and growth.png into a directory; returns the text.

    Args:
      base, grown: of growth.Plan.
      points: name -> figures, of growth.merge.
      apart: of growth.differences.
      about: what the report says of the machine and the versions.
    """
    middle = points[point_name(base)]
    largest = max(max(row["parameters"], row["losses"]) for row in apart)
    verdict = "NOT within" if too_far(apart, about["tolerance"]) else "within"
    versions = ", ".join(f"{name} {about[name]}" for name in ("jax", "jaxlib", "flax", "optax"))
    # What the first round compiled, later ones find in the cache.
    compiling = "without" if about["rounds"] > 1 else "and"
    lines = [
        "# What growth costs",
        "",
        "![Cost against batch, image and width](growth.png)",
        "",
        f"Measured on {about['date']} by `{about['command']}` on {about['machine']}: device"
        f" {middle['device']} (backend {middle['backend']}), {versions}.",
        "",
        f"A U-Net of {middle['parameters']:,} parameters ({base['channels']} channels, two"
        f" resolutions, one block each) on {base['size']}x{base['size']} images in batches of"
        f" {base['batch']}, float32, Adam; one thing grows at a time. The step is the one of"
        " `diffax train`, compiled with the default optimisation, on one device.",
        "",
        f"Times are medians over {about['rounds']} x {about['times']} steps, each round in a"
        " process of its own, the rounds interleaved over the points; compilation is of the first"
        " round alone. The machine is shared and the times are noisy: read ratios between"
        " neighbouring points, and CPU time before wall clock. A power of 1 is growth in"
        " proportion, of CPU time; of an image, to its number of pixels. A step's memory is what"
        " the compiler plans for it: state, batch and temporaries. A process's is the most that it"
        f" ever held, Python, JAX and checkpoints included, {compiling} compilation; on an"
        " accelerator the device's. A checkpoint holds the parameters, their average and both"
        " moments of Adam; its time ends when all is written. The first save of a process also"
        " compiles the checksums.",
    ]
    for axis, values in grown.items():
        lines += ["", f"## {AXES[axis][0].capitalize()}", ""]
        members = along(axis, base, values, points)
        lines += [*growth_table(axis, members), "", summary(axis, members)]
    lines += [
        "",
        "## The same numbers on every layout",
        "",
        "How far a run is from that of one device after the same steps: its parameters and their"
        " average, as the norm of the difference over the norm; the loss of any step. The largest"
        f" is {significant(largest, 2)}, {verdict} the {significant(about['tolerance'], 1)} that is"
        " allowed."
        " The worst array is the largest difference in one array over that array's largest number."
        " It is larger, and nothing is asked of it: where a gradient is nearly zero, Adam divides"
        " it by its own size and makes rounding errors as large as a step.",
        "",
        "In one process: four steps of an MLP with importance-sampled times, on devices of the CPU."
        " In two processes, over gloo, of two devices each: eight steps of `diffax train` on"
        " `configs/mixture2d.py` by `launch/local.sh`, read back from the checkpoint.",
        "",
        "data: the batch is split over all devices. fsdp: the state, too. both: the state over half"
        " of them. pmap: whole copies of the state.",
        "",
        *difference_table(apart),
    ]
    text = "\n".join([*lines, ""])
    out.mkdir(parents=True, exist_ok=True)
    (out / "growth.md").write_text(text, encoding="utf-8")
    draw(base, grown, points).savefig(out / "growth.png")
    return text
