"""Does the best noise schedule differ from domain to domain, and what does it gain over cosine?

    python experiments/domains.py --data FOLDER            # four domains, one CPU core
    python experiments/domains.py --data FOLDER --only=sound
    python experiments/domains.py --page                   # the tables from the raw numbers

FOLDER holds emoji/, blood_cells/ and satellite/, folders of pictures, and spoken_digits_8khz.npz.
Pictures are made 16x16. Of a sound, averaged to 2 kHz, 256 numbers around its loudest place are
taken. In each domain the same settings of the schedule are tried with one seed and the same budget:
a family (cosine, linear, sigmoid, and the spectral one, which is made from the covariance of the
domain's own training data), and cosine with an input scale b, which shifts its log-SNR by 2 log b.
The best setting and cosine are then trained again with seeds that the search has not seen, and
compared pair by pair. The loss is that of v, and samples are drawn by ddim, whose levels are
equally spaced along the schedule: a setting decides both the noise levels that are trained at and
those that are visited. Every schedule is given by its rate (`diffax.rates.of_schedule`), so that
one compiled program trains them all.

A distance is one that `diffax evaluate` offers for the domain: of satellite images, which have
labels, Fréchet's over the features of a small classifier, and of the others the sliced Wasserstein
distance of the values. The raw numbers go to results/domains.json, and those of a claim of the
ledger to results/claims/. The same command resumes if interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import evaluation, rates, runtime, schedules, training
from diffax.ablation import Arm, print_progress, run_grid, runner
from diffax.data.dataset import to_float
from diffax.files import read_json, write_json, write_text
from diffax.report import figures, statistics
from diffax.report.formatting import p_text, ratio, significant, span

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
NAME, CLAIM = "domains", "default_schedules_rarely_optimal"
SEARCHED = 0  # the seed of the search
NUM_SAMPLES = 300
LENGTH = 256  # of a sound
KNOTS = 65  # of a rate
DEFAULT = "cosine"
SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "linear": {"schedule.name": "linear"},
    "sigmoid": {"schedule.name": "sigmoid"},
    "spectral": {},  # see `schedules_of`
    "cosine, b = 1/2": {"schedule.input_scale": 0.5},
    "cosine, b = 2": {"schedule.input_scale": 2.0},
    "cosine, b = 4": {"schedule.input_scale": 4.0},
}


class Domain(NamedTuple):
    """Data and how samples of them are judged.

    Attributes:
      source: in the folder of data.
      metric: of `diffax evaluate`.
      channels: of the pictures; 0 for sound.
    """

    source: str
    metric: str
    channels: int = 3


DOMAINS = {
    "emoji": Domain("emoji", "swd"),
    "cells": Domain("blood_cells", "swd"),
    "satellite": Domain("satellite", "frechet"),
    "sound": Domain("spoken_digits_8khz.npz", "swd", 0),
}


OF_CLAIM = ("cells", "satellite", "sound")  # the domains that the ledger's claim names


def config_of(name: str, data: Path, workdir: Path, steps: int) -> ConfigDict:
    """What is common to all settings of a domain."""
    domain, config = DOMAINS[name], config_lib.default_config()
    unet = config.model.unet
    unet.update(channels=16, num_blocks=1, attention_resolutions=(), channel_mults=(1, 2))
    if domain.channels:
        config.data.update(name="folder", path=str(data / domain.source), image_size=16)
        config.data.channels = domain.channels
    else:
        config.data.update(name="npz", path=str(loudest(data / domain.source, workdir)))
    config.schedule.update(log_snr_max=10.0, log_snr_min=-10.0)
    config.objective.prediction = "v"
    config.optimizer.update(learning_rate=2e-3, warmup_steps=50, decay="cosine")
    config.ema.decay = 0.98
    config.training.update(
        batch_size=32, num_steps=steps, log_every=100, checkpoint_every=0, sample_every=0
    )
    config.sampling.update(sampler="ddim", grid="uniform", num_steps=20, clip_x0=1.0)
    config.evaluation.update(
        metrics=(domain.metric,), num_samples=NUM_SAMPLES, gradient_batches=0
    )
    config.parallel.num_devices = 1
    return config


def loudest(path: Path, workdir: Path) -> Path:
    """Signals at a quarter of their rate around their loudest place, in a file of their own."""
    made = workdir / f"{path.stem}_loudest.npz"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with np.load(path) as found:
            audio = found["audio"].astype(np.float32) / 32768
        num, length, channels = audio.shape
        x = audio.reshape(num, length // 4, 4, channels).mean(axis=2)
        energy = np.cumsum(np.square(x).sum(axis=2), axis=1)
        first = np.argmax(energy[:, LENGTH:] - energy[:, :-LENGTH], axis=1) + 1
        np.savez(made, x=np.stack([one[i : i + LENGTH] for one, i in zip(x, first)]))
    return made


def schedules_of(config: ConfigDict, folder: Path) -> dict[str, dict[str, Any]]:
    """Setting -> overrides that give its schedule by its rate, which is kept in `folder`."""
    found = {}
    for name, overrides in SETTINGS.items():
        schedule = config_lib.build_schedule(config_lib.changed(config, overrides))
        high, low = (float(end) for end in schedules.ends_of(schedule))
        path = folder / f"{name}.json".replace("/", "_")
        if name == "spectral":
            x = to_float(config_lib.load_data(config).train.array())
            eigenvalues = np.linalg.eigvalsh(rates.covariance(x)[1])
            rate = rates.spectral(eigenvalues, high, low, KNOTS)
        else:
            rate = rates.of_schedule(schedule, num_levels=KNOTS)
        write_text(path, rate.to_json())
        found[name] = {
            "schedule.name": "from_rate",
            "schedule.path": str(path),
            "schedule.log_snr_max": high,
            "schedule.log_snr_min": low,
        }
    return found


# --- measuring ------------------------------------------------------------------------------------


def compared(
    config: ConfigDict,
    settings: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    workdir: Path,
) -> list[dict[str, Any]]:
    """The distance of each setting for each seed, trained and kept in `workdir`."""
    (metric,) = config.evaluation.metrics
    dataset = config_lib.load_data(config)
    arms = [Arm(name, overrides) for name, overrides in settings.items()]

    def run_one(arm: Arm, seed: int, directory: Path) -> dict[str, Any]:
        begin = time.process_time()
        training.train(runner.arm_config(config, arm, seed), directory)
        found = evaluation.evaluate(training.load(directory), dataset, [metric], seed)
        return {
            "distance": found[metric][metric],
            "cpu_seconds": time.process_time() - begin,
            "date": f"{datetime.date.today()}",
        }

    def fingerprint(arm: Arm, seed: int) -> dict[str, Any]:
        return config_lib.relevant(runner.arm_config(config, arm, seed))

    return run_grid(arms, seeds, run_one, workdir, fingerprint, on_progress=print_progress)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The search of a domain, and its winner against cosine with fresh seeds."""
    folder = args.workdir / name
    config = config_of(name, args.data, args.workdir, args.steps)
    settings = schedules_of(config, folder)
    searched = compared(config, settings, [SEARCHED], folder / "searched")
    search = {found["arm"]: found["distance"] for found in searched}
    winner = min(search, key=search.__getitem__)
    final = {key: settings[key] for key in dict.fromkeys((DEFAULT, winner))}
    fresh = [SEARCHED + 1 + i for i in range(args.seeds)]
    confirmed = compared(config, final, fresh, folder / "confirmed")
    of = {key: [f["distance"] for f in confirmed if f["arm"] == key] for key in final}
    return {
        "search": search,
        "winner": winner,
        "confirmed": {"cosine": of[DEFAULT], "winner": of[winner]},
        "metric": DOMAINS[name].metric,
        "num_samples": NUM_SAMPLES,
        "cpu_seconds": sum(found["cpu_seconds"] for found in [*searched, *confirmed]),
        "date": max(found["date"] for found in confirmed),
    }


# --- what comes out -------------------------------------------------------------------------------


def tables(raw: Mapping[str, Any]) -> str:
    domains = raw["domains"]
    rows = [f"| setting | {' | '.join(domains)} |", "|---" * (len(domains) + 1) + "|"]
    for setting in SETTINGS:
        cells = []
        for found in domains.values():
            value, cosine = found["search"][setting], found["search"][DEFAULT]
            text = f"{significant(value, 3)} ({ratio(value / cosine)})"
            cells.append(f"**{text}**" if setting == found["winner"] else text)
        rows.append(f"| {setting} | {' | '.join(cells)} |")
    rows += [
        "",
        "| domain | distance | winner of the search | winner | cosine | winner over cosine | p |",
        "|---" * 7 + "|",
    ]
    for name, found in domains.items():
        of = found["confirmed"]
        means = [
            significant(statistics.geometric_interval(of[k]).mean, 3) for k in ("winner", "cosine")
        ]
        if found["winner"] == DEFAULT:
            shown = ["1, the same", "–"]
        else:
            effect = statistics.paired_ratio(of["winner"], of["cosine"])
            shown = [f"{ratio(effect.mean)} ({span(ratio, effect)})", p_text(effect.p_value)]
        row = [name, f"{found['metric']}, {found['num_samples']} samples", found["winner"]]
        rows.append(f"| {' | '.join([*row, *means, *shown])} |")
    return "\n".join(rows)


def draw(raw: Mapping[str, Any]) -> Figure:
    """The search as a chart of ratios to cosine, and the confirmed ratios with their intervals."""
    domains = raw["domains"]
    figure = Figure(figsize=(9.5, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    values = np.array(
        [[f["search"][s] / f["search"][DEFAULT] for s in SETTINGS] for f in domains.values()]
    )
    left.imshow(np.log2(values), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        best = value == values[row].min()
        weight = "bold" if best else "normal"
        colour = "white" if abs(np.log2(value)) > 0.7 else "black"
        style = dict(ha="center", va="center", weight=weight, color=colour)
        left.text(column, row, f"{value:.2f}", **style)
    left.set_xticks(range(len(SETTINGS)), [s.replace(", ", ",\n") for s in SETTINGS], fontsize=8)
    left.set_yticks(range(len(domains)), list(domains))
    left.tick_params(length=0)
    left.set_title("the search: distance over cosine's, one seed", fontsize=10)
    for row, found in enumerate(domains.values()):
        if found["winner"] == DEFAULT:
            right.plot(1, row, "o", color=figures.MUTED)
            continue
        of = found["confirmed"]
        effect = statistics.paired_ratio(of["winner"], of["cosine"])
        each = np.array(of["winner"]) / np.array(of["cosine"])
        right.plot([effect.low, effect.high], [row, row], color=figures.PALETTE[0][0], lw=2)
        right.plot(each, [row] * len(each), "|", color=figures.PALETTE[0][0], ms=9)
        right.plot(effect.mean, row, "o", color=figures.PALETTE[0][0])
    right.axvline(1, color=figures.MUTED, lw=0.8)
    right.set(xscale="log", xlim=(0.25, 2.5), ylim=(len(domains) - 0.5, -0.5))
    shown = (0.25, 0.5, 1, 2)
    right.set_xticks(shown, [f"{x:g}" for x in shown])
    right.set_xticks([], minor=True)
    labels = [f"{name}:\n{found['winner']}" for name, found in domains.items()]
    right.set_yticks(range(len(domains)), labels, fontsize=8)
    right.set_title("the winner over cosine, fresh seeds", fontsize=10)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def raw_of_claim(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the ledger's claim."""
    domains = raw["domains"]
    return {
        "claim": CLAIM,
        "scale": "digits",
        "about": "blood cells and satellite images at 16x16, 256 numbers of spoken digits at"
        f" 2 kHz; a U-Net of 16 channels, {raw['steps']} steps of batch 32; experiments/domains.py",
        "num_samples": max(found["num_samples"] for found in domains.values()),
        "seeds": list(range(len(domains["sound"]["confirmed"]["cosine"]))),
        "cpu_minutes": sum(domains[name]["cpu_seconds"] for name in OF_CLAIM) / 60,
        "machine": raw["machine"],
        "date": max(found["date"] for found in domains.values()),
        "networks": {},
        "arms": {name: domains[name]["confirmed"] for name in OF_CLAIM},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder with the four data sets")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / NAME)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", default=",".join(DOMAINS), metavar="NAME,...", help="domains")
    parser.add_argument("--seeds", type=int, default=3, help="fresh ones, at least 2 (default 3)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--page", action="store_true", help="measure nothing, show the tables")
    args = parser.parse_args(argv)
    names = args.only.split(",")
    if unknown := set(names) - set(DOMAINS):
        parser.error(f"--only: no domain {min(unknown)!r}; they are {', '.join(DOMAINS)}")
    path = args.results / f"{NAME}.json"
    if not args.page:
        if args.data is None or args.seeds < 2:
            parser.error("--data is needed, and --seeds of 2 at least, for an interval")
        runtime.start(trains=True)
        args.workdir = args.workdir.absolute()
        (args.results / "claims").mkdir(parents=True, exist_ok=True)
        raw = {
            "steps": args.steps,
            "machine": f"{platform.machine()} CPU, jax {jax.__version__},"
            f" Python {platform.python_version()}",
            "domains": {name: measure(name, args) for name in names},
        }
        if set(OF_CLAIM) <= set(names):
            write_json(path, raw)
            write_json(args.results / "claims" / f"{CLAIM}.json", raw_of_claim(raw))
            draw(raw).savefig(path.with_suffix(".png"))
        print(tables(raw))
        return
    print(tables(read_json(path)))


if __name__ == "__main__":
    main()
