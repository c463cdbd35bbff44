"""Codecs: from data to the space where a method works, and back.

codec = diffax.codecs.load("runs/autoencoder")
z = codec.encode(x)      # (n, ..., C) -> (n, *codec.shape), about unit variance
x = codec.decode(z)
"""

from diffax.methods.codec import Codec
from diffax.training.codecs import CODECS, load

__all__ = ["CODECS", "Codec", "identity", "load"]


def identity(shape: tuple[int, ...]) -> Codec:
    """The codec that changes nothing, for data of a shape, (..., C)."""
    return Codec(tuple(shape))
