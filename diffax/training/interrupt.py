"""Ctrl-C, and a scheduler's SIGTERM, between two steps."""

import logging
import signal
import threading
from typing import Any, Self

from diffax import runtime

_LOG = logging.getLogger("diffax")
# What a signal does if nothing was said, or on the command line.
_USUAL = (signal.default_int_handler, signal.SIG_DFL, runtime.stop)


class Interruption:
    """While this context is open, the first Ctrl-C or SIGTERM is noted in `number` (0: there was
    none); a second one acts at once.

    A step in flight has given its state's memory away, so an exception in the middle of it would
    leave nothing to save: the loop asks after every step instead. Where a signal does something
    else already, or outside of the main thread, this leaves it alone.
    """

    def __init__(self):
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in runtime.SIGNALS:
                if signal.getsignal(number) in _USUAL:
                    self._before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: object) -> None:
        self.number = number
        self._restore()
        _LOG.warning(
            "%s: saving a checkpoint after this step (the same once more stops at once)",
            signal.Signals(number).name,
        )

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __exit__(self, *_: object) -> None:
        self._restore()
