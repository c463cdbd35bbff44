"""Which checkpoints hold a state that is known to train.

A step tells of the parameters from which it started, so that what was saved after a step is known
to be good only when a later one finds a usual loss and a finite gradient there, whether or not its
update could be made. Until then the last that is known to be so must stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from diffax.methods import Bounded

# A loss so many times the usual one is finite by luck alone.
WILD = 1000.0
_MEMORY = 0.9  # of the usual loss, at each step


class Trust:
    """The latest checkpoint that is known to be good, `step`, and the later ones, `doubted`.

    Args:
      required: of the method.
      step: as remembered; None if there is none.
      doubted: as remembered, ascending.
    """

    def __init__(
        self,
        required: Mapping[str, Bounded],
        step: int | None = None,
        doubted: Iterable[int] = (),
    ):
        # What a step finds where it started; the size of its update tells of the rate.
        self._of_start = [name for name, bound in required.items() if bound.largest == math.inf]
        self.step, self.doubted = step, list(doubted)
        self._seen, self._usual = 0, math.inf

    def saved(self, step: int) -> None:
        """A checkpoint was made after this step."""
        self.doubted.append(step)

    def see(self, entries: Iterable[Mapping[str, float]]) -> None:
        """Learns from the metrics of steps, of `MetricBuffer.memory`; those seen before are passed
        over."""
        for entry in entries:
            if entry["step"] <= self._seen:
                continue
            self._seen, loss = entry["step"], abs(entry["loss"])
            finite = all(math.isfinite(entry.get(name, 0.0)) for name in self._of_start)
            if not finite or loss > WILD * self._usual:
                continue
            first = self._usual == math.inf
            self._usual = loss if first else _MEMORY * self._usual + (1 - _MEMORY) * loss
            for step in [step for step in self.doubted if step < self._seen]:
                self.step = step
                self.doubted.remove(step)
