"""Several ControlNets on one base, as one run."""

import dataclasses
import os

import jax
import numpy as np

from diffax import config as config_lib
from diffax.training import codecs
from diffax.training.workdir import Run, load


def combined(run: Run | str | os.PathLike, *others: Run | str | os.PathLike) -> Run:
    """A ControlNet with the branches of others beside the same base, to be sampled from.

    What the branches add to the base is summed, each by its own strength. The controls are those of
    `run` first, then those of `others` in their order. All else is as `run` has it. A single run
    stays as it is.

    Args:
      run, others: of `diffax.training.load`, or workdirs.

    Raises:
      FileNotFoundError, ValueError: as `load`; or a run that is no ControlNet, or stands beside
        another base.
    """
    first, *added = (each if isinstance(each, Run) else load(each) for each in (run, *others))
    if not added:
        return first
    for each in (first, *added):
        if not each.config.condition.base:
            raise ValueError(
                f"{each.workdir} holds no ControlNet (condition.base is empty), and only those of"
                " one base can be combined"
            )
        if not _same(each.state.base, first.state.base):
            raise ValueError(
                f"{each.workdir} and {first.workdir} hold ControlNets on different bases,"
                f" {each.config.condition.base} and {first.config.condition.base}"
            )
    arrays = dict(first.dataset.arrays)
    for each in added:
        for name, shape in each.dataset.arrays:
            if arrays.setdefault(name, shape) != shape:
                raise ValueError(
                    f"{each.workdir} and {first.workdir} follow {name!r} of different shapes,"
                    f" {shape} and {arrays[name]}"
                )
    names = [name for each in (first, *added) for name in config_lib.control_names(each.config)]
    config = config_lib.changed(first.config, {"condition.control": ",".join(names)})
    info = dataclasses.replace(first.dataset, arrays=tuple(sorted(arrays.items())))
    branches = {
        part: [
            branch
            for each in (first, *added)
            for _, branch in sorted(getattr(each.state, part).items())
        ]
        for part in ("params", "ema_params")
    }
    state = first.state.replace(
        **{part: {f"control_{i}": b for i, b in enumerate(own)} for part, own in branches.items()}
    )
    return Run(config, codecs.build_method(config, info), state, info, first.workdir)


def _same(a: dict, b: dict) -> bool:
    """Whether two trees hold the same arrays."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
