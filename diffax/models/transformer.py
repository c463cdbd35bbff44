"""A transformer in a U-Net's place for attention, as latent diffusion has it (Rombach 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers, operations
from diffax.models.text import TextFeatures

_NORM_EPSILON = 1e-6  # of the first normalisation; those within it have 1e-5


class Transformer(nn.Module):
    """x + last(h), for x of shape (B, ..., C), where h is, over all places,

        h = first(group_norm(x))
        h = h + attention(norm_0(h), norm_0(h))
        h = h + attention(norm_1(h), text)       if there is a text
        h = h + mlp_1(a gelu(b)),  [a, b] = mlp_0(norm_2(h))

    An attention is project(softmax(q k^T / sqrt(width)) v), with q, k and v linear, without biases.
    `last` starts at zero. The null text adds the bias of `project_1`, where `SpatialCrossAttention`
    adds nothing. This is a block of diffusers' `Transformer2DModel`.

    Attributes:
      head_width: channels of an attention head; see `layers.num_heads`.
      dtype: of the computation; normalisations are in float32.
      norm: how many groups; its epsilon is 1e-6 here.
    """

    head_width: int
    dtype: jnp.dtype
    norm: layers.Norm = layers.Norm()

    @nn.compact
    def __call__(self, x: jax.Array, text: TextFeatures | None) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]
        norm = layers.Norm(self.norm.groups, _NORM_EPSILON)
        h = layers.GroupNorm(norm, name="norm")(x).reshape(batch, -1, channels)
        h = self._dense(channels, "first")(h)
        own = self._normed(h, 0)
        q, k, v = self._heads(own, own, 0)
        h = h + self._projected(layers.attention(q, k, v), h, 0)
        if text is not None:
            q, k, v = self._heads(self._normed(h, 1), text.tokens, 1)
            h = h + self._projected(operations.masked_attention(q, k, v, text.mask), h, 1)
        both = self._dense(8 * channels, "mlp_0")(self._normed(h, 2))
        a, b = jnp.split(both, 2, axis=-1)
        h = h + self._dense(channels, "mlp_1")(a * nn.gelu(b, approximate=False))
        last = self._dense(channels, "last", kernel_init=nn.initializers.zeros)
        return x + last(h).reshape(x.shape)

    def _dense(self, features: int, name: str, **options) -> nn.Dense:
        return layers.dense(features, self.dtype, name, **options)

    def _normed(self, h: jax.Array, i: int) -> jax.Array:
        norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=f"norm_{i}")
        return norm(h).astype(self.dtype)

    def _heads(self, h: jax.Array, seen: jax.Array, i: int) -> list[jax.Array]:
        """Queries of h, keys and values of what is seen, each (B, ..., heads, width)."""
        channels = h.shape[-1]
        heads = layers.num_heads(channels, self.head_width)
        parts = (("query", h), ("key", seen), ("value", seen))
        return [
            nn.Dense(channels, use_bias=False, dtype=self.dtype, name=f"{name}_{i}")(of).reshape(
                len(h), -1, heads, channels // heads
            )
            for name, of in parts
        ]

    def _projected(self, attended: jax.Array, h: jax.Array, i: int) -> jax.Array:
        return self._dense(h.shape[-1], f"project_{i}")(attended.reshape(h.shape))
