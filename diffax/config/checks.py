"""The checks of a config, made before any work: keys, types, values, and what must fit together."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax import (
    arguments,
    evaluation,
    methods,
    models,
    objectives,
    process,
    samplers,
    schedules,
    time_sampling,
)
from diffax.config import build, defaults, optimizers
from diffax.config.kinds import Kind
from diffax.config.methods import STAND_IN, method_before_data, unread_by_method
from diffax.config.reading import check_kind, unknown
from diffax.config.storage import flat, load_plugins
from diffax.data import controls
from diffax.data.stored import STORAGES
from diffax.models.text import TEXT_ENCODERS
from diffax.process import AnySchedule
from diffax.registry import suggestion


class Rule(NamedTuple):
    """What a value must be: a test, and the words for it; `names`: those it is one of, if it is."""

    holds: Callable[[Any], bool]
    words: Callable[[], str]
    names: Callable[[], Iterable[str]] = tuple


def _rule(holds: Callable[[Any], bool], words: str) -> Rule:
    return Rule(holds, lambda: words)


def _one_of(names: Callable[[], Iterable[str]]) -> Rule:
    # A function, so that what is registered later counts.
    return Rule(lambda value: value in names(), lambda: f"one of {', '.join(names())}", names)


def _whole(least: int, most: int) -> Rule:
    """A whole number in bounds: below what would fill the memory by itself, or never end."""
    return _rule(lambda value: least <= value <= most, f"at least {least} and at most {most:,}")


def _wholes(most: int, length: int) -> Rule:
    return _rule(
        lambda value: len(value) <= length and all(0 <= entry <= most for entry in value),
        f"at most {length} numbers, each at least 0 and at most {most:,}",
    )


def _is_float32(value: float) -> bool:
    """Whether float32 holds a positive number, as neither zero nor infinity."""
    return _SMALLEST <= value <= _LARGEST


_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_STEPS = 10**9  # of training: they are counted in int32
_PARAMETERS = 10**11  # of a network: 400 GB in float32
_LEVELS = 100_000  # of discrete time, and of a sampler
_POSITIVE = _rule(_is_float32, f"a positive number that float32 holds, up to {_LARGEST:.3g}")
_NOT_NEGATIVE = _rule(
    lambda value: value == 0 or _is_float32(value),
    f"a number of at least 0 that float32 holds, up to {_LARGEST:.3g}",
)
_SHARE = _rule(lambda value: 0 <= value <= 1, "between 0 and 1")
# Beyond it alpha^2 or sigma^2 is no number that float32 holds in full.
_LOG_SNR_LIMIT = 87.0
_LOG_SNR = _rule(
    lambda value: abs(value) <= _LOG_SNR_LIMIT,
    f"between {-_LOG_SNR_LIMIT:g} and {_LOG_SNR_LIMIT:g}",
)
_OPTIMIZER = _one_of(lambda: optimizers.OPTIMIZERS)

RULES: dict[str, Rule] = {
    "seed": _rule(lambda value: 0 <= value < 2**32, "at least 0 and below 2**32"),
    "codec.name": _one_of(lambda: ("identity", "run", "taef2")),
    "method.name": _one_of(lambda: methods.METHODS),
    "model.name": _one_of(models.names),
    "model.label_dropout": _SHARE,
    "model.unet.channels": _whole(1, 16_384),
    "model.unet.channel_mults": _wholes(64, 16),
    "model.unet.num_blocks": _whole(1, 32),
    "model.unet.attention_resolutions": _wholes(65_536, 16),
    "model.unet.head_width": _whole(1, 65_536),
    "model.unet.remat_levels": _wholes(16, 16),
    "model.unet.num_groups": _whole(0, 16_384),
    "model.unet.norm_epsilon": _POSITIVE,
    "model.unet.max_period": _POSITIVE,
    "model.unet.step_rows": _whole(0, 65_536),
    "model.dit.patch_size": _whole(1, 65_536),
    "model.dit.width": _whole(1, 65_536),
    "model.dit.depth": _whole(1, 1_000),
    "model.dit.head_width": _whole(1, 65_536),
    "model.dit.mlp_ratio": _rule(lambda value: 0 < value <= 1024, "above 0 and at most 1024"),
    "model.mlp.width": _whole(1, 65_536),
    "model.autoencoder.channels": _whole(1, 16_384),
    "model.autoencoder.channel_mults": _wholes(64, 16),
    "model.autoencoder.num_blocks": _whole(1, 32),
    "model.autoencoder.latent_channels": _whole(1, 4_096),
    "model.generator.channels": _whole(1, 16_384),
    "model.generator.channel_mults": _wholes(64, 16),
    "model.generator.num_blocks": _whole(1, 32),
    "method.kl_weight": _NOT_NEGATIVE,
    "method.lpips_weight": _NOT_NEGATIVE,
    "method.norm": _one_of(lambda: ("l1", "l2")),
    "method.latent_size": _whole(1, 65_536),
    "method.r1_weight": _NOT_NEGATIVE,
    "method.r2_weight": _NOT_NEGATIVE,
    "method.noise_examples": _whole(1, _STEPS),
    "method.denoising_steps": _whole(1, _LEVELS),
    "method.teacher_steps": _whole(2, _LEVELS),
    "method.last_steps": _whole(1, _LEVELS),
    "method.stage_steps": _whole(1, _STEPS),
    "method.guidance_max": _rule(lambda value: 1 <= value <= 1000, "from 1 to 1000"),
    "method.first_intervals": _whole(1, _LEVELS),
    "method.last_intervals": _whole(1, _LEVELS),
    "method.doubling_steps": _whole(1, _STEPS),
    "model.mlp.depth": _whole(1, 1_000),
    "condition.control": Rule(
        lambda value: all(name in controls.known() for name in controls.names_of(value)),
        lambda: f"of {', '.join(controls.known())}, several joined by commas, or empty",
        controls.known,
    ),
    "condition.control_dropout": _SHARE,
    "condition.text": _one_of(lambda: ("", *TEXT_ENCODERS)),
    "condition.text_dropout": _SHARE,
    "condition.text_length": _whole(1, 4_096),
    "condition.text_width": _whole(2, 65_536),
    "condition.text_depth": _whole(0, 1_000),
    "schedule.name": _one_of(schedules.names),
    "schedule.input_scale": _rule(
        lambda value: 1e-3 <= value <= 1e3, "at least 0.001 and at most 1000, a positive number"
    ),
    "schedule.log_snr_max": _LOG_SNR,
    "schedule.log_snr_min": _LOG_SNR,
    "schedule.base_resolution": _whole(0, 65_536),
    "schedule.num_steps": _whole(0, _LEVELS),
    "schedule.size": _whole(1, 65_536),
    "schedule_learning.objective": _one_of(lambda: objectives.SCHEDULE_OBJECTIVES),
    "schedule_learning.optimizer": _OPTIMIZER,
    "schedule_learning.learning_rate": _NOT_NEGATIVE,
    "schedule_learning.decay": _one_of(lambda: optimizers.DECAYS),
    "schedule_learning.clip_norm": _NOT_NEGATIVE,
    "schedule_learning.update_every": _whole(0, _STEPS),
    "schedule_learning.num_steps": _whole(0, _LEVELS),
    "objective.prediction": _one_of(lambda: process.PREDICTIONS),
    "objective.weighting": _one_of(lambda: objectives.WEIGHTINGS),
    "objective.time_sampling": _one_of(lambda: time_sampling.TIME_SAMPLERS),
    "objective.bins": _whole(1, 65_536),
    "objective.kept": _whole(1, 65_536),
    "objective.hybrid_weight": _rule(
        lambda value: 0 <= value <= 1e6, "at least 0 and at most 1,000,000"
    ),
    "optimizer.name": _OPTIMIZER,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_steps": _whole(0, _STEPS),
    "optimizer.decay": _one_of(lambda: optimizers.DECAYS),
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "data.storage": _one_of(lambda: STORAGES),
    "data.modes": _rule(
        lambda value: value == 0 or (value >= 4 and math.isqrt(value) ** 2 == value <= 10_000),
        "a square number of at least 4 and at most 10,000, or 0",
    ),
    "data.mode_deviation": _rule(lambda value: 0 < value <= 10, "above 0 and at most 10"),
    "discriminator.name": _one_of(lambda: models.DISCRIMINATORS),
    "discriminator.residual.channels": _whole(1, 16_384),
    "discriminator.residual.channel_mults": _wholes(64, 16),
    "discriminator.residual.num_blocks": _whole(1, 32),
    "discriminator.optimizer": _OPTIMIZER,
    "discriminator.learning_rate": _NOT_NEGATIVE,
    "discriminator.decay": _one_of(lambda: optimizers.DECAYS),
    "discriminator.clip_norm": _NOT_NEGATIVE,
    "ema.decay": _rule(
        lambda value: 0 <= value and np.float32(value) < 1, "at least 0 and below 1, in float32"
    ),
    "training.batch_size": _whole(1, 1_048_576),
    "training.grad_accumulation": _whole(1, 65_536),
    "training.num_steps": _whole(1, _STEPS),
    "training.steps_per_call": _whole(1, 10_000),
    "training.log_every": _whole(1, _STEPS),
    "training.eval_every": _whole(0, _STEPS),
    "training.sample_every": _whole(0, _STEPS),
    "training.checkpoint_every": _whole(0, _STEPS),
    "training.keep_checkpoints": _whole(1, _STEPS),
    "training.max_skipped": _whole(0, _STEPS),
    "sampling.sampler": _one_of(lambda: samplers.SAMPLERS),
    "sampling.num_steps": _whole(1, _LEVELS),
    "sampling.schedule": _one_of(schedules.names),
    "sampling.grid": Rule(
        lambda value: value in _grids() or value.endswith(".json"),
        lambda: f"one of {', '.join(_grids())}",
        lambda: _grids(),
    ),
    "sampling.clip_x0": _rule(
        lambda value: arguments.CLIP[0] <= value <= arguments.CLIP[1],
        f"from {arguments.CLIP[0]:g} to {arguments.CLIP[1]:g}",
    ),
    "sampling.dynamic_threshold": _rule(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "sampling.guidance_scale": _rule(
        lambda value: 0 <= value <= 10_000, "at least 0 and at most 10,000"
    ),
    "sampling.guidance_interval": _rule(
        lambda value: len(value) == 2 and value[0] < value[1], "(low, high) in log-SNR, low < high"
    ),
    "sampling.guidance_rescale": _SHARE,
    "sampling.num_samples": _whole(1, 10_000),
    "evaluation.batch_size": _whole(1, 1_048_576),
    "evaluation.num_examples": _whole(0, _STEPS),
    "evaluation.repeats": _whole(1, 10_000),
    "evaluation.vlb_num_steps": _whole(0, _LEVELS),
    "evaluation.ode_num_steps": _whole(1, _LEVELS),
    "evaluation.gradient_batches": _rule(
        lambda value: value == 0 or 2 <= value <= 1_000_000,
        "at least 2 and at most 1,000,000, or 0 for none",
    ),
    "evaluation.num_samples": _whole(1, 10_000_000),
    "parallel.num_devices": _whole(0, 1_048_576),
    "parallel.fsdp": _whole(1, 1_048_576),
}


def validate(config: ConfigDict) -> None:
    """Raises ValueError, in one sentence that names the key, if a config can't be run.

    Checked: that every key exists, has a value of its default's type, and a value that its rule
    allows (of the networks' fields, those of the chosen one); that the schedule, the network, the
    optimiser and the sampler take the options they are given; and that these go together. First
    `config.plugins` are loaded: see `load_plugins`.
    """
    load_plugins(config)
    expected, given = defaults.keys(), flat(config)
    for key in given:
        if key not in expected:
            raise ValueError(unknown(key, expected))
    for key in expected:
        if not defaults.is_relevant(key, given.get("model.name")):
            continue
        if key not in given:
            raise ValueError(f"config.{key} is missing: start from diffax.config.default_config()")
        _check_type(key, given[key], expected[key].kind)
        try:
            check_value(key, given[key])
        except ValueError as error:
            raise ValueError(f"config.{key} is {given[key]!r}; it {error}") from None
    with _naming("schedule"):
        schedule = _checked(lambda: build.build_schedule(config, shape=STAND_IN.shape))
    for section, check in _TOGETHER:
        with _naming(section):
            check(config, schedule)


def check_value(key: str, value: Any) -> None:
    """Raises ValueError with what a key's value must be, "must be ...", unless it is that."""
    rule = RULES.get(key)
    if value is not None and rule and not rule.holds(value):
        raise ValueError(f"must be {rule.words()}{suggestion(value, rule.names())}")


@contextlib.contextmanager
def _naming(section: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"config.{section}: {error}") from None


def _check_type(key: str, value: Any, kind: Kind) -> None:
    check_kind(key, value)
    numbers = value if isinstance(value, tuple | list) else (value,)
    if float in (kind.type, kind.element) and not all(map(_is_number, numbers)):
        raise ValueError(f"config.{key} is {value!r}; it must be a number that a float can hold")


def _is_number(value: Any) -> bool:
    return value is None or value in (math.inf, -math.inf) or abs(value) <= sys.float_info.max


# --- the schedule's values ----------------------------------------------------------------------

_GRID = 1000  # points strictly between the ends
_LEAST_FALL = 0.1  # from the first of them to the last
_ROUNDING = 1e-4  # by which float32 may have a flat stretch rise


def _checked(make: Callable[[], AnySchedule]) -> AnySchedule:
    """The schedule that a function makes, if its log-SNR falls, and is made of float32 numbers.

    It is looked at in every step of discrete time, or on a fine grid; only an end may be infinite.

    Raises:
      ValueError: it isn't, or can't be made.
    """

    def made() -> tuple[AnySchedule, jax.Array, jax.Array]:
        schedule = make()
        inner = (jnp.arange(_GRID, dtype=jnp.float32) + 0.5) / _GRID
        num_steps = schedule.num_steps
        t = inner if num_steps is None else jnp.arange(num_steps)
        return schedule, t, schedule.log_snr(t)

    try:
        with np.errstate(all="ignore"):  # of what overflows it is said below
            # Under jit it is one program that is compiled, instead of one per operation.
            schedule, t, log_snr = jax.jit(made)()
    except ArithmeticError as error:
        raise ValueError(f"its values can't be computed with: {error}") from None
    t, log_snr = np.asarray(t), np.asarray(log_snr)
    inside = np.abs(log_snr) <= _LOG_SNR_LIMIT
    if schedule.num_steps is not None:  # whose first and last step may be the clean and noisy end
        inside[[0, -1]] |= [log_snr[0] == np.inf, log_snr[-1] == -np.inf]
    if not inside.all():
        i = int(np.argmin(inside))
        raise ValueError(
            f"the log-SNR is {log_snr[i]:g} at t={t[i]:g}; between its ends it must be at most"
            f" {_LOG_SNR_LIMIT:g} in size"
        )
    rises = np.diff(log_snr) > _ROUNDING
    if rises.any():
        i = int(np.argmax(rises))
        raise ValueError(
            f"the log-SNR must fall, and is {log_snr[i]:g} at t={t[i]:g} and {log_snr[i + 1]:g} at"
            f" t={t[i + 1]:g}"
        )
    fall = log_snr[0] - log_snr[-1]
    if fall < _LEAST_FALL and log_snr.size > 1:
        raise ValueError(f"the log-SNR falls by {fall:g} in all; it must fall by {_LEAST_FALL:g}")
    return schedule


# --- what must fit together ---------------------------------------------------------------------


def _check_size(network: Any) -> None:
    least = getattr(network, "least_parameters", lambda: 0)()
    if least > _PARAMETERS:
        raise ValueError(
            f"a network of this size has more than {least:,} parameters; at most {_PARAMETERS:,}"
            " are allowed: make it narrower, or of fewer layers"
        )


def _discriminator(config: ConfigDict, schedule: AnySchedule) -> None:
    _check_size(build.build_discriminator(config, STAND_IN))


def _model(config: ConfigDict, schedule: AnySchedule) -> None:
    _check_size(build.build_model(config, STAND_IN))
    if build.conditioning(config) == "step" and schedules.is_learned(schedule):
        raise ValueError(
            "conditioning='step' doesn't give the network the noise level, which a learned schedule"
            " needs: use 'log_snr'"
        )


def _condition(config: ConfigDict, schedule: AnySchedule) -> None:
    section, method = config.condition, config.method.name
    if section.base and not build.control_names(config):
        raise ValueError(
            f"base={section.base!r} with control='': a ControlNet is trained beside its base to"
            " follow a control; name one, or leave base empty"
        )
    if section.base and unread_by_method(config, "condition.base"):
        raise ValueError(
            f"base={section.base!r} with method {method!r}: a ControlNet is trained by method"
            " 'diffusion'; leave base empty, and the control is an input of the network itself"
        )


def _prediction(config: ConfigDict) -> str:
    """What the network predicts; x0, which any schedule allows, if the method has no choice."""
    unread = unread_by_method(config, "objective.prediction")
    return "x0" if unread else config.objective.prediction


def _schedule(config: ConfigDict, schedule: AnySchedule) -> None:
    process.refuse_eps_at_zero_snr(schedule, _prediction(config))
    if schedules.is_learned(schedule) and config.schedule_learning.update_every > 0:
        if sentence := build.infinite_ends(config, "learning the schedule"):
            raise ValueError(sentence)


def _evaluation(config: ConfigDict, schedule: AnySchedule) -> None:
    for name in config.evaluation.metrics:
        if name in evaluation.OTHER_NUMBERS:
            raise ValueError(
                f"metrics={name!r}: metrics are scores of samples; numbers of the likelihood are"
                " measured apart, by training.eval_every and diffax evaluate --metrics"
            )
    evaluation.check_names(config.evaluation.metrics)
    method, every = method_before_data(config), config.training.eval_every
    if config.evaluation.metrics and not method.makes_examples:
        raise ValueError(
            f"metrics={config.evaluation.metrics!r}: metrics are scores of samples, and method"
            f" {config.method.name!r} draws none; leave it empty"
        )
    if every > 0 and config.schedule.num_steps == 1:
        raise ValueError(
            f"training.eval_every={every}: the bound needs two steps, and schedule.num_steps is 1"
        )
    reasons = [m.impossible() for m in method.measures.values() if m.logged and every > 0]
    for reason in filter(None, reasons):
        raise ValueError(f"training.eval_every={every}: {reason}")


_LATENTS_WITHIN = 3.0  # deviations: to clip beyond changes little


def remarks(config: ConfigDict, dataset: Any = None) -> list[str]:
    """What a config that can be run is probably not meant to say, a sentence each.

    `dataset`: that it is for, with a `shape` and `num_classes`, if it is known.
    """
    found = []
    warmup, num_steps = config.optimizer.warmup_steps, config.training.num_steps
    if warmup > num_steps:
        found.append(
            f"optimizer.warmup_steps={warmup:,} is more than training.num_steps={num_steps:,}: the"
            f" learning rate rises to {num_steps / warmup:.2g} of optimizer.learning_rate at most"
        )
    objective = config.objective
    if objective.prediction == "score" and objective.weighting == "simple":
        found.append(
            "objective.prediction='score' with objective.weighting='simple': the score's error"
            " grows as 1 / sigma^2 towards the clean end; the other weightings weigh that of eps"
        )
    clip = config.sampling.clip_x0
    if config.codec.name != "identity" and clip is not None and clip < _LATENTS_WITHIN:
        found.append(
            f"sampling.clip_x0={clip:g} clips the latents, which have unit variance and no bounds:"
            " leave it None"
        )
    given, name, known = flat(config), config.model.name, defaults.keys()
    changed = [k for k, key in known.items() if given.get(k, key.default) != key.default]
    unused = [k for k in changed if not defaults.is_relevant(k, name)]
    unread = [k for k in changed if k not in unused and unread_by_method(config, k)]
    for key, without_effect in (("model.name", unused), ("method.name", unread)):
        if without_effect:
            listed = ", ".join(without_effect)
            verb = "have" if len(without_effect) > 1 else "has"
            found.append(f"{key} is {given[key]!r}, so that {listed} {verb} no effect")
    if dataset is not None:
        network = build.build_model(config, dataset)
        of_network = getattr(network, "remarks", lambda shape: [])(dataset.shape)
        found += [f"model.{name}.{remark}" for remark in of_network]
    return found


def _objective(config: ConfigDict, schedule: AnySchedule) -> None:
    num_steps = config.schedule.num_steps
    if config.objective.learned_variance and num_steps < 2:
        raise ValueError(
            "learned_variance=True is the variance of a step of discrete time: schedule.num_steps,"
            f" which is {num_steps}, must be at least 2"
        )


def _schedule_learning(config: ConfigDict, schedule: AnySchedule) -> None:
    section, training = config.schedule_learning, config.training
    if schedules.is_learned(schedule) and training.batch_size % (2 * training.grad_accumulation):
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
    if section.learning_rate * section.weight_decay > 2:  # p <- (1 - rate decay) p
        raise ValueError(
            f"weight_decay={section.weight_decay:g} and learning_rate={section.learning_rate:g}:"
            " their product must be at most 2, beyond which a decay makes the weights grow"
        )


def _grids() -> tuple[str, ...]:
    """The fixed ones, and those that are found for a run."""
    return (*samplers.GRIDS, *samplers.grid_search.METHODS)


def _found_grid(solver: samplers.Sampler, config: ConfigDict) -> None:
    grid, sampler = config.sampling.grid, config.sampling.sampler
    if grid in samplers.grid_search.METHODS and solver.stochastic:
        raise ValueError(f"grid={grid!r} is found for solvers without noise, not for {sampler!r}")
    has_own = sampler == "learned" and not config.sampling.coefficients
    if grid is not None and (grid == "learned") != has_own:
        raise ValueError(
            f"grid={grid!r} with sampler={sampler!r}: the solver 'learned' has a grid of its own,"
            " 'learned', and no other has that"
        )


def _sampling(config: ConfigDict, schedule: AnySchedule) -> None:
    _found_grid(build.build_sampler(config), config)
    _guidance(config)
    options = build.sampling_options(config)
    if config.sampling.schedule is not None:
        schedule = _sampling_schedule(config, schedule)
    visit = (options["num_steps"], options["grid"], _prediction(config))

    def visited() -> Any:
        acting = schedules.effective(schedule, config.schedule.num_steps)
        return samplers.visited_levels(acting, *visit, sampler=options["sampler"])

    jax.eval_shape(visited)  # checks, computes nothing


def _guidance(config: ConfigDict) -> None:
    scale, model = config.sampling.guidance_scale, config.model
    if scale == 1:
        return
    given = {
        "model.label_dropout": (model.class_conditional, model.label_dropout),
        "condition.text_dropout": (bool(config.condition.text), config.condition.text_dropout),
        "condition.control_dropout": (
            bool(build.control_names(config)), config.condition.control_dropout,
        ),
    }  # fmt: skip
    dropouts = {key: rate for key, (is_given, rate) in given.items() if is_given}
    dropped = " or ".join(dropouts or given)
    needs = {
        "a network that is conditioned, by model.class_conditional=True, condition.text or"
        " condition.control": bool(dropouts),
        f"{dropped} above 0 in training, so that the network knows what is no condition": (
            any(rate > 0 for rate in dropouts.values())
        ),
        f"model.{model.name}.conditioning='log_snr'": build.conditioning(config) == "log_snr",
    }
    for need, met in needs.items():
        if not met:
            raise ValueError(f"guidance_scale={scale:g} needs {need}")


def _sampling_schedule(config: ConfigDict, trained: AnySchedule) -> AnySchedule:
    field = f"schedule={config.sampling.schedule!r}"
    if build.conditioning(config) != "log_snr":
        raise ValueError(
            f"{field}: a network conditioned on the {build.conditioning(config)} knows the schedule"
            f" that it was trained with alone; model.{config.model.name}.conditioning must be"
            " 'log_snr'"
        )
    other = build.build_sampling_schedule(config, STAND_IN.shape)
    _checked(lambda: other)
    if schedules.is_learned(other):
        raise ValueError(f"{field} has parameters, which would be untrained ones: name a fixed one")
    process.refuse_eps_at_zero_snr(other, _prediction(config))
    return other


def _codec(config: ConfigDict, schedule: AnySchedule) -> None:
    name, path = config.codec.name, config.codec.path
    if (name != "identity") != bool(path):
        raise ValueError(
            f"name={name!r} and path={path!r}: path is the workdir of a trained autoencoder with"
            " name='run', the folder with TAEF2's files with name='taef2', and empty with"
            " name='identity'"
        )


def _method(config: ConfigDict, schedule: AnySchedule) -> None:
    method_before_data(config)
    parts = config.training.grad_accumulation
    if parts > 1 and unread_by_method(config, "training.grad_accumulation"):
        raise ValueError(
            f"training.grad_accumulation={parts}: method {config.method.name!r} has no"
            " micro-batches; set it to 1"
        )


_TOGETHER: tuple[tuple[str, Callable[[ConfigDict, AnySchedule], None]], ...] = (
    ("schedule", _schedule),
    ("objective", _objective),
    ("schedule_learning", _schedule_learning),
    ("condition", _condition),
    ("model", _model),
    ("optimizer", _optimizer),
    ("discriminator", _discriminator),
    ("sampling", _sampling),
    ("codec", _codec),
    ("method", _method),
    ("evaluation", _evaluation),
)
