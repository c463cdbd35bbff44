"""Ctrl-C, between two steps."""

from __future__ import annotations

import logging
import signal
import threading
from types import TracebackType

_LOG = logging.getLogger("diffax")


class Interruption:
    """While this context is open, the first Ctrl-C sets `requested`; a second one acts at once.

    A step in flight has given its state's memory away, so an exception in the middle of it would
    leave nothing to save: the loop asks after every step instead. Where Ctrl-C does something else
    already, or outside of the main thread, this does nothing.
    """

    def __init__(self):
        self.requested = False
        self._installed = False

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._request)
            self._installed = True
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        self._restore()
        _LOG.warning("interrupted: saving a checkpoint (press Ctrl-C again to stop at once)")

    def _restore(self) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
