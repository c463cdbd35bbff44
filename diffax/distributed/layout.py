"""How the runs that one program trains lie in its arrays.

`SingleRun` is one run, whose trees are as they are. `VmappedRuns` are several: their trees have a
first axis of runs. All share the step, so that what depends on it alone is computed once.

A state is any pytree with a field `step` and a method `replace`, such as a
`flax.struct.PyTreeNode`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh


def _axes(state: Any) -> Any:
    """Of each leaf of a state the axis of runs; None for the step."""
    return jax.tree.map(lambda _: 0, state).replace(step=None)


class SingleRun(NamedTuple):
    """One run, over any number of devices."""

    count: int = 1

    def check(self, mode: str, mesh: Mesh) -> None:
        """Raises ValueError if runs can't lie so."""

    def whole(self, state: Any) -> Any:
        """The state of the program if every run is in this state; traceable."""
        return state

    def repeat(self, array: np.ndarray) -> np.ndarray:
        """What in the state of the program is this array for every run."""
        return array

    def stack(self, states: Sequence[Any]) -> Any:
        """The state of the program from that of each run."""
        (state,) = states
        return state

    def each(self, state: Any) -> Sequence[Any]:
        """The inverse of `stack`."""
        return [state]

    def make_step(self, make: Callable[[Any], Callable]) -> Callable[[Any], Callable]:
        """The maker of the program's step from that of one run's."""
        return make

    def each_metrics(self, metrics: Any) -> Sequence[Any]:
        """What that step gives, for each run."""
        return [metrics]

    def batches(self, each: Sequence[Any]) -> Any:
        """The iterator of the program's batches from that of each run."""
        (batches,) = each
        return batches

    def each_data(self, state: Any) -> Sequence[Any]:
        """The state of each run's iterator from that of `batches`."""
        return [state]


class VmappedRuns(NamedTuple):
    """Several runs, by `jax.vmap`; the methods are those of `SingleRun`."""

    count: int

    def check(self, mode: str, mesh: Mesh) -> None:
        """Raises ValueError where there is more than one device or process, or mode "pmap"."""
        if mesh.size > 1 or jax.process_count() > 1 or mode != "mesh":
            raise ValueError(
                f"{self.count} runs can be trained together on one device, in one process and with"
                f" config.parallel.mode 'mesh' only; there are {mesh.size} devices"
                f" (config.parallel.num_devices), {jax.process_count()} processes, and the mode is"
                f" {mode!r}"
            )

    def whole(self, state: Any) -> Any:
        return self.stack([state] * self.count)

    def repeat(self, array: np.ndarray) -> np.ndarray:
        return np.stack([array] * self.count)

    def stack(self, states: Sequence[Any]) -> Any:
        whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return whole.replace(step=states[0].step)

    def each(self, state: Any) -> Sequence[Any]:
        return _each(state, self.count)

    def make_step(self, make: Callable[[Any], Callable]) -> Callable[[Any], Callable]:
        def made(sharding: Any) -> Callable:
            one = make(sharding)

            def step(state: Any, batch: Any) -> tuple[Any, list[Any]]:
                axes = _axes(state)
                state, metrics = jax.vmap(one, in_axes=(axes, 0), out_axes=(axes, 0))(state, batch)
                # Taken apart within the program, not number by number after every call.
                return state, [_row(metrics, i) for i in range(self.count)]

            return step

        return made

    def each_metrics(self, metrics: Any) -> Sequence[Any]:
        return metrics

    def batches(self, each: Sequence[Any]) -> Any:
        return _Stacked(each)

    def each_data(self, state: Any) -> Sequence[Any]:
        return state


RunLayout = SingleRun | VmappedRuns
SINGLE = SingleRun()


def layout_of(count: int) -> RunLayout:
    """How so many runs lie."""
    return SINGLE if count == 1 else VmappedRuns(count)


class _Stacked(NamedTuple):
    """The batches of several runs, stacked along a new first axis."""

    each: Sequence[Any]

    def __next__(self) -> Any:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *map(next, self.each))

    def get_state(self) -> list[Any]:
        return [batches.get_state() for batches in self.each]


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda a: a[i], tree)


@functools.partial(jax.jit, static_argnums=1)
def _each(state: Any, count: int) -> list[Any]:
    own = state.replace(step=None)
    return [_row(own, i).replace(step=state.step) for i in range(count)]
