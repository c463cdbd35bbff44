"""What a network is conditioned on besides the noise level.

The conditions of a batch, `cond`, map a condition's name to an array with one row per example. A
`Condition` says which value is its null, and how often training drops it. Guidance compares the
network's prediction under `cond` with that under the null of each.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Cond = Mapping[str, jax.Array]


class Condition(NamedTuple):
    """One thing that a network is conditioned on.

    Attributes:
      null: the value of one example, or one that broadcasts to it, that stands for no condition.
      dropout: the probability with which training replaces an example's value by `null`.
    """

    null: Any
    dropout: float = 0.0


def conditions_of(conditions: Mapping[str, Condition], batch: Mapping[str, Any]) -> Cond:
    """The entries of a batch that are conditions."""
    return {name: batch[name] for name in conditions}


def null_of(conditions: Mapping[str, Condition], cond: Cond) -> Cond:
    """The null of each condition, in the shapes of `cond`."""
    return {
        name: jnp.broadcast_to(jnp.asarray(conditions[name].null, values.dtype), values.shape)
        for name, values in cond.items()
    }


def dropped(conditions: Mapping[str, Condition], key: jax.Array, num: int) -> Mapping[str, Any]:
    """For each condition a mask, (num,) booleans: where its null takes its place in training.

    The first condition is masked by `key` itself, each further one by a key folded from it.
    """
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, len(conditions)))]
    return {
        name: jax.random.bernoulli(own, condition.dropout, (num,))
        for own, (name, condition) in zip(keys, conditions.items())
    }


def drop(conditions: Mapping[str, Condition], cond: Cond, masks: Mapping[str, Any]) -> Cond:
    """The conditions, with the null of each where its mask of `dropped` says so."""
    nulls = null_of(conditions, cond)
    return {
        name: jnp.where(jnp.expand_dims(masks[name], range(1, values.ndim)), nulls[name], values)
        for name, values in cond.items()
    }


def apply(
    model: nn.Module,
    params: Any,
    x: jax.Array,
    noise_level: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """The network's output for x, (batch, ..., C), at noise levels, (batch,), under conditions.

    A network with the attribute `takes_cond` is given all conditions; another one the label alone,
    None if there is none, and the latent of a method that draws one.
    """
    given = cond if getattr(model, "takes_cond", False) else cond.get("label")
    if "latent" in cond and given is not cond:
        options["latent"] = cond["latent"]
    return model.apply({"params": params}, x, noise_level, given, **options)
