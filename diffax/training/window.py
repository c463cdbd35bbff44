"""The metrics of the latest steps: left on the device until they are asked for, then averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffax.training.step import MUST_BE_FINITE


class NonFiniteError(FloatingPointError):
    """The loss or a gradient was not finite; `step`, `quantity` and `value` say when and which."""

    def __init__(self, step: int, quantity: str, value: float, kept: str = ""):
        super().__init__(f"the {quantity} is {value} in step {step}{kept}")
        self.step, self.quantity, self.value = step, quantity, value


class Window:
    """The metrics of each step since the window was last emptied.

    Args:
      remembered: what `memory` gave, to go on from there.
    """

    def __init__(self, remembered: Sequence[Mapping[str, float]] = ()):
        self._entries: list[Mapping[str, Any]] = list(remembered)

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step without waiting for them."""
        self._entries.append({"step": step, **metrics})

    def memory(self) -> list[dict[str, float]]:
        """The entries as plain numbers; waits for the device."""
        fetched = jax.device_get(self._entries)
        self._entries = [{k: np.asarray(v).item() for k, v in entry.items()} for entry in fetched]
        return list(self._entries)

    def check(self) -> None:
        """Raises NonFiniteError for the first step whose loss or gradient was not finite."""
        for entry in self.memory():
            for name, words in MUST_BE_FINITE.items():
                if not math.isfinite(entry.get(name, 0.0)):
                    raise NonFiniteError(entry["step"], words, entry[name])

    def take_mean(self) -> dict[str, float]:
        """The mean of each metric over the window, which is emptied.

        Metrics of the schedule's updates are averaged over the steps that made one, and left out
        if none did.
        """
        entries, self._entries = self.memory(), []
        updates = [entry for entry in entries if entry.get("schedule_updated")]
        mean = {}
        for name in entries[0] if entries else ():
            over = updates if name.startswith("schedule_") else entries
            if over and name not in ("step", "schedule_updated"):
                mean[name] = math.fsum(entry[name] for entry in over) / len(over)
        return mean
