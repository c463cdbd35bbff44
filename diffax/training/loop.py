"""The training loop."""

import collections
import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, distributed, plugins
from diffax.data import DatasetInfo
from diffax.data.pipeline import check_batch_size
from diffax.distributed import SINGLE, RunLayout, hosts, layout_of
from diffax.methods import Method
from diffax.methods.base import State
from diffax.methods.codec import Codec
from diffax.methods.teacher import Teacher
from diffax.places import workdir_of
from diffax.runtime import Interrupted, Interruption, the_same
from diffax.training import codecs, latents, teachers, writers
from diffax.training.checkpoint import DamagedError, kept
from diffax.training.lock import held
from diffax.training.measuring import make_evaluation
from diffax.training.progress import ProgressDisplay
from diffax.training.run_logger import RunLogger, make_drawing
from diffax.training.workdir import (
    Run,
    check_writable,
    explain_os_errors,
    refuse_another_run,
    trained_on,
)

_LOG = logging.getLogger("diffax")


def train(
    config: ConfigDict, workdir: str | os.PathLike, stop: Callable[[int, Run], bool] | None = None
) -> tuple[State, dict[str, float]]:
    """Trains a network, and the schedule if it is a learned one, as a config says.

    A run that was interrupted is resumed from its latest checkpoint and goes on exactly as if
    nothing had happened: same data, same noise, same metrics. A run that is complete is only read.

    Args:
      config: see `diffax.config.default_config`.
      workdir: the run's own directory, made if it isn't there; see `training.workdir`.
      stop: asked with the step and the run after every call of the device (each step, unless
        training.steps_per_call is more); where it says True the run ends, with a checkpoint from
        which the same call goes on: nothing else differs from a run to its last step, its learning
        rates neither. The run's arrays are given away in the next step, so a copy must be made of
        what is to be kept. With several hosts all must say the same.

    Returns:
      The last state (`state.schedule` is the schedule as trained), and the metrics last logged:
      "loss", "loss_variance", "grad_norm", "learning_rate", averages over the latest
      training.log_every steps; "schedule_..." if it is learned; "eval_..." if evaluated;
      "skipped_steps" if any were.

    Raises:
      ValueError: the config can't be run, the workdir holds another run, or the data is wrong; in
        one sentence, before any work; or another job is at work in the workdir (see `lock`).
      NonFiniteError: the loss or a gradient was not finite, or an update huge, in more than
        training.max_skipped steps in a row, or in the last. No checkpoint is made in such a row,
        and the last after which a step was good is kept, so that a lower rate goes on from there;
        what this call saved later is put aside as "diverged-<step>".
      OSError: the workdir can't be written to any more, its disk being full for instance; the
        message says which checkpoint is kept. (Of a checkpoint, which is written in the
        background, it comes with the next one or at the end.)
      Interrupted: (a KeyboardInterrupt) Ctrl-C or SIGTERM came; a checkpoint was saved first.
    """
    return _train([config], [workdir], stop)[0]


def train_together(
    configs: Sequence[ConfigDict], workdirs: Sequence[str | os.PathLike]
) -> list[tuple[State, dict[str, float]]]:
    """Trains several runs that differ in their seeds alone, in one program: `train`, by `jax.vmap`.

    For networks so small that one run leaves the processor with little to do in each operation.
    Each workdir holds what `train` would leave there, and the numbers agree with it to rounding,
    not bit by bit: the products of several runs are summed in another order.

    Interrupted or killed, the same call goes on, exactly as if nothing had happened, from the
    latest step of which every run has a checkpoint that can be read; later ones are removed. Until
    all have the next checkpoint, none loses the one before.

    Args:
      configs: of the runs, with training.num_steps etc. in common and distinct seeds.
      workdirs: of each, as for `train`.

    Returns:
      For each run what `train` returns.

    Raises:
      ValueError: as `train`; the configs differ in more than the seed; two runs have one workdir or
        one seed; more than one device or process, or mode "pmap"; or some runs have checkpoints,
        but of no step in common: then each has to be trained by itself.
      NonFiniteError: as `train`, in any of the runs, which the message names. All end with it, and
        the last checkpoint of each is kept, from which `train` goes on with each by itself.
      OSError, Interrupted: as `train`; of all runs.
    """
    _check_alike(configs, workdirs)
    return _train(configs, workdirs)


def _train(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[str | os.PathLike],
    stop: Callable[[int, Run], bool] | None = None,
) -> list[tuple[State, dict[str, float]]]:
    config, layout = configs[0], layout_of(len(configs))
    hosts.join(config.parallel.multihost)
    for each in configs:
        config_lib.load_plugins(each)
    config_lib.validate(config)
    _say_what_is_registered_here()
    distributed.check_mode(config.parallel.mode)
    mesh = distributed.make_mesh(config.parallel.num_devices, config.parallel.fsdp)
    layout.check(config.parallel.mode, mesh)
    roots = [workdir_of(workdir) for workdir in workdirs]
    for root in roots:
        check_writable(root)
    with ExitStack() as stack:
        with explain_os_errors(*roots), hosts.failing_together():
            check_ours = stack.enter_context(held(roots if hosts.is_first() else ()))
        progress = stack.enter_context(ProgressDisplay(hosts.is_first()))
        return _train_in(configs, roots, layout, mesh, stop, check_ours, progress)


def _train_in(
    configs: Sequence[ConfigDict],
    roots: Sequence[Path],
    layout: RunLayout,
    mesh: Mesh,
    stop: Callable[[int, Run], bool] | None,
    check_ours: Callable[[], None],
    progress: ProgressDisplay,
) -> list[tuple[State, dict[str, float]]]:
    """Trains in directories that exist; `check_ours` raises OSError if they are another job's."""
    config, settings = configs[0], configs[0].training
    writers.check_boards(settings)
    with progress.doing(f"reading {config.data.name}"):
        dataset = config_lib.load_data(config)
    progress.detail(_described(dataset))
    info, codec, teacher = requirements(config, dataset)
    seen = dataset  # by a step
    if codec.fingerprint:
        finite = config_lib.method_before_data(config).required_finite
        rates = {bound.section for bound in finite.values()}
        for each, root in zip(configs, roots):  # before the data are encoded
            refuse_another_run(root, each, info, rates)
        start = settings.init_from and trained_on(
            workdir_of(settings.init_from, "training.init_from")
        )
        known = trained_on(roots[0]) or (teacher and teacher.data) or start or None
        seen, info = latents.prepared(config, codec, dataset, info, known)
    method = codecs.build_method(config, info, teacher)
    inner = codecs.build_method(config, info, teacher, of_latents=seen is not dataset)
    seen = config_lib.conditions.encoded_dataset(config, seen)
    like, init, compiled = compile_run(config, inner, mesh, layout)

    def logger_of(config: ConfigDict, root: Path) -> RunLogger:
        of_host = dict(shard_index=jax.process_index(), shard_count=jax.process_count())
        size, flip = settings.batch_size, config.data.flip
        batches = data.batches(seen.train, size, config.seed, flip=flip, **of_host)
        evaluate = make_evaluation(config, inner, seen, mesh)
        draw = inner.preview and make_drawing(config, inner, seen, root, mesh)
        return RunLogger(config, root, method, info, batches, evaluate, draw, layout)

    with ExitStack() as stack:
        stack.enter_context(explain_os_errors(*roots))
        runs = [stack.enter_context(closing(logger_of(*each))) for each in zip(configs, roots)]
        states = _restored(runs, like, distributed.state_sharding(like, mesh))
        if states is None:
            with progress.doing("initialising the network"):
                states = [init(jax.random.key(run.config.seed)) for run in runs]
            if (params := teachers.starting_params(config, info, like)) is not None:
                states = [teachers.started_from(own, params) for own in states]
        for run, own in zip(runs, states):
            run.begin(own)
        begun = done = int(states[0].step)
        state = layout.stack(states)
        del states  # their memory is used again
        signals = stack.enter_context(Interruption())

        sizes = sizes_of_calls(done, settings.num_steps, settings.steps_per_call)
        batches = layout.batches([run.batches for run in runs])
        supply = DevicePrefetcher(batches, compiled.place, sizes)

        def so_far(_: float) -> str:
            return runs[0].pace.silent_at(max(begun, runs[0].metrics.completed()))

        stack.enter_context(progress.doing("", so_far))
        for count, several in supply:
            if done == begun:
                # Several processes stop together, which they can't in the midst of a compilation.
                with signals.at_once(_unbegun(done)) if jax.process_count() == 1 else ExitStack():
                    state, metrics = _first_call(
                        compiled.step, state, several, done, runs, progress
                    )
            else:
                state, metrics = compiled.step(state, several)
            for run, own in zip(runs, layout.each_metrics(metrics)):
                _check_has_loss(config, own)
                run.metrics.add(done + 1, own)
            done += count
            last = done == settings.num_steps
            due = functools.partial(is_due, done - count, done, last=last)
            number = hosts.agreed(
                signals.number, due(settings.log_every) or due(settings.checkpoint_every)
            )

            if due(settings.log_every) or due(settings.checkpoint_every):
                with hosts.failing_together():
                    check_ours()
            if due(settings.log_every):
                for run in runs:
                    run.check_finite(last)
            wanted = due(settings.log_every), due(settings.eval_every), due(settings.sample_every)
            if any(wanted):
                with _aside(runs, f"looking at step {done}", progress):
                    for run, own in zip(runs, layout.each(state)):
                        run.log(done, own, *wanted)
            enough = stop is not None and stop(done, Run(config, method, state, info))
            if last or number or enough or due(settings.checkpoint_every):
                for run in runs:
                    run.check_finite(last)
                # The row may be the beginning of the end: what was good before it stays.
                skipping = any(run.metrics.in_row() for run in runs)
                if not skipping:
                    with _aside(runs, f"saving step {done}", progress):
                        _save(runs, done, layout.each(state), layout.each_data(supply.get_state()))
            if number and not last:
                for run in runs:
                    run.checkpoints.wait()
                raise Interrupted(_farewell(runs, done, skipping), number)
            if enough:
                break
        states = layout.each(state)
        with progress.doing("writing the last checkpoint"):
            for run, own in zip(runs, states):
                with hosts.failing_together():
                    run.end(own)
    return [(own, run.latest) for run, own in zip(runs, states)]


def requirements(
    config: ConfigDict, dataset: data.Dataset
) -> tuple[DatasetInfo, Codec, Teacher | None]:
    """What a training needs besides its config: what it knows of its data, its codec and teacher.

    Raises:
      FileNotFoundError, ValueError: the codec or the teacher is missing or of no use to it, or
        training.batch_size is more than the training split.
    """
    info = DatasetInfo.of(dataset)
    codec = codecs.codec_of(config, info)
    info = dataclasses.replace(info, codec=codec.fingerprint)
    teacher = teachers.teacher_of(config, info)
    info = dataclasses.replace(info, teacher=teacher.fingerprint if teacher else "")
    check_batch_size(config.training.batch_size, dataset.train)
    return info, codec, teacher


def _say_what_is_registered_here() -> None:
    alone = [f"{kind} {name!r}" for kind, name in plugins.unowned()]
    if alone:
        _LOG.warning(
            "registered by this program alone: %s; to use the run elsewhere, put that into a file"
            " and name it in config.plugins (or by --plugin)",
            ", ".join(alone),
        )


def _first_call(
    step: Callable, state: State, several: Any, done: int, runs: Sequence[RunLogger], progress
) -> tuple[State, Any]:
    """`step`(state, several), which is compiled meanwhile; the pace is measured from its end."""
    start = time.monotonic()
    with progress.doing("compiling the training step"):
        made = step(state, several)
    seconds, num = time.monotonic() - start, runs[0].config.training.num_steps
    progress.detail(f"compiled in {seconds:.1f} s; step {done + 1} of {num} is under way")
    for run in runs:
        run.pace.begin(done)
    return made


def _check_has_loss(config: ConfigDict, metrics: Any) -> None:
    if "loss" not in metrics:
        raise ValueError(
            f"the step of method {config.method.name!r} gives no metric 'loss'; it gives"
            f" {', '.join(metrics)}"
        )


@contextmanager
def _aside(runs: Sequence[RunLogger], what: str, progress: ProgressDisplay) -> Iterator[None]:
    """While this is open no time counts as that of steps, those under way have ended."""
    for run in runs:
        run.metrics.memory()
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.pace.paused())
        stack.enter_context(progress.doing("", lambda s: f"{what}: {s:.0f} s so far"))
        yield


def _unbegun(done: int) -> str:
    if done:
        return f"stopped before step {done + 1}; the same command goes on from step {done}"
    return "stopped before the first step; the same command starts it"


def _described(dataset: data.Dataset) -> str:
    """What was read, in a line."""
    shape = "x".join(map(str, dataset.shape))
    classes = f" in {dataset.num_classes} classes" if dataset.num_classes else ""
    return (
        f"{dataset.name}: {len(dataset.train):,} examples of {shape}{classes} to train on,"
        f" {len(dataset.eval):,} to evaluate by"
    )


def _restored(runs: Sequence[RunLogger], like: State, sharding: Any) -> Sequence[State] | None:
    """The states at the latest checkpoint that all runs have and that can be read; None if there
    is no checkpoint."""
    there = [set(run.checkpoints.steps()) for run in runs]
    if not any(there):
        return None
    if len(runs) == 1:  # of those that can be read
        return [runs[0].restore(like, sharding)]
    common = sorted(set.intersection(*there))
    if not common:
        raise ValueError(
            f"the runs in {', '.join(str(run.root) for run in runs)} have no checkpoint of a step"
            " in common, so they can't go on together: train each by itself"
        )
    while True:
        step = common.pop()
        try:
            states = [run.restore(like, sharding, step) for run in runs]
        except DamagedError as error:
            if not common:
                raise
            _LOG.warning("%s; those of step %d are used", error, common[-1])
        else:
            break
    for run in runs:
        run.checkpoints.remove(later for later in run.checkpoints.steps() if later > step)
    return states


def _save(
    runs: Sequence[RunLogger], step: int, states: Sequence[State], data: Sequence[Any]
) -> None:
    """Saves all runs; none begins before the earlier checkpoints of all are whole, so that there is
    always a step of which all have one."""
    if len(runs) > 1:
        for run in runs:
            run.checkpoints.wait()
    for run, own, position in zip(runs, states, data):
        run.save(step, own, position)


def _farewell(runs: Sequence[RunLogger], step: int, skipping: bool) -> str:
    places = ", ".join(str(run.root) for run in runs)
    saved = f"which is saved in {places}: {the_same()} goes on from there"
    if skipping:
        all_kept = ", ".join(kept(run.checkpoints.directory) for run in runs)
        saved = f"which had to be skipped and is not saved: {all_kept}; {the_same()} goes on"
    return f"stopped after step {step}, {saved}"


def _check_alike(configs: Sequence[ConfigDict], workdirs: Sequence[str | os.PathLike]) -> None:
    """Raises ValueError if these are not runs that differ in their seeds alone."""
    if not configs or len(configs) != len(workdirs):
        raise ValueError(
            f"there are {len(configs)} configs and {len(workdirs)} workdirs; each run needs one of"
            " both, and there must be at least one run"
        )
    for config in configs[1:]:
        others = [key for key in config_lib.differences(configs[0], config) if key != "seed"]
        if others:
            raise ValueError(
                f"the configs differ in {', '.join(others)}; runs that are trained together may"
                " differ in seed alone"
            )
    seeds = [config.seed for config in configs]
    for name, values in (
        ("seeds", seeds),
        ("workdirs", [workdir_of(w) for w in workdirs]),
    ):
        if len(set(values)) < len(values):
            raise ValueError(f"the {name} of the runs must be distinct: {list(map(str, values))}")


def compile_run(
    config: ConfigDict, method: Method, mesh: Mesh, layout: RunLayout = SINGLE
) -> tuple[State, Callable[[jax.Array], State], distributed.Compiled]:
    """What a run consists of, in its mode and over a mesh: the shapes of its state, the function
    key -> first state, and the compiled steps of the runs of a layout.

    Raises:
      ValueError: the batch can't be split as the config asks for, or an impossible mode.
    """
    like = jax.eval_shape(method.init, jax.random.key(config.seed))
    check_memory(like, mesh)
    size = config.training.batch_size
    distributed.check_divides("training.batch_size", size, mesh, method.batch_factors)
    compiled = distributed.compile_step(method.step, mesh, like, config.parallel.mode, layout)
    return like, distributed.compile_init(method.init, mesh, like), compiled


def is_due(before: int, step: int, every: int, last: bool) -> bool:
    """Whether something happens after a call that went from step `before` to `step`: where it
    reached a multiple of `every` (0: never), and at the end."""
    return every > 0 and (last or step // every > before // every)


# --- batches, on the devices before a step asks for them ------------------------------------------


class DevicePrefetcher:
    """An iterator of (number of steps, their batches on the devices).

    The transfer to a device goes on while the step before runs: JAX does not wait for either.

    Args:
      batches: of `diffax.data.batches`.
      place: puts batches, stacked along a new first axis, on their devices.
      sizes: how many batches to stack for each call; the iterator ends with it.
      ahead: how many calls' batches lie on the devices, besides the one that is handed out.
    """

    def __init__(
        self, batches: Any, place: Callable[[Any], Any], sizes: Iterator[int], ahead: int = 2
    ) -> None:
        self._batches, self._place, self._sizes = batches, place, iter(sizes)
        self._ahead = ahead
        self._queue: collections.deque[tuple[int, Any, Any]] = collections.deque()
        self._state = batches.get_state()

    def get_state(self) -> Any:
        """The state that `batches` was in after those which were handed out."""
        return self._state

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Any]:
        while len(self._queue) <= self._ahead and (size := next(self._sizes, 0)):
            several = [next(self._batches) for _ in range(size)]
            stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *several)
            self._queue.append((size, self._place(stacked), self._batches.get_state()))
        if not self._queue:
            raise StopIteration
        size, placed, self._state = self._queue.popleft()
        return size, placed


def sizes_of_calls(done: int, num_steps: int, steps_per_call: int) -> Iterator[int]:
    """How many steps each call takes from step `done` on: up to the next multiple of
    `steps_per_call`, or to the last step."""
    while done < num_steps:
        size = min(steps_per_call - done % steps_per_call, num_steps - done)
        yield size
        done += size


# --- whether what a run holds fits into its devices, before anything is allocated -----------------


def check_memory(state: State, mesh: Mesh) -> None:
    """Raises ValueError if a state, by its shapes, with a gradient is more than a device holds.

    Activations, which depend on the compiler, come on top.
    """
    held = _size(state) + _size(state.params)
    need, have = held / mesh.shape["fsdp"], memory_of_each(mesh)
    if need > have:
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
        raise ValueError(
            f"config.model makes a network of {count:,} parameters, which take {_gb(need)} on each"
            f" device with their average, the optimiser's state and the gradient, and a device has"
            f" {_gb(have)}: make it smaller, or raise config.parallel.fsdp"
        )


def memory_of_each(mesh: Mesh) -> float:
    """Bytes that a device of this process has, an equal share of the machine's if they are
    processors; infinity where that can't be known."""
    own = mesh.local_devices
    limit = (own[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None or own[0].platform != "cpu":
        return limit or math.inf
    names = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"}
    if not names <= getattr(os, "sysconf_names", {}).keys():
        return math.inf
    return math.prod(map(os.sysconf, names)) / len(own)


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
