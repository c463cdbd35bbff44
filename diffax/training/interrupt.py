"""Ctrl-C, and a scheduler's SIGTERM, between two steps."""

from __future__ import annotations

import logging
import signal
import threading
from types import TracebackType

_LOG = logging.getLogger("diffax")
# What a signal does if nothing was said, and how the log calls it.
_SIGNALS = {
    signal.SIGINT: (signal.default_int_handler, "interrupted"),
    signal.SIGTERM: (signal.SIG_DFL, "terminated"),
}


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal after a step that was saved.

    `exit_status` is what a shell and a scheduler expect of a process that the signal ended: 130
    after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_status = 128 + number


class Interruption:
    """While this context is open, the first Ctrl-C or SIGTERM is noted in `number` (0: there was
    none); a second one acts at once.

    A step in flight has given its state's memory away, so an exception in the middle of it would
    leave nothing to save: the loop asks after every step instead. Where a signal does something
    else already, or outside of the main thread, this leaves it alone.
    """

    def __init__(self):
        self.number = 0
        self._installed: list[signal.Signals] = []

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number, (default, _) in _SIGNALS.items():
                if signal.getsignal(number) is default:
                    signal.signal(number, self._request)
                    self._installed.append(number)
        return self

    def _request(self, number: int, frame: object) -> None:
        self.number = number
        self._restore()
        _LOG.warning(
            "%s: saving a checkpoint (the same once more stops at once)", _SIGNALS[number][1]
        )

    def _restore(self) -> None:
        while self._installed:
            number = self._installed.pop()
            signal.signal(number, _SIGNALS[number][0])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
