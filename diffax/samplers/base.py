"""What a solver is: a pair of pure functions, and the values that the loop hands to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax.process import drawn, q_sample_at
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

    def astype(self, dtype: jnp.dtype) -> Level:
        """With the log-SNR in this dtype, the state's own: then every step keeps it."""
        return self._replace(log_snr=self.log_snr.astype(dtype))

    def of(self, x0: jax.Array, eps: jax.Array) -> jax.Array:
        """alpha x0 + sigma eps: the state that has these parts here. From another level it is the
        first-order step that every solver improves upon."""
        return q_sample_at(x0, self.log_snr, eps)


class Denoised(NamedTuple):
    """One network call, as every solver wants it: x_t = alpha x0 + sigma eps holds exactly."""

    x0: jax.Array  # clipped if the loop was asked to
    eps: jax.Array
    variance: jax.Array | None  # the network's second half, for learned reverse variance


class Step(NamedTuple):
    """One step of the loop: from level `now` to the less noisy level `next` (inf at last)."""

    key: jax.Array  # () or (batch,); see `standard_normal`
    now: Level
    next: Level
    denoise: Callable[[jax.Array, Level], Denoised]
    level_at: Callable[[jax.Array], Level]  # log-SNR -> level

    @property
    def h(self) -> jax.Array:
        """The step in half log-SNR, log(alpha / sigma); infinite where `is_inner` is false."""
        return 0.5 * (self.next.log_snr - self.now.log_snr)

    @property
    def is_inner(self) -> jax.Array:
        """Neither from zero SNR nor to zero noise."""
        return jnp.isfinite(self.now.log_snr) & jnp.isfinite(self.next.log_snr)

    @property
    def is_leap(self) -> jax.Array:
        """Whether a trapezoid in s = sigma / alpha is further off over this step than Euler's rule.

        Where noise prevails, eps differs from its limit by c / s^2. The integral of that is
        c (1/s' - 1/s), and the trapezoid makes (r - 1/r) / 2 times as much of it, r = s / s': more
        than twice as much in a leap, thousands of times from a clipped end. Euler's rule makes
        none.
        """
        ratio = jnp.exp(jnp.where(self.is_inner, self.h, 0.0))
        return (self.now.log_snr < 0) & (ratio - 1 / ratio > 4)

    @property
    def eps_gain(self) -> jax.Array:
        """sigma' - alpha' sigma / alpha, by which x' changes with eps; infinite from zero SNR."""
        inner = -self.next.sigma * jnp.expm1(jnp.where(self.is_inner, self.h, 0.0))
        return jnp.where(self.is_inner, inner, -jnp.exp(-0.5 * self.now.log_snr))

    def between(self, share: float) -> Level:
        """The level at this share of the way in log-SNR."""
        return self.level_at((1 - share) * self.now.log_snr + share * self.next.log_snr)


class Sampler(NamedTuple):
    """A solver.

    Attributes:
      init: x at the first level, (batch, ..., C) -> carry, any pytree (history of a multistep
        solver).
      step: (x, carry, Step) -> (x at `next`, carry).
      learned_variance: whether predictions have 2 C channels, the second half for the variance.
      visits_between: whether it evaluates the network between the levels of the grid.
      grid: the name of the grid that suits it, where none is asked for.
      corrects: whether a step first corrects the state that the one before gave, as UniPC's.
      stochastic: whether it draws noise.
      num_steps: how many steps it is made for; None for any number.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[[jax.Array, Any, Step], tuple[jax.Array, Any]]
    learned_variance: bool = False
    visits_between: bool = False
    grid: str = "uniform"
    corrects: bool = False
    stochastic: bool = False
    num_steps: int | None = None


def standard_normal(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype | None = None
) -> jax.Array:
    """Normal noise of `shape`: of one key, or of a key for each entry of the first axis."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    return drawn(functools.partial(jax.random.normal, dtype=dtype), key, shape)


def fold_in(key: jax.Array, i: jax.Array) -> jax.Array:
    """`jax.random.fold_in` of a key, or of each of (batch,)."""
    fold = jax.random.fold_in
    return fold(key, i) if key.ndim == 0 else jax.vmap(fold, (0, None))(key, i)


def no_carry(x: jax.Array) -> tuple[()]:
    """The `init` of a solver without history."""
    del x
    return ()
