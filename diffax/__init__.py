"""diffax: the noise-schedule laboratory for JAX."""

import importlib
from typing import Any

from diffax import likelihood, objectives, samplers, schedules, time_sampling
from diffax.likelihood import vlb
from diffax.process import by_log_snr, convert, q_posterior, q_sample, q_step
from diffax.samplers import sample

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "ablation",
    "by_log_snr",
    "convert",
    "data",
    "likelihood",
    "metrics",
    "models",
    "objectives",
    "q_posterior",
    "q_sample",
    "q_step",
    "sample",
    "samplers",
    "schedules",
    "time_sampling",
    "training",
    "vlb",
]

# imported on first use: they bring flax, optax, orbax and grain with them
_LATER = ("ablation", "data", "metrics", "models", "training")


def __getattr__(name: str) -> Any:
    if name == "Generator":
        return importlib.import_module("diffax.generator").Generator
    if name in _LATER:
        return importlib.import_module(f"diffax.{name}")
    raise AttributeError(f"module 'diffax' has no attribute {name!r}")
