"""Prefetches batches to the devices, so that a training step never waits for them."""

import collections
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np


class DevicePrefetcher:
    """An iterator of (number of steps, their batches on the devices).

    The transfer to a device goes on while the step before runs: JAX does not wait for either.

    Args:
      batches: of `diffax.data.batches`.
      place: puts batches, stacked along a new first axis, on their devices.
      sizes: how many batches to stack for each call; the iterator ends with it.
      ahead: how many calls' batches lie on the devices, besides the one that is handed out.
    """

    def __init__(
        self, batches: Any, place: Callable[[Any], Any], sizes: Iterator[int], ahead: int = 2
    ) -> None:
        self._batches, self._place, self._sizes = batches, place, iter(sizes)
        self._ahead = ahead
        self._queue: collections.deque[tuple[int, Any, Any]] = collections.deque()
        self._state = batches.get_state()

    def get_state(self) -> Any:
        """The state that `batches` was in after those which were handed out."""
        return self._state

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Any]:
        while len(self._queue) <= self._ahead and (size := next(self._sizes, 0)):
            several = [next(self._batches) for _ in range(size)]
            stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *several)
            self._queue.append((size, self._place(stacked), self._batches.get_state()))
        if not self._queue:
            raise StopIteration
        size, placed, self._state = self._queue.popleft()
        return size, placed


def sizes(done: int, num_steps: int, steps_per_call: int) -> Iterator[int]:
    """How many steps each call takes from step `done` on: up to the next multiple of
    `steps_per_call`, or to the last step."""
    while done < num_steps:
        size = min(steps_per_call - done % steps_per_call, num_steps - done)
        yield size
        done += size
