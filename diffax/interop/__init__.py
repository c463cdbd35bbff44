"""Schedules and weights from and for other libraries."""

from diffax.interop import diffusers

__all__ = ["diffusers"]
