"""The search: which values are tried next, which trial is stopped early, and what is kept.

Nothing here knows what a trial does. optuna proposes and prunes (Akiba 2019), with the
tree-structured Parzen estimator (Bergstra 2011) and asynchronous successive halving (Li 2020); all
that it has seen lies in one file, so that a search which was killed goes on.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffax import places
from diffax.files import replacing
from diffax.registry import unknown
from diffax.tuning.space import Space

FACTOR = 2  # from one rung to the next: so many times the steps, and one in so many trials goes on
_STARTUP = 5  # trials drawn at random before the estimator has a say

# (number of the trial, its values, report); `report(step, metric)` says whether to stop there.
Objective = Callable[[int, Mapping[str, Any], Callable[[int, float], bool]], None]


class Unfit(Exception):
    """The values of a trial can't be tried; the message says why. The search goes on."""


@dataclass(frozen=True)
class Trial:
    """A trial that is done.

    Attributes:
      number: from 1, in the order in which they were made.
      values: key -> value.
      status: "complete", "pruned" (stopped at an early rung) or "unfit".
      measured: step -> metric at each rung that was reached.
      seconds: how long it took.
      message: why it is unfit.
    """

    number: int
    values: Mapping[str, Any]
    status: str
    measured: Mapping[int, float]
    seconds: float
    message: str = ""

    @property
    def step(self) -> int:
        """The last step that was measured, 0 if none was."""
        return max(self.measured, default=0)

    @property
    def metric(self) -> float | None:
        """The metric there."""
        return self.measured.get(self.step)


def rungs(num_steps: int, count: int) -> list[int]:
    """The steps at which a trial is measured: the last one, and before it each half of the next.

    Raises:
      ValueError: fewer than one, or more than there are halves of the steps.
    """
    if count < 1 or num_steps // FACTOR ** (count - 1) < 1:
        raise ValueError(
            f"rungs={count}: must be at least 1, and {num_steps} training steps must be enough to"
            f" be halved that often"
        )
    first = num_steps // FACTOR ** (count - 1)
    return [*(first * FACTOR**k for k in range(count - 1)), num_steps]


def best(trials: Sequence[Trial]) -> Trial:
    """The complete trial with the lowest metric.

    Raises:
      ValueError: none is complete; the message has the reason of one that is unfit.
    """
    complete = [trial for trial in trials if trial.status == "complete"]
    if not complete:
        reasons = [trial.message for trial in trials if trial.message]
        raise ValueError(f"no trial could be measured{f': {reasons[0]}' if reasons else ''}")
    return min(complete, key=lambda trial: trial.metric)


def search(
    objective: Objective,
    space: Space,
    path: str | os.PathLike,
    steps: Sequence[int],
    num_trials: int | None = None,
    budget: float | None = None,
    pruner: str = "halving",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    on_progress: Callable[[Trial, float, float | None], None] | None = None,
    upgrade: Callable[[Mapping, Mapping], Mapping] = lambda old, new: old,
) -> list[Trial]:
    """Makes trials until there are so many or so much time is spent; returns all, the oldest first.

    The first trial has the config's own values, if they are in the space. The n-th one is a
    function of the seed, of n and of the trials before it: a search that was stopped and called
    again makes the same trials as one that was not. A trial that was under way when it was stopped
    is forgotten. One process at a time.

    Args:
      objective: tries values; calls its `report` at each of the steps, and ends if that says True;
        the metric is the lower the better. Raises `Unfit` for values that can't be tried.
      space: what may be tried.
      path: the file of the search (optuna's journal), made if it isn't there.
      steps: the rungs, rising; see `rungs`.
      num_trials: how many in all, those found in the file included; None: no bound.
      budget: seconds in all trials; none is begun once they are spent. None: no bound.
      pruner: of `PRUNERS`.
      seed: of the proposals.
      settings: anything in JSON on which the metric depends; a file with other ones is refused.
      upgrade: upgrade(a file's settings, those of now) -> what the file's would be today.
      on_progress: called at each rung and at the end of each trial, with the trial as far as it
        has got (its status is "measured" at a rung), the seconds spent in all trials, and the
        seconds left as estimated, None while nothing is known.

    Raises:
      ValueError: an unknown pruner, no bound, or a file of a search with other settings.
    """
    if pruner not in PRUNERS:
        raise ValueError(unknown("pruner", pruner, PRUNERS))
    if num_trials is None and budget is None:
        raise ValueError("a search needs a bound: a number of trials, or a budget")
    asked = {"pruner": pruner, "steps": list(steps), "seed": seed, **(settings or {})}

    def tell(now: Trial) -> None:
        if on_progress is not None:
            spent = sum(t.seconds for t in [*trials, now])
            on_progress(now, spent, _seconds_left(trials, now, num_trials, budget))

    with _journal(path) as (file, keep):
        study = _study(path, file, PRUNERS[pruner](steps[0]), _plain(asked), upgrade)
        while not _is_over(trials := _trials(study), num_trials, budget):
            number = len(trials) + 1
            study.sampler = _sampler(seed, number, space.default() if number == 1 else None)
            _attempt(objective, space, study, number, steps[-1], tell)
            keep()
    return trials


@contextlib.contextmanager
def _journal(path: str | os.PathLike) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A journal's file on this machine, and what keeps it: of a bucket it is a copy, uploaded
    whole."""
    if not places.in_bucket(path):
        yield Path(path), lambda: None
        return
    place = places.path_of(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / place.name
        if (before := places.read_bytes(place)) is not None:
            file.write_bytes(before)

        def keep() -> None:
            with replacing(place) as partial:
                shutil.copyfile(file, partial)

        yield file, keep


def _attempt(
    objective: Objective, space: Space, study: Any, number: int, last_step: int, tell: Callable
) -> None:
    """Makes a trial and keeps it in the study."""
    start, trial = time.monotonic(), study.ask()
    values, measured = space.suggest(trial), {}

    def now(status: str, message: str = "") -> Trial:
        seconds = time.monotonic() - start
        return Trial(number, values, status, dict(measured), seconds, message)

    def report(step: int, value: float) -> bool:
        if not math.isfinite(value):
            raise Unfit(f"the metric is {value} at step {step}")
        trial.report(value, step)
        measured[step] = value
        tell(now("measured"))
        return trial.should_prune()

    try:
        objective(number, values, report)
    except Unfit as error:
        done = now("unfit", str(error))
    else:
        done = now("complete" if last_step in measured else "pruned")
    for name in ("status", "seconds", "message"):
        trial.set_user_attr(name, getattr(done, name))
    if done.status == "complete":
        study.tell(trial, done.metric)
    else:  # unfit ones too: optuna ranks them by how far they came
        study.tell(trial, state=_optuna().trial.TrialState.PRUNED)
    tell(done)


def _is_over(trials: Sequence[Trial], num_trials: int | None, budget: float | None) -> bool:
    enough = num_trials is not None and len(trials) >= num_trials
    return enough or (budget is not None and sum(t.seconds for t in trials) >= budget)


def _seconds_left(trials, now: Trial, num_trials: int | None, budget: float | None) -> float | None:
    is_done = now.status != "measured"
    done, bounds = [*trials, now] if is_done else trials, []
    if budget is not None:
        bounds.append(budget - sum(t.seconds for t in [*trials, now]))
    if num_trials is not None and done:
        mean = sum(t.seconds for t in done) / len(done)
        bounds.append(mean * (num_trials - len(done)) - (0.0 if is_done else now.seconds))
    return max(0.0, min(bounds)) if bounds else None


def _optuna():
    try:
        import optuna
    except ImportError:
        raise ValueError("a search needs optuna: pip install 'diffax[tune]'") from None
    return optuna


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings))


def _study(
    path: str | os.PathLike,
    file: Path,
    pruner: Any,
    settings: Mapping[str, Any],
    upgrade: Callable,
) -> Any:
    """The study in a file, or a new one; a trial that was under way there is given up."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(os.fspath(file))
    )
    study = optuna.create_study(
        storage=storage, study_name="tune", load_if_exists=True, pruner=pruner
    )
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", settings)
    elif (before := _plain(upgrade(before, settings))) != settings:
        changes = [
            f"{key} was {before.get(key)!r} and is {settings.get(key)!r}"
            for key in sorted(before.keys() | settings.keys())
            if before.get(key) != settings.get(key)
        ]
        raise ValueError(
            f"{path} holds a search with other settings: {'; '.join(changes)}. Take another workdir"
        )
    for left in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
    return study


def _trials(study: Any) -> list[Trial]:
    """Those that are done."""
    states = _optuna().trial.TrialState
    found = study.get_trials(deepcopy=False, states=[states.COMPLETE, states.PRUNED])
    return [
        Trial(number, dict(t.params), measured=dict(t.intermediate_values), **t.user_attrs)
        for number, t in enumerate(found, 1)
    ]


def _sampler(seed: int, number: int, fixed: Mapping[str, Any] | None) -> Any:
    """A trial's own sampler, so that nothing need be remembered from one process to the next."""
    optuna = _optuna()
    with warnings.catch_warnings():
        # multivariate: parameters are drawn together; group: also where some trials lack some.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP,
            multivariate=True,
            group=True,
            seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]),
        )
        return optuna.samplers.PartialFixedSampler(fixed, sampler) if fixed else sampler


# name -> (steps of the first rung) -> what decides whether a trial goes on
PRUNERS: dict[str, Callable[[int], Any]] = {
    "halving": lambda first: _optuna().pruners.SuccessiveHalvingPruner(first, FACTOR),
    "median": lambda first: _optuna().pruners.MedianPruner(n_startup_trials=_STARTUP),
    "none": lambda first: _optuna().pruners.NopPruner(),
}
