"""The teacher that a config names: another run, read once."""

import functools
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffax import methods
from diffax.data import DatasetInfo
from diffax.files import content_hash
from diffax.methods.teacher import Teacher
from diffax.training import workdir


@functools.lru_cache(maxsize=4)
def _load(path: str, step: int, written: int) -> Teacher:
    """One object for one checkpoint, so that the methods that take it can be told apart by it."""
    del written  # when the checkpoint was
    run = workdir.load(path, step)
    if run.config.method.name != "diffusion":
        raise ValueError(
            f"method.teacher is {path}, which holds a run of method {run.config.method.name!r}; it"
            " must hold one of method 'diffusion'"
        )
    params, schedule = jax.device_get((run.state.ema_params, run.state.schedule))
    return Teacher(
        path=path,
        params=params,
        schedule=schedule,
        prediction=run.config.objective.prediction,
        fingerprint=content_hash(*jax.tree.leaves((params, schedule))),
        data=run.dataset,
    )


def teacher_of(config: ConfigDict, data: DatasetInfo) -> Teacher | None:
    """The teacher of a config, at its latest checkpoint; None if it names none.

    Args:
      data: what the student is trained on, and the codec that it works through.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint.
      ValueError: it holds a run of another method than diffusion, or one that was trained on other
        data or through another codec; or the config's method takes no teacher.
    """
    named = config.method.teacher
    if not named:
        return None
    if "teacher" not in methods.arguments_of(config.method.name):
        raise ValueError(
            f"method.teacher is {named!r}, and method {config.method.name!r} takes no teacher:"
            " leave it empty"
        )
    path = os.path.abspath(os.path.expanduser(named))
    step = workdir.steps_done(path)
    checkpoint = Path(path) / workdir.CHECKPOINTS / str(step)
    at = (path, step, checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0)
    try:
        teacher = _load(*at)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"method.teacher is {named!r}: {error}") from None
    changes = teacher.data.changes(data)
    if teacher.data.codec != data.codec and not any("codec" in change for change in changes):
        changes = [*changes, "it works through a codec, and the student does not"]
    if changes:
        raise ValueError(
            f"method.teacher is {named!r}, which was trained on other data than the student:"
            f" {'; '.join(changes)}"
        )
    return teacher
