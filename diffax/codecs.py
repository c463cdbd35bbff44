"""Codecs: from data to the space where a method works, and back.

codec = diffax.codecs.load("runs/autoencoder")
z = codec.encode(x)      # (n, ..., C) -> (n, *codec.shape), about unit variance
x = codec.decode(z)
codec = diffax.codecs.taef2("weights/taef2", (64, 64, 3))   # the published files of TAEF2
"""

from diffax.methods.codec import Codec
from diffax.training.codecs import CODECS, load, taef2

__all__ = ["CODECS", "Codec", "identity", "load", "taef2"]


def identity(shape: tuple[int, ...]) -> Codec:
    """The codec that changes nothing, for data of a shape, (..., C)."""
    return Codec(tuple(shape))
