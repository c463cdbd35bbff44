"""Captions as what a network can be conditioned on.

A `TextEncoder` turns captions into `rows`, arrays with one row for each, on the host and before
training. Its `network`, a part of the network that is conditioned, turns rows into features:
`TextFeatures`, one vector for each token, to which the network attends, and one for the caption.

The null of text is rows of zeros. Its mask shows no token, so that it adds exactly nothing: a
network under the null text is the same network without text. An empty caption is the null.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffax.models import layers, minilm, operations
from diffax.models.embeddings import sinusoidal
from diffax.models.layers import check, is_whole
from diffax.registry import Constructors

Rows = dict[str, Any]  # "mask", (n, L) booleans: the tokens that are there; and the encoder's own


class TextFeatures(NamedTuple):
    """What a network attends to, and what it adds to its noise embedding."""

    tokens: jax.Array  # (B, L, W)
    mask: jax.Array  # (B, L) booleans
    pooled: jax.Array  # (B, W), 0 where no token is there


class TextEncoder(NamedTuple):
    """A way to encode captions.

    Attributes:
      rows: n captions -> `Rows`, NumPy arrays (n, ...); an empty caption gives zeros.
      network: dtype -> a module that takes `Rows` and gives `TextFeatures`; `nulls(num)` of it are
        the rows of so many null texts.
      count: the number of tokens of a caption.
      length: how many tokens count; the rest of a caption is cut off.
      fingerprint: of what is frozen; "" if nothing is.
    """

    rows: Callable[[Sequence[str]], Rows]
    network: Callable[[jnp.dtype], nn.Module]
    count: Callable[[str], int]
    length: int
    fingerprint: str = ""


def is_empty(caption: str) -> bool:
    """Whether a caption says nothing."""
    return not caption.strip()


def utf8(caption: str) -> bytes:
    """The bytes of a caption; halves of surrogate pairs, which UTF-8 has none of, are "?"."""
    return caption.encode("utf-8", "replace")


def pooled(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the tokens that are there, (B, L, W) -> (B, W); 0 if there are none."""
    shown = mask[..., None].astype(tokens.dtype)
    return jnp.sum(tokens * shown, axis=1) / jnp.maximum(jnp.sum(shown, axis=1), 1)


# --- bytes ----------------------------------------------------------------------------------------


class BytesNetwork(nn.Module):
    """A transformer over the bytes of captions, with normalisation first (Xiong 2020).

    Attributes:
      length: tokens of a caption.
      width: features of a token, even.
      depth: blocks, each of attention and a two-layer perceptron.
      dtype: of the computation.
    """

    length: int
    width: int
    depth: int
    dtype: jnp.dtype

    def nulls(self, num: int) -> Rows:
        """The rows of the null text."""
        of_all = (num, self.length)
        return {"tokens": jnp.zeros(of_all, jnp.int32), "mask": jnp.zeros(of_all, bool)}

    @nn.compact
    def __call__(self, rows: Rows) -> TextFeatures:
        tokens, mask = rows["tokens"], rows["mask"]
        batch, length = tokens.shape
        heads = layers.num_heads(self.width, 64)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, name=name)

        def norm(h: jax.Array, name: str) -> jax.Array:
            return nn.LayerNorm(dtype=jnp.float32, name=name)(h).astype(self.dtype)

        h = nn.Embed(256, self.width, dtype=self.dtype, name="bytes")(tokens)
        h = h + sinusoidal(jnp.arange(length), self.width).astype(self.dtype)
        for i in range(self.depth):
            qkv = dense(3 * self.width, f"qkv_{i}")(norm(h, f"norm_{i}_0"))
            qkv = qkv.reshape(batch, length, 3, heads, self.width // heads)
            attended = operations.masked_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask)
            h = h + dense(self.width, f"project_{i}")(attended.reshape(h.shape))
            hidden = nn.gelu(dense(2 * self.width, f"mlp_{i}_0")(norm(h, f"norm_{i}_1")))
            h = h + dense(self.width, f"mlp_{i}_1")(hidden)
        h = norm(h, "last_norm")
        return TextFeatures(h, mask, pooled(h, mask))


def of_bytes(text_length: int = 64, text_width: int = 128, text_depth: int = 2) -> TextEncoder:
    """The bytes of a caption in UTF-8, through a small transformer that is trained along.

    Args:
      text_length: tokens of a caption that count; the rest is cut off.
      text_width: features of a token.
      text_depth: blocks of the transformer.

    Raises:
      ValueError: a width that isn't even, or that the heads of 64 features don't divide.
    """
    check(is_whole(text_width, 2) and text_width % 2 == 0, "text_width", text_width, "even")
    layers.num_heads(text_width, 64)

    def rows(captions: Sequence[str]) -> Rows:
        tokens = np.zeros((len(captions), text_length), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, caption in enumerate(captions):
            found = b"" if is_empty(caption) else utf8(caption)[:text_length]
            tokens[row, : len(found)] = list(found)
            mask[row, : len(found)] = True
        return {"tokens": tokens, "mask": mask}

    return TextEncoder(
        rows,
        lambda dtype: BytesNetwork(text_length, text_width, text_depth, dtype),
        lambda caption: len(utf8(caption)),
        text_length,
    )


# --- MiniLM ---------------------------------------------------------------------------------------


class FrozenFeatures(nn.Module):
    """Features that were computed before, as they are; it has no parameters.

    Attributes:
      length: tokens of a caption.
      width: features of a token.
      dtype: of the result.
    """

    length: int
    width: int
    dtype: jnp.dtype

    def nulls(self, num: int) -> Rows:
        """The rows of the null text."""
        return {
            "features": jnp.zeros((num, self.length, self.width)),
            "mask": jnp.zeros((num, self.length), bool),
            "pooled": jnp.zeros((num, self.width)),
        }

    @nn.compact
    def __call__(self, rows: Rows) -> TextFeatures:
        tokens, mask = rows["features"].astype(self.dtype), rows["mask"]
        return TextFeatures(tokens, mask, rows["pooled"].astype(self.dtype))


_MOST_AT_ONCE = 64  # captions that go through MiniLM together


def of_minilm(text_length: int = 32) -> TextEncoder:
    """all-MiniLM-L6-v2, frozen: 384 features for each token, and their mean for the caption.

    Both are brought to about unit variance: the mean is divided by its norm, as its authors do,
    and multiplied by sqrt(384).

    Args:
      text_length: tokens of a caption that count, the first and the last one included; the rest is
        cut off.

    Raises:
      ValueError: a package is missing; the sentence says how to get it.
    """
    check(is_whole(text_length, 3), "text_length", text_length, "at least 3 of minilm")
    encoder = minilm.load()

    def rows(captions: Sequence[str]) -> Rows:
        plain = [utf8(caption).decode() for caption in captions]
        parts = [
            encoder.encode(plain[i : i + _MOST_AT_ONCE], text_length)
            for i in range(0, len(plain), _MOST_AT_ONCE)
        ]
        tokens, mask = (np.concatenate(part) for part in zip(*parts))
        mask &= ~np.array([is_empty(caption) for caption in captions])[:, None]
        tokens = np.where(mask[..., None], tokens, 0)
        mean = tokens.sum(1) / np.maximum(mask.sum(1, keepdims=True), 1)
        norm = np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        return {
            "features": tokens.astype(np.float32),
            "mask": mask,
            "pooled": (mean / norm * np.sqrt(minilm.WIDTH)).astype(np.float32),
        }

    return TextEncoder(
        rows,
        lambda dtype: FrozenFeatures(text_length, minilm.WIDTH, dtype),
        lambda caption: encoder.count(utf8(caption).decode()),
        text_length,
        encoder.fingerprint,
    )


TEXT_ENCODERS: Constructors[TextEncoder] = Constructors(
    "text encoder", {"bytes": of_bytes, "minilm": of_minilm}
)


def get(name: str, **options: Any) -> TextEncoder:
    """The text encoder of that name, as config.condition.text names it.

    Raises:
      ValueError: an unknown name or option, or a package that is missing.
    """
    return TEXT_ENCODERS.build(name, **options)


def register(name: str, constructor: Callable[..., TextEncoder]) -> None:
    """Makes a text encoder reachable as config.condition.text.

    Args:
      constructor: (**options) -> `TextEncoder`; the options become keys of config.condition.

    Raises:
      ValueError: the name is taken, or an option's type isn't known.
    """
    TEXT_ENCODERS.register(name, constructor)


# --- how a network uses the features --------------------------------------------------------------


def features_of(encoder: nn.Module | None, rows: Rows | None, num: int) -> TextFeatures | None:
    """The features of `num` captions, None for the null text, by a network's own encoder; None if
    it has none.

    Raises:
      ValueError: captions for a network without an encoder.
    """
    if encoder is None:
        if rows is not None:
            raise ValueError("text was given, and this network was made without a text encoder")
        return None
    return encoder(encoder.nulls(num) if rows is None else rows)


class AddPooled(nn.Module):
    """(B, features): what is added to a noise embedding, linear in the pooled features.

    Without a bias, so that the null text adds nothing.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: TextFeatures) -> jax.Array:
        dense = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="dense")
        return dense(text.pooled)


class CrossAttention(nn.Module):
    """project(attention(query(h), key(text), value(text))) for tokens h, (B, N, C).

    `project` starts at zero and has no bias: the result is exactly zero at initialisation, and
    under the null text.
    """

    head_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, text: TextFeatures) -> jax.Array:
        batch, _, channels = h.shape
        heads = layers.num_heads(channels, self.head_width)

        def split(a: jax.Array) -> jax.Array:
            return a.reshape(batch, -1, heads, channels // heads)

        query = split(layers.dense(channels, self.dtype, "query")(h))
        both = nn.Dense(2 * channels, dtype=self.dtype, name="key_value")(text.tokens)
        key, value = map(split, jnp.split(both, 2, axis=-1))
        out = operations.masked_attention(query, key, value, text.mask)
        options = dict(use_bias=False, kernel_init=nn.initializers.zeros)
        return layers.dense(channels, self.dtype, "project", **options)(out.reshape(h.shape))


class SpatialCrossAttention(nn.Module):
    """x + `CrossAttention` of norm(x), for x of shape (B, ..., C)."""

    head_width: int
    dtype: jnp.dtype
    norm: layers.Norm = layers.Norm()

    @nn.compact
    def __call__(self, x: jax.Array, text: TextFeatures) -> jax.Array:
        h = layers.GroupNorm(self.norm, name="norm")(x).reshape(x.shape[0], -1, x.shape[-1])
        attend = CrossAttention(self.head_width, self.dtype, name="attention")
        return x + attend(h, text).reshape(x.shape)
