"""The method of a config: its parts, built from the names in the config."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffax import evaluation, methods, time_sampling
from diffax.config import build
from diffax.config.defaults import default_config, method_keywords, time_sampler_keywords
from diffax.config.storage import flat
from diffax.data import DatasetInfo, controls
from diffax.methods.diffusion import Objective, ScheduleLearning
from diffax.methods.diffusion_measures import Settings
from diffax.methods.teacher import Teacher
from diffax.models import conditioning
from diffax.models.conditioning import Condition


def build_method(
    config: ConfigDict, data: DatasetInfo, teacher: Teacher | None = None
) -> methods.Method:
    """The method of `config.method`, for data of which `data` is known.

    Each of its parameters that is in `methods.PARTS` is built from the config; the others are its
    options, keys of `config.method`. `teacher`: the run of config.method.teacher, or of
    config.condition.base, where it is loaded, as it must be for `Method.init`.

    Raises:
      ValueError: an option that the method doesn't take, parts that can't be built, or a network
        that doesn't take a condition.
    """
    name = config.method.name
    taken = methods.arguments_of(name)
    given = {key: config.method[key] for key in method_keywords()}
    options = {key: value for key, value in given.items() if value is not None}
    for key in options:
        if key not in taken:
            own = ", ".join(argument for argument in taken if argument not in PARTS)
            raise ValueError(f"method {name!r} has no option {key!r}; it has {own or 'none'}")
    parts = {part: PARTS[part](config, data) for part in taken if part in PARTS}
    if {"network", "conditions"} <= parts.keys():
        conditioning.check_takes(parts["network"], parts["conditions"])
    if teacher is not None:
        parts["frozen" if config.condition.base else "teacher"] = teacher
    return methods.get(name, **parts, **options)


# Keys, or sections of keys, that no part of a method is built from, but for `_OF_METHOD`.
_NOT_OF_METHOD = ("seed", "data.", "training.", "evaluation.", "parallel.", "plugins")
_OF_METHOD = (
    *("training.num_steps", "training.grad_accumulation"),
    *("evaluation.repeats", "evaluation.vlb_num_steps", "evaluation.ode_num_steps"),
)


def for_method(config: ConfigDict) -> ConfigDict:
    """A copy of a config with the defaults of all keys that its method doesn't depend on. Configs
    that differ in these alone, such as those of several seeds, come out equal."""
    plain = default_config()
    own = {
        key: value
        for key, value in flat(config).items()
        if key in _OF_METHOD or not key.startswith(_NOT_OF_METHOD)
    }
    plain.update_from_flattened_dict(own)
    return plain


# Keys, or sections of keys, that have an effect by one of these parts alone; the first that fits
# holds.
_READ_BY = {
    "method.teacher": ("teacher",),
    "schedule.": ("schedule",),
    "schedule_learning.": ("schedule_learning",),
    "objective.prediction": ("objective", "prediction"),
    "objective.time_sampling": ("objective", "times"),
    "objective.": ("objective",),
    "training.grad_accumulation": ("grad_accumulation",),
    "model.": ("network",),
    "condition.base": ("frozen",),
    "condition.": ("conditions",),
    "discriminator.": ("discriminator",),
}


def unread_by_method(config: ConfigDict, key: str) -> bool:
    """Whether a key has no effect, since the method of a config does not take the part."""
    taken = methods.arguments_of(config.method.name)
    of_times = dict.fromkeys((f"objective.{k}" for k in time_sampler_keywords()), ("times",))
    readers = _READ_BY if "objective" in taken else of_times | _READ_BY
    parts = next((parts for keys, parts in readers.items() if key.startswith(keys)), ())
    return bool(parts) and not set(parts) & set(taken)


# Data of which only this is known before they are read: enough to build a method.
STAND_IN = DatasetInfo("not loaded yet", (1, 1), 1, None, (), arrays=(("text", ()),))


def method_before_data(config: ConfigDict) -> methods.Method:
    """The method of a config, for checks and questions that come before its data are read."""
    return build_method(config, STAND_IN)


def _conditions(config: ConfigDict, data: DatasetInfo) -> dict[str, Condition]:
    found = {}
    if config.model.class_conditional:
        found["label"] = Condition(data.num_classes, config.model.label_dropout)
    if config.condition.text:
        found["text"] = Condition(0, config.condition.text_dropout)
    if names := build.control_names(config):
        of = functools.partial(_control, names)
        null = {"image": 0.0, "strength": 0.0}
        found["control"] = Condition(null, config.condition.control_dropout, of)
    return found


def _control(names: Sequence[str], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The controls of a batch side by side, (n, ..., C'), each at its full strength, (n, names)."""
    image = jnp.concatenate(controls.images(batch, names), axis=-1)
    return {"image": image, "strength": jnp.ones((len(image), len(names)), image.dtype)}


def _frozen(config: ConfigDict, data: DatasetInfo) -> Teacher | None:
    return Teacher(config.condition.base) if config.condition.base else None


def _times(config: ConfigDict, data: DatasetInfo) -> time_sampling.TimeSampler:
    section = config.objective
    options = {key: section[key] for key in time_sampler_keywords() if section[key] is not None}
    return time_sampling.get(section.time_sampling, **options)


def _teacher(config: ConfigDict, data: DatasetInfo) -> Teacher | None:
    return Teacher(config.method.teacher) if config.method.teacher else None


def _objective(config: ConfigDict, data: DatasetInfo) -> Objective:
    section = config.objective
    return Objective(
        prediction=section.prediction,
        weighting=section.weighting,
        times=_times(config, data),
        importance_weights=section.importance_weights,
        learned_variance=section.learned_variance,
        hybrid_weight=section.hybrid_weight,
    )


def _schedule_learning(config: ConfigDict, data: DatasetInfo) -> ScheduleLearning:
    section = config.schedule_learning
    return ScheduleLearning(
        objective=section.objective,
        optimizer=build.build_schedule_optimizer(config),
        decay=build.schedule_decay_at(config),
        update_every=section.update_every,
        num_steps=section.num_steps,
    )


def _settings(config: ConfigDict, data: DatasetInfo) -> Settings:
    of_latents = config.codec.name != "identity"
    bound = "the bound of the latents (latent_bound)" if of_latents else "the likelihood (bpd)"
    section = config.evaluation
    return Settings(
        repeats=section.repeats,
        vlb_num_steps=section.vlb_num_steps,
        ode_num_steps=section.ode_num_steps,
        schedule_steps=config.schedule.num_steps,
        shape_is_free=build.conditioning(config) == "log_snr"
        and not (config.schedule.num_steps or section.vlb_num_steps),
        impossible=functools.partial(build.infinite_ends, config, bound),
        of_latents=of_latents,
    )


def _perceptual(config: ConfigDict, data: DatasetInfo) -> Callable | None:
    return evaluation.lpips_of() if config.method.lpips_weight else None


def _sampling(config: ConfigDict, data: DatasetInfo) -> dict[str, Any]:
    return {
        **build.sampling_options(config),
        **build.guidance_options(config),
        "schedule": build.build_sampling_schedule(config, data.shape),
        "with_variance": build.build_sampler(config).learned_variance,
    }


# How each of `methods.PARTS` is built.
PARTS: dict[str, Callable[[ConfigDict, DatasetInfo], Any]] = {
    "data": lambda config, data: data,
    "network": build.build_model,
    "conditions": _conditions,
    "schedule": lambda config, data: functools.partial(build.build_schedule, config, data.shape),
    "teacher": _teacher,
    "frozen": _frozen,
    "schedule_steps": lambda config, data: config.schedule.num_steps,
    "objective": _objective,
    "prediction": lambda config, data: config.objective.prediction,
    "times": _times,
    "schedule_learning": _schedule_learning,
    "optimizer": lambda config, data: build.build_optimizer(config),
    "learning_rate": lambda config, data: build.learning_rate_at(config),
    "num_steps": lambda config, data: config.training.num_steps,
    "discriminator": build.build_discriminator,
    "discriminator_optimizer": lambda config, data: build.build_discriminator_optimizer(config),
    "ema_decay": lambda config, data: config.ema.decay,
    "grad_accumulation": lambda config, data: config.training.grad_accumulation,
    "evaluation": _settings,
    "perceptual": _perceptual,
    "sampling": _sampling,
}
