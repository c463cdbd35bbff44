"""Schedules by name: a table from a name to a constructor."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from diffax.schedules import families, log_snr_families
from diffax.schedules.base import Schedule
from diffax.schedules.learned import learned

_CONSTRUCTORS: dict[str, Callable[..., Schedule]] = {}


def register(name: str, constructor: Callable[..., Schedule]) -> None:
    """Makes `constructor` reachable as `get(name, **keywords)`, in configs and on the command line.

    Raises:
      ValueError: the name is taken.
    """
    if name in _CONSTRUCTORS and _CONSTRUCTORS[name] is not constructor:
        raise ValueError(f"a schedule named {name!r} is registered already")
    _CONSTRUCTORS[name] = constructor


def names() -> tuple[str, ...]:
    """The names that `get` knows, in the order of registration."""
    return tuple(_CONSTRUCTORS)


def keywords(name: str) -> tuple[str, ...]:
    """The keyword arguments that the constructor of `name` takes."""
    return tuple(inspect.signature(constructor(name)).parameters)


def get(name: str, **arguments: Any) -> Schedule:
    """The schedule of that name, built with keyword arguments of its constructor.

    Raises:
      ValueError: an unknown name or keyword; the message lists the allowed ones.
    """
    allowed = keywords(name)
    for argument in arguments:
        if argument not in allowed:
            raise ValueError(
                f"schedule {name!r} has no argument {argument!r}; allowed are"
                f" {', '.join(allowed) or 'none'}"
            )
    return constructor(name)(**arguments)


def constructor(name: str) -> Callable[..., Schedule]:
    """The constructor of that name; ValueError, with the known names, if there is none."""
    if name not in _CONSTRUCTORS:
        near = difflib.get_close_matches(str(name), _CONSTRUCTORS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"no schedule is named {name!r}{hint}; known are {', '.join(_CONSTRUCTORS)}"
        )
    return _CONSTRUCTORS[name]


for _function in (
    families.linear,
    families.quadratic,
    families.cosine,
    families.sigmoid,
    families.sigmoid_beta,
    families.alpha_bar_linear,
    log_snr_families.linear_logsnr,
    log_snr_families.cosine_logsnr,
    log_snr_families.sigmoid_logsnr,
    log_snr_families.laplace,
    log_snr_families.edm,
    learned,
):
    register(_function.__name__, _function)
