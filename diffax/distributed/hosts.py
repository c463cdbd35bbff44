"""Several processes as one job, through `jax.distributed`.

Each process sees its own devices and reads its own piece of every batch; all run the same program.
Only the first writes metrics, configs and pictures; all write checkpoints.
"""

import contextlib
import glob
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

# A process that is not heard of for so long is taken for dead, and the others end with an error.
HEARTBEAT_SECONDS = 60
# So long the others wait for each other at the end, where one has failed too.
SHUTDOWN_SECONDS = 60


def _of_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"the environment's {name} is {text!r}; it must be a whole number")
    return None if text is None else int(text)


def _by_jax() -> bool:
    return (_of_environment("JAX_NUM_PROCESSES") or 1) > 1


def _by_slurm() -> bool:
    # A script of `sbatch` sees the job's variables too, but the step's only `srun` sets.
    of_step = "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ
    return of_step and (_of_environment("SLURM_NTASKS") or 1) > 1


def _by_tpu() -> bool:
    names = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return any("," in os.environ.get(name, "") for name in names) or "," in _cloud_workers()


def _cloud_workers() -> str:
    """The hosts of a TPU slice, separated by commas, as Google Cloud tells its virtual machines;
    "" where there is no TPU or no such cloud, as on Colab."""
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if not chips or "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    place = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    request = urllib.request.Request(place, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:  # nobody there, or nothing known
        return ""


DETECTIONS = {"JAX_NUM_PROCESSES": _by_jax, "SLURM": _by_slurm, "TPU": _by_tpu}


def join(multihost: bool | None = None) -> None:
    """Makes this process one of its job's, once; nothing may have used a device before.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say who
    the others are; without them `jax.distributed` finds out on TPU, SLURM, Open MPI and Kubernetes.

    Args:
      multihost: whether there are others; None: if one of `DETECTIONS` finds that there are.

    Raises:
      ValueError: the others can't be found out or reached, or a device was used already.
    """
    if multihost is None:
        multihost = any(detect() for detect in DETECTIONS.values())
    if not multihost or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            num_processes=_of_environment("JAX_NUM_PROCESSES"),
            process_id=_of_environment("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"this process could not join the others of its job ({error}); the environment's"
            " JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are, and"
            " config.parallel.multihost=False that there are none"
        ) from error
    _let_sigterm_act()


def _let_sigterm_act() -> None:
    """SIGTERM does again what Python knows of: `jax.distributed` has it noted alone, for a service
    that nobody asks here, so that a job which is told to stop while it starts would not."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def is_first() -> bool:
    """Whether this process is the one that writes what all know."""
    return jax.process_index() == 0


def agreed(number: int, ask: bool) -> int:
    """The largest number that a process gives, the same in all; 0 unless it is time to `ask`.

    To ask waits for the devices, so it is done now and then only, by all at once. A process alone
    needn't ask.
    """
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number)))) if ask else 0


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """An error in the body, of one process, is an error in all, so that none goes on to something
    that all must do and waits there. All must come to its end or raise."""
    found = None
    try:
        yield
    except Exception as error:
        found = error
    if agreed(int(found is not None), True):
        raise found or ValueError("another process of the job failed here; see what it says")
