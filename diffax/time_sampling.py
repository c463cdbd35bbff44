"""The density of training times: uniform, stratified, by importance, or by a rate of log-SNR.

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
import numpy as np

from diffax import arguments, schedules
from diffax.process import AnySchedule
from diffax.registry import Constructors, require
from diffax.schedules.from_rate import Rate, make_rate, read_rate


class TimeSampler(NamedTuple):
    """The density of training times, as pure functions.

    Attributes:
      init: () -> state.
      sample: (state, key, batch) -> (u, weight), each (batch,).
      update: (state, u, losses) -> state; the unweighted losses, (batch,), are those at the u it
        drew.
      along: (state, schedule) -> state, told the schedule of the times that are drawn next.
      by_level: whether `update` takes, in place of u and the loss, the log-SNR and the mean squared
        error of eps there.
      curve: state -> {"log_snr": list, "density": list}, of the times that it draws; {} for none.
    """

    init: Callable[[], Any]
    sample: Callable[[Any, jax.Array, int], tuple[jax.Array, jax.Array]]
    update: Callable[[Any, jax.Array, jax.Array], Any]
    along: Callable[[Any, AnySchedule], Any] = lambda state, schedule: state
    by_level: bool = False
    curve: Callable[[Any], dict[str, list[float]]] = lambda state: {}


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
        return _evenly(key, batch), jnp.ones((batch,))

    return TimeSampler(lambda: (), sample, _keep)


def _evenly(key: jax.Array, batch: int) -> jax.Array:
    offset_key, order_key = jax.random.split(key)
    u = jnp.mod(jax.random.uniform(offset_key) + jnp.arange(batch) / batch, 1.0)
    return jax.random.permutation(order_key, u)


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

    Flow matching's training times (Esser 2024, who have no uniform share and no importance
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


# --- by a rate of log-SNR -----------------------------------------------------------------------

# The edges of the cells of u in each of which the density is constant: narrow at both ends, where
# the log-SNR of most schedules is steep.
_EDGES = ((1 - np.cos(np.linspace(0, np.pi, 257))) / 2).astype(np.float32)
_REACH = 15.0  # the bins of log-SNR lie between -15 and 15; beyond is the uniform share alone
_BINS = 60
_BOUNDS = np.linspace(-_REACH, _REACH, _BINS + 1, dtype=np.float32)
_MIDDLE = 0.5 * (_BOUNDS[1:] + _BOUNDS[:-1])


class OnlineRate(NamedTuple):
    """A decayed histogram of the error of eps over log-SNR, and where the schedule lies on it."""

    levels: jax.Array  # (cells + 1,): the log-SNR at _EDGES
    total: jax.Array  # (_BINS,): decayed sum of the errors
    count: jax.Array  # (_BINS,): decayed number of them


def _errors(state: OnlineRate) -> jax.Array:
    """The mean error in each bin; see `rate`."""
    error = (state.total + jax.nn.sigmoid(_MIDDLE)) / (state.count + 1)
    # In sixteenths of an octave: a rounding in the losses moves no draw, so that runs on other
    # devices stay together.
    return jnp.exp2(jnp.minimum(jnp.round(16 * jnp.log2(error)) / 16, 0))


def learned_rate(state: OnlineRate) -> Rate:
    """The rate that a run's histogram has come to, ungated: of its `state.time_sampler_state`."""
    return make_rate(_MIDDLE, jax.device_get(_errors(state)))


def rate(
    decay: float = 0.995, floor: float = 0.05, gate: float = 0.0, path: str = "", like: str = ""
) -> TimeSampler:
    """Equal rate per draw: the density of log-SNR is proportional to e(l), the mean squared error
    of eps, as the training's own losses have it so far.

    e(l) is the entropy rate (`rates.entropy`) once the network is good. It is a histogram of 60
    bins from -15 to 15, in which older errors count less; a bin that has seen nothing has the error
    sigmoid(l) of standard normal data, and none has more than 1, which predicting 0 comes to. The
    density is constant in each of 256 cells of u, whose masses are the rate's between their levels;
    the draws are stratified. Weight 1 / p(u), at most 1 / floor: the objective stays what the
    weighting says.

    InfoNoise (Raya 2026, 2602.18647) has no importance weights: it draws at p(l) proportional to
    e(l) g(l) / w(l), w the loss's weight on |x0 - x0_hat|^2, so that p w is the gated rate. With
    prediction="x0", weighting="simple" and importance_weights=False, where w is 1, that is what
    this does. Its gate g = sigma^3 / (sigma^3 + c^3), sigma in units of alpha, takes the draws from
    the low noise where e stays high though little is to be learned. (Seen in another's
    implementation, not in the paper. Stancevic 2025 has the rate as a sampling grid alone.)

    Args:
      decay: of the histogram, by training step.
      floor: the share of uniform draws, above 0.
      gate: c, 0.2 in InfoNoise's experiments off images; 0: no gate.
      path: of a file with a rate's JSON (`Rate.to_json`), which stands in place of the histogram.
      like: a schedule's name, in place of the histogram: the log-SNRs are drawn as that schedule's
        uniform times draw them. With `importance_weights=False` and floor f the loss is that of
        training on this schedule, in a share 1 - f, and on one's own, in a share f.
    """
    arguments.number("decay", decay, lambda value: 0 < value < 1, "must be above 0 and below 1")
    arguments.number("gate", gate, lambda value: 0 <= value < math.inf, "must be at least 0")
    _check_share("floor", floor)
    if path and like:
        raise ValueError(f"path={path!r} and like={like!r}: give one of them")
    below_of = read_rate(path).cumulative if path else _below_of(like) if like else None
    width = np.diff(_EDGES)
    # Of each bin.
    open_share = jax.nn.sigmoid(-3 * (0.5 * _MIDDLE + math.log(gate))) if gate else 1.0

    def init():
        return OnlineRate(jnp.asarray(10 - 20 * _EDGES), jnp.zeros(_BINS), jnp.zeros(_BINS))

    def along(state, schedule):
        return state._replace(levels=jnp.clip(_levels_of(schedule), -_REACH, _REACH))

    def masses(state):
        """The probability of each cell of u."""
        if below_of is not None:
            below = below_of(state.levels)
        else:
            area = jnp.cumsum(_errors(state) * open_share)
            below = jnp.interp(state.levels, _BOUNDS, jnp.concatenate([jnp.zeros(1), area]))
        mass = jnp.maximum(below[:-1] - below[1:], 0)
        return (1 - floor) * mass / jnp.maximum(jnp.sum(mass), 1e-30) + floor * width

    def sample(state, key, batch):
        p = masses(state)
        upper = jnp.cumsum(p)
        v = _evenly(key, batch) * upper[-1]
        cell = jnp.sum(upper[:-1] <= v[:, None], axis=1)  # faster than a search, for so few
        within = jnp.clip(1 - (upper[cell] - v) / p[cell], 0, 1)
        weight = jnp.asarray(width)[cell] / p[cell]
        return jnp.asarray(_EDGES)[cell] + within * jnp.asarray(width)[cell], upper[-1] * weight

    def update(state, log_snr, errors):
        place = (log_snr + _REACH) * (_BINS / (2 * _REACH))
        inside = (place >= 0) & (place < _BINS)
        bin = jnp.where(inside, place, _BINS).astype(jnp.int32)
        total = (decay * state.total).at[bin].add(errors, mode="drop")
        count = (decay * state.count).at[bin].add(1.0, mode="drop")
        return OnlineRate(state.levels, total, count)

    def curve(state):
        p, falls = masses(state), state.levels[:-1] - state.levels[1:]
        middle = 0.5 * (state.levels[:-1] + state.levels[1:])
        seen = falls > 1e-6
        return {
            "log_snr": middle[seen].tolist(),
            "density": (p[seen] / falls[seen]).tolist(),
        }

    keep = update if below_of is None else _keep
    return TimeSampler(init, sample, keep, along, by_level=True, curve=curve)


def _below_of(name: str) -> Callable[[jax.Array], jax.Array]:
    """Log-SNR -> the share of a named schedule's times that are noisier."""
    schedule = schedules.get(name)
    if schedules.is_learned(schedule):
        raise ValueError(f"like={name!r} has parameters, which would be untrained ones")
    return lambda log_snr: 1 - schedule.inverse_log_snr(log_snr)


def _levels_of(schedule: AnySchedule) -> jax.Array:
    """The log-SNR at the edges of the cells of u."""
    u = jnp.asarray(_EDGES)
    if schedule.num_steps is None:
        return schedule.log_snr(times_of(schedule, u))
    index = jnp.arange(schedule.num_steps) + 0.5
    return jnp.interp(u * schedule.num_steps, index, jnp.clip(schedule.log_snrs, -_REACH, _REACH))


TIME_SAMPLERS: Constructors[TimeSampler] = Constructors(
    "time_sampling",
    {
        "uniform": uniform,
        "stratified": stratified,
        "importance": importance,
        "logit_normal": logit_normal,
        "rate": rate,
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
    TIME_SAMPLERS.register(name, constructor)


def get(name: str, **options: Any) -> TimeSampler:
    """The time sampler of that name, built with its options.

    Raises:
      ValueError: an unknown name, or an option that it does not take; lists the allowed ones.

    Examples:
      >>> import jax
      >>> from diffax import time_sampling
      >>> times = time_sampling.get("stratified")
      >>> u, weight = times.sample(times.init(), jax.random.key(0), 4)
      >>> sorted((u * 4).astype(int).tolist())  # one in each quarter
      [0, 1, 2, 3]
    """
    made = TIME_SAMPLERS.build(name, **options)
    return require(f"time_sampling={name!r}", made, "TimeSampler", "init", "sample", "update")
