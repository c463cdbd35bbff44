"""Data sets and endless batches from them.

For instance:

    dataset = diffax.data.load({"name": "digits"})
    batches = diffax.data.batches(dataset.train, batch_size=128, seed=0)
    next(batches)["x"]  # float32 (128, 8, 8, 1) in [-1, 1]
"""

from diffax.data.controls import CONTROLS, register_control
from diffax.data.dataset import DataConfig, Dataset, DatasetInfo, Split, Table, make_dataset
from diffax.data.mixture import GaussianMixture, default_mixture, grid_mixture
from diffax.data.pipeline import batches
from diffax.data.sources import (
    SOURCES,
    key_types,
    known_fields,
    load,
    load_cached,
    register,
    registered,
)

__all__ = [
    "CONTROLS",
    "SOURCES",
    "DataConfig",
    "Dataset",
    "DatasetInfo",
    "GaussianMixture",
    "Split",
    "Table",
    "batches",
    "default_mixture",
    "grid_mixture",
    "key_types",
    "known_fields",
    "load",
    "load_cached",
    "make_dataset",
    "register",
    "register_control",
    "registered",
]
