"""From configs to a report: each run of the grid is a training, its samples and their evaluation.

Arms that differ in sampling and evaluation alone share one training (see `measure`) and run one
after another in one process. Several seeds of a small network are trained in one program. Only this
module and `measure` know what a run does.
"""

import dataclasses
import functools
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, places, plugins, runtime, training
from diffax.ablation import measure, store
from diffax.ablation.grid import Arm, GridError, Sharing, grid, name_of, print_progress, run_grid
from diffax.ablation.measure import METRICS
from diffax.ablation.workers import worker_environments
from diffax.config.defaults import is_relevant
from diffax.files import flatten, jsonable
from diffax.report.analysis import check
from diffax.report.build import Report, build_report, environment
from diffax.report.spec import Spec
from diffax.training.lock import held
from diffax.training.progress import ProgressDisplay, doing
from diffax.training.workdir import PLUGINS, check_writable

_LOG = logging.getLogger("diffax")

__all__ = ["METRICS", "arm_config", "possible_arms", "run_ablation", "run_one"]


def run_ablation(
    spec: Spec,
    config: ConfigDict,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    workdir: str | os.PathLike,
    workers: int | None = None,
    shard: tuple[int, int] = (1, 1),
    vectorise: bool | None = None,
    validated: bool = False,
) -> Report | None:
    """Trains and evaluates every arm with every seed, and writes the report.

    The same seed means the same initial weights, order of the data, times and noise in every arm,
    so the comparison is paired. It resumes if interrupted and called again.

    Args:
      spec: the question. Its config, arms, seeds and real_samples are filled in. The metrics that
        the runs have are added to those it names, if any; see `measure.measured_metrics`. Runs
        whose schedule has an infinite end have no bound, and are judged by samples alone. The
        question is saved in the workdir, so that `report_on` needs nothing else.
      config: the config common to all arms; an arm's overrides are dotted keys of it. For what is
        logged and evaluated along training see `measure.training_config`.
      arms, seeds: the grid.
      workdir: of trainings, runs, report, results.json and copies of the plugins.
      workers: processes, each with a thread or a device of its own; None for as many as there are
        (see `workers`). Other processes don't know what this one registers without a plugin. In
        that case all runs are made in this one.
      shard: (i, n) for the i-th of n parts of the trainings, from 1, with all that is sampled
        from them.
      vectorise: whether several seeds of an arm are trained in one program: None where that is
        faster (see `measure`), True always, False never. The numbers agree to rounding, not bit by
        bit.
      validated: whether the configs of the arms were validated before, as by `possible_arms`.

    Returns:
      The report, a partial one if a value is not finite; None if this is one of several shards,
      from which `report_on` makes one report.

    Raises:
      ValueError: a config that can't be run, a metric that can't be measured, a training of another
        config, or on other data, in the workdir, or another process at the same part of it; before
        any work.
      GridError: a run failed; what is finished is kept, and reported on as far as it goes.
      KeyboardInterrupt: likewise.
    """
    workdir = places.workdir_of(workdir)
    config_lib.load_plugins(config)
    configs = [arm_config(config, arm, 0) for arm in arms]
    for each in configs:
        if not validated:
            config_lib.validate(each)
        if not each.evaluation.metrics:
            measure.require_measure(each)
    # Read here first, so that an error comes at once and the workers find everything prepared.
    with ProgressDisplay(), doing(f"reading {config.data.name}"):
        dataset = config_lib.load_data(config)
    for arm, seed in itertools.product(arms, seeds):
        own, directory = arm_config(config, arm, seed), training_directory(workdir, arm, seed)
        store.check_fingerprint(directory, measure.training_configuration(own))
        measure.refuse_other_data(own, directory)
    trained = {training_directory(workdir, a, 0): (a, c) for a, c in zip(arms, configs)}
    for arm, each in trained.values():
        try:
            training.requirements(each, config_lib.load_data(each))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"arm {arm.name!r}: {error}") from None
    measured = measure.measured_metrics(spec.metrics, configs, dataset)
    with ProgressDisplay(), doing("preparing what samples are measured by"):
        measure.plan_scores(configs, dataset)
    trainings = {training_directory(workdir, arm, s) for arm in arms for s in seeds}
    environments = worker_environments(workers, -(-len(trainings) // max(shard[1], 1)))
    if len(environments) > 1 and plugins.unowned():
        _LOG.warning("all runs are made in this process, since others don't know what it registers")
        environments = [{}]
    _LOG.info("%d trainings in all, %d at a time", len(trainings), len(environments))
    common = config_lib.changed(config, in_all(arms))
    real = dataset.eval.array(np.arange(min(measure.num_shown(dataset), len(dataset.eval))))
    spec = dataclasses.replace(
        spec,
        metrics=measured,
        config=jsonable(config_lib.relevant(common, [each.model.name for each in configs])),
        arms=[arm.name for arm in arms],
        design=design(config, arms),
        seeds=list(seeds),
        subject=subject(configs, dataset) | dict(spec.subject),
        remarks=[*spec.remarks, *remarks(configs), *remarks_on_data(config, arms)],
        real_samples=real,
    )
    check(spec)
    check_writable(workdir)
    of_all = dict(text=config_lib.to_json(config), workdir=os.fspath(workdir))
    counts = costs_differ(next(iter(spec.design.values())))

    def join(arm: Arm, seed: int) -> tuple[Path, int]:
        most = measure.seeds_at_once(arm_config(config, arm, seed), vectorise)
        return training_directory(workdir, arm, seed).parent, most

    def fingerprint(arm: Arm, seed: int) -> dict[str, Any]:
        return measure.run_configuration(arm_config(config, arm, seed))

    group = functools.partial(training_directory, workdir)
    sharing = Sharing(group, join, functools.partial(_train_seeds, **of_all))
    part = "" if shard[1] == 1 else f"-{shard[0]}-of-{shard[1]}"
    with held([workdir], f"lock{part}.json"):
        store.save_spec(spec, workdir)
        names = dict.fromkeys(name for each in configs for name in each.plugins)
        plugins.keep(names, workdir / PLUGINS)
        try:
            results = run_grid(
                arms,
                seeds,
                functools.partial(run_one, **of_all, counts=counts),
                workdir,
                fingerprint=fingerprint,
                workers=len(environments),
                on_progress=print_progress,
                worker_environment=environments,
                shard=shard,
                sharing=sharing,
            )
        except (GridError, KeyboardInterrupt):
            if shard[1] == 1 and any(workdir.glob("runs/*/*/result.json")):
                found = store.load_results(workdir, spec.arms)
                report = build_report(spec, found, workdir, partial=True)
                print(f"a report on what is finished: {report.html}", file=sys.stderr)
            raise
        return build_report(spec, results, workdir, partial=True) if shard[1] == 1 else None


# Keys that are no axis, with the reason.
_OF_ALL = {
    "seed": "seeds are what arms are repeated over; see --seeds",
    "plugins": "plugins are loaded for all arms alike, since a process has one table of names; give"
    " them by --plugin or config.plugins, and let arms differ in the names that they register",
}


def arm_config(config: ConfigDict, arm: Arm, seed: int) -> ConfigDict:
    """The config of one run: the common one with the arm's overrides and the seed.

    Raises:
      ValueError: an override of a key that does not exist, of a wrong type, of a network that the
        arm does not have, or of what all arms have alike.
    """
    for key in arm.overrides:
        if key in _OF_ALL:
            raise ValueError(f"arm {arm.name!r}: {_OF_ALL[key]}")
    try:
        config = config_lib.changed(config, arm.overrides)
    except ValueError as error:
        raise ValueError(f"arm {arm.name!r}: {error}") from None
    for key in arm.overrides:
        no_effect = f"arm {arm.name!r}: {key} has no effect, since"
        if not is_relevant(key, config.model.name):
            raise ValueError(f"{no_effect} model.name is {config.model.name!r}")
        if config_lib.unread_by_method(config, key):
            raise ValueError(f"{no_effect} method.name is {config.method.name!r}")
    config.seed = seed
    return config


def in_all(arms: Sequence[Arm]) -> dict[str, Any]:
    """The overrides that all arms have alike."""
    first, *others = (arm.overrides for arm in arms)
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}


def design(config: ConfigDict, arms: Sequence[Arm]) -> dict[str, dict[str, str]]:
    """arm -> {key: value as text}, of the keys in which arms differ; see `Spec.design`."""
    keys = dict.fromkeys(key for arm in arms for key in arm.overrides)
    whole = {arm.name: flatten(arm_config(config, arm, 0).to_dict()) for arm in arms}
    levels = {name: {key: str(own[key]) for key in keys} for name, own in whole.items()}
    vary = [key for key in keys if len({own[key] for own in levels.values()}) > 1]
    return {name: {key: own[key] for key in vary} for name, own in levels.items()}


# Sections of a config on which the operations of a training step depend.
_COSTLY = ("data", "codec", "method", "model", "condition", "discriminator")


def costs_differ(varied: Iterable[str]) -> bool:
    """Whether arms that differ in these keys may differ in the operations of a training step."""
    return any(key.partition(".")[0] in _COSTLY or key == "training.batch_size" for key in varied)


def possible_arms(
    config: ConfigDict, axes: Mapping[str, Sequence[Any]]
) -> tuple[list[Arm], dict[str, str]]:
    """The arms of the grid that can be run, and name -> reason for those that can't.

    Some values exclude one another: in continuous time no step's variance can be learned. Those
    arms are left out. A value that is impossible in every arm, and by itself, is an error.

    Raises:
      ValueError: such a value, or no arm that can be run.
    """
    reasons = [(arm, _objection(config, arm)) for arm in grid(axes)]
    possible = [arm for arm, reason in reasons if reason is None]
    left_out = {arm.name: reason for arm, reason in reasons if reason is not None}
    for key, values in axes.items():
        for value in values:
            alone = Arm(name_of({key: value}), {key: value})
            impossible = all(arm.overrides[key] != value for arm in possible)
            if impossible and (reason := _objection(config, alone)) is not None:
                raise ValueError(reason)
    if not possible:
        raise ValueError(f"no arm of the grid can be run: {next(iter(left_out.values()))}")
    return possible, left_out


def _objection(config: ConfigDict, arm: Arm) -> str | None:
    try:
        config_lib.validate(arm_config(config, arm, 0))
    except ValueError as error:
        return str(error)
    return None


def training_directory(workdir: str | os.PathLike, arm: Arm, seed: int) -> Path:
    """The directory of an arm's training, named by the overrides that training depends on."""
    own = {
        key: value
        for key, value in arm.overrides.items()
        if key.partition(".")[0] not in measure.AFTER_TRAINING
    }
    name = store.directory_name(name_of(own) or "common")
    return places.path_of(workdir) / "trainings" / name / f"seed{seed}"


def _train_seeds(runs: Sequence[tuple[Arm, int]], text: str, workdir: str) -> None:
    """Trains several seeds of one training in one program; does nothing for a single seed."""
    (arm, _), seeds = runs[0], list(dict.fromkeys(seed for _, seed in runs))
    if len(seeds) > 1:
        runtime.start(f"{arm.name}, seeds {', '.join(map(str, seeds))}: ", trains=True)
        config = config_lib.from_json(text, places.path_of(workdir) / PLUGINS)
        measure.train_together(
            [arm_config(config, arm, seed) for seed in seeds],
            [training_directory(workdir, arm, seed) for seed in seeds],
        )


def run_one(
    arm: Arm, seed: int, directory: Path, text: str, workdir: str, counts: bool = False
) -> dict[str, Any]:
    """Trains, unless an earlier arm has, and evaluates one run; see `analysis.analyse`.

    `text`: the common config as JSON. `counts`: whether the operations of a step are counted.
    """
    runtime.start(f"{arm.name}, seed {seed}: ", trains=True)
    common = config_lib.from_json(text, places.path_of(workdir) / PLUGINS)
    config = arm_config(common, arm, seed)
    trained = training_directory(workdir, arm, seed)
    with ProgressDisplay():
        run, once = measure.train_and_evaluate(config, trained)
        sampled = measure.sample_and_score(run, directory)
    shared = measure.together_note(trained, seed)
    device, seeds = jax.devices()[0].device_kind, shared["seeds"]
    here = {"device": device, "seeds trained in one program": len(seeds)}
    return {
        "metrics": once["metrics"] | sampled["metrics"],
        "evaluation": once["evaluation"] | sampled["evaluation"],
        "curves": once["curves"],
        "samples": sampled["samples"],
        "grid": sampled["grid"],
        "training": {
            "directory": os.path.relpath(trained, workdir),
            "seconds": once["seconds"] + shared["seconds"],
            "seeds": seeds,
            "parameters": sampled["parameters"],
            **({"operations": measure.operations(config)} if counts else {}),
        },
        "environment": environment() | here,
    }


# --- what is said of the trainings at the top of a report --------------------------------------


_LARGEST_FRACTION = 0.01  # of the initial parameters in the moving average, without a remark


def subject(configs: Sequence[ConfigDict], dataset: data.Dataset) -> dict[str, str]:
    """The data, the network and the length of training of some configs, in words."""
    shape = " × ".join(map(str, dataset.shape))
    classes = f"{dataset.num_classes} classes" if dataset.num_classes else "no classes"
    accumulated = {c.training.grad_accumulation for c in configs}
    parts = "" if accumulated == {1} else f" in {_listed(accumulated)} parts"
    return {
        "data": f"{dataset.name}: {len(dataset.train):,} examples to train on,"
        f" {len(dataset.eval):,} held out, {shape}, {classes}",
        "network": _listed(c.model.name for c in configs),
        "steps": _listed(c.training.num_steps for c in configs),
        "batch": f"{_listed(c.training.batch_size for c in configs)}{parts}",
    }


def _listed(values: Iterable[Any]) -> str:
    distinct = sorted(set(values))
    return " or ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in distinct)


def _steps(numbers: Iterable[int]) -> str:
    distinct = set(numbers)
    return f"{_listed(distinct)} step{'' if distinct == {1} else 's'}"


# Keys of config.data that don't change the examples.
_SAME_EXAMPLES = ("data.data_dir", "data.flip", "data.storage")


def remarks_on_data(config: ConfigDict, arms: Sequence[Arm]) -> list[str]:
    """A sentence that warns of arms whose examples are different."""
    varied = next(iter(design(config, arms).values()))
    keys = [k for k in varied if k.startswith("data.") and k not in _SAME_EXAMPLES]
    if not keys:
        return []
    return [
        f"Arms differ in {' and '.join(keys)}: each is trained on data of its own, and its samples"
        " are compared with these, so differences between arms are partly differences between the"
        " data. The numbers of examples and the real samples given here are those of the common"
        " config"
        f" ({', '.join(f'{k}={flatten(config.to_dict())[k]!r}' for k in keys)})."
    ]


def remarks(configs: Sequence[ConfigDict]) -> list[str]:
    """Sentences that warn of short trainings."""
    found = []
    untrained = {  # of the moving average -> the steps after which it is left
        training.fraction_of_start(c.ema.decay, c.training.num_steps): c.training.num_steps
        for c in configs
    }
    fraction = max(untrained)
    if fraction > _LARGEST_FRACTION:
        found.append(
            f"Training was short: after {_steps([untrained[fraction]])} the moving average of the"
            f" weights, by which all is measured, is still {fraction:.0%} the untrained network."
        )
    rising = [c for c in configs if c.training.num_steps <= c.optimizer.warmup_steps]
    if rising:
        steps = _steps(c.training.num_steps for c in rising)
        warmup = _listed(c.optimizer.warmup_steps for c in rising)
        found.append(
            f"Training was short: it ended after {steps}, within the learning rate’s warm-up"
            f" of {warmup}."
        )
    return found
