"""Rates, positive functions of log-SNR, and the schedules that spend equal rate per unit of t.

A `Rate` is linear between its knots, so that its integral and the inverse of that are closed forms.
`diffax.rates` makes them: from data, from a network, from a schedule.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import arguments
from diffax.schedules.base import (
    LOG_SNR_MAX,
    LOG_SNR_MIN,
    Schedule,
    as_float,
    check_endpoints,
    hold_ends,
)
from diffax.schedules.fields import pytree, static


class _Pieces(NamedTuple):
    """A rate between its knots, from the clean end on: (K,), and (K - 1,) for `slope`."""

    top: Any  # log-SNR, falling
    value: Any
    slope: Any  # of the value as the log-SNR falls
    before: Any  # the share of the whole that lies above a knot, from 0 to 1
    total: Any

    @classmethod
    def of(cls, top: Any, value: Any, xp: Any) -> _Pieces:
        width = top[:-1] - top[1:]
        area = xp.cumsum(0.5 * width * (value[:-1] + value[1:]))
        before = xp.concatenate([xp.zeros_like(area[:1]), area]) / area[-1]
        return cls(top, value, (value[1:] - value[:-1]) / width, before, area[-1])

    def _piece(self, rising: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.clip(jnp.searchsorted(rising, x, side="right") - 1, 0, len(self.slope) - 1)

    def above(self, log_snr: jax.Array) -> jax.Array:
        i = self._piece(-self.top, -log_snr)
        down = jnp.clip(self.top[i] - log_snr, 0, self.top[i] - self.top[i + 1])
        area = down * (self.value[i] + 0.5 * self.slope[i] * down)
        return jnp.clip(self.before[i] + area / self.total, 0.0, 1.0)

    def log_snr(self, share: jax.Array) -> jax.Array:
        i = self._piece(self.before, share)
        area, value = (share - self.before[i]) * self.total, self.value[i]
        # value down + slope down^2 / 2 = area; the root is the value where that ends, and positive.
        least = 1e-6 * value**2
        root = jnp.sqrt(jnp.maximum(value**2 + 2 * self.slope[i] * area, least))
        return self.top[i] - 2 * area / (value + root)


class _Integral(NamedTuple):
    """A rate's integral and the inverse of it, from both ends, so that both are exact."""

    clean: _Pieces
    noisy: _Pieces  # of the mirror image: the noisy end is its clean one

    @classmethod
    def of(cls, log_snrs: Any, values: Any, xp: Any) -> _Integral:
        return cls(_Pieces.of(log_snrs[::-1], values[::-1], xp), _Pieces.of(-log_snrs, values, xp))

    def astype(self, dtype: Any) -> _Integral:
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), self)

    def above(self, log_snr: jax.Array) -> jax.Array:
        """The share of the whole that lies above a log-SNR."""
        share = self.clean.above(log_snr)
        return jnp.where(share < 0.5, share, 1 - self.noisy.above(-log_snr))

    def below(self, log_snr: jax.Array) -> jax.Array:
        """The share that lies below."""
        share = self.noisy.above(-log_snr)
        return jnp.where(share < 0.5, share, 1 - self.clean.above(log_snr))

    def log_snr(self, above: jax.Array, below: jax.Array) -> jax.Array:
        """The log-SNR above and below which these shares lie, whose sum is 1."""
        return jnp.where(above < 0.5, self.clean.log_snr(above), -self.noisy.log_snr(below))


@pytree
class Rate:
    """A positive function of log-SNR on a range, linear between its knots; a pytree.

    How much happens at a noise level. Its normalised integral is a schedule
    (`schedules.from_rate`), a density of training times and a sampling grid.

    Attributes:
      log_snrs: (K,), increasing, the knots; K of 2 or more.
      values: (K,), positive, the rate there.
      errors: (K,), the standard error of each value; None where there is none.
    """

    log_snrs: jax.Array
    values: jax.Array
    errors: jax.Array | None = None

    @property
    def _integral(self) -> _Integral:
        return _Integral.of(jnp.asarray(self.log_snrs), jnp.asarray(self.values), jnp)

    @property
    def total(self) -> jax.Array:
        """The integral over the range; ()."""
        return self._integral.clean.total

    def __call__(self, log_snr: jax.Array) -> jax.Array:
        """The rate at log-SNRs of any shape; 0 outside the range."""
        return jnp.interp(as_float(log_snr), self.log_snrs, self.values, left=0.0, right=0.0)

    def density(self, log_snr: jax.Array) -> jax.Array:
        """rate / total: the density of log-SNR that is proportional to the rate; any shape."""
        return self(log_snr) / self.total

    def cumulative(self, log_snr: jax.Array) -> jax.Array:
        """The share of the whole that lies below a log-SNR, from 0 to 1; any shape."""
        return self._integral.below(as_float(log_snr))

    def quantile(self, share: jax.Array) -> jax.Array:
        """The log-SNR below which a share lies, the inverse of `cumulative`; any shape."""
        share = as_float(share)
        return self._integral.log_snr(1 - share, share)

    def to_json(self) -> str:
        """As text, which `rates.from_json` reads back."""
        columns = {"log_snr": self.log_snrs, "rate": self.values, "standard_error": self.errors}
        lists = {name: None if x is None else np.asarray(x).tolist() for name, x in columns.items()}
        return json.dumps({"format": "diffax.rate", **lists})


def make_rate(log_snrs: Any, values: Any, errors: Any = None) -> Rate:
    """A `Rate` of arrays or lists, checked.

    Raises:
      ValueError: fewer than two knots, ones that don't increase, or values that aren't positive and
        finite (nothing of this is checked of traced arrays).
    """
    log_snrs, values = _array(log_snrs), _array(values)
    knots, concrete = arguments.concrete(log_snrs), arguments.concrete(values)
    if log_snrs.ndim != 1 or log_snrs.shape != values.shape or len(log_snrs) < 2:
        raise ValueError(
            f"a rate has knots and values of one length, at least 2; these are of shapes"
            f" {log_snrs.shape} and {values.shape}"
        )
    if knots is not None and not (np.all(np.isfinite(knots)) and np.all(np.diff(knots) > 0)):
        raise ValueError("the knots of a rate are finite log-SNRs that increase")
    if concrete is not None and not np.all((concrete > 0) & np.isfinite(concrete)):
        at = int(np.argmin((concrete > 0) & np.isfinite(concrete)))
        raise ValueError(f"a rate is positive and finite; value {at} is {concrete[at]:g}")
    return Rate(log_snrs, values, None if errors is None else _array(errors))


def _array(x: Any) -> Any:
    """JAX's arrays as they are, others in the host's float64."""
    return x if isinstance(x, jax.Array) else np.asarray(x, np.float64)


def rate_from_json(text: str) -> Rate:
    """The rate that `Rate.to_json` wrote; ValueError if the text isn't one."""
    try:
        content = json.loads(text)
        columns = [content["log_snr"], content["rate"], content.get("standard_error")]
        arrays = [None if x is None else _array(x) for x in columns]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            'not a saved rate: need JSON of the form {"log_snr": [number, ...], "rate": [number,'
            f" ...]}} ({type(error).__name__}: {error})"
        ) from None
    return make_rate(*arrays)


@pytree
class FromRate(Schedule):
    """Equal rate per unit of t; made by `from_rate`. The knots are the rate's within the ends."""

    log_snrs: tuple[float, ...] = static()
    values: tuple[float, ...] = static()

    def _integral(self, dtype: Any) -> _Integral:
        knots = (np.asarray(x, np.float64) for x in (self.log_snrs, self.values))
        return _Integral.of(*knots, np).astype(dtype)

    def log_snr(self, t):
        """The log-SNR above which a share t of the rate lies."""
        t = as_float(t)
        found = self._integral(t.dtype).log_snr(t, 1 - t)
        return hold_ends(found, t, self.log_snrs[-1], self.log_snrs[0])

    def inverse_log_snr(self, log_snr):
        """The share of the rate that lies above: a closed form."""
        log_snr = as_float(log_snr)
        return self._integral(log_snr.dtype).above(log_snr)


# Of standard normal data: e(l) = alpha^2.
_KNOTS = np.linspace(-60, 60, 1921)
STANDARD_NORMAL = Rate(_KNOTS, 1 / (1 + np.exp(-_KNOTS)))


def from_rate(
    rate: Any = STANDARD_NORMAL,
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    path: str = "",
) -> Schedule:
    """The schedule along which equal rate is spent per unit of t: t = (the rate's integral from
    log_snr(t) to `log_snr_max`) / (that over the whole range).

    Args:
      rate: a `Rate`; by default the entropy rate of standard normal data.
      log_snr_max, log_snr_min: the log-SNR at t = 0 and at t = 1, within the rate's range.
      path: of a file with a rate's JSON (`Rate.to_json`), in place of `rate`.

    Raises:
      ValueError: ends out of order or beyond the rate's range, a traced rate, or a file that isn't
        one.
    """
    log_snr_max, log_snr_min = check_endpoints(log_snr_max, log_snr_min)
    if path:
        rate = read_rate(path)
    knots, values = (arguments.concrete(x) for x in (rate.log_snrs, rate.values))
    if knots is None or values is None:
        raise ValueError("from_rate: the rate is traced; make the schedule outside jit")
    knots, values = knots.astype(np.float64), values.astype(np.float64)
    slack = 1e-5 * max(1.0, abs(log_snr_max), abs(log_snr_min))
    if log_snr_max > knots[-1] + slack or log_snr_min < knots[0] - slack:
        raise ValueError(
            f"log_snr_max={log_snr_max:g}, log_snr_min={log_snr_min:g}: the rate is known from"
            f" {knots[0]:g} to {knots[-1]:g}"
        )
    inner = knots[(knots > log_snr_min + slack) & (knots < log_snr_max - slack)]
    knots_within = np.array([log_snr_min, *inner, log_snr_max])
    within = np.interp(knots_within, knots, values)
    return FromRate(tuple(knots_within.tolist()), tuple((within / within.max()).tolist()))


def read_rate(path: str) -> Rate:
    """The rate of a file that holds its JSON; ValueError if there is none."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"path={path!r}: no file of a rate can be read there ({error})") from None
    return rate_from_json(text)
