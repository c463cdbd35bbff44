"""The density from which training times are drawn: uniform, stratified or by importance.

A time sampler is three pure functions. It draws u in [0, 1) with weights such that the mean of
weight * f(u) is an unbiased estimate of f's integral over u; `times_of` turns u into the
schedule's t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import arguments
from diffax.process import AnySchedule
from diffax.registry import Registry, require


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


class _History(NamedTuple):
    losses: jax.Array  # (bins, kept): the latest losses of each bin, a ring
    count: jax.Array  # (bins,): how many each bin has seen


def importance(bins: int = 100, kept: int = 10, floor: float = 0.001) -> TimeSampler:
    """Loss-aware: p(u) proportional to sqrt(E[loss^2 | bin of u]) (Nichol & Dhariwal 2021, eq. 18).

    The mean is over the latest `kept` losses of each of `bins` equal bins; drawn uniformly until
    every bin has as many. A share `floor` of the draws stays uniform. Weight 1 / p(u).
    """

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


TIME_SAMPLERS: Registry[Callable[[], TimeSampler]] = Registry(
    "time_sampling", {"uniform": uniform, "stratified": stratified, "importance": importance}
)


def register(name: str, constructor: Callable[[], TimeSampler]) -> None:
    """Makes a time sampler reachable as config.objective.time_sampling; `constructor()` makes it.

    Raises:
      ValueError: the name is taken.
    """
    TIME_SAMPLERS.register(name, constructor)


def get(name: str) -> TimeSampler:
    """The time sampler of that name; ValueError, with the allowed names, for another."""
    made = TIME_SAMPLERS.lookup(name)()
    return require(f"time_sampling={name!r}", made, "TimeSampler", "init", "sample", "update")
