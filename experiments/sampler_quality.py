"""How good are samples for the network calls that they cost? Every sampler, on trained networks.

    python experiments/sampler_quality.py --steps 1000 --grid uniform    # digits, one CPU core
    python experiments/sampler_quality.py --steps 4000 --seeds 5 --num-samples 1000
    python experiments/sampler_quality.py --config configs/fashion_mnist.py     # on a GPU
    python experiments/sampler_quality.py --steps 1000 --grid karras --counts 10,20

For each seed a network is trained, every sampler draws from it, and the Fréchet distance of the
samples to the training images is taken over a classifier's features. Samplers are compared at equal
network calls: each takes as many steps as fit into a count of calls; what a step costs is counted,
not assumed. A table, a picture and sentences on DPM-Solver++ with few calls come out.

The comparison is paired: for a seed all samplers share the network and the starting noise. The
interval is Student's t of the logarithms over the networks, each with noise of its own: it covers
training and sampling. With --seeds 1 it is over the batches of one network and covers sampling
alone. Few samples raise a Fréchet distance: all are of equally many, by default as many as there
are held-out images, and so is the floor, the distance of held-out images. That bias is in both
distances of a ratio and draws it towards 1; the ratio is also given with the floor taken off both.

The same command resumes if interrupted. Each result is kept as it is made; one that was made
under another setting is refused. What was found is in results/sampler_quality.md.
"""

from __future__ import annotations

import argparse
import functools
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from ml_collections import ConfigDict

import diffax
from diffax import config as config_lib
from diffax import data, evaluation, runtime, samplers, training
from diffax.ablation import Arm, print_progress, run_grid, runner
from diffax.evaluation.extractors import SETTINGS
from diffax.files import write_json
from diffax.report import figures, statistics
from diffax.report.formatting import ratio, significant, span, tick

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = [("ddim", 50), ("ddim", 100), ("ddpm", 1000)]
CANDIDATES = [("dpmpp_2m", count) for count in (25, 20, 10, 5)]
FURTHER = {"dpmpp_2m": (25,), "ddim": (100,), "ddpm": (100, 1000)}  # counts of these alone
ORDERS = {"dpm_solver": (2, 3)}
# name of a curve -> its sampler and options
CURVES = {name: {"sampling.sampler": name} for name in samplers.SAMPLERS if name not in ORDERS} | {
    f"{name}-{order}": {"sampling.sampler": name, "sampling.order": order}
    for name, orders in ORDERS.items()
    for order in orders
}


# --- network calls ------------------------------------------------------------------------------


class Point(NamedTuple):
    """What is measured for a count of calls: the arm, and the calls that it makes of them."""

    arm: Arm
    calls: int


def count_calls(config: ConfigDict, num_steps: int) -> int:
    """How often so many steps of `config.sampling` call the network.

    Counted on a toy that runs without compilation, where a scan is a loop and each call is made.
    """
    calls = []

    def predict(x, log_snr):
        calls.append(log_snr)
        return 0.5 * x

    options = config_lib.sampling_options(config) | {"num_steps": num_steps}
    schedule = config_lib.build_schedule(config, (2,))
    with jax.disable_jit():
        diffax.sample(jax.random.key(0), diffax.by_log_snr(predict), schedule, (1, 2), **options)
    return len(calls)


def cost_of(config: ConfigDict, curve: str) -> tuple[int, int]:
    """(a, b) of a sampler that makes a N + b calls in N steps that are not few.

    Of few and long steps some solvers make some with fewer calls.
    """
    config = runner.arm_config(config, Arm(curve, CURVES[curve]), config.seed)
    calls, one_more = (count_calls(config, steps) for steps in (30, 31))
    return one_more - calls, 31 * calls - 30 * one_more


def make_points(
    config: ConfigDict,
    costs: Mapping[str, tuple[int, int]],
    counts: Sequence[int],
    grid: str | None = None,
) -> dict[tuple[str, int], Point]:
    """(curve, count of calls) -> what is measured there, where 2 steps or more fit."""
    points = {}
    for curve, (per_step, extra) in costs.items():
        options = CURVES[curve] | ({"sampling.grid": grid} if grid else {})
        own = runner.arm_config(config, Arm(curve, options), config.seed)
        for count in sorted({*counts, *FURTHER.get(curve, ())}):
            steps = max((count - extra) // per_step, 1)
            calls = per_step * steps + extra
            if steps < 30:  # of few steps some may be shorter of a call
                calls = count_calls(own, steps)
                while (more := count_calls(own, steps + 1)) <= count:
                    steps, calls = steps + 1, more
            if steps >= 2 and calls <= count:
                name = ", ".join(filter(None, (curve, f"{steps} steps", grid)))
                arm = Arm(name, {**options, "sampling.num_steps": steps})
                points[curve, count] = Point(arm, calls)
    return points


# --- measuring ----------------------------------------------------------------------------------


def make_measure(
    config: ConfigDict, dataset: data.Dataset, workdir: Path, batches: int
) -> Callable:
    """(arm, seed, directory) -> the distances of that many batches of samples, and the floor.

    The floor is the distance of as many held-out images, chosen by the seed.
    """
    num = config.evaluation.num_samples

    def distances(run: training.Run, seed: int, samples: np.ndarray) -> dict[str, Any]:
        return evaluation.evaluate(run, dataset, ["frechet"], seed, samples)["frechet"]

    @functools.lru_cache(maxsize=1)
    def trained(seed: int) -> tuple[training.Run, float]:
        own = runner.arm_config(config, Arm("network"), seed)
        directory = workdir / "networks" / f"seed{seed}-{own.training.num_steps}steps"
        training.train(own, directory)
        run, images = training.load(directory), len(dataset.eval)
        real = dataset.eval.array(np.random.default_rng(seed).permutation(images)[:num])
        return run, distances(run, seed, real)["frechet"]

    def measure(arm: Arm, seed: int, directory: Path) -> dict[str, Any]:
        run, floor = trained(seed)
        run = run.under(runner.arm_config(config, arm, seed))
        samples = evaluation.draw(run, batches * num, seed)
        found = [distances(run, seed, x) for x in np.split(samples, batches)]
        return {**found[0], "frechet": [one["frechet"] for one in found], "floor": floor}

    return measure


# --- reading ------------------------------------------------------------------------------------


def units(distances: Sequence[Sequence[float]]) -> np.ndarray:
    """Distances, (networks, batches) -> what an interval is over: networks, or batches of one."""
    logs = np.log(distances)
    return np.exp(logs.mean(axis=1) if len(logs) > 1 else logs[0])


# The first is taken whose condition holds for the ends of the ratio's interval and the margin.
READINGS: tuple[tuple[str, Callable[[float, float, float], bool]], ...] = (
    ("better", lambda low, high, margin: high < 1),
    ("worse, but within the margin", lambda low, high, margin: low > 1 and high <= margin),
    ("as good, within the margin", lambda low, high, margin: high <= margin),
    ("worse, by more than the margin", lambda low, high, margin: low > margin),
    ("worse, and whether within the margin can't be told", lambda low, high, margin: low > 1),
    ("whether it is as good can't be told", lambda low, high, margin: True),
)


def sentence(few, many, measured: Mapping, floor: float, margin: float) -> str:
    """How one (curve, count) compares to another, from the ratio of their distances alone."""
    a, b = measured[few], measured[many]
    found = statistics.paired_ratio(a, b)
    text = next(text for text, holds in READINGS if holds(found.low, found.high, margin))
    interval = f"95% interval {span(ratio, found)}"
    if min(a.min(), b.min()) > floor:
        above = statistics.paired_ratio(a - floor, b - floor)
        interval += f"; less the floor {ratio(above.mean)}, {span(ratio, above)}"
    one, other = (f"{curve} in {count:,} calls" for curve, count in (few, many))
    return f"{one} has {ratio(found.mean)} times the distance of {other} ({interval}): {text}."


def make_table(points: Mapping, measured: Mapping, costs: Mapping[str, tuple[int, int]]) -> str:
    """A row for each sampler, a column for each count of calls; [n] where n calls are made."""
    text = functools.partial(significant, digits=3)

    def cell(key: tuple[str, int]) -> str:
        if key not in points:
            return ""
        found, calls = statistics.geometric_interval(measured[key]), points[key].calls
        return f"{text(found.mean)} ({span(text, found)})" + f" [{calls}]" * (calls < key[1])

    columns = sorted({count for _, count in points})
    rows = [["sampler", "calls in N steps", *(f"{count:,} calls" for count in columns)]]
    rows.append(["---"] * len(rows[0]))
    for curve, (per_step, extra) in costs.items():
        cost = f"{per_step if per_step > 1 else ''}N" + f" {extra:+d}" * (extra != 0)
        rows.append([curve, cost, *(cell((curve, count)) for count in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(points: Mapping, measured: Mapping, floor: float) -> Figure:
    """The distance against network calls, a line for each sampler, bars for the intervals.

    What is above 50 times the floor is left out.
    """
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    asked = [key for key in (*CANDIDATES, *REFERENCES) if key in points]
    for i, curve in enumerate(dict.fromkeys(curve for curve, _ in (*asked, *points))):
        found = {points[key].calls: measured[key] for key in points if key[0] == curve}
        calls = np.array(sorted(found)) * 1.012 ** (i - 5)  # side by side, so that bars are seen
        rows = [statistics.geometric_interval(found[count]) for count in sorted(found)]
        mean, low, high = (np.array([getattr(r, k) for r in rows]) for k in ("mean", "low", "high"))
        colour, dash = figures.line_style(i)
        width = 2.4 if curve in dict(asked) else 1.2
        axes.errorbar(calls, mean, [mean - low, high - mean], color=colour, ls=dash, marker="o",
                      ms=3, lw=width, elinewidth=0.7, label=curve)  # fmt: skip
    axes.axhline(floor, color=figures.MUTED, lw=1)
    axes.text(1, floor, "real images, held out", transform=axes.get_yaxis_transform(), ha="right",
              va="bottom", color=figures.MUTED)  # fmt: skip
    axes.set(xlabel="network calls", ylabel="Fréchet distance", ylim=(0.8 * floor, 50 * floor))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axis.set_minor_locator(NullLocator())
    axes.grid(color=figures.RULE, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


# --- the command --------------------------------------------------------------------------------


def comma_list(kind: Callable[[str], Any]) -> Callable[[str], list]:
    """A type for argparse: values of a kind, separated by commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, names = parser.add_argument, ",".join(CURVES)
    add("--config", default=str(ROOT / "configs" / "digits.py"))
    add("--workdir", type=Path, default=ROOT / "runs" / "sampler_quality")
    add("--steps", type=int, help="training steps of a network (default: the config's)")
    add("--seeds", type=int, default=4, help="networks, each with noise of its own (default 4)")
    add("--num-samples", type=int, help="of a distance (default: as many as held-out images)")
    add("--batches", type=int, default=1, help="distances for each network (default 1)")
    add("--samplers", type=comma_list(str), default=names, help="(default: %(default)s)")
    add("--counts", type=comma_list(int), default="5,10,20,50", help="(default: %(default)s)")
    add(
        "--grid", choices=sorted(samplers.GRIDS), help="(default: the config's or the solver's own)"
    )
    add("--margin", type=float, default=1.1, help="a ratio that is as good (default 1.1)")
    args = parser.parse_args(argv)
    if unknown := set(args.samplers) - set(CURVES):
        parser.error(f"--samplers: no {min(unknown)!r}; allowed are {names}")
    if args.seeds * args.batches < 2:
        parser.error("an interval needs 2 networks, or 2 batches of one")
    return args


def about(args: argparse.Namespace, config: ConfigDict, held_out: int, floor: float) -> str:
    """What was measured, and what the intervals are over."""
    num = config.evaluation.num_samples
    grid = args.grid or config.sampling.grid or "each solver's own"
    covers = (
        f"{args.seeds} networks, each with noise of its own: training and sampling are covered"
        if args.seeds > 1
        else f"{args.batches} batches of one network: sampling is covered, training is not"
    )
    return (
        f"Fréchet distances of {num} samples each, {config.data.name}, {grid} grid, networks of"
        f" {config.training.num_steps} training steps. Geometric means, 95% intervals over"
        f" {covers}. The floor, {significant(floor, 3)}, is that of {min(held_out, num)} held-out"
        " images."
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    runtime.start()
    config = runpy.run_path(args.config)["get_config"]()
    dataset = data.load(config.data)
    config.training.update(eval_every=0, sample_every=0)  # what is of interest is measured below
    config.training.num_steps = args.steps or config.training.num_steps
    config.evaluation.num_samples = args.num_samples or len(dataset.eval)
    costs = {curve: cost_of(config, curve) for curve in args.samplers}
    points = make_points(config, costs, args.counts, args.grid)

    def fingerprint(arm: Arm, seed: int) -> dict[str, Any]:
        own = config_lib.relevant(runner.arm_config(config, arm, seed))
        return {**own, "batches": args.batches, "classifier": SETTINGS}

    arms = {point.arm.name: point.arm for point in points.values()}  # two counts may share one
    measure = make_measure(config, dataset, args.workdir, args.batches)
    results = run_grid(
        [*arms.values()], range(args.seeds), measure, args.workdir, fingerprint,
        on_progress=print_progress,
    )  # fmt: skip
    distances = {name: [r["frechet"] for r in results if r["arm"] == name] for name in arms}
    measured = {key: units(distances[point.arm.name]) for key, point in points.items()}
    floor = float(np.mean([result["floor"] for result in results]))
    said = [
        sentence(few, many, measured, floor, args.margin)
        for few in CANDIDATES
        for many in REFERENCES
        if few in points and many in points
    ]
    lines = [about(args, config, len(dataset.eval), floor), "", make_table(points, measured, costs)]
    if said:
        lines += ["", f"As good: a ratio of {args.margin:g} at most. Intervals stand singly.", ""]
        lines += [f"- {text}" for text in said]
    print(*lines, sep="\n")
    stem = args.workdir / "-".join(filter(None, ("sampler_quality", args.grid)))
    stem.with_suffix(".md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    draw(points, measured, floor).savefig(stem.with_suffix(".png"))
    rows = [
        {
            "curve": curve,
            "count": count,
            "calls": point.calls,
            "distances": distances[point.arm.name],
        }
        for (curve, count), point in points.items()
    ]
    found = {"about": lines[0], "floor": floor, "points": rows, "sentences": said}
    write_json(stem.with_suffix(".json"), {**found, "config": config.to_dict()})
    print(f"\nthe same, the numbers and the picture: {stem}.md, .json, .png")


if __name__ == "__main__":
    main()
