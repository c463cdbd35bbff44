"""Every key of a config: its default, what it means, and the kind of its values."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from diffax import data, methods, models, registry, samplers, schedules, time_sampling
from diffax.config.kinds import Kind, kind_of
from diffax.models import text
from diffax.registry import Registry, annotation_of


class Key(NamedTuple):
    """A key of a config.

    Attributes:
      default: None stands for "as the schedule (or the sampler) has it by default", or for "off".
      meaning: in words.
      kind: of its values.
    """

    default: Any
    meaning: str
    kind: Kind


def _key(default: Any, meaning: str, annotation: Any = None) -> Key:
    return Key(default, meaning, kind_of(annotation, default))


# Fields of a network that are set by other keys, or by the data.
_SET_BY_OTHERS = (
    *("num_classes", "learned_variance", "data_channels", "data_shape", "control_shape", "text"),
)

_SECTIONS = (
    *("seed", "data", "codec", "method", "model", "condition", "schedule", "schedule_learning"),
    "objective",
    *("optimizer", "discriminator", "ema", "training", "sampling", "evaluation", "parallel"),
    "plugins",
)

# What isn't a field or an argument of something that is named.
_KEYS: dict[str, Key] = {
    "seed": _key(0, "of the initialisation, the order of the data, the noise and the samples"),
    "method.name": _key("diffusion", "what is trained"),
    "method.teacher": _key("", "workdir of the run that a student starts from; empty: none"),
    "codec.name": _key(
        "identity",
        "the space where the method works: identity; run: that of an autoencoder; taef2: that of"
        " TAEF2, for colour images",
    ),
    "codec.path": _key(
        "",
        "of codec.name=run: the autoencoder's workdir; of taef2: the folder with"
        " taef2_encoder.pth and taef2_decoder.pth, from https://github.com/madebyollin/taesd",
    ),
    "codec.cache": _key(
        True, "encode the data once and keep the latents on disk; false: in each training step"
    ),
    "model.name": _key("unet", "the network"),
    "model.class_conditional": _key(False, "condition the network on the class label"),
    "model.label_dropout": _key(0.1, "share of labels that are replaced by the null class"),
    "condition.control": _key(
        "",
        "spatial controls, several joined by commas: files, those of the data; or computed from"
        " them, edges, blurred, low_resolution, grey, masked; empty: none",
    ),
    "condition.control_dropout": _key(
        0.0, "share of examples without their control in training; 0: guidance keeps the control"
    ),
    "condition.base": _key(
        "",
        "workdir of a diffusion run that stays as it is, beside which a ControlNet is trained;"
        " empty: the control is an input of the network itself",
    ),
    "condition.text": _key(
        "", "condition the network on captions, by this encoder: bytes or minilm; empty: not"
    ),
    "condition.text_dropout": _key(0.1, "share of captions that are replaced by the empty one"),
    "schedule.name": _key("cosine", "the noise schedule"),
    "schedule.betas": _key(
        (),
        "betas of discrete time, each in (0, 1], in place of the schedule of that name; (): none",
        tuple[float, ...],
    ),
    "schedule.input_scale": _key(1.0, "b, the factor on the data (Chen 2023); 1: off"),
    "schedule.base_resolution": _key(
        0, "pixels a side for which the schedule is meant: it is shifted to the data's; 0: off"
    ),
    "schedule.zero_terminal_snr": _key(False, "rescale to end at zero SNR exactly"),
    "schedule.num_steps": _key(0, "T of discrete time; 0: continuous time"),
    "schedule_learning.objective": _key(
        "variance", "of a learned schedule: of the VLB estimate; or vlb, in discrete time"
    ),
    "schedule_learning.optimizer": _key("adam", "of a learned schedule"),
    "schedule_learning.learning_rate": _key(1e-3, "of a learned schedule"),
    # By the end the gradient is nearly all noise.
    "schedule_learning.decay": _key("cosine", "of the rate, from the first step to the last"),
    # The gradient's direction is that of rare large values: clipped, it goes astray, the shape
    # grows jumps, and the variance with them.
    "schedule_learning.clip_norm": _key(0.0, "on the schedule's gradient; 0: off"),
    "schedule_learning.update_every": _key(
        1, "training steps from one update of the schedule to the next; 0: never"
    ),
    "schedule_learning.num_steps": _key(
        0, "T of the VLB that the schedule follows; 0: schedule.num_steps"
    ),
    "objective.prediction": _key("eps", "what the network predicts"),
    "objective.weighting": _key("simple", "of the loss, by log-SNR"),
    "objective.time_sampling": _key("stratified", "how training times are drawn"),
    "objective.importance_weights": _key(
        True, "weigh each time by 1 / its density, so that the density changes no expectation"
    ),
    "objective.learned_variance": _key(False, "the network also learns the reverse variance"),
    "objective.hybrid_weight": _key(1e-3, "of the VLB in the loss, if the variance is learned"),
    "optimizer.name": _key("adam", "of the network"),
    "optimizer.learning_rate": _key(3e-4, "at its peak"),
    "optimizer.warmup_steps": _key(100, "linear rise to the peak"),
    "optimizer.decay": _key("constant", "from the warm-up to the last step"),
    "optimizer.clip_norm": _key(1.0, "on the gradient's global norm; 0: off"),
    "optimizer.weight_decay": _key(0.0, "of the optimisers that have it"),
    "discriminator.name": _key(
        "residual", "the network that judges samples, in methods that have one"
    ),
    "discriminator.optimizer": _key("adam", "of the discriminator"),
    "discriminator.learning_rate": _key(3e-4, "of the discriminator"),
    "discriminator.decay": _key("constant", "of the rate, from the first step to the last"),
    "discriminator.clip_norm": _key(1.0, "on the discriminator's gradient; 0: off"),
    "ema.decay": _key(
        0.999, "of the parameters' moving average; in step k: min(decay, (1 + k) / (10 + k))"
    ),
    "training.batch_size": _key(128, "examples, over all devices"),
    "training.init_from": _key(
        "", "workdir of a run whose averaged weights are the first ones; empty: random weights"
    ),
    "training.grad_accumulation": _key(
        1, "micro-batches to a batch, one after the other: saves memory"
    ),
    "training.num_steps": _key(10_000, "training steps"),
    "training.steps_per_call": _key(
        1, "steps in one call of the device; more help where steps are short"
    ),
    "training.log_every": _key(100, "steps over which the logged metrics are averages"),
    "training.eval_every": _key(0, "steps between likelihoods on the evaluation split; 0: never"),
    "training.sample_every": _key(0, "steps between sample grids; 0: never"),
    "training.checkpoint_every": _key(
        1000, "steps between checkpoints; there is always one at the end; 0: only there"
    ),
    "training.keep_checkpoints": _key(2, "the latest so many, and the last known to be good"),
    "training.max_skipped": _key(
        10, "steps in a row whose loss or gradient is not finite; more: an error"
    ),
    "training.tensorboard": _key(False, "also write TensorBoard files; needs TensorFlow"),
    "training.wandb": _key(False, "also log to Weights & Biases; needs wandb"),
    "training.allow_config_change": _key(
        False, "resume although the config is not the one of before"
    ),
    "sampling.sampler": _key("ddim", "the solver"),
    "sampling.num_steps": _key(50, "noise levels visited"),
    "sampling.schedule": _key(None, "a name; None: the one trained with", str),
    "sampling.grid": _key(
        None,
        "which levels are visited; FILE.json: of equal rate, of that file; dp, gradient, ays or a"
        " rate, as entropy: those that diffax grid has found for the run; None: those that suit the"
        " sampler",
        str,
    ),
    "sampling.clip_x0": _key(None, "bound on |x0| in every step; None: off", float),
    "sampling.dynamic_threshold": _key(
        None, "the quantile of |x0| to clip to, as 0.995; None: off", float
    ),
    "sampling.low_order_finish": _key(
        True, "the last step goes to x0, with order 1; false: to the clean end, with full order"
    ),
    "sampling.guidance_scale": _key(1.0, "of a class-conditional network; 1: off"),
    "sampling.guidance_interval": _key(
        None, "(low, high) in log-SNR, guided alone; None: all", tuple[float, ...]
    ),
    "sampling.guidance_rescale": _key(0.0, "share by which the deviation is brought back"),
    "sampling.num_samples": _key(64, "in a sample grid"),
    "evaluation.batch_size": _key(256, "examples, over all devices"),
    "evaluation.num_examples": _key(0, "of the evaluation split, the first so many; 0: all"),
    "evaluation.vlb_num_steps": _key(0, "T of the bound; 0: continuous time"),
    "evaluation.ode_num_steps": _key(50, "of the ODE likelihood"),
    "evaluation.gradient_batches": _key(
        16,
        "batches of the training split over which the variance of the gradient is measured; 0: it"
        " is not",
    ),
    "evaluation.num_samples": _key(2000, "drawn for the metrics of samples"),
    "evaluation.metrics": _key(
        (),
        "of samples, names of diffax evaluate, as (fd_lite0,fd_mobilenet,prdc); (): the Fréchet"
        " distance of a classifier's features, or sliced Wasserstein where none can be trained",
        tuple[str, ...],
    ),
    "evaluation.repeats": _key(16, "noise levels at which each example is seen for bits/dim"),
    "parallel.mode": _key("mesh", "mesh: jit over a mesh of devices; pmap: whole copies"),
    "parallel.num_devices": _key(0, "the first so many; 0: all"),
    "parallel.fsdp": _key(1, "devices over which each parameter is split, in mode mesh"),
    "parallel.multihost": _key(
        None, "several processes are one job; None: if the job has several", bool
    ),
    "plugins": _key(
        (),
        "files and modules of Python that register what a config names, as (power.py,); once they"
        " are loaded each is named with a hash of its code",
        tuple[str, ...],
    ),
}


def keys() -> dict[str, Key]:
    """Every dotted key, those of a section together; one that is not here does not exist.

    To the table are added the fields of `DataConfig`, those of each network as
    `model.<network>.<field>` and of each discriminator as `discriminator.<name>.<field>`, and the
    arguments of the schedules, the time samplers and the samplers, with what their docstrings say
    of them. What is registered later counts.
    """
    return dict(_keys(registry.version()))


@functools.lru_cache(maxsize=1)
def _keys(version: int) -> dict[str, Key]:
    del version  # of the tables that are read
    found = dict(_KEYS)
    for section, table in (("model", models.MODELS), ("discriminator", models.DISCRIMINATORS)):
        for network in sorted(table):
            if f"{section}.{network}" in _KEYS:
                raise ValueError(
                    f"a network can't be named {network!r}: config.{section}.{network} has another"
                    " meaning"
                )
            of_network = _of_network(network, table)
            found |= {f"{section}.{network}.{field}": key for field, key in of_network.items()}
    for section, kind, members in (
        ("data", "data source", _of_sources()),
        ("method", "method", method_keywords()),
        ("condition", "text encoder", text_encoder_keywords()),
        ("schedule", "schedule", schedule_keywords()),
        ("objective", "time sampler", time_sampler_keywords()),
        ("sampling", "sampler", sampler_keywords()),
    ):
        for name, key in members.items():
            if f"{section}.{name}" in _KEYS:
                raise ValueError(
                    f"{name!r} can be no argument of a {kind}: config.{section}.{name} has another"
                    " meaning; call it otherwise"
                )
            found[f"{section}.{name}"] = key
    return dict(sorted(found.items(), key=lambda item: _SECTIONS.index(item[0].partition(".")[0])))


def default_config() -> ConfigDict:
    """The config from which every other starts; `diffax config` prints what its keys mean."""
    config = ConfigDict()
    for dotted, key in keys().items():
        *sections, last = dotted.split(".")
        node = config
        for section in sections:
            if section not in node:
                node[section] = ConfigDict()
            node = node[section]
        node[last] = config_dict.placeholder(key.kind.type) if key.default is None else key.default
    return config


def is_relevant(key: str, network: str | None) -> bool:
    """Whether a dotted key matters in a config whose model.name is `network`: it is no field of
    another network."""
    section, *path = key.split(".")
    return section != "model" or len(path) < 2 or path[0] == network


def model_fields(name: str, table: Registry = models.MODELS) -> dict[str, Any]:
    """The fields of a network that are keys of `config.model.<name>`, or of a discriminator that
    are keys of `config.discriminator.<name>`, with their defaults."""
    return {field: key.default for field, key in _of_network(name, table).items()}


def schedule_keywords() -> dict[str, Key]:
    """Each keyword of a schedule, but the PRNG key; None: the schedule's own default.

    `log_snr_max` and `log_snr_min` truncate the schedules that don't take them.
    """
    return _optional(schedules.SCHEDULES, schedules.SCHEDULES.key_types())


def method_keywords() -> dict[str, Key]:
    """Each option of a method; None: the method's own default."""
    return _optional(methods.METHODS, methods.METHODS.key_types())


def text_encoder_keywords() -> dict[str, Key]:
    """Each option of a text encoder; None: the encoder's own default."""
    return _optional(text.TEXT_ENCODERS, text.TEXT_ENCODERS.key_types())


def time_sampler_keywords() -> dict[str, Key]:
    """Each option of a time sampler; None: the time sampler's own default."""
    return _optional(time_sampling.TIME_SAMPLERS, time_sampling.TIME_SAMPLERS.key_types())


def sampler_keywords() -> dict[str, Key]:
    """Each option of a sampler; None: the sampler's own default."""
    return _optional(samplers.SAMPLERS, samplers.SAMPLERS.key_types())


# --- what is read from the code that takes the values -------------------------------------------


def _of_sources() -> dict[str, Key]:
    """The fields of `DataConfig`, and the other arguments of sources that are registered."""
    types, common = data.key_types(), _arguments(data.DataConfig)
    own = _optional(data.registered(), types.keys() - common.keys())
    return {name: common[name] for name in types if name in common} | own


def _of_network(name: str, table: Registry) -> dict[str, Key]:
    found = _arguments(table.lookup(name))
    wanted = [field for field in models.fields(name, table) if field not in _SET_BY_OTHERS]
    return {field: found[field] for field in wanted if field in found}


def _optional(constructors: Mapping[str, Callable], names: Container[str]) -> dict[str, Key]:
    """The arguments of those names, None by default, with what their own defaults are."""
    of_each = {
        owner: {name: key for name, key in _arguments(constructor).items() if name in names}
        for owner, constructor in constructors.items()
    }
    return {name: _as_optional(key) for name, key in _merged(of_each).items()}


def _as_optional(key: Key) -> Key:
    return Key(None, key.meaning, dataclasses.replace(key.kind, optional=True))


def _arguments(constructor: Callable) -> dict[str, Key]:
    """The arguments of a function or fields of a dataclass that are of a kind of a config's values,
    as the Args or Attributes of its docstring explain them."""
    said, found = _explained(constructor), {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        annotation = annotation_of(str(constructor), constructor, parameter)
        kind = kind_of(annotation, parameter.default)
        if kind is not None:
            found[name] = Key(parameter.default, said.get(name, ""), kind)
    return found


def _merged(of_each: Mapping[str, Mapping[str, Key]]) -> dict[str, Key]:
    """The keys of several owners as one table, whose meanings name the owners of each key and
    their defaults."""
    merged: dict[str, Key] = {}
    meanings: dict[str, dict[str, list[str]]] = {}  # of each key: what is said of it -> owners
    for owner, own in of_each.items():
        for name, key in own.items():
            has_default = key.default not in (None, "", inspect.Parameter.empty)
            owners = meanings.setdefault(name, {}).setdefault(key.meaning, [])
            owners.append(f"{owner} {key.default}" if has_default else owner)
            merged[name] = key
    for name, said in meanings.items():
        silent = said.pop("", [])  # what others say holds for these
        first = next(iter(said), "")
        said[first] = said.get(first, []) + silent
        words = [f"{text} ({', '.join(owners)})".strip() for text, owners in said.items()]
        merged[name] = merged[name]._replace(meaning="; ".join(words))
    return merged


@functools.cache
def _explained(thing: Callable) -> dict[str, str]:
    """Name -> what the Args or Attributes of a docstring say of it."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    starts = [i for i, line in enumerate(lines) if line in ("Args:", "Attributes:")]
    said: dict[str, str] = {}
    names: list[str] = []
    for line in lines[starts[0] + 1 :] if starts else ():
        if line and not line.startswith(" "):
            break
        if entry := re.fullmatch(r"  (\w+(?:, \w+)*): (.*)", line):
            names = entry[1].split(", ")
            said |= dict.fromkeys(names, entry[2])
        elif line:
            said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return {name: text.rstrip(".") for name, text in said.items()}


# What every config of this process has, whenever it was made.
AT_IMPORT = frozenset(keys())
