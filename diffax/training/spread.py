"""How a step's examples are spread: over devices, and over micro-batches.

The step draws what is random for the whole batch, takes its part of it, and joins and averages what
came out. So its numbers do not depend on the spreading, but for rounding and dropout's masks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class OverAxis(NamedTuple):
    """Each device of the named axes has an equal part, in order: within `pmap` or `shard_map`."""

    name: str | tuple[str, ...]
    size: int

    def index(self) -> jax.Array:
        """This part's number."""
        return jax.lax.axis_index(self.name)

    def mine(self, tree: Any) -> Any:
        """This part of arrays of one row per example of the whole batch."""

        def part(whole: jax.Array) -> jax.Array:
            rows = whole.shape[0] // self.size
            return jax.lax.dynamic_slice_in_dim(whole, self.index() * rows, rows)

        return jax.tree.map(part, tree)

    def join(self, tree: Any) -> Any:
        """The inverse of `mine`: every device gets the whole."""
        return jax.tree.map(lambda a: jax.lax.all_gather(a, self.name, tiled=True), tree)

    def mean(self, tree: Any) -> Any:
        """The mean over the parts."""
        return jax.tree.map(lambda a: jax.lax.pmean(a, self.name), tree)

    def by_device(self, function: Callable[[Spread, Any, Any], Any], whole: Any, rows: Any) -> Any:
        """`function`(spread, whole, rows) as each device runs it, with its rows.

        `whole` is the same everywhere, and so must be what comes out.
        """
        return function(self, whole, rows)


class Together(NamedTuple):
    """All examples are here, as under `jit`: over a mesh (None: no mesh), XLA spreads them."""

    mesh: Mesh | None = None
    size: int = 1

    def index(self) -> int:
        return 0

    def mine(self, tree: Any) -> Any:
        return tree

    def join(self, tree: Any) -> Any:
        if self.mesh is None:
            return tree
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(tree, whole)

    def mean(self, tree: Any) -> Any:
        return tree

    def by_device(self, function: Callable[[Spread, Any, Any], Any], whole: Any, rows: Any) -> Any:
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


Spread = Together | OverAxis
HERE = Together()


def over_micro_batches(
    function: Callable[[Any, jax.Array | int], tuple[Any, Any]], rows: Any, count: int
) -> tuple[Any, Any]:
    """`function`(rows, number) on `count` micro-batches in turn: gradient accumulation.

    Args:
      function: gives a tree whose mean over the micro-batches is wanted, and a tree of arrays of
        one row per row that it got.
      rows: a tree of arrays with one first axis, a multiple of `count`.

    Returns:
      That mean, and those rows in the order of `rows`.
    """
    if count == 1:
        return function(rows, 0)
    # Every `count`-th row makes a micro-batch, so that it is spread over all devices of a mesh.
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
