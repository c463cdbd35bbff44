"""The families given by their log-SNR between finite endpoints, and one's own function of t.

The quantile families draw log-SNR from a density as t runs uniformly over [0, 1]; the density is
truncated to the endpoints, which are therefore reached exactly.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from diffax.schedules.base import (
    LOG_SNR_MAX,
    LOG_SNR_MIN,
    Schedule,
    as_float,
    check_endpoints,
    finite,
    hold_ends,
    positive,
)
from diffax.schedules.fields import number, pytree, static


@pytree
class LinearLogSnr(Schedule):
    """log-SNR linear in t (Kingma 2021, section 5)."""

    log_snr_max: float = number()
    log_snr_min: float = number()

    def log_snr(self, t):
        """log_snr_max (1 - t) + log_snr_min t."""
        t = as_float(t)
        return self.log_snr_max * (1 - t) + self.log_snr_min * t

    def inverse_log_snr(self, log_snr):
        """(log_snr_max - log_snr) / (log_snr_max - log_snr_min)."""
        fall = (self.log_snr_max - as_float(log_snr)) / (self.log_snr_max - self.log_snr_min)
        return jnp.clip(fall, 0.0, 1.0)


def linear_logsnr(log_snr_max: float = LOG_SNR_MAX, log_snr_min: float = LOG_SNR_MIN) -> Schedule:
    """log-SNR linear in t between the endpoints (Kingma 2021, whose own are 13.3 and -5).

    Args:
      log_snr_max, log_snr_min: the log-SNR at t = 0 and at t = 1.
    """
    return LinearLogSnr(*check_endpoints(log_snr_max, log_snr_min))


class Quantile(Schedule):
    """log-SNR distributed over uniform t with a given density, truncated to the endpoints.

    A subclass gives `tail(log_snr)`, P(L > log_snr), and `quantile(upper, lower)`, the log-SNR at
    which P(L > log_snr) = `upper`; `lower` = 1 - `upper` comes separately so that both ends stay
    exact.
    """

    def _tails(self):
        # P(L > end) and P(L < end) at both ends; the densities are symmetric, so the lower tail is
        # the upper tail of the mirrored value, with no subtraction from 1.
        return tuple(
            (self.tail(jnp.asarray(end, jnp.result_type(float))), self.lower_tail(end))
            for end in (self.log_snr_max, self.log_snr_min)
        )

    def lower_tail(self, log_snr):
        """P(L < log_snr), by the density's symmetry about its centre."""
        return self.tail(2 * self.centre - as_float(log_snr))

    def log_snr(self, t):
        """The quantile at the probability that lies a share t of the way between the endpoints."""
        t = as_float(t)
        (upper0, lower0), (upper1, lower1) = self._tails()
        upper = upper0 * (1 - t) + upper1 * t
        lower = lower0 * (1 - t) + lower1 * t
        quantile = self.quantile(upper.astype(t.dtype), lower.astype(t.dtype))
        return hold_ends(quantile, t, self.log_snr_max, self.log_snr_min)

    def inverse_log_snr(self, log_snr):
        """(P(L > log_snr) - P(L > log_snr_max)) / (P(L > log_snr_min) - P(L > log_snr_max))."""
        log_snr = as_float(log_snr)
        (upper0, _), (upper1, _) = self._tails()
        t = (self.tail(log_snr) - upper0) / (upper1 - upper0)
        return jnp.clip(t.astype(log_snr.dtype), 0.0, 1.0)


def _smaller(upper: jax.Array, lower: jax.Array) -> jax.Array:
    """The smaller tail; unlike jnp.minimum, whose slope vanishes where they meet, at the centre."""
    return jnp.where(upper < lower, upper, lower)


@pytree
class CosineLogSnr(Quantile):
    """log_snr = -2 log tan(a t + b) (Salimans & Ho 2022): hyperbolic-secant density."""

    log_snr_max: float = number()
    log_snr_min: float = number()
    centre = 0.0

    def tail(self, log_snr):
        """(2 / pi) arctan(exp(-log_snr / 2))."""
        return jnp.arctan(jnp.exp(-0.5 * log_snr)) * (2 / math.pi)

    def quantile(self, upper, lower):
        """-2 log tan(pi/2 upper), by the smaller of the two tails."""
        tan = jnp.tan(0.5 * math.pi * _smaller(upper, lower))
        return jnp.where(upper < lower, -2.0, 2.0) * jnp.log(tan)


@pytree
class SigmoidLogSnr(Quantile):
    """log-SNR logistic-distributed over t."""

    log_snr_max: float = number()
    log_snr_min: float = number()
    location: float = number()
    scale: float = number()

    @property
    def centre(self):
        """The location."""
        return self.location

    def tail(self, log_snr):
        """sigmoid(-(log_snr - location) / scale)."""
        return jax.nn.sigmoid((self.location - log_snr) / self.scale)

    def quantile(self, upper, lower):
        """location + scale log(lower / upper)."""
        return self.location + self.scale * (jnp.log(lower) - jnp.log(upper))


@pytree
class Laplace(Quantile):
    """log-SNR Laplace-distributed over t (Hang 2024)."""

    log_snr_max: float = number()
    log_snr_min: float = number()
    mu: float = number()
    b: float = number()

    @property
    def centre(self):
        """mu."""
        return self.mu

    def tail(self, log_snr):
        """exp(-|z|) / 2 on the far side of mu, its complement on the near side; z in units of b."""
        z = (log_snr - self.mu) / self.b
        half = 0.5 * jnp.exp(jnp.where(z > 0, -z, z))  # |z| has no slope at 0
        return jnp.where(z > 0, half, 1 - half)

    def quantile(self, upper, lower):
        """mu -+ b log(2 min(upper, lower))."""
        distance = self.b * jnp.log(2 * _smaller(upper, lower))
        return self.mu + jnp.where(upper < lower, -distance, distance)


@pytree
class Edm(Quantile):
    """log-SNR normal-distributed over t: EDM's training density (Karras 2022, table 1)."""

    log_snr_max: float = number()
    log_snr_min: float = number()
    mean: float = number()
    std: float = number()

    @property
    def centre(self):
        """The mean."""
        return self.mean

    def tail(self, log_snr):
        """ndtr(-(log_snr - mean) / std)."""
        return ndtr((self.mean - log_snr) / self.std)

    def quantile(self, upper, lower):
        """mean -+ std ndtri(min(upper, lower))."""
        distance = self.std * ndtri(_smaller(upper, lower))
        return self.mean + jnp.where(upper < lower, -distance, distance)


def cosine_logsnr(log_snr_max: float = LOG_SNR_MAX, log_snr_min: float = LOG_SNR_MIN) -> Schedule:
    """log_snr = -2 log tan(a t + b) between the endpoints (Salimans & Ho 2022: +-20)."""
    return CosineLogSnr(*check_endpoints(log_snr_max, log_snr_min))


def sigmoid_logsnr(
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    location: float = 0.0,
    scale: float = 1.0,
) -> Schedule:
    """log-SNR ~ Logistic(`location`, `scale`) over uniform t, truncated to the endpoints.

    Args:
      log_snr_max, log_snr_min: the log-SNR at t = 0 and at t = 1.
      location, scale: of the logistic density of the log-SNR, scale above 0.
    """
    ends = check_endpoints(log_snr_max, log_snr_min)
    return SigmoidLogSnr(*ends, finite("location", location), positive("scale", scale))


def laplace(
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    mu: float = 0.0,
    b: float = 0.5,
) -> Schedule:
    """log-SNR ~ Laplace(`mu`, `b`) over uniform t, truncated to the endpoints (Hang 2024).

    Args:
      log_snr_max, log_snr_min: the log-SNR at t = 0 and at t = 1.
      mu, b: centre and width of the Laplace density of the log-SNR, b above 0.
    """
    ends = check_endpoints(log_snr_max, log_snr_min)
    return Laplace(*ends, finite("mu", mu), positive("b", b))


def edm(
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    mean: float = 1.01,
    std: float = 2.4,
) -> Schedule:
    """log-SNR ~ Normal(`mean`, `std`^2) over uniform t, truncated to the endpoints (Karras 2022).

    The paper draws log sigma ~ N(-1.2, 1.2^2) for data of deviation 0.5; for data of unit deviation
    that is log-SNR ~ N(1.01, 2.4^2), the default.

    Args:
      log_snr_max, log_snr_min: the log-SNR at t = 0 and at t = 1.
      mean, std: of the normal density of the log-SNR, std above 0.
    """
    ends = check_endpoints(log_snr_max, log_snr_min)
    return Edm(*ends, finite("mean", mean), positive("std", std))


# --- one's own ----------------------------------------------------------------------------------


@pytree
class FromLogSnr(Schedule):
    """A schedule given by any decreasing function of t."""

    function: Callable[..., jax.Array] = static()
    parameters: tuple[tuple[str, Any], ...] = static()

    def log_snr(self, t):
        """function(t, **parameters)."""
        return self.function(as_float(t), **dict(self.parameters))


def from_log_snr(function: Callable[..., jax.Array], **parameters: Any) -> Schedule:
    """The schedule log_snr(t) = `function`(t, **parameters), decreasing in t; jnp code, any shape
    of t.

    `function` and the (hashable) parameters are the tree's structure: use a module-level function,
    so that equal schedules share one compilation.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(0.0, **parameters)
    except TypeError as error:
        raise ValueError(f"log-SNR function {function.__name__}{signature}: {error}") from None
    return FromLogSnr(function, tuple(sorted(parameters.items())))
