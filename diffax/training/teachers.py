"""Other runs that a config names: the teacher, or the base of a ControlNet, read once; the run that
training starts from; and what lies at each of them."""

import functools
import logging
import os
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import methods
from diffax.config.storage import flat
from diffax.data import DatasetInfo
from diffax.files import content_hash
from diffax.methods.base import State
from diffax.methods.teacher import Teacher
from diffax.places import relative_to_what, workdir_of
from diffax.training import workdir

_LOG = logging.getLogger("diffax")


# The keys of a config that name a run's directory; "codec.path" too, of codec.name="run".
KEYS = ("condition.base", "method.teacher", "training.init_from")


def contents(config: ConfigDict) -> dict[str, str]:
    """Key -> the `workdir.identity` of the run that it names, of those keys that name one.

    Raises:
      FileNotFoundError: there is no run; the key is named.
    """
    keys = (*KEYS, *(["codec.path"] if config.codec.name == "run" else []))
    named = {key: flat(config)[key] for key in keys}
    return {key: _identity(key, path) for key, path in named.items() if path}


def _identity(key: str, named: str) -> str:
    try:
        return workdir.identity(workdir_of(named, key))
    except FileNotFoundError as error:
        raise _not_there(key, named, error) from None


def _not_there(key: str, named: str, error: FileNotFoundError) -> FileNotFoundError:
    return FileNotFoundError(f"{key} is {named!r}: {error}{relative_to_what(named, key)}")


@functools.lru_cache(maxsize=4)
def _load(path: str, step: int, identity: str) -> Teacher:
    """One object for one checkpoint, so that the methods that take it can be told apart by it."""
    del identity  # of what lies there
    run = workdir.load(path, step)
    if run.config.method.name != "diffusion":
        raise ValueError(
            f"{path} holds a run of method {run.config.method.name!r}; it must hold one of method"
            " 'diffusion'"
        )
    if run.config.condition.base:
        raise ValueError(
            f"{path} holds a ControlNet, by which no student is taught, and beside which no other"
            f" ControlNet is trained; name its base, {run.config.condition.base}"
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
    """The teacher of a config, or the base of its ControlNet, at its latest checkpoint; None if it
    names none.

    Args:
      data: what the run is trained on, and the codec that it works through.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint.
      ValueError: it holds a run of another method than diffusion, or one that was trained on other
        data (a base: on data of another shape) or through another codec; or the config's method
        takes no teacher.
    """
    named = config.method.teacher
    if config.condition.base:
        return _base_of(config, data)
    if not named:
        return None
    if "teacher" not in methods.arguments_of(config.method.name):
        raise ValueError(
            f"method.teacher is {named!r}, and method {config.method.name!r} takes no teacher:"
            " leave it empty"
        )
    teacher = _read("method.teacher", named)
    changes = teacher.data.changes(data)
    if teacher.data.codec != data.codec and not any("codec" in change for change in changes):
        changes = [*changes, "it works through a codec, and the student does not"]
    if changes:
        raise ValueError(
            f"method.teacher is {named!r}, which was trained on other data than the student:"
            f" {'; '.join(changes)}"
        )
    return teacher


def starting_params(config: ConfigDict, data: DatasetInfo, like: State) -> Any:
    """The averaged parameters of the run in training.init_from, at its latest checkpoint, from
    which a new run starts; None if none is named.

    Args:
      data: what is trained on, and the codec that it works through.
      like: the shapes of a state of the new run.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint.
      ValueError: its network has other parameters, or worked through another codec; or the config's
        method starts from a teacher.
    """
    named = config.training.init_from
    if not named:
        return None
    if config.method.teacher:
        raise ValueError(
            f"training.init_from is {named!r} and method.teacher is {config.method.teacher!r}: a"
            " method with a teacher starts from that; leave training.init_from empty"
        )
    try:
        run = workdir.load(workdir_of(named, "training.init_from"))
    except FileNotFoundError as error:
        raise _not_there("training.init_from", named, error) from None
    if run.dataset.codec != data.codec:
        raise ValueError(
            f"training.init_from is {named!r}, which was trained through another codec (codec.path)"
        )
    params = jax.device_get(getattr(run.state, "ema_params", run.state.params))
    there, needed = ({k: v.shape for k, v in _by_path(t).items()} for t in (params, like.params))
    for name in sorted({*there, *needed}):
        if there.get(name) != needed.get(name):
            raise ValueError(
                f"training.init_from is {named!r}, whose network is not that of config.model: "
                f"{name} has shape {there.get(name, 'none')} there, and {needed.get(name, 'none')}"
                " is needed; config.model must be as in its config.json"
            )
    before, now = run.config.objective.prediction, config.objective.prediction
    if before != now:
        _LOG.warning(
            "the network in %s predicts %r, and objective.prediction is %r: it has that to learn"
            " anew",
            *(named, before, now),
        )
    return params


def _by_path(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def started_from(state: State, params: Any) -> State:
    """A first state with these parameters, and with them as their average, where its own lie."""

    def placed() -> Any:  # each time a copy: the training step gives both away
        return jax.tree.map(
            lambda new, old: jax.device_put(np.array(new, old.dtype), old.sharding),
            *(params, state.params),
        )

    average = {"ema_params": placed()} if hasattr(state, "ema_params") else {}
    return state.replace(params=placed(), **average)


def _read(key: str, named: str) -> Teacher:
    """The run that a key of a config names; errors name the key."""
    path, identity = os.fspath(workdir_of(named, key)), _identity(key, named)
    try:
        return _load(path, workdir.steps_done(path), identity)
    except FileNotFoundError as error:
        raise _not_there(key, named, error) from None
    except ValueError as error:
        raise ValueError(f"{key} is {named!r}: {error}") from None


def _base_of(config: ConfigDict, data: DatasetInfo) -> Teacher:
    """The base of a ControlNet. It may have been trained on other examples, of the same shape."""
    named = config.condition.base
    base = _read("condition.base", named)
    same = ("shape", "codec", *(["num_classes"] if config.model.class_conditional else []))
    for name in same:
        theirs, ours = (getattr(info, name) for info in (base.data, data))
        if theirs != ours:
            words = name.replace("num_", "number of ")
            raise ValueError(
                f"condition.base is {named!r}, which was trained on other data than the ControlNet:"
                f" their {words} was {theirs!r}, and is {ours!r}"
            )
    return base
