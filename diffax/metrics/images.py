"""What the networks trained on photographs share: their input, and their weights as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_bytes(x: jax.Array) -> jax.Array:
    """Images x, (B, H, W, 1 or 3) float in [-1, 1], as (B, H, W, 3) float32 of whole 0, ..., 255.

    Grey is repeated; what lies outside is clipped. Rounded, because published numbers are of 8-bit
    images: the rounding is part of them.

    Raises:
      ValueError: another shape.
    """
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"a network for images takes (B, H, W, 1 or 3), got {x.shape}")
    x = jnp.round(jnp.clip(127.5 * x.astype(jnp.float32) + 127.5, 0, 255))
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def resize(x: jax.Array, height: int, width: int, antialias: bool = True) -> jax.Array:
    """Bilinear, pixels at the centres of their cells: what PyTorch calls align_corners=False.

    x: (B, H, W, C). With `antialias`, the kernel is as wide as the larger cell when it shrinks.
    """
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=antialias)


def resize_from_corner(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear as TensorFlow 1 does it: output pixel i lies at i * H / height of the input.

    x: (B, H, W, C). Never antialiased; the last row and column go on beyond the edge.
    """
    scale = jnp.array([height / x.shape[1], width / x.shape[2]], jnp.float32)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    return jax.image.scale_and_translate(
        padded,
        (x.shape[0], height, width, x.shape[3]),
        spatial_dims=(1, 2),
        scale=scale,
        translation=0.5 - 0.5 * scale,  # undoes the half pixels of that function
        method="bilinear",
        antialias=False,
    )


def folded(tensors: Mapping[str, np.ndarray], epsilon: float) -> dict[str, dict[str, np.ndarray]]:
    """The convolutions of a PyTorch state_dict with the batch norm that follows each folded in.

    norm(W x) = (gamma / sqrt(var + epsilon)) W x + beta - gamma mean / sqrt(var + epsilon),
    computed in float64.

    Args:
      tensors: those of a network without other layers of four axes; the n-th convolution is
        followed by the n-th batch norm, and both belong to one module.

    Returns:
      The convolution's name -> {"kernel": (H, W, in, out), "bias": (out,)}, float32, in order.

    Raises:
      ValueError: the tensors are not of that kind.
    """
    kernels = [key for key, value in tensors.items() if key.endswith(".weight") and value.ndim == 4]
    norms = [key.removesuffix("running_var") for key in tensors if key.endswith(".running_var")]
    found: dict[str, Any] = {}
    for key, norm in zip(kernels, norms):
        name = key.removesuffix(".weight")
        if name.rpartition(".")[0] != norm[:-1].rpartition(".")[0]:
            raise ValueError(f"{name} is not followed by a batch norm, but by {norm[:-1]}")
        gamma, beta, mean, variance = (
            _tensor(tensors, norm + part).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + epsilon)
        kernel = tensors[key].transpose(2, 3, 1, 0) * scale
        bias = beta - mean * scale
        found[name] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    if not found or len(kernels) != len(norms):
        raise ValueError(f"{len(kernels)} convolutions and {len(norms)} batch norms")
    return found


def dense_kernel(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The weights of a dense layer, (in, out) float32."""
    return _tensor(tensors, f"{name}.weight").T.astype(np.float32)


def _tensor(tensors: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    if key not in tensors:
        raise ValueError(f"no tensor {key}")
    return tensors[key]
