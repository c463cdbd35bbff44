"""The two kinds of schedule: `Schedule` (continuous time) and `DiscreteSchedule` (T steps).

Both answer `log_snr(t)`, `alpha(t)`, `sigma(t)`, and both are pytrees, so `jit`, `vmap`, `pmap` and
`grad` work on them. A fixed schedule has no array leaves; a learned one has its parameters. Code
that needs to know which kind it holds reads `schedule.num_steps` (None in continuous time).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffax import arguments
from diffax.schedules.fields import aside, in_float64, pytree, static

# The default ends of every schedule that takes `log_snr_max` and `log_snr_min`.
LOG_SNR_MAX = 10.0
LOG_SNR_MIN = -10.0


def alpha_of(log_snr: jax.Array) -> jax.Array:
    """alpha = sqrt(sigmoid(log_snr)), exact at both ends; finite gradients for every log-SNR."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr))


def sigma_of(log_snr: jax.Array) -> jax.Array:
    """sigma = sqrt(sigmoid(-log_snr)), exact at both ends; finite gradients for every log-SNR."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(-log_snr))


@jax.custom_jvp
def straight_through_clamp(free: jax.Array, held: jax.Array) -> jax.Array:
    """Straight-through: the value of `held`, the gradient of `free`, which `clip` halves at a
    bound."""
    del free
    return held


@straight_through_clamp.defjvp
def _clamp_jvp(primals, tangents):
    return straight_through_clamp(*primals), tangents[0]


def hold_ends(log_snr: jax.Array, t: jax.Array, first: Any, last: Any) -> jax.Array:
    """`log_snr` set to `first` at t = 0 and `last` at t = 1 exactly; its slope untouched."""
    within = jnp.clip(jax.lax.stop_gradient(log_snr), last, first)
    held = jnp.where(t <= 0, first, jnp.where(t >= 1, last, within))
    if arguments.concrete(log_snr) is not None:  # JAX 0.7 would trace it where betas are computed
        return jax.lax.stop_gradient(held)
    return straight_through_clamp(log_snr, held)


def as_float(x: Any) -> jax.Array:
    """`x` as a floating array: floats keep their dtype, integers take JAX's default float."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


class _Levels:
    """What follows from `log_snr(t)` alone, in continuous and in discrete time."""

    def alpha(self, t: jax.Array) -> jax.Array:
        """Signal scale, sqrt(sigmoid(log_snr(t))); shape of `t`."""
        return alpha_of(self.log_snr(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """Noise scale, sqrt(sigmoid(-log_snr(t))); shape of `t`; alpha**2 + sigma**2 = 1."""
        return sigma_of(self.log_snr(t))

    def alpha_bar(self, t: jax.Array) -> jax.Array:
        """alpha(t)**2, the share of the variance that is signal; shape of `t`."""
        return jax.nn.sigmoid(self.log_snr(t))

    def endpoint_mask(self) -> Any:
        """A tree like the schedule, of booleans: which leaves are endpoints (the rest is shape)."""
        return jax.tree.map(lambda _: False, self)


def _within_time(log_snr: Callable) -> Callable:
    @functools.wraps(log_snr)
    def checked(self: Schedule, t: jax.Array) -> jax.Array:
        arguments.check_time(t, None)
        return log_snr(self, t)

    return checked


class Schedule(_Levels):
    """A continuous-time, variance-preserving noise schedule: x_t = alpha(t) x0 + sigma(t) eps.

    A subclass gives `log_snr(t)`, the log of alpha**2 / sigma**2, decreasing in t in [0, 1]; the
    rest follows. Closed forms may override `inverse_log_snr` and `discretize`.
    """

    num_steps: ClassVar[None] = None
    zero_terminal: ClassVar[bool] = False  # meant to be used at zero SNR exactly (t = 1 included)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Has every subclass's `log_snr` refuse times outside [0, 1]."""
        super().__init_subclass__(**kwargs)
        if "log_snr" in vars(cls):
            cls.log_snr = _within_time(cls.log_snr)

    def log_snr(self, t: jax.Array) -> jax.Array:
        """log(alpha**2 / sigma**2) at `t`: float array in [0, 1]; same shape and dtype.

        Raises:
          ValueError: a time outside [0, 1], unless it is traced.
        """
        raise TypeError(f"{type(self).__name__} does not define log_snr(t)")

    def log_snr_and_slope(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """log_snr(t) and its derivative by t (negative), each of the shape of `t`."""
        arguments.check_time(t, None)
        t = as_float(t)
        return jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))

    def inverse_log_snr(self, log_snr: jax.Array) -> jax.Array:
        """The t in [0, 1] at which the schedule has this log-SNR; values beyond its ends give the
        ends.

        By bisection, to float accuracy; differentiable in `log_snr` and in the schedule's
        parameters (implicit function theorem).
        """
        target = as_float(log_snr)
        frozen = jax.lax.stop_gradient(self)
        fixed = jax.lax.stop_gradient(target)

        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            later = frozen.log_snr(middle) > fixed
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        # 64 halvings resolve t = 1e-12 to float32's relative accuracy.
        low, high = jax.lax.fori_loop(0, 64, halve, (jnp.zeros_like(target), jnp.ones_like(target)))
        middle = 0.5 * (low + high)
        t = jnp.where(fixed >= frozen.log_snr(jnp.zeros_like(target)), 0.0, middle)
        t = jnp.where(fixed <= frozen.log_snr(jnp.ones_like(target)), 1.0, t)

        inside = (t > 0) & (t < 1)
        at = jnp.where(inside, t, 0.5)
        _, slope = frozen.log_snr_and_slope(at)
        miss = jnp.where(inside, self.log_snr(at) - jnp.where(inside, target, 0.0), 0.0)
        return t - (miss - jax.lax.stop_gradient(miss)) / slope

    def discretize(self, num_steps: int) -> DiscreteSchedule:
        """The schedule seen at T = `num_steps` times: index i stands for t = (i + 1) / T.

        A fixed schedule is evaluated in float64 and rounded once, since a float32 t is too coarse
        for the betas near an infinite end; a learned one in the dtype of its parameters.
        """
        check_num_steps(num_steps)
        if jax.tree.leaves(self):
            # A learned shape may be so flat that rounding lets it rise.
            levels = jax.lax.cummin(self.log_snr((jnp.arange(num_steps) + 1) / num_steps))
            return from_log_snr_table(levels, self._reaches_zero_snr())
        dtype = jnp.result_type(float)
        with jax.ensure_compile_time_eval():
            with in_float64():
                exact = np.asarray(self.log_snr((jnp.arange(num_steps) + 1) / num_steps))
        return from_log_snr_table(exact, self._reaches_zero_snr(), dtype)

    def map_log_snr(self, change: LogSnrMap) -> Schedule:
        """The schedule whose log-SNR is `change.forward(log_snr(t), log_snr(0), log_snr(1))`."""
        return Mapped(self, change)

    def _reaches_zero_snr(self) -> bool:
        """Whether log_snr(1) is minus infinity; a learned schedule's end is always finite."""
        if jax.tree.leaves(self):
            return self.zero_terminal
        with jax.ensure_compile_time_eval():
            return self.zero_terminal or bool(jnp.isneginf(self.log_snr(1.0)))


@pytree
class DiscreteSchedule(_Levels):
    """T steps of noise: beta_i, and the log-SNR after step i, for i = 0 .. T - 1.

    Index i is paper step i + 1: x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) eps. The log-SNR is
    kept beside the betas since float32 betas cannot give it back without cancellation. Made by
    `from_betas`, `from_log_snr_table` and `Schedule.discretize`.
    """

    betas: jax.Array  # (T,) in (0, 1]
    log_snrs: jax.Array  # (T,), decreasing
    zero_terminal: bool = static(default=False)
    # The log-SNR in float64 on the host, from which other tables are made; None where not known.
    exact: np.ndarray | None = aside()

    @property
    def num_steps(self) -> int:
        """T."""
        return self.betas.shape[-1]

    @property
    def alphas_cumprod(self) -> jax.Array:
        """alpha_bar, the running product of 1 - beta: (T,)."""
        return jax.nn.sigmoid(self.log_snrs)

    def log_snr(self, t: jax.Array) -> jax.Array:
        """log(alpha**2 / sigma**2) at the integer index `t`, any shape, 0 .. T - 1; same shape."""
        return self.log_snrs[self._index(t)]

    def beta(self, t: jax.Array) -> jax.Array:
        """beta at the integer index `t`; same shape."""
        return self.betas[self._index(t)]

    def log_snr_and_slope(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """log_snr(t) and its slope in (index + 1) / T, by central differences; shape of `t`.

        At zero SNR the slope is minus infinity, and so it is of one step alone; in the step before
        zero SNR, a backward difference.
        """
        if self.num_steps == 1:
            return self.log_snr(t), jnp.full_like(self.log_snr(t), -jnp.inf)
        slopes = jnp.gradient(self.log_snrs) * self.num_steps
        if self.zero_terminal and self.num_steps > 2:
            backward = self.log_snrs[-2] - self.log_snrs[-3]
            slopes = slopes.at[-2].set(backward * self.num_steps)
        return self.log_snr(t), slopes[self._index(t)]

    def inverse_log_snr(self, log_snr: jax.Array) -> jax.Array:
        """The index whose log-SNR is nearest to `log_snr` (any shape); int32, same shape."""
        distance = jnp.abs(jnp.asarray(log_snr)[..., None] - self.log_snrs)
        return jnp.argmin(jnp.where(jnp.isnan(distance), 0.0, distance), axis=-1).astype(jnp.int32)

    def _index(self, t: Any) -> jax.Array:
        arguments.check_time(t, self.num_steps)
        t = jnp.asarray(t)
        if not jnp.issubdtype(t.dtype, jnp.integer):
            raise TypeError(
                f"a discrete schedule is indexed by integers 0 .. T - 1, got t of dtype {t.dtype}"
            )
        return t

    def map_log_snr(self, change: LogSnrMap) -> DiscreteSchedule:
        """The same indices with log-SNR `change.forward(log_snrs, log_snrs[0], log_snrs[-1])`."""
        zero_terminal = self.zero_terminal or change.zero_terminal
        table = arguments.concrete(self.log_snrs) if self.exact is None else self.exact
        if table is None:
            table = change.forward(self.log_snrs, self.log_snrs[0], self.log_snrs[-1])
            return from_log_snr_table(table, zero_terminal)
        with jax.ensure_compile_time_eval(), in_float64():
            table = jnp.asarray(table, jnp.float64)
            table = np.asarray(change.forward(table, table[0], table[-1]))
        return from_log_snr_table(table, zero_terminal, self.log_snrs.dtype)


class LogSnrMap:
    """An increasing change of log-SNR values, told the schedule's own ends; see `transforms`."""

    zero_terminal: ClassVar[bool] = False

    def forward(self, log_snr: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
        """The new log-SNR; `first` and `last` are the log-SNR at the clean and the noisy end."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def backward(self, log_snr: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
        """The inverse of `forward` at the same ends."""
        raise TypeError(f"{type(self).__name__} does not define backward")


@pytree
class Mapped(Schedule):
    """A continuous schedule with its log-SNR values changed; made by `Schedule.map_log_snr`."""

    inner: Schedule
    change: LogSnrMap = static()

    @property
    def zero_terminal(self) -> bool:
        """True if either the schedule or the change ends at zero SNR."""
        return self.inner.zero_terminal or self.change.zero_terminal

    def _ends(self) -> jax.Array:
        return self.inner.log_snr(as_float(np.array([0, 1])))  # one call, not two: less to compile

    def log_snr(self, t: jax.Array) -> jax.Array:
        """forward(inner.log_snr(t)); see `Schedule.log_snr`."""
        return self.change.forward(self.inner.log_snr(as_float(t)), *self._ends())

    def inverse_log_snr(self, log_snr: jax.Array) -> jax.Array:
        """inner.inverse_log_snr(backward(log_snr)); the ends, for their log-SNR and beyond."""
        log_snr = as_float(log_snr)
        first, last = self._ends()
        t = self.inner.inverse_log_snr(self.change.backward(log_snr, first, last))
        t = jnp.where(log_snr >= self.change.forward(first, first, last), 0.0, t)
        return jnp.where(log_snr <= self.change.forward(last, first, last), 1.0, t)

    def endpoint_mask(self) -> Any:
        """The inner schedule's mask, in this tree's structure."""
        return dataclasses.replace(self, inner=self.inner.endpoint_mask())


def from_betas(betas: Any) -> DiscreteSchedule:
    """The discrete schedule of these betas: alpha_bar_i = prod_{j <= i} (1 - beta_j).

    Args:
      betas: (T,), each in (0, 1], only the last may be 1. Concrete values are summed in float64 on
        the host, so that the float32 log-SNR is right to its last digit; traced ones in their
        dtype.

    Raises:
      ValueError: not one-dimensional, empty, or a beta outside its range.

    Examples:
      >>> from diffax import schedules
      >>> schedule = schedules.from_betas([0.1, 0.2, 0.5])
      >>> [round(float(a), 2) for a in schedule.alphas_cumprod]
      [0.9, 0.72, 0.36]
    """
    if np.ndim(betas) != 1 or len(betas) == 0:
        raise ValueError(f"betas must have shape (T,) with T >= 1, got shape {np.shape(betas)}")
    if isinstance(betas, jax.core.Tracer):
        log_alpha_bar = jnp.cumsum(jnp.log1p(-betas))
        log_snrs = log_alpha_bar - jnp.log(-jnp.expm1(log_alpha_bar))
        return DiscreteSchedule(betas=betas, log_snrs=log_snrs)
    exact = np.asarray(betas, np.float64)
    wrong = ~(
        (exact > 0) & ((exact < 1) | ((exact == 1) & (np.arange(len(exact)) == len(exact) - 1)))
    )
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"betas[{at}] is {exact[at]:g}; betas lie in (0, 1), and only the last may be 1"
        )
    with np.errstate(divide="ignore"):  # the last beta may be 1: log alpha_bar = -inf
        log_alpha_bar = np.cumsum(np.log1p(-exact))
        log_snrs = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
    dtype = jnp.result_type(float)
    return DiscreteSchedule(
        betas=jnp.asarray(exact, dtype),
        log_snrs=jnp.asarray(log_snrs, dtype),
        zero_terminal=bool(exact[-1] == 1),
        exact=log_snrs,
    )


def from_log_snr_table(
    log_snrs: jax.Array, zero_terminal: bool = False, dtype: Any = None
) -> DiscreteSchedule:
    """The discrete schedule with this log-SNR after each step, (T,), decreasing.

    beta_i = 1 - alpha_bar_i / alpha_bar_{i-1}, from differences of log alpha_bar (no cancellation).
    Concrete values are taken in float64 on the host and rounded once, traced ones in their dtype.
    `zero_terminal` says that the last entry is minus infinity; `dtype` is that of the arrays, by
    default the table's own.
    """
    exact = arguments.concrete(log_snrs)
    if exact is None:
        log_alpha_bar = jax.nn.log_sigmoid(log_snrs)
        before = jnp.concatenate([jnp.zeros_like(log_alpha_bar[:1]), log_alpha_bar[:-1]])
        return DiscreteSchedule(-jnp.expm1(log_alpha_bar - before), log_snrs, zero_terminal)
    dtype = as_float(log_snrs).dtype if dtype is None else dtype
    exact = exact.astype(np.float64)
    log_alpha_bar = -np.logaddexp(0, -exact)
    betas = -np.expm1(np.diff(log_alpha_bar, prepend=0.0))
    arrays = (jnp.asarray(values, dtype) for values in (betas, exact))
    return DiscreteSchedule(*arrays, zero_terminal, exact)


def check_endpoints(log_snr_max: float, log_snr_min: float) -> tuple[float, float]:
    """Both as floats; raises ValueError unless they are finite and log_snr_max > log_snr_min."""
    log_snr_max, log_snr_min = float(log_snr_max), float(log_snr_min)
    if not (
        math.isfinite(log_snr_max) and math.isfinite(log_snr_min) and log_snr_max > log_snr_min
    ):
        raise ValueError(
            f"log_snr_max={log_snr_max:g}, log_snr_min={log_snr_min:g}: need finite values with"
            " log_snr_max > log_snr_min"
        )
    return log_snr_max, log_snr_min


def finite(name: str, value: float) -> float:
    """`value` as a float; raises ValueError, naming it, unless it is finite."""
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name}={value:g}: must be finite")
    return value


def positive(name: str, value: float) -> float:
    """`value` as a float; raises ValueError, naming it, unless it is positive and finite."""
    value = float(value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value:g}: must be positive and finite")
    return value


def check_num_steps(num_steps: int) -> None:
    arguments.whole("num_steps", num_steps, 1, arguments.MOST_STEPS)
