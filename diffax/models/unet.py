"""The U-Net of Ho 2020, with choices of Dhariwal & Nichol 2021, for signals, images and volumes."""

import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers, operations
from diffax.models.embeddings import Conditioning
from diffax.models.layers import check, is_whole
from diffax.models.text import AddPooled, Rows, SpatialCrossAttention, TextFeatures, features_of
from diffax.models.transformer import Transformer

# Of a strided convolution: "SAME" pads an even size behind alone.
_PADDINGS = {"end": "SAME", "both": 1}


def _plain(
    fields: tuple[Any, ...], name: str, kept: Callable, h: jax.Array, words: TextFeatures | None
) -> jax.Array:
    h = kept(layers.Attention)(*fields, name=f"{name}_attention")(h)
    if words is None:
        return h
    return kept(SpatialCrossAttention)(*fields, name=f"{name}_text")(h, words)


def _transformer(
    fields: tuple[Any, ...], name: str, kept: Callable, h: jax.Array, words: TextFeatures | None
) -> jax.Array:
    return kept(Transformer)(*fields, name=f"{name}_attention")(h, words)


# What follows a residual block with attention; `kept` makes a module one that is recomputed.
_ATTENTIONS = {"plain": _plain, "transformer": _transformer}


class Embedded(NamedTuple):
    """What every block is conditioned on."""

    emb: jax.Array  # (B, 4 channels), of noise level, label, latent and the caption as a whole
    words: TextFeatures | None  # of the caption's tokens


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
      control_shape: (..., C'), of one example's control, which then stands beside x at the first
        convolution (see `layers.beside`); () for none.
      step_log_snrs: of weights that were trained by step numbers, the log-SNR of each step, so that
        they can be sampled and trained under any schedule: conditioning "log_snr" then gives them
        the step number that has it, in proportion between two steps; (): no such weights.
      step_rows: T > 0 embeds the noise level by a table of T rows, one for each step, that is
        trained along ("learned" time embedding), in place of sines; a level between two steps gets
        its share of both rows. Then step_log_snrs has T entries, or conditioning is "step".
      attention: "plain", attention to all places and then to the text, each on a normalisation of
        its own; or "transformer", a block of latent diffusion's (see `transformer.Transformer`).
      text: the part that encodes captions, `TextEncoder.network` of `models.text`, or None. Where
        there is one, attention to a caption's tokens follows each self-attention, and the caption's
        pooled features are added to the noise embedding.

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
    control_shape: Sequence[int] = ()
    step_log_snrs: Sequence[float] = ()
    step_rows: int = 0
    attention: str = "plain"
    text: nn.Module | None = None

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
        layers.check_name("attention", self.attention, _ATTENTIONS)
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
        self.control_shape = tuple(self.control_shape)
        table = self.step_log_snrs
        fits = isinstance(table, list | tuple) and all(
            isinstance(entry, numbers.Real) and math.isfinite(entry) for entry in table
        )
        fits = fits and len(table) != 1 and all(b < a for a, b in itertools.pairwise(table))
        check(fits, "step_log_snrs", table, "two or more finite numbers that fall, or ()")
        self.step_log_snrs = tuple(table)
        rows = self.step_rows
        fits = is_whole(rows, 0) and rows != 1
        fits = fits and (not rows or self.conditioning == "step" or len(table) == rows)
        rule = f"0, or two or more with as many step_log_snrs (here {len(table)})"
        check(fits, "step_rows", rows, rule)
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
        control: Mapping[str, jax.Array] | None = None,
        text: Rows | None = None,
    ) -> jax.Array:
        """The network's prediction for the noised data x.

        Args:
          x: (B, ..., C), real, with at least one spatial axis.
          noise_level: (B,), the log-SNR (plus and minus infinity allowed) or the step number.
          label: (B,) integer in 0 .. num_classes, or None: the null class for all.
          train: whether dropout acts, which needs an rng named "dropout".
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
        entries = math.prod(x.shape[1:-1]) * self.channels
        network = layers.in_chunks(type(self)._network, entries)
        given = {"label": label, "latent": latent, "control": control, "text": text}
        return network(self, x, noise_level, given, train=train)

    @nn.compact
    def _network(
        self,
        x: jax.Array,
        noise_level: jax.Array,
        given: Mapping[str, Any],
        train: bool,
        joints: Sequence[jax.Array] = (),
    ) -> jax.Array:
        """`__call__` for examples that go through together.

        Args:
          given: the conditions by name.
          joints: what is added to each skip connection, in their order, and to the middle; () for
            nothing.
        """
        emb = self._embedded(noise_level, given)
        seen = layers.beside(x, given["control"], self.control_shape)
        h, skips = self._down(seen, emb, train)
        if joints:
            *skips, h = (own + joint for own, joint in zip([*skips, h], joints, strict=True))
        return self._up(h, skips, emb, x.shape[-1], train)

    # --- its parts, in the order of the data; called within `_network` ---

    def _embedded(self, noise_level: jax.Array, given: Mapping[str, Any]) -> Embedded:
        """Noise level and conditions, as the blocks are given them."""
        dtype = layers.DTYPES[self.dtype]
        embed = Conditioning(
            self.channels,
            4 * self.channels,
            self.conditioning,
            self.num_classes,
            dtype,
            self.max_period,
            self.step_log_snrs,
            self.step_rows,
            name="noise_embedding",
        )
        emb = embed(noise_level, given["label"], given["latent"])
        words = features_of(self.text, given["text"], len(noise_level))
        if words is not None:
            emb = emb + AddPooled(4 * self.channels, dtype, name="text_pooled")(words)
        return Embedded(emb, words)

    def _norm(self) -> layers.Norm:
        return layers.Norm(self.num_groups, self.norm_epsilon)

    def _widths(self) -> list[int]:
        return [self.channels * mult for mult in self.channel_mults]

    def _attends(self, h: jax.Array) -> bool:
        return max(h.shape[1:-1]) in self.attention_resolutions

    def _block(
        self, h: jax.Array, emb: Embedded, train: bool, level: int, attend: bool, name: str
    ) -> jax.Array:
        """A residual block of a level, and attention after it: to all places, then to the text."""
        dtype, norm, widths = layers.DTYPES[self.dtype], self._norm(), self._widths()
        ResBlock, kept = layers.ResBlock, lambda module: module
        if self.remat and level in (self.remat_levels or range(len(widths))):
            ResBlock, kept = nn.remat(ResBlock, static_argnums=3), nn.remat
        fields = (widths[level], self.dropout, self.embedding, dtype, norm)
        h = ResBlock(*fields, name=name)(h, emb.emb, train)
        if not attend:
            return h
        fields = (self.head_width, dtype, norm)
        return _ATTENTIONS[self.attention](fields, name, kept, h, emb.words)

    def _down(
        self, x: jax.Array, emb: Embedded, train: bool, hint: jax.Array | None = None
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The first convolution, to which a hint is added, the way down and the middle: what comes
        out of the middle, and the skip connections in their order."""
        dtype, spatial, widths = layers.DTYPES[self.dtype], x.ndim - 2, self._widths()
        h = layers.conv(self.channels, spatial, dtype, "first")(x.astype(dtype))
        h = h if hint is None else h + hint
        skips = [h]
        for level in range(len(widths)):
            if level > 0:
                name, padding = f"down_{level}", _PADDINGS[self.padding]
                down = dict(strides=2, padding=padding)
                h = layers.conv(widths[level - 1], spatial, dtype, name, **down)(h)
                skips.append(h)
            for i in range(self.num_blocks):
                h = self._block(h, emb, train, level, self._attends(h), f"down_{level}_block_{i}")
                skips.append(h)
        last = len(widths) - 1
        h = self._block(h, emb, train, last, True, "middle_block_0")
        return self._block(h, emb, train, last, False, "middle_block_1"), skips

    def _up(
        self, h: jax.Array, skips: list[jax.Array], emb: Embedded, channels: int, train: bool
    ) -> jax.Array:
        """The way up, and the last convolution: data of so many channels."""
        dtype, spatial, skips = layers.DTYPES[self.dtype], h.ndim - 2, list(skips)
        for level, width in reversed(list(enumerate(self._widths()))):
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, emb, train, level, self._attends(h), f"up_{level}_block_{i}")
            if level > 0:
                h = layers.upsampling_conv(width, spatial, dtype, f"up_{level}")(h)
        h = layers.silu(layers.GroupNorm(self._norm(), name="last_norm")(h))
        features = channels * (2 if self.learned_variance else 1)
        last = layers.conv(features, spatial, dtype, "last", kernel_init=nn.initializers.zeros)
        return last(h).astype(jnp.float32)
