"""A plugin that registers one of each: what a user might write."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from diffax import config, data, evaluation, models, objectives, samplers, time_sampling


class Tower(nn.Module):
    """A network for points, with a field of the same name as another network's."""

    width: int = 8
    gain: float = 1.0

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False):
        level = jnp.clip(noise_level, -20, 20)[:, None] / 10
        h = nn.silu(nn.Dense(self.width)(jnp.concatenate([x, level], axis=-1)))
        return self.gain * nn.Dense(x.shape[-1])(h)


def spiral(turns: float = 2.0, num: int = 320) -> data.Dataset:
    """Points on a spiral.

    Args:
      turns: how often it goes round.
      num: how many points.
    """
    angle = np.linspace(0, 2 * np.pi * turns, num, dtype=np.float32)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (angle / angle.max())[:, None]
    return data.make_dataset("spiral", data.Split(points), data.Split(points[::4]))


def halfway(pull: float = 1.0) -> samplers.Sampler:
    """DDIM whose noise is pulled."""

    def step(x, carry, at):
        found = at.denoise(x, at.now)
        return at.next.of(found.x0, pull * found.eps), carry

    return samplers.Sampler(lambda x: (), step)


def reach(seen: evaluation.Seen) -> dict:
    """How far the samples reach."""
    return {"value": float(np.abs(seen.x).max()), "num_samples": len(seen.x)}


models.register("tower", Tower)
data.register("spiral", spiral)
samplers.register("halfway", halfway)
samplers.register_grid("even", lambda over, n: over.between(np.arange(n) / n))
objectives.register_weighting(
    "flat", lambda log_snr, minus_dlogsnr_dt, scale: jnp.ones_like(log_snr)
)
time_sampling.register("plain", time_sampling.uniform)
config.register_optimizer("gentle", lambda learning_rate: optax.sgd(learning_rate))
evaluation.register_measure(
    "reach",
    evaluation.Measure(
        reach, lambda width: 1, {"value": evaluation.Metric("value", "Reach")}, over="values"
    ),
)
