"""Euler's method on the probability-flow ODE: one network call per step, deterministic."""

from __future__ import annotations

import jax

from diffax.samplers.base import Sampler, Step, no_carry


def euler() -> Sampler:
    """Euler in s = sigma / alpha (Karras 2022, eq. 1 with sigma(t) = t), y = x / alpha:

        dy / ds = eps,    y' = y + (s' - s) eps

    which in x is alpha' x0 + sigma' eps: the same update as `ddim` with eta = 0, finite at zero SNR
    and at zero noise. Order 1; one call per step; deterministic.

    Default grid: `angle`, with 0.76 of uniform's distance to the exact flow at 20 calls.
    """

    def step(x: jax.Array, carry: tuple[()], at: Step) -> tuple[jax.Array, tuple[()]]:
        out = at.denoise(x, at.now)
        return at.next.of(out.x0, out.eps), carry

    return Sampler(no_carry, step, grid="angle")
