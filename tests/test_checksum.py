"""Checksums: any flipped bit changes them, and how an array is spread over devices does not."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffax.training.checkpoint import checksums

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((4, 3)).astype(np.float32),
    "not finite": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
    "bfloat16": RNG.standard_normal(5).astype(ml_dtypes.bfloat16),
    "uint32": RNG.integers(0, 2**32, (2, 2, 2), np.uint32),
    "int8": RNG.integers(-128, 128, 7, np.int8),
    "scalar": np.int32(7),
}


def of(array):
    return checksums({"a": jnp.asarray(array)})["a"]


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_every_flipped_bit_changes_it(array):
    array = np.asarray(array)
    before, seen = of(array), set()
    data = np.frombuffer(array.tobytes(), np.uint8)
    for bit in range(8 * len(data)):
        flipped = data.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        seen.add(of(flipped.view(array.dtype).reshape(array.shape)))
    assert before not in seen
    # Nor do two flips give the same; of so few it would be a wonder.
    assert len(seen) == 8 * len(data)


def test_the_order_counts_and_zeros_do_too():
    array = np.arange(1000, dtype=np.float32)
    assert len({of(array), of(array[::-1]), of(np.roll(array, 1)), of(array[:-1])}) == 4
    assert of(np.zeros(3, np.float32)) != of(np.zeros(4, np.float32))


def test_booleans_have_one_too():
    assert of(np.array([True, False])) != of(np.array([True, True]))


@pytest.mark.parametrize("spec", [("a", "b"), ("b", "a"), (None, "a"), (("a", "b"),), ()])
def test_sharding_does_not_change_it(spec):
    array = RNG.standard_normal((16, 8, 3)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert of(sharded) == of(array)


def test_it_is_the_sum_that_is_described():
    """In NumPy: a checkpoint that was saved today must be good tomorrow."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    words = array.ravel().view(np.uint32) + np.arange(6, dtype=np.uint32) * np.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    assert of(array) == int(words.astype(np.uint64).sum() % 2**32)
