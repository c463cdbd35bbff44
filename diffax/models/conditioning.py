"""What a network is conditioned on besides the noise level.

The conditions of a batch, `cond`, map a condition's name to a pytree with one row per example. A
`Condition` says which value is its null, and how often training drops it. Guidance compares the
network's prediction under `cond` with that under the null of each.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Cond = Mapping[str, Any]


class Condition(NamedTuple):
    """One thing that a network is conditioned on.

    Attributes:
      null: the value of one example that stands for no condition: a pytree of its structure, or
        the beginning of one, whose leaves broadcast to those of the example.
      dropout: the probability with which training replaces an example's value by `null`. Of one
        that is never dropped the network knows no null, so that guidance keeps it.
      of: batch -> the values of its examples; None for the batch's entry of the condition's name.
    """

    null: Any
    dropout: float = 0.0
    of: Callable[[Mapping[str, Any]], Any] | None = None


def conditions_of(conditions: Mapping[str, Condition], batch: Mapping[str, Any]) -> Cond:
    """The conditions of a batch."""
    return {name: batch[name] if c.of is None else c.of(batch) for name, c in conditions.items()}


def null_of(conditions: Mapping[str, Condition], cond: Cond) -> Cond:
    """The null of each condition that training drops, in the shapes of `cond`; the others as they
    are."""
    return {
        name: _filled(conditions[name].null, value) if conditions[name].dropout else value
        for name, value in cond.items()
    }


def _filled(null: Any, like: Any) -> Any:
    """A null for each row of `like`; a leaf of the null may stand for a whole subtree."""

    def fill(null: Any, rows: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(null, rows.dtype), rows.shape)

    return jax.tree.map(
        lambda leaf, of: jax.tree.map(lambda rows: fill(leaf, rows), of), null, like
    )


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

    def dropped(name: str, nulls: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(masks[name], range(1, rows.ndim)), nulls, rows)

    nulls = null_of(conditions, cond)
    return {
        name: jax.tree.map(functools.partial(dropped, name), nulls[name], value)
        for name, value in cond.items()
    }


def split(cond: Cond) -> tuple[jax.Array | None, dict[str, Any]]:
    """The label, None if there is none, and the other conditions: how a network is given them."""
    return cond.get("label"), {name: value for name, value in cond.items() if name != "label"}


def apply(
    model: nn.Module,
    params: Any,
    x: jax.Array,
    noise_level: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """The network's output for x, (batch, ..., C), at noise levels, (batch,), under conditions.

    The label follows the noise level; every other condition is a keyword of its name.
    """
    label, others = split(cond)
    return model.apply({"params": params}, x, noise_level, label, **others, **options)


def check_takes(network: nn.Module, names: Iterable[str]) -> None:
    """Raises ValueError unless a network takes the conditions of these names, beside the label."""
    parameters = inspect.signature(type(network).__call__).parameters
    for name in names:
        if name != "label" and name not in parameters:
            raise ValueError(
                f"condition.{name} is set, and {type(network).__name__} takes no {name}: its"
                f" __call__ has no parameter {name!r}; choose another model.name"
            )
