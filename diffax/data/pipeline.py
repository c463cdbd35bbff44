"""Endless batches from a split: shuffled, sharded, resumable."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from diffax.data.dataset import Split, check_flip

_ENDLESS = 2**62
_PERMUTATIONS, _FLIPS = 0, 1  # the random streams of a seed


def batches(
    split: Split,
    batch_size: int,
    seed: int,
    flip: bool = False,
    shard_index: int = 0,
    shard_count: int = 1,
    num_threads: int = 1,
):
    """An endless iterator of batches, deterministic from `seed`.

    Every epoch visits each example once, in a permutation of its own. The epochs are strung
    together and cut into batches: a batch that an epoch does not fill is completed from the next
    one, so no example is dropped. Batch i depends on `seed`, `batch_size`, `flip` and i only.

    Args:
      split: the examples.
      batch_size: examples a step over all shards together (`training.batch_size`).
      seed: 0 <= seed < 2**64.
      flip: mirror each image, and its control, left to right with probability 1/2.
      shard_index, shard_count: this host's place among the hosts. Each host receives its contiguous
        piece of every batch; the pieces joined in order are the batch of a single host.
      num_threads: threads that prepare batches ahead; the order does not depend on it. 0: none.

    Returns:
      A `grain.DatasetIterator` of {"x": float32 (batch_size / shard_count, ..., C), "label": int32
      (batch_size / shard_count,), or None for a split without labels} and of what else the split
      has; see `Split.batch`. `get_state()` gives a
      small dict that JSON can hold; after `set_state(state)` the iterator goes on exactly as the
      one that gave it.

    Raises:
      ValueError: if `batch_size` is not positive, exceeds the split, or is no multiple of
        `shard_count`; for a flip of what is no image; for a seed or shard out of range.
    """
    import grain

    check_batch_size(batch_size, split)
    if shard_count < 1 or batch_size % shard_count:
        raise ValueError(
            f"training.batch_size={batch_size} must be a multiple of the {shard_count} hosts."
        )
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index={shard_index} must be from 0 to {shard_count - 1}.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} must be from 0 to 2**64 - 1.")
    check_flip(flip, split.x.shape[1:])
    gather = _Gather(split, batch_size, int(seed), flip, shard_index, shard_count)
    dataset = grain.MapDataset.range(_ENDLESS).map(gather)
    # A few batches ahead hide the gather; more would only take memory.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(options))


def check_batch_size(batch_size: int, split: Split) -> None:
    """Raises ValueError if a batch has no example, or more than a split."""
    if not 1 <= batch_size <= len(split):
        raise ValueError(
            f"training.batch_size={batch_size} must be from 1 to {len(split)}, "
            "the number of examples in the split."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Gather:
    """Batch number -> this shard's piece of the batch. No state: any order of calls will do."""

    split: Split
    batch_size: int
    seed: int
    flip: bool
    shard_index: int
    shard_count: int

    def __call__(self, number: int) -> dict[str, Any]:
        size = self.batch_size // self.shard_count
        piece = slice(self.shard_index * size, (self.shard_index + 1) * size)
        indices = self.indices(number)[piece]
        mirrored = None
        if self.flip:
            mirrored = (_random_bits(self.seed, _FLIPS, number, self.batch_size) >> 63)[piece] == 1
        return self.split.batch(indices, mirrored)

    def indices(self, number: int) -> np.ndarray:
        """The examples of batch `number`, of all shards."""
        num = len(self.split)
        first = number * self.batch_size
        epoch, offset = divmod(first, num)
        indices = self._order(epoch)[offset : offset + self.batch_size]
        missing = self.batch_size - len(indices)
        if missing:
            indices = np.concatenate([indices, self._order(epoch + 1)[:missing]])
        return indices

    @functools.cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        """Epoch -> its permutation; those of the latest are remembered, of each run its own."""
        return functools.lru_cache(maxsize=4)(
            lambda epoch: _permutation(self.seed, epoch, len(self.split))
        )


def _random_bits(seed: int, stream: int, number: int, num: int) -> np.ndarray:
    """`num` uniform 64-bit integers, independent for every (seed, stream, number).

    The raw output of Philox (Salmon 2011) with key (seed, stream), from its counter at
    (0, 0, 0, number). NumPy guarantees raw streams across its versions, not those of `Generator`.
    """
    key, counter = (np.array(a, np.uint64) for a in ([seed, stream], [0, 0, 0, number]))
    return np.random.Philox(key=key, counter=counter).random_raw(num)


def _permutation(seed: int, epoch: int, num: int) -> np.ndarray:
    return np.argsort(_random_bits(seed, _PERMUTATIONS, epoch, num), kind="stable")
