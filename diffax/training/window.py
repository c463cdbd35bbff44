"""The metrics of the latest steps: left on the device until they are asked for, then averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffax.runtime import Failed
from diffax.training.step import MUST_BE_FINITE


class NonFiniteError(Failed, FloatingPointError):
    """Too many steps in a row had a loss or a gradient that was not finite.

    Attributes:
      step, quantity, value: where it began.
      log_snr: of the example with the largest loss (or one that is not finite) in that step.
      skipped: how many steps it were in a row, none of which changed anything.
    """

    def __init__(
        self, step: int, quantity: str, value: float, log_snr: float, skipped: int, kept: str = ""
    ):
        super().__init__(
            f"the {quantity} is {value} in step {step}, where the worst example is at log-SNR"
            f" {log_snr:.3g}; {skipped} step{'s' * (skipped > 1)} in a row had to be skipped{kept}"
        )
        self.step, self.quantity, self.value = step, quantity, value
        self.log_snr, self.skipped = log_snr, skipped


class Window:
    """The metrics of each step since the window was last emptied.

    Args:
      remembered: what `memory` gave, to go on from there.
      most_skipped: so many steps in a row may be skipped.
    """

    def __init__(self, remembered: Sequence[Mapping[str, float]] = (), most_skipped: int = 0):
        self._entries: list[Mapping[str, float]] = list(remembered)
        self._calls: list[tuple[int, Mapping[str, Any]]] = []  # not fetched yet
        self._most_skipped = most_skipped

    def add(self, first_step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of some steps, each (steps,), without waiting for them."""
        self._calls.append((first_step, metrics))

    def memory(self) -> list[dict[str, float]]:
        """The entries as plain numbers; waits for the device."""
        for first, metrics in jax.device_get(self._calls):
            columns = {name: np.asarray(values).tolist() for name, values in metrics.items()}
            for i, values in enumerate(zip(*columns.values(), strict=True)):
                self._entries.append({"step": first + i, **dict(zip(columns, values))})
        self._calls = []
        return list(self._entries)

    def check(self, last: bool = False) -> None:
        """Raises NonFiniteError if too many steps in a row were not finite; at the `last` step, if
        there is such a row at all, since nothing can follow that ends it."""
        row: list[Mapping[str, float]] = []
        entries = self.memory()
        for i, entry in enumerate(entries, 1):
            row = [*row, entry] if _not_finite(entry) else []
            if len(row) > self._most_skipped or (row and last and i == len(entries)):
                first, (name, words) = row[0], _not_finite(row[0])
                log_snr = first.get("worst_log_snr", math.nan)
                raise NonFiniteError(first["step"], words, first[name], log_snr, len(row))

    def take_mean(self) -> dict[str, float]:
        """The mean of each metric over the window, which is emptied.

        Steps that were skipped are left out and, if there were any, counted as "skipped_steps".
        Metrics of the schedule's updates are averaged over the steps that made one, and left out
        if none did.
        """
        entries = self.memory()
        last_good = max((i for i, e in enumerate(entries) if not _not_finite(e)), default=-1)
        # Those that may be the beginning of a row stay, but are not counted again.
        self._entries = [{**entry, "counted": True} for entry in entries[last_good + 1 :]]
        entries = [entry for entry in entries if not entry.get("counted")]
        good = [entry for entry in entries if not _not_finite(entry)]
        updates = [entry for entry in good if entry.get("schedule_updated")]
        mean = {}
        for name in good[0] if good else ():
            over = updates if name.startswith("schedule_") else good
            if over and name not in _NOT_AVERAGED:
                mean[name] = math.fsum(entry[name] for entry in over) / len(over)
        skipped = len(entries) - len(good)
        return mean | ({"skipped_steps": skipped} if skipped else {})


_NOT_AVERAGED = ("step", "schedule_updated", "worst_log_snr")


def _not_finite(entry: Mapping[str, float]) -> tuple[str, str] | None:
    """The first quantity of a step that is not finite, and its name in words."""
    for name, words in MUST_BE_FINITE.items():
        if not math.isfinite(entry.get(name, 0.0)):
            return name, words
    return None
