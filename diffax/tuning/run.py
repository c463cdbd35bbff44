"""The whole of it: the search, and whether its winner is better than the config as it was."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import evaluation, plugins
from diffax.ablation import Arm, Metric, Report, Spec, runner
from diffax.ablation.measure import metrics_of, score_metrics
from diffax.config.storage import flat
from diffax.places import workdir_of
from diffax.report.analysis import shortened
from diffax.report.formatting import format_seconds
from diffax.report.verdict import sentence
from diffax.training.lock import held
from diffax.training.workdir import PLUGINS, check_writable
from diffax.tuning import results
from diffax.tuning.search import Trial, best, rungs, search
from diffax.tuning.space import Space, read, words
from diffax.tuning.trials import check_metric, make_objective


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
      trials: all, in the order in which they were made.
      best: the winner by the search; optimistic, being the best of many noisy numbers.
      files: trials.csv, best.py (the winner's config) and tune.png.
      table: the trials as text.
      verdict: what may be said of the winner against the config as it was.
      report: of the paired comparison behind it; None if there was none.
    """

    trials: list[Trial]
    best: Trial
    files: list[Path]
    table: str
    verdict: str
    report: Report | None


def tune(
    config: ConfigDict,
    searched: Sequence[str],
    workdir: str | os.PathLike,
    num_trials: int | None = None,
    budget: float | None = None,
    metric: str = "bpd",
    pruner: str = "halving",
    num_rungs: int = 3,
    confirm: int = 3,
    workers: int | None = None,
    command: str = "",
) -> Tuned:
    """Searches the values of some keys of a config for one's own data.

    The winner and the config as it was are then trained again, with seeds that the search has not
    seen, and compared pair by pair: the winner of a search by a noisy metric looks better than it
    is. It resumes if interrupted.

    Args:
      config: what is not searched, the seed included.
      searched: see `space.read`.
      workdir: of everything that is written.
      num_trials, budget (in seconds), pruner: see `search.search`.
      metric: one of `trials.metrics(config)`.
      num_rungs: how often a trial is measured, see `search.rungs`.
      confirm: seeds of the comparison; 0: none is made.
      workers: its processes; None for one per core.
      command: for the record.

    Raises:
      ValueError: what can't be searched or measured, or another process at work in the workdir,
        before any work; no trial that could be.
      GridError: a run of the comparison failed.
    """
    root = workdir_of(workdir)
    config_lib.validate(config)
    if confirm < 0 or confirm == 1:
        raise ValueError(f"confirm={confirm}: 0 for none, or at least 2 seeds, for an interval")
    space = Space(config, [read(text) for text in searched])
    check_metric(metric, config)
    dataset = config_lib.load_data(config)
    check_metric(metric, config, dataset)
    steps = rungs(config.training.num_steps, num_rungs)
    depends = flat(config_lib.relevant(config, space.networks()))
    settings = {f"config.{key}": value for key, value in depends.items()}
    settings |= {"metric": metric, "search": sorted(searched)}
    settings |= {"the fingerprint of the data": dataset.fingerprint}
    check_writable(root)
    with held([root]):
        plugins.keep(config.plugins, root / PLUGINS)  # for best.py

        trials = search(
            make_objective(space, metric, dataset, steps, root / "trials"),
            space,
            root / "search.journal",
            steps,
            num_trials=num_trials,
            budget=budget,
            pruner=pruner,
            seed=config.seed,
            settings=settings,
            on_progress=_Printer(metric, num_trials, steps[-1]),
            upgrade=_upgraded,
        )
        winner = best(trials)
        files = results.write(trials, space, metric, root, command)
        table = results.format_table(trials, space, metric)
        if winner.values == space.default():
            said, report = "No trial was better than the config as it was.", None
        elif not confirm:
            said, report = "Not confirmed: whether the winner is better is not known.", None
        else:
            overrides = space.overrides(winner.values)
            seeds = [config.seed + 1 + i for i in range(confirm)]
            folder = root / "confirm" / f"trial_{winner.number:03d}"
            measured = config
            own = [m for m in metrics_of(config) if m.key == metric]
            if metric in evaluation.scores():
                names = dict.fromkeys([metric, *config.evaluation.metrics])
                measured = config_lib.changed(config, {"evaluation.metrics": tuple(names)})
                own = score_metrics([metric], [measured])
            spec = _spec(winner, own, metric, command)
            arms = [Arm("default"), Arm("tuned", overrides)]
            report = runner.run_ablation(spec, measured, arms, seeds, folder, workers)
            analysis = report.analysis
            stated = [sentence(analysis.spec, c) for c in analysis.of_metric(metric)]
            said = (
                stated[0] if stated else f"No comparison; missing: {shortened(analysis.missing)}."
            )
        return Tuned(trials, winner, files, table, said, report)


def _upgraded(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a search as it would note them today: see `config.completed`."""
    nested, like = (unflatten_dict(dict(settings), sep=".") for settings in (old, new))
    own = config_lib.completed(nested["config"], like["config"])
    others = {key: value for key, value in old.items() if not key.startswith("config.")}
    return others | {f"config.{key}": value for key, value in own.items()}


def _spec(winner: Trial, metrics: Sequence[Metric], metric: str, command: str) -> Spec:
    return Spec(
        title="Tuned against default",
        question=f"Is {words(winner.values)} better than the config as it was?",
        baseline="default",
        metrics=metrics,
        command=command,
        method=(
            f"The tuned values are those of the best of a search's trials by {metric}. The seeds"
            " here were not seen by the search, so that its luck plays no part."
        ),
    )


class _Printer:
    """Prints a line per event to the standard error stream, so that the table can be piped."""

    def __init__(self, metric: str, num_trials: int | None, num_steps: int):
        self.metric, self.num_steps = metric, num_steps
        self.total = "" if num_trials is None else f"/{num_trials}"

    def __call__(self, trial: Trial, spent: float, left: float | None) -> None:
        parts = [f"[{trial.number}{self.total}] {words(trial.values)}: {trial.status}"]
        if trial.metric is not None:
            parts.append(f"{self.metric} {trial.metric:.4f} at step {trial.step}/{self.num_steps}")
        if trial.message:
            parts.append(trial.message)
        parts.append(f"spent {format_seconds(spent)}")
        if left is not None:
            parts.append(f"about {format_seconds(left)} left")
        print(" | ".join(parts), file=sys.stderr, flush=True)
