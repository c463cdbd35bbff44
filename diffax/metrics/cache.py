"""Arrays that are kept from one process to the next, in `runtime.cache_directory()`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffax import runtime

MOST_BYTES = 4 * 2**30  # that a folder of `kept` holds; 80 networks' features of 10,000 images


def kept(
    folder: str, name: str, make: Callable[[], Mapping[str, Any]], most_bytes: int = MOST_BYTES
) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, from the cache if they are there.

    `name` must tell all that they depend on. Two processes may ask at once: both make them, and
    those that come last stay. Beyond `most_bytes` the folder loses what was made longest ago.
    """
    path = runtime.cache_directory() / folder / f"{name}.npz"
    with contextlib.suppress(FileNotFoundError), np.load(path) as file:
        return {key: file[key] for key in file.files}
    arrays = {key: np.asarray(value) for key, value in make().items()}
    write_arrays(path, arrays)
    _keep_latest(path.parent, most_bytes)
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
    """Writes an .npz, so that a reader sees all of it or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)
