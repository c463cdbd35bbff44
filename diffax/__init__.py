"""diffax: the noise-schedule laboratory for JAX."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffax import likelihood, objectives, rates, samplers, schedules, time_sampling
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
    "evaluation",
    "likelihood",
    "methods",
    "metrics",
    "models",
    "objectives",
    "q_posterior",
    "q_sample",
    "q_step",
    "rates",
    "sample",
    "samplers",
    "schedules",
    "time_sampling",
    "training",
    "vlb",
]


# What is an attribute of the package itself -> the module that has it.
_FROM = {
    "Generator": "generator",
    "by_log_snr": "process",
    "convert": "process",
    "q_posterior": "process",
    "q_sample": "process",
    "q_step": "process",
    "sample": "samplers",
    "vlb": "likelihood",
}


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_modules()})


def __getattr__(name: str) -> Any:
    """All is imported on first use: JAX takes a second, in which a program that was stopped should
    end quietly, and some modules bring flax, optax, orbax and grain with them."""
    if name in _FROM:
        value = getattr(importlib.import_module(f"diffax.{_FROM[name]}"), name)
        globals()[name] = value
        return value
    if name in _modules():
        return importlib.import_module(f"diffax.{name}")
    if name.startswith("_"):
        raise AttributeError(f"module 'diffax' has no attribute {name!r}")
    from diffax.registry import suggestion

    near = suggestion(name, __dir__())
    raise AttributeError(f"module 'diffax' has no attribute {name!r}{near}")
