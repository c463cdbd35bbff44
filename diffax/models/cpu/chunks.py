"""A network applied to a few examples at a time, so that they stay in a CPU's cache."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax

from diffax.models import platform

# What a core keeps near: so many entries of the largest activation, in float32.
ENTRIES = 2**18


def examples_at_once(batch: int, entries: int) -> int:
    """The examples that shall go through together, a divisor of `batch`.

    Fewer than all where JAX has one CPU device and an example's largest activation has so many
    `entries` that the batch's would leave the cache between two operations. Twice too few would
    make the products narrow: then it is all.
    """
    fitting = 2 ** int(math.log2(max(ENTRIES // entries, 1)))
    some = math.gcd(batch, fitting)
    return some if platform.alone() and some < batch and 2 * some >= fitting else batch


def in_chunks(network: Callable, entries: int) -> Callable:
    """network(module, *arrays, train), in a loop over parts of the batch where that is faster.

    Each array, or None, has the batch axis first. `entries`: of an example's largest activation.
    In training and at initialisation it is all at once: in a loop, XLA's CPU compiler does a
    convolution's gradient badly.
    """

    def apply(module: nn.Module, *arrays: jax.Array | None, train: bool) -> jax.Array:
        batch = len(arrays[0])
        at_once = examples_at_once(batch, entries)
        if train or at_once == batch or module.is_initializing():
            return network(module, *arrays, train)

        def next_chunk(module: nn.Module, carry: None, chunk: tuple) -> tuple[None, jax.Array]:
            return carry, network(module, *chunk, train)

        chunks = jax.tree.map(lambda a: a.reshape(-1, at_once, *a.shape[1:]), arrays)
        _, out = nn.scan(next_chunk, variable_broadcast="params")(module, None, chunks)
        return out.reshape(batch, *out.shape[2:])

    return apply
