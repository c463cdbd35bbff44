"""Ctrl-C, and a scheduler's SIGTERM, between two steps."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
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
        self._words = ""  # of a program that ends at once
        self._ending = threading.RLock()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in runtime.SIGNALS:
                if signal.getsignal(number) in _USUAL:
                    self._before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: object) -> None:
        if self._words:
            self._end(number)
        self.number = number
        self._restore()
        _LOG.warning(
            "%s: saving a checkpoint after this step (the same once more stops at once)",
            signal.Signals(number).name,
        )

    @contextmanager
    def at_once(self, words: str) -> Iterator[None]:
        """While this is open, where nothing is there yet to be saved, a signal ends the program
        with these words.

        So it does in the midst of a compilation, for whose end a handler in Python would wait. On
        the command line alone: elsewhere the process is not ours to end.
        """
        if runtime.stop not in self._before.values():
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        watch = threading.Thread(target=self._watch, args=(reading,), daemon=True, name="signals")
        self._words = words
        before = signal.set_wakeup_fd(writing)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.write(writing, bytes(1))
            watch.join()
            self._words = ""
            os.close(reading)
            os.close(writing)

    def _watch(self, reading: int) -> None:
        while number := os.read(reading, 1)[0]:  # of each signal that comes; 0 at the end
            if number in self._before:
                self._end(number)

    def _end(self, number: int) -> None:
        with self._ending:  # of the handler and the thread that watches, one speaks
            os.write(2, f"diffax: {self._words}\n".encode())
            os._exit(128 + number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
