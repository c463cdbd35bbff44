"""Schedules by name: a table from a name to a constructor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffax.registry import Constructors, require
from diffax.schedules import families, log_snr_families
from diffax.schedules.base import Schedule
from diffax.schedules.from_rate import from_rate
from diffax.schedules.learned import learned

SCHEDULES: Constructors[Schedule] = Constructors(
    "schedule",
    {
        function.__name__: function
        for function in (
            families.linear,
            families.quadratic,
            families.cosine,
            families.sigmoid,
            families.sigmoid_beta,
            families.alpha_bar_linear,
            families.rectified_flow,
            log_snr_families.linear_logsnr,
            log_snr_families.cosine_logsnr,
            log_snr_families.sigmoid_logsnr,
            log_snr_families.laplace,
            log_snr_families.edm,
            from_rate,
            learned,
        )
    },
    no_keys=("key",),  # for the initial parameters
)


def register(name: str, constructor: Callable[..., Schedule]) -> None:
    """Makes `constructor` reachable as `get(name, **keywords)`, in configs and on the command line.

    Args:
      constructor: its keywords, numbers, words or tuples, become keys of config.schedule.

    Raises:
      ValueError: the name is taken, or the type of a keyword isn't known or is another one than
        that of another schedule's keyword of the same name.
    """
    SCHEDULES.register(name, constructor)


def names() -> tuple[str, ...]:
    """The names that `get` knows, in the order of registration."""
    return SCHEDULES.names()


def keywords(name: str) -> tuple[str, ...]:
    """The keyword arguments that the constructor of `name` takes."""
    return tuple(inspect.signature(constructor(name)).parameters)


def get(name: str, **arguments: Any) -> Schedule:
    """The schedule of that name, built with keyword arguments of its constructor.

    Raises:
      ValueError: an unknown name or keyword, of which the message lists the allowed ones; or a
        keyword without a default that isn't given.

    Examples:
      >>> import jax.numpy as jnp
      >>> from diffax import schedules
      >>> cosine = schedules.get("cosine")
      >>> print(f"{cosine.log_snr(jnp.array(0.5)):.2f}")
      -0.02
      >>> ddpm = schedules.get("linear").discretize(1000)
      >>> print(f"{ddpm.betas[0]:.4f} {ddpm.betas[-1]:.4f}")
      0.0001 0.0200
    """
    made = SCHEDULES.build(name, **arguments)
    return require(f"schedule {name!r}", made, "schedule", "log_snr", "num_steps")


def constructor(name: str) -> Callable[..., Schedule]:
    """The constructor of that name; ValueError, with the known names, if there is none."""
    return SCHEDULES.lookup(name)
