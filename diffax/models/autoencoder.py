"""A convolutional autoencoder for images and signals: (B, ..., C) to (B, ... / f, Z) and back."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers
from diffax.models.layers import GroupNorm, ResBlock, check, conv, is_whole, silu, upsampling_conv

LOG_VARIANCE_LIMITS = (-30.0, 20.0)  # beyond them exp is 0 or infinite in float32


class Encoder(nn.Module):
    """x, (B, ..., C), to what the latents' distribution is made of, (B, ... / f, features)."""

    widths: tuple[int, ...]
    num_blocks: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spatial = x.ndim - 2
        h = conv(self.widths[0], spatial, self.dtype, "first")(x.astype(self.dtype))
        for level, width in enumerate(self.widths):
            if level > 0:
                h = conv(width, spatial, self.dtype, f"down_{level}", strides=2)(h)
            for i in range(self.num_blocks):
                block = ResBlock(width, 0.0, "", self.dtype, name=f"level_{level}_block_{i}")
                h = block(h, None, False)
        h = silu(GroupNorm(name="last_norm")(h))
        return conv(self.features, spatial, self.dtype, "last")(h).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents, (B, ... / f, Z), to data, (B, ..., features)."""

    widths: tuple[int, ...]
    num_blocks: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        spatial = z.ndim - 2
        h = conv(self.widths[-1], spatial, self.dtype, "first")(z.astype(self.dtype))
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.num_blocks):
                block = ResBlock(width, 0.0, "", self.dtype, name=f"level_{level}_block_{i}")
                h = block(h, None, False)
            if level > 0:
                width = self.widths[level - 1]
                h = upsampling_conv(width, spatial, self.dtype, f"up_{level}")(h)
        h = silu(GroupNorm(name="last_norm")(h))
        return conv(self.features, spatial, self.dtype, "last")(h).astype(jnp.float32)


class Autoencoder(nn.Module):
    """A convolutional autoencoder with a normal distribution of latents (Kingma & Welling 2014).

    Each level but the first halves every spatial axis, so that f = 2^(levels - 1).

    Attributes:
      channels: width of the first level, even.
      channel_mults: width of each level, in units of `channels`.
      num_blocks: residual blocks of a level.
      latent_channels: Z, channels of the latents.
      data_channels: C, channels of the data.
      dtype: "float32" or "bfloat16", of the computation; parameters and output are float32.

    Raises:
      ValueError: a field or an argument is not allowed; the sentence names it.
    """

    channels: int = 32
    channel_mults: tuple[int, ...] = (1, 2)
    num_blocks: int = 1
    latent_channels: int = 4
    data_channels: int = 1
    dtype: str = "float32"

    denoises = False

    def __post_init__(self):
        layers.check_channel_mults(self)
        for field in ("channels", "num_blocks", "latent_channels", "data_channels"):
            value = getattr(self, field)
            check(is_whole(value, 1), field, value, "a positive integer")
        layers.check_name("dtype", self.dtype, layers.DTYPES)
        super().__post_init__()

    def setup(self):
        widths = tuple(self.channels * mult for mult in self.channel_mults)
        dtype = layers.DTYPES[self.dtype]
        self.encoder = Encoder(widths, self.num_blocks, 2 * self.latent_channels, dtype)
        self.decoder = Decoder(widths, self.num_blocks, self.data_channels, dtype)

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the latents of x, (B, ... / f, Z) each, float32."""
        self.check_sizes(x.shape)
        mean, log_variance = jnp.split(self.encoder(x), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_LIMITS)

    def decode(self, z: jax.Array) -> jax.Array:
        """The data, (B, ..., C) float32, that latents stand for."""
        return self.decoder(z)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction of x from the mean of its latents."""
        return self.decode(self.encode(x)[0])

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(... / f, Z), the shape of the latents of data of a shape, (..., C)."""
        self.check_sizes((1, *shape))
        factor = 2 ** (len(self.channel_mults) - 1)
        return (*(size // factor for size in shape[:-1]), self.latent_channels)

    def check_sizes(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless the levels can halve the spatial axes of a shape (B, ..., C)."""
        if len(shape) < 3:
            raise ValueError(f"x has shape {shape}; it must be (B, ..., C) with a spatial axis")
        if shape[-1] != self.data_channels:
            raise ValueError(f"x has {shape[-1]} channels; data_channels is {self.data_channels}")
        layers.check_halvings(shape[1:-1], len(self.channel_mults))
