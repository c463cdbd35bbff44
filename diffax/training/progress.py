"""What a run is at, said where nothing else is for a while, from a thread of its own.

    with ProgressDisplay() as progress:
        with progress.doing("compiling the training step"):
            ...                       # "compiling the training step: 30 s so far", now and then
        for i in counted(range(40), "evaluating", "batches"):
            ...                       # "evaluating: 12 of 40 batches, 30 s so far"

No device is waited for: what it has done is asked of arrays that may not be ready.
"""

import contextlib
import contextvars
import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Self

_LOG = logging.getLogger("diffax")
# What is said at the beginning of each part: of one run worth a line, of many too much.
_DETAILS = logging.getLogger("diffax.details")
FIRST_SECONDS, EVERY_SECONDS = 5.0, 20.0
_LOOK_SECONDS = 0.5

_CURRENT: contextvars.ContextVar["ProgressDisplay | None"] = contextvars.ContextVar(
    "progress", default=None
)


class ProgressDisplay:
    """Speaks while it is open, if it has been silent for `FIRST_SECONDS` at first, `EVERY_SECONDS`
    afterwards; `speaks`: whether at all, as one of several processes does."""

    def __init__(self, speaks: bool = True):
        self._speaks = speaks
        self._parts: list[tuple[float, Callable[[float], str]]] = []  # innermost last
        self._end, self._heard = threading.Event(), _Heard()

    def __enter__(self) -> Self:
        self._token = _CURRENT.set(self)
        if self._speaks:
            _LOG.addHandler(self._heard)
            self._thread = threading.Thread(target=self._speak, daemon=True, name="progress")
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        _CURRENT.reset(self._token)
        if self._speaks:
            self._end.set()
            self._thread.join()
            _LOG.removeHandler(self._heard)

    @contextlib.contextmanager
    def doing(self, what: str, describe: Callable[[float], str] | None = None) -> Iterator[None]:
        """Says what is begun, unless it is "". `describe`: seconds since then -> what is said of it
        afterwards, "" for nothing; "<what>: 30 s so far" if left out."""
        if what:
            self.detail(what)
        part = time.monotonic(), describe or (lambda seconds: f"{what}: {seconds:.0f} s so far")
        self._parts.append(part)
        try:
            yield
        finally:
            self._parts.remove(part)

    def detail(self, words: str) -> None:
        """Says something of one run that is too much where there are many."""
        if self._speaks:
            _DETAILS.info(words)

    def _speak(self) -> None:
        described = []
        while not self._end.wait(_LOOK_SECONDS):
            for part in self._parts[-1:]:
                since, describe = part
                wait = EVERY_SECONDS if part in described else FIRST_SECONDS
                now = time.monotonic()
                silent = now - max(self._heard.time, since) > wait
                words = describe(now - since) if silent else ""
                if words:
                    _LOG.info(words)
                    described = [p for p in self._parts if p in described] + [part]


class _Heard(logging.Handler):
    """Notes when something was said last."""

    def __init__(self):
        super().__init__()
        self.time = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.monotonic()


def detail(words: str) -> None:
    """`ProgressDisplay.detail` of the run, if it has one."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.detail(words)


def doing(what: str) -> contextlib.AbstractContextManager[None]:
    """`ProgressDisplay.doing` of the run, if it has one."""
    progress = _CURRENT.get()
    return contextlib.nullcontext() if progress is None else progress.doing(what)


def counted(items: Iterable[Any], what: str, unit: str) -> Iterator[Any]:
    """The items one by one. The run's `ProgressDisplay`, if there is one, says how many are done;
    `items` has a length."""
    progress = _CURRENT.get()
    if progress is None:
        yield from items
        return
    assert isinstance(items, Sized)
    done, total = 0, len(items)

    def describe(seconds: float) -> str:
        return f"{what}: {done} of {total} {unit}, {seconds:.0f} s so far"

    with progress.doing(f"{what}: {total} {unit}", describe):
        for item in items:
            yield item
            done += 1


class Pace:
    """How fast steps are made, from when it is made or `begin` is called."""

    def __init__(self, num_steps: int, step: int = 0):
        self._num_steps = num_steps
        self._left_out, self._stopped = 0.0, 0.0  # seconds; since when it stands still, or 0
        self.begin(step)

    def begin(self, step: int) -> None:
        """Steps are counted from here."""
        self._before = step, self._now()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done while this is open is no time of the steps."""
        self._stopped = time.monotonic()
        try:
            yield
        finally:
            self._left_out += time.monotonic() - self._stopped
            self._stopped = 0.0

    def _now(self) -> float:
        return (self._stopped or time.monotonic()) - self._left_out

    def silent_at(self, step: int) -> str:
        """`at`, or "" where there is nothing to say of it yet."""
        step_before, time_before = self._before
        early = step == step_before and self._now() - time_before < FIRST_SECONDS
        return "" if early else self.at(step)

    def at(self, step: int) -> str:
        """How far that is, and the speed since the step that was asked for before."""
        (step_before, time_before), now = self._before, self._now()
        where = f"step {step}/{self._num_steps}"
        if step == step_before:
            return f"{where}, and none more for {now - time_before:.0f} s"
        self._before = step, now
        seconds = (now - time_before) / (step - step_before)
        left = datetime.timedelta(seconds=round(seconds * (self._num_steps - step)))
        return f"{where}  {1 / max(seconds, 1e-9):.3g} steps/s  {left} left"
