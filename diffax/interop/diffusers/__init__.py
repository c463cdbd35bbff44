"""diffusers' schedulers and U-Nets, in and out, without PyTorch and without diffusers itself."""

from diffax.interop.diffusers.schedulers import CONFIG as SCHEDULER_CONFIG
from diffax.interop.diffusers.schedulers import (
    Scheduler,
    load_scheduler,
    save_scheduler,
    scheduler_config,
)
from diffax.interop.diffusers.unets import load_unet, save_unet

__all__ = [
    "SCHEDULER_CONFIG",
    "Scheduler",
    "load_scheduler",
    "load_unet",
    "save_scheduler",
    "save_unet",
    "scheduler_config",
]
