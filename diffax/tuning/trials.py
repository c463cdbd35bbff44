"""What a trial is: a training that is measured at the rungs, and stopped where it lags behind."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, evaluation, places, runtime, training
from diffax.ablation import measure
from diffax.registry import suggestion
from diffax.training import Interrupted, NonFiniteError, Run
from diffax.tuning.search import Objective, Unfit
from diffax.tuning.space import Space


def _compared(name: str, key: str, run: Run, dataset: data.Dataset, seed: int) -> float:
    """A number of a measure by which an ablation compares runs. The bound is thereby estimated
    along one schedule for all trials, with the same small variance."""
    return evaluation.compare(run, dataset, seed, [name])[name][key]


def _score(name: str, run: Run, dataset: data.Dataset, seed: int) -> float:
    return evaluation.evaluate(run, dataset, [name], seed)[name][name]


def metrics(config: ConfigDict) -> dict[str, Callable[[Run, data.Dataset, int], float]]:
    """name -> (run, dataset, seed) -> a number, lower is better, to compare trials by.

    Those that the method of the config compares runs by, such as the bound; and each score of
    samples that is one such number. Each is also measured by `ablation.runner`, which confirms what
    is found."""
    method = config_lib.method_before_data(config)
    own = {
        metric.key: functools.partial(_compared, name, metric.entry or metric.key)
        for name, measure in method.compared.items()
        for metric in measure.metrics
        if metric.lower_is_better and metric.key not in _REFUSED
    }
    scored = method.makes_examples
    able = [name for name in evaluation.scores() if scored and _objection(name) is None]
    return own | {name: functools.partial(_score, name) for name in able}


def _objection(name: str) -> str | None:
    """Why a score is none to go by; None if it is one."""
    found = evaluation.numbers(name)
    if len(found) > 1:
        return f"it is {len(found)} numbers, {', '.join(number.entry for number in found)}"
    neither = "neither lower nor higher is better of it alone"
    return {True: None, False: "higher is better of it", None: neither}[found[0].lower_is_better]


# What one might ask for, and why it misleads.
_REFUSED = {
    "loss": "the training loss is an average over the noise levels that the schedule itself visits,"
    " so a schedule that visits easy ones has a low loss and no better network",
    "vlb_variance": "it measures the estimate along a schedule, not the network, and the best"
    " schedule for it is learned by gradient (schedule.name=learned)",
    "bpd_own": "it is bpd once more, along each trial's own schedule",
    **dict.fromkeys(("prior", "diffusion", "reconstruction"), "it is a part of the bound, bpd"),
}


def check_metric(name: str, config: ConfigDict, dataset: data.Dataset | None = None) -> None:
    """Raises ValueError, in a sentence, if a metric can't compare the trials of a config.

    Without a data set: as far as that can be said before it is loaded.
    """
    allowed = metrics(config)
    if name not in allowed:
        reason = _objection(name) if name in evaluation.scores() else _REFUSED.get(name)
        words = f" ({reason})" if reason else suggestion(name, allowed)
        raise ValueError(f"metric={name!r}{words}: allowed are {', '.join(allowed)}")
    if name in evaluation.scores():
        if dataset is None:
            return
        reference = evaluation.Reference.of(dataset, config.data)
        num = config.evaluation.num_samples
        label = evaluation.classes_of_samples(config, dataset, num)
        text = evaluation.captions_of_samples(config, dataset, num)
        rows = evaluation.rows_of_samples(dataset, num)
        evaluation.plan([name], reference, dataset.shape, num, label, text, rows)
        return
    measure.require_measure(config)
    if name != "bpd":
        return
    continuous = not (config.schedule.num_steps or config.evaluation.vlb_num_steps)
    if not (continuous and config_lib.conditioning(config) == "log_snr"):
        raise ValueError(
            "metric='bpd' compares schedules in continuous time and by networks conditioned on the"
            " log-SNR, where the bound doesn't depend on the schedule's shape: schedule.num_steps"
            f" and evaluation.vlb_num_steps must be 0 and model.{config.model.name}.conditioning"
            " 'log_snr'"
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
        places.remove_folder(directory)  # of a trial that was given up half way
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
            return report(step, metrics(config)[metric](run, dataset, config.seed))

        try:
            with runtime.brief():
                training.train(config, directory, stop)
        except NonFiniteError as error:
            raise Unfit(str(error)) from None
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped in trial {number}, which is given up; {runtime.the_same()} goes on with"
                f" the {number - 1} that are done",
                stopped.exit_status - 128,
            ) from None
        finally:
            places.remove_folder(directory / "checkpoints")

    return objective
