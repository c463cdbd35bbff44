"""`mixture2d`: points of the plane from `default_mixture()`, whose exact answers are all known."""

from __future__ import annotations

import jax
import numpy as np

from diffax.data.dataset import DataConfig, Dataset, Split, make_dataset
from diffax.data.mixture import default_mixture

NUM_TRAIN = 50_000
NUM_EVAL = 10_000


def load(config: DataConfig) -> Dataset:
    """50,000 and 10,000 independent points, float32 (2,), from a fixed key; without labels."""
    sample = jax.jit(default_mixture().sample, static_argnums=1)
    points = np.asarray(sample(jax.random.key(0), NUM_TRAIN + NUM_EVAL))
    return make_dataset(
        config.name,
        Split(points[:NUM_TRAIN]),
        Split(points[NUM_TRAIN:]),
        definition=f"mixture2d: {NUM_TRAIN} and {NUM_EVAL} points of default_mixture(), key 0",
    )
