"""A multistep solver whose coefficients are numbers, found for a network and a grid."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffax.samplers.base import Level, Sampler, Step

NUM_COEFFICIENTS = 4  # of a step: of the newest x0 and of the three before


class History(NamedTuple):
    """The x0 of the steps before, the latest first, (3, batch, ..., C), and their number."""

    x0: jax.Array
    count: jax.Array


def _start(x: jax.Array) -> History:
    return History(jnp.zeros((NUM_COEFFICIENTS - 1, *x.shape), x.dtype), jnp.zeros((), jnp.int32))


def learned(coefficients: tuple[float, ...] = ()) -> Sampler:
    """A multistep exponential integrator, l = log-SNR / 2 and h = l' - l; in step i

        D = c_i0 x0 + c_i1 x0_1 + c_i2 x0_2 + c_i3 x0_3,  x0_k the network's of k steps ago
        x' = (sigma'/sigma) x + alpha' (1 - e^(-h)) D

    One call per step; deterministic. `ddim` has c = (1, 0, 0, 0), and `dpmpp_2m` is of this form.
    `samplers.grid_search` finds coefficients with the levels of a grid (as Frankel 2025, S4S), and
    `diffax grid` keeps them with a run: they are of use with their own grid and network alone.

    Args:
      coefficients: four for each step, one step after the other; () for those of ddim.

    Raises:
      ValueError: a number of coefficients that is no multiple of four.
    """
    table = jnp.asarray(coefficients, jnp.result_type(float)).reshape(-1)
    if table.size % NUM_COEFFICIENTS:
        raise ValueError(
            f"coefficients has {table.size} numbers: {NUM_COEFFICIENTS} are needed for each step"
        )
    table = table.reshape(-1, NUM_COEFFICIENTS)

    def step(x: jax.Array, past: History, at: Step) -> tuple[jax.Array, History]:
        out = at.denoise(x, at.now)
        known = jnp.concatenate([out.x0[None], past.x0])
        count = past.count + 1
        if not len(table):
            return at.next.of(out.x0, out.eps), History(known[:-1], count)
        d = jnp.tensordot(table[past.count].astype(x.dtype), known, 1)
        moved = at.next.of(out.x0, out.eps) - at.next.alpha * jnp.expm1(-at.h) * (d - out.x0)
        return moved, History(known[:-1], count)

    return Sampler(_start, step, num_steps=len(table) or None)


def as_dpmpp_2m(levels: Level) -> jax.Array:
    """The coefficients, (steps, 4), with which `learned` is `dpmpp_2m` on these levels."""
    h = jnp.diff(levels.log_snr)
    ratio = jnp.where(jnp.isfinite(h[1:]) & jnp.isfinite(h[:-1]), h[1:] / h[:-1], 0.0) / 2
    second = jnp.pad(
        ratio, (1, len(levels.log_snr) - 1 - len(ratio))
    )  # none in the first, the last
    zero = jnp.zeros_like(second)
    return jnp.stack([1 + second, -second, zero, zero], axis=1)
