"""Many devices, many processes, several runs in one program.

`mesh`: the devices and where arrays lie on them. `batch`: how the examples of a batch are divided.
`layout`: several runs in one program. `steps`: a training step compiled for all of that. `hosts`:
several processes as one job.
"""

from diffax.distributed import hosts
from diffax.distributed.batch import LOCAL, BatchSharding, Global, OverAxis, over_micro_batches
from diffax.distributed.layout import SINGLE, RunLayout, SingleRun, VmappedRuns, layout_of
from diffax.distributed.mesh import (
    check_divides,
    make_mesh,
    place_batch,
    replicated,
    split,
    state_sharding,
)
from diffax.distributed.steps import (
    MODES,
    Compiled,
    check_mode,
    compile_init,
    compile_step,
    jit_over_numbers,
)

__all__ = [
    "LOCAL",
    "MODES",
    "SINGLE",
    "BatchSharding",
    "Compiled",
    "Global",
    "OverAxis",
    "RunLayout",
    "SingleRun",
    "VmappedRuns",
    "check_divides",
    "check_mode",
    "compile_init",
    "compile_step",
    "hosts",
    "jit_over_numbers",
    "layout_of",
    "make_mesh",
    "over_micro_batches",
    "place_batch",
    "replicated",
    "split",
    "state_sharding",
]
