"""Configs: every key with its default and type, the checks before any work, and what they build.

    config = diffax.config.default_config()      # an ml_collections ConfigDict
    config.schedule.name = "learned"
    diffax.config.validate(config)               # raises ValueError with one clear sentence

A file under configs/ starts from `default_config()` in its `get_config()`; on the command line
`--config.schedule.name=learned` overrides a key.
"""

from diffax.config import conditions
from diffax.config.build import (
    build_model,
    build_schedule,
    build_schedule_optimizer,
    conditioning,
    control_names,
    control_shapes,
    load_data,
    sampling_options,
)
from diffax.config.checks import remarks, validate
from diffax.config.defaults import default_config
from diffax.config.methods import build_method, for_method, method_before_data, unread_by_method
from diffax.config.optimizers import OPTIMIZERS
from diffax.config.optimizers import register as register_optimizer
from diffax.config.storage import (
    changed,
    completed,
    differences,
    from_json,
    load_plugins,
    relevant,
    saved,
    to_json,
    unknown_keys,
    upgraded,
)

__all__ = [
    "OPTIMIZERS",
    "build_method",
    "build_model",
    "build_schedule",
    "build_schedule_optimizer",
    "changed",
    "completed",
    "conditioning",
    "conditions",
    "control_names",
    "control_shapes",
    "default_config",
    "differences",
    "for_method",
    "from_json",
    "load_data",
    "load_plugins",
    "method_before_data",
    "register_optimizer",
    "relevant",
    "remarks",
    "sampling_options",
    "saved",
    "to_json",
    "unknown_keys",
    "unread_by_method",
    "upgraded",
    "validate",
]
