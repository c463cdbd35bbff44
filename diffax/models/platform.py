"""The few operations that want another form on a CPU than on an accelerator.

Each stands here twice: a plain form, which the compilers for GPU and TPU turn into good code, and a
CPU form, which spares XLA's CPU compiler the reductions and transposes that it does badly. The two
agree in value and in gradient, forward mode included, so which one runs is a matter of speed alone.
JAX's default backend decides while a function is traced: one form is compiled, not both.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

NORM_EPSILON = 1e-5


def on_cpu() -> bool:
    """Whether JAX's default backend is the CPU."""
    return jax.default_backend() == "cpu"


def run_once() -> dict[str, int] | None:
    """The `compiler_options` with which to `jax.jit` what runs only once, as a network's init does.

    Drawing every parameter makes a long program: XLA's CPU compiler takes 16 s over a small U-Net's
    and, told to leave it as it is, 3 s. The numbers drawn agree to rounding.
    """
    return {"xla_backend_optimization_level": 0} if on_cpu() else None


def by_platform(cpu: Callable, plain: Callable) -> Callable:
    """The function that calls `cpu` on the CPU backend and `plain` on any other."""

    @functools.wraps(plain)
    def chosen(*args):
        return (cpu if on_cpu() else plain)(*args)

    return chosen


def expand_rows(a: jax.Array, ndim: int) -> jax.Array:
    """(C,) or (B, C) as an array that broadcasts against (B, ..., C) of `ndim` axes."""
    return a if a.ndim == 1 else a.reshape(a.shape[0], *(1,) * (ndim - 2), a.shape[1])


def _variance(mean: jax.Array, mean_of_squares: jax.Array) -> jax.Array:
    # Rounding can push the difference below zero where the mean is large, hence the clamp.
    return jnp.maximum(mean_of_squares - mean**2, 0.0)


def group_norm_plain(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
    """Group normalisation (Wu & He 2018): scale * (x - mean) / sqrt(var + 1e-5) + bias.

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
    var = _variance(mean, (grouped**2).mean(axis=(1, 3), keepdims=True))
    normal = ((grouped - mean) * jax.lax.rsqrt(var + NORM_EPSILON)).reshape(x.shape)
    return normal * expand_rows(scale, x.ndim) + expand_rows(bias, x.ndim)


def group_norm_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
    """`group_norm_plain` with channel sums first, then groups, and one multiply-add per element.

    Summing over the positions alone keeps the channels contiguous: half the time on a CPU. The sum
    of a group comes from a product with a matrix of ones and zeros, which gives it to every channel
    of the group: repeated instead, it would be looked up entry by entry in what reads the result.
    An entry that isn't finite spoils the example's other groups too.
    """
    channels = x.shape[-1]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rows = wide.reshape(x.shape[0], -1, channels)
    width = channels // groups
    together = jnp.asarray(np.kron(np.eye(groups), np.ones((width, width))), wide.dtype)

    def group_mean(of: jax.Array) -> jax.Array:  # (B, N, C) -> (B, 1, C)
        sums = jnp.matmul(of.mean(axis=1), together, precision=jax.lax.Precision.HIGHEST)
        return (sums / width)[:, None]

    rows = rows - jax.lax.stop_gradient(group_mean(rows[:, :1]))
    mean = group_mean(rows)
    factor = jax.lax.rsqrt(_variance(mean, group_mean(rows**2)) + NORM_EPSILON)
    factor = factor * expand_rows(scale, 3)
    return (rows * factor + (expand_rows(bias, 3) - mean * factor)).reshape(x.shape)


def attention_plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q kᵀ / sqrt(D)) v for every head (Vaswani 2017, equation 1), softmax in float32.

    query, key, value and the result: (B, L, heads, D).
    """
    return jax.nn.dot_product_attention(query, key, value)


def attention_cpu(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attention_plain` with the heads folded into the batch: two batched matrix products."""
    batch, length, heads, width = query.shape

    def fold(a: jax.Array) -> jax.Array:
        return a.swapaxes(1, 2).reshape(batch * heads, length, width)

    logits = jnp.einsum(
        "bqd,bkd->bqk", fold(query * width**-0.5), fold(key),
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )  # fmt: skip
    weights = jax.nn.softmax(logits).astype(value.dtype)
    out = jnp.einsum("bqk,bkd->bqd", weights, fold(value))
    return out.reshape(batch, heads, length, width).swapaxes(1, 2)


def silu_plain(x: jax.Array) -> jax.Array:
    """x * sigmoid(x) (Hendrycks & Gimpel 2016), of x's shape and dtype."""
    return jax.nn.silu(x)


@jax.custom_jvp
def silu_cpu(x: jax.Array) -> jax.Array:
    """`silu_plain` as one division, which XLA doesn't repeat in everything that reads it."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / (1 + jnp.exp(-wide))).astype(x.dtype)


@silu_cpu.defjvp
def _silu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple:
    (x,), (dx,) = primals, tangents
    # sigmoid(x), in another form than above: sharing the exponential, XLA would keep it in memory.
    gate = 0.5 + 0.5 * jnp.tanh(x / 2)
    return silu_cpu(x), dx * (gate * (1 + x * (1 - gate)))


group_norm = by_platform(group_norm_cpu, group_norm_plain)
attention = by_platform(attention_cpu, attention_plain)
silu = by_platform(silu_cpu, silu_plain)
