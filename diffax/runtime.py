"""Settings of the process that the command line and the experiments share."""

from __future__ import annotations

import logging
import os
from pathlib import Path


def cache_directory() -> Path:
    """Where diffax keeps what can be made again.

    $DIFFAX_CACHE, or else diffax under $XDG_CACHE_HOME or ~/.cache.
    """
    own = os.environ.get("DIFFAX_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(user) / "diffax"


def start(label: str = "") -> None:
    """diffax's log lines on standard error; compiled programs kept from one process to the next.

    They are kept in `cache_directory()`, unless $JAX_COMPILATION_CACHE_DIR names another place.
    `label` stands before every line, to tell apart processes that share a terminal.
    """
    import jax

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
