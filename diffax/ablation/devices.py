"""How many worker processes an ablation has, and which device is whose.

Trainings are spread over processes, each with a core or a device of its own. Which of them are
trained several at once, by a process, is said in `together`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import jax

Environment = dict[str, str]


def worker_environments(workers: int | None, most: int) -> list[Environment]:
    """What each worker adds to its environment; one alone works in this process and adds nothing.

    A CPU gives each worker one thread, and by default a worker to each core. A host with several
    GPUs gives each worker one of them, and by default a worker to each. A TPU belongs to one
    process, which uses all of it.

    Args:
      workers: how many are asked for; None for the default.
      most: more would have nothing to do.

    Raises:
      ValueError: several workers where one process has the devices.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    environments = _ENVIRONMENTS[jax.default_backend()](workers)[:most]
    return environments if len(environments) > 1 else [{}]


def _cpu(workers: int | None) -> list[Environment]:
    # Two single-threaded workers on two cores are faster than one run with two threads.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    one_thread = {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    return [one_thread] * (workers or os.cpu_count() or 1)


def _gpu(workers: int | None) -> list[Environment]:
    count = jax.local_device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    # Taken as it is needed, since this process, and workers beyond the devices, use them too.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return [{"CUDA_VISIBLE_DEVICES": names[i % count], **shared} for i in range(workers or count)]


def _tpu(workers: int | None) -> list[Environment]:
    if workers not in (None, 1):
        raise ValueError(
            f"workers is {workers}, but a host's TPU belongs to one process: leave it out, and each"
            " training uses all devices"
        )
    return [{}]


# by JAX's name of the platform
_ENVIRONMENTS: dict[str, Callable[[int | None], list[Environment]]] = {
    "cpu": _cpu,
    "gpu": _gpu,
    "tpu": _tpu,
}
