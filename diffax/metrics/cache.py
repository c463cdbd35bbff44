"""Arrays that are kept from one process to the next, in `runtime.cache_directory()`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffax import runtime


def kept(folder: str, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, from the cache if they are there.

    `name` must tell all that they depend on. Two processes may ask at once: both make them, and
    those that come last stay.
    """
    path = runtime.cache_directory() / folder / f"{name}.npz"
    if not path.exists():
        write_arrays(path, make())
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz, so that a reader sees all of it or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)
