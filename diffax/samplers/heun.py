"""Heun's method on the probability-flow ODE: two network calls per step, deterministic."""

from __future__ import annotations

import jax

from diffax.samplers.base import Sampler, Step, no_carry


def heun() -> Sampler:
    """Karras 2022, algorithm 1, in s = sigma / alpha and y = x / alpha:

        y_e = y + (s' - s) eps,    y' = y + (s' - s) (eps + eps(y_e, s')) / 2

    Order 2; two calls per step; deterministic. From zero SNR and to zero noise, where s or eps has
    no finite value, the step is Euler's, of one call (as in the paper at sigma = 0); and so it is
    where noise prevails and s falls to less than about a quarter (`Step.is_leap`), as from the
    clipped end of a schedule that has none.

    Default grid: `angle`, with 0.32 of uniform's distance to the exact flow at 20 calls.
    """

    def step(x: jax.Array, carry: tuple[()], at: Step) -> tuple[jax.Array, tuple[()]]:
        out = at.denoise(x, at.now)
        euler = at.next.of(out.x0, out.eps)

        def corrected() -> jax.Array:
            change = 0.5 * (at.denoise(euler, at.next).eps - out.eps)
            return euler + at.eps_gain * change

        return jax.lax.cond(at.is_inner & ~at.is_leap, corrected, lambda: euler), carry

    return Sampler(no_carry, step, grid="angle")
