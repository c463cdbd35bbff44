"""DPM-Solver: single-step exponential integrators of orders 1 to 3 in the half log-SNR."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffax import arguments
from diffax.samplers.base import Denoised, Sampler, Step, no_carry

_Advance = Callable[[jax.Array, Denoised, Step], jax.Array]


def _order_1(x: jax.Array, out: Denoised, at: Step) -> jax.Array:
    return at.next.of(out.x0, out.eps)


def _order_2(x: jax.Array, out: Denoised, at: Step) -> jax.Array:
    middle = at.between(0.5)
    change = at.denoise(middle.of(out.x0, out.eps), middle).eps - out.eps
    return at.next.of(out.x0, out.eps) + at.eps_gain * change


def _order_3(x: jax.Array, out: Denoised, at: Step) -> jax.Array:
    r1, r2 = 1 / 3, 2 / 3

    def phi(h: jax.Array) -> jax.Array:
        return jnp.expm1(h) / h - 1

    first, second = at.between(r1), at.between(r2)
    change = at.denoise(first.of(out.x0, out.eps), first).eps - out.eps
    u = second.of(out.x0, out.eps) - second.sigma * (r2 / r1) * phi(r2 * at.h) * change
    change = at.denoise(u, second).eps - out.eps
    return at.next.of(out.x0, out.eps) - at.next.sigma / r2 * phi(at.h) * change


_ORDERS: dict[int, _Advance] = {1: _order_1, 2: _order_2, 3: _order_3}


def dpm_solver(order: int = 2) -> Sampler:
    """Lu 2022a (DPM-Solver), algorithms 1 and 2, with l = log-SNR / 2 and h = l' - l:

        order 1:  x' = (alpha'/alpha) x - sigma' (e^h - 1) eps, which is `ddim`
        order 2:  u at l + h/2 by order 1;  x' = order 1 - sigma' (e^h - 1) (eps(u) - eps)
        order 3:  u1 at l + h/3, u2 at l + 2h/3;  D2 = eps(u2) - eps;
                  x' = order 1 - sigma' (3/2) ((e^h - 1)/h - 1) D2

    `order` calls per step; deterministic. The levels in between are taken by log-SNR: in a discrete
    schedule that needs a predictor of the log-SNR (`by_log_snr`). From zero SNR and to zero noise,
    where h is infinite, the step is of order 1. (Where the paper has an integral in u2, diffusers
    has the midpoint rule of its second order; the order of the whole is the same.)

    Default grid: `angle`, with 0.44 of uniform's distance to the exact flow at 20 calls of order 2,
    0.81 of order 3. A network's own errors are amplified in the long first steps of both: with one
    trained on digits `logsnr` was better, a Fréchet distance of 1.9 for 22 at 20 calls of order 2.

    Args:
      order: 1, 2 or 3, the calls per step.

    Raises:
      ValueError: an order other than 1, 2 or 3; a discrete schedule with a predictor of the index.
    """
    order = arguments.whole("order", order, 1, max(_ORDERS))

    def step(x: jax.Array, carry: tuple[()], at: Step) -> tuple[jax.Array, tuple[()]]:
        out = at.denoise(x, at.now)
        if order == 1:
            return _order_1(x, out, at), carry
        advance = lambda: _ORDERS[order](x, out, at)  # noqa: E731
        return jax.lax.cond(at.is_inner, advance, lambda: _order_1(x, out, at)), carry

    return Sampler(no_carry, step, visits_between=order > 1, grid="angle")
