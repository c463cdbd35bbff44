"""What lies in a run's directory, and reading a run back from it.

The files:

    workdir/config.json       the config
    workdir/dataset.json      what must be known of the data to sample and evaluate without them,
                              and their fingerprint, by which a resumed run knows them again
    workdir/lock.json         while a job is at work: see `lock`
    workdir/grids/            sampling grids found for it: see `grids`
    workdir/metrics.jsonl     a line of metrics per log step
    workdir/checkpoints/      see `checkpoint`
    workdir/samples/          sample grids
    workdir/schedule/         the schedule's curve, of a method that has one
    workdir/plugins/          copies of the plugins, of a run that has any; see `diffax.plugins`
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import plugins
from diffax.data import DatasetInfo
from diffax.files import content_hash
from diffax.methods import Method
from diffax.methods.base import State
from diffax.places import as_os_error, make_folder, try_to_write, workdir_of
from diffax.runtime import the_same
from diffax.training.checkpoint import Checkpoints, kept, latest_step
from diffax.training.lock import Lost

CHECKPOINTS, PLUGINS = "checkpoints", "plugins"

# A resumed run may have other values for these: they change how long it goes on, what is looked at
# meanwhile, and where it runs.
MAY_CHANGE = (
    "codec.cache",
    "codec.path",
    "condition.base",
    "data.data_dir",
    "data.storage",
    "evaluation.",
    "method.teacher",
    "parallel.",
    "sampling.",
    "training.allow_config_change",
    "training.checkpoint_every",
    "training.eval_every",
    "training.grad_accumulation",
    "training.keep_checkpoints",
    "training.max_skipped",
    "training.log_every",
    "training.sample_every",
    "training.steps_per_call",
    "training.tensorboard",
    "training.wandb",
)
# So may this, where the data have the same fingerprint.
_PLACE = "data.path"
# So may this, unless a rate decays over the steps: their number then decides what each one does.
_NUM_STEPS = "training.num_steps"


def check_writable(workdir: Path) -> None:
    """Makes the directory; raises ValueError, naming it, if nothing can be written there."""
    try:
        make_folder(workdir)
        try_to_write(workdir)
    except OSError as error:
        raise ValueError(f"workdir {workdir} can't be written to ({error})") from None


@contextlib.contextmanager
def explain_os_errors(*workdirs: Path) -> Iterator[None]:
    """An OSError is raised again as one that is a sentence: which workdir (of several: one of
    them), what the system says of the disk, or else the error, and which checkpoint is kept."""
    try:
        yield
    except OSError as last:
        # What is lost comes first; that a checkpoint couldn't be written there follows from it.
        error = next((e for e in _chain(last) if isinstance(e, Lost)), last)
        places = " or ".join(map(str, workdirs))
        all_kept = ", ".join(kept(workdir / CHECKPOINTS) for workdir in workdirs)
        of_disk = f"workdir {places} can't be written to ({error.strerror})"
        raise OSError(
            f"{of_disk if error.errno else f'the run in {places} ends ({error})'}; {all_kept}, and"
            f" once there is a remedy {the_same()} goes on"
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def check_same_run(
    workdir: Path,
    config: ConfigDict,
    dataset: DatasetInfo,
    rates: Collection[str],
    loop: Mapping[str, Any],
) -> None:
    """Raises ValueError, listing the differences, if the run that lies there has another config or
    other data.

    Keys that begin as in `MAY_CHANGE` may differ, training.num_steps too where the rates are
    constant, and data.path where the data are the same; with training.allow_config_change all may,
    the data too.

    Args:
      rates: the config's sections with the learning rates that the method uses.
      loop: what its checkpoint remembers: the "config" and the "dataset" that it was trained with,
        as `remembered` gives them. Of a run from before that was kept, its files say so.
    """
    if config.training.allow_config_change:
        return
    decays = [
        f"{section}.decay={config[section].decay!r}"
        for section in sorted(rates)
        if config[section].decay != "constant"
    ]
    may_change = MAY_CHANGE if decays else (*MAY_CHANGE, _NUM_STEPS)
    before, info = _trained_with(loop)
    if info is None and (workdir / "dataset.json").exists():
        info = read_dataset(workdir)
    changes_of_data = info.changes(dataset) if info else []
    if info and info.fingerprint and not changes_of_data:
        may_change = (*may_change, _PLACE)
    differing = config_lib.differences(before or _saved_config(workdir), config)
    changes = [
        f"{key} was {old!r} and is {new!r}"
        + f" (the steps of {' and '.join(decays)})" * (key == _NUM_STEPS)
        for key, (old, new) in differing.items()
        if not key.startswith(may_change)
    ]
    if changes:
        raise ValueError(
            f"workdir {workdir} holds a run with another config: {'; '.join(changes)}. Take another"
            " workdir, or set config.training.allow_config_change=True to go on with the new one"
        )
    if info and info.teacher != dataset.teacher:
        key, named = "condition.base", config.condition.base
        if not named:
            key, named = "method.teacher", config.method.teacher
        raise ValueError(
            f"{key}={named!r} is not the one that the run in {workdir} started from: put it back as"
            " it was, name a copy of it, or take another workdir"
        )
    if changes_of_data:
        raise ValueError(
            f"the data have changed since the run in {workdir} was trained on them:"
            f" {'; '.join(changes_of_data)}. Put back what they were, take another workdir, or set"
            " config.training.allow_config_change=True to go on with the new ones"
        )


def as_remembered(config: ConfigDict, dataset: DatasetInfo) -> dict[str, Any]:
    """What a checkpoint keeps of a run's config and data, in JSON: the files beside it are held
    against it, and can be written from it again."""
    return {
        "config": json.loads(config_lib.to_json(config)),
        "dataset": json.loads(dataset.to_json()),
    }


def _trained_with(loop: Mapping[str, Any]) -> tuple[dict[str, Any] | None, DatasetInfo | None]:
    """What `as_remembered` was given; None where a checkpoint is older than that."""
    if not {"config", "dataset"} <= loop.keys():
        return None, None
    config, dataset = (json.dumps(loop[name]) for name in ("config", "dataset"))
    return config_lib.saved(config), DatasetInfo.from_json(dataset)


def refuse_another_run(
    workdir: Path, config: ConfigDict, dataset: DatasetInfo, rates: Collection[str]
) -> None:
    """`check_same_run` with the latest sound checkpoint, if there is one."""
    if latest_step(workdir / CHECKPOINTS) is None:
        return
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    try:
        check_same_run(workdir, config, dataset, rates, checkpoints.remembered())
    finally:
        checkpoints.close()


def trained_on(workdir: Path) -> DatasetInfo | None:
    """What the run in a directory knew of its data at its latest sound checkpoint; None if there is
    none, or it is older than that was kept."""
    if latest_step(workdir / CHECKPOINTS) is None:
        return None
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    try:
        return _trained_with(checkpoints.remembered())[1]
    finally:
        checkpoints.close()


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in a directory, whose plugins are loaded: their copies there are run,
    or what `plugins.load` takes instead, which `config.plugins` then names.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, the file is named; or a plugin can't be loaded.
    """
    saved, copies = _saved_config(workdir), workdir / PLUGINS
    for name in saved["plugins"]:
        plugins.load(name, copies)
    config = _read(workdir, "config.json", lambda text: config_lib.from_json(text, copies))
    if unknown := config_lib.unknown_keys(saved):
        raise ValueError(
            f"{workdir / 'config.json'} has keys that no config has here, {', '.join(unknown)}: if"
            " they are of something of your own, name the file that registers it by --plugin"
        )
    return config


def _saved_config(workdir: Path) -> dict[str, Any]:
    """The same, as `config.differences` takes it; no plugin is loaded."""
    return _read(workdir, "config.json", config_lib.saved)


def read_dataset(workdir: Path) -> DatasetInfo:
    """What the run in a directory knows of its data; raises as `read_config`."""
    return _read(workdir, "dataset.json", DatasetInfo.from_json)


def _read(workdir: Path, name: str, from_json: Callable[[str], Any]) -> Any:
    path = workdir / name
    with as_os_error(path):
        if not path.exists():
            raise FileNotFoundError(f"{workdir} holds no run: there is no {name}")
        content = path.read_bytes()
    try:
        return from_json(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); the command that trained the run, given again, writes it"
            " anew"
        ) from error


def _check_files(workdir: Path, dataset: DatasetInfo, loop: Mapping) -> None:
    """Raises ValueError, naming the file, if config.json or dataset.json is not what the checkpoint
    beside it was trained with."""
    trained_config, trained_dataset = _trained_with(loop)
    # Going on with another config writes the files before the first checkpoint that has it.
    config = _saved_config(workdir)
    if trained_config is None or config["training.allow_config_change"]:
        return
    ours, theirs = (dataclasses.asdict(info) for info in (trained_dataset, dataset))
    changes = [
        ("config.json", key, old, new)
        for key, (old, new) in config_lib.differences(trained_config, config).items()
        if not key.startswith((*MAY_CHANGE, _NUM_STEPS, _PLACE))
    ]
    changes += [("dataset.json", k, old, theirs[k]) for k, old in ours.items() if old != theirs[k]]
    for name, key, old, new in changes:
        raise ValueError(
            f"{workdir / name} was altered: {key} is {new!r} there, and the checkpoint beside it"
            f" was trained with {old!r}; put back the file as it was, or the command that trained"
            " the run, given again, writes it anew"
        )


def _build_method(config: ConfigDict, dataset: DatasetInfo) -> Method:
    from diffax.training import codecs  # which loads runs itself

    return codecs.build_method(config, dataset)


class Run(NamedTuple):
    """A run, as far as it has got."""

    config: ConfigDict
    method: Method
    state: State
    dataset: DatasetInfo
    workdir: Path | None = None

    @property
    def model(self) -> nn.Module:
        """The network of its config."""
        from diffax.training import codecs  # which loads runs itself

        return config_lib.build_model(self.config, codecs.inside(self.config, self.dataset))

    def under(self, config: ConfigDict) -> Self:
        """The same training under another config, of another sampling or evaluation."""
        return self._replace(config=config, method=_build_method(config, self.dataset))


def steps_done(workdir: str | os.PathLike) -> int:
    """The step of the latest checkpoint in a run's directory; 0 if there is none."""
    return latest_step(workdir_of(workdir) / CHECKPOINTS) or 0


def identity(workdir: str | os.PathLike) -> str:
    """A hash of what a run's directory holds: of its latest checkpoint, the step and the checksums
    of all arrays, of the config and of the data. No array is read. A copy has the same one.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    root, step = workdir_of(workdir), steps_done(workdir)
    sums = root / CHECKPOINTS / str(step) / "checksums" / "metadata"
    with as_os_error(sums):
        if not sums.exists():
            raise FileNotFoundError(f"{root} holds no run: there is no checkpoint")
        return content_hash(step, json.loads(sums.read_text(encoding="utf-8")))


def outcome(workdir: str | os.PathLike) -> dict[str, Path]:
    """What a run left: "checkpoint", "samples", "metrics" -> the path of the latest; of what there
    is."""
    workdir = workdir_of(workdir)
    found = {
        "checkpoint": workdir / CHECKPOINTS / str(steps_done(workdir)),
        "samples": max((workdir / "samples").glob("step_*.png"), default=None),
        "metrics": workdir / "metrics.jsonl",
    }
    return {what: path for what, path in found.items() if path is not None and path.exists()}


def load(workdir: str | os.PathLike, step: int | None = None) -> Run:
    """The run in a directory, at a checkpoint's step (the latest if left out), on one device.

    The data need not be there. `training.predictor(run.model, run.state.ema_params)` is what
    `diffax.sample` and `diffax.vlb` take.

    A run that was trained with plugins carries copies of them, which are run as Python: load only
    what you would run. The log names each file that is run.

    Raises:
      FileNotFoundError: there is no run, no checkpoint, or none of that step.
      ValueError: the checkpoint doesn't fit the config; config.json or dataset.json is damaged, or
        says otherwise than the checkpoint; it is named.
    """
    workdir = workdir_of(workdir)
    config, dataset = read_config(workdir), read_dataset(workdir)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    try:
        _check_files(workdir, dataset, checkpoints.remembered(step))
        method = _build_method(config, dataset)
        like = jax.eval_shape(method.init, jax.random.key(config.seed))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        state, _ = checkpoints.restore(like, device, step)
    finally:
        checkpoints.close()
    return Run(config, method, state, dataset, workdir)
