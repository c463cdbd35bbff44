"""Data parallelism by `jit` over a mesh: the batch is split over the devices, the state is not.

One device is a mesh of one: the code is the same. The loss is the mean over the global batch, so
the number of devices changes nothing but the order in which float32 sums are taken.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffax.models import platform

DATA_AXIS = "data"


def make_mesh(num_devices: int = 0) -> Mesh:
    """A mesh of the first `num_devices` devices (0: all) with the one axis "data".

    Raises:
      ValueError: there are fewer devices.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise ValueError(
            f"config.parallel.num_devices is {num_devices}, but there are {len(devices)} devices"
        )
    return Mesh(np.asarray(devices[: num_devices or len(devices)]), (DATA_AXIS,))


def check_divides(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError, naming the config's key, if a batch can't be split over the devices."""
    if batch_size % mesh.size:
        raise ValueError(
            f"config.{key} is {batch_size}; it must be a multiple of {mesh.size}, the number of"
            " devices (config.parallel.num_devices sets it)"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Each device has the whole array: what the state is."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices: what a batch is."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch on its devices."""
    return jax.device_put(batch, split(mesh))


def compile_init(init: Callable, mesh: Mesh) -> Callable:
    """`init`(key) -> state under `jit`, on every device of the mesh."""
    return jax.jit(init, out_shardings=replicated(mesh), compiler_options=platform.run_once())


def compile_step(step: Callable, mesh: Mesh) -> Callable:
    """`step`(state, batch) -> (state, metrics) under `jit`; the state's memory is used again."""
    whole = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, split(mesh)),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
