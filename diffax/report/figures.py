"""The figures of an ablation report: one function, one figure.

Each takes an `analysis.Analysis` and returns a matplotlib `Figure` (no pyplot, no global state),
which a notebook shows as it is and `svg` turns into inline SVG for a page. An arm has the same
colour in every figure, told apart also by the colour-blind. Titles and legends are left to the
page.

Curves come from a result's "curves", {name: {column: list}}. The column "step", "t" or "log_snr"
(the first of these that is there) is x, the others are y. A column may hold None where there is no
finite number. The curve "schedule" has the columns t, log_snr and, where the schedule was learned,
log_snr_before. Seeds with the same x are drawn as their mean with a band from lowest to highest,
others as one thin line each, and what has one point alone as a dot.
"""

import html
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from scipy import special

from diffax import plots
from diffax.data.images import encode_png
from diffax.files import read_npz
from diffax.places import in_bucket, path_of
from diffax.report.analysis import Analysis, Cell
from diffax.report.findings import Effect, Finding, marginal_means
from diffax.report.formatting import for_matplotlib, legible, tick
from diffax.report.spec import SCALES, Metric
from diffax.report.verdict import effect_name

INK, MUTED, RULE, PAPER = "#1d2025", "#666c74", "#d9dbde", "#fdfdfb"
# (on white, on near-black): the first is the baseline's, the second the focus's. Any two differ by
# 13 or more in CIELAB under simulated protanopia, deuteranopia and tritanopia (Machado 2009).
PALETTE = (
    ("#474d55", "#ccd1d8"),
    ("#0b62b3", "#4f9fee"),
    ("#d07a00", "#f2a541"),
    ("#0a8f6a", "#2fbf92"),
    ("#b5377f", "#e878b8"),
    ("#45aee0", "#a5dcf8"),
)
_WIDTH = 3.9  # inches; one column on a phone, three abreast on a desk
_STYLE = {
    **{"font.size": 10, "xtick.labelsize": 9.5, "ytick.labelsize": 10, "grid.color": RULE},
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.7),
    **dict.fromkeys(("xtick.major.width", "ytick.major.width"), 0.7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "svg.fonttype": "none",  # text stays text: small, sharp, in the page's own font
}


def palette_index(analysis: Analysis) -> dict[str, int]:
    """arm -> its number in all figures: baseline 0, focus (if any) 1, then the others."""
    first = filter(None, (analysis.spec.baseline, analysis.spec.focus))
    return {arm: i for i, arm in enumerate(dict.fromkeys([*first, *analysis.arms]))}


def drawn_arms(analysis: Analysis) -> dict[str, str]:
    """The arms whose curves are drawn, with their names: of those that share their trainings the
    first, which goes by what they have in common."""
    groups: dict[Hashable, list[str]] = {}
    for arm in analysis.arms:
        runs = [r for r in analysis.results if r["arm"] == arm]
        shared = tuple(r["training"]["directory"] for r in runs if r.get("training"))
        groups.setdefault(shared or arm, []).append(arm)
    names = {
        arms[0]: analysis.spec.common_label(arms) if len(arms) > 1 else analysis.spec.label(arms[0])
        for arms in groups.values()
    }
    distinct = len(set(names.values())) == len(names)
    return names if distinct else {arm: analysis.spec.label(arm) for arm in names}


def drawn_cells(analysis: Analysis, metric: Metric) -> dict[str, Cell]:
    """The arms that stand for a metric and whose values have a place on its axis, with these."""
    shown = [arm for arm in analysis.arms if arm in analysis.shown[metric.key]]
    cells = {arm: analysis.cells.get((arm, metric.key)) for arm in shown}
    return {arm: cell for arm, cell in cells.items() if cell and cell.on_scale}


def line_style(index: int) -> tuple[str, str]:
    """(colour on white, dash) of the arm of that number: dashes tell arms of one colour apart."""
    return PALETTE[index % len(PALETTE)][0], ("-", "--", ":", "-.")[index // len(PALETTE) % 4]


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for inline use.

    Colours become the page's CSS variables (--ink, --muted, --rule, --paper, --c0, --c1, ...) and
    the font becomes the page's. `name` makes its ids unique on the page; `description` is read
    aloud.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        text = _saved(figure, format="svg", transparent=True, metadata={"Date": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    variables = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}
    variables |= {light: f"--c{i}" for i, (light, _) in enumerate(PALETTE)}

    def adapted(tag: re.Match) -> str:
        own = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag.group())
        own = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", own)
        own = re.sub(r"font-family: [^;\"]*;?", "", own)
        for colour, variable in variables.items():
            own = own.replace(colour, f"var({variable})")
        return own

    text = re.sub(r"<[^>]*>", adapted, text)  # tags alone: a label stays as it is
    label = html.escape(legible(description))
    box = re.search(r'viewBox="[^"]*"', text).group()
    return f'<svg {box} role="img" aria-label="{label}">' + text[text.index(">") + 1 :]


def png(figure: Figure) -> bytes:
    """The figure as PNG, dark on white."""
    with matplotlib.rc_context(_STYLE):
        return _saved(figure, format="png", dpi=150, facecolor="white", metadata={"Software": ""})


def _saved(figure: Figure, **how) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A reader's browser has glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(buffer, **how)
    return buffer.getvalue()


def legend(analysis: Analysis) -> Figure:
    """The arms of the curves with their colours and dashes, in order of display."""
    arms = drawn_arms(analysis)
    handles, labels = [], []
    for arm, name in arms.items():
        colour, dash = line_style(palette_index(analysis)[arm])
        role = " (baseline)" if arm == analysis.spec.baseline else ""
        labels.append(_wrapped(name + role, 44, 2))
        handles.append(Line2D([], [], color=colour, ls=dash, lw=2.2))
    with matplotlib.rc_context(_STYLE):
        lines = sum(1 + label.count("\n") for label in labels)
        figure = Figure(figsize=(_WIDTH, 0.1 + 0.21 * lines))
        figure.add_axes((0, 0, 1, 1)).axis("off")  # a notebook shows no figure without axes
        drawn = figure.legend(handles, ["-"] * len(arms), loc="center left", frameon=False)
        # matplotlib leaves labels out that begin with "_", unless they are set afterwards.
        for text, label in zip(drawn.get_texts(), labels):
            text.set(text=label, color=INK)
        return figure


def metric_points(analysis: Analysis, metric: Metric) -> Figure:
    """Every arm's mean with its interval (bar) and the seeds (small dots)."""
    cells = drawn_cells(analysis, metric)
    figure, ax = _rows([analysis.shown[metric.key][arm] for arm in cells])
    for y, (arm, cell) in enumerate(cells.items()):
        colour = _colour(analysis, arm)
        seeds = list(cell.values.values())
        ax.plot(seeds, np.full(len(seeds), y + 0.27), "o", color=colour, alpha=0.6, ms=3, mew=0)
        if cell.interval:
            ax.plot([cell.interval.low, cell.interval.high], [y, y], color=colour, lw=2)
        ax.plot(cell.mean, y, "o", color=colour, ms=6)
    scale_axis(ax, "x", metric.scale)
    ax.set_xlabel(_wrapped(metric.unit, 40))
    return figure


def forest(analysis: Analysis, metric: Metric) -> Figure:
    """Paired differences or ratios with their intervals; the line is "no effect".

    Filled where the outcome is decided, hollow where it is not.
    """
    rows = [c for c in analysis.of_metric(metric.key) if not c.repeats]
    focus, sign = analysis.spec.focus, SCALES[metric.scale].sign
    names = [c.names[0] if focus is None else c.names[1] for c in rows]
    colours = [_colour(analysis, analysis.row(c)) for c in rows]
    sides = "arm" if focus is None or not rows else rows[0].names[0]
    other = rows[0].names[1] if focus is None and rows else "arm"
    return _forest(metric, rows, names, colours, f"{sides} {sign} {other}")


def effects(analysis: Analysis, metric: Metric, rows: Sequence[Effect]) -> Figure:
    """The same of main effects, in one colour, and of interactions (×), in another."""
    names = [effect_name(e) for e in rows]
    colours = [PALETTE[1 if e.is_main else 2][0] for e in rows]
    kind = {"linear": "difference", "log": "ratio"}[metric.scale]
    return _forest(metric, rows, names, colours, kind)


def _forest(
    metric: Metric, rows: Sequence[Finding], names: Sequence[str], colours: Sequence[str], what: str
) -> Figure:
    figure, ax = _rows(names)
    ax.axvline(1.0 if metric.scale == "log" else 0.0, color=INK, lw=0.9)
    for y, (f, colour) in enumerate(zip(rows, colours)):
        if f.difference:
            ax.plot([f.difference.low, f.difference.high], [y, y], color=colour, lw=2)
        ax.plot(f.effect, y, "o", ms=6.5, mfc=colour if f.decided else PAPER, mec=colour, mew=1.6)
    scale_axis(ax, "x", metric.scale)
    unit = f", {metric.unit}" if metric.unit and metric.scale == "linear" else ""
    better = {True: "  (← better)", False: "  (better →)", None: ""}[metric.lower_is_better]
    label = _wrapped(f"{what}{unit}", 32)
    full = len(label.rpartition("\n")[2]) + len(better) > 32
    ax.set_xlabel(label + (f"\n{better.strip()}" if full else better))
    return figure


def interaction(analysis: Analysis, metric: Metric, axes: Sequence[str]) -> Figure | None:
    """Means over the seeds and the other axes: levels of the first axis from left to right, a line
    for each level of the second. None where no balanced part of the design has them all."""
    own = {c: analysis.cells.get((arm, metric.key)) for c, arm in analysis.design.cells.items()}
    values = {c: cell.values for c, cell in own.items() if cell and cell.on_scale}
    means = marginal_means(analysis.design, metric, values, axes)
    if not means:
        return None
    first, second = (analysis.design.axes[axis] for axis in axes)
    figure, ax = _panel(2.7 + 0.19 * len(second))
    handles = []
    for i, level in enumerate(second):
        colour, dash = line_style(i)
        y = [means.get((other, level), np.nan) for other in first]
        handles += ax.plot(range(len(first)), y, marker="o", ms=5, color=colour, ls=dash, lw=1.8)
    ax.set_xticks(range(len(first)), [_wrapped(level, 14) for level in first])
    ax.set_xlabel(_wrapped(axes[0], 40))
    ax.set_xlim(-0.3, len(first) - 0.7)
    ax.tick_params(axis="x", length=0, labelcolor=INK)
    ax.set_ylabel(_wrapped(metric.unit, 30))
    scale_axis(ax, "y", metric.scale)
    ax.grid(axis="y")
    with matplotlib.rc_context(_STYLE):
        drawn = figure.legend(handles, ["-"] * len(second), loc="outside upper left", frameon=False)
    for text, level in zip(drawn.get_texts(), second):
        text.set(text=_wrapped(f"{axes[1]}={level}", 44, 1), color=INK)
    return figure


def schedule_log_snr(analysis: Analysis) -> Figure:
    """log-SNR against t; before learning dashed."""
    return _schedule(analysis, lambda log_snr: log_snr)


def schedule_alpha_bar(analysis: Analysis) -> Figure:
    """alpha_bar = sigmoid(log-SNR) against t; before learning dashed."""
    return _schedule(analysis, special.expit)


def curve(analysis: Analysis, name: str) -> Figure:
    """The curve of that name for all arms that have it; y on a log axis if it spans decades."""
    figure, ax = _panel()
    values, x_name, drawn = [], "", drawn_arms(analysis)
    for arm, index in palette_index(analysis).items():
        curves = _curves(analysis, arm, name) if arm in drawn else []
        if not curves:
            continue
        x_name = x_column(curves[0])
        for y_name in (column for column in curves[0] if column != x_name):
            ys = [_array(c, y_name) for c in curves]
            values += ys
            _lines(ax, [_array(c, x_name) for c in curves], ys, *line_style(index))
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    if finite.size and finite.min() > 0 and finite.max() > 30 * finite.min():
        scale_axis(ax, "y", "log")
    x_labels = {"step": "training step", "t": "t", "log_snr": "log-SNR  (noisy ←  → clean)"}
    ax.set_xlabel(x_labels[x_name])
    ax.grid(axis="y")
    return figure


def curve_names(analysis: Analysis) -> list[str]:
    """Names of all curves of the results but "schedule", in the order in which they come."""
    names = dict.fromkeys(name for r in analysis.results for name in r.get("curves") or {})
    return [name for name in names if name != "schedule"]


def x_column(columns: Sequence[str]) -> str:
    """Which column of a curve is x.

    Raises:
      ValueError: neither "step" nor "t" nor "log_snr" is there.
    """
    for name in ("step", "t", "log_snr"):
        if name in columns:
            return name
    raise ValueError(f"a curve needs a column step, t or log_snr, got {list(columns)}")


def _schedule(analysis: Analysis, transform: Callable) -> Figure:
    figure, ax = _panel()
    drawn = drawn_arms(analysis)
    for arm, index in palette_index(analysis).items():
        curves = _curves(analysis, arm, "schedule") if arm in drawn else []
        colour, dash = line_style(index)
        t = [_array(c, "t") for c in curves]
        if curves and "log_snr_before" in curves[0]:
            before = [transform(_array(c, "log_snr_before")) for c in curves]
            # On top: a schedule often starts as one of the others.
            _lines(ax, t, before, colour, (0, (5, 5)), width=1.2, band=0.0, zorder=4)
        width = 2.6 if arm == analysis.spec.focus else 1.6
        _lines(ax, t, [transform(_array(c, "log_snr")) for c in curves], colour, dash, width)
    ax.set_xlabel("t  (clean ←  → noisy)")
    ax.grid(axis="y")
    return figure


def _curves(analysis: Analysis, arm: str, name: str) -> list[dict]:
    found = [r["curves"].get(name) for r in analysis.results if r["arm"] == arm and r.get("curves")]
    return [c for c in found if c]


def _array(curve: dict, column: str) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in curve[column]], np.float64)


def _lines(ax: Axes, xs, ys, colour, dash, width=1.6, band=0.15, zorder=3):
    if not xs:
        return
    if any(x.shape != xs[0].shape or not np.array_equal(x, xs[0], equal_nan=True) for x in xs):
        for x, y in zip(xs, ys):
            _line(ax, x, y, color=colour, ls=dash, lw=0.7 * width, alpha=0.7, zorder=zorder)
        return
    y = np.stack(ys)
    if band and len(ys) > 1:
        x, low = _thinned(xs[0], y.min(axis=0))
        # The band of a single point has no width but that of its edge.
        edge = 0 if x.size > 1 else 4
        high = _thinned(xs[0], y.max(axis=0))[1]
        ax.fill_between(x, low, high, color=colour, alpha=band, lw=edge)
    _line(ax, xs[0], y.mean(axis=0), color=colour, ls=dash, lw=width, zorder=zorder)


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, **style) -> None:
    x, y = _thinned(x, y)
    alone = np.isfinite(y).sum() == 1
    ax.plot(x, y, marker="o" if alone else "", ms=5, **style)


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Means of equal blocks, the last one as long as what is left, so that a long training curve
    does not swell the page."""
    starts = np.arange(0, x.size, max(1, -(-x.size // most)))
    sizes = np.diff(starts, append=x.size)
    return tuple(np.add.reduceat(v, starts) / sizes for v in (x, y))


def _colour(analysis: Analysis, arm: str) -> str:
    return line_style(palette_index(analysis)[arm])[0]


def _panel(height: float = 2.7) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        ax = figure.add_subplot()
        ax.xaxis.set_major_locator(MaxNLocator(5))
        return figure, ax


def _rows(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A panel with one named row per arm, the first on top."""
    wrapped = [_wrapped(label, 24) for label in labels]
    lines = 1 + max((label.count("\n") for label in wrapped), default=0)
    figure, ax = _panel(0.75 + max(0.34, 0.1 + 0.17 * lines) * len(labels))
    ax.set_yticks(range(len(labels)), wrapped)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    return figure, ax


def _wrapped(text: str, width: int, most: int = 4) -> str:
    """A user's text in lines of some characters, at most so many lines; no formula, no markup."""
    return "\n".join(
        textwrap.wrap(for_matplotlib(text), width, max_lines=most, placeholder=" …") or [""]
    )


def scale_axis(ax: Axes, axis: str, scale: str) -> None:
    """A log axis with few ticks that read as plain numbers, however narrow its range."""
    if scale != "log":
        return
    getattr(ax, f"set_{axis}scale")("log")
    low, high = getattr(ax, f"get_{axis}lim")()
    decades = np.log10(high / low)
    if decades < 1:
        ticks = MaxNLocator(3).tick_values(low, high)
    else:
        step = max(1, int(np.ceil(decades / 5)))
        powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1, step)
        ticks = np.outer(powers, (1, 2, 5) if decades < 2 else (1,)).ravel()
    which = getattr(ax, f"{axis}axis")
    which.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high and t > 0]))
    which.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    which.set_minor_locator(NullLocator())
    which.set_minor_formatter(NullFormatter())


# --- samples --------------------------------------------------------------------------------------


_MOST_SAMPLES = 36  # images or points × 100 that one drawing shows


def sample_pictures(samples: Sequence[tuple[Any, str | Path]]) -> list[bytes]:
    """One PNG for each set of samples, points and signals on axes that all share.

    Args:
      samples: pairs of samples and the directory in which a relative path starts. Samples are an
        array (or nested lists), the path of an .npz file that holds one as "samples" (or as its
        only array), or the path of a .png file, which is taken as it is. An array holds uint8
        images (n, H, W), (n, H, W, 1) or (n, H, W, 3); or real data: images (n, H, W, 1 or 3) in
        [-1, 1], signals (n, L, C) or points in the plane (n, 2). What is not finite shows as 0.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an array of another type or shape.
    """
    return draw_samples([load_samples(*pair) for pair in samples])


def draw_samples(loaded: Sequence[np.ndarray | bytes]) -> list[bytes]:
    """`sample_pictures` of what `load_samples` gives."""
    arrays = [a for a in loaded if not isinstance(a, bytes)]
    real = [np.nan_to_num(a, posinf=0, neginf=0) for a in arrays if a.ndim < 4]
    limits = (min(a.min() for a in real), max(a.max() for a in real)) if real else (0, 1)
    return [a if isinstance(a, bytes) else _drawn(a, limits) for a in loaded]


def _drawn(array: np.ndarray, limits: tuple[float, float]) -> bytes:
    array = np.nan_to_num(array, posinf=0, neginf=0)
    if array.ndim == 4:
        return encode_png(plots.image_grid(array[:_MOST_SAMPLES]))
    buffer = io.BytesIO()
    figure = plots.sample_figure(array[: 100 * _MOST_SAMPLES], limits)
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def load_samples(samples: Any, directory: str | Path) -> np.ndarray | bytes:
    """One pair of those that `sample_pictures` takes: an array, or the content of a PNG file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that can't be read, which is named; or an array of another type or shape.
    """
    if isinstance(samples, (str, Path)):
        path = path_of(samples if in_bucket(samples) else path_of(directory) / samples)
        if not path.exists():
            raise FileNotFoundError(f"samples: no file {path}")
        if path.suffix == ".png":
            return path.read_bytes()

        def pick(names: Sequence[str]) -> Sequence[str]:
            if not names:
                raise ValueError(f"samples: {path} holds no array")
            return ["samples"] if "samples" in names else names[:1]

        (samples,) = read_npz(path, pick).values()
    array = np.asarray(samples)
    if isinstance(samples, list) and array.dtype.kind in "iu":  # JSON does not know uint8
        array = array.astype(np.uint8)
    array = array[..., None] if array.dtype == np.uint8 and array.ndim == 3 else array
    shape = array.shape
    axes = {"uint8": (4,)}.get(str(array.dtype), (2, 3, 4) if array.dtype.kind == "f" else ())
    if len(shape) in axes and (len(shape) < 4 or shape[-1] in (1, 3)):
        return array
    raise ValueError(
        "samples must be uint8 images (n, H, W[, 1 or 3]), or real images (n, H, W, 1 or 3), "
        f"signals (n, L, C) or points (n, 2), got {array.dtype} {shape}"
    )
