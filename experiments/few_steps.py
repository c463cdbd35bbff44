"""One to four steps: distilled diffusion, consistency models, mean flow, GANs, on equal compute.

    python experiments/few_steps.py                          # 25 modes in the plane, 5 seeds
    python experiments/few_steps.py --data digits --seeds 1
    python experiments/few_steps.py --data digits --seeds 5 --steps 5000

Each method trains a network of like size from the same data, for as many steps as have the
floating-point operations of --steps steps of diffusion, counted by XLA. Students have a teacher
beside that: the diffusion run of their seed. All are then sampled at the numbers of network calls
that they know, and measured against the training data. Of the mixture the number of modes kept and
the share of samples off every mode are exact; of digits it is the Fréchet distance, KID, precision,
recall, density and coverage over the features of a small classifier.

Seeds are paired: a seed fixes the order of the data and the noise of the samples. An interval is
Student's t over the seeds, training included. Each training resumes, each result is kept as it is
made, in --workdir: the same command goes on where it was interrupted. What was found is in
results/few_steps.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, distributed, plots, runtime, training
from diffax.data import Dataset, DatasetInfo
from diffax.evaluation import run as evaluation
from diffax.files import read_json, replacing, write_json
from diffax.report import statistics
from diffax.training import codecs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class Entry(NamedTuple):
    """A method: what it changes of the base config, and the steps that it is sampled with."""

    changes: Mapping[str, Any]
    counts: tuple[int, ...]
    taught: bool = False


_GAN = {
    "model.name": "generator",
    "optimizer.name": "rmsprop",
    "optimizer.decay": "constant",
    "discriminator.optimizer": "rmsprop",
    "sampling.sampler": "ddim",
}
_FLOW = {
    "schedule.name": "rectified_flow",
    "schedule.log_snr_max": None,
    "schedule.log_snr_min": None,
    "objective.prediction": "flow",
    "objective.time_sampling": "logit_normal",
}
METHODS: dict[str, Entry] = {
    "diffusion": Entry({}, (1, 2, 4, 8, 25, 100)),
    "progressive": Entry({"method.name": "progressive"}, (1, 2, 4, 8), taught=True),
    "consistency, tuned": Entry(
        {"method.name": "consistency", "sampling.sampler": "consistency"}, (1, 2, 4), taught=True
    ),
    "consistency": Entry(
        {"method.name": "consistency", "sampling.sampler": "consistency"}, (1, 2, 4)
    ),
    "mean flow": Entry({"method.name": "mean_flow", **_FLOW}, (1, 2, 4)),
    "GAN": Entry({"method.name": "gan", **_GAN}, (1,)),
    "denoising GAN": Entry(
        {"method.name": "denoising_gan", **_GAN, "model.name": "mlp", "method.denoising_steps": 4},
        (4,),
    ),
}


# --- the data, and what suits each method there ---------------------------------------------------


def _mixture() -> ConfigDict:
    config = importlib.import_module("configs.mixture2d").get_config()
    config.data.modes = 25
    config.model.mlp.width = 128
    config.model.generator.channels = 64
    config.model.generator.channel_mults = (1,)
    config.model.generator.num_blocks = 3
    config.discriminator.residual.channels = 64
    config.discriminator.residual.channel_mults = (1,)
    config.discriminator.residual.num_blocks = 3
    config.discriminator.learning_rate = 1e-3
    config.training.steps_per_call = 25
    config.evaluation.num_samples = 10_000
    config.training.eval_every = config.training.sample_every = 0
    return config


def _digits() -> ConfigDict:
    config = importlib.import_module("configs.digits").get_config()
    config.training.eval_every = config.training.sample_every = 0
    return config


class Setting(NamedTuple):
    """A data set: its base config, scores, and changes that single methods need there."""

    base: Callable[[], ConfigDict]
    scores: tuple[str, ...]
    numbers: tuple[str, ...]  # of the scores, in the table
    of_methods: Mapping[str, Mapping[str, Any]]
    steps: int
    seeds: int


_GAN_OF_POINTS = {
    "method.latent_size": 16,
    "method.r1_weight": 0.1,
    "method.r2_weight": 0.1,
    "optimizer.learning_rate": 1e-3,
}
SETTINGS = {
    "mixture": Setting(
        _mixture,
        ("modes", "swd"),
        ("modes_kept", "off_modes", "modes_kl", "swd"),
        {
            "GAN": _GAN_OF_POINTS,
            "denoising GAN": _GAN_OF_POINTS,
            "mean flow": {"method.adaptive_power": 0.0, "objective.time_sampling": "uniform"},
        },
        steps=6000,
        seeds=5,
    ),
    "digits": Setting(
        _digits,
        ("frechet", "kid", "prdc"),
        ("frechet", "kid", "precision", "recall", "coverage"),
        {"denoising GAN": {"model.name": "unet"}},
        steps=2000,
        seeds=5,
    ),
}


def config_of(args: argparse.Namespace, name: str, seed: int, steps: int) -> ConfigDict:
    """The config of a method's training."""
    setting, entry = SETTINGS[args.data], METHODS[name]
    config = setting.base()
    config.seed = seed
    config.objective.prediction = "v"
    config.training.num_steps = steps
    config.training.checkpoint_every = 0
    config.update_from_flattened_dict({**entry.changes, **setting.of_methods.get(name, {})})
    config.sampling.num_steps = min(entry.counts)
    if entry.taught:
        config.method.teacher = str(folder(args, "diffusion", seed))
    if config.method.name == "progressive":
        config.method.teacher_steps = 16
        at_once = config.training.steps_per_call
        config.method.stage_steps = max(steps // 4 // at_once, 1) * at_once
        config.training.num_steps = 4 * config.method.stage_steps
    if config.method.name == "consistency":
        config.method.first_intervals, config.method.last_intervals = 8, 128
        config.method.doubling_steps = max(steps // 5, 1)
    return config


def folder(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.workdir / args.data / name.replace(", ", "_").replace(" ", "_") / str(seed)


def operations(config: ConfigDict, info: DatasetInfo) -> float:
    """Floating-point operations of a training step, by XLA's count of its program."""
    method = codecs.build_method(config, info)
    state = jax.eval_shape(method.init, jax.random.key(0))
    size = config.training.batch_size
    batch = {"x": jax.ShapeDtypeStruct((size, *info.shape), np.float32)}
    if info.num_classes:
        batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
    step = functools.partial(method.step, sharding=distributed.LOCAL)
    return jax.jit(step).lower(state, batch).cost_analysis()["flops"]


# --- one method, one seed -------------------------------------------------------------------------


def measure(args: argparse.Namespace, name: str, seed: int, dataset: Dataset) -> dict[str, Any]:
    """Trains it, as far as that isn't done, and measures its samples at every number of steps."""
    info, setting = DatasetInfo.of(dataset), SETTINGS[args.data]
    base = operations(config_of(args, "diffusion", seed, args.steps), info)
    each = operations(config_of(args, name, seed, args.steps), info)
    # Whole calls of the training step: another number of steps in the last would be compiled anew.
    at_once = setting.base().training.steps_per_call
    steps = max(round(args.steps * base / each / at_once), 1) * at_once
    config = config_of(args, name, seed, steps)
    workdir = folder(args, name, seed)
    began = time.monotonic()
    training.train(config, workdir)
    found: dict[str, Any] = {
        "training_steps": config.training.num_steps,
        "operations": each * config.training.num_steps,
        "seconds": time.monotonic() - began,
        "at": {},
    }
    loaded = training.load(workdir)
    found["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(loaded.state.ema_params))
    for count in METHODS[name].counts:
        run = loaded.under(config_lib.changed(loaded.config, {"sampling.num_steps": count}))
        samples = evaluation.draw(run, config.evaluation.num_samples, seed)
        began = time.monotonic()
        evaluation.draw(run, config.evaluation.num_samples, seed)  # compiled now
        seconds = (time.monotonic() - began) / len(samples)
        scores = evaluation.evaluate(run, dataset, setting.scores, seed, samples)
        numbers = {
            key: value
            for one in scores.values()
            for key, value in one.items()
            if key in setting.numbers
        }
        found["at"][str(count)] = {**numbers, "seconds_per_sample": seconds}
        np.savez_compressed(workdir / f"samples_{count}.npz", x=samples[:2000])
    return found


# --- what comes out -------------------------------------------------------------------------------


def cell(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g}"
    interval = statistics.mean_interval(values)
    return f"{interval.mean:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def table(setting: Setting, found: Mapping[str, Mapping[int, Any]]) -> str:
    head = ["method", "steps", *setting.numbers, "ms a sample", "parameters", "training steps",
            "operations"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, seeds in found.items():
        first = next(iter(seeds.values()))
        about = [
            f"{first['parameters']:,}", f"{first['training_steps']:,}", f"{first['operations']:.2g}"
        ]  # fmt: skip
        for count in METHODS[name].counts:
            at = [one["at"][str(count)] for one in seeds.values()]
            cells = [cell([one[number] for one in at]) for number in setting.numbers]
            milliseconds = 1e3 * min(one["seconds_per_sample"] for one in at)
            row = [name, str(count), *cells, f"{milliseconds:.3g}", *about]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def draw(args: argparse.Namespace, names: Sequence[str], seed: int, dataset: Dataset) -> Figure:
    """Samples of every method at its fewest and most steps, from one noise, beside the data."""
    shown = {"data": dataset.train.array(np.arange(64 if args.data == "digits" else 2000))}
    for name in names:
        counts = METHODS[name].counts
        for count in sorted({counts[0], counts[-1]}):
            file = np.load(folder(args, name, seed) / f"samples_{count}.npz")
            called = f"{name}, {count} step{'s' * (count > 1)}"
            shown[called] = file["x"][:64] if args.data == "digits" else file["x"]
    if args.data == "digits":
        return plots.draw_comparison(shown)
    columns = 4
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, x) in zip(panels, shown.items()):
        axes.plot(x[:, 0], x[:, 1], ".", ms=1.5, color="#0b6fa4")
        axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title=name)
    for axes in panels:
        axes.set_axis_off()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=sorted(SETTINGS), default="mixture")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "few_steps")
    parser.add_argument("--seeds", type=int, help="how many (default: 5)")
    parser.add_argument("--steps", type=int, help="of diffusion, whose operations all methods have")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args(argv)
    setting = SETTINGS[args.data]
    args.seeds, args.steps = args.seeds or setting.seeds, args.steps or setting.steps
    runtime.start(trains=True)
    names = [name for name in METHODS if name in args.methods or name == "diffusion"]
    dataset = data.load_cached(setting.base().data)
    found: dict[str, dict[int, Any]] = {name: {} for name in names}
    for seed in range(args.seeds):
        for name in names:
            path = folder(args, name, seed) / f"result_{args.steps}.json"
            if not path.exists():
                began = time.monotonic()
                result = measure(args, name, seed, dataset)
                write_json(path, result)
                print(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
            found[name][seed] = read_json(path)
    rows = table(setting, found)
    out = args.workdir / args.data
    with replacing(out / "table.md") as partial:
        partial.write_text(rows + "\n", encoding="utf-8")
    with replacing(out / "samples.png") as partial:
        draw(args, names, 0, dataset).savefig(partial, format="png", dpi=110)
    print(f"{rows}\n\npicture: {out / 'samples.png'}")


if __name__ == "__main__":
    main()
