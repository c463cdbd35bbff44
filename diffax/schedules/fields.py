"""What a schedule is made of: the fields of a frozen dataclass that is a pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np


def in_float64() -> AbstractContextManager:
    """Within it JAX computes in float64. JAX 0.7 has the switch among its experiments alone."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def static(**kwargs: Any) -> Any:
    """A dataclass field that is part of the tree's structure, not a leaf: hashable, not traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def number() -> Any:
    """A `static` field that holds a float, which the formulas take traced as well: by
    `with_numbers` one compiled program serves every value of it."""
    return dataclasses.field(metadata={"static": True, "number": True})


def aside() -> Any:
    """A dataclass field that is neither a leaf nor structure: None after any change of the tree."""
    return dataclasses.field(default=None, metadata={"aside": True})


def numbers(x: Any) -> list[float]:
    """The values of all `number` fields of a fixed schedule, in the order of `with_numbers`."""
    found = []
    for field in dataclasses.fields(x) if dataclasses.is_dataclass(x) else ():
        value = getattr(x, field.name)
        found.extend([value] if "number" in field.metadata else numbers(value))
    return found


def with_numbers(x: Any, values: Iterator[Any]) -> Any:
    """A fixed schedule with these in its `number` fields, floats or traced scalars.

    With traced ones it lives within that trace alone: it can't be hashed, so that no compiled
    function takes it as an argument, and no scan carries it.
    """
    if not dataclasses.is_dataclass(x):
        return x
    changed = {}
    for field in dataclasses.fields(x):
        value = getattr(x, field.name)
        is_number = "number" in field.metadata
        changed[field.name] = next(values) if is_number else with_numbers(value, values)
    return dataclasses.replace(x, **changed)


def pytree(cls: type) -> type:
    """Makes `cls` a frozen dataclass and a pytree; fields declared by `static` are structure.

    Not by `jax.tree_util.register_dataclass`: to it trees of two classes with equal static fields
    are equal (jaxlib 0.10 and 0.11), so that a compiled function may run for linear when it is
    called for quadratic. Here the class is part of the structure. Two are equal if structure and
    leaves are.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    leaves = [field.name for field in fields if not {"static", "aside"} & set(field.metadata)]
    statics = [field.name for field in fields if "static" in field.metadata]

    def flatten(x: Any) -> tuple[tuple, tuple]:
        return tuple(getattr(x, n) for n in leaves), (cls, *(getattr(x, n) for n in statics))

    def flatten_with_keys(x: Any) -> tuple[tuple, tuple]:
        children, structure = flatten(x)
        keys = map(jax.tree_util.GetAttrKey, leaves)
        return tuple(zip(keys, children)), structure

    def unflatten(structure: tuple, children: tuple) -> Any:
        return cls(**dict(zip(leaves, children)), **dict(zip(statics, structure[1:])))

    def equal(x: Any, y: Any) -> bool:
        same = jax.tree.structure(x) == jax.tree.structure(y)
        return same and all(map(np.array_equal, jax.tree.leaves(x), jax.tree.leaves(y)))

    cls.__eq__ = equal
    cls.__hash__ = lambda x: hash(jax.tree.structure(x))
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
