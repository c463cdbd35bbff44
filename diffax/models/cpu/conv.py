"""Convolutions and matrix products of the networks, in forms of fewer operations for a CPU.

XLA's convolution runs near a core's peak there, so a faster one must multiply less: by minimal
filtering (Winograd), and by not convolving what upsampling repeats. The plain forms agree with them
in value and in derivatives of any order and mode. flax's own layers call `conv` and `product`,
which elsewhere are JAX's own: names and shapes of parameters are flax's.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffax.models import platform
from diffax.models.cpu.winograd import TILE, Bilinear, bilinear, conv_3x3, conv_of_4x4
from diffax.models.operations import convolve

# Below this many multiply-adds what is saved is lost on the transforms, and not worth compiling;
# with fewer channels, or images of 4x4, too.
LEAST_WORK = 1e8
LEAST_CHANNELS = 16
LEAST_IMAGES = 32
# Of the weight gradient of a linear layer, at once.
ROWS_OF_PRODUCT = 256
DILATIONS = ("lhs_dilation", "rhs_dilation")


def _suits(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding) -> bool:
    """Whether this is a convolution that `winograd` knows, with channels enough."""
    return (
        x.ndim == 4
        and kernel.shape[:2] == (3, 3)
        and padding == "SAME"
        and tuple(strides) == (1, 1)
        and x.shape[2] % TILE == 0
        and x.dtype == kernel.dtype == jnp.float32  # too little precision to spare in bfloat16
        and min(kernel.shape[2:]) >= LEAST_CHANNELS
    )


def _fast_conv(x: jax.Array, kernel: jax.Array) -> Bilinear | None:
    """The form that is faster than XLA's own, or None."""
    if x.shape[1:3] == (TILE, TILE):
        return conv_of_4x4 if x.shape[0] >= LEAST_IMAGES else None
    work = math.prod(x.shape) * math.prod(kernel.shape[:2]) * kernel.shape[-1]
    return conv_3x3 if x.shape[2] > TILE and work >= LEAST_WORK else None


def conv(x: jax.Array, kernel: jax.Array, strides, padding, **kwargs) -> jax.Array:
    """`jax.lax.conv_general_dilated`, as flax calls it, for (B, ..., C) with (..., C, D)."""
    undilated = all(factor == 1 for name in DILATIONS for factor in kwargs.get(name) or ())
    ungrouped = kwargs.get("feature_group_count", 1) == 1
    if platform.alone() and undilated and ungrouped and _suits(x, kernel, strides, padding):
        if (fast := _fast_conv(x, kernel)) is not None:
            return fast(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def _halves(kernel: jax.Array, axis: int) -> list[jax.Array]:
    """What a kernel of 3 is to entries repeated along an axis: a kernel of 2 before, one behind."""
    first, middle, last = jnp.split(kernel, 3, axis)
    pairs = (first, middle + last), (first + middle, last)
    return [jnp.concatenate(pair, axis) for pair in pairs]


def upsampled_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A padded convolution of upsampled x with a kernel of 3: 2^d convolutions with kernels of 2.

    x is (B, ..., C) with d spatial axes, the result (B, ..., D) with each of them doubled. For
    images that takes 4/9 of the multiplications.
    """
    spatial = range(x.ndim - 2)
    kernels = {(): kernel}
    for axis in spatial:
        kernels = {
            (*place, side): half
            for place, whole in kernels.items()
            for side, half in enumerate(_halves(whole, axis))
        }
    out = {
        place: convolve(x, half, [(1 - side, side) for side in place])
        for place, half in kernels.items()
    }
    # The last axis is interleaved first: an index leaves the places, an axis joins the array.
    for axis in reversed(spatial):
        out = {
            place: jnp.stack([out[(*place, side)] for side in (0, 1)], axis + 2)
            for place in itertools.product((0, 1), repeat=axis)
        }
    return out[()].reshape(x.shape[0], *(2 * size for size in x.shape[1:-1]), kernel.shape[-1])


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("...c,cd->...d", x, kernel)


def _product_input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("...d,cd->...c", g, kernel)


def _product_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The sum of products of ROWS_OF_PRODUCT rows each; one product if x has the fewer channels.

    XLA transposes what it contracts over one long axis, which costs less the narrower it is.
    """
    x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
    narrow = x.shape[1] < g.shape[1]
    rows = len(x) if narrow else math.gcd(len(x), ROWS_OF_PRODUCT)
    x, g = (a.reshape(-1, rows, a.shape[-1]) for a in (x, g))
    return jnp.einsum("bnd,bnc->bdc", g, x).sum(axis=0).T


product_cpu = bilinear(
    "product", _product, _product, _product_input_gradient, _product_kernel_gradient
)


def product(x: jax.Array, kernel: jax.Array, dimension_numbers, **kwargs) -> jax.Array:
    """`jax.lax.dot_general`, as flax calls it for a dense layer: (..., C) with (C, D)."""
    if platform.alone() and x.ndim > 2:
        return product_cpu(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **kwargs)
