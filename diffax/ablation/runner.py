"""From configs to a report: each run of the grid is a training and its evaluation.

The only part of the laboratory that knows what a run does.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, evaluation, metrics, runtime, schedules, training
from diffax.ablation.analysis import Metric, Spec
from diffax.ablation.grid import Arm, GridError, load_results, print_progress, run_grid
from diffax.ablation.report import Report, build_report
from diffax.process import AnySchedule

METRICS = (
    Metric("vlb_variance", "Var(VLB)", "(bits/dim)²", scale="log"),
    Metric("bpd", "Bits per dimension", "bits/dim", digits=3),
    Metric("frechet", "Fréchet distance", "classifier features", scale="log"),
    Metric("prior", "Prior term", "bits/dim", digits=5, main=False),
    Metric("diffusion", "Diffusion term", "bits/dim", digits=3, main=False),
    Metric("reconstruction", "Reconstruction term", "bits/dim", digits=3, main=False),
    Metric("bpd_own", "By its own schedule", "bits/dim", digits=3, main=False),
)
PARTS = ("prior", "diffusion", "reconstruction")
_SHOWN = 32  # samples kept for the report, from the same starting noise in every arm


def run_ablation(
    spec: Spec,
    config: ConfigDict,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    workdir: str | os.PathLike,
    workers: int | None = None,
) -> Report:
    """Trains and evaluates every arm with every seed, and writes the report.

    The same seed means the same initial weights, order of the data, times and noise in every arm,
    so the comparison is paired. Interrupted, it goes on where it stopped when called again.

    Args:
      spec: the question; its config, arms, seeds and real_samples are filled in.
      config: the config common to all arms; an arm's overrides are dotted keys of it.
      arms, seeds: the grid.
      workdir: of runs, report.html and results.json.
      workers: processes, each with one thread; None for one per core.

    Raises:
      ValueError: a config that can't be run, before any work.
      GridError: a run failed; what is finished is kept, and reported on as far as it goes.
      KeyboardInterrupt: likewise.
    """
    configs = [arm_config(config, arm, 0) for arm in arms]
    for each in configs:
        config_lib.validate(each)
    # Here first: what is missing is told at once, and the workers find all of it prepared.
    dataset = data.load(config.data)
    for each in configs:
        schedule = config_lib.build_schedule(each, dataset.shape)
        schedules.require_finite_ends(schedule, "the bound, in bits/dim,")
    if metrics.is_classifiable(dataset):
        metrics.get_classifier(dataset)
    text = config_lib.to_json(config)
    workers = min(workers or os.cpu_count() or 1, len(arms) * len(seeds))
    spec = dataclasses.replace(
        spec,
        metrics=[m for m in spec.metrics if _is_measured(m, configs, dataset)],
        config=json.loads(text),
        arms=[arm.name for arm in arms],
        seeds=list(seeds),
        real_samples=dataset.eval.array(np.arange(min(_SHOWN, len(dataset.eval)))),
    )
    try:
        results = run_grid(
            arms,
            seeds,
            functools.partial(run_one, text=text),
            workdir,
            fingerprint=lambda arm, seed: arm_config(config, arm, seed).to_dict(),
            workers=workers,
            on_progress=print_progress,
            worker_environment=_ONE_THREAD if workers > 1 else None,
        )
    except (GridError, KeyboardInterrupt):
        if any(Path(workdir).glob("runs/*/*/result.json")):
            found = load_results(workdir, spec.arms)
            report = build_report(spec, found, workdir, partial=True)
            print(f"a report on what is finished: {report.html}", file=sys.stderr)
        raise
    return build_report(spec, results, workdir)


# Two single-threaded workers on two cores are faster than one run with two threads.
_ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}


def arm_config(config: ConfigDict, arm: Arm, seed: int) -> ConfigDict:
    """The config of one run: the common one with the arm's overrides and the seed.

    Raises:
      ValueError: an override of a key that does not exist, or of a wrong type.
    """
    config = config_lib.from_json(config_lib.to_json(config))
    try:
        config.update_from_flattened_dict(dict(arm.overrides))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"arm {arm.name!r}: {error}") from None
    config.seed = seed
    return config


def run_one(arm: Arm, seed: int, directory: Path, text: str) -> dict[str, Any]:
    """Trains and evaluates one run; `text` is the common config as JSON. See `analyse`."""
    runtime.start(f"{arm.name}, seed {seed}: ")
    config = arm_config(config_lib.from_json(text), arm, seed)
    for name in ("eval_every", "sample_every"):
        # What would be done at the end only is done below.
        if config.training[name] >= config.training.num_steps:
            config.training[name] = 0
    training.train(config, directory)
    run = training.load(directory)
    dataset = data.load(config.data)
    # The seed decides the noise of the evaluation too: shared by all seeds, it would be missing
    # from their spread.
    names = ("bpd", "frechet") if metrics.is_classifiable(dataset) else ("bpd",)
    samples = evaluation.draw(run, config.evaluation.num_samples, seed)
    evaluated = evaluation.evaluate(run, dataset, names, seed, samples)
    own = evaluated["bpd"]
    if _bound_is_free(config):
        line = _log_snr_linear(run.state.schedule)
        along = {"estimated_along": "linear_logsnr"}
        along |= evaluation.bound_along(run, dataset, line, seed)
        evaluated |= {"bpd": own | along, "bpd_own": own}
    values = {
        **evaluated.get("frechet", {}),
        **evaluated["bpd"],
        "bpd_own": own["bpd"],
        "vlb_variance": own["vlb_variance"],
    }
    np.savez(directory / "samples.npz", samples=samples[:_SHOWN])
    return {
        "metrics": {m.key: values[m.key] for m in METRICS if m.key in values},
        "evaluation": evaluated,
        "curves": {
            "schedule": _schedule_curve(directory),
            "loss_by_log_snr": evaluation.loss_by_log_snr(run, dataset.eval),
            **_logged_curves(directory),
        },
        "samples": "samples.npz",
    }


def _bound_is_free(config: ConfigDict) -> bool:
    """Whether the bound depends on the schedule's ends alone, so that any shape may estimate it."""
    discrete = config.schedule.num_steps or config.evaluation.vlb_num_steps
    return config.model.conditioning == "log_snr" and not discrete


def _log_snr_linear(schedule: AnySchedule) -> schedules.Schedule:
    """The log-SNR-linear schedule with the same ends.

    Every arm's bound is estimated along it, with one and the same small variance, which compares
    networks more sharply than each one's own schedule does.
    """
    first, last = map(float, schedules.ends_of(schedule))
    return schedules.linear_logsnr(log_snr_max=first, log_snr_min=last)


def _schedule_curve(directory: Path) -> dict[str, list]:
    files = sorted((directory / "schedule").glob("*.json"))
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (files[0], files[-1]))
    curve = {"t": after["t"], "log_snr": after["log_snr"]}
    learned = before["log_snr"] != after["log_snr"]
    return curve | ({"log_snr_before": before["log_snr"]} if learned else {})


def _logged_curves(directory: Path) -> dict[str, dict[str, list]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    curves = {}
    for name, key, column in _LOGGED:
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            steps, values = zip(*points)
            curves[name] = {"step": list(steps), column: list(values)}
    return curves


# curve, its key in metrics.jsonl, its column
_LOGGED = (
    ("training_loss", "loss", "loss"),
    ("gradient_variance", "schedule_grad_variance", "variance"),
)


def _is_measured(metric: Metric, configs: Sequence[ConfigDict], dataset: data.Dataset) -> bool:
    needs = {
        "frechet": metrics.is_classifiable(dataset),
        "bpd_own": any(map(_bound_is_free, configs)),
    }
    return needs.get(metric.key, True)
