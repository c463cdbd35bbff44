"""Do generated blood cells follow their masks, and do variations of real ones keep them?

    python experiments/control_cells.py --data FOLDER          # half an hour of one CPU core
    python experiments/control_cells.py --page                 # the tables from the raw numbers

FOLDER holds images of one white blood cell each, their masks (nucleus, cytoplasm, ground) and a
metadata.jsonl that names both (`conditioning_file_name`). configs/cells.py is trained on them,
once without a control, the base; and for each seed with the mask as an input (concat), and
as a ControlNet beside the base. Samples are drawn under the held-out masks from checkpoints along
training, and a segmenter, trained once on the real pairs, reads the masks of the samples again. The
floor is the base, which sees no mask; the ceiling the segmenter on real held-out images.

Variations: held-out images are noised by a share of the base's levels and sampled anew (SDEdit).
Their masks are read in the same way, and how far the pixels moved stands beside.

Runs are kept in --workdir, and what was measured in its measured.json: the same command resumes if
interrupted. The means over the cells go to results/control_cells.json, from which the tables are
made, and those of two claims of the ledger to results/claims/. Two pictures come out:
control_cells.png, and control_cells_samples.png with samples under masks that are drawn here. No
real image is written.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import diffax
from diffax import config as config_lib
from diffax import runtime, training
from diffax.config.storage import read_file
from diffax.data.dataset import to_8_bits, to_float
from diffax.evaluation import segmentation
from diffax.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
NAME = "control_cells"
CHECKPOINTS = (1 / 8, 1 / 4, 1 / 2, 1)  # shares of the training
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8)  # of the levels, of a variation
SCHEDULES = ("cosine",)  # along which a variation goes
STRENGTHS = (0.0, 0.25, 0.5, 0.75)  # of a ControlNet, beside 1
# Of a ControlNet with other sampling than it was trained with.
COMPOSED = {
    "guidance 2": {"guidance_scale": 2.0},
    "along linear": {"schedule": "linear"},
    "along linear, guidance 2": {"schedule": "linear", "guidance_scale": 2.0},
}
ARMS = ("concat", "controlnet")


def config_of(arm: str, args: argparse.Namespace, seed: int) -> Any:
    """configs/cells.py for an arm: base, concat or controlnet."""
    config = read_file(str(ROOT / "configs" / "cells.py"))
    config.data.path, config.data.image_size = args.data, args.size
    config.seed = seed
    config.condition.control = "" if arm == "base" else "files"
    config.condition.base = str(args.workdir / "base") if arm == "controlnet" else ""
    settings = config.training
    settings.num_steps = args.steps
    settings.checkpoint_every = max(1, args.steps // 8)
    settings.keep_checkpoints = 8
    settings.sample_every = settings.eval_every = 0
    config.evaluation.metrics = ()
    config.evaluation.gradient_batches = 0
    return config


def runs(args: argparse.Namespace) -> dict[str, tuple[str, int]]:
    """Name -> (arm, seed); the base comes first."""
    of_seeds = {f"{arm}-{seed}": (arm, seed) for seed in range(args.seeds) for arm in ARMS}
    return {"base": ("base", 0)} | of_seeds


def train(args: argparse.Namespace) -> float:
    """Trains what is missing; processor seconds that it took."""
    begin = time.process_time()
    for name, (arm, seed) in runs(args).items():
        if training.steps_done(args.workdir / name) < args.steps:
            training.train(config_of(arm, args, seed), args.workdir / name)
    return time.process_time() - begin


# --- measuring ------------------------------------------------------------------------------------


class Bench:
    """The held-out pairs, the segmenter, and the runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.dataset = config_lib.load_data(config_of("concat", args, 0))
        self.segmenter = segmentation.get_segmenter(self.dataset)
        held_out = self.dataset.eval
        self.x, self.image = held_out.array(), to_float(held_out.arrays["control"])
        self.masks = segmentation.numbered(self.image, self.segmenter.values)
        self.generator = functools.lru_cache(maxsize=1)(self._generator)

    def _generator(self, name: str, step: int | None = None) -> diffax.Generator:
        run = training.load(self.args.workdir / name, step)
        return diffax.Generator(run, batch_size=len(self.x), num_devices=1)

    def agreement(self, masks: np.ndarray) -> list[float]:
        """With the held-out masks in their order: of each cell the mean IoU of its classes."""
        found = segmentation.iou(masks, self.masks, len(self.segmenter.values))
        return found.round(5).tolist()

    def iou(self, x: np.ndarray) -> list[float]:
        return self.agreement(segmentation.read_masks(self.segmenter, to_8_bits(x)))

    def drawn(self, name: str, seed: int, step: int | None = None, **asked: Any) -> list[float]:
        """The agreement of samples under the held-out masks, or of the base without them."""
        if name != "base":
            asked["control"] = self.image
        return self.iou(self.generator(name, step)(len(self.x), seed=seed, **asked))

    def varied(self, share: float, schedule: str, seed: int) -> dict[str, Any]:
        """The agreement of variations, and the root mean square by which values moved."""
        along = {} if schedule == "cosine" else {"schedule": schedule}
        x = self.generator("base").sdedit(self.x, share, seed=seed, **along)
        return {"iou": self.iou(x), "moved": round(float(rms(x - self.x).mean()), 5)}


def rms(x: np.ndarray) -> np.ndarray:
    """The root mean square of each example."""
    return np.sqrt(np.mean(x**2, axis=(1, 2, 3)))


Task = tuple[str, Callable[[], Any]]


def tasks(bench: Bench) -> Iterator[Task]:
    """Everything that is measured, by name."""
    args, of = bench.args, functools.partial
    yield "real", of(bench.iou, bench.x)
    yield "apart", lambda: [float(rms(bench.x - np.roll(bench.x, -1, axis=0)).mean())]
    yield "chance", of(bench.agreement, np.roll(bench.masks, -1, axis=0))
    yield from ((f"floor-{seed}", of(bench.drawn, "base", seed)) for seed in range(args.seeds))
    for name, (arm, seed) in runs(args).items():
        if arm in ARMS:
            for step in steps_of(args):
                yield f"{name}/{step}", of(bench.drawn, name, seed, step)
        if arm == "controlnet":
            for strength in STRENGTHS:
                asked = {"control_strength": strength}
                yield f"{name}/strength {strength:g}", of(bench.drawn, name, seed, **asked)
            for words, options in COMPOSED.items():
                yield f"{name}/{words}", of(bench.drawn, name, seed, **options)
    for schedule in SCHEDULES:
        for share in SHARES:
            for seed in range(args.seeds):
                name = f"variation/{schedule}/{share:g}/{seed}"
                yield name, of(bench.varied, share, schedule, seed)


def steps_of(args: argparse.Namespace) -> list[int]:
    return [round(share * args.steps) for share in CHECKPOINTS]


def measure(bench: Bench, spent: float) -> dict[str, Any]:
    """Every number, each measured once and kept as it is found. `spent`: processor seconds of what
    was trained before."""
    path = bench.args.workdir / "measured.json"
    found = read_json(path) if path.exists() else {"cpu_seconds": 0.0}
    found["cpu_seconds"] += spent
    for name, task in tasks(bench):
        if name not in found:
            begin = time.process_time()
            found[name] = task()
            found["cpu_seconds"] += time.process_time() - begin
            write_json(path, found)
            values = found[name]["iou"] if isinstance(found[name], dict) else found[name]
            print(f"{name}: {np.mean(values):.3f}", flush=True)
    return found


# --- the page -------------------------------------------------------------------------------------


def over_seeds(found: dict[str, Any], names: list[str]) -> list[float]:
    """The mean over cells for each seed."""
    whole = [found[name]["iou"] if isinstance(found[name], dict) else found[name] for name in names]
    return [float(np.mean(values)) for values in whole]


def words(values: list[float]) -> str:
    """Mean and range over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def draw_curves(found: dict[str, Any], args: argparse.Namespace, path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, label in zip(ARMS, ("mask as an input", "ControlNet")):
        names = [[f"{arm}-{s}/{step}" for s in range(args.seeds)] for step in steps_of(args)]
        values = np.array([over_seeds(found, each) for each in names])
        left.plot(steps_of(args), values.mean(1), marker="o", label=label)
        left.fill_between(steps_of(args), values.min(1), values.max(1), alpha=0.2)
    floor = np.mean(over_seeds(found, [f"floor-{s}" for s in range(args.seeds)]))
    left.axhline(np.mean(found["real"]), color="0.4", label="real cells")
    left.axhline(floor, color="0.4", linestyle="--", label="no mask")
    left.set(xlabel="training steps", ylabel="IoU with the mask", xscale="log", ylim=(0, 1))
    left.set_xticks(steps_of(args), [f"{step:,}" for step in steps_of(args)])
    left.set_xticks([], minor=True)
    for schedule in SCHEDULES:
        names = [[f"variation/{schedule}/{h:g}/{s}" for s in range(args.seeds)] for h in SHARES]
        right.plot(
            SHARES,
            [np.mean(over_seeds(found, each)) for each in names],
            marker="o",
            label=f"variations, {schedule}",
        )
    right.axhline(np.mean(found["real"]), color="0.4", label="untouched")
    right.axhline(np.mean(found["chance"]), color="0.4", linestyle=":", label="another cell's mask")
    right.set(xlabel="share of the levels", ylabel="IoU with the cell's mask", ylim=(0, 1))
    for axes in (left, right):
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def made_masks(size: int, num: int = 8) -> np.ndarray:
    """Masks that are drawn, not taken from data: a nucleus in a cell, (num, size, size, 1)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size - 0.5
    masks = np.full((num, size, size, 1), -1, np.float32)
    for mask in masks:
        down, right = rng.uniform(-0.06, 0.06, 2)
        width, height = rng.uniform(0.3, 0.4, 2)
        cell = ((x - right) / width) ** 2 + ((y - down) / height) ** 2 < 1
        turn, shrink = rng.uniform(0, np.pi), rng.uniform(0.45, 0.75)
        a = (x - right) * np.cos(turn) + (y - down) * np.sin(turn)
        b = (y - down) * np.cos(turn) - (x - right) * np.sin(turn)
        nucleus = (a / (1.1 * shrink * width)) ** 2 + (b / (0.8 * shrink * height)) ** 2 < 1
        mask[cell, 0], mask[cell & nucleus, 0] = 0.004, 1
    return masks


def draw_samples(bench: Bench, path: Path) -> None:
    """Drawn masks, and samples under them of each arm from two seeds of noise."""
    masks = made_masks(bench.args.size)
    shown = {"drawn mask": masks}
    for name, label in (("concat-0", "mask as an input"), ("controlnet-0", "ControlNet")):
        for seed in (0, 1):
            made = bench.generator(name)(len(masks), seed=seed, control=masks)
            shown[f"{label}, noise {seed + 1}"] = made
    shown["no mask"] = bench.generator("base")(len(masks), seed=0)
    figure = Figure(figsize=(8, 1.05 * len(shown)), layout="constrained")
    for axes, (title, x) in zip(figure.subplots(len(shown), 1), shown.items()):
        row = np.concatenate(list(np.pad(to_8_bits(x), ((0, 0), (1, 1), (1, 1), (0, 0)))), axis=1)
        axes.imshow(row.squeeze(), cmap="gray", interpolation="nearest")
        axes.set_title(title, fontsize=8, loc="left", pad=2)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def tables(found: dict[str, Any], args: argparse.Namespace) -> str:
    """The numbers of the page, as Markdown."""
    seeds = range(args.seeds)
    rows = ["| training steps | mask as an input | ControlNet |", "|---|---|---|"]
    for step in steps_of(args):
        each = (words(over_seeds(found, [f"{arm}-{s}/{step}" for s in seeds])) for arm in ARMS)
        rows.append(f"| {step:,} | {' | '.join(each)} |")
    rows += ["", "| | IoU |", "|---|---|"]
    rows.append(f"| real held-out cells | {np.mean(found['real']):.3f} |")
    rows.append(
        f"| no mask, the base | {words(over_seeds(found, [f'floor-{s}' for s in seeds]))} |"
    )
    rows.append(f"| the next cell's mask | {np.mean(found['chance']):.3f} |")
    own = [f"strength {s:g}" for s in STRENGTHS] + list(COMPOSED)
    rows += ["", "| ControlNet, trained to the end | IoU |", "|---|---|"]
    last = steps_of(args)[-1]
    rows.append(
        f"| strength 1 | {words(over_seeds(found, [f'controlnet-{s}/{last}' for s in seeds]))} |"
    )
    for name in own:
        values = over_seeds(found, [f"controlnet-{s}/{name}" for s in seeds])
        rows.append(f"| {name} | {words(values)} |")
    head = " | ".join(f"{schedule}, IoU | {schedule}, values moved by" for schedule in SCHEDULES)
    rows += ["", f"| share of the levels | {head} |", f"|---|{2 * len(SCHEDULES) * '---|'}"]
    for share in SHARES:
        cells = []
        for schedule in SCHEDULES:
            names = [f"variation/{schedule}/{share:g}/{s}" for s in seeds]
            moved = np.mean([found[name]["moved"] for name in names])
            cells += [words(over_seeds(found, names)), f"{moved:.3f}"]
        rows.append(f"| {share:g} | {' | '.join(cells)} |")
    return "\n".join(rows)


def page(raw: dict[str, Any]) -> str:
    """The tables of results/control_cells.md."""
    return tables(raw["found"], argparse.Namespace(**raw))


def raw_of_claims(found: dict[str, Any], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The raw numbers of the ledger's claims, by name."""
    seeds, last = range(args.seeds), steps_of(args)[-1]

    def of(pattern: str) -> list[float]:
        return over_seeds(found, [pattern.format(seed) for seed in seeds])

    def at(share: float) -> list[str]:
        return [f"variation/cosine/{share:g}/{seed}" for seed in seeds]

    alike = {name: [float(np.mean(found[name]))] * args.seeds for name in ("real", "apart")}
    arms = {
        "gentle_noise_keeps_anatomy": {
            "cells": {
                "kept": over_seeds(found, at(0.2)),
                "untouched": alike["real"],
                "far": over_seeds(found, at(0.8)),
                "moved": [found[name]["moved"] for name in at(0.2)],
                "apart": alike["apart"],
            }
        },
        "control_composes": {
            "controlnet": {
                "plain": of(f"controlnet-{{}}/{last}"),
                "guided": of("controlnet-{}/guidance 2"),
                "linear": of("controlnet-{}/along linear"),
                "both": of("controlnet-{}/along linear, guidance 2"),
                "floor": of("floor-{}"),
            }
        },
    }
    return {
        name: {
            "claim": name,
            "scale": "digits",
            "about": f"white blood cells at {args.size}x{args.size}, 360 images; a U-Net of 0.7M"
            f" parameters, {args.steps} steps of batch 16; experiments/control_cells.py",
            "num_samples": args.cells,
            "seeds": list(seeds),
            "cpu_minutes": found["cpu_seconds"] / 60,
            "machine": f"{platform.machine()} CPU, jax {jax.__version__},"
            f" Python {platform.python_version()}",
            "date": f"{datetime.date.today()}",
            "networks": {},
            "arms": own,
        }
        for name, own in arms.items()
    }


def means(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with the mean over cells in place of each."""

    def mean(values: Any) -> Any:
        if isinstance(values, dict):
            return values | {"iou": mean(values["iou"])}
        return round(float(np.mean(values)), 5)

    return {name: mean(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="the folder of cells")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / NAME)
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--page", action="store_true", help="show the tables of the raw numbers")
    args = parser.parse_args()
    path = args.results / f"{NAME}.json"
    if not args.page:
        if args.data is None:
            parser.error("--data is needed, or --page")
        runtime.start(trains=True)
        args.workdir = args.workdir.absolute()
        (args.results / "claims").mkdir(parents=True, exist_ok=True)
        spent = train(args)
        bench = Bench(args)
        found = measure(bench, spent)
        draw_curves(found, args, args.results / f"{NAME}.png")
        draw_samples(bench, args.results / f"{NAME}_samples.png")
        args.cells = len(bench.x)
        settings = {name: getattr(args, name) for name in ("steps", "seeds", "size", "cells")}
        write_json(path, settings | {"found": means(found)})
        for name, raw in raw_of_claims(found, args).items():
            write_json(args.results / "claims" / f"{name}.json", raw)
    print(page(read_json(path)))


if __name__ == "__main__":
    main()
