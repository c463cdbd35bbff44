"""The diffusion transformer of Peebles & Xie 2023, for signals, images and volumes."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers
from diffax.models.embeddings import Conditioning, sinusoidal
from diffax.models.layers import check, is_whole
from diffax.models.text import AddPooled, CrossAttention, Rows, TextFeatures, features_of

NORM_EPSILON = 1e-6


class DiT(nn.Module):
    """A transformer over patches of x, (B, ..., C), conditioned by adaLN-Zero (Peebles & Xie 2023).

    Every axis is cut into patches of `patch_size`. A patch becomes one token by a linear layer, to
    which fixed sines and cosines of its place are added. Each of `depth` blocks adds attention,
    then a two-layer perceptron, to the tokens:

        h = h + gate * f(norm(h) * (1 + scale) + shift),

    with a scale, a shift and a gate for each, linear in the embedding of noise level and label. A
    last normalisation, modulated in the same way, and a linear layer give the patches of the
    output. The layers that give scales, shifts and gates start at zero, and so does the last one:
    every block is the identity at initialisation, and the output is exactly zero. The other kernels
    start as flax's do (LeCun's normal distribution), where the paper's start by Glorot's uniform
    one.

    The places are not learned, so a network takes inputs of any size that the patches divide.

    Attributes:
      patch_size: length of a patch along every axis.
      width: features of a token; a multiple of twice the number of spatial axes.
      depth: number of blocks.
      head_width: features per attention head. It divides `width`; fewer form one head.
      mlp_ratio: hidden features of a block's perceptron, as a multiple of `width`.
      num_classes: K > 0 makes the network take labels 0 .. K - 1 and the null class, K.
      conditioning: what the noise level is: "log_snr" or "step" (of order 0 .. 1000).
      dtype: "float32" or "bfloat16", of the computation; parameters, norm statistics, softmax and
        output are float32.
      remat: recompute each block in the backward pass, which saves memory for time.
      learned_variance: give 2 C channels, the second half of which is for the reverse variance.
      control_shape: (..., C'), of one example's control, which is then cut into patches beside x
        (see `layers.beside`); () for none.
      text: the part that encodes captions, `TextEncoder.network` of `models.text`, or None. Where
        there is one, each block attends to a caption's tokens after its self-attention (Chen 2023,
        PixArt), and the caption's pooled features are added to the noise embedding.

    Raises:
      ValueError: a field or an argument is not allowed; the sentence names it.
    """

    patch_size: int = 2
    width: int = 128
    depth: int = 6
    head_width: int = 64
    mlp_ratio: float = 4.0
    num_classes: int = 0
    conditioning: str = "log_snr"
    dtype: str = "float32"
    remat: bool = False
    learned_variance: bool = False
    control_shape: Sequence[int] = ()
    text: nn.Module | None = None

    def __post_init__(self):
        layers.check_shared_fields(self, "width")
        for field in ("patch_size", "depth", "head_width"):
            value = getattr(self, field)
            check(is_whole(value, 1), field, value, "a positive integer")
        ratio = self.mlp_ratio
        fits = isinstance(ratio, numbers.Real) and 0 < ratio < math.inf
        check(fits and ratio * self.width >= 1, "mlp_ratio", ratio, "a positive number")
        layers.num_heads(self.width, self.head_width)
        self.control_shape = tuple(self.control_shape)
        super().__post_init__()

    def least_parameters(self) -> int:
        """A lower bound of the number of parameters, by the blocks' kernels alone."""
        hidden = int(self.mlp_ratio * self.width)
        return self.depth * self.width * (10 * self.width + 2 * hidden)

    def check_sizes(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless the patches divide the spatial axes of a shape (B, ..., C)."""
        if len(shape) < 3:
            raise ValueError(f"x has shape {shape}; a DiT takes (B, ..., C) with a spatial axis")
        spatial, patch = shape[1:-1], self.patch_size
        if any(size == 0 or size % patch for size in spatial):
            size = " x ".join(map(str, spatial))
            raise ValueError(
                f"x has spatial size {size}, which patch_size={patch} does not divide;"
                f" every axis must be a multiple of {patch}"
            )
        multiple = 2 * len(spatial)
        rule = f"a multiple of {multiple}, since the data have {len(spatial)} spatial axes"
        check(self.width % multiple == 0, "width", self.width, rule)

    def __call__(
        self,
        x: jax.Array,
        noise_level: jax.Array,
        label: jax.Array | None = None,
        train: bool = False,
        latent: jax.Array | None = None,
        control: Mapping[str, jax.Array] | None = None,
        text: Rows | None = None,
    ) -> jax.Array:
        """The network's prediction for the noised data x.

        Args:
          x: (B, ..., C), real, with at least one spatial axis.
          noise_level: (B,), the log-SNR (plus and minus infinity allowed) or the step number.
          label: (B,) integer in 0 .. num_classes, or None: the null class for all.
          train: without effect; every network is called alike.
          latent: (B, Z), noise that the prediction also depends on, if it is there at init; None
            otherwise.
          control: {"image": (B, *control_shape), "strength": (B, n)}, or None for no control; a
            network without `control_shape` takes none.
          text: the rows of B captions, or None: the null text for all; see `models.text`.

        Returns:
          float32 of x's shape, or (B, ..., 2 C) if `learned_variance`.
        """
        self.check_sizes(x.shape)
        layers.check_conditions(x, noise_level, label, self.num_classes)
        layers.check_control(x, control, self.control_shape)
        entries = math.prod(x.shape[1:-1]) * self.width // self.patch_size ** (x.ndim - 2)
        network = layers.in_chunks(DiT._network, entries)
        given = {"label": label, "latent": latent, "control": control, "text": text}
        return network(self, x, noise_level, given, train=train)

    @nn.compact
    def _network(
        self, x: jax.Array, noise_level: jax.Array, given: Mapping[str, Any], train: bool
    ) -> jax.Array:
        """`__call__` for examples that go through together; `given`: its conditions by name."""
        dtype, zeros = layers.DTYPES[self.dtype], nn.initializers.zeros
        condition = (self.conditioning, self.num_classes, dtype)
        embed = Conditioning(self.width, self.width, *condition, name="noise_embedding")
        emb = embed(noise_level, given["label"], given["latent"])
        words = features_of(self.text, given["text"], len(x))
        if words is not None:
            emb = emb + AddPooled(self.width, dtype, name="text_pooled")(words)
        emb = nn.silu(emb)

        seen = layers.beside(x, given["control"], self.control_shape)
        tokens = to_patches(seen, self.patch_size)
        grid = tuple(size // self.patch_size for size in x.shape[1:-1])
        h = nn.Dense(self.width, dtype=dtype, name="first")(tokens)
        h = h + places(grid, self.width).astype(dtype)
        Block = nn.remat(DiTBlock) if self.remat else DiTBlock
        for i in range(self.depth):
            h = Block(self.head_width, self.mlp_ratio, dtype, name=f"block_{i}")(h, emb, words)

        signal = nn.Dense(2 * self.width, dtype=dtype, kernel_init=zeros, name="last_modulation")
        h = modulated(h, *jnp.split(signal(emb)[:, None], 2, axis=-1))
        channels = x.shape[-1] * (2 if self.learned_variance else 1)
        features = channels * self.patch_size ** len(grid)
        out = nn.Dense(features, dtype=dtype, kernel_init=zeros, name="last")(h)
        return from_patches(out, grid, self.patch_size).astype(jnp.float32)


class DiTBlock(nn.Module):
    """Attention and a two-layer perceptron, each modulated by the embedding (adaLN-Zero); between
    them, where there is text, attention to its tokens."""

    head_width: int
    mlp_ratio: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, h: jax.Array, emb: jax.Array, words: TextFeatures | None = None
    ) -> jax.Array:
        batch, length, width = h.shape
        heads = layers.num_heads(width, self.head_width)

        def dense(features: int, name: str, **kwargs) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, name=name, **kwargs)

        signal = dense(6 * width, "modulation", kernel_init=nn.initializers.zeros)(emb)[:, None]
        shift_0, scale_0, gate_0, shift_1, scale_1, gate_1 = jnp.split(signal, 6, axis=-1)
        qkv = dense(3 * width, "qkv")(modulated(h, shift_0, scale_0))
        qkv = qkv.reshape(batch, length, 3, heads, width // heads)
        attended = layers.attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = h + gate_0 * dense(width, "project")(attended.reshape(h.shape))
        if words is not None:
            attend = CrossAttention(self.head_width, self.dtype, name="text")
            h = h + attend(modulated(h, 0.0, 0.0), words)
        hidden = dense(int(self.mlp_ratio * width), "mlp_0")(modulated(h, shift_1, scale_1))
        return h + gate_1 * dense(width, "mlp_1")(nn.gelu(hidden))


def modulated(h: jax.Array, shift: jax.Array | float, scale: jax.Array | float) -> jax.Array:
    """norm(h) (1 + scale) + shift, the mean and variance over the features taken in float32."""
    wide = h.astype(jnp.promote_types(h.dtype, jnp.float32))
    return jax.nn.standardize(wide, epsilon=NORM_EPSILON).astype(h.dtype) * (1 + scale) + shift


def to_patches(x: jax.Array, size: int) -> jax.Array:
    """(B, ..., C) as (B, tokens, size^axes * C): each axis cut into patches of `size`.

    The tokens are in row-major order of the patches; within a token the entries are in row-major
    order of their place in the patch, channels last.
    """
    axes = x.ndim - 2
    cut = [part for length in x.shape[1:-1] for part in (length // size, size)]
    x = x.reshape(x.shape[0], *cut, x.shape[-1])
    grid, within = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    x = x.transpose(0, *grid, *within, 2 * axes + 1)
    return x.reshape(x.shape[0], math.prod(x.shape[1 : axes + 1]), -1)


def from_patches(tokens: jax.Array, grid: tuple[int, ...], size: int) -> jax.Array:
    """The inverse of `to_patches` for a grid of so many patches along each axis."""
    axes = len(grid)
    x = tokens.reshape(tokens.shape[0], *grid, *(size,) * axes, -1)
    pairs = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    x = x.transpose(0, *pairs, 2 * axes + 1)
    return x.reshape(x.shape[0], *(size * count for count in grid), -1)


def places(grid: tuple[int, ...], width: int) -> jax.Array:
    """(tokens, width): sines and cosines of each patch's place, an equal part of them per axis."""
    each = width // len(grid)
    along = [sinusoidal(jnp.arange(count), each) for count in grid]
    spread = [
        jnp.broadcast_to(jnp.expand_dims(waves, [a for a in range(len(grid)) if a != axis]),
                         (*grid, each))
        for axis, waves in enumerate(along)
    ]  # fmt: skip
    return jnp.concatenate(spread, axis=-1).reshape(-1, width)
