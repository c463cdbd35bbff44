"""The checks of a config, made before any work: keys, types, values, and what must fit together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffax import models, objectives, process, samplers, schedules, time_sampling
from diffax.config import build, defaults, optimizers
from diffax.config.kinds import Kind
from diffax.config.reading import unknown
from diffax.config.storage import flat, load_plugins
from diffax.process import AnySchedule


class Rule(NamedTuple):
    """What a value must be: a test, and the words for it."""

    holds: Callable[[Any], bool]
    words: Callable[[], str]


def _rule(holds: Callable[[Any], bool], words: str) -> Rule:
    return Rule(holds, lambda: words)


def _one_of(names: Callable[[], Iterable[str]]) -> Rule:
    # A function, so that what is registered later counts.
    return Rule(lambda value: value in names(), lambda: f"one of {', '.join(names())}")


def _at_least(least: int) -> Rule:
    return _rule(lambda value: value >= least, f"at least {least}")


_POSITIVE = _rule(lambda value: 0 < value < math.inf, "a positive number")
_NOT_NEGATIVE = _rule(lambda value: 0 <= value < math.inf, "a number of at least 0")
_SHARE = _rule(lambda value: 0 <= value <= 1, "between 0 and 1")
_BELOW_ONE = _rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
_OPTIMIZER = _one_of(lambda: optimizers.OPTIMIZERS)

RULES: dict[str, Rule] = {
    "seed": _rule(lambda value: 0 <= value < 2**32, "at least 0 and below 2**32"),
    "model.name": _one_of(models.names),
    "model.label_dropout": _SHARE,
    "schedule.name": _one_of(schedules.names),
    "schedule.input_scale": _POSITIVE,
    "schedule.base_resolution": _at_least(0),
    "schedule.num_steps": _at_least(0),
    "schedule_learning.objective": _one_of(lambda: objectives.SCHEDULE_OBJECTIVES),
    "schedule_learning.optimizer": _OPTIMIZER,
    "schedule_learning.learning_rate": _NOT_NEGATIVE,
    "schedule_learning.decay": _one_of(lambda: optimizers.DECAYS),
    "schedule_learning.clip_norm": _NOT_NEGATIVE,
    "schedule_learning.update_every": _at_least(0),
    "schedule_learning.num_steps": _at_least(0),
    "objective.prediction": _one_of(lambda: process.PREDICTIONS),
    "objective.weighting": _one_of(lambda: objectives.WEIGHTINGS),
    "objective.time_sampling": _one_of(lambda: time_sampling.TIME_SAMPLERS),
    "objective.hybrid_weight": _NOT_NEGATIVE,
    "optimizer.name": _OPTIMIZER,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_steps": _at_least(0),
    "optimizer.decay": _one_of(lambda: optimizers.DECAYS),
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "ema.decay": _BELOW_ONE,
    "training.batch_size": _at_least(1),
    "training.grad_accumulation": _at_least(1),
    "training.num_steps": _at_least(1),
    "training.steps_per_call": _at_least(1),
    "training.log_every": _at_least(1),
    "training.eval_every": _at_least(0),
    "training.sample_every": _at_least(0),
    "training.checkpoint_every": _at_least(0),
    "training.keep_checkpoints": _at_least(1),
    "training.max_skipped": _at_least(0),
    "sampling.sampler": _one_of(lambda: samplers.SAMPLERS),
    "sampling.num_steps": _at_least(1),
    "sampling.schedule": _one_of(schedules.names),
    "sampling.grid": _one_of(lambda: samplers.GRIDS),
    "sampling.clip_x0": _POSITIVE,
    "sampling.dynamic_threshold": _rule(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "sampling.guidance_scale": _NOT_NEGATIVE,
    "sampling.guidance_interval": _rule(
        lambda value: len(value) == 2 and value[0] < value[1], "(low, high) in log-SNR, low < high"
    ),
    "sampling.guidance_rescale": _SHARE,
    "sampling.num_samples": _at_least(1),
    "evaluation.batch_size": _at_least(1),
    "evaluation.num_examples": _at_least(0),
    "evaluation.repeats": _at_least(1),
    "evaluation.vlb_num_steps": _at_least(0),
    "evaluation.ode_num_steps": _at_least(1),
    "evaluation.gradient_batches": _rule(
        lambda value: value == 0 or value >= 2, "at least 2, or 0 for none"
    ),
    "evaluation.num_samples": _at_least(1),
    "parallel.num_devices": _at_least(0),
    "parallel.fsdp": _at_least(1),
}


def validate(config: ConfigDict) -> None:
    """Raises ValueError, in one sentence that names the key, if a config can't be run.

    Checked: that every key exists, has a value of its default's type, and a value that its rule
    allows; that the schedule, the network, the optimiser and the sampler take the options they
    are given; and that these go together. First `config.plugins` are loaded: see `load_plugins`.
    """
    load_plugins(config)
    expected, given = defaults.keys(), flat(config)
    for key in given:
        if key not in expected:
            raise ValueError(unknown(key, expected))
    for key in expected:
        if key not in given:
            raise ValueError(f"config.{key} is missing: start from diffax.config.default_config()")
        _check_type(key, given[key], expected[key].kind)
        try:
            check_value(key, given[key])
        except ValueError as error:
            raise ValueError(f"config.{key} is {given[key]!r}; it {error}") from None
    with _naming("schedule"):
        # Under jit it is one program that is compiled, instead of one per operation.
        schedule = jax.jit(lambda: build.build_schedule(config, shape=_StandIn().shape))()
    for section, check in _TOGETHER:
        with _naming(section):
            check(config, schedule)


def check_value(key: str, value: Any) -> None:
    """Raises ValueError with what a key's value must be, "must be ...", unless it is that."""
    if value is not None and key in RULES and not RULES[key].holds(value):
        raise ValueError(f"must be {RULES[key].words()}")


@contextlib.contextmanager
def _naming(section: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"config.{section}: {error}") from None


def _check_type(key: str, value: Any, kind: Kind) -> None:
    if not kind.holds(value):
        raise ValueError(
            f"config.{key} is {value!r}, of type {type(value).__name__}; it must be of type {kind}"
        )
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"config.{key} is nan; it must be a number")


# --- what must fit together ---------------------------------------------------------------------


class _StandIn(NamedTuple):
    """Data of which only this is known before it is loaded: enough to build a network's module."""

    name: str = "not loaded yet"
    shape: tuple[int, ...] = (1, 1)
    num_classes: int = 1


def _model(config: ConfigDict, schedule: AnySchedule) -> None:
    build.build_model(config, _StandIn())
    own, known = defaults.model_fields(config.model.name), defaults.keys()
    for name in models.names():
        for field in defaults.model_fields(name):
            if field not in own and config.model[field] != known[f"model.{field}"].default:
                raise ValueError(
                    f"{field}={config.model[field]!r} is set, but {config.model.name!r} has no such"
                    f" field; it has {', '.join(own)}"
                )
    if build.conditioning(config) == "step" and build.is_learned(schedule):
        raise ValueError(
            "conditioning='step' doesn't tell the network the noise level, which a learned schedule"
            " needs: use 'log_snr'"
        )


def _schedule(config: ConfigDict, schedule: AnySchedule) -> None:
    process.refuse_eps_at_zero_snr(schedule, config.objective.prediction)
    if build.is_learned(schedule) and config.schedule_learning.update_every > 0:
        require_finite_ends(config, schedule, "learning the schedule")


def _evaluation(config: ConfigDict, schedule: AnySchedule) -> None:
    every = config.training.eval_every
    if every > 0 and config.schedule.num_steps == 1:
        raise ValueError(
            f"training.eval_every={every}: the bound needs two steps, and schedule.num_steps is 1"
        )
    if every > 0:
        require_finite_ends(config, schedule, f"the bound (training.eval_every={every})")


def require_finite_ends(config: ConfigDict, schedule: AnySchedule, purpose: str) -> None:
    """Raises ValueError, naming the keys to set, if the log-SNR of a config's schedule is infinite
    at an end; `purpose`: what can't be done then."""
    first, last = map(float, jax.jit(schedules.ends_of)(schedule))
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ValueError(
            f"{purpose} needs finite log-SNR at both ends, and {config.schedule.name!r} has"
            f" {first:g} and {last:g}: set schedule.log_snr_max and schedule.log_snr_min, to 10 and"
            " -10, say"
        )


def _objective(config: ConfigDict, schedule: AnySchedule) -> None:
    num_steps = config.schedule.num_steps
    if config.objective.learned_variance and num_steps < 2:
        raise ValueError(
            "learned_variance=True is the variance of a step of discrete time: schedule.num_steps,"
            f" which is {num_steps}, must be at least 2"
        )


def _schedule_learning(config: ConfigDict, schedule: AnySchedule) -> None:
    section, training = config.schedule_learning, config.training
    if build.is_learned(schedule) and training.batch_size % (2 * training.grad_accumulation):
        raise ValueError(
            f"training.batch_size is {training.batch_size}; a learned schedule needs an even number"
            f" in each of the {training.grad_accumulation} micro-batches (grad_accumulation), since"
            " the variance of its gradient is measured between two halves"
        )
    if section.objective == "vlb" and not (section.num_steps or config.schedule.num_steps):
        raise ValueError(
            f"objective='vlb' with num_steps={section.num_steps}: in continuous time the VLB does"
            " not depend on the schedule's shape; num_steps, or schedule.num_steps, must be at"
            " least 1"
        )


def _optimizer(config: ConfigDict, schedule: AnySchedule) -> None:
    section = config.optimizer
    if section.weight_decay > 0 and not optimizers.takes_weight_decay(section.name):
        able = ", ".join(filter(optimizers.takes_weight_decay, optimizers.OPTIMIZERS))
        raise ValueError(
            f"weight_decay={section.weight_decay:g}, but {section.name!r} has none; those that have"
            f" it: {able}"
        )


def _sampling(config: ConfigDict, schedule: AnySchedule) -> None:
    build.build_sampler(config)
    _guidance(config)
    options = build.sampling_options(config)
    if config.sampling.schedule is not None:
        schedule = _sampling_schedule(config, schedule)
    visit = (options["num_steps"], options["grid"], options["prediction"])

    def visited() -> Any:
        return samplers.visited_levels(build.acting_schedule(config, schedule), *visit)

    jax.eval_shape(visited)  # checks, computes nothing


def _guidance(config: ConfigDict) -> None:
    scale, model = config.sampling.guidance_scale, config.model
    if scale == 1:
        return
    needs = {
        "model.class_conditional=True, a network that is told classes": model.class_conditional,
        "model.label_dropout above 0 in training, so that the network knows the null class": (
            model.label_dropout > 0
        ),
        "model.conditioning='log_snr'": build.conditioning(config) == "log_snr",
    }
    for need, met in needs.items():
        if not met:
            raise ValueError(f"guidance_scale={scale:g} needs {need}")


def _sampling_schedule(config: ConfigDict, trained: AnySchedule) -> AnySchedule:
    field = f"schedule={config.sampling.schedule!r}"
    if build.conditioning(config) != "log_snr":
        raise ValueError(
            f"{field}: a network told the {build.conditioning(config)} knows the schedule that it"
            " was trained with alone; model.conditioning must be 'log_snr'"
        )
    other = build.build_sampling_schedule(config, _StandIn().shape)
    if build.is_learned(other):
        raise ValueError(f"{field} has parameters, which would be untrained ones: name a fixed one")
    process.refuse_eps_at_zero_snr(other, config.objective.prediction)
    return other


_TOGETHER: tuple[tuple[str, Callable[[ConfigDict, AnySchedule], None]], ...] = (
    ("schedule", _schedule),
    ("objective", _objective),
    ("schedule_learning", _schedule_learning),
    ("model", _model),
    ("optimizer", _optimizer),
    ("evaluation", _evaluation),
    ("sampling", _sampling),
)
