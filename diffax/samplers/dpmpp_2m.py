"""DPM-Solver++(2M) and its stochastic form: second order, multistep, one network call per step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffax.samplers.base import Denoised, Sampler, Step, standard_normal


class History(NamedTuple):
    """x0 and the half log-SNR of the step before; minus infinity where there was none."""

    x0: jax.Array
    half_log_snr: jax.Array


def _start(x: jax.Array) -> History:
    return History(jnp.zeros_like(x), jnp.asarray(-jnp.inf, x.dtype))


def _extrapolated(out: Denoised, past: History, at: Step) -> tuple[jax.Array, History]:
    """x0 + (h / h_before) (x0 - x0_before) / 2, and the new history.

    Plain x0 in the first step, in the one after zero SNR, and where h is infinite: order 1.
    """
    l_now = 0.5 * at.now.log_snr
    usable = at.is_inner & jnp.isfinite(past.half_log_snr)
    before = jnp.where(usable, l_now - past.half_log_snr, 1.0)
    ratio = jnp.where(usable, at.h, 0.0) / before
    return out.x0 + 0.5 * ratio * (out.x0 - past.x0), History(out.x0, l_now.astype(out.x0.dtype))


def dpmpp_2m() -> Sampler:
    """Lu 2022b (DPM-Solver++), algorithm 2; l = log-SNR / 2, h = l' - l, h_ the step before:

        D = x0 + (h / h_) (x0 - x0_) / 2
        x' = (sigma'/sigma) x + alpha' (1 - e^(-h)) D

    Order 2; one call per step; deterministic. The first step, the one after zero SNR and the last
    one, to zero noise, are of order 1 (which the paper advises for few steps).

    Default grid: `angle`, with 0.73 of uniform's distance to the exact flow at 20 calls.
    """

    def step(x: jax.Array, past: History, at: Step) -> tuple[jax.Array, History]:
        out = at.denoise(x, at.now)
        d, past = _extrapolated(out, past, at)
        return at.next.of(out.x0, out.eps) - at.next.alpha * jnp.expm1(-at.h) * (d - out.x0), past

    return Sampler(_start, step, grid="angle")


def dpmpp_2m_sde() -> Sampler:
    """Lu 2022b (DPM-Solver++), SDE-DPM-Solver++(2M), with D as in `dpmpp_2m` and z standard normal:

        x' = (sigma'/sigma) e^(-h) x + alpha' (1 - e^(-2h)) D + sigma' sqrt(1 - e^(-2h)) z

    Order 2 in the noise-free part; one call per step; stochastic. With D = x0 it is ancestral
    sampling with the small variance. First and last steps as in `dpmpp_2m`.
    """

    def step(x: jax.Array, past: History, at: Step) -> tuple[jax.Array, History]:
        out = at.denoise(x, at.now)
        d, past = _extrapolated(out, past, at)
        kept = jnp.exp(-2 * at.h)  # alpha^2 sigma'^2 / (sigma^2 alpha'^2)
        mean = at.next.alpha * d + at.next.sigma * jnp.sqrt(kept) * out.eps
        # x = alpha x0 + sigma eps, and what of alpha x0 is kept belongs to x0, not to D
        mean = mean + at.next.alpha * kept * (out.x0 - d)
        z = standard_normal(at.key, x.shape, x.dtype)
        return mean + at.next.sigma * jnp.sqrt(-jnp.expm1(-2 * at.h)) * z, past

    return Sampler(_start, step, stochastic=True)
