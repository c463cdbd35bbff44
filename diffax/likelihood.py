"""Likelihood in bits per dimension: the variational bound, in continuous and in discrete time."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffax import process
from diffax.process import AnySchedule, Predict
from diffax.schedules import alpha_of, ends_of, require_finite_ends
from diffax.time_sampling import stratified


class VLB(NamedTuple):
    """The three terms of -log p(x0) <= prior + diffusion + reconstruction, (batch,), bits/dim."""

    prior: jax.Array
    diffusion: jax.Array
    reconstruction: jax.Array

    @property
    def total(self) -> jax.Array:
        """Their sum, (batch,)."""
        return self.prior + self.diffusion + self.reconstruction


def vlb(
    key: jax.Array,
    predict: Predict,
    schedule: AnySchedule,
    x0: jax.Array,
    num_steps: int | None = None,
    prediction: str = "eps",
    levels: int | None = 256,
) -> VLB:
    """An unbiased estimate, by one noise level per example, of the variational bound (Kingma 2021).

    With e = |eps - eps_hat(x_t)|^2 summed over the data's axes, in nats before the change of unit:

        prior = KL(q(x_1 | x0) | N(0, I)) = sum (sigma_1^2 + alpha_1^2 x0^2 - 1 - log sigma_1^2) / 2
        diffusion = E_t[-log_snr'(t) e] / 2                       in continuous time (eq. 17), or
                  = T E_i[expm1(log_snr(s_i) - log_snr(t_i)) e] / 2    with T steps (eq. 14)
        reconstruction = -E[log p(x0 | x at the clean end)]

    The clean end's decoder is p(x0 | z) proportional to q(z | x0) (eq. 30): over the `levels`
    values of quantised data, or a Gaussian density for real data. Times are drawn stratified over
    the batch.

    A discrete schedule of T steps has its clean end at index 0, so its diffusion term has T - 1
    steps.

    Args:
      key: PRNG key.
      predict: as in `sample`.
      schedule: finite log-SNR at both ends.
      x0: (batch, ..., C). Quantised data is k / ((levels - 1) / 2) - 1 for k = 0 .. levels - 1.
      num_steps: T for a continuous schedule, None for continuous time. A discrete schedule has its
        own.
      prediction: "eps", "x0" or "v".
      levels: 256 for 8-bit data, None for real-valued data (the bound is then on a density).

    Raises:
      ValueError: an infinite end (names `with_endpoints`), an unknown prediction, or a num_steps
        that is not the discrete schedule's.
    """
    process.check_prediction(prediction)
    require_finite_ends(schedule, "vlb")
    time_key, noise_key, clean_key = jax.random.split(key, 3)
    u, _ = stratified().sample((), time_key, x0.shape[0])
    t, log_snr_t, weight = _transition(schedule, u, num_steps)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    error = eps_error(predict, x0, noise, t, log_snr_t, prediction)
    log_snr_clean, log_snr_noisy = ends_of(schedule)
    clean_noise = jax.random.normal(clean_key, x0.shape, x0.dtype)
    nats = VLB(
        prior=prior_term(x0, log_snr_noisy),
        diffusion=0.5 * weight * error,
        reconstruction=reconstruction_term(x0, log_snr_clean, clean_noise, levels),
    )
    return jax.tree.map(lambda value: value / (math.log(2) * math.prod(x0.shape[1:])), nats)


def eps_error(
    predict: Predict,
    x0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    log_snr: jax.Array,
    prediction: str,
) -> jax.Array:
    """|eps - eps_hat(x_t)|^2 summed over the data's axes, (batch,), for x_t at `log_snr` (batch,).

    Both eps are read from the prediction and from its target, whose difference is exact: for x0-
    and v-prediction eps - eps_hat is -alpha/sigma or alpha times the difference in the network's
    own space.
    """
    x_t = process.q_sample_at(x0, log_snr, noise)
    out = process.told(predict, x_t, t, log_snr)
    target = process.target_of(prediction, x0, noise, log_snr)
    squares = jnp.sum((out - target).astype(x0.dtype) ** 2, axis=tuple(range(1, x0.ndim)))
    return squares * process.eps_scale(prediction, log_snr)


def prior_term(x0: jax.Array, log_snr: jax.Array) -> jax.Array:
    """KL(q(x_1 | x0) | N(0, I)) in nats, (batch,), for `log_snr` at the noisy end."""
    # sigma^2 - 1 - log sigma^2 = softplus(log_snr) - alpha^2
    rest = jax.nn.softplus(log_snr) - alpha_of(log_snr) ** 2
    return 0.5 * jnp.sum(alpha_of(log_snr) ** 2 * x0**2 + rest, axis=tuple(range(1, x0.ndim)))


def reconstruction_term(
    x0: jax.Array, log_snr: jax.Array, noise: jax.Array, levels: int | None
) -> jax.Array:
    """-log p(x0 | x0 + noise exp(-log_snr / 2)) in nats, (batch,), at the clean end's `log_snr`."""
    axes = tuple(range(1, x0.ndim))
    if levels is None:
        return jnp.sum(0.5 * (noise**2 + math.log(2 * math.pi) - log_snr), axis=axes)
    half = 0.5 * (levels - 1)
    values = jnp.arange(levels, dtype=x0.dtype) / half - 1

    def one(example):
        x, z = example
        logits = -0.5 * jnp.exp(log_snr) * (z[..., None] - values) ** 2
        index = jnp.clip(jnp.round((x + 1) * half), 0, levels - 1).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - chosen)

    # example by example: the logits are `levels` times the size of the data
    return jax.lax.map(one, (x0, x0 + noise * jnp.exp(-0.5 * log_snr)))


def _transition(
    schedule: AnySchedule, u: jax.Array, num_steps: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """t, its log-SNR and the weight of |eps - eps_hat|^2 / 2 at u in [0, 1); each (batch,)."""
    if schedule.num_steps is not None:
        total = schedule.num_steps - 1
        if num_steps not in (None, schedule.num_steps) or total < 1:
            raise ValueError(
                f"num_steps={num_steps}: this discrete schedule has {schedule.num_steps} steps,"
                " and the bound takes all of them (2 or more)"
            )
        t = 1 + jnp.minimum(jnp.floor(u * total), total - 1).astype(jnp.int32)
        log_snr_t, log_snr_s = schedule.log_snr(t), schedule.log_snr(t - 1)
        return t, log_snr_t, total * jnp.expm1(log_snr_s - log_snr_t)
    if num_steps is None:
        log_snr_t, slope = schedule.log_snr_and_slope(u)
        return u, log_snr_t, -slope
    if int(num_steps) != num_steps or num_steps < 1:
        raise ValueError(
            f"num_steps={num_steps}: must be a whole number of at least 1, or None for continuous"
            " time"
        )
    step = jnp.minimum(jnp.floor(u * num_steps), num_steps - 1)
    t, s = (step + 1) / num_steps, step / num_steps
    log_snr_t, log_snr_s = schedule.log_snr(t), schedule.log_snr(s)
    return t, log_snr_t, num_steps * jnp.expm1(log_snr_s - log_snr_t)
