"""Pictures: samples as arrays of pixels, schedules as figures."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax import process
from diffax.data.dataset import to_8_bits
from diffax.process import AnySchedule
from diffax.rates import Rate

MIN_WIDTH = 512  # pixels; smaller grids are enlarged, each value to a square of pixels


def image_grid(x: np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Images side by side, row by row, on a grey ground.

    Args:
      x: (N, H, W, C) uint8, or in [-1, 1] (what lies beyond is clipped), C = 1 or 3.
      columns: images in a row; by default about the square root of N, with few places left empty.
      gap: pixels between images.

    Returns:
      (height, width, C) uint8.
    """
    x = to_8_bits(np.asarray(x))
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"x has shape {x.shape}; images are (N, H, W, 1) or (N, H, W, 3)")
    num, height, width, channels = x.shape
    side = math.ceil(math.sqrt(num))
    columns = columns or min(range(side, side + side // 2 + 1), key=lambda c: (-num % c, c))
    rows = math.ceil(num / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    grid = np.full(shape, 128, np.uint8)
    for i, image in enumerate(x):
        top, left = (k * (size + gap) + gap for k, size in zip(divmod(i, columns), (height, width)))
        grid[top : top + height, left : left + width] = image
    times = math.ceil(MIN_WIDTH / grid.shape[1])
    return grid.repeat(times, axis=0).repeat(times, axis=1)


def sample_figure(x: np.ndarray, limits: tuple[float, float] | None = None) -> Any:
    """A matplotlib Figure of points (N, D), by their first two coordinates (one over its index), or
    of 16 signals (N, L, C) at most.

    `limits`: of all axes, which are then not shown; drawn in a grey for light and dark pages.
    """
    num = 1 if x.ndim == 2 else min(len(x), 16)
    columns = math.ceil(math.sqrt(num))
    figure = _figure(5, 5)
    panels = figure.subplots(math.ceil(num / columns), columns, squeeze=False).ravel()
    style = {} if limits is None else {"color": "#80868e"}
    if x.ndim == 2:
        first, second = (np.arange(len(x)), x[:, 0]) if x.shape[1] == 1 else x[:, :2].T
        panels[0].plot(first, second, ".", ms=4, mew=0, alpha=0.7, **style)
        panels[0].set_aspect("equal" if x.shape[1] > 1 else "auto")
    else:
        for axes, signal in zip(panels, x):
            axes.plot(signal, lw=0.7, **style)
    for axes in panels[num:] if limits is None else panels:
        axes.set_axis_off()
    if limits is not None:
        sides = ("xlim", "ylim") if x.ndim == 2 and x.shape[1] > 1 else ("ylim",)
        for axes in panels:
            axes.set(**dict.fromkeys(sides, limits))
    return figure


def picture(x: np.ndarray) -> np.ndarray:
    """Samples as one picture: points (N, D), signals (N, L, C) or images (N, H, W, C).

    Returns:
      (height, width, 1 or 3) uint8.
    """
    x = np.asarray(x)
    if x.ndim == 4:
        return image_grid(x)
    if x.ndim not in (2, 3):
        raise ValueError(f"x has shape {x.shape}; drawn are (N, D), (N, L, C) and (N, H, W, C)")
    canvas = sample_figure(x).canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_comparison(samples: Mapping[str, np.ndarray]) -> Any:
    """A matplotlib Figure: each entry's samples as one picture under its name, side by side."""
    width = min(2.6, 16 / len(samples))
    figure = _figure(width * len(samples), width + 0.3)
    for axes, (name, x) in zip(figure.subplots(1, len(samples), squeeze=False)[0], samples.items()):
        pixels = picture(x)
        axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray")
        axes.set_title(name, fontsize=10, parse_math=False)  # a name is no formula
        axes.set_axis_off()
    return figure


# --- schedules ----------------------------------------------------------------------------------

_INK, _FAINT = "#0b6fa4", "#d4d4d4"
_POINTS = 501


def draw_schedules(chosen: Mapping[str, AnySchedule], num_steps: int = 1000) -> Any:
    """A matplotlib Figure: alpha_bar, log-SNR and beta against t, a row for each schedule.

    Behind each curve stand those of the other schedules, in grey. beta is that of `num_steps`
    steps, or of a discrete schedule's own.
    """
    curves = {name: _curves(schedule, num_steps) for name, schedule in chosen.items()}
    figure = _figure(8.0, 0.5 + 1.25 * len(chosen))
    panels = figure.subplots(len(chosen), 3, sharex=True, sharey="col", squeeze=False)
    for row, name in zip(panels, chosen):
        for axes, quantity in zip(row, _QUANTITIES):
            for other in chosen:
                axes.plot(*curves[other][quantity], color=_FAINT, lw=0.8)
            axes.plot(*curves[name][quantity], color=_INK, lw=1.8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
            axes.set(xlim=(0, 1), **_QUANTITIES[quantity])
        beside = dict(rotation=0, ha="right", va="center", parse_math=False)
        row[0].set_ylabel(name, fontsize=9, weight="bold", **beside)
    for axes, quantity in zip(panels[0], _QUANTITIES):
        axes.set_title(quantity, fontsize=9, loc="left")
    for axes in panels[-1]:
        axes.set_xlabel("t", fontsize=8)
    return figure


_QUANTITIES = {
    r"$\bar\alpha$": {"ylim": (-0.03, 1.03)},
    "log-SNR": {"ylim": (-16, 16)},
    r"$\beta$ of a step": {"yscale": "log", "ylim": (3e-6, 1.5)},
}


def _curves(schedule: AnySchedule, num_steps: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if schedule.num_steps is None:
        t = seen = jnp.linspace(0.0, 1.0, _POINTS)
        steps = schedule.discretize(num_steps)
    else:
        seen, steps = jnp.arange(schedule.num_steps), schedule
        t = (seen + 1) / schedule.num_steps
    step_t = (np.arange(steps.num_steps) + 1) / steps.num_steps
    values = (
        (t, schedule.alpha_bar(seen)),
        (t, jnp.clip(schedule.log_snr(seen), -50, 50)),
        (step_t, steps.betas),
    )
    return {name: tuple(map(np.asarray, xy)) for name, xy in zip(_QUANTITIES, values)}


def draw_rates(chosen: Mapping[str, Rate]) -> Any:
    """A matplotlib Figure: the density of each rate by log-SNR, with its standard error where it is
    known, and the log-SNR of its schedule against t."""
    figure = _figure(8.0, 3.0)
    density, times = figure.subplots(1, 2)
    t = np.linspace(0.0, 1.0, _POINTS)
    for name, rate in chosen.items():
        levels, values = np.asarray(rate.log_snrs), rate.density(rate.log_snrs)
        (line,) = density.plot(levels, values, lw=1.5, label=name)
        if rate.errors is not None:
            error = rate.errors / rate.total
            faint = dict(color=line.get_color(), alpha=0.2, lw=0)
            density.fill_between(levels, values - error, values + error, **faint)
        times.plot(t, rate.quantile(1 - t), lw=1.5, color=line.get_color())
    density.set(xlabel="log-SNR", ylabel="density", ylim=(0, None))
    times.set(xlabel="t", ylabel="log-SNR", xlim=(0, 1))
    for text in density.legend(fontsize=8, frameon=False).get_texts():
        text.set_parse_math(False)
    for axes in (density, times):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    return figure


def draw_levels(chosen: Mapping[str, np.ndarray]) -> Any:
    """A matplotlib Figure: the log-SNRs of each grid as marks on a line, a row for each grid."""
    figure = _figure(8.0, 0.8 + 0.3 * len(chosen))
    axes = figure.subplots()
    for row, log_snrs in enumerate(chosen.values()):
        finite = np.asarray(log_snrs)[np.isfinite(log_snrs)]
        axes.plot(finite, np.full(len(finite), row), color=_INK, marker="|", ms=9, lw=0.6)
    axes.set(yticks=range(len(chosen)), ylim=(len(chosen) - 0.5, -0.5), xlabel="log-SNR")
    axes.set_yticklabels(chosen, fontsize=8, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def draw_noised(
    chosen: Mapping[str, AnySchedule], image: np.ndarray, num_times: int = 11, seed: int = 0
) -> Any:
    """A matplotlib Figure: an image at equally spaced times, a row for each schedule.

    The noise is the same throughout. `image` is (H, W, C) in [-1, 1], C = 1 or 3; in discrete time
    the nearest index is shown.
    """
    image = jnp.asarray(image)
    noise = jax.random.normal(jax.random.key(seed), image.shape)
    times = np.linspace(0.0, 1.0, num_times)
    figure = _figure(1.5 + 0.75 * num_times, 0.35 + 0.75 * len(chosen))
    panels = figure.subplots(len(chosen), num_times, squeeze=False)
    for row, (name, schedule) in zip(panels, chosen.items()):
        for axes, t in zip(row, times):
            at = t
            if schedule.num_steps is not None:
                at = np.clip(round(t * schedule.num_steps) - 1, 0, schedule.num_steps - 1)
            noised = process.q_sample(schedule, image, at, noise)
            pixels = np.clip((np.asarray(noised) + 1) / 2, 0, 1)
            axes.imshow(pixels.squeeze(-1) if image.shape[-1] == 1 else pixels, cmap="gray")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        beside = dict(rotation=0, ha="right", va="center", parse_math=False)
        row[0].set_ylabel(name, fontsize=10, **beside)
    for axes, t in zip(panels[0], times):
        axes.set_title(f"t = {t:.1f}", fontsize=9)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure
