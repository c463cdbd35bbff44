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
from diffax import process, time_sampling
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
    """What a network, a sampler and a likelihood must know of a `diffax.data.Dataset`."""

    name: str
    shape: tuple[int, ...]
    num_classes: int
    levels: int | None
    label_names: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Any) -> DatasetInfo:
        """The description of a `diffax.data.Dataset`."""
        values = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()})

    def to_json(self) -> str:
        """As text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> DatasetInfo:
        """The description that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


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

    Told the log-SNR, by `process.by_log_snr`, or with conditioning="step" the step number: the
    index of a discrete schedule, 1000 t of a continuous one.

    Args:
      model, params: a network of `diffax.models` and its parameters.
      label: (batch,) int32 class labels, or None for the null class.
      train: whether dropout acts; it then needs `rngs`, {"dropout": key}.
      mean_only: leave out the second half of the channels of a network with learned variance.
    """

    def network(x: jax.Array, noise_level: jax.Array) -> jax.Array:
        out = model.apply({"params": params}, x, noise_level, label, train=train, rngs=rngs)
        return out[..., : x.shape[-1]] if mean_only else out

    return _TOLD[model.conditioning](network)
