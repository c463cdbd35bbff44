"""The metrics of the latest steps: left on the device until they are asked for, then averaged."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax.runtime import Failed
from diffax.training.step import MUST_HOLD


class NonFiniteError(Failed, FloatingPointError):
    """Too many steps in a row had a loss or a gradient that was not finite, or a huge update.

    Attributes:
      step, quantity, value: where it began.
      log_snr: of the example with the largest loss (or one that is not finite) in that step.
      skipped: how many steps it were in a row, none of which changed anything.
      section: of the config, with the learning rate at fault: "optimizer", "schedule_learning".
    """

    def __init__(
        self,
        step: int,
        quantity: str,
        value: float,
        log_snr: float,
        skipped: int,
        section: str = "optimizer",
        kept: str = "",
    ):
        super().__init__(
            f"the {quantity} is {value:.3g} in step {step}, where the worst example is at log-SNR"
            f" {log_snr:.3g}; {skipped} step{'s' * (skipped > 1)} in a row had to be skipped{kept}"
        )
        self.step, self.quantity, self.value = step, quantity, value
        self.log_snr, self.skipped, self.section = log_snr, skipped, section

    def of_run(self, where: str, config: ConfigDict) -> NonFiniteError:
        """The same, which says where the run is, what of it is kept and what to change."""
        lower = f"{self.section}.learning_rate={config[self.section].learning_rate:g}"
        return NonFiniteError(
            self.step,
            self.quantity,
            self.value,
            self.log_snr,
            self.skipped,
            self.section,
            f"{where}. A lower {lower} usually helps, or a lower {self.section}.clip_norm; with it"
            " and config.training.allow_config_change=True the same call (or command) goes on",
        )


class Window:
    """The metrics of each step since the window was last emptied.

    Args:
      remembered: what `memory` gave, to go on from there.
      most_skipped: so many steps in a row may be skipped.
    """

    def __init__(self, remembered: Sequence[Mapping[str, float]] = (), most_skipped: int = 0):
        self._entries: list[Mapping[str, float]] = list(remembered)
        self._calls: list[tuple[int, Mapping[str, Any]]] = []  # not fetched yet
        self._most_skipped, self._fetched = most_skipped, 0

    def add(self, first_step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of some steps, each (steps,), without waiting for them."""
        self._calls.append((first_step, metrics))

    def completed(self) -> int:
        """The latest step that the devices have done, 0 if there was none; waits for none. May be
        asked from another thread."""
        calls, fetched = list(self._calls), self._fetched

        def is_open(call: tuple[int, Mapping[str, Any]]) -> bool:
            return not call[1]["loss"].is_ready()

        number = bisect.bisect_left(calls, True, key=is_open)
        if number == 0:
            return fetched
        first, metrics = calls[number - 1]
        return first + len(metrics["loss"]) - 1

    def memory(self) -> list[dict[str, float]]:
        """The entries as plain numbers; waits for the device."""
        for first, metrics in jax.device_get(self._calls):
            columns = {name: np.asarray(values).tolist() for name, values in metrics.items()}
            for i, values in enumerate(zip(*columns.values(), strict=True)):
                self._entries.append({"step": first + i, **dict(zip(columns, values))})
        self._fetched = self._entries[-1]["step"] if self._entries else self._fetched
        self._calls = []
        return list(self._entries)

    def check(self, last: bool = False) -> None:
        """Raises NonFiniteError if too many steps in a row were not finite; at the `last` step, if
        there is such a row at all, since nothing can follow that ends it."""
        row: list[Mapping[str, float]] = []
        entries = self.memory()
        for i, entry in enumerate(entries, 1):
            row = [] if is_good(entry) else [*row, entry]
            if len(row) > self._most_skipped or (row and last and i == len(entries)):
                raise _error(row)

    def in_row(self) -> bool:
        """Whether the latest step was skipped."""
        entries = self.memory()
        return bool(entries) and not is_good(entries[-1])

    def take_mean(self) -> dict[str, float]:
        """The mean of each metric over the window, which is emptied.

        Steps that were skipped are left out and, if there were any, counted as "skipped_steps".
        Metrics of the schedule's updates are averaged over the steps that made one, and left out
        if none did.
        """
        entries = self.memory()
        last_good = max((i for i, e in enumerate(entries) if is_good(e)), default=-1)
        # Those that may be the beginning of a row stay, but are not counted again.
        self._entries = [{**entry, "counted": True} for entry in entries[last_good + 1 :]]
        entries = [entry for entry in entries if not entry.get("counted")]
        good = [entry for entry in entries if is_good(entry)]
        updates = [entry for entry in good if entry.get("schedule_updated")]
        mean = {}
        for name in good[0] if good else ():
            over = updates if name.startswith("schedule_") else good
            if over and name not in _NOT_AVERAGED:
                mean[name] = math.fsum(entry[name] for entry in over) / len(over)
        skipped = len(entries) - len(good)
        return mean | ({"skipped_steps": skipped} if skipped else {})


_NOT_AVERAGED = (
    "step", "schedule_updated", "worst_log_snr", "update_size", "schedule_update_size",
)  # fmt: skip


def is_good(entry: Mapping[str, float]) -> bool:
    """Whether a step changed anything: all that must be finite was so."""
    return all(bound.holds(entry.get(name, 0.0)) for name, bound in MUST_HOLD.items())


def _error(row: Sequence[Mapping[str, float]]) -> NonFiniteError:
    first = row[0]
    name = next(n for n, bound in MUST_HOLD.items() if not bound.holds(first.get(n, 0.0)))
    words, section, _ = MUST_HOLD[name]
    log_snr = first.get("worst_log_snr", math.nan)
    # A learned schedule has finite ends: one that gives something else is what went wrong.
    if "schedule_updated" in first and not math.isfinite(log_snr):
        section = "schedule_learning"
    return NonFiniteError(first["step"], words, first[name], log_snr, len(row), section)
