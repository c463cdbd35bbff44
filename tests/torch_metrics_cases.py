"""What tests and `experiments/against_torch_metrics.py` make alike: weights, images, tensors."""

import functools
import zlib

import jax
import numpy as np

EVERY = 8  # every eighth number of an output is kept for the tests
SIZES = {"small": (32, 32), "oblong": (40, 56), "large": (320, 310)}


def images(size: str, num: int) -> np.ndarray:
    """Waves with noise, (num, H, W, 3) uint8; they differ in colour and contrast."""
    height, width = SIZES[size]
    rng = np.random.default_rng([height, width])
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    pictures = np.empty((num, height, width, 3))
    for picture in pictures:
        for channel in range(3):
            a, b, phase = rng.uniform((0.02, 0.02, 0), (0.6, 0.6, 6))
            wave = np.sin(a * rows + b * columns + phase) * rng.uniform(20, 110)
            picture[..., channel] = rng.uniform(60, 190) + wave
        picture += rng.normal(size=picture.shape) * rng.uniform(0, 40)
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state_dict of these shapes, float32: He's for the kernels, norms not far from the identity.

    Each tensor is drawn by a seed of its name, whatever the others are.
    """
    found = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            value = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("weight"):
            value = rng.uniform(0.7, 1.3, shape)
        elif name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(size=shape) / 4
        found[name] = value.astype(np.float32)
    return found


def outputs(extractor, x: np.ndarray) -> list[np.ndarray]:
    """Features and logits of x, (N, H, W, C) in [-1, 1], by an extractor: four images at a time."""
    parts = np.split(x, len(x) // 4)
    found = [_apply(extractor.params, part, network=extractor.network) for part in parts]
    return [np.concatenate(output) for output in zip(*found)]


@functools.partial(jax.jit, static_argnames="network")
def _apply(params, x, network):
    return network.apply({"params": params}, x)


def project(features: np.ndarray, width: int = 4) -> np.ndarray:
    """(N, F) -> (N, width) float64, along fixed random directions."""
    directions = np.random.default_rng(1).normal(size=(features.shape[1], width))
    return np.asarray(features, np.float64) @ directions / np.sqrt(features.shape[1])


def tensors() -> dict[str, np.ndarray]:
    """What the files tests/torch_*.pth hold; `transposed` and `part` as views."""
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    return {
        "whole": whole,
        "transposed": whole.transpose(2, 0, 1),
        "part": whole[1, 1:, ::2],
        "count": np.array(7, np.int64),
        "half": np.array([0.5, -2.0], np.float16),
        "double": np.array([[np.pi]], np.float64),
        "flags": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
    }
