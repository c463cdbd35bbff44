"""The generator of a GAN: a latent vector to data, (B, Z) to (B, ..., C)."""

import math

import flax.linen as nn
import jax

from diffax.models import layers
from diffax.models.embeddings import Mapping, class_rows
from diffax.models.layers import check, is_whole


class Generator(nn.Module):
    """A residual network from latents to images, signals or points.

    The latent becomes the embedding w, by two dense layers; the label adds a row to it. A dense
    layer of w gives the smallest level. Each level has `num_blocks` residual blocks, conditioned by
    w with a scale and a shift (as in Karras 2019); from a level to the next every spatial axis is
    doubled. Points, (B, D), have no spatial axes: their levels differ in width alone.

    Attributes:
      channels: width of the largest level, even.
      channel_mults: width of each level, the largest first, in units of `channels`; with n levels
        every spatial axis of the data is a multiple of 2^(n - 1).
      num_blocks: residual blocks of a level.
      num_classes: K > 0 makes the network take labels 0 .. K - 1 and the null class, K.
      data_shape: of one example, (..., C).
      dtype: "float32" or "bfloat16", of the computation; parameters and output are float32.

    Raises:
      ValueError: a field or an argument is not allowed; the sentence names it.
    """

    channels: int = 64
    channel_mults: tuple[int, ...] = (1, 2, 2)
    num_blocks: int = 2
    num_classes: int = 0
    data_shape: tuple[int, ...] = (1,)
    dtype: str = "float32"

    denoises = False  # it is given no data
    generates = True

    def __post_init__(self):
        layers.check_channel_mults(self)
        for field, least in (("channels", 1), ("num_blocks", 1), ("num_classes", 0)):
            value = getattr(self, field)
            check(is_whole(value, least), field, value, f"an integer >= {least}")
        layers.check_name("dtype", self.dtype, layers.DTYPES)
        self.data_shape = tuple(self.data_shape)
        super().__post_init__()

    def least_parameters(self) -> int:
        """A lower bound of the number of parameters, by the blocks' kernels for points alone."""
        return 2 * self.num_blocks * sum((self.channels * mult) ** 2 for mult in self.channel_mults)

    @nn.compact
    def __call__(
        self, latent: jax.Array, label: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """The data that latents stand for.

        Args:
          latent: (B, Z), standard normal.
          label: (B,) integer in 0 .. num_classes, or None: the null class for all.
          train: without effect.

        Returns:
          float32 (B, *data_shape).
        """
        *sizes, features = self.data_shape
        spatial, levels, dtype = len(sizes), len(self.channel_mults), layers.DTYPES[self.dtype]
        layers.check_halvings(tuple(sizes), levels)
        widths = [self.channels * mult for mult in self.channel_mults]
        emb = Mapping(4 * self.channels, dtype, name="latent")(latent)
        if self.num_classes:
            emb = emb + class_rows(label, len(latent), self.num_classes, 4 * self.channels, dtype)

        smallest = [size // 2 ** (levels - 1) for size in sizes]
        h = layers.dense(math.prod(smallest) * widths[-1], dtype, "first")(layers.silu(emb))
        h = h.reshape(len(latent), *smallest, widths[-1])
        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_blocks):
                name = f"level_{level}_block_{i}"
                h = layers.block(width, spatial, dtype, name)(h, emb)
            if level > 0 and spatial:
                h = layers.upsampling_conv(widths[level - 1], spatial, dtype, f"up_{level}")(h)
        h = layers.silu(h)
        last = layers.conv(features, spatial, dtype, "last") if spatial else None
        last = last or layers.dense(features, dtype, "last")
        return last(h).astype("float32")
