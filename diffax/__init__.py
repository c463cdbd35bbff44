"""diffax: the noise-schedule laboratory for JAX."""

import importlib
import pkgutil
from typing import Any

from diffax import likelihood, objectives, samplers, schedules, time_sampling
from diffax.likelihood import vlb
from diffax.process import by_log_snr, convert, q_posterior, q_sample, q_step
from diffax.registry import suggestion
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


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_modules()})


def __getattr__(name: str) -> Any:
    """Every public module is an attribute, imported on first use: some bring flax, optax, orbax and
    grain with them."""
    if name == "Generator":
        return importlib.import_module("diffax.generator").Generator
    if name in _modules():
        return importlib.import_module(f"diffax.{name}")
    near = "" if name.startswith("__") else suggestion(name, __dir__())
    raise AttributeError(f"module 'diffax' has no attribute {name!r}{near}")
