"""The mesh of devices, and where a run's arrays lie on it.

A mesh has the axes "data" and "fsdp". The batch is split over both. The state is split over "fsdp"
(each large array along one of its axes) and whole along "data". One device is a mesh of one: the
code is the same. The loss is the mean over the global batch, so the number of devices changes
nothing but the order in which float32 sums are taken.

On several hosts, each process has its devices in the mesh and its contiguous piece of every batch.
"""

import collections
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
# Smaller arrays are whole on every device: to gather one would take longer than it saves.
LEAST_SPLIT = 2**13


def make_mesh(num_devices: int = 0, fsdp: int = 1) -> Mesh:
    """A mesh of the first `num_devices` devices (0: all), `fsdp` of them along that axis.

    Neighbours along "fsdp" are of one process as far as possible.

    Raises:
      ValueError: there are fewer devices, or `fsdp` doesn't divide their number.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if num_devices > len(devices):
        raise ValueError(
            f"config.parallel.num_devices is {num_devices}, but there are {len(devices)} devices"
        )
    chosen = devices[: num_devices or len(devices)]
    if len(chosen) % fsdp:
        raise ValueError(
            f"config.parallel.fsdp is {fsdp}; it must divide the number of devices, {len(chosen)}"
        )
    counts = collections.Counter(device.process_index for device in chosen)
    if len(counts) < jax.process_count() or len(set(counts.values())) > 1:
        raise ValueError(
            f"config.parallel.num_devices is {num_devices}, which is not the same number in each of"
            f" the {jax.process_count()} processes; 0 takes all {len(devices)}"
        )
    return Mesh(np.asarray(chosen).reshape(-1, fsdp), AXES)


def check_divides(key: str, batch_size: int, mesh: Mesh, times: Mapping[str, int] = {}) -> None:
    """Raises ValueError, naming the config's key, if a batch can't be split over the devices, and
    each part into as many equal ones as `times`, {what: number}, says."""
    factors = {"the number of devices (config.parallel.num_devices sets it)": mesh.size, **times}
    needed = math.prod(factors.values())
    if batch_size % needed:
        why = ", times ".join(f"{n}, {what}" for what, n in factors.items() if n > 1)
        raise ValueError(f"config.{key} is {batch_size}; it must be a multiple of {needed}: {why}")


def replicated(mesh: Mesh) -> NamedSharding:
    """Each device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices: what a batch is."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """A tree like the state's, of the sharding of each array: a rule on shapes alone.

    An array of at least `LEAST_SPLIT` numbers is split over "fsdp" along the longest of its axes
    that the axis' size divides (the last such); all else is whole everywhere.
    """
    ways = mesh.shape["fsdp"]

    def spec(shape: tuple[int, ...]) -> PartitionSpec:
        fitting = [i for i, length in enumerate(shape) if length % ways == 0]
        if ways == 1 or math.prod(shape) < LEAST_SPLIT or not fitting:
            return PartitionSpec()
        axis = max(fitting, key=lambda i: (shape[i], i))
        return PartitionSpec(*(None,) * axis, "fsdp")

    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf.shape)), state)


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A global batch, the same in every process, on the devices: its first axis split over all."""
    sharding = split(mesh)

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(array), array.shape)

    return jax.tree.map(place, dict(batch))
