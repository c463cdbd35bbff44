"""The metrics of the latest steps: left on the device until they are asked for, then averaged; and
which checkpoints they show to be good."""

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffax.methods import Method
from diffax.methods.base import Bounded
from diffax.runtime import Failed


class NonFiniteError(Failed, FloatingPointError):
    """Too many steps in a row had a loss or a gradient that was not finite, or a huge update.

    Attributes:
      step, quantity, value: where it began.
      skipped: how many steps in a row were skipped; none of them changed anything.
      section: of the config, with the learning rate at fault: "optimizer", "schedule_learning".
      detail: what the method says of that step.
    """

    def __init__(self, step, quantity, value, skipped, section="optimizer", detail="", advice=""):
        where = f", {detail}" if detail else ""
        super().__init__(
            f"the {quantity} is {value:.3g} in step {step}{where};"
            f" {skipped} step{'s' * (skipped > 1)} in a row had to be skipped{advice}"
        )
        self.step, self.quantity, self.value = step, quantity, value
        self.skipped, self.section, self.detail = skipped, section, detail


class MetricBuffer:
    """The metrics of each step since the buffer was last emptied.

    Args:
      method: whose steps give the metrics.
      remembered: what `memory` gave, to go on from there.
      most_skipped: how many steps in a row may be skipped.
    """

    def __init__(
        self, method: Method, remembered: Sequence[Mapping[str, float]] = (), most_skipped: int = 0
    ):
        self._method = method
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

    def check(self, last: bool = False, advise: Callable[[str], str] = lambda section: "") -> None:
        """Raises NonFiniteError if too many steps in a row were not finite; at the `last` step, if
        there is such a row at all, since nothing can follow that ends it.

        `advise`: the config's section at fault -> what the error says at its end.
        """
        row: list[Mapping[str, float]] = []
        entries = self.memory()
        for i, entry in enumerate(entries, 1):
            row = [] if self._is_good(entry) else [*row, entry]
            if len(row) > self._most_skipped or (row and last and i == len(entries)):
                raise _error(self._method, row, advise)

    def in_row(self) -> bool:
        """Whether the latest step was skipped."""
        entries = self.memory()
        return bool(entries) and not self._is_good(entries[-1])

    def take_mean(self) -> dict[str, float]:
        """The mean of each metric over the buffer, which is emptied.

        Steps that were skipped are left out and, if there were any, counted as "skipped_steps".
        Metrics with a flag are averaged over the steps where it is 1, and left out if there is
        none.
        """
        entries = self.memory()
        last_good = max((i for i, e in enumerate(entries) if self._is_good(e)), default=-1)
        # Those that may be the beginning of a row stay, but are not counted again.
        self._entries = [{**entry, "counted": True} for entry in entries[last_good + 1 :]]
        entries = [entry for entry in entries if not entry.get("counted")]
        good = [entry for entry in entries if self._is_good(entry)]
        mean = {}
        for name in good[0] if good else ():
            flags = [f for prefix, f in self._method.flags.items() if name.startswith(prefix)]
            over = [entry for entry in good if all(map(entry.get, flags))]
            if over and name != "step" and name not in self._method.diagnostics:
                mean[name] = math.fsum(entry[name] for entry in over) / len(over)
        skipped = len(entries) - len(good)
        return mean | ({"skipped_steps": skipped} if skipped else {})

    def _is_good(self, entry: Mapping[str, float]) -> bool:
        return is_good(self._method.required_finite, entry)


def is_good(required: Mapping[str, Bounded], entry: Mapping[str, float]) -> bool:
    """Whether a step changed anything: all that is required of its metrics held."""
    return all(bound.holds(entry.get(name, 0.0)) for name, bound in required.items())


def _error(
    method: Method, row: Sequence[Mapping[str, float]], advise: Callable[[str], str]
) -> NonFiniteError:
    first, required = row[0], method.required_finite
    name = next(n for n, bound in required.items() if not bound.holds(first.get(n, 0.0)))
    detail, at_fault = method.diagnose(first)
    section, words = at_fault or required[name].section, required[name].words
    of_row = (first["step"], words, first[name], len(row))
    return NonFiniteError(*of_row, section, detail, advise(section))


# --- which checkpoints are known to train --------------------------------------------------------


# A loss so many times the usual one is finite by luck alone.
WILD = 1000.0
_MEMORY = 0.9  # of the usual loss, at each step


class Trust:
    """The latest checkpoint that is known to hold a state that trains, `step`, and the later ones,
    `doubted`.

    A step shows the worth of the parameters from which it started. So what was saved after a step
    is known to be good only when a later one finds a usual loss and a finite gradient there,
    whether or not its update could be made. Until then the last that is known to be so must stay.

    Args:
      required: of the method.
      step: as remembered; None if there is none.
      doubted: as remembered, ascending.
    """

    def __init__(
        self, required: Mapping[str, Bounded], step: int | None = None, doubted: Iterable[int] = ()
    ):
        # What a step finds where it started; the size of its update shows the rate.
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
