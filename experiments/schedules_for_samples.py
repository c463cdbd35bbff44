"""Do grids that are found for a network give better samples than fixed ones, call for call?

    python experiments/schedules_for_samples.py                    # an MLP on digits, five seeds
    python experiments/schedules_for_samples.py --scale=fashion    # latents of Fashion-MNIST, three
    python experiments/schedules_for_samples.py --scale=mlp        # a poorer MLP on digits
    python experiments/schedules_for_samples.py --page             # the page from the raw numbers

For each seed a network is trained on the cosine schedule, log-SNR from 10 to -10. For each solver
and number of calls it is sampled along fixed grids and along those that are found for this very
network (`diffax grid`); all share the starting noise. A distance is the Fréchet distance to the
training images that `diffax evaluate` gives, over the features of a small classifier. Each piece is
kept in the working directory as it is measured: the same command resumes if interrupted. The raw
numbers go to results/schedules_for_samples.json, from which the tables and the picture are made.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, evaluation, runtime, samplers, training
from diffax.files import read_json, write_json
from diffax.report import figures, statistics
from diffax.report.formatting import p_text, ratio, significant, span, tick
from diffax.samplers import Level
from diffax.training import grids

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import latent_compute  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
NAME = "schedules_for_samples"
COUNTS = (10, 20, 6, 4, 8)  # as they are measured: those of the aims first
FIXED = ("uniform", "quadratic", "logsnr", "karras", "angle")
FOUND = ("dp", "learned", "gradient", "entropy", "ays")

FINE = 100  # calls of what stands for very many
AIM_FOUND, AIM_LEARNED = 0.85, 1.0


class Scale(NamedTuple):
    """What is trained.

    Attributes:
      config: (workdir, seed) -> the config.
      about: data and network in words.
      seeds: by default.
      solvers: solver -> the methods by which its grids are found.
      flat: whether an example is a row of numbers; its image is in images.npz.
      run: where in the working directory the run of a seed lies.
    """

    config: Callable[[Path, int], ConfigDict]
    about: str
    seeds: int
    solvers: Mapping[str, Sequence[str]]
    num_samples: int = 1000
    flat: bool = False
    run: str = "seed{seed}/run"


def ready(config: ConfigDict, num_steps: int) -> ConfigDict:
    """On cosine between 10 and -10, and nothing measured along the way."""
    config.schedule.update(name="cosine", log_snr_max=10.0, log_snr_min=-10.0)
    config.training.update(
        num_steps=num_steps, eval_every=0, sample_every=0, checkpoint_every=0, log_every=100
    )
    return config


def mlp_config(workdir: Path, seed: int) -> ConfigDict:
    """Digits as rows of 64 numbers, in a file, since the network takes no images; beside it they
    are as images, cut alike, by which samples are judged."""
    if not (workdir / "rows.npz").exists():
        workdir.mkdir(parents=True, exist_ok=True)
        found = data.load({"name": "digits"})
        x, label = (
            np.concatenate([getattr(part, key) for part in (found.train, found.eval)])
            for key in ("x", "label")
        )
        np.savez(workdir / "images.npz", x=x, label=label)
        np.savez(workdir / "rows.npz", x=x.reshape(len(x), -1), label=label)
    config = config_lib.default_config()
    config.seed = seed
    config.data.update(name="npz", path=str(workdir / "rows.npz"))
    config.model.name = "mlp"
    config.model.mlp.update(width=128, depth=3)
    config.optimizer.update(learning_rate=2e-3, decay="cosine")
    config.ema.decay = 0.995
    config.training.update(batch_size=64, steps_per_call=100)
    config.sampling.clip_x0 = 1.0
    return ready(config, 3000)


def long_config(workdir: Path, seed: int) -> ConfigDict:
    """A wider one that predicts x0 and is trained for long: with less error of its own."""
    config = mlp_config(workdir, seed)
    config.model.mlp.width = 256
    config.objective.prediction = "x0"
    config.ema.decay = 0.999
    return ready(config, 20_000)


def fashion_config(workdir: Path, seed: int) -> ConfigDict:
    """The U-Net in 4x4x4 latents of latent_compute.py, and the autoencoder, its own for each seed.
    A copy of that experiment's working directory serves: nothing is trained again then."""
    arm = latent_compute.ARMS["latents, 4x4x4"]
    autoencoder = latent_compute.autoencoder_config(arm, seed)
    config = latent_compute.network_config(workdir, arm, seed)
    training.train(autoencoder, Path(config.codec.path))
    return config


SCALES = {
    "long": Scale(
        long_config,
        "digits of scikit-learn, 8x8; a residual MLP of width 256 and depth 3 that predicts x0,"
        " 20,000 steps of batch 64",
        5,
        {"dpmpp_2m": FOUND, "ddim": ("dp", "gradient")},
        flat=True,
    ),
    "fashion": Scale(
        fashion_config,
        "Fashion-MNIST, 16x16, in the 4x4x4 latents of an autoencoder of 600 steps; a U-Net of 24"
        " channels that predicts v, 6,000 steps of batch 32",
        3,
        {"dpmpp_2m": FOUND},
        run="latents_4x4x4/{seed}",
    ),
    "mlp": Scale(
        mlp_config,
        "digits of scikit-learn, 8x8; a residual MLP of width 128 and depth 3, 3,000 steps of"
        " batch 64",
        5,
        {"dpmpp_2m": FOUND},
        flat=True,
    ),
}


# --- measuring ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def drawer(sample: Callable) -> Callable:
    """One program for all grids of a solver and a number of steps."""

    @jax.jit
    def draw(state: Any, keys: jax.Array, levels: Level, options: Mapping[str, Any]) -> jax.Array:
        return sample(state, keys, {}, grid=levels, **options)

    return draw


class Laboratory:
    """The networks of a scale, and what is measured of them; each piece is kept in `workdir`."""

    def __init__(self, scale: str, workdir: Path) -> None:
        self.scale, self.workdir = SCALES[scale], workdir / scale

    @functools.cached_property
    def reference(self) -> evaluation.Reference:
        """The images by which samples are judged."""
        judge = self.scale.config(self.workdir, 0).data.copy_and_resolve_references()
        if self.scale.flat:
            judge.path = str(self.workdir / "images.npz")
        return evaluation.Reference.of(data.load_cached(judge), judge)

    def kept(self, seed: int, name: str, measure: Callable[[], Any]) -> Any:
        path = self.workdir / f"seed{seed}" / "measured" / f"{name}.json"
        if not path.exists():
            began = time.process_time()
            found = {"value": measure(), "cpu_seconds": time.process_time() - began}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
            print(f"seed {seed}, {name}: {found['cpu_seconds']:.0f} s of processor", flush=True)
        return read_json(path)["value"]

    def trained(self, seed: int) -> training.Run:
        directory = self.workdir / self.scale.run.format(seed=seed)
        training.train(self.scale.config(self.workdir, seed), directory)
        return training.load(directory)

    def found(
        self, run: training.Run, method: str, solver: str, counts: Sequence[int]
    ) -> dict[int, dict[str, Any]]:
        """What `diffax grid` keeps of the grids of a method."""
        run = under(run, solver, counts[0])
        paths = {
            n: run.workdir / grids.FOLDER / f"{method}-{run.config.sampling.sampler}-{n}.json"
            for n in counts
        }
        if missing := [n for n, path in paths.items() if not path.exists()]:
            grids.find(run, method, missing)
        return {n: read_json(path) for n, path in paths.items()}

    def samples(
        self, run: training.Run, seed: int, solver: str, levels: Level, **options: Any
    ) -> np.ndarray:
        """Images, of the same noise whatever the levels."""
        draw = drawer(under(run, solver, len(levels.t)).method.sample)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), np.arange(self.scale.num_samples)
        )
        parts = [
            draw(run.state, keys[i : i + 250], levels, options) for i in range(0, len(keys), 250)
        ]
        return np.concatenate(jax.device_get(parts))

    def distance(self, seed: int, samples: np.ndarray) -> float:
        """As `diffax evaluate` gives it."""
        images = samples.reshape(len(samples), *self.reference.dataset.shape)
        return evaluation.score(images, self.reference, ["frechet"], seed)["frechet"]["frechet"]


def under(run: training.Run, solver: str, steps: int) -> training.Run:
    options = {"sampling.sampler": solver, "sampling.num_steps": steps}
    return run.under(config_lib.changed(run.config, options))


def levels_of(entry: Mapping[str, Any]) -> Level:
    return Level(*(jnp.asarray(entry[key], jnp.float32) for key in ("t", "log_snrs")))


def measure(lab: Laboratory, seed: int, counts: Sequence[int]) -> dict[str, Any]:
    """solver -> {"distances": {grid: {calls: Fréchet distance}}, "found": {grid: {calls: cost}},
    "fine": the distance of many calls}."""
    run = lab.trained(seed)

    def of_fixed(solver: str, grid: str, n: int) -> float:
        levels = samplers.visited_levels(run.state.schedule, n, grid)
        return lab.distance(seed, lab.samples(run, seed, solver, levels))

    def of_found(solver: str, method: str, n: int) -> dict[str, Any]:
        own = "learned" if method == "learned" else solver
        entry = lab.found(run, method, own, counts)[n]
        options = {}
        if own == "learned":
            options["coefficients"] = jnp.asarray(entry["coefficients"], jnp.float32)
        drawn = lab.samples(run, seed, own, levels_of(entry), **options)
        kept = ("calls", "seconds", "shared", "error", "held_out", "fixed", "log_snrs", "starts")
        return {"distance": lab.distance(seed, drawn), "found": {key: entry[key] for key in kept}}

    def kept(*which: Any, of: Callable) -> Any:
        return lab.kept(seed, " ".join(map(str, which)), functools.partial(of, *which))

    results = {}
    for solver, methods in lab.scale.solvers.items():
        one: dict[str, Any] = {"distances": {name: {} for name in (*FIXED, *methods)}}
        one["found"] = {name: {} for name in methods}
        for n in counts:
            for grid in FIXED:
                one["distances"][grid][str(n)] = kept(solver, grid, n, of=of_fixed)
            for method in methods:
                both = kept(solver, method, n, of=of_found)
                one["distances"][method][str(n)] = both["distance"]
                one["found"][method][str(n)] = both["found"]
        one["fine"] = kept(solver, "logsnr", FINE, of=of_fixed)
        results[solver] = one
    return results


# --- tables -------------------------------------------------------------------------------------


def column(raw: Mapping[str, Any], solver: str, grid: str, calls: int) -> np.ndarray:
    """A grid's distances over the seeds, (seeds,)."""
    return np.array([one[solver]["distances"][grid][str(calls)] for one in raw["seeds"]])


def best_fixed(raw: Mapping[str, Any], solver: str, calls: int) -> str:
    """That of the least geometric mean over these very seeds, which favours it."""
    return min(FIXED, key=lambda grid: np.mean(np.log(column(raw, solver, grid, calls))))


def counts_of(raw: Mapping[str, Any], solver: str) -> list[int]:
    return sorted(map(int, raw["seeds"][0][solver]["distances"][FIXED[0]]))


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def grids_of(raw: Mapping[str, Any], solver: str) -> list[str]:
    return list(raw["seeds"][0][solver]["distances"])


def distances_table(raw: Mapping[str, Any], solver: str) -> str:
    rows = [["grid", *(f"{n} calls" for n in counts_of(raw, solver))]]
    for grid in grids_of(raw, solver):
        cells = []
        for n in counts_of(raw, solver):
            found = statistics.geometric_interval(column(raw, solver, grid, n))
            cells.append(
                f"{significant(found.mean, 3)} ({span(lambda x: significant(x, 3), found)})"
            )
        rows.append([grid, *cells])
    return table(rows)


def ratios_table(raw: Mapping[str, Any], solver: str, over: str = "") -> str:
    """Each grid over `over`; or each found grid over the best fixed one. p is corrected over all
    cells."""
    counts = counts_of(raw, solver)
    base = {n: over or best_fixed(raw, solver, n) for n in counts}
    grids_in = [g for g in grids_of(raw, solver) if g != over and (over or g not in FIXED)]
    cells = {
        (grid, n): statistics.paired_ratio(
            column(raw, solver, grid, n), column(raw, solver, base[n], n)
        )
        for grid in grids_in
        for n in counts
    }
    corrected = dict(zip(cells, statistics.holm([c.p_value for c in cells.values()])))
    rows = [["grid", *(f"{n}: over {base[n]}" for n in counts)]]
    for grid in grids_in:
        of = [(cells[grid, n], corrected[grid, n]) for n in counts]
        rows.append(
            [grid, *(f"{ratio(c.mean)} ({span(ratio, c)}){'*' * bool(p < 0.05)}" for c, p in of)]
        )
    return table(rows)


def cost_table(raw: Mapping[str, Any], solver: str) -> str:
    counts = counts_of(raw, solver)
    rows = [["found by", *(f"{n}: calls, s" for n in counts)]]
    for method in raw["seeds"][0][solver]["found"]:
        of = [one[solver]["found"][method] for one in raw["seeds"]]
        row = [method]
        for n in map(str, counts):
            calls = of[0][n]["calls"] + of[0][n]["shared"]["calls"]
            seconds = np.median([f[n]["seconds"] + f[n]["shared"]["seconds"] for f in of])
            row.append(f"{calls:,}, {seconds:.0f}")
        rows.append(row)
    return table(rows)


def errors_table(raw: Mapping[str, Any], solver: str) -> str:
    """Distances to the network's own samples of many steps, means over the seeds."""
    counts, found = counts_of(raw, solver), [one[solver]["found"] for one in raw["seeds"]]
    first = next(iter(found[0]))
    rows = [["grid", *(f"{n} calls" for n in counts)]]
    least = ["best fixed"]
    for n in map(str, counts):
        fixed = {
            name: np.mean([f[first][n]["fixed"][name][1] for f in found])
            for name in found[0][first][n]["fixed"]
        }
        best = min(fixed, key=fixed.get)
        least.append(f"{significant(fixed[best], 2)} ({best})")
    rows.append(least)
    for method in found[0]:
        errors = (np.mean([f[method][str(n)]["held_out"] for f in found]) for n in counts)
        rows.append([method, *(significant(error, 2) for error in errors)])
    return table(rows)


def aims(raw: Mapping[str, Any], solver: str) -> str:
    """What was aimed at, and whether it is met."""
    best = best_fixed(raw, solver, 10)
    fixed, lines = column(raw, solver, best, 10), []

    def said(words: str, found: Any, most: float) -> str:
        verdict = "met" if found.high <= most else "not met" if found.mean > most else "undecided"
        numbers = f"{ratio(found.mean)} ({span(ratio, found)}), p {p_text(found.p_value)}"
        return f"- {words}: {numbers}: **{verdict}**."

    optimised = [m for m in ("dp", "gradient", "ays") if m in grids_of(raw, solver)]
    for method in optimised:
        found = statistics.paired_ratio(column(raw, solver, method, 10), fixed)
        lines.append(
            said(f"`{method}` over `{best}` at 10 calls, at most {AIM_FOUND}", found, AIM_FOUND)
        )
    if "learned" in grids_of(raw, solver):
        found = statistics.paired_ratio(
            column(raw, solver, "learned", 10), column(raw, solver, "uniform", 20)
        )
        lines.append(
            said("`learned` at 10 calls over `uniform` at 20, at most 1", found, AIM_LEARNED)
        )
    return "\n".join(lines)


def tables(raw: Mapping[str, Any]) -> str:
    parts = []
    for scale, found in raw.items():
        parts.append(f"### {scale}: {SCALES[scale].about}")
        for solver in found["seeds"][0]:
            fine = statistics.geometric_interval([one[solver]["fine"] for one in found["seeds"]])
            parts += [
                f"**{solver}**, seeds {', '.join(map(str, found['numbers']))};"
                f" {SCALES[scale].num_samples:,} samples."
                f" {FINE} calls along `logsnr` have {significant(fine.mean, 3)}"
                f" ({span(lambda x: significant(x, 3), fine)}).",
                distances_table(found, solver),
                "Over the best fixed grid of each column (* p < 0.05 after Holm's correction over"
                " the table):",
                ratios_table(found, solver),
                "Over `uniform` in as many calls, likewise:",
                ratios_table(found, solver, "uniform"),
            ]
            if solver == "dpmpp_2m":
                parts.append("The aims:\n\n" + aims(found, solver))
            parts += [
                "Root mean square distance to the network's own samples of 400 steps, over starts"
                " that no search has seen; mean over the seeds:",
                errors_table(found, solver),
                "What finding costs: network calls for each start, and median seconds on this"
                " shared machine; what serves several step counts is counted in each:",
                cost_table(found, solver),
            ]
    return "\n\n".join(parts)


def draw(raw: Mapping[str, Any]) -> Figure:
    """Distance against calls: a panel for each scale and solver."""
    panels = [(scale, solver) for scale, found in raw.items() for solver in found["seeds"][0]]
    figure = Figure(figsize=(max(7.0, 4.6 * len(panels)), 4.8), dpi=110, layout="constrained")
    names = [*FIXED, *FOUND]
    for axes, (scale, solver) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels):
        counts = counts_of(raw[scale], solver)
        for grid in grids_of(raw[scale], solver):
            k = names.index(grid)
            means = [np.exp(np.mean(np.log(column(raw[scale], solver, grid, n)))) for n in counts]
            colour = figures.PALETTE[k % len(figures.PALETTE)][0]
            style = (
                dict(ls=":", marker="o", ms=3) if grid in FIXED else dict(ls="-", marker="s", ms=4)
            )
            axes.plot(counts, means, color=colour, label=grid, **style)
        fine = np.exp(np.mean(np.log([one[solver]["fine"] for one in raw[scale]["seeds"]])))
        axes.axhline(fine, color=figures.MUTED, lw=0.8, ls="--", label=f"logsnr, {FINE} calls")
        axes.set(xscale="log", yscale="log", title=f"{scale}, {solver}", xlabel="network calls")
        axes.set_xticks(counts, [str(n) for n in counts])
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        low = 0.95 * min(np.min(values) for values in lines.values())
        high = 1.1 * max(np.max(lines[grid]) for grid in FIXED)  # others may be far beyond
        axes.set_ylim(low, high)
        fine_ticks = (1, 1.1, 1.2, 1.3, 1.4) if high < 2 * low else (1, 1.5)
        axes.yaxis.set_major_locator(LogLocator(subs=(*fine_ticks, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("Fréchet distance, geometric mean over seeds")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


# --- the command --------------------------------------------------------------------------------

BEGIN, END = "<!-- tables of the script begin -->", "<!-- tables of the script end -->"


def spliced(page: str, text: str) -> str:
    """The page with the tables in their place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def write_page(results: Path) -> None:
    raw = read_json(results / f"{NAME}.json")
    page = results / f"{NAME}.md"
    known = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    page.write_text(spliced(known, tables(raw)), encoding="utf-8")
    draw(raw).savefig(page.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / NAME)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scale", choices=[*SCALES], default="long")
    parser.add_argument("--seeds", type=int, help="how many, at least 2 (default: the scale's)")
    parser.add_argument(
        "--counts",
        type=lambda text: [int(n) for n in text.split(",")],
        default=COUNTS,
        help="network calls; 10 and 20 are needed (default: 10,20,6,4,8)",
    )
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    args = parser.parse_args(argv)
    num = args.seeds or SCALES[args.scale].seeds
    if num < 2:
        parser.error(f"--seeds={num}: an interval needs at least 2")
    if not {10, 20} <= set(args.counts):
        parser.error(f"--counts={args.counts}: 10 and 20 are compared")
    if not args.page:
        runtime.start(trains=True)
        lab = Laboratory(args.scale, args.workdir.absolute())
        numbers = list(range(num))
        found = {
            "numbers": numbers,
            "seeds": [measure(lab, seed, args.counts) for seed in numbers],
        }
        path = args.results / f"{NAME}.json"
        before = read_json(path) if path.exists() else {}
        merged = before | {args.scale: found}
        write_json(path, {scale: merged[scale] for scale in SCALES if scale in merged})
    write_page(args.results)
    print((args.results / f"{NAME}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
