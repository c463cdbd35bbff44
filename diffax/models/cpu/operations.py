"""The operations of `models.operations` in forms for a CPU.

They spare XLA's CPU compiler the reductions and transposes that it does badly. They agree with the
plain forms in value and in gradient, forward mode included.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffax.models import operations


def group_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    groups: int,
    epsilon: float = operations.NORM_EPSILON,
) -> jax.Array:
    """The plain form with channel sums first, then groups, and one multiply-add per element.

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
    factor = jax.lax.rsqrt(operations.variance(mean, group_mean(rows**2)) + epsilon)
    factor = factor * operations.expand_rows(scale, 3)
    return (rows * factor + (operations.expand_rows(bias, 3) - mean * factor)).reshape(x.shape)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`operations.attention` with the heads folded into the batch: two batched matrix products."""
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


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """`operations.silu` as one division, which XLA doesn't repeat in everything that reads it."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / (1 + jnp.exp(-wide))).astype(x.dtype)


@silu.defjvp
def _silu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple:
    (x,), (dx,) = primals, tangents
    # sigmoid(x), in another form than above: sharing the exponential, XLA would keep it in memory.
    gate = 0.5 + 0.5 * jnp.tanh(x / 2)
    return silu(x), dx * (gate * (1 + x * (1 - gate)))
