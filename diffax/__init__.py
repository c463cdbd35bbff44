"""diffax: the noise-schedule laboratory for JAX."""

from diffax import samplers, schedules
from diffax.process import by_log_snr, convert, q_posterior, q_sample, q_step
from diffax.samplers import sample

__version__ = "0.1.0"

__all__ = [
    "by_log_snr",
    "convert",
    "q_posterior",
    "q_sample",
    "q_step",
    "sample",
    "samplers",
    "schedules",
]
