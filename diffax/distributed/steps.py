"""Training steps and other functions of a state, compiled for the devices of a run.

`compile_step` knows two modes: "mesh" compiles by `jit` over a mesh, "pmap" keeps a whole copy of
the state on every device. The numbers of fixed schedules, such as the s of cosine or the endpoints,
are arguments of every compiled program. As constants they would make each trial of a search and
each arm of an ablation compile a program of its own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffax.distributed.batch import BatchSharding, Global, OverAxis
from diffax.distributed.layout import SINGLE, RunLayout
from diffax.distributed.mesh import AXES, replicated, state_sharding
from diffax.models import platform
from diffax.registry import suggestion
from diffax.schedules.fields import numbers, with_numbers

# --- the numbers of fixed schedules as arguments ------------------------------------------------


class Template(NamedTuple):
    """What a state is, without its arrays and without the numbers of its fixed schedules: equal, as
    a static argument of a compiled function, for all values of them."""

    structure: Any
    schedules: tuple[Any, ...]  # for each leaf of the structure a schedule of zeros, or None


def _has_numbers(node: Any) -> bool:
    """Whether a node is a fixed schedule with numbers. A schedule that has arrays, learned or
    discrete, has its numbers there already."""
    if not dataclasses.is_dataclass(node) or jax.tree.leaves(node):
        return False
    return len(numbers(node)) > 0


def numbers_out(state: Any) -> tuple[Any, Template]:
    """A state with an array of numbers in place of each fixed schedule, and what is left of it."""
    nodes, structure = jax.tree.flatten(state, is_leaf=_has_numbers)
    values = [np.asarray(numbers(node)) if _has_numbers(node) else None for node in nodes]
    leaves = [
        node if own is None else own.astype(jnp.result_type(float))
        for node, own in zip(nodes, values)
    ]
    empty = [
        None if own is None else with_numbers(node, iter(np.zeros(len(own)).tolist()))
        for node, own in zip(nodes, values)
    ]
    return structure.unflatten(leaves), Template(structure, tuple(empty))


def numbers_in(state: Any, template: Template) -> Any:
    """The inverse of `numbers_out`; the arrays may be traced."""
    leaves = template.structure.flatten_up_to(state)
    nodes = [
        leaf if empty is None else with_numbers(empty, iter(leaf))
        for leaf, empty in zip(leaves, template.schedules)
    ]
    return template.structure.unflatten(nodes)


@functools.lru_cache(maxsize=32)
def _over_numbers(function: Callable) -> Callable:
    """`function` of a template and a state of arrays. JAX compiles one object once."""

    def over_numbers(template: Template, state: Any, *arguments: Any) -> Any:
        return function(numbers_in(state, template), *arguments)

    return over_numbers


def jit_over_numbers(function: Callable, **options: Any) -> Callable:
    """`jax.jit` of a function(state, *arguments), whose program serves all values of the numbers of
    the state's fixed schedules. The result must not hold such a schedule. Its attribute `compiled`
    is what `jax.jit` gave. Given again, a function is not compiled again."""
    compiled = jax.jit(_over_numbers(function), static_argnums=0, **options)

    def call(state: Any, *arguments: Any) -> Any:
        arrays, template = numbers_out(state)
        return compiled(template, arrays, *arguments)

    call.compiled = compiled
    return call


# --- steps --------------------------------------------------------------------------------------


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
    """Several training steps in one call, and how their batches get to the devices.

    place: {"x", "label"} of (steps, this process's examples, ...) -> the same on the devices.
    step: (state, what `place` gave) -> state, metrics; a metric is (steps,). The state's memory is
      used again.
    """

    place: Callable[[Any], Any]
    step: Callable[[Any, Any], tuple[Any, Any]]


def _mesh_mode(make_step: Callable[[BatchSharding], Callable], mesh: Mesh, state: Any) -> Compiled:
    whole, by_shape = replicated(mesh), state_sharding(state, mesh)
    rows = NamedSharding(mesh, PartitionSpec(None, AXES))
    step = jax.jit(
        _several(make_step(Global(mesh))),
        in_shardings=(by_shape, rows),
        out_shardings=(by_shape, whole),
        donate_argnums=0,
        compiler_options=platform.train_step_options(),
    )

    def place(batches: Any) -> Any:
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(rows, array), batches
        )

    return Compiled(place, step)


def _pmap_mode(make_step: Callable[[BatchSharding], Callable], mesh: Mesh, state: Any) -> Compiled:
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


MODES: dict[str, Callable[[Callable[[BatchSharding], Callable], Mesh, Any], Compiled]] = {
    "mesh": _mesh_mode,
    "pmap": _pmap_mode,
}


def check_mode(mode: str) -> None:
    """Raises ValueError if there is no such mode."""
    if mode not in MODES:
        allowed = f"one of {', '.join(MODES)}{suggestion(mode, MODES)}"
        raise ValueError(f"config.parallel.mode is {mode!r}; it must be {allowed}")


def compile_step(
    step: Callable[[Any, Any, BatchSharding], tuple[Any, Any]],
    mesh: Mesh,
    state: Any,
    mode: str = "mesh",
    layout: RunLayout = SINGLE,
) -> Compiled:
    """A `Method.step`, compiled for a mode.

    Args:
      step: of a method; the same one is compiled once.
      state: of one run; only its shapes count, and its fixed schedules.
      mode: a name in `MODES`.
      layout: the runs that one program trains.

    Raises:
      ValueError: no such mode, or mode "pmap" with "fsdp" devices in the mesh.
    """
    check_mode(mode)
    arrays, template = numbers_out(state)
    shapes, tree = jax.tree.flatten(jax.eval_shape(layout.whole, arrays))
    compiled = _compiled(step, mesh, mode, layout, template, tree, tuple(shapes))
    fixed = template.structure.flatten_up_to(state)
    values = template.structure.flatten_up_to(arrays)

    def with_fixed(whole: Any, of: Callable[[Any, Any], Any]) -> Any:
        leaves = template.structure.flatten_up_to(whole)
        return template.structure.unflatten(
            [
                leaf if empty is None else of(schedule, value)
                for leaf, schedule, value, empty in zip(leaves, fixed, values, template.schedules)
            ]
        )

    def run(state: Any, batches: Any) -> tuple[Any, Any]:
        given = with_fixed(state, lambda _, value: layout.repeat(value))
        after, metrics = compiled.step(given, batches)
        return with_fixed(after, lambda schedule, _: schedule), metrics

    return Compiled(compiled.place, run)


@functools.lru_cache(maxsize=8)
def _compiled(
    step: Callable,
    mesh: Mesh,
    mode: str,
    layout: RunLayout,
    template: Template,
    tree: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
) -> Compiled:
    """The step over a state with arrays in place of the numbers of its fixed schedules."""

    def make(sharding: BatchSharding) -> Callable:
        def over_numbers(given: Any, batch: Any) -> tuple[Any, Any]:
            after, metrics = step(numbers_in(given, template), batch, sharding)
            leaves = template.structure.flatten_up_to(after)
            before = template.structure.flatten_up_to(given)
            kept = [
                new if empty is None else old
                for new, old, empty in zip(leaves, before, template.schedules)
            ]
            return template.structure.unflatten(kept), metrics

        return over_numbers

    return MODES[mode](layout.make_step(make), mesh, tree.unflatten(shapes))
