"""Samplers: one file per solver, the fixed grids in `grids` and those found for a network in
`grid_search`, guidance, the one loop in `loop`."""

from diffax.samplers import grid_search, grids, guidance
from diffax.samplers.base import Denoised, Level, Sampler, Step
from diffax.samplers.editing import inpaint, interpolate, invert, kept_levels, reconstruct, sdedit
from diffax.samplers.grids import GRIDS
from diffax.samplers.grids import register as register_grid
from diffax.samplers.loop import (
    SAMPLERS,
    TRACED,
    get,
    options_of,
    register,
    sample,
    visited_levels,
)

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "TRACED",
    "Denoised",
    "Level",
    "Sampler",
    "Step",
    "get",
    "grid_search",
    "grids",
    "guidance",
    "inpaint",
    "interpolate",
    "invert",
    "kept_levels",
    "options_of",
    "reconstruct",
    "register",
    "register_grid",
    "sample",
    "sdedit",
    "visited_levels",
]
