"""Grids: the levels that a sampler visits, each defined on t and on the index, in one function.

A grid gives `num_steps` levels, the noisiest first; after the last the sampler goes to x0. In
continuous time their times lie between `noisy` and `clean`, the ends of the visited range (1 and 0
unless log-SNR is clipped); in discrete time they are indices among T - 1 .. 0. Grids given in
log-SNR keep it exact, though float32 times near an end may not tell two of its levels apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import arguments
from diffax.process import AnySchedule, Predict
from diffax.registry import Registry, unknown
from diffax.samplers.base import Level
from diffax.schedules import DiscreteSchedule, Schedule, alpha_of, sigma_of
from diffax.schedules.from_rate import Rate, read_rate

_RHO = 7.0  # Karras 2022
_BEND = 1.25  # of `angle`


class Range(NamedTuple):
    """What a grid is laid over."""

    schedule: Schedule | DiscreteSchedule
    noisy: jax.Array  # continuous t of the noisy and of the clean end
    clean: jax.Array
    log_snr_noisy: jax.Array  # finite: the visited range, clipped
    log_snr_clean: jax.Array
    lowest: float  # the bounds of a level's log-SNR
    highest: float

    @property
    def num_steps(self) -> int | None:
        """T, or None in continuous time."""
        return self.schedule.num_steps

    def at(self, t: jax.Array) -> Level:
        """The levels at these times or indices."""
        return Level(t, jnp.clip(self.schedule.log_snr(t), self.lowest, self.highest))

    def between(self, share: np.ndarray) -> Level:
        """The levels at these shares of the way in t from the noisy to the clean end."""
        return self.at((1 - share) * self.noisy + share * self.clean)  # keeps a tiny end exact

    def nearest(self, log_snrs: jax.Array) -> Level:
        """The levels of these log-SNRs; in discrete time the nearest indices, moved apart."""
        t = self.schedule.inverse_log_snr(log_snrs)
        return Level(t, log_snrs) if self.num_steps is None else self.at(_distinct(t))

    def at_log_snr(self, log_snrs: jax.Array, to_clean: bool = True) -> Level:
        """The same, but that the first is the noisy end exactly and, where `to_clean`, the last the
        clean end."""
        t = self.schedule.inverse_log_snr(log_snrs)
        if self.num_steps is not None:
            return self.at(_distinct(t.at[0].set(self.num_steps - 1)))
        # The ends exactly, not through the inverse; the noisy one may stand for zero SNR.
        ends = self.at(jnp.stack([self.noisy, self.clean]))
        t, log_snrs = t.at[0].set(self.noisy), log_snrs.at[0].set(ends.log_snr[0])
        if to_clean:
            t, log_snrs = t.at[-1].set(self.clean), log_snrs.at[-1].set(ends.log_snr[1])
        return Level(t, log_snrs)


def trailing(over: Range, n: int) -> Level:
    """t_i = noisy + (i / n)(clean - noisy); index round(T - i T / n) - 1 (Lin 2023).

    n equal intervals from the noisiest time, whose last ends in x0.
    """
    if over.num_steps is None:
        return over.between(np.arange(n) / n)
    total = over.num_steps
    return over.at(jnp.asarray(np.round(total - np.arange(n) * total / n) - 1, jnp.int32))


def leading(over: Range, n: int) -> Level:
    """t_i = noisy + ((i + 1) / n)(clean - noisy); index (n - 1 - i) (T // n) (DDIM's code).

    Ends at the cleanest time and leaves out the noisiest: few steps start from too little noise
    (Lin 2023 shows the harm).
    """
    if over.num_steps is None:
        return over.between((np.arange(n) + 1) / n)
    return over.at(jnp.asarray(np.arange(n)[::-1] * (over.num_steps // n), jnp.int32))


def linspace(over: Range, n: int) -> Level:
    """n equally spaced times, both ends included; indices rounded."""
    share = np.linspace(0.0, 1.0, n)
    if over.num_steps is None:
        return over.between(share)
    return over.at(jnp.asarray(np.round((over.num_steps - 1) * (1 - share)), jnp.int32))


def quadratic(over: Range, n: int) -> Level:
    """t_i = clean + (noisy - clean)(1 - i / n)^2; index round((T - 1)(1 - i / (n - 1))^2).

    Denser towards x0 (Song 2021, DDIM, appendix D.2, whose code stops at 0.8 T: here the grid
    starts at the noisiest time). Indices that round to the same are moved apart by one.
    """
    if over.num_steps is None:
        return over.between(1 - (1 - np.arange(n) / n) ** 2)
    indices = np.round((over.num_steps - 1) * np.linspace(1.0, 0.0, n) ** 2)
    return over.at(_distinct(jnp.asarray(indices, jnp.int32)))


def logsnr(over: Range, n: int) -> Level:
    """n equally spaced log-SNRs, both ends included (Lu 2022); nearest indices in discrete time."""
    share = jnp.linspace(0.0, 1.0, n)
    return over.at_log_snr(over.log_snr_noisy * (1 - share) + over.log_snr_clean * share)


def karras(over: Range, n: int) -> Level:
    """(sigma / alpha)^(1/7) equally spaced, both ends included (Karras 2022, eq. 5, rho = 7)."""
    share = jnp.linspace(0.0, 1.0, n)
    noisy, clean = (
        jnp.exp(-level / (2 * _RHO)) for level in (over.log_snr_noisy, over.log_snr_clean)
    )
    return over.at_log_snr(-2 * _RHO * jnp.log(noisy * (1 - share) + clean * share))


def angle(over: Range, n: int) -> Level:
    """a_i = clean + (noisy - clean)(1 - i / n)^1.25, of the angle a = arctan(sigma / alpha).

    The angle is finite at every end, and goes with t in the cosine schedule: these are nearly
    cosine's uniform levels, somewhat denser towards x0, whatever the schedule.
    """
    noisy, clean = (
        jnp.arctan2(sigma_of(end), alpha_of(end))
        for end in (over.log_snr_noisy, over.log_snr_clean)
    )
    angles = clean + (noisy - clean) * (1 - np.arange(n) / n) ** _BEND
    return over.at_log_snr(-2 * jnp.log(jnp.tan(angles)), to_clean=False)


def _distinct(indices: jax.Array) -> jax.Array:
    """Decreasing indices moved apart, by as little as possible, until they differ."""
    rank = jnp.arange(indices.shape[0])[::-1]  # the least index that leaves room for those below
    raised = jnp.maximum(indices, rank)
    gap = jnp.minimum.accumulate(raised + jnp.arange(indices.shape[0]))
    return (gap - jnp.arange(indices.shape[0])).astype(jnp.int32)


GRIDS: Registry[Callable[[Range, int], Level]] = Registry(
    "grid",
    {
        "uniform": trailing,
        "trailing": trailing,
        "leading": leading,
        "linspace": linspace,
        "quadratic": quadratic,
        "logsnr": logsnr,
        "karras": karras,
        "angle": angle,
    },
)


def register(name: str, grid: Callable[[Range, int], Level]) -> None:
    """Makes a grid reachable as `sample(..., grid=name)`, in configs and on the command line.

    Args:
      grid: grid(over, num_steps) -> the levels, fields of shape (num_steps,), the noisiest first:
        `over.at(times)` or `over.at_log_snr(log_snrs)`.

    Raises:
      ValueError: the name is taken.
    """
    GRIDS.register(name, grid)


def equal_rate(over: Range, rate: Rate, n: int) -> Level:
    """n levels with equal rate between neighbours, both ends included.

    The rate is taken within the visited range; the part of that beyond the rate's own belongs to
    the first and the last step. "Entropic time" (Stancevic 2025) by `rates.entropy`.
    """
    ends = rate.cumulative(jnp.stack([over.log_snr_noisy, over.log_snr_clean]))
    return over.at_log_snr(rate.quantile(jnp.linspace(*ends, n)))


def optimize(
    predict: Predict,
    schedule: AnySchedule,
    x_init: jax.Array,
    num_steps: int,
    sampler: str = "ddim",
    method: str = "dp",
    **options: Any,
) -> Level:
    """Levels for one network, solver and number of steps, as `sample(grid=...)` takes them.

    They bring the solver's samples from `x_init`, (batch, ..., C), near those of many steps from
    the same starts. The noisiest level may lie below the noisy end, where the state hardly changes
    on the way. `grid_search.search` has the other arguments, and gives errors and costs too.

    Args:
      sampler: a deterministic one.
      method: "dp" (dynamic programming, then single levels are moved), "gradient" (through the
        solver), "ays" (a bound on the KL divergence that knows no solver), or a rate of
        `diffax.rates` that is estimated from the network, as "entropy": equal rate per step.

    Raises:
      ValueError: as `grid_search.search`.
    """
    from diffax.samplers import grid_search  # which uses the loop, and that this module

    found = grid_search.search(predict, schedule, x_init, [num_steps], sampler, method, **options)
    return found.found[num_steps].levels


def levels(
    over: Range, grid: str | Rate | Sequence[float] | jax.Array | Level, num_steps: int
) -> Level:
    """The levels of a named grid, of equal rate (of a `Rate` or a file of one, FILE.json), or at
    the given times, checked; fields of shape (steps,).

    Raises:
      ValueError: fewer than 1 step, more than a discrete schedule has, an unknown name, or given
        times that don't decrease strictly or lie outside the schedule; in continuous time
        levels of which two are one in their dtype, unless they are traced.
    """
    if isinstance(grid, str) and grid.endswith(".json"):
        grid = read_rate(grid)
    if isinstance(grid, Rate):
        num_steps = _count(over, num_steps)
        found = equal_rate(over, grid, num_steps) if num_steps > 1 else trailing(over, 1)
    elif isinstance(grid, Level):
        found = grid
    elif not isinstance(grid, str):
        found = over.at(_explicit(over, grid))
    elif grid not in GRIDS:
        raise ValueError(f"{unknown('grid', grid, GRIDS)}, or a list of times")
    else:
        num_steps = _count(over, num_steps)
        # One level is the noisiest in every grid, also in those that otherwise leave it out.
        found = (GRIDS[grid] if num_steps > 1 else trailing)(over, num_steps)
    if over.num_steps is None:  # the range may clip indices to one level
        _check_distinct(found)
    return found


def _check_distinct(found: Level) -> None:
    log_snr = arguments.concrete(found.log_snr)
    if log_snr is None:
        return
    same = np.flatnonzero(~(log_snr[1:] > log_snr[:-1]))
    if len(same):
        raise ValueError(
            f"grid: {len(same)} of its {len(log_snr)} levels are as noisy as the one before, in"
            f" {log_snr.dtype}, the first of them at log-SNR {log_snr[same[0]]:g}: take fewer, or"
            " farther apart"
        )


def _count(over: Range, num_steps: int) -> int:
    most = over.num_steps
    try:
        return arguments.whole("num_steps", num_steps, 1, most or arguments.MOST_STEPS)
    except ValueError as error:
        raise ValueError(str(error) + (", the schedule's own steps" if most else "")) from None


def _explicit(over: Range, given: Sequence[float] | jax.Array) -> jax.Array:
    arguments.check_real("grid", given, bools=False)
    values = arguments.concrete(given)
    if values is None:
        raise ValueError("grid is traced: it decides what is compiled, so give plain numbers")
    if over.num_steps is None:  # as they will be: two times may become one
        values = values.astype(jnp.result_type(float))
    highest = 1.0 if over.num_steps is None else over.num_steps - 1
    whole = over.num_steps is None or np.issubdtype(values.dtype, np.integer)
    inside = values.ndim == 1 and len(values) > 0 and values.min() >= 0 and values.max() <= highest
    if not (inside and whole and np.all(values[1:] < values[:-1])):
        kind = "times" if over.num_steps is None else "indices"
        raise ValueError(
            f"grid={values.tolist()}: explicit {kind} decrease strictly, from at most {highest} to"
            " at least 0, one or more of them"
        )
    return jnp.asarray(values, jnp.result_type(float) if over.num_steps is None else jnp.int32)
