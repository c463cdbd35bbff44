"""How much of a batch goes through a network at once on a CPU."""

import math

from diffax.models.platform_conv import alone

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
    return some if alone() and some < batch and 2 * some >= fitting else batch
