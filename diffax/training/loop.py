"""The training loop."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import flax.linen as nn
import jax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data
from diffax.training import feed, hosts, lifted, outputs, parallel, writers
from diffax.training.checkpoint import Checkpoints, kept
from diffax.training.evaluation import make_evaluation
from diffax.training.interrupt import Interrupted, Interruption
from diffax.training.state import DatasetInfo, TrainState, create_state
from diffax.training.step import make_train_step
from diffax.training.window import NonFiniteError, Window
from diffax.training.workdir import (
    CHECKPOINTS,
    Run,
    check_same_config,
    check_writable,
    saying_what_is_kept,
    write_text,
)

_LOG = logging.getLogger("diffax")


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    stop: Callable[[int, Run], bool] | None = None,
) -> tuple[TrainState, dict[str, float]]:
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
        one sentence, before any work.
      NonFiniteError: the loss or a gradient was not finite in more than training.max_skipped steps
        in a row, or in the last; the last checkpoint before is kept.
      OSError: the workdir can't be written to any more, its disk being full for instance; the
        message says which checkpoint is kept. (Of a checkpoint, which is written in the
        background, it comes with the next one or at the end.)
      Interrupted: (a KeyboardInterrupt) Ctrl-C or SIGTERM came; a checkpoint was saved first.
    """
    hosts.join(config.parallel.multihost)
    config_lib.validate(config)
    settings = config.training
    mesh = parallel.make_mesh(config.parallel.num_devices, config.parallel.fsdp)
    root = Path(workdir).absolute()
    check_writable(root)
    writers.check_tensorboard(settings.tensorboard)
    dataset = data.load_kept(config.data)
    info = DatasetInfo.of(dataset)
    model = config_lib.build_model(config, info)
    batches = data.batches(
        dataset.train,
        settings.batch_size,
        config.seed,
        flip=config.data.flip,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )

    like, init, compiled = compile_run(config, model, info, mesh)
    evaluate = make_evaluation(config, model, info, dataset, mesh)
    draw_samples = outputs.make_drawing(config, model, info, root, mesh)

    with ExitStack() as stack:
        stack.enter_context(saying_what_is_kept(root))
        checkpoints = stack.enter_context(
            closing(Checkpoints(root / CHECKPOINTS, settings.keep_checkpoints))
        )
        if checkpoints.steps():
            check_same_config(root, config)
            state, memory = checkpoints.restore(like, parallel.state_sharding(like, mesh))
            batches.set_state(memory["data"])
            _LOG.info("resuming at step %d of %d", state.step, settings.num_steps)
        else:
            state, memory = init(jax.random.key(config.seed)), {"window": [], "metrics": {}}
            _LOG.info("%s parameters", f"{parameter_overview.count_parameters(state.params):,}")
        if hosts.is_first():
            write_text(root / "config.json", config_lib.to_json(config))
            write_text(root / "dataset.json", info.to_json())

        done = int(state.step)
        window, latest = Window(memory["window"], settings.max_skipped), dict(memory["metrics"])
        writer = stack.enter_context(
            closing(writers.create(root, settings.num_steps, done, settings.tensorboard))
        )
        signals = stack.enter_context(Interruption())
        if done == 0:
            outputs.write_schedule(root, state)

        sizes = feed.sizes(done, settings.num_steps, settings.steps_per_call)
        supply = feed.Feed(batches, compiled.place, sizes)
        for count, several in supply:
            state, metrics = compiled.step(state, several)
            window.add(done + 1, metrics)
            done += count
            last = done == settings.num_steps
            due = functools.partial(is_due, done - count, done, last=last)
            number = hosts.agreed(
                signals.number, due(settings.log_every) or due(settings.checkpoint_every)
            )

            scalars = {}
            if due(settings.log_every):
                check_finite(window, checkpoints, last)
                scalars.update(window.take_mean())
            if due(settings.eval_every):
                scalars.update(evaluate(state))
            if scalars:
                writer.write_scalars(done, scalars)
                latest.update(scalars)
            if due(settings.sample_every):
                writer.write_images(done, {"samples": draw_samples(state)})
                outputs.write_schedule(root, state)
            enough = stop is not None and stop(done, Run(config, model, state, info))
            if last or number or enough or due(settings.checkpoint_every):
                check_finite(window, checkpoints, last)
                memory = {
                    "data": supply.get_state(),
                    "window": window.memory(),
                    "metrics": latest,
                }
                checkpoints.save(done, state, memory)
            if number and not last:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped after step {done}, which is saved in {root}: the same call (or"
                    " command) goes on from there",
                    number,
                )
            if enough:
                break
        outputs.write_schedule(root, state)
    return state, latest


def compile_run(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, mesh: Mesh
) -> tuple[TrainState, Callable[[jax.Array], TrainState], parallel.Compiled]:
    """What a run consists of, in its mode and over a mesh: the state's shapes, the function
    key -> first state, and the steps.

    Raises:
      ValueError: the batch can't be split as the config asks for, or an impossible mode.
    """
    create = functools.partial(create_state, config, model, dataset)
    like = jax.eval_shape(create, jax.random.key(config.seed))
    check_batch_size(config, mesh, like)
    make_step = functools.partial(make_train_step, config, model, dataset)
    compiled = lifted.compile_step(make_step, mesh, like, config.parallel.mode)
    return like, parallel.compile_init(create, mesh, like), compiled


def is_due(before: int, step: int, every: int, last: bool) -> bool:
    """Whether something happens after a call that went from step `before` to `step`: where it
    reached a multiple of `every` (0: never), and at the end."""
    return every > 0 and (last or step // every > before // every)


def check_batch_size(config: ConfigDict, mesh: Mesh, state: TrainState) -> None:
    """Raises ValueError, naming the key, if the batch can't be split as the config asks for."""
    halves = 2 if config_lib.is_learned(state.schedule) else 1
    times = {
        "config.training.grad_accumulation": config.training.grad_accumulation,
        "the halves of a batch between which a learned schedule's gradient is compared": halves,
    }
    parallel.check_divides("training.batch_size", config.training.batch_size, mesh, times)


def check_finite(window: Window, checkpoints: Checkpoints, last: bool) -> None:
    """Raises NonFiniteError, saying what is kept, if too many steps in a row were not finite."""
    try:
        window.check(last)
    except NonFiniteError as error:
        checkpoints.wait()
        raise NonFiniteError(
            error.step,
            error.quantity,
            error.value,
            error.log_snr,
            error.skipped,
            f"; {kept(checkpoints.directory)}. A lower optimizer.learning_rate or clip_norm, or"
            " more warmup_steps, usually helps",
        ) from None
