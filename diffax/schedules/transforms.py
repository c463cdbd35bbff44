"""Transforms: schedule -> schedule, for any schedule, fixed or learned."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffax.schedules.base import (
    DiscreteSchedule,
    LogSnrMap,
    Schedule,
    alpha_of,
    as_float,
    check_endpoints,
    hold_ends,
    positive,
    sigma_of,
)
from diffax.schedules.fields import in_float64, number, pytree, static

AnySchedule = Schedule | DiscreteSchedule


@pytree
class Truncated(Schedule):
    """The part of `inner` between two of its log-SNR values; made by `with_endpoints`."""

    inner: Schedule
    log_snr_max: float = number()
    log_snr_min: float = number()

    def _span(self):
        ends = jnp.asarray([self.log_snr_max, self.log_snr_min], jnp.result_type(float))
        return self.inner.inverse_log_snr(ends)

    def log_snr(self, t):
        """inner.log_snr(t_hi + t (t_lo - t_hi)), held within the endpoints against rounding."""
        t = as_float(t)
        first, last = self._span().astype(t.dtype)
        inside = self.inner.log_snr(first * (1 - t) + last * t)
        return hold_ends(inside, t, self.log_snr_max, self.log_snr_min)

    def inverse_log_snr(self, log_snr):
        """(inner.inverse_log_snr(log_snr) - t_hi) / (t_lo - t_hi)."""
        t = self.inner.inverse_log_snr(log_snr)
        first, last = self._span().astype(t.dtype)
        return jnp.clip((t - first) / (last - first), 0.0, 1.0)

    def endpoint_mask(self):
        """The inner schedule's mask, in this tree's structure."""
        return Truncated(self.inner.endpoint_mask(), self.log_snr_max, self.log_snr_min)


@pytree
class Stretch(LogSnrMap):
    """Affine: the schedule's own ends go to the given ones."""

    log_snr_max: float = number()
    log_snr_min: float = number()

    def forward(self, log_snr, first, last):
        """log_snr_min + (log_snr - last) (log_snr_max - log_snr_min) / (first - last)."""
        share = (log_snr - last) / (first - last)
        return self.log_snr_max * share + self.log_snr_min * (1 - share)

    def backward(self, log_snr, first, last):
        """The inverse affine map."""
        share = (log_snr - self.log_snr_min) / (self.log_snr_max - self.log_snr_min)
        return first * share + last * (1 - share)


@pytree
class Shift(LogSnrMap):
    """log_snr + offset."""

    offset: float = number()

    def forward(self, log_snr, first, last):
        """log_snr + offset."""
        return log_snr + self.offset

    def backward(self, log_snr, first, last):
        """log_snr - offset."""
        return log_snr - self.offset


@pytree
class ZeroTerminalSnr(LogSnrMap):
    """alpha' = k (alpha - alpha_last), k = alpha_first / (alpha_first - alpha_last) (Lin 2023,
    alg. 1).

    1 - alpha is carried beside alpha as d = sigma^2 / (1 + alpha), so that the clean end keeps its
    accuracy in float32.
    """

    zero_terminal: ClassVar[bool] = True

    def forward(self, log_snr, first, last):
        """The log-SNR of alpha'."""
        gain = alpha_of(first) / (alpha_of(first) - alpha_of(last))
        alpha = gain * (alpha_of(log_snr) - alpha_of(last))
        missing = _one_minus_alpha(first) + gain * (
            _one_minus_alpha(log_snr) - _one_minus_alpha(first)
        )
        return _log_snr_of(alpha, missing)

    def backward(self, log_snr, first, last):
        """The log-SNR of alpha = alpha_last + alpha' / k."""
        gain = alpha_of(first) / (alpha_of(first) - alpha_of(last))
        alpha = alpha_of(last) + alpha_of(log_snr) / gain
        missing = (
            _one_minus_alpha(first) + (_one_minus_alpha(log_snr) - _one_minus_alpha(first)) / gain
        )
        return _log_snr_of(alpha, missing)


def _one_minus_alpha(log_snr):
    return sigma_of(log_snr) ** 2 / (1 + alpha_of(log_snr))


def _log_snr_of(alpha, one_minus_alpha):
    return 2 * jnp.log(alpha) - jnp.log(one_minus_alpha) - jnp.log1p(alpha)


def with_endpoints(
    schedule: AnySchedule, log_snr_max: float, log_snr_min: float, how: str = "truncate"
) -> AnySchedule:
    """`schedule` with log_snr(0) = `log_snr_max` and log_snr(1) = `log_snr_min`.

    how="truncate" keeps the part of the schedule between the two values, s(t_hi + t (t_lo -
    t_hi)), so that the shape within the range is its own; the values must lie within its range.
    how="stretch" maps the log-SNR affinely, for schedules whose own ends are finite.

    Raises:
      ValueError: an unknown `how`, ends out of order, beyond the schedule's range (truncate) or an
        infinite end of its own (stretch); truncation of a discrete schedule.

    Examples:
      >>> from diffax import schedules
      >>> bounded = schedules.with_endpoints(schedules.get("cosine"), 8.0, -8.0)
      >>> print(f"{bounded.log_snr(0.0):.1f} {bounded.log_snr(1.0):.1f}")
      8.0 -8.0
    """
    log_snr_max, log_snr_min = check_endpoints(log_snr_max, log_snr_min)
    if how not in _HOW:
        raise ValueError(f"how={how!r}: allowed are {', '.join(sorted(_HOW))}")
    return _HOW[how](schedule, log_snr_max, log_snr_min)


def _truncate(schedule, log_snr_max, log_snr_min):
    if schedule.num_steps is not None:
        raise ValueError(
            "with_endpoints(how='truncate') needs a continuous schedule: apply it before"
            " discretize, or take how='stretch'"
        )
    first, last = concrete_ends(schedule) or (math.inf, -math.inf)  # traced: nothing to check
    # one part in 1e5: a schedule whose own end is the one asked for passes despite rounding
    slack = 1e-5 * max(1.0, abs(log_snr_max), abs(log_snr_min))
    if log_snr_max > first + slack or log_snr_min < last - slack:
        raise ValueError(
            f"log_snr_max={log_snr_max:g}, log_snr_min={log_snr_min:g}: truncation stays within the"
            f" schedule's own range, {first:g} to {last:g}; how='stretch' goes beyond it"
        )
    return Truncated(schedule, log_snr_max, log_snr_min)


def _stretch(schedule, log_snr_max, log_snr_min):
    require_finite_ends(schedule, "with_endpoints(how='stretch')")
    return schedule.map_log_snr(Stretch(log_snr_max, log_snr_min))


_HOW: dict[str, Callable] = {"truncate": _truncate, "stretch": _stretch}


def ends_of(schedule: AnySchedule) -> tuple[jax.Array, jax.Array]:
    """The log-SNR at the clean and at the noisy end, as arrays; traced where the schedule is."""
    if schedule.num_steps is None:
        return schedule.log_snr(0.0), schedule.log_snr(1.0)
    return schedule.log_snrs[0], schedule.log_snrs[-1]


def is_learned(schedule: AnySchedule) -> bool:
    """Whether a schedule has parameters. The arrays of a discrete one are a table, not those."""
    return schedule.num_steps is None and bool(jax.tree.leaves(schedule))


def effective(schedule: AnySchedule, num_steps: int) -> AnySchedule:
    """The schedule by which one trains, samples and bounds the likelihood.

    With `num_steps` it is the T levels of a continuous schedule as it is now, whose parameters may
    go on changing; with 0, and of a discrete schedule, it is the schedule itself.
    """
    if num_steps == 0 or schedule.num_steps is not None:
        return schedule
    return schedule.discretize(num_steps)


def concrete_ends(schedule: AnySchedule) -> tuple[float, float] | None:
    """`ends_of` as numbers, for checks at the start; None where the schedule is being traced."""
    with jax.ensure_compile_time_eval():
        first, last = ends_of(schedule)
    if isinstance(first, jax.core.Tracer) or isinstance(last, jax.core.Tracer):
        return None
    return float(first), float(last)


def require_finite_ends(schedule: AnySchedule, purpose: str) -> None:
    """Raises ValueError, naming `purpose` and the remedy, if the log-SNR is infinite at an end."""
    ends = concrete_ends(schedule)
    if ends is not None and not all(map(math.isfinite, ends)):
        raise ValueError(
            f"{purpose} needs finite log-SNR at both ends, and this schedule's are {ends[0]:g} and"
            f" {ends[1]:g}: bound it by diffax.schedules.with_endpoints(schedule, log_snr_max,"
            " log_snr_min)"
        )


def zero_terminal_snr(schedule: AnySchedule) -> AnySchedule:
    """`schedule` rescaled to end at zero SNR exactly, its start unchanged (Lin 2023, algorithm 1).

    sqrt(alpha_bar) is shifted so that its last value is 0, then scaled so that its first is
    unchanged; of a discrete schedule exactly their rescaling. eps-prediction is undefined at zero
    SNR: train and sample with v or x0 prediction.

    Examples:
      >>> from diffax import schedules
      >>> ddpm = schedules.get("linear").discretize(1000)
      >>> print(f"{ddpm.alpha(999):.4f} {schedules.zero_terminal_snr(ddpm).alpha(999):.4f}")
      0.0064 0.0000
    """
    return schedule.map_log_snr(ZeroTerminalSnr())


def input_scaled(schedule: AnySchedule, b: float) -> AnySchedule:
    """The schedule of x_t = alpha b x0 + sigma eps renormalised to unit variance (Chen 2023, sec.
    2.3).

    For unit-variance x0, dividing by sqrt(alpha^2 b^2 + sigma^2) makes it a variance-preserving
    process of x0 itself, with log_snr + 2 log b. `b` > 0; below 1 it adds noise, which larger
    images need.
    """
    return schedule.map_log_snr(Shift(2 * math.log(positive("b", b))))


def shifted(schedule: AnySchedule, resolution: float, base_resolution: float) -> AnySchedule:
    """log_snr + 2 log(base_resolution / resolution) (Hoogeboom 2023, section 3.1).

    Gives images of size `resolution` the noise, seen at `base_resolution`, that the schedule was
    made for. Both in pixels along a side, positive.

    Examples:
      >>> from diffax import schedules
      >>> flow = schedules.get("rectified_flow")
      >>> print(f"{flow.log_snr(0.5):.2f} {schedules.shifted(flow, 64, 32).log_snr(0.5):.2f}")
      0.00 -1.39
    """
    resolution = positive("resolution", resolution)
    base_resolution = positive("base_resolution", base_resolution)
    return schedule.map_log_snr(Shift(2 * math.log(base_resolution / resolution)))


@pytree
class Table(Schedule):
    """Log-SNR at equally spaced t, linear in between; made by `frozen` and `from_json`."""

    log_snrs: tuple[float, ...] = static()

    def _knots(self, dtype):
        values = jnp.asarray(self.log_snrs, dtype)
        return jnp.linspace(0.0, 1.0, len(self.log_snrs), dtype=dtype), values

    def log_snr(self, t):
        """Linear interpolation of the table."""
        t = as_float(t)
        knots, values = self._knots(t.dtype)
        return jnp.interp(t, knots, values)

    def inverse_log_snr(self, log_snr):
        """Linear interpolation of the inverse table: exact."""
        log_snr = as_float(log_snr)
        knots, values = self._knots(log_snr.dtype)
        return jnp.interp(log_snr, values[::-1], knots[::-1])

    def to_json(self) -> str:
        """The table as text; `from_json` reads it back to the same schedule."""
        return json.dumps({"format": "diffax.schedule.table", "log_snr": list(self.log_snrs)})


def frozen(schedule: Schedule, num_points: int = 1025) -> Table:
    """A (learned) schedule as a fixed table: its log-SNR at `num_points` times, linear in between.

    The table has no array leaves, so it is fixed; it saves with `to_json` and loads with
    `from_json`.

    Raises:
      ValueError: a discrete schedule, an infinite end, a log-SNR that doesn't decrease, or fewer
        than two points. A traced schedule can't be frozen: call it outside jit.
    """
    if schedule.num_steps is not None:
        raise ValueError("frozen needs a continuous schedule; a discrete one is its own table")
    if num_points < 2:
        raise ValueError(f"num_points={num_points}: a table needs at least 2")
    with in_float64():  # where float32 is too coarse for a flat shape to fall
        values = np.asarray(schedule.log_snr(jnp.linspace(0.0, 1.0, num_points)))
    return _table(_strictly(values).tolist())


def _strictly(values: np.ndarray) -> np.ndarray:
    """Values that decrease but for rounding, made to decrease by as little as float64 can."""
    lowest, scale = np.minimum.accumulate(values), max(1.0, np.max(np.abs(values)))
    if np.all(np.diff(values) < 0) or not np.max(values - lowest) < 1e-6 * scale:
        return values  # the latter is no rounding: `_table` refuses it
    unit = 2 * np.spacing(scale) * np.arange(len(values))
    return np.minimum.accumulate(lowest + unit) - unit


def from_json(text: str) -> Table:
    """The schedule that `Table.to_json` wrote; ValueError if the text isn't one."""
    try:
        content = json.loads(text)
        values = [float(value) for value in content["log_snr"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            'not a saved schedule: need JSON of the form {"log_snr": [number, ...]}'
            f" ({type(error).__name__}: {error})"
        ) from None
    return _table(values)


def _table(values: list[float]) -> Table:
    array = np.asarray(values)
    if len(array) < 2 or not np.all(np.isfinite(array)):
        raise ValueError(
            "a schedule's table needs at least two finite log-SNR values; give infinite ends a"
            " bound by with_endpoints"
        )
    if not np.all(np.diff(array) < 0):
        raise ValueError("a schedule's table must decrease strictly from t = 0 to t = 1")
    return Table(tuple(values))
