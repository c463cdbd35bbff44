"""Settings of the process that the command line and the experiments share."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path


class Failed(Exception):
    """Work ended for a reason that its message tells a user in a sentence: no traceback helps."""


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
# With one of these a user has told glibc himself.
_MALLOC_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_")


def reuse_memory() -> None:
    """Has glibc keep the memory that is freed, and give it out again: for processes that train.

    On a CPU XLA asks for a program's temporary memory at every call, and frees it after. From the
    system it comes as new pages, each of which is cleared when it is first touched: a third of the
    time of a small U-Net's training step. The process then holds on to the most that it has used,
    and a forward pass, whose memory is little, takes a tenth longer.

    Only on Linux with glibc, and if the environment doesn't set $GLIBC_TUNABLES, $MALLOC_ARENA_MAX
    or $MALLOC_MMAP_MAX_. Before JAX starts its threads, which keep what they have of their own.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter, value in _KEEP_FREED if mallopt else ():
        mallopt(parameter, value)


def start(label: str = "", trains: bool = False) -> None:
    """diffax's log lines on standard error; compiled programs kept from one process to the next.

    They are kept in `cache_directory()`, unless $JAX_COMPILATION_CACHE_DIR names another place.
    `label` stands before every line, to tell apart processes that share a terminal. One that
    `trains` uses memory again: see `reuse_memory`.
    """
    import jax

    if trains:
        reuse_memory()

    logger = logging.getLogger("diffax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {label}%(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    # Through them orbax warns of what it is asked for, such as to read only, and prints tracebacks
    # of errors that it raises as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
