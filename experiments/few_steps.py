"""One to four steps: distilled diffusion, consistency models, mean flow, GANs, on equal compute.

    python experiments/few_steps.py                          # 25 modes in the plane, 5 seeds
    python experiments/few_steps.py --data digits            # 5 seeds, 8x8, a U-Net
    python experiments/few_steps.py --data fashion_mnist     # 3 seeds, 16x16, in latents of 4x4x4

Each method trains a network on the same data, for as many steps as have the floating-point
operations of --steps steps of diffusion, counted by XLA. Students have a teacher beside that: the
diffusion run of their seed. All are then sampled at the numbers of network calls that they know,
and measured against the training data. Of the mixture the number of modes kept and the share of
samples off every mode are exact; of images it is the Fréchet distance, KID, precision, recall and
coverage over the features of a small classifier. At each quarter of its training a method is
measured at its fewest steps, too: the curves.

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
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from ml_collections import ConfigDict

from diffax import Generator, data, distributed, plots, runtime, training
from diffax import config as config_lib
from diffax.data import Dataset, DatasetInfo
from diffax.evaluation import run as evaluation
from diffax.files import read_json, replacing, write_json
from diffax.report import figures, statistics
from diffax.training import codecs

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

latent_compute = importlib.import_module("latent_compute")


class Entry(NamedTuple):
    """A method.

    Attributes:
      changes: of the base config.
      counts: the steps that it is sampled with.
      taught: it has a teacher.
      shown: those of its counts that are drawn.
      followed: the steps of its curve over training; 0: the fewest that it knows by then.
    """

    changes: Mapping[str, Any]
    counts: tuple[int, ...]
    taught: bool = False
    shown: tuple[int, ...] = (1,)
    followed: int = 1

    def but(self, **changes: Any) -> Entry:
        """With more changes of the config, whose keys have __ for dots."""
        more = {key.replace("__", "."): value for key, value in changes.items()}
        return self._replace(changes={**self.changes, **more})


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
    "objective.time_sampling": "uniform",
}
_CONSISTENCY = {
    "method.name": "consistency",
    "method.first_intervals": 8,
    "method.last_intervals": 128,
    "sampling.sampler": "consistency",
}
METHODS: dict[str, Entry] = {
    "diffusion": Entry({}, (1, 2, 4, 8, 25, 100), shown=(100, 4), followed=25),
    "progressive": Entry(
        {"method.name": "progressive"}, (1, 2, 4, 8), taught=True, shown=(4, 1), followed=0
    ),
    "consistency, tuned": Entry(_CONSISTENCY, (1, 2, 4), taught=True, shown=(2, 1)),
    "consistency": Entry(_CONSISTENCY, (1, 2, 4)),
    "mean flow": Entry({"method.name": "mean_flow", **_FLOW}, (1, 2, 4), shown=(2, 1)),
    "GAN": Entry({"method.name": "gan", **_GAN}, (1,)),
    "denoising GAN": Entry(
        {"method.name": "denoising_gan", **_GAN, "model.name": "mlp", "method.denoising_steps": 4},
        (4,),
        shown=(4,),
        followed=4,
    ),
}


# --- the data, and what suits each method there ---------------------------------------------------


class Setting(NamedTuple):
    """A data set.

    Attributes:
      base: its config.
      methods: as they are there.
      scores: by which samples are measured.
      numbers: of the scores, in the table; the last is that of curves and ratios.
      steps: of diffusion.
      seeds: how many.
      drawn: samples in a picture.
    """

    base: Callable[[], ConfigDict]
    methods: Mapping[str, Entry]
    scores: tuple[str, ...]
    numbers: tuple[str, ...]
    steps: int
    seeds: int
    drawn: int


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
    """The U-Net of configs/digits.py, 755,000 parameters, and the GANs' networks of their configs:
    a generator with as many parameters has 8 times the operations of a step of diffusion."""
    config = importlib.import_module("configs.digits").get_config()
    of_gan = importlib.import_module("configs.gan_digits").get_config()
    config.model.generator = of_gan.model.generator
    config.discriminator = of_gan.discriminator
    config.training.eval_every = config.training.sample_every = 0
    return config


def _fashion_mnist() -> ConfigDict:
    """Images of 16x16 in the latents of an autoencoder, of 4x4x4, as in latent_compute.py."""
    arm = latent_compute.ARMS["latents, 4x4x4"]
    config = latent_compute.network_config(Path(), arm, seed=0)
    for network in (config.model.generator, config.discriminator.residual):
        network.update(channels=24, channel_mults=(1,), num_blocks=1)
    config.discriminator.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.sampling.sampler = "ddim"
    return config


_GAN_OF_POINTS = dict(
    method__latent_size=16,
    method__r1_weight=0.1,
    method__r2_weight=0.1,
    optimizer__learning_rate=1e-3,
)
_OF_IMAGES = dict(
    scores=("frechet", "kid", "prdc"),
    numbers=("kid", "precision", "recall", "coverage", "frechet"),
)
# Of each stage the rate falls to 0 by itself.
_STAGES = dict(optimizer__decay="constant", optimizer__warmup_steps=0, ema__decay=0.99)
_TWO_STEPS = dict(
    model__name="unet",
    optimizer__decay="cosine",
    discriminator__decay="cosine",
    method__denoising_steps=2,
    method__r1_weight=1.0,
    method__r2_weight=1.0,
)
SETTINGS = {
    "mixture": Setting(
        _mixture,
        {
            **METHODS,
            "GAN": METHODS["GAN"].but(**_GAN_OF_POINTS),
            "denoising GAN": METHODS["denoising GAN"].but(**_GAN_OF_POINTS),
            "mean flow": METHODS["mean flow"].but(method__adaptive_power=0.0),
        },
        scores=("modes", "swd"),
        numbers=("modes_kept", "off_modes", "modes_kl", "swd"),
        steps=6000,
        seeds=5,
        drawn=2000,
    ),
    "digits": Setting(
        _digits,
        {
            **METHODS,
            "progressive": METHODS["progressive"].but(**_STAGES),
            "consistency, tuned": METHODS["consistency, tuned"].but(
                method__last_intervals=64, optimizer__learning_rate=5e-4, ema__decay=0.99
            ),
            "mean flow": METHODS["mean flow"].but(
                method__instant_share=0.5, objective__time_sampling="logit_normal", ema__decay=0.99
            ),
            "denoising GAN": METHODS["denoising GAN"]
            .but(
                **_TWO_STEPS,
                model__unet__channels=16,
                model__unet__attention_resolutions=(),
            )
            ._replace(counts=(2,), shown=(2,), followed=2),
        },
        **_OF_IMAGES,
        steps=700,
        seeds=5,
        drawn=36,
    ),
    "fashion_mnist": Setting(
        _fashion_mnist,
        {
            **METHODS,
            "progressive": METHODS["progressive"].but(**_STAGES, optimizer__learning_rate=1e-3),
            "consistency, tuned": METHODS["consistency, tuned"].but(optimizer__learning_rate=1e-3),
            "mean flow": METHODS["mean flow"].but(method__instant_share=0.5),
            "GAN": METHODS["GAN"].but(optimizer__learning_rate=1e-3),
            "denoising GAN": METHODS["denoising GAN"]
            .but(**_TWO_STEPS, optimizer__learning_rate=1e-3)
            ._replace(counts=(2,), shown=(2,), followed=2),
        },
        **_OF_IMAGES,
        steps=3000,
        seeds=3,
        drawn=36,
    ),
}


def config_of(args: argparse.Namespace, name: str, seed: int, steps: int) -> ConfigDict:
    """The config of a method's training."""
    setting = SETTINGS[args.data]
    entry = setting.methods[name]
    config = setting.base()
    config.seed = seed
    config.objective.prediction = "v"
    config.training.num_steps = steps
    config.training.checkpoint_every = 0
    config.update_from_flattened_dict(entry.changes)
    config.sampling.num_steps = min(entry.counts)
    if config.codec.name != "identity":
        config.codec.path = str(args.workdir / args.data / "autoencoder")
    if entry.taught:
        config.method.teacher = str(folder(args, "diffusion", seed))
    if config.method.name == "progressive":
        config.method.teacher_steps = 16
        at_once = config.training.steps_per_call
        config.method.stage_steps = max(steps // 4 // at_once, 1) * at_once
        config.training.num_steps = 4 * config.method.stage_steps
    if config.method.name == "consistency":
        own = config.method
        phases = (own.last_intervals // own.first_intervals).bit_length()
        own.doubling_steps = max(steps // phases, 1)
    return config


def folder(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.workdir / args.data / name.replace(", ", "_").replace(" ", "_") / str(seed)


def operations(config: ConfigDict, info: DatasetInfo) -> float:
    """Floating-point operations of a training step, by XLA's count of its program."""
    method = codecs.build_method(config, info, of_latents=config.codec.name != "identity")
    state = jax.eval_shape(method.init, jax.random.key(0))
    size, shape = config.training.batch_size, codecs.inside(config, info).shape
    batch = {"x": jax.ShapeDtypeStruct((size, *shape), np.float32)}
    if info.num_classes:
        batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
    step = functools.partial(method.step, sharding=distributed.LOCAL)
    return jax.jit(step).lower(state, batch).cost_analysis()["flops"]


# --- one method, one seed -------------------------------------------------------------------------


def sampled_with(run: training.Run, count: int) -> training.Run:
    return run.under(config_lib.changed(run.config, {"sampling.num_steps": count}))


class Watch:
    """Measures a run after each quarter of its training but the last, and the processor's time of
    its training alone. It is the argument `stop` of `training.train`, and never stops it."""

    def __init__(
        self, args: argparse.Namespace, name: str, seed: int, num_steps: int, dataset: Dataset
    ) -> None:
        self.setting, self.seed, self.dataset = SETTINGS[args.data], seed, dataset
        self.root, self.entry = folder(args, name, seed), self.setting.methods[name]
        at_once = self.setting.base().training.steps_per_call
        self.points = [num_steps * i // 4 // at_once * at_once for i in (1, 2, 3)]
        self.elsewhere = 0.0  # seconds

    def count(self, point: int) -> int:
        """The steps that a run is sampled with at a point."""
        return self.entry.followed or sorted(self.entry.counts, reverse=True)[point]

    def __call__(self, step: int, run: training.Run) -> bool:
        path = self.root / f"point_{step}.json"
        if step in self.points and not path.exists():
            jax.block_until_ready(run.state)
            began = time.process_time()
            count = self.count(self.points.index(step))
            run = sampled_with(run._replace(state=jax.device_get(run.state)), count)
            samples = evaluation.draw(run, run.config.evaluation.num_samples, self.seed)
            name = next(score for score in self.setting.scores if score in self.setting.numbers)
            scores = evaluation.evaluate(run, self.dataset, (name,), self.seed, samples)
            write_json(path, {"step": step, "count": count, name: scores[name][name]})
            self.elsewhere += time.process_time() - began
        return False

    def curve(self) -> list[dict[str, float]]:
        return [read_json(self.root / f"point_{step}.json") for step in self.points]


def measure(args: argparse.Namespace, name: str, seed: int, dataset: Dataset) -> dict[str, Any]:
    """Trains it, as far as that isn't done, and measures its samples at every number of steps."""
    info, setting = DatasetInfo.of(dataset), SETTINGS[args.data]
    base = operations(config_of(args, "diffusion", seed, args.steps), info)
    each = operations(config_of(args, name, seed, args.steps), info)
    # Whole calls of the training step: another number of steps in the last would be compiled anew.
    at_once = setting.base().training.steps_per_call
    steps = max(round(args.steps * base / each / at_once), 1) * at_once
    config = config_of(args, name, seed, steps)
    workdir, entry = folder(args, name, seed), setting.methods[name]
    watch = Watch(args, name, seed, config.training.num_steps, dataset)
    began = time.process_time()
    training.train(config, workdir, watch)
    found: dict[str, Any] = {
        "training_steps": config.training.num_steps,
        "operations": each * config.training.num_steps,
        "seconds": time.process_time() - began - watch.elsewhere,
        "at": {},
    }
    loaded = training.load(workdir)
    found["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(loaded.state.ema_params))
    num = config.evaluation.num_samples
    generate = Generator(loaded, num // 4, num_devices=1)
    for count in entry.counts:
        samples = generate(num, seed, num_steps=count)
        began = time.process_time()
        generate(num // 4, seed + 1, num_steps=count)  # compiled now
        seconds = (time.process_time() - began) / (num // 4)
        run = sampled_with(loaded, count)
        scores = evaluation.evaluate(run, dataset, setting.scores, seed, samples)
        numbers = {
            key: value
            for one in scores.values()
            for key, value in one.items()
            if key in setting.numbers
        }
        found["at"][str(count)] = {**numbers, "seconds_per_sample": seconds}
        np.savez_compressed(workdir / f"samples_{count}.npz", x=samples[:2000])
    found["curve"] = watch.curve()
    return found


# --- what comes out -------------------------------------------------------------------------------

Found = Mapping[str, Mapping[int, Any]]  # method -> seed -> what was measured
TEACHER = ("diffusion", "100")
LABELS = {"frechet": "Fréchet distance", "swd": "sliced Wasserstein distance"}


FEWEST = 3  # seeds of an interval; of two it is 13 times as wide as they are apart


def cell(values: Sequence[float]) -> str:
    """The mean and its interval; the values themselves of fewer than three seeds."""
    if len(values) < FEWEST:
        return ", ".join(f"{value:.3g}" for value in values)
    interval = statistics.mean_interval(values)
    return f"{interval.mean:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    """The geometric mean of the paired ratios and its interval; or the ratios, as in `cell`."""
    ratios = np.divide(values, others)
    if len(ratios) < FEWEST:
        return cell(ratios)
    found = statistics.geometric_interval(ratios)
    return f"{found.mean:.3g} ({found.low:.3g} to {found.high:.3g})"


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def costs(found: Found) -> str:
    """What each method's training takes."""
    rows = []
    for name, seeds in found.items():
        first = next(iter(seeds.values()))
        seconds = np.mean([one["seconds"] for one in seeds.values()])
        rows.append([name, f"{first['parameters']:,}", f"{first['training_steps']:,}",
                     f"{first['operations']:.2g}", f"{seconds:.0f}"])  # fmt: skip
    head = ["method", "parameters", "training steps", "operations", "CPU seconds"]
    return lines(head, rows)


def table(setting: Setting, found: Found) -> str:
    """The scores of each method at each number of steps."""
    last, (whose, most) = setting.numbers[-1], TEACHER
    best = {seed: one["at"][most][last] for seed, one in found.get(whose, {}).items()}
    rows = []
    for name, seeds in found.items():
        for count in setting.methods[name].counts:
            at = {seed: one["at"][str(count)] for seed, one in seeds.items()}
            cells = [cell([one[number] for one in at.values()]) for number in setting.numbers]
            if best:
                cells.append(ratio([at[s][last] for s in at], [best[s] for s in at]))
            milliseconds = 1e3 * min(one["seconds_per_sample"] for one in at.values())
            rows.append([name, str(count), *cells, f"{milliseconds:.3g}"])
    over = [f"{last} over {whose}'s in {most}"] if best else []
    return lines(["method", "steps", *setting.numbers, *over, "ms a sample"], rows)


def draw_samples(args: argparse.Namespace, names: Sequence[str], dataset: Dataset) -> Figure:
    """Samples of every method, seed 0, from one noise, beside the data."""
    setting = SETTINGS[args.data]
    shown = {"data": dataset.train.array(np.arange(setting.drawn))}
    for name in names:
        for count in setting.methods[name].shown:
            file = np.load(folder(args, name, 0) / f"samples_{count}.npz")
            shown[f"{name}, {count} step{'s' * (count > 1)}"] = file["x"][: setting.drawn]
    columns = 4
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, x) in zip(panels, shown.items()):
        if x.ndim == 4:
            axes.imshow(plots.picture(x), cmap="gray")
        else:
            axes.plot(x[:, 0], x[:, 1], ".", ms=1.5, color="#0b6fa4")
            axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
        axes.set_title(name, fontsize=10)
    for axes in panels:
        axes.set_axis_off()
    return figure


def draw_curves(setting: Setting, found: Found) -> Figure:
    """The last of the setting's numbers over the training, each seed and the geometric mean."""
    figure = Figure(figsize=(7.5, 3.8), dpi=110, layout="constrained")
    axes, last = figure.subplots(), setting.numbers[-1]
    colours = dict(zip(METHODS, [*(colour for colour, _ in figures.PALETTE), "#8c2d04"]))
    for name, seeds in found.items():
        entry, colour = setting.methods[name], colours[name]
        counts = [point["count"] for point in next(iter(seeds.values()))["curve"]]
        counts.append(entry.followed or min(entry.counts))
        drawn = []
        for one in seeds.values():
            whole = one["training_steps"]
            x = [one["operations"] * point["step"] / whole for point in one["curve"]]
            y = [point[last] for point in one["curve"]] + [one["at"][str(counts[-1])][last]]
            drawn.append(([*x, one["operations"]], y))
            axes.plot(*drawn[-1], color=colour, lw=0.6, alpha=0.5)
        said = ", ".join(map(str, counts)) if len(set(counts)) > 1 else str(counts[0])
        label = f"{name}, {said} step{'s' * (counts != [1] * len(counts))}"
        mean = np.exp(np.mean(np.log(drawn), axis=0))
        axes.plot(*mean, "o-", color=colour, lw=2, ms=4, label=label)
    axes.set(yscale="log", xlabel="floating-point operations of training", ylabel=LABELS[last])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def prepare(args: argparse.Namespace) -> None:
    """Trains the autoencoder of a data set that is worked on in latents, unless that is done."""
    if SETTINGS[args.data].base().codec.name != "identity":
        config = latent_compute.autoencoder_config(latent_compute.ARMS["latents, 4x4x4"], 0)
        training.train(config, args.workdir / args.data / "autoencoder")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=sorted(SETTINGS), default="mixture")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "few_steps")
    parser.add_argument("--seeds", type=int, help="how many (default: 5, of fashion_mnist 3)")
    parser.add_argument("--steps", type=int, help="of diffusion, whose operations all methods have")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args(argv)
    setting = SETTINGS[args.data]
    args.seeds, args.steps = args.seeds or setting.seeds, args.steps or setting.steps
    runtime.start(trains=True)
    names = [name for name in METHODS if name in args.methods or name == "diffusion"]
    dataset = data.load_cached(setting.base().data)
    prepare(args)
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
    rows = f"{costs(found)}\n\n{table(setting, found)}"
    out = args.workdir / args.data
    with replacing(out / "tables.md") as partial:
        partial.write_text(rows + "\n", encoding="utf-8")
    pictures = {
        "samples": draw_samples(args, names, dataset),
        "curves": draw_curves(setting, found),
    }
    for name, figure in pictures.items():
        with replacing(out / f"{name}.png") as partial:
            figure.savefig(partial, format="png", dpi=110)
    print(f"{rows}\n\npictures: {out}")


if __name__ == "__main__":
    main()
