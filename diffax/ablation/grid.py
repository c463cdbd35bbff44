"""The grid of an ablation: arms × seeds, run once each, kept on disk, resumed where it stopped.

An `Arm` is a name and the config keys that it overrides; `grid` makes the full product of some
axes; `run_grid` runs each arm with each seed through a function of the caller's, in this process
or in several, and keeps every result in a file of its own:

    workdir/runs/<arm>/seed<k>/configuration.json   what it was started with, and the fingerprint
    workdir/runs/<arm>/seed<k>/result.json          what it returned, fingerprint and seconds
    workdir/runs/<arm>/seed<k>/traceback.txt        only if its last attempt failed

The directory is also the run's own, for checkpoints and samples. Nothing here knows what a run
does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffax.ablation import processes
from diffax.ablation.jsonable import flatten, jsonable, read_json, write_json


@dataclass(frozen=True)
class Arm:
    """One arm of an ablation.

    Attributes:
      name: what tables and figures call it; also names its directory.
      overrides: dotted config key -> value, e.g. {"schedule.name": "cosine"}.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What `run_grid` tells about a run when it starts and when it ends.

    Attributes:
      status: "kept" (found done), "started", "finished" or "failed".
      index, total: this run's place in the grid, from 1, and the number of runs.
      arm, seed: which run.
      seconds: how long this run took; None while it is under way.
      elapsed: seconds since `run_grid` was called.
      eta: estimated seconds until the grid is done; None while nothing is known.
      message: the error of a failed run, in one line.
    """

    status: str
    index: int
    total: int
    arm: str
    seed: int
    seconds: float | None
    elapsed: float
    eta: float | None
    message: str = ""


class GridError(RuntimeError):
    """Some runs failed; the message names each, and the results of the others are kept."""


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Arm]:
    """The full product of the axes, the last axis varying fastest.

    >>> [arm.name for arm in grid({"schedule.name": ["linear", "cosine"], "seed_noise": [0,
    1]})][:2] ['schedule.name=linear,seed_noise=0', 'schedule.name=linear,seed_noise=1']

    Args:
      axes: dotted config key -> the values that it takes.

    Raises:
      ValueError: no axis, an axis without values or given as one string, two arms of one name.
    """
    if not axes:
        raise ValueError("axes is empty; give at least one config key with its values")
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise ValueError(f"axes[{key!r}] must be a list of one or more values, got {values!r}")
    arms = []
    for values in itertools.product(*axes.values()):
        overrides = dict(zip(axes, values))
        arms.append(Arm(",".join(f"{k}={v}" for k, v in overrides.items()), overrides))
    _check_names(arms)
    return arms


def run_grid(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    run_one: Callable[[Arm, int, Path], Mapping[str, Any]],
    workdir: str | os.PathLike,
    fingerprint: Callable[[Arm, int], Any] | Mapping[str, Any] | None = None,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    worker_environment: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Runs every arm with every seed, skipping what is done; returns the results.

    Seeds are the outer loop: all arms of the first seed are done first, so that a report made half
    way is already paired. A run that was interrupted is called again with the same directory and
    may resume from what it left there. A run that raises an `Exception` keeps its traceback in its
    directory, the others go on, and `GridError` at the end names it. Ctrl-C stops at once; what is
    finished is kept.

    Args:
      arms: distinct names.
      seeds: distinct integers.
      run_one: run_one(arm, seed, directory) -> mapping that can be written as JSON (numpy arrays
        become lists, numbers that are not finite become null). Its own "seconds", if any, counts
        as the run's time, which is otherwise measured here and knows the last attempt only. With
        several workers it must be a top-level function of an importable module.
      workdir: results are kept under workdir/runs.
      fingerprint: the configuration on which a result depends, in full, as a mapping common to all
        runs or a function (arm, seed) -> anything that can be written as JSON. A run found on disk
        with another configuration is refused. The arm's overrides and the seed are always part.
      workers: number of processes; above 1 each is spawned afresh (a script then needs its
        `if __name__ == "__main__":`). Two single-threaded workers on two cores beat one run with
        two threads.
      on_progress: called at the start and the end of every run; `print_progress` prints lines.
      worker_environment: environment variables for the workers only, such as thread limits.

    Returns:
      One dict per run, seeds outermost: what run_one returned, with "arm", "seed", "seconds" and
      "directory" (str) set.

    Raises:
      ValueError: no or repeated arms or seeds, a configuration that does not match what is on
        disk, an unreadable result file; all before anything is run.
      GridError: a run failed.
    """
    _check_names(arms)
    seeds = [operator.index(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more distinct integers, got {seeds}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    runs = _plan(arms, seeds, Path(workdir), fingerprint)
    done, pending = [], []
    for run in runs:
        (done if _is_done(run) else pending).append(run)
    tell = _Teller(on_progress, len(runs), len(pending), workers)
    for run in done:
        tell(run, "kept", _read_result(run.directory)["seconds"])
    if workers == 1 or len(pending) < 2:
        events = _in_turn(run_one, pending)
    else:
        events = processes.in_parallel(_execute, run_one, pending, workers, worker_environment)
    failures = []
    # closing: an interruption while an event is told must stop the workers too.
    with closing(events):
        for run, status, seconds, message in events:
            tell(run, status, seconds, message)
            if status == "failed":
                failures.append(f"{run.arm.name} seed {run.seed} ({message})")
    if failures:
        raise GridError(
            f"{len(failures)} of {len(runs)} runs failed: {'; '.join(failures)}. Each one's "
            f"traceback is in traceback.txt in its directory under {Path(workdir) / 'runs'}; "
            "finished results are kept, and the same call tries the failed ones again."
        )
    return [_record(_read_result(run.directory), run.directory) for run in runs]


def load_results(
    workdir: str | os.PathLike, arms: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The results that are there, finished runs only, in the form that `run_grid` returns.

    Args:
      workdir: as given to `run_grid`.
      arms: names of the arms wanted, in their order; None for all that are found, by name.

    Raises:
      FileNotFoundError: no finished run is there.
      ValueError: a result file that cannot be read; the message names it.
    """
    root = Path(workdir) / "runs"
    found = {path.parent: _read_result(path.parent) for path in root.glob("*/seed*/result.json")}
    names = sorted({r["arm"] for r in found.values()}) if arms is None else list(arms)
    records = [_record(r, directory) for directory, r in found.items() if r["arm"] in names]
    if not records:
        raise FileNotFoundError(f"no finished run under {root}")
    return sorted(records, key=lambda r: (r["seed"], names.index(r["arm"])))


def print_progress(progress: Progress) -> None:
    """Prints one line per event to the standard error stream, so that tables can be piped."""
    p = progress
    parts = [f"[{p.index:>{len(str(p.total))}}/{p.total}] {p.arm}, seed {p.seed}: {p.status}"]
    if p.seconds is not None:
        parts.append(f"took {format_seconds(p.seconds)}")
    if p.message:
        parts.append(p.message)
    if p.status != "kept":
        parts.append(f"elapsed {format_seconds(p.elapsed)}")
        if p.eta is not None:
            parts.append(f"about {format_seconds(p.eta)} left")
    print(" | ".join(parts), file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """A time as one reads it: "8.3 s", "4 min 10 s" or "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True)
class _Run:
    index: int
    arm: Arm
    seed: int
    directory: Path
    configuration: Any

    @property
    def fingerprint(self) -> str:
        text = json.dumps(self.configuration, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class _Teller:
    """Turns events into `Progress`, with the time left estimated from the runs seen so far."""

    def __init__(self, on_progress, total, pending, workers):
        self.on_progress, self.total, self.left, self.workers = on_progress, total, pending, workers
        self.start, self.times = time.monotonic(), []

    def __call__(self, run, status, seconds=None, message=""):
        self.left -= status in ("finished", "failed")
        if status in ("kept", "finished"):
            self.times.append(seconds)
        mean = sum(self.times) / len(self.times) if self.times else None
        eta = None if mean is None else mean * self.left / min(self.workers, max(self.left, 1))
        if self.on_progress is not None:
            elapsed = time.monotonic() - self.start
            where = (run.index, self.total, run.arm.name, run.seed)
            self.on_progress(Progress(status, *where, seconds, elapsed, eta, message))


def _check_names(arms: Sequence[Arm]) -> None:
    if not arms:
        raise ValueError("arms is empty; give at least one Arm")
    seen = {}
    for arm in arms:
        if not arm.name.strip(". "):
            raise ValueError(f"an arm's name must name a directory, got {arm.name!r}")
        # Some file systems do not tell upper from lower case.
        other = seen.setdefault(_directory_name(arm.name).lower(), arm)
        if other is not arm:
            raise ValueError(f"two arms would share a directory: {other.name!r} and {arm.name!r}")


def _directory_name(name: str) -> str:
    text = quote(name, safe=" =,+()[]'")
    if len(text) > 120:
        text = f"{text[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return text


def _plan(arms, seeds, workdir, fingerprint) -> list[_Run]:
    runs = []
    for seed, arm in itertools.product(seeds, arms):
        common = fingerprint(arm, seed) if callable(fingerprint) else fingerprint or {}
        configuration = {"overrides": arm.overrides, "seed": seed, "config": common}
        # repr: a config that says inf is not one that says None.
        configuration = jsonable(configuration, "the configuration", not_finite=repr)
        directory = workdir / "runs" / _directory_name(arm.name) / f"seed{seed}"
        runs.append(_Run(len(runs) + 1, arm, seed, directory, configuration))
    return runs


def _is_done(run: _Run) -> bool:
    """Whether the run is finished; raises if what its directory holds has another fingerprint."""
    started, finished = (run.directory / f for f in ("configuration.json", "result.json"))
    for path, keys in ((started, _STARTED_KEYS), (finished, _RESULT_KEYS)):
        if path.exists() and read_json(path, keys)["fingerprint"] != run.fingerprint:
            old = read_json(started, _STARTED_KEYS)["configuration"] if started.exists() else {}
            raise ValueError(
                f"{run.directory} holds a run with another configuration"
                f"{_differences(old, run.configuration)}; choose another --workdir or delete that "
                "directory."
            )
    return finished.exists()


def _differences(old: Any, new: Any, most: int = 3) -> str:
    old, new = flatten(old), flatten(new)
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)] if old else []
    if not keys:
        return ""
    shown = [f"{k.removeprefix('config.')} was {old.get(k)!r}, is {new.get(k)!r}" for k in keys]
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f" ({'; '.join(shown[:most])}{more})"


def _in_turn(run_one, runs) -> Iterator[tuple[_Run, str, float | None, str]]:
    for run in runs:
        yield run, "started", None, ""
        yield run, *_execute(run_one, run)


def _execute(run_one, run: _Run) -> tuple[str, float, str]:
    """Runs once, in whichever process, and leaves the result or the traceback on disk."""
    start, failed = time.monotonic(), run.directory / "traceback.txt"
    run.directory.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    try:
        started = {"fingerprint": run.fingerprint, "configuration": run.configuration}
        write_json(run.directory / "configuration.json", started)
        result = run_one(run.arm, run.seed, run.directory)
        if not isinstance(result, Mapping):
            raise TypeError(f"run_one must return a mapping, got {type(result).__name__}")
        seconds = float(result.get("seconds", time.monotonic() - start))
        record = {"arm": run.arm.name, "seed": run.seed, "fingerprint": run.fingerprint}
        record |= {"seconds": seconds, "result": jsonable(result, "the result of run_one")}
        write_json(run.directory / "result.json", record)
        return "finished", seconds, ""
    except Exception as error:  # told and raised by run_grid when the others are through
        failed.write_text(traceback.format_exc(), encoding="utf-8")
        return "failed", time.monotonic() - start, f"{type(error).__name__}: {error}".split("\n")[0]


_STARTED_KEYS = ("fingerprint", "configuration")
_RESULT_KEYS = ("arm", "seed", "fingerprint", "seconds", "result")


def _read_result(directory: Path) -> dict[str, Any]:
    return read_json(directory / "result.json", _RESULT_KEYS)


def _record(read: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    own = {k: read[k] for k in ("arm", "seed", "seconds")}
    return {**read["result"], **own, "directory": str(directory)}
