"""The U-Net of Ho 2020, with choices of Dhariwal & Nichol 2021, for signals, images and volumes."""

import math
import numbers
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers, operations
from diffax.models.embeddings import Conditioning
from diffax.models.layers import check, is_whole

# Of a strided convolution: "SAME" pads an even size behind alone.
_PADDINGS = {"end": "SAME", "both": 1}


class UNet(nn.Module):
    """A U-Net for x of shape (B, ..., C): 1-D signals, images, volumes, by the same code.

    Every level has `num_blocks` residual blocks on the way down and one more on the way up; between
    levels each spatial axis is halved by a strided convolution, and doubled by nearest-neighbour
    upsampling and a convolution. Self-attention follows the blocks at `attention_resolutions` and,
    as in Ho 2020, stands in the middle. The last convolution, each block's second convolution and
    each attention's projection start at zero: the output is exactly zero at initialisation.

    Attributes:
      channels: channels of the first level, even.
      channel_mults: channels of each level as multiples of `channels`; as many as there are levels.
      num_blocks: residual blocks per level.
      attention_resolutions: levels with self-attention, by the size of their longest spatial axis.
      head_width: channels per attention head. It divides a level's channels; fewer form one head.
      dropout: rate of dropout in each residual block, in [0, 1); it acts if `train` is true.
      num_classes: K > 0 makes the network take labels 0 .. K - 1 and the null class, K.
      conditioning: what the noise level is: "log_snr" or "step" (of order 0 .. 1000).
      embedding: how a block is conditioned: "add", or "scale_shift" of its second normalisation.
      dtype: "float32" or "bfloat16", of the computation; parameters, norm statistics, softmax and
        output are float32.
      remat: recompute each block in the backward pass, which saves memory for time.
      remat_levels: of these levels only, 0 the first, where most memory is; () for all.
      learned_variance: give 2 C channels, the second half of which is for the reverse variance.
      num_groups: of every group normalisation, for weights from elsewhere; it divides all widths.
        0: at most 32 of at least 4 channels, each width its own.
      norm_epsilon: what the normalisations add to the variance.
      max_period: the ratio of the noise embedding's fastest and slowest wave, about.
      padding: of the strided convolutions: "end" pads by 1 behind (as Ho 2020), "both" on both
        sides.

    Raises:
      ValueError: a field or an argument is not allowed; the sentence names it.
    """

    channels: int = 64
    channel_mults: Sequence[int] = (1, 2, 2)
    num_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    head_width: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    conditioning: str = "log_snr"
    embedding: str = "scale_shift"
    dtype: str = "float32"
    remat: bool = False
    remat_levels: Sequence[int] = ()
    learned_variance: bool = False
    num_groups: int = 0
    norm_epsilon: float = operations.NORM_EPSILON
    max_period: float = 10_000.0
    padding: str = "end"

    def __post_init__(self):
        layers.check_shared_fields(self, "channels")
        groups = self.num_groups
        fits = is_whole(groups, 0) and (groups == 0 or self.channels % groups == 0)
        check(fits, "num_groups", groups, f"0, or a divisor of channels={self.channels}")
        for field in ("norm_epsilon", "max_period"):
            value = getattr(self, field)
            fits = isinstance(value, numbers.Real) and 0 < value < math.inf
            check(fits, field, value, "a positive number")
        layers.check_name("padding", self.padding, _PADDINGS)
        for field, least in (("channel_mults", 1), ("attention_resolutions", 0)):
            value = getattr(self, field)
            fits = isinstance(value, list | tuple) and all(is_whole(entry, 1) for entry in value)
            rule = f"a sequence of at least {least} positive integers"
            check(fits and len(value) >= least, field, value, rule)
            setattr(self, field, tuple(value))
        levels = self.remat_levels
        fits = isinstance(levels, list | tuple) and all(
            is_whole(level, 0) and level < len(self.channel_mults) for level in levels
        )
        rule = f"a sequence of levels, 0 to {len(self.channel_mults) - 1}"
        check(fits, "remat_levels", levels, rule)
        self.remat_levels = tuple(levels)
        for field in ("num_blocks", "head_width"):
            value = getattr(self, field)
            check(is_whole(value, 1), field, value, "a positive integer")
        rate = self.dropout
        fits = isinstance(rate, numbers.Real) and 0 <= rate < 1
        check(fits, "dropout", rate, "a number in [0, 1)")
        layers.check_name("embedding", self.embedding, layers.EMBEDDINGS)
        super().__post_init__()

    def least_parameters(self) -> int:
        """A lower bound of the number of parameters, by the blocks' kernels for signals alone."""
        kernels = sum((self.channels * mult) ** 2 for mult in self.channel_mults)
        return (2 * self.num_blocks + 1) * 2 * 3 * kernels

    def remarks(self, shape: tuple[int, ...]) -> list[str]:
        """What of its fields is without effect for examples of a shape (..., C), in words."""
        sizes = [max(shape[:-1]) // 2**level for level in range(len(self.channel_mults))]
        unmet = [size for size in self.attention_resolutions if size not in sizes]
        if not unmet:
            return []
        return [
            f"attention_resolutions names {', '.join(map(str, unmet))}, and no level has that size:"
            f" the levels of these data have {', '.join(map(str, sizes))}"
        ]

    def check_sizes(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless the levels can halve the spatial axes of a shape (B, ..., C)."""
        if len(shape) < 3:
            raise ValueError(f"x has shape {shape}; a U-Net takes (B, ..., C) with a spatial axis")
        layers.check_halvings(shape[1:-1], len(self.channel_mults))

    def __call__(
        self,
        x: jax.Array,
        noise_level: jax.Array,
        label: jax.Array | None = None,
        train: bool = False,
        latent: jax.Array | None = None,
    ) -> jax.Array:
        """The network's prediction for the noised data x.

        Args:
          x: (B, ..., C), real, with at least one spatial axis.
          noise_level: (B,), the log-SNR (plus and minus infinity allowed) or the step number.
          label: (B,) integer in 0 .. num_classes, or None: the null class for all.
          train: whether dropout acts, which needs an rng named "dropout".
          latent: (B, Z), noise that the prediction also depends on, if it is there at init; None
            otherwise.

        Returns:
          float32 of x's shape, or (B, ..., 2 C) if `learned_variance`.
        """
        self.check_sizes(x.shape)
        layers.check_conditions(x, noise_level, label, self.num_classes)
        entries = math.prod(x.shape[1:-1]) * self.channels
        network = layers.in_chunks(UNet._network, entries)
        return network(self, x, noise_level, label, latent, train=train)

    @nn.compact
    def _network(
        self,
        x: jax.Array,
        noise_level: jax.Array,
        label: jax.Array | None,
        latent: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """`__call__` for examples that go through together."""
        dtype, spatial = layers.DTYPES[self.dtype], x.ndim - 2
        norm = layers.Norm(self.num_groups, self.norm_epsilon)
        padding = _PADDINGS[self.padding]

        emb = Conditioning(
            self.channels,
            4 * self.channels,
            self.conditioning,
            self.num_classes,
            dtype,
            self.max_period,
            name="noise_embedding",
        )(noise_level, label, latent)

        def block(h: jax.Array, level: int, attend: bool, name: str) -> jax.Array:
            ResBlock, Attention = layers.ResBlock, layers.Attention
            if self.remat and level in (self.remat_levels or range(len(widths))):
                ResBlock, Attention = nn.remat(ResBlock, static_argnums=3), nn.remat(Attention)
            fields = (widths[level], self.dropout, self.embedding, dtype, norm)
            h = ResBlock(*fields, name=name)(h, emb, train)
            if not attend:
                return h
            return Attention(self.head_width, dtype, norm, name=f"{name}_attention")(h)

        def attends(h: jax.Array) -> bool:
            return max(h.shape[1:-1]) in self.attention_resolutions

        widths = [self.channels * mult for mult in self.channel_mults]
        h = layers.conv(self.channels, spatial, dtype, "first")(x.astype(dtype))
        skips = [h]
        for level in range(len(widths)):
            if level > 0:
                name, width = f"down_{level}", widths[level - 1]
                h = layers.conv(width, spatial, dtype, name, strides=2, padding=padding)(h)
                skips.append(h)
            for i in range(self.num_blocks):
                h = block(h, level, attends(h), f"down_{level}_block_{i}")
                skips.append(h)

        last_level = len(widths) - 1
        h = block(h, last_level, True, "middle_block_0")
        h = block(h, last_level, False, "middle_block_1")

        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, level, attends(h), f"up_{level}_block_{i}")
            if level > 0:
                h = layers.upsampling_conv(width, spatial, dtype, f"up_{level}")(h)

        h = layers.silu(layers.GroupNorm(norm, name="last_norm")(h))
        features = x.shape[-1] * (2 if self.learned_variance else 1)
        last = layers.conv(features, spatial, dtype, "last", kernel_init=nn.initializers.zeros)
        return last(h).astype(jnp.float32)
