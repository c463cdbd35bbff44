"""The families given by beta or alpha_bar: one class and one constructor each.

No formula here subtracts alpha_bar from 1: each log-SNR is a difference of logarithms of quantities
that are exact at their own end, so float32 is accurate at both.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax.schedules.base import (
    DiscreteSchedule,
    Schedule,
    as_float,
    check_num_steps,
    finite,
    from_betas,
    positive,
)
from diffax.schedules.fields import number, pytree

_T = 1000  # the number of steps that beta_min and beta_max refer to


# --- families given by their betas --------------------------------------------------------------


class BetaFamily(Schedule):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw: log alpha_bar = -I(t), I the integral of beta.

    A subclass gives `integral(t)`, I(t), and `shape(u)`, the published beta per step (at T = 1000)
    at u = i / (T - 1).
    """

    def log_snr(self, t: jax.Array) -> jax.Array:
        """log(e^-I / (1 - e^-I))."""
        area = self.integral(as_float(t))
        return -area - jnp.log(-jnp.expm1(-area))

    def discretize(self, num_steps: int) -> DiscreteSchedule:
        """The published betas, scaled by 1000 / T; refused when a beta would reach 1."""
        check_num_steps(num_steps)
        betas = self.shape(np.linspace(0.0, 1.0, num_steps)) * (_T / num_steps)
        if betas.max() >= 1:
            raise ValueError(
                f"num_steps={num_steps} would make a beta of {betas.max():.3g}, and betas stay"
                f" below 1: take {math.floor(betas.max() * num_steps) + 1} steps or more"
            )
        return from_betas(betas)


@pytree
class Linear(BetaFamily):
    """beta linear in t; the continuous form is the VP-SDE (Ho 2020; Song 2021, eq. 33)."""

    beta_min: float = number()
    beta_max: float = number()

    def integral(self, t):
        """1000 (beta_min t + (beta_max - beta_min) t^2 / 2)."""
        return _T * t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def shape(self, u):
        """beta_min + u (beta_max - beta_min)."""
        return self.beta_min + u * (self.beta_max - self.beta_min)

    def inverse_log_snr(self, log_snr):
        """The positive root of the quadratic I(t) = softplus(-log_snr), in its stable form."""
        area = jnp.minimum(jax.nn.softplus(-as_float(log_snr)), self.integral(1.0)) / _T
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * area)
        return jnp.clip(2 * area / (self.beta_min + root), 0.0, 1.0)


@pytree
class Quadratic(BetaFamily):
    """sqrt(beta) linear in t, "scaled_linear" elsewhere (Ho 2020's code; Rombach 2022)."""

    beta_min: float = number()
    beta_max: float = number()

    def _roots(self):
        return self.beta_min**0.5, self.beta_max**0.5 - self.beta_min**0.5

    def integral(self, t):
        """1000 (a^2 t + a d t^2 + d^2 t^3 / 3), a = sqrt(beta_min), d = sqrt(beta_max) - a."""
        a, d = self._roots()
        return _T * t * (a * a + t * (a * d + t * d * d / 3))

    def shape(self, u):
        """(a + u d)^2."""
        a, d = self._roots()
        return (a + u * d) ** 2


@pytree
class SigmoidBeta(BetaFamily):
    """beta = beta_min + (beta_max - beta_min) sigmoid(-6 + 12 t) (common in code)."""

    beta_min: float = number()
    beta_max: float = number()

    def integral(self, t):
        """1000 (beta_min t + (beta_max - beta_min) (softplus(12 t - 6) - softplus(-6)) / 12)."""
        # log1p(e^(12t-6)) - log1p(e^-6) as one log1p: no cancellation for small t
        risen = jnp.log1p(jnp.expm1(12 * t) * (math.exp(-6) / (1 + math.exp(-6))))
        return _T * (self.beta_min * t + (self.beta_max - self.beta_min) * risen / 12)

    def shape(self, u):
        """beta_min + (beta_max - beta_min) sigmoid(12 u - 6)."""
        return self.beta_min + (self.beta_max - self.beta_min) / (1 + np.exp(6 - 12 * u))


def _beta_family(cls: type, beta_min: float, beta_max: float) -> Schedule:
    beta_min, beta_max = float(beta_min), float(beta_max)
    if not 0 < beta_min <= beta_max < 1:
        raise ValueError(
            f"beta_min={beta_min:g}, beta_max={beta_max:g}: need 0 < beta_min <= beta_max < 1"
        )
    return cls(beta_min=beta_min, beta_max=beta_max)


def linear(beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    """beta from `beta_min` to `beta_max` (per step at T = 1000), linear in t.

    `discretize(T)` gives Ho 2020's betas times 1000 / T; in continuous time it is the VP-SDE of
    Song 2021, log alpha_bar = -1000 (beta_min t + (beta_max - beta_min) t^2 / 2), near the
    discrete form but not equal to it (0.1 in log-SNR at the ends). Infinite log-SNR at t = 0.

    Args:
      beta_min, beta_max: the first and the last beta, 0 < beta_min <= beta_max < 1.
    """
    return _beta_family(Linear, beta_min, beta_max)


def quadratic(beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    """sqrt(beta) linear from sqrt(`beta_min`) to sqrt(`beta_max`) (Ho 2020's code; Rombach 2022).

    Rombach 2022 (as `scaled_linear`) takes beta_min = 0.00085, beta_max = 0.012.
    """
    return _beta_family(Quadratic, beta_min, beta_max)


def sigmoid_beta(beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    """beta = beta_min + (beta_max - beta_min) sigmoid(linspace(-6, 6)) (common in code)."""
    return _beta_family(SigmoidBeta, beta_min, beta_max)


# --- families given by alpha_bar; infinite log-SNR at both ends ---------------------------------


@pytree
class Cosine(Schedule):
    """alpha_bar = cos^2(u) / cos^2(u0), u = (t + s) / (1 + s) pi / 2 (Nichol 2021, eq. 17)."""

    s: float = number()

    def log_snr(self, t):
        """cos^2 u0 - cos^2 u = sin(u - u0) sin(u + u0) gives 1 - alpha_bar without cancellation."""
        t = as_float(t)
        quarter = 0.5 * math.pi / (1 + self.s)
        return (
            2 * jnp.log(jnp.sin(quarter * (1 - t)))
            - jnp.log(jnp.sin(quarter * t))
            - jnp.log(jnp.sin(quarter * (t + 2 * self.s)))
        )

    def inverse_log_snr(self, log_snr):
        """u from its sine and cosine; near t = 0, t from sin(u - u0) instead of from u - u0."""
        log_snr = as_float(log_snr)
        quarter = 0.5 * math.pi / (1 + self.s)
        cos0, sin0 = jnp.cos(quarter * self.s), jnp.sin(quarter * self.s)
        clean, noise = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        cos_u = cos0 * jnp.sqrt(clean)
        sin_u = jnp.sqrt(cos0**2 * noise + sin0**2)
        before_end = jnp.arctan2(cos_u, sin_u)  # pi / 2 - u
        u = jnp.arctan2(sin_u, cos_u)
        after_start = jnp.arcsin(
            jnp.minimum(cos0**2 * noise / jnp.maximum(jnp.sin(u + quarter * self.s), 1e-30), 1.0)
        )
        t = jnp.where(u < 0.25 * math.pi, after_start / quarter, 1 - before_end / quarter)
        return jnp.clip(t, 0.0, 1.0)

    def discretize(self, num_steps: int) -> DiscreteSchedule:
        """beta_i = min(1 - alpha_bar(t_i) / alpha_bar(t_{i-1}), 0.999), as published."""
        check_num_steps(num_steps)
        angle = (np.arange(num_steps + 1) / num_steps + self.s) / (1 + self.s) * math.pi / 2
        alpha_bar = np.cos(angle) ** 2
        return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def cosine(s: float = 0.008) -> Schedule:
    """alpha_bar = cos^2((t + s) / (1 + s) pi / 2), normalised to 1 at t = 0 (Nichol & Dhariwal
    2021).

    When discretised, betas are clipped at 0.999 as published. Infinite log-SNR at both ends.

    Args:
      s: the offset, above 0, which keeps the first betas from vanishing.
    """
    return Cosine(s=positive("s", s))


@pytree
class Sigmoid(Schedule):
    """alpha_bar through a logistic (Jabri 2022; Chen 2023, section 2.2)."""

    start: float = number()
    end: float = number()
    tau: float = number()

    def _constants(self):
        start, end = self.start / self.tau, self.end / self.tau
        return end - start, _log_cosh(start / 2) - _log_cosh(end / 2)

    def log_snr(self, t):
        """log sinh((1 - t) D / 2) - log sinh(t D / 2) + log cosh(start/2) - log cosh(end/2)."""
        t = as_float(t)
        width, offset = self._constants()
        return _log_sinh(0.5 * width * (1 - t)) - _log_sinh(0.5 * width * t) + offset

    def inverse_log_snr(self, log_snr):
        """t D = log1p(2 sinh(D / 2) / (K + e^(-D / 2))), K = exp(log_snr - offset)."""
        width, offset = self._constants()
        log_k = as_float(log_snr) - offset
        gap = width / 2 + jnp.log(-jnp.expm1(-width))  # log(2 sinh(D / 2))
        ratio = jnp.exp(gap - jnp.logaddexp(log_k, jnp.full_like(log_k, -width / 2)))
        return jnp.clip(jnp.log1p(ratio) / width, 0.0, 1.0)


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
    """alpha_bar = (S(end) - S(start + t (end - start))) / (S(end) - S(start)), S(x) = sigmoid(x /
    tau).

    Jabri 2022; Chen 2023. Infinite log-SNR at both ends, so its discrete form ends at zero SNR.

    Args:
      start, end: what part of the logistic is taken, start < end.
      tau: the temperature, above 0.
    """
    start, end, tau = finite("start", start), finite("end", end), positive("tau", tau)
    if not start < end:
        raise ValueError(f"start={start:g}, end={end:g}: need start < end")
    return Sigmoid(start=start, end=end, tau=tau)


@pytree
class AlphaBarLinear(Schedule):
    """alpha_bar = 1 - t (Chen 2023)."""

    def log_snr(self, t):
        """log(1 - t) - log t."""
        t = as_float(t)
        return jnp.log1p(-t) - jnp.log(t)

    def inverse_log_snr(self, log_snr):
        """sigmoid(-log_snr)."""
        return jax.nn.sigmoid(-as_float(log_snr))


def alpha_bar_linear() -> Schedule:
    """alpha_bar = 1 - t (Chen 2023). Infinite log-SNR at both ends; its discrete form ends at 0."""
    return AlphaBarLinear()


@pytree
class RectifiedFlow(Schedule):
    """log-SNR 2 log((1 - t) / t) (Liu 2022; Lipman 2022)."""

    def log_snr(self, t):
        """2 (log(1 - t) - log t)."""
        t = as_float(t)
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def inverse_log_snr(self, log_snr):
        """sigmoid(-log_snr / 2)."""
        return jax.nn.sigmoid(-0.5 * as_float(log_snr))


def rectified_flow() -> Schedule:
    """log-SNR 2 log((1 - t) / t): that of flow matching's straight path, z_t = (1 - t) x0 + t eps.

    z_t = x_t sqrt((1 - t)^2 + t^2) is diffax's x_t but for its scale: rescaling changes no SNR. A
    network of flow matching is one of `prediction="flow"`, eps - x0 = dz/dt; Euler's steps along z
    are those of the sampler `ddim`. Flow matching's shift by resolution (Esser 2024),
    t' = s t / (1 + (s - 1) t), lowers the log-SNR by 2 log s: it is `shifted(schedule, s, 1)`.
    Infinite log-SNR at both ends.
    """
    return RectifiedFlow()


def _log_sinh(x: jax.Array) -> jax.Array:
    """log sinh(x) for x >= 0, minus infinity at 0."""
    return x + jnp.log(-jnp.expm1(-2 * x)) - math.log(2)


def _log_cosh(x: Any) -> jax.Array:
    return abs(x) + jnp.log1p(jnp.exp(-2 * abs(x))) - math.log(2)
