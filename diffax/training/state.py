"""The state of a training run, and how a network of a given state is asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, process, time_sampling
from diffax.process import AnySchedule, Predict


class TrainState(flax.struct.PyTreeNode):
    """All that changes in training; a pytree, and together with the data all that a step needs."""

    step: jax.Array  # int32 (): updates so far
    params: Any  # of the network
    ema_params: Any  # their exponential moving average, with which one samples and evaluates
    opt_state: Any
    schedule: AnySchedule
    schedule_opt_state: Any  # () if the schedule isn't learned
    time_sampler_state: Any
    key: jax.Array  # PRNG key; constant: the keys of a step are folded from it and the step


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a network, a sampler and a likelihood must know of a `diffax.data.Dataset`.

    Attributes:
      name, shape, num_classes, levels, label_names: the data set's own.
      num_train, num_eval, fingerprint: of the examples a run was trained on; 0 and "" if not known.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    levels: int | None
    label_names: tuple[str, ...]
    num_train: int = 0
    num_eval: int = 0
    fingerprint: str = ""

    @classmethod
    def of(cls, dataset: data.Dataset) -> DatasetInfo:
        """The description of a data set."""
        return cls(
            name=dataset.name,
            shape=tuple(dataset.shape),
            num_classes=dataset.num_classes,
            levels=dataset.levels,
            label_names=tuple(dataset.label_names),
            num_train=len(dataset.train),
            num_eval=len(dataset.eval),
            fingerprint=dataset.fingerprint,
        )

    def to_json(self) -> str:
        """As text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> DatasetInfo:
        """The description that `to_json` wrote.

        Raises:
          ValueError: the text isn't JSON, or a field is missing, unknown or of another type.
        """
        values = json.loads(text)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        missing = [
            name
            for name, field in fields.items()
            if name not in values and field.default is dataclasses.MISSING
        ]
        if missing or values.keys() - fields.keys():
            unknown = sorted(values.keys() - fields.keys())
            raise ValueError(f"it has no {missing[0]!r}" if missing else f"what is {unknown[0]!r}?")
        for name, value in values.items():
            if not _IS_FIELD[name](value):
                raise ValueError(f"{name!r} is {value!r}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def changes(self, new: DatasetInfo) -> list[str]:
        """In what another data set differs, in words; what isn't known of this one is left out."""
        both_known = self.fingerprint and new.fingerprint
        names = [field.name for field in dataclasses.fields(self)]
        pairs = [
            (name.replace("_", " "), getattr(self, name), getattr(new, name))
            for name in (names if both_known else names[: names.index("num_train")])
        ]
        differing = [pair for pair in pairs if pair[1] != pair[2]]
        if [name for name, _, _ in differing] == ["fingerprint"]:
            return ["as many examples have another content"]
        return [
            f"{name} was {old!r} and is {now!r}"
            for name, old, now in differing
            if name != "fingerprint"
        ]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list) and all(map(holds, values))


# What a field of `DatasetInfo` is in JSON.
_IS_FIELD: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "shape": lambda value: _all(_is_count)(value) and len(value) > 0 and 0 not in value,
    "num_classes": _is_count,
    "levels": lambda value: value is None or (_is_count(value) and value > 1),
    "label_names": _all(lambda value: isinstance(value, str)),
    "num_train": _is_count,
    "num_eval": _is_count,
    "fingerprint": lambda value: isinstance(value, str),
}


def create_state(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, key: jax.Array | None = None
) -> TrainState:
    """The state before the first step; traceable.

    `key` is by default that of `config.seed`; as an argument of a compiled function it lets one
    program serve every seed.

    Raises:
      ValueError: the network can't take data of this shape.
    """
    key = jax.random.key(config.seed) if key is None else key
    init_key, schedule_key, run_key = jax.random.split(key, 3)
    x = jnp.zeros((1, *dataset.shape))
    params = model.init(init_key, x, jnp.zeros((1,)))["params"]
    schedule = config_lib.build_schedule(config, dataset.shape, schedule_key)
    # An update's types, not the weak ones of Python's numbers, or the second step compiles anew.
    schedule = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), schedule)
    learned = config_lib.is_learned(schedule)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=params,
        opt_state=config_lib.build_optimizer(config).init(params),
        schedule=schedule,
        schedule_opt_state=(
            config_lib.build_schedule_optimizer(config).init(schedule) if learned else ()
        ),
        time_sampler_state=time_sampling.get(config.objective.time_sampling).init(),
        key=run_key,
    )


# --- the network as a predictor -----------------------------------------------------------------


def _step_number(t: jax.Array) -> jax.Array:
    """The index itself in discrete time, 1000 t in continuous time; float32."""
    scale = 1.0 if jnp.issubdtype(t.dtype, jnp.integer) else 1000.0
    return scale * t.astype(jnp.float32)


def _by_step(function: Predict) -> Predict:
    return lambda x_t, t: function(x_t, _step_number(t))


# What a network is told, by its `conditioning`: (x, noise level) -> prediction becomes a predictor.
_TOLD: dict[str, Callable[[Predict], Predict]] = {"log_snr": process.by_log_snr, "step": _by_step}


def predictor(
    model: nn.Module,
    params: Any,
    label: jax.Array | None = None,
    train: bool = False,
    rngs: dict[str, jax.Array] | None = None,
    mean_only: bool = False,
) -> Predict:
    """The network as `sample`, `vlb` and `training_loss` take it.

    Told the log-SNR, by `process.by_log_snr`, or if its `conditioning` is "step" the step number:
    the index of a discrete schedule, 1000 t of a continuous one.

    Args:
      model, params: a network of `diffax.models` and its parameters.
      label: (batch,) int32 class labels, or None for the null class.
      train: whether dropout acts; it then needs `rngs`, {"dropout": key}.
      mean_only: leave out the second half of the channels of a network with learned variance.
    """

    def network(x: jax.Array, noise_level: jax.Array) -> jax.Array:
        out = model.apply({"params": params}, x, noise_level, label, train=train, rngs=rngs)
        return out[..., : x.shape[-1]] if mean_only else out

    return _TOLD[getattr(model, "conditioning", "log_snr")](network)
