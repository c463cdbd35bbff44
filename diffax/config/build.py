"""From the names in a config to what they stand for: schedule, network, optimisers, sampler."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from diffax import data, models, samplers, schedules
from diffax.config import conditions, optimizers
from diffax.config.defaults import model_fields, sampler_keywords, schedule_keywords
from diffax.data import controls
from diffax.models import layers
from diffax.models.control import ControlNet
from diffax.process import AnySchedule

_ENDS = ("log_snr_max", "log_snr_min")


def build_schedule(
    config: ConfigDict, shape: Sequence[int] | None = None, key: jax.Array | None = None
) -> AnySchedule:
    """The noise schedule of `config.schedule`.

    Built in this order: the constructor, or `betas` where there are some; its endpoints, by
    `with_endpoints` where it takes none itself; the input scale; the resolution shift; zero
    terminal SNR; discrete time. A learned one is learned in continuous time and stays in it: see
    `schedules.effective`.

    Args:
      config: the whole config.
      shape: of one example, (..., C), for the resolution shift.
      key: for the initial parameters of a learned schedule.

    Raises:
      ValueError: a keyword that the schedule does not take, or values that do not fit together.
    """
    section = config.schedule
    allowed = schedules.keywords(section.name)
    given = {k: section[k] for k in schedule_keywords() if section[k] is not None}
    ends = {k: given.pop(k) for k in _ENDS if k in given and k not in allowed}
    if "key" in allowed:
        given["key"] = key
    if section.betas:
        schedule = schedules.from_betas(section.betas)
    else:
        schedule = schedules.get(section.name, **given)
    if ends:
        if len(ends) < len(_ENDS):
            raise ValueError(
                f"schedule {section.name!r} has no endpoints of its own: give both or neither of"
                f" {' and '.join(_ENDS)}"
            )
        schedule = schedules.with_endpoints(schedule, **ends)
    if section.input_scale != 1:
        schedule = schedules.input_scaled(schedule, section.input_scale)
    if section.base_resolution > 0:
        if shape is None or len(shape) < 2:
            raise ValueError(f"base_resolution needs data with an extent, not of shape {shape}")
        schedule = schedules.shifted(schedule, max(shape[:-1]), section.base_resolution)
    if section.zero_terminal_snr:
        schedule = schedules.zero_terminal_snr(schedule)
    if schedules.is_learned(schedule):
        return schedule
    return schedules.effective(schedule, section.num_steps)


def build_sampling_schedule(config: ConfigDict, shape: Sequence[int]) -> AnySchedule | None:
    """The schedule named `config.sampling.schedule`, between the ends of the one trained with.

    None if none is named: then the trained one is sampled under. The ends of a schedule that learns
    them are those that it starts from.

    Raises:
      ValueError: what `build_schedule` refuses.
    """
    if config.sampling.schedule is None:
        return None
    ends = schedules.concrete_ends(build_schedule(config, shape))
    other = copy.deepcopy(config)
    other.schedule.update(dict.fromkeys(schedule_keywords()), name=config.sampling.schedule)
    other.schedule.update(betas=(), input_scale=1.0, base_resolution=0, zero_terminal_snr=False)
    if all(map(math.isfinite, ends)):
        other.schedule.update(dict(zip(_ENDS, ends)))
    return build_schedule(other, shape)


def infinite_ends(config: ConfigDict, purpose: str) -> str:
    """A sentence that names the keys to set, if the log-SNR of a config's schedule is infinite at
    an end; else "". `purpose`: what can't be done then."""
    first, last = map(float, jax.jit(lambda: schedules.ends_of(build_schedule(config, (1, 1))))())
    if math.isfinite(first) and math.isfinite(last):
        return ""
    return (
        f"{purpose} needs finite log-SNR at both ends, and {config.schedule.name!r} has"
        f" {first:g} and {last:g}: set schedule.log_snr_max and schedule.log_snr_min, to 10 and"
        " -10, say"
    )


def build_model(config: ConfigDict, dataset: Any) -> nn.Module:
    """The network `config.model.name`, with the fields of `config.model.<name>`, for data of
    `dataset.shape` and `dataset.num_classes` classes; a `ControlNet` on it with a condition.base.

    Raises:
      ValueError: a field's value is not allowed, or classes or controls are asked for and the data
        have none.
    """
    from_others = _of_data(config, dataset)
    if config.objective.learned_variance:
        from_others["learned_variance"] = True
    name = config.model.name
    known = {"data_channels": dataset.shape[-1], "data_shape": tuple(dataset.shape)}
    shapes = control_shapes(config, dataset)
    if shapes:
        known["control_shape"] = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    if config.condition.text:
        known["text"] = _text_network(config, dataset)
    from_others |= {k: value for k, value in known.items() if k in models.fields(name)}
    fields = {field: config.model[name][field] for field in model_fields(name)}
    if not (config.condition.base and shapes):
        return models.get(name, **fields, **from_others)
    if name != "unet":
        raise ValueError(
            f"condition.base is set and model.name is {name!r}: a ControlNet copies the encoder of"
            " a 'unet'; leave condition.base empty, and the control is an input of the network"
        )
    return ControlNet(**fields, **from_others, control_channels=[s[-1] for s in shapes])


def control_names(config: ConfigDict) -> tuple[str, ...]:
    """The controls that a config's network is conditioned on."""
    return controls.names_of(config.condition.control)


def control_shapes(config: ConfigDict, info: Any) -> list[tuple[int, ...]]:
    """The shape of one example of each control, (..., C'), by what is known of the data.

    Raises:
      ValueError: the data have no such array, or controls of several sizes.
    """
    names, known = control_names(config), dict(getattr(info, "arrays", ()))
    shapes = []
    for name in names:
        # Before data are read, what they may have is taken for there.
        unread = (*info.shape[:-1], 1) if not getattr(info, "fingerprint", "") else None
        shape = known.get(controls.array_of(name), unread)
        if shape is None:
            raise ValueError(
                f"condition.control={name!r}, and the data set {info.name!r} was read without it"
            )
        shapes.append(tuple(shape))
    if len({shape[:-1] for shape in shapes}) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes))
        raise ValueError(f"condition.control names controls of several sizes: {listed}")
    return shapes


def load_data(config: ConfigDict) -> data.Dataset:
    """The data of `config.data`, with the controls of `config.condition`; the set that was read
    last is kept. Raises ValueError and FileNotFoundError as `data.load`."""
    return controls.with_controls(data.load_cached(config.data), control_names(config))


def _text_network(config: ConfigDict, dataset: Any) -> nn.Module:
    """The part of a network that encodes captions."""
    if "text" not in dict(dataset.arrays):
        raise ValueError(
            f"condition.text={config.condition.text!r}, but the data set {dataset.name!r} has no"
            " captions: a folder has them in metadata.jsonl, an .npz in an array 'text'"
        )
    own = config.model[config.model.name]
    dtype = layers.DTYPES[own.dtype if "dtype" in own else "float32"]
    return conditions.text_encoder(config).network(dtype)


def build_discriminator(config: ConfigDict, dataset: Any) -> nn.Module:
    """The network `config.discriminator.name`, with the fields of `config.discriminator.<name>`;
    as `build_model`."""
    name, table = config.discriminator.name, models.DISCRIMINATORS
    fields = {field: config.discriminator[name][field] for field in model_fields(name, table)}
    return models.get(name, table, **fields, **_of_data(config, dataset))


def _of_data(config: ConfigDict, dataset: Any) -> dict[str, Any]:
    """The number of classes, where a network is conditioned on them."""
    if not config.model.class_conditional:
        return {}
    if dataset.num_classes == 0:
        raise ValueError(
            f"model.class_conditional=True, but the data set {dataset.name!r} has no labels"
        )
    return {"num_classes": dataset.num_classes}


def conditioning(config: ConfigDict) -> str:
    """What the network of a config is conditioned on: "log_snr" or "step"."""
    name = config.model.name
    has_choice = "conditioning" in model_fields(name)
    return config.model[name].conditioning if has_choice else "log_snr"


def learning_rate_at(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """The network's learning rate as a function of the step, from 0."""
    section = config.optimizer
    return optimizers.learning_rate(
        section.learning_rate, section.warmup_steps, section.decay, config.training.num_steps
    )


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The network's optimiser."""
    section = config.optimizer
    return optimizers.optimizer(
        section.name, learning_rate_at(config), section.clip_norm, section.weight_decay
    )


def build_schedule_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The learned schedule's optimiser: no weight decay; its updates are yet to be multiplied by
    `schedule_decay_at`."""
    section = config.schedule_learning
    return optimizers.optimizer(section.optimizer, section.learning_rate, section.clip_norm)


def build_discriminator_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The discriminator's optimiser: no weight decay and no warm-up."""
    section = config.discriminator
    rate = optimizers.learning_rate(
        section.learning_rate, 0, section.decay, config.training.num_steps
    )
    return optimizers.optimizer(section.optimizer, rate, section.clip_norm)


def schedule_decay_at(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """The factor on the learned schedule's learning rate as a function of the step, from 0."""
    return optimizers.learning_rate(
        1.0, 0, config.schedule_learning.decay, config.training.num_steps
    )


def _sampler_options(config: ConfigDict) -> dict[str, Any]:
    section = config.sampling
    return {key: section[key] for key in sampler_keywords() if section[key] is not None}


def build_sampler(config: ConfigDict) -> samplers.Sampler:
    """The solver of `config.sampling`; ValueError for an option that it does not take."""
    return samplers.get(config.sampling.sampler, **_sampler_options(config))


def sampling_options(config: ConfigDict) -> dict[str, Any]:
    """The keyword arguments of `diffax.sample` that a config determines.

    A grid that is found for the run is known to the run alone (`training.grids`): here, and in the
    pictures of training, the solver's own stands for it.
    """
    section = config.sampling
    return dict(
        sampler=section.sampler,
        num_steps=section.num_steps,
        grid=None if section.grid in samplers.grid_search.METHODS else section.grid,
        clip_x0=section.clip_x0,
        dynamic_threshold=section.dynamic_threshold,
        low_order_finish=section.low_order_finish,
        prediction=config.objective.prediction,
        **_sampler_options(config),
    )


def guidance_options(config: ConfigDict) -> dict[str, Any]:
    """The options of guidance that a config determines; a scale of 1 is none, and is None."""
    section = config.sampling
    return dict(
        guidance_scale=None if section.guidance_scale == 1 else section.guidance_scale,
        guidance_interval=section.guidance_interval,
        guidance_rescale=section.guidance_rescale,
    )
