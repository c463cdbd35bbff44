"""Where a run's arrays lie, and its steps compiled for there: the modes "mesh" and "pmap".

A mesh has the axes "data" and "fsdp". The batch is split over both. The state is split over "fsdp"
(each large array along one of its axes) and whole along "data". One device is a mesh of one: the
code is the same. The loss is the mean over the global batch, so the number of devices changes
nothing but the order in which float32 sums are taken.

On several hosts, each process has its devices in the mesh and its contiguous piece of every batch.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffax.models import platform
from diffax.registry import suggestion
from diffax.training.spread import OverAxis, Spread, Together

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


def compile_init(init: Callable, mesh: Mesh, state: Any) -> Callable:
    """`init`(key) -> state, of the shapes of `state`, each array where `state_sharding` puts it."""
    where = state_sharding(state, mesh)
    return jax.jit(init, out_shardings=where, compiler_options=platform.run_once())


def _several(step: Callable) -> Callable:
    """(state, batches) -> (state, metrics): a step for each batch; a first axis of steps."""

    def run(state: Any, batches: Any) -> tuple[Any, Any]:
        if jax.tree.leaves(batches)[0].shape[0] > 1:
            return jax.lax.scan(step, state, batches)
        # XLA's CPU compiler is slower at what is inside of a loop.
        state, metrics = step(state, jax.tree.map(lambda a: a[0], batches))
        return state, jax.tree.map(lambda a: a[None], metrics)

    return run


class Compiled(NamedTuple):
    """Some training steps in one call, and how their batches get to the devices.

    place: {"x", "label"} of (steps, this process's examples, ...) -> the same on the devices.
    step: (state, what `place` gave) -> state, metrics; a metric is (steps,). The state's memory is
      used again.
    """

    place: Callable[[Any], Any]
    step: Callable[[Any, Any], tuple[Any, Any]]


def _mesh_mode(make_step: Callable[[Spread], Callable], mesh: Mesh, state: Any) -> Compiled:
    whole, by_shape = replicated(mesh), state_sharding(state, mesh)
    rows = NamedSharding(mesh, PartitionSpec(None, AXES))
    step = jax.jit(
        _several(make_step(Together(mesh))),
        in_shardings=(by_shape, rows),
        out_shardings=(by_shape, whole),
        donate_argnums=0,
    )

    def place(batches: Any) -> Any:
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(rows, array), batches
        )

    return Compiled(place, step)


def _pmap_mode(make_step: Callable[[Spread], Callable], mesh: Mesh, state: Any) -> Compiled:
    del state  # whole on every device
    if mesh.shape["fsdp"] > 1:
        raise ValueError(
            f"config.parallel.fsdp is {mesh.shape['fsdp']}, but in mode 'pmap' every device has the"
            " whole state: set it to 1, or take mode 'mesh'"
        )
    data = AXES[0]
    run = jax.pmap(
        _several(make_step(OverAxis(data, mesh.size))),
        axis_name=data,
        in_axes=(None, 0),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    by_row = Mesh(np.asarray(here), data)
    rows, whole = (NamedSharding(by_row, PartitionSpec(*axes)) for axes in ((data,), ()))

    def place(batches: Any) -> Any:
        def by_device(array: np.ndarray) -> jax.Array:
            array = array.reshape(array.shape[0], len(here), -1, *array.shape[2:])
            return jax.device_put(np.moveaxis(array, 1, 0), rows)

        return jax.tree.map(by_device, batches)

    def step(state: Any, batches: Any) -> tuple[Any, Any]:
        if jax.process_count() == 1:  # where pmap leaves it, or the second step compiles anew
            state = jax.device_put(state, whole)
        out = run(state, batches)
        if jax.process_count() > 1:  # pmap gives back what is on this host's devices
            out = multihost_utils.host_local_array_to_global_array(out, mesh, PartitionSpec())
        return out

    return Compiled(place, step)


MODES: dict[str, Callable[[Callable[[Spread], Callable], Mesh, Any], Compiled]] = {
    "mesh": _mesh_mode,
    "pmap": _pmap_mode,
}


def check_mode(mode: str) -> None:
    """Raises ValueError if there is no such mode."""
    if mode not in MODES:
        allowed = f"one of {', '.join(MODES)}{suggestion(mode, MODES)}"
        raise ValueError(f"config.parallel.mode is {mode!r}; it must be {allowed}")


def compile_step(
    make_step: Callable[[Spread], Callable], mesh: Mesh, state: Any, mode: str = "mesh"
) -> Compiled:
    """The step that `make_step`(spread) gives, (state, batch) -> (state, metrics), for a mode.

    Args:
      make_step: is told how the examples are spread over the devices.
      state: of its arrays the shapes count.
      mode: a name in `MODES`.

    Raises:
      ValueError: no such mode, or mode "pmap" with "fsdp" devices in the mesh.
    """
    check_mode(mode)
    return MODES[mode](make_step, mesh, state)
