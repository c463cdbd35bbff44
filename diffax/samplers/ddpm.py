"""Ancestral sampling: one network call per step, with fixed or learned reverse variance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffax.process import learned_log_variance, posterior_between, transition_variance
from diffax.registry import unknown
from diffax.samplers.base import Denoised, Sampler, Step, no_carry, standard_normal


def _fixed_small(at: Step, out: Denoised, small: jax.Array) -> jax.Array:
    return small


def _fixed_large(at: Step, out: Denoised, small: jax.Array) -> jax.Array:
    return transition_variance(at.now.log_snr, at.next.log_snr)


def _learned(at: Step, out: Denoised, small: jax.Array) -> jax.Array:
    large = _fixed_large(at, out, small)
    return jnp.exp(learned_log_variance(out.variance, jnp.log(large), jnp.log(small)))


_VARIANCES: dict[str, Callable[[Step, Denoised, jax.Array], jax.Array]] = {
    "fixed_small": _fixed_small,
    "fixed_large": _fixed_large,
    "learned": _learned,
}


def ddpm(variance: str = "fixed_small") -> Sampler:
    """Ho 2020, algorithm 2: x_s = posterior mean(x0, x_t) + sqrt(variance) z, no noise at the end.

    The chain is the one of the visited levels, whatever their number (respacing, Nichol & Dhariwal
    2021). Variance, with beta = 1 - alpha_t^2 / alpha_s^2: "fixed_small" is the posterior's,
    "fixed_large" is beta, "learned" interpolates between their logs by the network's second
    half (Nichol & Dhariwal 2021, eq. 15). Order 1 in the mean; one call per step; stochastic.

    Args:
      variance: "fixed_small", "fixed_large" or "learned".

    Raises:
      ValueError: an unknown variance.
    """
    if not isinstance(variance, str) or variance not in _VARIANCES:
        raise ValueError(unknown("variance", variance, _VARIANCES))

    def step(x: jax.Array, carry: tuple[()], at: Step) -> tuple[jax.Array, tuple[()]]:
        out = at.denoise(x, at.now)
        mean, small = posterior_between(out.x0, x, at.now.log_snr, at.next.log_snr)
        spread = _VARIANCES[variance](at, out, small)
        spread = jnp.where(jnp.isposinf(at.next.log_snr), 0.0, spread)
        return mean + jnp.sqrt(spread) * standard_normal(at.key, x.shape, x.dtype), carry

    return Sampler(no_carry, step, learned_variance=variance == "learned", stochastic=True)
