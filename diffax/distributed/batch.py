"""How the examples of a batch are divided: over devices, and over micro-batches.

A training step draws its random numbers for the whole batch, takes its own rows of them, and
gathers and averages its results. Its numbers therefore do not depend on the division, except for
rounding and for the masks of dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class OverAxis(NamedTuple):
    """Each device of the named axes holds an equal part, in order: within `pmap` or `shard_map`."""

    name: str | tuple[str, ...]
    size: int

    def index(self) -> jax.Array:
        """The number of this device's part."""
        return jax.lax.axis_index(self.name)

    def local(self, tree: Any) -> Any:
        """This device's rows of arrays that have one row per example of the whole batch."""

        def part(whole: jax.Array) -> jax.Array:
            rows = whole.shape[0] // self.size
            return jax.lax.dynamic_slice_in_dim(whole, self.index() * rows, rows)

        return jax.tree.map(part, tree)

    def gather(self, tree: Any) -> Any:
        """The inverse of `local`: every device gets the whole."""
        return jax.tree.map(lambda a: jax.lax.all_gather(a, self.name, tiled=True), tree)

    def mean(self, tree: Any) -> Any:
        """The mean over the parts."""
        return jax.tree.map(lambda a: jax.lax.pmean(a, self.name), tree)

    def by_device(
        self, function: Callable[[BatchSharding, Any, Any], Any], whole: Any, rows: Any
    ) -> Any:
        """`function`(sharding, whole, rows) as each device runs it, on its own rows.

        `whole` is the same on every device, and so must be the result.
        """
        return function(self, whole, rows)


class Global(NamedTuple):
    """Arrays hold all examples, as under `jit`: XLA divides them over the mesh (None: no mesh)."""

    mesh: Mesh | None = None
    size: int = 1

    def index(self) -> int:
        return 0

    def local(self, tree: Any) -> Any:
        return tree

    def gather(self, tree: Any) -> Any:
        if self.mesh is None:
            return tree
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(tree, whole)

    def mean(self, tree: Any) -> Any:
        return tree

    def by_device(
        self, function: Callable[[BatchSharding, Any, Any], Any], whole: Any, rows: Any
    ) -> Any:
        if self.mesh is None or self.mesh.size == 1:
            return function(self, whole, rows)
        names = self.mesh.axis_names
        return jax.shard_map(
            functools.partial(function, OverAxis(names, self.mesh.size)),
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(names)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(whole, rows)


BatchSharding = Global | OverAxis
LOCAL = Global()


def over_micro_batches(
    function: Callable[[Any, jax.Array | int], tuple[Any, Any]], rows: Any, count: int
) -> tuple[Any, Any]:
    """`function`(rows, number) on `count` micro-batches in turn: gradient accumulation.

    Args:
      function: gives a tree, of which the mean over the micro-batches is taken, and a tree of
        arrays with one row per row of its argument.
      rows: a tree of arrays with one first axis, a multiple of `count`.

    Returns:
      That mean, and those rows in the order of `rows`.
    """
    if count == 1:
        return function(rows, 0)
    # A micro-batch is every `count`-th row, so that it is divided over all devices of a mesh.
    pieces = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, count, *a.shape[1:]), 0, 1), rows)
    first = jax.tree.map(lambda a: a[0], pieces)
    zero = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, first, 0)[0]
    )

    def add(total: Any, numbered: tuple[jax.Array, Any]) -> tuple[Any, Any]:
        number, piece = numbered
        part, each = function(piece, number)
        return jax.tree.map(jnp.add, total, part), each

    total, each = jax.lax.scan(add, zero, (jnp.arange(count), pieces))
    return (
        jax.tree.map(lambda a: a / count, total),
        jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]), each),
    )
