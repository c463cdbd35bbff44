"""How the runs that are trained in one program lie in its arrays: alone, or side by side.

`Alone` is one run, its trees as they are. `SideBySide` is several: a tree of them has a first axis
of runs, but for the step, which all share, so that what depends on it alone is done once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax.training.state import TrainState

_OWN = [field.name for field in dataclasses.fields(TrainState) if field.name != "step"]
_AXES = TrainState(step=None, **dict.fromkeys(_OWN, 0))


class Alone(NamedTuple):
    """One run, over any number of devices."""

    count: int = 1

    def check(self, config: ConfigDict, mesh: Mesh) -> None:
        """Raises ValueError if runs can't lie so."""

    def whole(self, state: TrainState) -> TrainState:
        """The state of the program if every run is in this state; traceable."""
        return state

    def repeat(self, array: np.ndarray) -> np.ndarray:
        """What in the state of the program is this array for every run."""
        return array

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """The state of the program from that of each run."""
        (state,) = states
        return state

    def each(self, state: TrainState) -> Sequence[TrainState]:
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


class SideBySide(NamedTuple):
    """Several runs, by `jax.vmap`; the methods are those of `Alone`."""

    count: int

    def check(self, config: ConfigDict, mesh: Mesh) -> None:
        """Raises ValueError where there is more than one device or process, or mode "pmap"."""
        mode = config.parallel.mode
        if mesh.size > 1 or jax.process_count() > 1 or mode != "mesh":
            raise ValueError(
                f"{self.count} runs can be trained together on one device, in one process and with"
                f" config.parallel.mode 'mesh' only; there are {mesh.size} devices"
                f" (config.parallel.num_devices), {jax.process_count()} processes, and the mode is"
                f" {mode!r}"
            )

    def whole(self, state: TrainState) -> TrainState:
        return self.stack([state] * self.count)

    def repeat(self, array: np.ndarray) -> np.ndarray:
        return np.stack([array] * self.count)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return whole.replace(step=states[0].step)

    def each(self, state: TrainState) -> Sequence[TrainState]:
        return _each(state, self.count)

    def make_step(self, make: Callable[[Any], Callable]) -> Callable[[Any], Callable]:
        def made(spread: Any) -> Callable:
            mapped = jax.vmap(make(spread), in_axes=(_AXES, 0), out_axes=(_AXES, 0))

            def step(state: TrainState, batch: Any) -> tuple[TrainState, list[Any]]:
                state, metrics = mapped(state, batch)
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


Form = Alone | SideBySide
ALONE = Alone()


def form_of(count: int) -> Form:
    """How so many runs lie."""
    return ALONE if count == 1 else SideBySide(count)


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
def _each(state: TrainState, count: int) -> list[TrainState]:
    own = {name: getattr(state, name) for name in _OWN}
    return [state.replace(**_row(own, i)) for i in range(count)]
