"""What a solver is: a pair of pure functions, and the values that the loop hands to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from diffax.schedules import alpha_of, sigma_of


class Level(NamedTuple):
    """A noise level: its time as the schedule counts it, and its log-SNR; both scalars."""

    t: jax.Array
    log_snr: jax.Array

    @property
    def alpha(self) -> jax.Array:
        """Signal scale."""
        return alpha_of(self.log_snr)

    @property
    def sigma(self) -> jax.Array:
        """Noise scale."""
        return sigma_of(self.log_snr)


class Denoised(NamedTuple):
    """One network call, as every solver wants it: x_t = alpha x0 + sigma eps holds exactly."""

    x0: jax.Array  # clipped if the loop was asked to
    eps: jax.Array
    variance: jax.Array | None  # the network's second half, for learned reverse variance


class Step(NamedTuple):
    """One step of the loop: from level `now` to the less noisy level `next` (inf at last)."""

    key: jax.Array
    now: Level
    next: Level
    denoise: Callable[[jax.Array, Level], Denoised]


class Sampler(NamedTuple):
    """A solver.

    init: x at the first level, (batch, ..., C) -> carry, any pytree (history of a multistep
      solver).
    step: (x, carry, Step) -> (x at `next`, carry).
    learned_variance: whether predictions have 2 C channels, the second half for the variance.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[[jax.Array, Any, Step], tuple[jax.Array, Any]]
    learned_variance: bool = False


def no_carry(x: jax.Array) -> tuple[()]:
    """The `init` of a solver without history."""
    del x
    return ()
