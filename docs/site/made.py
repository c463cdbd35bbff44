"""Pictures and tables of the site that are made from diffax itself; none is committed."""

import functools
import inspect
import io
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from diffax import cli, data, plots, process, rates, samplers, schedules
from diffax.config import checks, defaults

BLUE, RED, GREY = "#0b6fa4", "#c44e52", "#c9c9c9"
PUBLISHED = sorted((Path(__file__).parents[2] / "configs" / "published").glob("*.py"))
T = np.linspace(0.0, 1.0, 401)
PALETTE = ("#0b6fa4", "#c44e52", "#55a868", "#8172b2", "#ccb974", "#64b5cd", "#8c613c")


def encoded(figure: Figure) -> bytes:
    into = io.BytesIO()
    figure.savefig(into, format="png", dpi=110)
    return into.getvalue()


def panels(width: float, height: float, columns: int):
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    return figure, axes


@functools.cache
def drawn() -> dict:
    """Every registered schedule with its defaults; those that need more get what is usual."""
    rate = rates.spectral(np.linalg.eigvalsh(rates.covariance(digits())[1]))
    needs = {"from_rate": {"rate": rate}}
    return {name: schedules.get(name, **needs.get(name, {})) for name in schedules.names()}


@functools.cache
def digits() -> np.ndarray:
    return data.load({"name": "digits"}).train.array(np.arange(512))


def log_snr_of(schedule) -> np.ndarray:
    return np.clip(np.asarray(jax.jit(schedule.log_snr)(jnp.asarray(T, jnp.float32))), -30, 30)


# --- pictures -------------------------------------------------------------------------------------


@functools.cache
def pictures() -> dict[str, bytes]:
    """Every picture by its name, PNG."""
    made = {"noise_levels.png": noise_levels(), "families.png": families(), "ends.png": ends()}
    made |= {"rates.png": three_uses(), "grids.png": grid_levels()}
    return made | {f"schedule_{name}.png": of_schedule(name) for name in schedules.names()}


def noise_levels() -> bytes:
    """One digit at equally spaced log-SNRs."""
    levels = (8, 4, 2, 0, -2, -4, -8)
    image = jnp.asarray(digits()[3])
    noise = jax.random.normal(jax.random.key(1), image.shape)
    figure, axes = panels(8.0, 1.5, len(levels))
    for each, level in zip(axes, levels):
        x = process.q_sample_at(image[None], jnp.full((1,), float(level)), noise[None])[0]
        each.imshow(np.asarray(x)[..., 0], cmap="gray", vmin=-1.5, vmax=1.5)
        each.set_title(f"log-SNR {level}", fontsize=8)
        each.set_axis_off()
    return encoded(figure)


def families() -> bytes:
    """log-SNR, and signal and noise, of six schedules."""
    chosen = ("linear", "cosine", "rectified_flow", "sigmoid", "linear_logsnr", "laplace")
    figure, (left, right) = panels(8.0, 3.0, 2)
    for name, colour in zip(chosen, PALETTE):
        levels = log_snr_of(drawn()[name])
        left.plot(T, levels, color=colour, label=name)
        right.plot(T, 1 / (1 + np.exp(-levels)), color=colour)
    left.set(ylim=(-16, 16), xlabel="t: 0 is data, 1 is noise", ylabel="log-SNR")
    right.set(xlabel="t", ylabel=r"$\alpha^2$, the share of signal")
    left.legend(fontsize=7, frameon=False)
    return encoded(figure)


def ends() -> bytes:
    """A schedule, its truncation and its stretching."""
    figure, (axes,) = panels(5.0, 2.8, 1)
    cosine = schedules.get("cosine")
    for schedule, colour, label in (
        (cosine, GREY, "cosine: infinite ends"),
        (schedules.with_endpoints(cosine, 8.0, -8.0), BLUE, "with_endpoints(8, -8)"),
        (schedules.shifted(cosine, 64, 32), RED, "shifted from 32 to 64 pixels"),
    ):
        axes.plot(T, log_snr_of(schedule), color=colour, label=label)
    axes.set(ylim=(-16, 16), xlabel="t", ylabel="log-SNR")
    axes.legend(fontsize=7, frameon=False)
    return encoded(figure)


def three_uses() -> bytes:
    """The spectral rate of the digits as a density, a schedule and a grid."""
    rate = rates.spectral(np.linalg.eigvalsh(rates.covariance(digits())[1]))
    schedule = schedules.from_rate(rate, log_snr_max=10.0, log_snr_min=-10.0)
    figure, (left, middle, right) = panels(8.0, 2.6, 3)
    levels = np.linspace(10, -10, 300)
    left.fill_between(levels, rate.density(levels), color=BLUE, alpha=0.35)
    left.set(xlabel="log-SNR", title="where to train", xlim=(10, -10), yticks=[])
    middle.plot(T, log_snr_of(schedule), color=BLUE)
    middle.set(xlabel="t", title="a schedule")
    marks = np.asarray(schedule.log_snr(jnp.linspace(0.0, 1.0, 13)))
    right.plot(marks, np.zeros(13), "|", color=BLUE, ms=24)
    right.set(xlabel="log-SNR", title="12 steps of a sampler", xlim=(10.5, -10.5), yticks=[])
    for axes in (left, middle, right):
        axes.title.set_fontsize(9)
    return encoded(figure)


def grid_levels() -> bytes:
    """The levels that grids visit on the cosine schedule."""
    schedule = schedules.with_endpoints(schedules.get("cosine"), 10.0, -10.0)
    names = ("uniform", "quadratic", "logsnr", "karras", "angle")
    levels = {name: samplers.visited_levels(schedule, 12, name).log_snr for name in names}
    return encoded(plots.draw_levels({name: np.asarray(at) for name, at in levels.items()}))


def of_schedule(name: str) -> bytes:
    """log-SNR and share of signal of one schedule, before the others; a digit under it."""
    figure = Figure(figsize=(7.2, 1.7), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(1, 9)
    left, right = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2:4])
    for other in (*drawn(), name):
        levels, ours = log_snr_of(drawn()[other]), other == name
        style = dict(color=BLUE if ours else GREY, lw=1.8 if ours else 0.6, zorder=2 + ours)
        left.plot(T, levels, **style)
        right.plot(T, 1 / (1 + np.exp(-levels)), **style)
    left.set_ylim(-16, 16)
    for axes, title in ((left, "log-SNR"), (right, r"$\alpha^2$")):
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    image = jnp.asarray(digits()[3])
    noise = jax.random.normal(jax.random.key(1), image.shape)
    for i, t in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        axes = figure.add_subplot(grid[0, 4 + i])
        level = jnp.full((1,), np.interp(t, T, log_snr_of(drawn()[name])), jnp.float32)
        x = process.q_sample_at(image[None], level, noise[None])[0]
        axes.imshow(np.asarray(x)[..., 0], cmap="gray", vmin=-1.5, vmax=1.5)
        axes.set_title(f"t = {t}", fontsize=8)
        axes.set_axis_off()
    return encoded(figure)


# --- tables ---------------------------------------------------------------------------------------


def gallery(up: str) -> str:
    """A section for every registered schedule: picture, ends, arguments, words."""
    return "\n\n".join(section(name, up) for name in schedules.names())


def section(name: str, up: str) -> str:
    schedule, constructor = drawn()[name], schedules.SCHEDULES.lookup(name)
    first, last = (float(schedule.log_snr(jnp.asarray(t, jnp.float32))) for t in (0.0, 1.0))
    summary = inspect.getdoc(constructor).split("\n\n")[0].replace("\n", " ")
    arguments = ", ".join(
        f"`{key}={value.default!r}`" if value.default is not value.empty else f"`{key}`"
        for key, value in inspect.signature(constructor).parameters.items()
    )
    return (
        f"## {name}\n\n![{name}: its log-SNR, its share of signal, and a digit under it]"
        f"({up}pictures/schedule_{name}.png)\n\n{escaped(summary)}\n\n"
        f"log-SNR from {first:.4g} to {last:.4g}. Arguments: {arguments or 'none'}."
    )


def published(up: str) -> str:
    """The docstring of each config of configs/published."""
    texts = {path: path.read_text(encoding="utf-8").split('"""')[1] for path in PUBLISHED}
    return "\n\n".join(
        f"## {path.stem}\n\n```text\n{text.strip()}\n```" for path, text in texts.items()
    )


def commands(up: str) -> str:
    """What each command of the command line says with --help."""
    parser = cli.make_parser()
    return "\n\n".join(
        f"## diffax {name}\n\n```text\n{parser.commands[name].format_help().strip()}\n```"
        for name in cli.COMMANDS
    )


def config_keys(up: str) -> str:
    """Every key of a config, section by section."""
    found: dict[str, list[str]] = {}
    for name, key in defaults.keys().items():
        rule = f" Must be {checks.RULES[name].words()}." if name in checks.RULES else ""
        words = escaped(f"{key.meaning}.{rule}")
        line = f"- `{name}` = `{key.default!r}` ({escaped(str(key.kind))}): {words}"
        found.setdefault(name.split(".")[0], []).append(line)
    return "\n\n".join(f"## {name}\n\n" + "\n".join(lines) for name, lines in found.items())


def escaped(text: str) -> str:
    """Text as Markdown that shows it literally, but for what is written as code."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = (re.sub(r"([|<>*_\[\]])", r"\\\1", part) for part in parts[::2])
    code = (part.replace("|", r"\|") for part in parts[1::2])
    return "".join(itertools.chain(*itertools.zip_longest(plain, code, fillvalue="")))
