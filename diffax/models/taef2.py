"""TAEF2, a tiny autoencoder of images that was distilled from that of FLUX.2.

The layers and their order are those of https://github.com/madebyollin/taesd (MIT), and are called
by their numbers there, so that its files can be read.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

FACTOR = 8  # sides of an image over those of its latents
LATENT_CHANNELS = 32
_WIDTH = 64
_BOUND = 3.0  # to which the decoder squashes latents


def _conv(features: int, name: str, stride: int = 1, bias: bool = True) -> nn.Conv:
    # By "SAME" a stride of 2 would begin a pixel later than in PyTorch.
    around = ((1, 1), (1, 1))
    return nn.Conv(features, (3, 3), stride, around, use_bias=bias, name=name)


class Block(nn.Module):
    """x + three convolutions of x, (B, H, W, 64); `normalised`: with a bottleneck before them."""

    normalised: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.normalised:
            wide = nn.Conv(4 * _WIDTH, (1, 1), use_bias=False, name="pool_0")(x)
            wide = nn.relu(nn.GroupNorm(4, epsilon=1e-5, name="pool_1")(wide))
            x = x + nn.Conv(_WIDTH, (1, 1), use_bias=False, name="pool_3")(wide)
        h = nn.relu(_conv(_WIDTH, "conv_0")(x))
        h = nn.relu(_conv(_WIDTH, "conv_2")(h))
        return nn.relu(_conv(_WIDTH, "conv_4")(h) + x)


class Encoder(nn.Module):
    """Images, (B, H, W, 3) in [0, 1], to latents, (B, H / 8, W / 8, 32)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Block(name="layer_1")(_conv(_WIDTH, "layer_0")(x))
        for first in (2, 6, 10):
            x = _conv(_WIDTH, f"layer_{first}", stride=2, bias=False)(x)
            for i in range(first + 1, first + 4):
                x = Block(normalised=first == 10, name=f"layer_{i}")(x)
        return _conv(LATENT_CHANNELS, "layer_14")(x)


class Decoder(nn.Module):
    """Latents, (B, H / 8, W / 8, 32), to images, (B, H, W, 3) about [0, 1]."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.relu(_conv(_WIDTH, "layer_1")(_BOUND * jnp.tanh(z / _BOUND)))
        for first in (3, 8, 13):
            for i in range(first, first + 3):
                x = Block(normalised=first == 3, name=f"layer_{i}")(x)
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = _conv(_WIDTH, f"layer_{first + 4}", bias=False)(x)
        return _conv(3, "layer_19")(Block(name="layer_18")(x))


class TAEF2(nn.Module):
    """Encoder and decoder of images in [-1, 1]; it has no training here."""

    def setup(self):
        self.encoder, self.decoder = Encoder(), Decoder()

    def encode(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) in [-1, 1] -> (B, H / 8, W / 8, 32)."""
        return self.encoder((x + 1) / 2)

    def decode(self, z: jax.Array) -> jax.Array:
        """(B, H / 8, W / 8, 32) -> (B, H, W, 3), about [-1, 1]."""
        return 2 * self.decoder(z) - 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction of x."""
        return self.decode(self.encode(x))


def latent_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H / 8, W / 8, 32), of images of a shape (H, W, 3).

    Raises:
      ValueError: they are no images in colour, or a side is no multiple of 8.
    """
    if len(shape) != 3 or shape[-1] != 3 or any(side % FACTOR for side in shape[:2]):
        raise ValueError(
            f"it takes colour images, (H, W, 3), whose sides are multiples of {FACTOR}, and the"
            f" data have shape {tuple(shape)}"
        )
    return (*(side // FACTOR for side in shape[:2]), LATENT_CHANNELS)


def convert(encoder: Mapping[str, np.ndarray], decoder: Mapping[str, np.ndarray]) -> Any:
    """The parameters of `TAEF2` from the tensors of the published files, float32.

    Raises:
      ValueError: a tensor is missing, is not one of TAEF2 or has another shape; it is named.
    """
    like = jax.eval_shape(TAEF2().init, jax.random.key(0), jnp.zeros((1, FACTOR, FACTOR, 3)))
    flat = traverse_util.flatten_dict(like["params"])
    made = {}
    for part, tensors in (("encoder", encoder), ("decoder", decoder)):
        wanted = {path[1:]: leaf.shape for path, leaf in flat.items() if path[0] == part}
        found = dict(_named(name, tensor) for name, tensor in tensors.items())
        for path in dict.fromkeys((*wanted, *found)):
            have, want = (
                shapes.get(path) for shapes in ({p: found[p].shape for p in found}, wanted)
            )
            if have != want:
                raise ValueError(
                    f"these are not the tensors of TAEF2's {part}: {'.'.join(path)} is"
                    f" {have or 'missing'}, and {want or 'nothing'} is expected"
                )
        made |= {(part, *path): array for path, array in found.items()}
    return traverse_util.unflatten_dict(made)


def _named(name: str, tensor: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Where a tensor's parameter is: "11.pool.1.weight" is at layer_11, pool_1, scale."""
    layer, *inside, kind = name.split(".")
    array = np.asarray(tensor, np.float32)
    if kind == "weight":
        kind = "kernel" if array.ndim == 4 else "scale"
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return (f"layer_{layer}", *(["_".join(inside)] if inside else []), kind), array
