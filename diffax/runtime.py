"""Settings of the process that the command line and the experiments share."""

import _thread
import contextlib
import ctypes
import functools
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """Work was stopped by a signal; the message, if any, says what is kept.

    `exit_status` is what a shell and a scheduler expect of a process that the signal ended: 130
    after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_status = 128 + number


_LOG = logging.getLogger("diffax")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax", "chex", "clu", "grain", "tensorstore")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_stopped_by: list[int] = []  # the signals that `stop` has had since `stoppable` was opened


def quit_at_once(number: int, frame: object) -> None:
    """A handler for a program that starts or has ended: an exception in the midst of an import is
    turned into others, or into a crash. Nothing is lost yet, or any more."""
    os.write(2, f"diffax: {WORDS[number]}\n".encode())
    os._exit(128 + number)


def stop(number: int, frame: object) -> None:
    """A handler for a program at work: SIGTERM too raises an exception, so that what is open is
    closed."""
    _stopped_by.append(number)
    raise Interrupted("", number)


@contextlib.contextmanager
def stoppable() -> Iterator[list[int]]:
    """While this is open, Ctrl-C and SIGTERM raise `Interrupted`; gives the list of those that
    came. Only in the main thread, and where they do nothing else already."""
    usual = (signal.default_int_handler, signal.SIG_DFL, quit_at_once)
    here = threading.current_thread() is threading.main_thread()
    ours = [n for n in SIGNALS if here and signal.getsignal(n) in usual]
    _stopped_by.clear()
    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield _stopped_by
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# What a signal does if nothing was said, or on the command line.
_USUAL = (signal.default_int_handler, signal.SIG_DFL, stop)


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
            for number in SIGNALS:
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

    @contextlib.contextmanager
    def at_once(self, words: str) -> Iterator[None]:
        """While this is open, where nothing is there yet to be saved, a signal ends the program
        with these words.

        So it does in the midst of a compilation, for whose end a handler in Python would wait. On
        the command line alone: elsewhere the process is not ours to end.
        """
        if stop not in self._before.values():
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

    def __exit__(self, *_: object) -> None:
        self._restore()


def watch_callbacks() -> None:
    """Python then says less of an exception in a callback of C code or a coroutine that is thrown
    away, where none can go on.

    One that a signal raised is raised again elsewhere. Reads and writes that orbax no longer waits
    for, since one of them failed, are not mentioned: orbax has raised the error. All others go to
    the hook that was there before.
    """
    before = sys.unraisablehook
    if getattr(before, "func", None) is not _in_callback:
        sys.unraisablehook = functools.partial(_in_callback, before)
    logging.getLogger("asyncio").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "tensorstore" not in record.getMessage()


_COMMAND = "DIFFAX_COMMAND"  # a variable, since processes that a command starts are of it too


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """While this is open, messages address who gave a command."""
    before = os.environ.get(_COMMAND, "")
    os.environ[_COMMAND] = "1"
    try:
        yield
    finally:
        os.environ[_COMMAND] = before


def the_same() -> str:
    """What a user repeats to go on: "the same command", or in a program "the same call"."""
    return "the same command" if os.environ.get(_COMMAND) else "the same call"


def _in_callback(before: Callable[[Any], object], lost: Any) -> None:
    if isinstance(lost.exc_value, Interrupted):  # by a signal: again, somewhere else
        _thread.interrupt_main(_stopped_by[-1])
    elif not (str(lost.exc_value) == "Event loop is closed" or _is_orbax(lost.object)):
        before(lost)


def _is_orbax(lost: Any) -> bool:
    """Whether that is a coroutine of orbax's, in which no more is waited for."""
    code = getattr(lost, "cr_code", None)
    return code is not None and "orbax" in Path(code.co_filename).parts


# Warnings of JAX, orbax and others about what diffax does, not about what a user could do.
_NOT_FOR_USERS = (
    dict(message="Some donated buffers were not usable"),
    dict(message=r"os\.fork\(\) was called"),
    dict(message="Sharding info not provided when restoring"),
    *(
        dict(category=category, module=rf"({'|'.join(_LIBRARIES)})\b")
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
    ),
)


# What is worth a line of one run, but not of each of many.
_DETAILS = logging.getLogger("diffax.details")


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Log lines without the details, for the runs of a program that makes many."""
    before = _DETAILS.level
    _DETAILS.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _DETAILS.setLevel(before)


class Failed(Exception):
    """Work ended for a reason that its message tells a user in a sentence: no traceback helps."""


def local_path(path: str | os.PathLike, what: str = "workdir") -> Path:
    """A path as a user wrote it, with `~` as the home directory.

    Raises:
      ValueError: it is empty, or of a bucket or server ("gs://..."), where no file can be made;
        `what` says which path it is.
    """
    text = os.fspath(path)
    if not text.strip():
        raise ValueError(f"{what} is {text!r}; it must name a place for files")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # a Path has made one slash of two
        raise ValueError(
            f"{what} {text} is not on this machine's file system; take a local path, or one under"
            " which the bucket is mounted"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{what} {text}: {error}") from None


def cache_directory() -> Path:
    """Where diffax keeps what can be made again.

    $DIFFAX_CACHE, or else diffax under $XDG_CACHE_HOME or ~/.cache.
    """
    own = os.environ.get("DIFFAX_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(user) / "diffax"


def available_memory() -> int:
    """Bytes that can be had without swapping, as Linux estimates them; elsewhere the machine's."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
        return int(sizes["MemAvailable"]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Parameters of glibc's mallopt, by malloc.h, and what they are set to: freed memory is not given
# back, no allocation is a mapping of its own, and all threads share what is free.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEEP_FREED = ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1))
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name of that event
# By one of these a user has chosen for glibc.
_MALLOC_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_")


def reuse_memory() -> None:
    """Has glibc keep the memory that is freed, and give it out again: for processes that train.

    On a CPU XLA asks for a program's temporary memory at every call, and frees it after. From the
    system it comes as new pages, each of which is cleared when it is first touched: a third of the
    time of a small U-Net's training step. The process then holds on to the most that it has used,
    and a forward pass, whose memory is little, takes a tenth longer.

    What the compiler has freed is given back after each program that takes a second to compile: in
    pieces as it is, XLA's memory, one block, would not fit in.

    Only on Linux with glibc, and if the environment doesn't set $GLIBC_TUNABLES, $MALLOC_ARENA_MAX
    or $MALLOC_MMAP_MAX_. Before JAX starts its threads, which keep what they have of their own.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    for parameter, value in _KEEP_FREED:
        library.mallopt(parameter, value)
    from jax import monitoring

    def give_back(event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILED and seconds > 1:
            library.malloc_trim(0)

    monitoring.register_event_duration_secs_listener(give_back)


def start(label: str = "", trains: bool = False) -> None:
    """diffax's log lines on standard error; compiled programs kept from one process to the next.

    They are kept in `cache_directory()`, unless $JAX_COMPILATION_CACHE_DIR names another place.
    `label` stands before every line, to tell apart processes that share a terminal, which are then
    `brief`. One that `trains` uses memory again: see `reuse_memory`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of XLA errors alone, as JAX is imported
    import jax

    watch_callbacks()
    for of in _NOT_FOR_USERS:
        warnings.filterwarnings("ignore", **of)
    if trains:
        reuse_memory()

    logger = logging.getLogger("diffax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {label}%(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    _DETAILS.setLevel(logging.WARNING if label else logging.NOTSET)
    # Through them orbax warns of what it is asked for, such as to read only, and prints tracebacks
    # of errors that it raises as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
