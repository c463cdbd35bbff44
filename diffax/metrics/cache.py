"""Arrays that are kept from one process to the next, in `runtime.cache_directory()`."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffax import runtime
from diffax.data.archive import read_npz
from diffax.data.content import content_hash

_LOG = logging.getLogger("diffax")
_CHECKSUM = "checksum"  # the array of a file that holds the others' hash
MOST_BYTES = 4 * 2**30  # that a folder of `kept` holds; 80 networks' features of 10,000 images


def kept(
    folder: str | os.PathLike,
    name: str,
    make: Callable[[], Mapping[str, Any]],
    most_bytes: int = MOST_BYTES,
) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, from the cache if they are there and sound.

    `name` must tell all that they depend on. A file that is damaged is made again, and so is one
    without a checksum; the log says so. Where nothing can be written nothing is kept. Two processes
    may ask at once: both make them, and those that come last stay. Beyond `most_bytes` the folder
    loses what was made longest ago.
    """
    path = runtime.cache_directory() / folder / f"{name}.npz"
    try:
        return read_arrays(path)
    except FileNotFoundError:
        _LOG.debug("%s is made", path)
    except (OSError, ValueError) as error:
        _LOG.warning("%s: it is made again", error)
    arrays = {key: np.asarray(value) for key, value in make().items()}
    try:
        write_arrays(path, arrays)
        _keep_latest(path.parent, most_bytes)
    except OSError as error:
        _LOG.warning("%s can't be kept (%s)", path, error)
    return arrays


def _keep_latest(folder: Path, most_bytes: int) -> None:
    """Removes files, those with the oldest time first, until the others' sizes sum to no more."""
    found = []
    for path in folder.glob("*.npz"):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > most_bytes:
            path.unlink(missing_ok=True)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz with a checksum, so that a reader sees all of it or none."""
    path = Path(path)
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, also beside threads, and beside processes of other machines.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            np.savez(file, **arrays, **{_CHECKSUM: _checksum(arrays)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it was altered, cut short, or has no checksum; it is named.
    """
    arrays = read_npz(path, lambda names: names)
    checksum = arrays.pop(_CHECKSUM, None)
    if checksum is None or str(checksum) != _checksum(arrays):
        how = "absent" if checksum is None else "another"
        raise ValueError(f"{path} is damaged: its checksum is {how}")
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    return content_hash(*(part for name in sorted(arrays) for part in (name, arrays[name])))
