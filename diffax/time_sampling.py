"""The density from which training times are drawn: uniform, stratified, or by importance.

A time sampler is three pure functions. It draws u in [0, 1) with weights such that the mean of
weight * f(u) is an unbiased estimate of f's integral over u; `times_of` turns u into the
schedule's t. A config with `objective.importance_weights=False` leaves the weights out: the density
then weighs the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import arguments
from diffax.process import AnySchedule
from diffax.registry import Registry, check_arguments, require, shared_arguments


class TimeSampler(NamedTuple):
    """init: () -> state. sample: (state, key, batch) -> (u, weight), each (batch,).

    update: (state, u, losses) -> state; the unweighted losses, (batch,), are those at the u it
      drew.
    """

    init: Callable[[], Any]
    sample: Callable[[Any, jax.Array, int], tuple[jax.Array, jax.Array]]
    update: Callable[[Any, jax.Array, jax.Array], Any]


def times_of(schedule: AnySchedule, u: jax.Array) -> jax.Array:
    """u in [0, 1] as a time of the schedule: t = u, or the index floor(u T).

    Both ends are left out in continuous time, by half of u's float resolution: float32 draws reach
    them, where many a schedule's log-SNR is infinite.

    Raises:
      ValueError: u outside [0, 1], unless it is traced.
    """
    arguments.check_within("u", u, 1, "it runs from 0 to 1")
    if schedule.num_steps is None:
        half = jnp.finfo(u.dtype).eps / 2
        return jnp.clip(u, half, 1 - half)
    index = jnp.floor(u * schedule.num_steps).astype(jnp.int32)
    return jnp.minimum(index, schedule.num_steps - 1)  # u T may round up to T


def _keep(state: Any, u: jax.Array, losses: jax.Array) -> Any:
    return state


def uniform() -> TimeSampler:
    """Independent u ~ U[0, 1), weight 1 (Ho 2020, algorithm 1)."""

    def sample(state, key, batch):
        return jax.random.uniform(key, (batch,)), jnp.ones((batch,))

    return TimeSampler(lambda: (), sample, _keep)


def stratified() -> TimeSampler:
    """u_i = (u_0 + i / batch) mod 1, in random order: each uniform, together evenly spread.

    The low-discrepancy sampler of Kingma 2021, section 5 and its supplement; weight 1.
    """

    def sample(state, key, batch):
        offset_key, order_key = jax.random.split(key)
        u = jnp.mod(jax.random.uniform(offset_key) + jnp.arange(batch) / batch, 1.0)
        return jax.random.permutation(order_key, u), jnp.ones((batch,))

    return TimeSampler(lambda: (), sample, _keep)


def _check_share(name: str, value: float) -> None:
    arguments.number(name, value, lambda v: 0 < v <= 1, "must be above 0 and at most 1")


class _History(NamedTuple):
    losses: jax.Array  # (bins, kept): the latest losses of each bin, a ring
    count: jax.Array  # (bins,): how many each bin has seen


def importance(bins: int = 100, kept: int = 10, floor: float = 0.001) -> TimeSampler:
    """Loss-aware: p(u) proportional to sqrt(E[loss^2 | bin of u]) (Nichol & Dhariwal 2021, eq. 18).

    The mean is over the latest `kept` losses of each of `bins` equal bins; drawn uniformly until
    every bin has as many. Weight 1 / p(u).

    Args:
      bins: of u.
      kept: losses of each bin that are remembered.
      floor: the share of the draws that stays uniform, above 0.
    """
    bins, kept = (arguments.whole(*given, 1, 65_536) for given in (("bins", bins), ("kept", kept)))
    _check_share("floor", floor)

    def init():
        return _History(jnp.zeros((bins, kept)), jnp.zeros((bins,), jnp.int32))

    def density(state):
        size = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
        learnt = size / jnp.maximum(jnp.sum(size), 1e-30)
        ready = jnp.all(state.count >= kept) & (jnp.sum(size) > 0)
        return jnp.where(ready, (1 - floor) * learnt + floor / bins, 1 / bins)

    def sample(state, key, batch):
        bin_key, within_key = jax.random.split(key)
        p = density(state)
        chosen = jax.random.categorical(bin_key, jnp.log(p), shape=(batch,))
        u = (chosen + jax.random.uniform(within_key, (batch,))) / bins
        return u, 1 / (bins * p[chosen])

    def update(state, u, losses):
        chosen = jnp.clip(jnp.floor(u * bins).astype(jnp.int32), 0, bins - 1)
        # the rank of each loss among the batch's losses of its bin, so that none overwrites another
        same = chosen[:, None] == chosen[None, :]
        rank = jnp.sum(jnp.tril(same, -1), axis=1)
        # a ring holds the first `kept` of them, the rest falls outside and is dropped
        slot = jnp.where(rank < kept, (state.count[chosen] + rank) % kept, kept)
        return _History(
            state.losses.at[chosen, slot].set(losses, mode="drop"), state.count.at[chosen].add(1)
        )

    return TimeSampler(init, sample, update)


def logit_normal(location: float = 0.0, scale: float = 1.0, floor: float = 0.01) -> TimeSampler:
    """logit(u) ~ N(location, scale^2), of a share 1 - floor of the draws; the others are uniform.

    Flow matching's training times (Esser 2024, eq. 19, who have no uniform share and no importance
    weights: their density weighs the loss). Weight 1 / p(u), at most 1 / floor. Under
    `rectified_flow` the log-SNR is then N(-2 location, (2 scale)^2).

    Args:
      location: above 0 for more noise.
      scale: of the normal density, above 0.
      floor: the share of uniform draws, which bounds the weights.
    """
    arguments.number("location", location, math.isfinite, "must be finite")
    arguments.number("scale", scale, lambda value: 0 < value < math.inf, "must be positive")
    _check_share("floor", floor)

    def sample(state, key, batch):
        keys = jax.random.split(key, 3)
        drawn = jax.nn.sigmoid(location + scale * jax.random.normal(keys[0], (batch,)))
        is_uniform = jax.random.bernoulli(keys[1], floor, (batch,))
        u = jnp.where(is_uniform, jax.random.uniform(keys[2], (batch,)), drawn)
        u = jnp.clip(u, 1e-7, 1 - 1e-7)  # beyond, the density is 0 in float32
        z = (jax.scipy.special.logit(u) - location) / scale
        density = jax.scipy.stats.norm.pdf(z) / (scale * u * (1 - u))
        return u, 1 / ((1 - floor) * density + floor)

    return TimeSampler(lambda: (), sample, _keep)


TIME_SAMPLERS: Registry[Callable[..., TimeSampler]] = Registry(
    "time_sampling",
    {
        "uniform": uniform,
        "stratified": stratified,
        "importance": importance,
        "logit_normal": logit_normal,
    },
)


def register(name: str, constructor: Callable[..., TimeSampler]) -> None:
    """Makes a time sampler reachable as config.objective.time_sampling.

    Args:
      constructor: constructor(**options) -> `TimeSampler`; its options, numbers, words or tuples,
        become keys of config.objective.

    Raises:
      ValueError: the name is taken, or the type of an option isn't known or is another one than
        that of another time sampler's option of the same name.
    """
    shared_arguments("time_sampling", {**TIME_SAMPLERS, name: constructor})
    TIME_SAMPLERS.register(name, constructor)


def key_types() -> dict[str, type]:
    """The options of all time samplers that are keys of a config, with their types."""
    return shared_arguments("time_sampling", TIME_SAMPLERS)


def get(name: str, **options: Any) -> TimeSampler:
    """The time sampler of that name, built with its options.

    Raises:
      ValueError: an unknown name, or an option that it does not take; lists the allowed ones.
    """
    constructor = TIME_SAMPLERS.lookup(name)
    check_arguments(f"time_sampling={name!r}", constructor, options)
    made = constructor(**options)
    return require(f"time_sampling={name!r}", made, "TimeSampler", "init", "sample", "update")
