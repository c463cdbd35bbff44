"""A checksum of an array that doesn't ask where its parts lie."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    # Bits as unsigned integers; values of 8 bytes become two of 4 in a last axis.
    bits = jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        step = jnp.uint32(stride % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * step
        stride *= words.shape[axis]
    mixed = words + place * jnp.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """The sum mod 2**32 over an array's words of mix(word + place * 0x9E3779B1), for each array.

    A word is an element's bits (of an element of 8 bytes each half), place its index in C order,
    and mix the final step of MurmurHash3 (Appleby 2011), a bijection of 32-bit integers. So any
    change within one word changes the sum, a flipped bit for certain; other changes go unnoticed
    once in 2**32 times.

    The sum is taken on the devices where the array lies, and no order or sharding changes it:
    nothing is copied to the host, and an array that is spread over several hosts is no special
    case. All hosts must call it.
    """
    # Programs are kept by shape, of which a network has few; one for all compiles for long. Each
    # ends before the next begins: of two in flight, two hosts' CPUs may each begin another first.
    return {path: int(_checksum(array)) for path, array in arrays.items()}
