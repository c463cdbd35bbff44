"""Seeds of an arm trained in one program, for the networks that gain by it.

A training that was one of several leaves a note beside, together.json: the seeds, and its share of
the seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffax import training
from diffax.ablation import measure, store
from diffax.files import read_json, write_json

_LOG = logging.getLogger("diffax")
NOTE = "together.json"

# Measured on a core, experiments/results/seeds_vectorised.md: several seeds of an MLP take 0.47 to
# 0.96 of the time of each by itself as long as a layer's output, of all seeds, is at most so many
# numbers (512 KiB, about a core's own cache), and up to 1.34 beyond. A U-Net's take 1.7: its
# convolutions, of which each seed has kernels of its own, become grouped ones.
GAINING = {"mlp": 2**17}  # name in config.model -> numbers

# Why trainings may not go together that each by itself may: a form that is refused, a number that
# isn't finite in one of them, a disk or a memory that is full.
_FAILURES = (ValueError, FloatingPointError, OSError, jax.errors.JaxRuntimeError)


def at_once(config: ConfigDict, vectorise: bool | None = None) -> int:
    """How many seeds of a config are trained in one program, at most; 1: each by itself.

    `vectorise`: None for as many as gain by it, True for all, False for one.
    """
    if vectorise is not None:
        return sys.maxsize if vectorise else 1
    if config.model.name not in GAINING:
        return 1
    width = config.model[config.model.name].width
    return max(1, GAINING[config.model.name] // (width * config.training.batch_size))


def train(configs: Sequence[ConfigDict], directories: Sequence[Path]) -> None:
    """Trains in one program those of some trainings of one arm that are not complete.

    Where that is impossible or fails, in whichever of them, all keep their checkpoints, and each is
    left to be trained by itself.
    """
    left = [
        (config, directory)
        for config, directory in zip(configs, directories)
        if training.steps_done(directory) < config.training.num_steps
    ]
    if len(left) < 2:
        return
    start = time.monotonic()
    for config, directory in left:
        store.note_configuration(directory, measure.training_configuration(config))
    try:
        training.train_together([measure.as_trained(c) for c, _ in left], [d for _, d in left])
    except _FAILURES as error:
        _LOG.warning("each seed is trained by itself, since together they can't be: %s", error)
        return
    note = {
        "seeds": [config.seed for config, _ in left],
        "seconds": (time.monotonic() - start) / len(left),
    }
    for _, directory in left:
        write_json(directory / NOTE, note)


def note(directory: Path, seed: int) -> dict[str, Any]:
    """{"seeds": those with which a training shared a program, "seconds": its share of that}."""
    path = directory / NOTE
    alone = {"seeds": [seed], "seconds": 0.0}
    return read_json(path, tuple(alone)) if path.exists() else alone
