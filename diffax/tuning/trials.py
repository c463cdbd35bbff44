"""What a trial is: a training that is measured at the rungs, and stopped where it lags behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, evaluation, metrics, schedules, training
from diffax.training import Interrupted, NonFiniteError, Run
from diffax.tuning.search import Objective, Unfit
from diffax.tuning.space import Space


def _bits_per_dim(run: Run, dataset: data.Dataset, seed: int) -> float:
    """In continuous time the bound doesn't depend on the schedule between the ends; along the same
    one its estimate has the same small variance for every trial."""
    return evaluation.bound_along_line(run, dataset, seed)["bpd"]


def _frechet(run: Run, dataset: data.Dataset, seed: int) -> float:
    return evaluation.evaluate(run, dataset, ["frechet"], seed)["frechet"]["frechet"]


# name -> (run, dataset, seed) -> a number, lower is better, that compares networks trained under
# different schedules; each is also a metric of `ablation.runner`, which confirms what is found.
METRICS: dict[str, Callable[[Run, data.Dataset, int], float]] = {
    "bpd": _bits_per_dim,
    "frechet": _frechet,
}

# What one might ask for, and why it misleads.
_REFUSED = {
    "loss": "the training loss is an average over the noise levels that the schedule itself visits,"
    " so a schedule that visits easy ones has a low loss and no better network",
    "vlb_variance": "it measures the estimate along a schedule, not the network, and the best"
    " schedule for it is learned by gradient (schedule.name=learned)",
}


def check_metric(name: str, config: ConfigDict, dataset: data.Dataset) -> None:
    """Raises ValueError, in a sentence, if a metric can't compare the trials of a config."""
    if name not in METRICS:
        reason = f" ({_REFUSED[name]})" if name in _REFUSED else ""
        raise ValueError(f"metric={name!r}{reason}: allowed are {', '.join(METRICS)}")
    schedule = config_lib.build_schedule(config, dataset.shape)
    schedules.require_finite_ends(schedule, "the bound, in bits/dim,")
    if name == "frechet" and not metrics.is_classifiable(dataset):
        raise ValueError(
            "metric='frechet' needs labelled data with a spatial axis, for a classifier's features;"
            f" {dataset.name!r} has {dataset.num_classes} classes and shape {dataset.shape}"
        )
    continuous = not (config.schedule.num_steps or config.evaluation.vlb_num_steps)
    if name == "bpd" and not (continuous and config.model.conditioning == "log_snr"):
        raise ValueError(
            "metric='bpd' compares schedules in continuous time and by networks told the log-SNR,"
            " where the bound doesn't depend on the schedule's shape: schedule.num_steps and"
            " evaluation.vlb_num_steps must be 0 and model.conditioning 'log_snr'"
        )


def make_objective(
    space: Space, metric: str, dataset: data.Dataset, steps: Sequence[int], root: Path
) -> Objective:
    """The objective of `search.search`: trains in root/<number>, with the config's seed.

    All trials share the initial weights, the order of the data, the noise and that of the
    measurement. A trial that is stopped has had the learning rates of a whole run up to there. The
    weights are not kept: the winner is trained again to be confirmed.
    """

    def objective(
        number: int, values: Mapping[str, Any], report: Callable[[int, float], bool]
    ) -> None:
        directory = root / f"{number:03d}"
        shutil.rmtree(directory, ignore_errors=True)  # of a trial that was given up half way
        config = config_lib.changed(space.config, space.overrides(values))
        config.training.update(eval_every=0, sample_every=0, checkpoint_every=0)
        try:
            config_lib.validate(config)
            check_metric(metric, config, dataset)
        except ValueError as error:
            raise Unfit(str(error)) from None
        left = list(steps)

        def stop(step: int, run: Run) -> bool:
            if step < left[0]:
                return False
            while left and left[0] <= step:
                left.pop(0)
            return report(step, METRICS[metric](run, dataset, config.seed))

        try:
            training.train(config, directory, stop)
        except NonFiniteError as error:
            raise Unfit(str(error)) from None
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped in trial {number}, which is given up; the same call (or command) goes on"
                f" with the {number - 1} that are done",
                stopped.exit_status - 128,
            ) from None
        finally:
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)

    return objective
