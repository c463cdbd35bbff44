"""The discriminator of a GAN: data, (B, ..., C), to a logit of being real, (B,)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers
from diffax.models.embeddings import Conditioning, class_rows
from diffax.models.layers import check, is_whole


class Discriminator(nn.Module):
    """A residual network from images, signals or points to one number and some features.

    Each level has `num_blocks` residual blocks; from a level to the next every spatial axis is
    halved. The last level, flattened, gives 4 `channels` features by a dense layer, and these the
    logit by another. A noise level conditions the blocks by a scale and a shift. A label adds
    <its row, features> / sqrt(number of features) to the logit (Miyato & Koyama 2018). Nothing
    depends on other examples of the batch.

    Attributes:
      channels: width of the first level, even.
      channel_mults: width of each level in units of `channels`; with n levels every spatial axis of
        the data is a multiple of 2^(n - 1).
      num_blocks: residual blocks of a level.
      num_classes: K > 0 makes the network take labels 0 .. K - 1 and the null class, K.
      dtype: "float32" or "bfloat16", of the computation; parameters and output are float32.

    Raises:
      ValueError: a field or an argument is not allowed; the sentence names it.
    """

    channels: int = 64
    channel_mults: tuple[int, ...] = (1, 2, 2)
    num_blocks: int = 2
    num_classes: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        layers.check_channel_mults(self)
        even = is_whole(self.channels, 2) and self.channels % 2 == 0
        check(even, "channels", self.channels, "an even positive integer")
        check(is_whole(self.num_blocks, 1), "num_blocks", self.num_blocks, "a positive integer")
        check(is_whole(self.num_classes, 0), "num_classes", self.num_classes, "an integer >= 0")
        layers.check_name("dtype", self.dtype, layers.DTYPES)
        super().__post_init__()

    def least_parameters(self) -> int:
        """A lower bound of the number of parameters, by the blocks' kernels for points alone."""
        return 2 * self.num_blocks * sum((self.channels * mult) ** 2 for mult in self.channel_mults)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise_level: jax.Array | None = None,
        label: jax.Array | None = None,
        given: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """How real the data look, in the light of what else is known.

        Args:
          x: (B, ..., C), real.
          noise_level: (B,), the log-SNR, infinity allowed; None where data are clean.
          label: (B,) integer in 0 .. num_classes, or None: the null class for all.
          given: (B, ..., C'), what x is to fit; None for nothing.

        Returns:
          The logits, float32 (B,), and the features, float32 (B, 4 channels).
        """
        spatial, dtype = x.ndim - 2, layers.DTYPES[self.dtype]
        layers.check_halvings(x.shape[1:-1], len(self.channel_mults))
        widths = [self.channels * mult for mult in self.channel_mults]
        num_features = 4 * self.channels
        emb = None
        if noise_level is not None:
            embed = Conditioning(self.channels, num_features, "log_snr", 0, dtype, name="noise")
            emb = embed(noise_level, None)

        h = x if given is None else jnp.concatenate([x, given], axis=-1)
        first = layers.conv(widths[0], spatial, dtype, "first") if spatial else None
        h = (first or layers.dense(widths[0], dtype, "first"))(h.astype(dtype))
        for level, width in enumerate(widths):
            if level > 0 and spatial:
                down = layers.conv(width, spatial, dtype, f"down_{level}", strides=2)
                h = down(h)
            for i in range(self.num_blocks):
                name = f"level_{level}_block_{i}"
                h = layers.block(width, spatial, dtype, name)(h, emb)
        h = layers.silu(h).reshape(len(x), -1)
        features = layers.silu(layers.dense(num_features, dtype, "features")(h))
        logit = layers.dense(1, dtype, "logit")(features)[:, 0]
        if self.num_classes:
            row = class_rows(label, len(x), self.num_classes, num_features, dtype)
            logit = logit + jnp.sum(row * features, axis=-1) / num_features**0.5
        return logit.astype(jnp.float32), features.astype(jnp.float32)
