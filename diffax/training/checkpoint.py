"""Checkpoints by orbax, written in the background while training goes on.

    workdir/checkpoints/<step>/state    every array of the `TrainState`, by its path in the tree
    workdir/checkpoints/<step>/loop     JSON: the data iterator's state and what the loop remembers

A step's folder gets its name when all of it is written, so it is whole or not there.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

_LOG = logging.getLogger("diffax")


class OtherArraysError(ValueError):
    """A checkpoint holds other arrays than are wanted."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: where they lie; made if it isn't there.
      keep: how many of the latest stay.
      read_only: for looking only; nothing is made.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 1, read_only: bool = False):
        self.directory = Path(directory).absolute()
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep),
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = dict(state=ocp.StandardCheckpointHandler(), loop=ocp.JsonCheckpointHandler())
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> None:
        """Begins to write; waits only for an earlier checkpoint and for the copy to the host.

        Args:
          step: a checkpoint of the same step that is there already is left as it is.
          state: any pytree of arrays and PRNG keys.
          loop: plain data that JSON can hold; copied, so that it may change afterwards.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_by_path(state)),
                loop=ocp.args.JsonSave(copy.deepcopy(loop)),
            ),
        )

    def restore(
        self, like: Any, sharding: Any, step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The state and the loop's data of a step, the latest readable one if left out.

        A damaged one that is passed over is named in a warning and, unless `read_only`, put aside
        as "damaged-<step>", so that its step can be saved again.

        Args:
          like: a tree of the state's structure, of arrays or `jax.ShapeDtypeStruct`.
          sharding: where the arrays go, one for all or a tree of them like the state; it need not
            be where they were when saved.

        Raises:
          FileNotFoundError: there is no checkpoint, or none of that step.
          ValueError: it holds other arrays than `like`, or there is none that can be read.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps))
            raise FileNotFoundError(
                f"there is no checkpoint of step {step} in {self.directory}; there are: {there}"
            )
        if isinstance(sharding, jax.sharding.Sharding):
            sharding = jax.tree.map(lambda _: sharding, like)
        places = dict(_paths(sharding))
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path])
            for path, leaf in jax.eval_shape(_by_path, like).items()
        }
        candidates = steps[::-1] if step is None else [step]
        damaged: dict[int, Exception] = {}
        for candidate in candidates:
            try:
                by_path, loop = self._read(candidate, wanted)
            except OtherArraysError:
                raise
            except Exception as error:  # orbax has no one kind for what it can't read
                damaged[candidate] = error
            else:
                self._put_aside(damaged, candidate)
                return _from_paths(by_path, like), loop
        latest, error = next(iter(damaged.items()))
        raise ValueError(
            f"the checkpoint of step {latest} in {self.directory} can't be read, nor is there"
            f" another that can: {error}"
        ) from error

    def _put_aside(self, damaged: dict[int, Exception], used: int) -> None:
        for step, error in damaged.items():
            place = self.directory / str(step)
            if not self._read_only:
                place = place.rename(self.directory / f"damaged-{step}")
            _LOG.warning(
                "the checkpoint of step %d is damaged (%s; now %s): the one of step %d is used",
                step,
                str(error).partition("\n")[0][:200],
                place,
                used,
            )
        if damaged and not self._read_only:
            self._manager.reload()

    def _read(
        self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        there = {p: tuple(m.shape) for p, m in self._manager.item_metadata(step).state.items()}
        self._check_same_arrays(step, there, wanted)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), loop=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.loop

    def _check_same_arrays(
        self, step: int, there: dict[str, tuple], wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> None:
        needed = {path: leaf.shape for path, leaf in wanted.items()}
        for path in sorted(needed.keys() | there.keys()):
            found, expected = there.get(path, "none"), needed.get(path, "none")
            if found != expected:
                raise OtherArraysError(
                    f"the checkpoint of step {step} in {self.directory} is of another model or"
                    f" config: {path} has shape {found} there, and {expected} is needed"
                )

    def wait(self) -> None:
        """Returns when all is written; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends."""
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves, each with its path in the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="."), leaf) for p, leaf in leaves]


def _by_path(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their path in the tree, PRNG keys as the integers that they consist of."""
    return {
        path: jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in _paths(tree)
    }


def _from_paths(by_path: dict[str, jax.Array], like: Any) -> Any:
    return jax.tree.structure(like).unflatten(
        jax.random.wrap_key_data(by_path[path]) if _is_key(leaf) else by_path[path]
        for path, leaf in _paths(like)
    )
