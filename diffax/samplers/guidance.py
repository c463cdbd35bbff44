"""Guidance: predictors made from others, by a null class or by a classifier's gradient.

What is guided is the prediction itself, so any sampler takes a guided predictor like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import arguments, process
from diffax.process import Predict, expand_to
from diffax.schedules import alpha_of, sigma_of

Scale = float | Callable[[jax.Array], jax.Array]  # or a function of log-SNR, (batch,) -> (batch,)


def classifier_free(
    predict: Callable[[jax.Array, jax.Array, Any], jax.Array],
    label: Any,
    null: Any,
    scale: Scale = 1.0,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Predict:
    """out = cond + (scale - 1)(cond - uncond): the network under `label`, and under its null.

    Ho & Salimans 2022 (eq. 6, whose w is scale - 1): 1 is the conditional model exactly, 0 the
    unconditional one. Linear, so the same in eps, x0 and v. Both halves are one call of twice the
    batch.

    Args:
      predict: predict(x_t, log_snr, label), all of leading axis batch.
      label: (batch,), the class of each sample, or a pytree of conditions, each (batch, ...).
      null: the null class, () or (batch,), or a pytree like `label` that broadcasts to it.
      scale: a number, or a function of log-SNR.
      interval: (low, high) in log-SNR; outside it the scale is 1 (Kynkäänniemi 2024). It may be
        traced, as `scale` and `rescale` may; then its order isn't checked.
      rescale: share, 0 to 1, by which each example's deviation is brought back to that of cond (Lin
        2023, eqs. 15-16), against over-exposure at large scales. One without any
        deviation stays as it is.

    Raises:
      ValueError: an empty interval, a rescale outside [0, 1], or a label beyond 32 bits.
    """
    for leaf in jax.tree.leaves(label):
        arguments.check_labels(leaf)
    ends = arguments.concrete(interval)
    if interval is not None and ends is not None and not ends[0] < ends[1]:
        raise ValueError(f"interval={interval}: must be (low, high) in log-SNR, low < high")
    rescaled = arguments.concrete(rescale)
    arguments.check_within("rescale", rescale, 1, "must be between 0 and 1")

    def guided(x: jax.Array, log_snr: jax.Array) -> jax.Array:
        labels = jax.tree.map(
            lambda own, of_null: jnp.concatenate([own, jnp.broadcast_to(of_null, jnp.shape(own))]),
            label,
            null,
        )
        both = predict(jnp.concatenate([x, x]), jnp.concatenate([log_snr, log_snr]), labels)
        (cond, uncond), channels = jnp.split(both, 2), x.shape[-1]
        cond, variance = cond[..., :channels], cond[..., channels:]  # the latter as it is
        uncond = uncond[..., :channels]
        extra = _scale_at(scale, log_snr) - 1
        if interval is not None:
            inside = (log_snr >= interval[0]) & (log_snr <= interval[1])
            extra = jnp.where(inside, extra, 0.0)
        out = cond + expand_to(extra, cond) * (cond - uncond)
        if rescaled is None or rescaled > 0:
            out = out * (1 - rescale + rescale * _ratio_of_deviations(cond, out))
        return jnp.concatenate([out, variance], axis=-1)

    return process.by_log_snr(guided)


def _ratio_of_deviations(of: jax.Array, to: jax.Array) -> jax.Array:
    """The deviation of each example over that of another's, (batch, 1, ...); 1 where the latter has
    none but for rounding, so that there is nothing to scale."""
    axes = tuple(range(1, to.ndim))
    variances = jnp.var(of, axes, keepdims=True), jnp.var(to, axes, keepdims=True)
    rounding = 8 * jnp.finfo(to.dtype).eps * jnp.max(jnp.abs(to), axes, keepdims=True)
    spread = variances[1] > rounding**2
    above, below = (jnp.where(spread, variance, 1.0) for variance in variances)
    return jnp.sqrt(above / below)


def by_classifier(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    log_probability: Callable[[jax.Array, jax.Array], jax.Array],
    scale: Scale = 1.0,
    prediction: str = "eps",
) -> Predict:
    """eps - scale sigma grad_x log p(y | x_t), or the same in x0 or v (Dhariwal 2021, algorithm 2).

    Args:
      predict: predict(x_t, log_snr), the unguided network.
      log_probability: (x_t, log_snr) -> log p(y | x_t), (batch,), by a classifier of noisy data.
      scale: a number, or a function of log-SNR; 1 samples p(x | y) if both networks are exact.
      prediction: what `predict` gives: "eps", "x0", "v", "score" or "flow".

    Raises:
      ValueError: an unknown prediction.
    """
    process.check_prediction(prediction)

    def guided(x: jax.Array, log_snr: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: jnp.sum(log_probability(x, log_snr)))(x)
        alpha, sigma = alpha_of(log_snr), sigma_of(log_snr)
        out = predict(x, log_snr)
        # The score moves by scale * gradient. Conversions are affine: at x = 0 they give the move
        # in the prediction's own space. At zero SNR x_t tells nothing of y, and nothing moves.
        score = expand_to(_scale_at(scale, log_snr), x) * gradient
        move = process.convert(score, jnp.zeros_like(x), alpha, sigma, "score", prediction)
        return out + jnp.where(expand_to(alpha, x) > 0, move, 0.0)

    return process.by_log_snr(guided)


def _scale_at(scale: Scale, log_snr: jax.Array) -> jax.Array:
    return scale(log_snr) if callable(scale) else jnp.full_like(log_snr, scale)
