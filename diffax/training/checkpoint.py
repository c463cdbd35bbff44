"""Checkpoints by orbax, written in the background while training goes on.

    workdir/checkpoints/<step>/state    every array of the `TrainState`, by its path in the tree
    workdir/checkpoints/<step>/loop     JSON: the data iterator's state and what the loop remembers

A step's folder gets its name when all of it is written, so it is whole or not there.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: where they lie; made if it isn't there.
      keep: how many of the latest stay.
      read_only: for looking only; nothing is made.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 1, read_only: bool = False):
        self.directory = Path(directory).absolute()
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
        self, like: Any, sharding: jax.sharding.Sharding, step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The state and the loop's data of a step, the latest if left out.

        Args:
          like: a tree of the state's structure, of arrays or `jax.ShapeDtypeStruct`.
          sharding: where the arrays go; it need not be where they were when saved.

        Raises:
          FileNotFoundError: there is no checkpoint, or none of that step.
          ValueError: it holds other arrays than `like`.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        step = steps[-1] if step is None else step
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise FileNotFoundError(
                f"there is no checkpoint of step {step} in {self.directory}; there are: {there}"
            )
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for path, leaf in jax.eval_shape(_by_path, like).items()
        }
        self._check_same_arrays(step, wanted)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), loop=ocp.args.JsonRestore()
            ),
        )
        return _from_paths(restored.state, like), restored.loop

    def _check_same_arrays(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
        there = {p: tuple(m.shape) for p, m in self._manager.item_metadata(step).state.items()}
        needed = {path: leaf.shape for path, leaf in wanted.items()}
        for path in sorted(needed.keys() | there.keys()):
            found, expected = there.get(path, "none"), needed.get(path, "none")
            if found != expected:
                raise ValueError(
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


def _by_path(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their path in the tree, PRNG keys as the integers that they consist of."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            jax.random.key_data(leaf) if _is_key(leaf) else leaf
        )
        for path, leaf in leaves
    }


def _from_paths(by_path: dict[str, jax.Array], like: Any) -> Any:
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    return tree.unflatten(
        jax.random.wrap_key_data(array) if _is_key(leaf) else array
        for array, (_, leaf) in zip(
            (by_path[jax.tree_util.keystr(p, simple=True, separator=".")] for p, _ in leaves),
            leaves,
        )
    )
