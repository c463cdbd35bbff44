"""Diffusion in pixels against diffusion in latents: compute to equal distance on Fashion-MNIST.

    python experiments/latent_compute.py            # 3 seeds; half an hour on two CPU cores
    python experiments/latent_compute.py --seeds 5

Images of 16x16 pixels. The U-Net in pixels has three levels of equal width, 16, 8 and 4 pixels a
side. In the latents of an autoencoder of factor 2 it is the same U-Net without its upper level, in
those of factor 4 without its two upper levels. Every seed has autoencoders of its own. At some
numbers of training steps samples are drawn, and their Fréchet distance to the training images is
taken over the features of a small classifier, after decoding.

Compute is counted in floating-point operations by XLA: of the network's training steps, and apart
from them of the autoencoder's training and of encoding the training images once. Processor seconds
stand beside. "Equal distance" is for each seed the lowest distance that both of two arms reach, and
the compute to it is interpolated between measured points, both in logarithms.

Each training resumes, each measured point is kept in --workdir: the same command goes on where it
was interrupted. Tables, numbers and pictures go to --workdir, and the numbers of the claim
latent_cuts_compute to the file --raw.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, distributed, evaluation, plots, runtime, training
from diffax.data import Dataset, DatasetInfo
from diffax.evaluation import run as evaluating
from diffax.files import read_json, replacing, write_json
from diffax.report import figures, statistics
from diffax.training import codecs

ROOT = Path(__file__).resolve().parent.parent
NUM_SAMPLES = 1000
AUTOENCODER_STEPS = 600


class Arm(NamedTuple):
    """What is trained.

    Attributes:
      levels: of the U-Net.
      steps: of training.
      factor: of the autoencoder; 1 for pixels.
      latent_channels: of its latents.
    """

    levels: int
    steps: int
    factor: int = 1
    latent_channels: int = 0


ARMS = {
    "pixels, 16x16": Arm(3, 1200),
    "latents, 8x8x2": Arm(2, 2000, 2, 2),
    "latents, 4x4x4": Arm(1, 6000, 4, 4),
}
PIXELS, *LATENTS = ARMS
COLOURS = dict(zip(ARMS, (figures.PALETTE[0][0], figures.PALETTE[1][0], figures.PALETTE[2][0])))


def points(steps: int) -> list[int]:
    """The numbers of steps at which samples are measured."""
    return [steps // 16, steps // 8, steps // 4, steps // 2, steps]


# --- configs --------------------------------------------------------------------------------------


def _base(seed: int) -> ConfigDict:
    config = config_lib.default_config()
    config.seed = seed
    config.data.update(
        name="fashion_mnist", image_size=16, train_split="train[:20000]", eval_split="test[:2000]"
    )
    config.optimizer.update(learning_rate=2e-3, warmup_steps=50)
    config.ema.decay = 0.99
    config.training.update(batch_size=32, checkpoint_every=0, log_every=100)
    config.evaluation.update(gradient_batches=0, num_samples=NUM_SAMPLES)
    config.parallel.num_devices = 1
    return config


def autoencoder_config(arm: Arm, seed: int) -> ConfigDict:
    config = _base(seed)
    config.method.name = config.model.name = "autoencoder"
    mults = (1,) + (2,) * (arm.factor // 2)
    config.model.autoencoder.update(
        channels=16, channel_mults=mults, latent_channels=arm.latent_channels
    )
    config.optimizer.decay = "cosine"
    config.training.num_steps = AUTOENCODER_STEPS
    return config


def network_config(workdir: Path, arm: Arm, seed: int) -> ConfigDict:
    config = _base(seed)
    config.model.unet.update(
        channels=24, channel_mults=(1,) * arm.levels, num_blocks=1, attention_resolutions=()
    )
    config.schedule.update(log_snr_max=10.0, log_snr_min=-10.0)
    config.objective.prediction = "v"
    config.sampling.update(sampler="dpmpp_2m", num_steps=10)
    config.training.update(num_steps=arm.steps, checkpoint_every=arm.steps // 4)
    if arm.factor > 1:
        config.codec.update(name="run", path=str(_autoencoder(workdir, arm, seed)))
    return config


def _autoencoder(workdir: Path, arm: Arm, seed: int) -> Path:
    return workdir / f"autoencoder_{arm.factor}" / str(seed)


# --- floating-point operations, by XLA's count ----------------------------------------------------


def operations(config: ConfigDict, info: DatasetInfo) -> float:
    """Of a training step of a config, on latents if it has a codec."""
    method = codecs.build_method(config, info, of_latents=config.codec.name != "identity")
    state = jax.eval_shape(method.init, jax.random.key(0))
    shape = codecs.inside(config, info).shape
    batch = {"x": jax.ShapeDtypeStruct((config.training.batch_size, *shape), np.float32)}
    step = functools.partial(method.step, sharding=distributed.LOCAL)
    return _count(step, state, batch)


def _count(function: Any, *given: Any) -> float:
    return float(jax.jit(function).lower(*given).cost_analysis()["flops"])


def coding(config: ConfigDict, info: DatasetInfo) -> dict[str, float]:
    """Of encoding and of decoding an example; 0 in pixels."""
    if config.codec.name == "identity":
        return {"encode": 0.0, "decode": 0.0}
    codec = codecs.codec_of(config, info)
    rows = 32
    x, z = (jax.ShapeDtypeStruct((rows, *shape), np.float32) for shape in (info.shape, codec.shape))
    return {
        "encode": _count(codec.encode, x) / rows,
        "decode": _count(codec.decode, z) / rows,
    }


# --- one arm, one seed ----------------------------------------------------------------------------


def train_autoencoder(workdir: Path, arm: Arm, seed: int, dataset: Dataset) -> dict[str, Any]:
    """Trains it unless that is done; its cost, and how good its reconstructions are."""
    root = _autoencoder(workdir, arm, seed)
    path, config = root / "measured.json", autoencoder_config(arm, seed)
    if path.exists():
        return read_json(path)
    begin = time.process_time()
    training.train(config, root)
    seconds = time.process_time() - begin
    run = training.load(root)
    psnr = evaluating.evaluate(run, dataset, ["psnr"])["psnr"]["psnr"]
    codec = codecs.load(root)
    x = dataset.eval.array(np.arange(NUM_SAMPLES))
    made = np.asarray(jax.jit(lambda x: codec.decode(codec.encode(x)))(x))
    found = {
        "operations": operations(config, DatasetInfo.of(dataset)) * AUTOENCODER_STEPS,
        "cpu_seconds": seconds,
        "psnr": psnr,
        "frechet": distance(dataset, made),
    }
    np.savez_compressed(root / "reconstructed.npz", given=x[:10], made=made[:10])
    write_json(path, found)
    return found


def distance(dataset: Dataset, samples: np.ndarray) -> float:
    reference = evaluation.Reference.of(dataset)
    return evaluation.score(samples, reference, ["frechet"])["frechet"]["frechet"]


class Watch:
    """Measures a run at its points, and what a training step takes of the processor meanwhile.

    It is the argument `stop` of `training.train`, and never stops it.
    """

    def __init__(self, root: Path, dataset: Dataset, steps: Sequence[int], seed: int) -> None:
        self.root, self.dataset, self.steps, self.seed = root, dataset, steps, seed
        self.seconds, self.counted, self._last = 0.0, 0, None

    def __call__(self, step: int, run: training.Run) -> bool:
        measure = step in self.steps
        if measure:
            jax.block_until_ready(run.state)
        now = time.process_time()
        if self._last is not None:  # the first step is compiled
            self.seconds, self.counted = self.seconds + now - self._last, self.counted + 1
        path = self.root / f"point_{step}.json"
        if measure and not path.exists():
            samples = evaluating.draw(run._replace(state=jax.device_get(run.state)), NUM_SAMPLES)
            np.savez_compressed(path.with_suffix(".npz"), x=samples[:20])
            write_json(path, {"step": step, "frechet": distance(self.dataset, samples)})
        self._last = time.process_time()
        return False


def measure(workdir: Path, name: str, seed: int, dataset: Dataset) -> dict[str, Any]:
    """An arm's curve and its costs: trained and measured as far as that isn't done."""
    arm, info = ARMS[name], DatasetInfo.of(dataset)
    root = workdir / name.replace(", ", "_") / str(seed)
    path = root / "measured.json"
    if path.exists():
        return read_json(path)
    own = train_autoencoder(workdir, arm, seed, dataset) if arm.factor > 1 else None
    config = network_config(workdir, arm, seed)
    watch = Watch(root, dataset, points(arm.steps), seed)
    training.train(config, root, watch)
    found = {
        "curve": [read_json(root / f"point_{step}.json") for step in points(arm.steps)],
        "operations_per_step": operations(config, info),
        "seconds_per_step": watch.seconds / max(watch.counted, 1),
        "parameters": sum(p.size for p in jax.tree.leaves(training.load(root).state.params)),
        "autoencoder": own,
        "coding": coding(config, info),
        "encoding": coding(config, info)["encode"] * len(dataset.train),
        "date": f"{datetime.date.today()}",
    }
    write_json(path, found)
    return found


# --- compute to equal distance --------------------------------------------------------------------


def overhead(one: Mapping[str, Any]) -> float:
    """Operations before the first step in latents: the autoencoder's training and encoding."""
    return one["encoding"] + (one["autoencoder"]["operations"] if one["autoencoder"] else 0.0)


def best(one: Mapping[str, Any]) -> float:
    return min(point["frechet"] for point in one["curve"])


def steps_to(one: Mapping[str, Any], target: float) -> float:
    """After how many steps a curve first reaches a distance, which it does; both in logarithms."""
    before = None
    for point in one["curve"]:
        if point["frechet"] <= target:
            if before is None:
                return point["step"]
            ends = [np.log([p["frechet"], p["step"]]) for p in (point, before)]
            (y1, x1), (y0, x0) = ends
            return float(np.exp(x0 + (x1 - x0) * (np.log(target) - y0) / (y1 - y0)))
        before = point
    raise ValueError(f"the curve does not reach {target}")


def compared(pixels: Mapping[str, Any], latents: Mapping[str, Any]) -> dict[str, float]:
    """Of one seed: the distance that both reach, and what each took to it."""
    target = max(best(pixels), best(latents))
    found = {"target": target}
    for name, one in (("pixels", pixels), ("latents", latents)):
        steps = steps_to(one, target)
        found[f"{name}_network"] = steps * one["operations_per_step"]
        found[f"{name}_seconds"] = steps * one["seconds_per_step"]
    found["latents_whole"] = found["latents_network"] + overhead(latents)
    return found


# --- what comes out -------------------------------------------------------------------------------

Found = Mapping[str, Sequence[Mapping[str, Any]]]  # arm -> one for each seed


def interval(values: Sequence[float], log: bool = True) -> str:
    """Geometric mean, or mean, with the interval of Student's t."""
    shown = np.log(values) if log else np.asarray(values)
    found = statistics.mean_interval(shown)
    ends = (found.mean, found.low, found.high)
    mean, low, high = np.exp(ends) if log else ends
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"


def tables(found: Found) -> str:
    costs = ["| arm | parameters | operations a step | CPU ms a step | autoencoder and encoding,"
             " operations | decoding a sample | PSNR, dB | distance of reconstructions |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    curves = ["| arm | steps | operations | distance |", "|---|---|---|---|"]
    for name, seeds in found.items():
        first = seeds[0]
        coder = [one["autoencoder"] for one in seeds if one["autoencoder"]]
        of_coder = ["0", "–", "–", "–"]
        if coder:
            of_coder = [
                f"{overhead(first):.3g}",
                f"{first['coding']['decode']:.3g}",
                interval([one["psnr"] for one in coder], log=False),
                interval([one["frechet"] for one in coder]),
            ]
        milliseconds = 1e3 * np.mean([one["seconds_per_step"] for one in seeds])
        row = [name, f"{first['parameters']:,}", f"{first['operations_per_step']:.3g}",
               f"{milliseconds:.3g}", *of_coder]  # fmt: skip
        costs.append(f"| {' | '.join(row)} |")
        for i, point in enumerate(first["curve"]):
            values = interval([one["curve"][i]["frechet"] for one in seeds])
            cost = point["step"] * first["operations_per_step"]
            curves.append(f"| {name} | {point['step']:,} | {cost:.3g} | {values} |")
    ratios = ["| latents | distance that both reach | pixels over latents, network alone | with the"
              " autoencoder | CPU seconds, network alone |", "|---|---|---|---|---|"]  # fmt: skip
    for name in LATENTS:
        pairs = [compared(*pair) for pair in zip(found[PIXELS], found[name])]
        cells = [
            interval([p["target"] for p in pairs]),
            *(
                interval([p[above] / p[below] for p in pairs])
                for above, below in (
                    ("pixels_network", "latents_network"),
                    ("pixels_network", "latents_whole"),
                    ("pixels_seconds", "latents_seconds"),
                )
            ),
        ]
        ratios.append(f"| {name} | {' | '.join(cells)} |")
    return "\n\n".join("\n".join(table) for table in (costs, curves, ratios))


def draw(found: Found) -> Figure:
    """Distance against operations: of the network alone, and with the autoencoder."""
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("the network's training", "with the autoencoder and encoding")
    for axes, title, whole in zip(panels, titles, (0.0, 1.0)):
        for name, seeds in found.items():
            lines = []
            for one in seeds:
                x = [
                    p["step"] * one["operations_per_step"] + whole * overhead(one)
                    for p in one["curve"]
                ]
                y = [p["frechet"] for p in one["curve"]]
                axes.plot(x, y, color=COLOURS[name], lw=0.7, alpha=0.6)
                lines.append((x, y))
            mean = np.exp(np.mean(np.log(lines), axis=0))
            axes.plot(*mean, "o-", color=COLOURS[name], lw=2, ms=4, label=name)
        axes.set(xscale="log", yscale="log", title=title, xlabel="floating-point operations")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Fréchet distance to the training images")
    panels[0].legend(frameon=False)
    return figure


def pictures(workdir: Path, dataset: Dataset) -> Figure:
    """Of seed 0: images, reconstructions, and the samples of each arm at its end."""
    shown = {"images": dataset.eval.array(np.arange(10))}
    for name in LATENTS:
        file = np.load(_autoencoder(workdir, ARMS[name], 0) / "reconstructed.npz")
        shown[f"their reconstructions, {name}"] = file["made"]
    for name, arm in ARMS.items():
        root = workdir / name.replace(", ", "_") / "0"
        shown[f"samples, {name}"] = np.load(root / f"point_{arm.steps}.npz")["x"]
    return plots.draw_comparison(shown)


def raw(found: Found, seeds: int) -> dict[str, Any]:
    """The numbers of the claim latent_cuts_compute, as the ledger reads them."""
    arms = {}
    for name in LATENTS:
        pairs = [compared(*pair) for pair in zip(found[PIXELS], found[name])]
        arms[f"factor {ARMS[name].factor}"] = {
            "pixels": [p["pixels_network"] for p in pairs],
            "network": [p["latents_network"] for p in pairs],
            "whole": [p["latents_whole"] for p in pairs],
            "distance": [p["target"] for p in pairs],
        }
    seconds = sum(
        one["seconds_per_step"] * one["curve"][-1]["step"]
        + (one["autoencoder"]["cpu_seconds"] if one["autoencoder"] else 0)
        for of_arm in found.values()
        for one in of_arm
    )
    return {
        "claim": "latent_cuts_compute",
        "scale": "digits",
        "about": "Fashion-MNIST at 16x16, 20,000 images; a U-Net of three levels in pixels, without"
        " its upper levels in latents; experiments/latent_compute.py",
        "num_samples": NUM_SAMPLES,
        "seeds": list(range(seeds)),
        "cpu_minutes": seconds / 60,
        "machine": f"{platform.machine()} CPU, jax {jax.__version__},"
        f" Python {platform.python_version()}",
        "date": max(one["date"] for of_arm in found.values() for one in of_arm),
        "networks": {},
        "arms": arms,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "latent_compute")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2 (default: 3)")
    parser.add_argument("--raw", type=Path, help="also write the numbers of the claim to this file")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error(f"--seeds={args.seeds}: an interval needs at least 2")
    runtime.start(trains=True)
    dataset = data.load_cached(_base(0).data)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in range(args.seeds):
        for name in ARMS:
            begin = time.monotonic()
            found[name].append(measure(args.workdir, name, seed, dataset))
            said = json.dumps([round(p["frechet"], 2) for p in found[name][-1]["curve"]])
            print(f"{name}, seed {seed}: {said}, {time.monotonic() - begin:.0f} s", flush=True)
    rows = tables(found)
    (args.workdir / "tables.md").write_text(rows + "\n", encoding="utf-8")
    write_json(args.workdir / "latent_compute.json", found)
    for name, figure in (("curves", draw(found)), ("samples", pictures(args.workdir, dataset))):
        with replacing(args.workdir / f"{name}.png") as partial:
            figure.savefig(partial, format="png", dpi=110)
    if args.raw:
        write_json(args.raw, raw(found, args.seeds))
    print(rows)


if __name__ == "__main__":
    main()
