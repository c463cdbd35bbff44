"""Whether what a run holds fits into the memory of its devices, before anything is allocated."""

from __future__ import annotations

import math
import os
from typing import Any

import jax
from jax.sharding import Mesh

from diffax.methods.base import State


def check(state: State, mesh: Mesh) -> None:
    """Raises ValueError if a state, by its shapes, with a gradient is more than a device holds.

    Activations, which depend on the compiler, come on top.
    """
    held = _size(state) + _size(state.params)
    need, have = held / mesh.shape["fsdp"], memory_of_each(mesh)
    if need > have:
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
        raise ValueError(
            f"config.model makes a network of {count:,} parameters, which take {_gb(need)} on each"
            f" device with their average, the optimiser's state and the gradient, and a device has"
            f" {_gb(have)}: make it smaller, or raise config.parallel.fsdp"
        )


def memory_of_each(mesh: Mesh) -> float:
    """Bytes that a device of this process has, an equal share of the machine's if they are
    processors; infinity where that can't be known."""
    own = mesh.local_devices
    limit = (own[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None or own[0].platform != "cpu":
        return limit or math.inf
    names = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"}
    if not names <= getattr(os, "sysconf_names", {}).keys():
        return math.inf
    return math.prod(map(os.sysconf, names)) / len(own)


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
