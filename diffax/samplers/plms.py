"""PLMS: the pseudo linear multistep method of fourth order, one network call per step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax.samplers.base import Sampler, Step

# Adams-Bashforth weights of the latest eps and of those before it, by how many are there.
_WEIGHTS = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],
        [3 / 2, -1 / 2, 0.0, 0.0],
        [23 / 12, -16 / 12, 5 / 12, 0.0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


class History(NamedTuple):
    """The eps of the three steps before, the latest first, and how many there are."""

    eps: jax.Array  # (3, batch, ..., C)
    count: jax.Array


def _start(x: jax.Array) -> History:
    return History(jnp.zeros((3, *x.shape), x.dtype), jnp.zeros((), jnp.int32))


def plms() -> Sampler:
    """Liu 2022 (PNDM), the linear multistep part, with the transfer of `ddim`:

        e' = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24,  e_k the eps of k steps ago
        x' = (alpha'/alpha) x + (sigma' - alpha' sigma / alpha) e'

    Its first three steps have the lower orders that their history allows, the very first a
    pseudo-improved Euler step, which averages eps here and at the end of a `ddim` step. One call
    per step, two in the first: N + 1 in all; deterministic. Order 2 on equal steps in t: for those
    the weights are made, but the transfer's variable, sigma / alpha, does not go in equal steps.
    From zero SNR, and where noise prevails and sigma / alpha falls to less than about a quarter
    (`Step.is_leap`), as from the clipped end of a schedule that has none, the step is `ddim`'s, and
    the history begins after it.

    Default grid: `angle`, with 0.23 of uniform's distance to the exact flow at 20 calls.
    """

    def step(x: jax.Array, past: History, at: Step) -> tuple[jax.Array, History]:
        out = at.denoise(x, at.now)
        simple = at.next.of(out.x0, out.eps)

        def improved() -> jax.Array:
            return 0.5 * (at.denoise(simple, at.next).eps + out.eps)

        def multistep() -> jax.Array:
            weights = jnp.asarray(_WEIGHTS, x.dtype)[past.count]
            return weights[0] * out.eps + jnp.tensordot(weights[1:], past.eps, 1)

        far = jnp.isneginf(at.now.log_snr) | at.is_leap
        eps = jax.lax.cond((past.count == 0) & at.is_inner & ~far, improved, multistep)
        change = jnp.where(far, 0.0, at.eps_gain) * (eps - out.eps)
        history = jnp.concatenate([out.eps[None], past.eps[:-1]])
        return simple + change, History(history, jnp.where(far, 0, jnp.minimum(past.count + 1, 3)))

    return Sampler(_start, step, grid="angle")
