"""The grid of an ablation: arms × seeds, run once each, kept on disk, resumed where it stopped.

An `Arm` is a name and the config keys that it overrides. `grid` makes the full product of some
axes. `run_grid` calls a function for each arm with each seed, in this process or in several, and
keeps every result in a directory of its own, workdir/runs/<arm>/seed<k> (see `store`). Several
machines may each run a part. The run may put its own files, such as samples, into that directory.
Nothing here knows what a run does.
"""

import dataclasses
import functools
import itertools
import operator
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffax.ablation import store
from diffax.ablation import workers as worker_processes
from diffax.ablation.store import GridRun
from diffax.places import path_of
from diffax.report.formatting import format_seconds
from diffax.runtime import Failed, the_same


@dataclass(frozen=True)
class Arm:
    """One arm of an ablation.

    Attributes:
      name: its name in tables and figures, and of its directory.
      overrides: dotted config key -> value, e.g. {"schedule.name": "cosine"}.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What `run_grid` reports about a run when it starts and when it ends.

    Attributes:
      status: "kept" (it was done already), "started", "finished" or "failed".
      index, total: this run's place in the grid, from 1, and the number of runs.
      arm, seed: which run.
      seconds: how long this run took; None while it is running.
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


@dataclass(frozen=True)
class Sharing:
    """What runs of a grid have in common, such as a training, and how it is made.

    Attributes:
      group: group(arm, seed) -> the key of what the run shares. Runs of one group follow one
        another in one process, so that the first makes what the others find. None: each run is a
        group.
      join: join(arm, seed) -> (key, most), the same for a whole group. Of the groups that are to be
        run, those of one key are joined, at most `most` of them, as long as every worker still has
        one. None: none are.
      prepare: prepare([(arm, seed), ...]) is called before the first run of each group, in the
        process that makes it, with all of them. It must be picklable, as `run_one` is.
    """

    group: Callable[[Arm, int], Any] | None = None
    join: Callable[[Arm, int], tuple[Any, int]] | None = None
    prepare: Callable[[Sequence[tuple[Arm, int]]], None] | None = None


class GridError(Failed, RuntimeError):
    """Some runs failed; the message names each, and the results of the others are kept."""


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Arm]:
    """The full product of the axes, the last axis varying fastest.

    >>> [arm.name for arm in grid({"schedule.name": ["linear"], "seed": [0, 1]})]
    ['schedule.name=linear,seed=0', 'schedule.name=linear,seed=1']

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
        written = [repr(value) for value in values]
        for value in written:
            if written.count(value) > 1:
                raise ValueError(f"axes[{key!r}] has the value {value} twice")
    each = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    arms = [Arm(name_of(overrides), overrides) for overrides in each]
    _check_names(arms)
    return arms


def name_of(overrides: Mapping[str, Any]) -> str:
    """The name that `grid` gives to an arm with these overrides: "key=value,key=value"."""
    return ",".join(f"{key}={value}" for key, value in overrides.items())


def run_grid(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    run_one: Callable[[Arm, int, Path], Mapping[str, Any]],
    workdir: str | os.PathLike,
    fingerprint: Callable[[Arm, int], Any] | Mapping[str, Any] | None = None,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    worker_environment: Sequence[Mapping[str, str]] | None = None,
    shard: tuple[int, int] = (1, 1),
    sharing: Sharing = Sharing(),
) -> list[dict[str, Any]]:
    """Runs every arm with every seed, skipping what is done; returns the results.

    Seeds are the outer loop: all arms of the first seed are done first (of the first seeds, where
    groups are joined), so that a report made half way is already paired. A run that was interrupted
    is called again with the same directory and may resume from what it left there. A run that
    raises an `Exception` keeps its traceback in its directory, the others go on, and `GridError` at
    the end names it. Ctrl-C stops all; what is finished is kept, and trainings in worker processes
    save a checkpoint first.

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
      worker_environment: for each worker its environment variables, such as thread limits.
      shard: (i, n) runs the i-th of n parts of the grid, i from 1: every n-th group, so that n
        machines do all of it and no two of them the same.
      sharing: what runs have in common; by default nothing.

    Returns:
      One dict per run, seeds outermost: what run_one returned, with "arm", "seed", "seconds",
      "finished" (the time, in seconds since 1970) and "directory" (str) set.

    Raises:
      ValueError: no or repeated arms or seeds, a configuration that does not match what is on
        disk, an unreadable result file, an impossible shard; all before anything is run.
      GridError: a run failed.
    """
    _check_names(arms)
    seeds = [operator.index(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more distinct integers, got {seeds}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"shard is {part}/{parts}; it must be i/n with i from 1 to n")
    units = _plan(arms, seeds, path_of(workdir), fingerprint, sharing)[part - 1 :: parts]
    runs = [run for unit in units for run in unit]
    done = {run.directory: found for run in runs if (found := store.finished(run)) is not None}
    pending = [[run for run in unit if run.directory not in done] for unit in units]
    pending = [unit for unit in pending if unit]
    if sharing.join is not None:
        pending = joined(pending, sharing.join, workers)
    for unit in pending:
        whole = tuple((run.arm, run.seed) for run in unit)
        unit[0] = dataclasses.replace(unit[0], prepared=whole)
    execute = functools.partial(store.execute, run_one, prepare=sharing.prepare)
    first = {unit[0].directory for unit in pending}
    first |= {unit[0].directory for unit in units if unit[0].directory in done}
    tell = _EventReporter(on_progress, runs, first, done, workers)
    for run in runs:
        if run.directory in done:
            tell(run, "kept", done[run.directory]["seconds"])
    if workers == 1 or len(pending) < 2:
        events = _in_turn(execute, pending)
    else:
        environments = list(worker_environment or [{}] * workers)[:workers]
        events = worker_processes.in_parallel(
            execute, pending, environments, kind=lambda run: (run.seed, run.arm.name)
        )
    failures: dict[str, list[str]] = {}  # of each reason the runs
    # closing: an interruption while an event is reported must stop the workers too.
    with closing(events):
        for run, status, seconds, message in events:
            tell(run, status, seconds, message)
            if status == "failed":
                failures.setdefault(message, []).append(f"{run.arm.name} seed {run.seed}")
    if failures:
        count = sum(map(len, failures.values()))
        why = "; ".join(f"{', '.join(sorted(names))} ({m})" for m, names in failures.items())
        raise GridError(
            f"{count} of {len(runs)} runs failed: {why}. Each one's "
            f"traceback is in traceback.txt in its directory under {path_of(workdir) / 'runs'}; "
            f"finished results are kept, and {the_same()} tries the failed ones again."
        )
    found = [done.get(run.directory) or store.read_result(run.directory) for run in runs]
    return [store.record(read, run.directory) for read, run in zip(found, runs)]


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


class _EventReporter:
    """Turns events into `Progress`. The time left is estimated from the runs seen so far, with a
    mean of its own for the first runs of groups, which make what others share."""

    def __init__(self, on_progress, runs, first, done, workers):
        self.on_progress, self.workers, self.first = on_progress, workers, first
        self.index = {run.directory: i for i, run in enumerate(runs, 1)}
        self.left = [run.directory in self.first for run in runs if run.directory not in done]
        self.start, self.times = time.monotonic(), {True: [], False: []}

    def __call__(self, run, status, seconds=None, message=""):
        first = run.directory in self.first
        if status in ("finished", "failed"):
            self.left.remove(first)
        if status in ("kept", "finished"):
            self.times[first].append(seconds)
        if self.on_progress is not None:
            elapsed = time.monotonic() - self.start
            where = (self.index[run.directory], len(self.index), run.arm.name, run.seed)
            eta = self._time_left()
            self.on_progress(Progress(status, *where, seconds, elapsed, eta, message))

    def _time_left(self) -> float | None:
        means = {kind: sum(t) / len(t) for kind, t in self.times.items() if t}
        if not means:
            return None
        other = max(means.values())  # of a kind that has not been seen yet
        total = sum(means.get(kind, other) for kind in self.left)
        return total / min(self.workers, max(len(self.left), 1))


def _check_names(arms: Sequence[Arm]) -> None:
    if not arms:
        raise ValueError("arms is empty; give at least one Arm")
    seen = {}
    for arm in arms:
        if not arm.name.strip(". "):
            raise ValueError(f"an arm's name must name a directory, got {arm.name!r}")
        # Some file systems do not tell upper from lower case.
        other = seen.setdefault(store.directory_name(arm.name).lower(), arm)
        if other is not arm:
            raise ValueError(f"two arms would share a directory: {other.name!r} and {arm.name!r}")


def _plan(arms, seeds, workdir, fingerprint, sharing) -> list[list[GridRun]]:
    """The runs, seeds outermost, those of a group together."""
    units = {}
    for seed, arm in itertools.product(seeds, arms):
        common = fingerprint(arm, seed) if callable(fingerprint) else fingerprint or {}
        run = store.make_run(arm, seed, workdir, common)
        key = sharing.group(arm, seed) if sharing.group else run.directory
        units.setdefault(key, []).append(run)
    return list(units.values())


def joined(
    units: Sequence[list[GridRun]], join: Callable[[Arm, int], tuple[Any, int]], workers: int
) -> list[list[GridRun]]:
    """The groups joined as `Sharing.join` says, the first parts of every key before the second."""
    kinds = {}
    for unit in units:
        key, most = join(unit[0].arm, unit[0].seed)
        kinds.setdefault(key, (most, []))[1].append(unit)
    parts = []
    for most, same in kinds.values():
        number = max(-(-len(same) // most), min(len(same), -(-workers // len(kinds))))
        ends = [len(same) * i // number for i in range(number + 1)]
        parts.append([sum(same[a:b], []) for a, b in itertools.pairwise(ends)])
    return [part for row in itertools.zip_longest(*parts) for part in row if part]


def _in_turn(execute, units) -> Iterator[tuple[GridRun, str, float | None, str]]:
    for run in itertools.chain.from_iterable(units):
        yield run, "started", None, ""
        yield run, *execute(run)
