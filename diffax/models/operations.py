"""Operations of the networks in plain form, of which compilers make good code for GPU and TPU.

`cpu.operations` and `cpu.conv` hold the forms for a CPU; `layers` chooses between the two.
"""

import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-5


def expand_rows(a: jax.Array, ndim: int) -> jax.Array:
    """(C,) or (B, C) as an array that broadcasts against (B, ..., C) of `ndim` axes."""
    return a if a.ndim == 1 else a.reshape(a.shape[0], *(1,) * (ndim - 2), a.shape[1])


def variance(mean: jax.Array, mean_of_squares: jax.Array) -> jax.Array:
    """E[x²] - E[x]²."""
    # Rounding can push the difference below zero where the mean is large, hence the clamp.
    return jnp.maximum(mean_of_squares - mean**2, 0.0)


def group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float = NORM_EPSILON
) -> jax.Array:
    """Group normalisation (Wu & He 2018): scale * (x - mean) / sqrt(var + epsilon) + bias.

    Mean and variance are taken per example over all spatial axes and the channels of a group, in
    one pass (mean and mean of squares) and in float32 or wider. A mean of r deviations would cost
    the variance so computed a relative error of about 1e-6 r², so the entries at the first position
    are taken off beforehand: what is left has a mean of some deviations, whatever it was.

    Args:
      x: (B, ..., C), floating point.
      scale, bias: (C,), or (B, C) where they differ between examples; float32.
      groups: number of groups; it divides C.

    Returns:
      An array of x's shape, in the promotion of x's dtype and float32.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    grouped = wide.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    grouped = grouped - jax.lax.stop_gradient(grouped[:, :1].mean(axis=3, keepdims=True))
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    var = variance(mean, (grouped**2).mean(axis=(1, 3), keepdims=True))
    normal = ((grouped - mean) * jax.lax.rsqrt(var + epsilon)).reshape(x.shape)
    return normal * expand_rows(scale, x.ndim) + expand_rows(bias, x.ndim)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q kᵀ / sqrt(D)) v for every head (Vaswani 2017, equation 1), softmax in float32.

    query, key, value and the result: (B, L, heads, D).
    """
    return jax.nn.dot_product_attention(query, key, value)


def masked_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention to the keys of which `mask`, (B, K) booleans, is true; softmax in float32.

    What the others hold makes no difference at all, as long as it is finite. Where none is left the
    result is 0. query: (B, L, heads, D); key, value: (B, K, heads, D) -> (B, L, heads, D).
    """
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key,
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )  # fmt: skip
    shown = mask[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(shown, logits, jnp.finfo(logits.dtype).min))
    # Of a row without any key the weights above are equal.
    weights = jnp.where(shown, weights, 0).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def silu(x: jax.Array) -> jax.Array:
    """x * sigmoid(x) (Hendrycks & Gimpel 2016), of x's shape and dtype."""
    return jax.nn.silu(x)


def convolve(x: jax.Array, kernel: jax.Array, padding="SAME") -> jax.Array:
    """(B, ..., C) with (..., C, D): a convolution of stride 1, in XLA's own form."""
    axes = "".join(chr(ord("a") + i) for i in range(x.ndim - 2))
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    strides = (1,) * (x.ndim - 2)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def upsample(x: jax.Array) -> jax.Array:
    """Doubles every spatial axis of (B, ..., C) by repeating each entry (nearest neighbour)."""
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis=axis)  # by a number, this is a broadcast and a reshape
    return x


def folded(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """(B, ..., C) with spatial axes of another `size`, which divides them: each block of entries
    that becomes one has its entries in its channels, in row-major order.

    Raises:
      ValueError: an axis is no multiple of its size.
    """
    axes = len(size)
    if x.ndim != axes + 2 or any(own % new or own == 0 for own, new in zip(x.shape[1:-1], size)):
        raise ValueError(
            f"spatial axes of {x.shape[1:-1]} can't be folded to {tuple(size)}: each must be a"
            " multiple of its own"
        )
    cut = [part for own, new in zip(x.shape[1:-1], size) for part in (new, own // new)]
    x = x.reshape(len(x), *cut, x.shape[-1])
    outer, inner = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    return x.transpose(0, *outer, *inner, 2 * axes + 1).reshape(len(x), *size, -1)


def upsampled_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A padded convolution of `upsample`d x with a kernel of 3."""
    return convolve(upsample(x), kernel)
