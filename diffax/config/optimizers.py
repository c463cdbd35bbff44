"""Optimisers and learning-rate decays by name."""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffax.registry import Registry

OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry(
    "optimizer",
    {
        "adam": optax.adam,
        "adamw": optax.adamw,
        "lamb": optax.lamb,
        "lion": optax.lion,
        "nadam": optax.nadam,
        "nadamw": optax.nadamw,
        "rmsprop": optax.rmsprop,
        "sgd": optax.sgd,
    },
)


def register(name: str, constructor: Callable[..., optax.GradientTransformation]) -> None:
    """Makes an optimiser reachable as config.optimizer.name and config.schedule_learning.optimizer.

    Args:
      constructor: constructor(learning_rate), a number or a function of the step, and
        `weight_decay` where it has that, -> an optax transformation.

    Raises:
      ValueError: the name is taken.
    """
    OPTIMIZERS.register(name, constructor)


# Factor on the learning rate after a share p of the steps that follow the warm-up.
DECAYS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda p: 0.5 * (1 + jnp.cos(math.pi * p)),
    "linear": lambda p: 1 - p,
}


def takes_weight_decay(name: str) -> bool:
    """Whether the optimiser of that name has weight decay."""
    return "weight_decay" in inspect.signature(OPTIMIZERS.lookup(name)).parameters


def learning_rate(
    peak: float, warmup_steps: int, decay: str, num_steps: int
) -> Callable[[jax.Array], jax.Array]:
    """step -> peak * min(1, (step + 1) / warmup_steps) * DECAYS[decay](p).

    p = (step - warmup_steps) / (num_steps - warmup_steps), clipped to [0, 1], is the share of the
    steps after the warm-up that lie behind. `warmup_steps` = 0 starts at the peak.
    """
    rest = max(num_steps - warmup_steps, 1)

    def at(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        return peak * rise * DECAYS[decay](jnp.clip((step - warmup_steps) / rest, 0.0, 1.0))

    return at


def optimizer(
    name: str,
    learning_rate: float | Callable[[jax.Array], jax.Array],
    clip_norm: float = 0.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """The optimiser of that name behind a clip of the gradient's global norm (0: no clip)."""
    decay = {"weight_decay": weight_decay} if takes_weight_decay(name) else {}
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    return optax.chain(clip, OPTIMIZERS[name](learning_rate, **decay))
