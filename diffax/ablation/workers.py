"""Worker processes of an ablation: how many, which device each has, and the runs that they make."""

import _thread
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

import jax

from diffax import runtime

Environment = dict[str, str]


def worker_environments(workers: int | None, most: int) -> list[Environment]:
    """The environment variables of each worker; a single worker is this process and has none.

    On a CPU each worker has one thread, and by default there is one worker per core. On a host with
    several GPUs each worker has one of them, and by default there is one worker per GPU. A TPU
    belongs to one process, which uses all of it.

    Args:
      workers: how many are asked for; None for the default.
      most: an upper bound; more workers would be idle.

    Raises:
      ValueError: several workers on a device that only one process can have.
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


# --- runs in worker processes ---------------------------------------------------------------------


_LOG = logging.getLogger("diffax")
# A worker that was asked to save and end is ended after so long.
SAVING_SECONDS = 120


def in_parallel(
    execute: Callable[[Any], tuple[str, float | None, str]],
    units: Sequence[Sequence[Any]],
    environments: Sequence[Mapping[str, str]],
    kind: Callable[[Any], tuple[Any, Any]] = lambda run: (None, None),
) -> Iterator[tuple[Any, str, float | None, str]]:
    """Yields (run, "started", None, "") and (run, *execute(run)) as the runs come and go.

    The runs of a unit follow one another in one worker. Each worker is a pool of one process, with
    an environment of its own: when a process dies (killed, out of memory) that run alone has
    failed, and a fresh process takes its place. Closing the generator and Ctrl-C stop the workers:
    a training under way saves a checkpoint first, all else ends at once. A second Ctrl-C, or
    the death of this process, ends all workers at once.

    Args:
      execute: execute(run) -> (status, seconds, message), called in a worker; picklable.
      units: lists of runs, none empty.
      environments: as many as there are workers: the variables that each adds to its environment.
      kind: run -> (row, what it compiles). Of the units that wait, by their first runs, a worker
        takes one of the first row, and there one that compiles what it has compiled before.

    Raises:
      ValueError: `execute` cannot be pickled, since what it runs is no top-level function.
    """
    try:
        pickle.dumps(execute)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"run_one must be a top-level function to run in worker processes ({error})"
        ) from error
    context = multiprocessing.get_context("spawn")
    # The workers hold one end of two pipes, and see when the other is closed: of the first to save
    # and end, of the second (which is closed with this process too) to end at once. (An event has
    # locks, which a worker that is killed may leave taken.)
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    theirs, (saving, lifeline) = zip(*pipes)

    def start_process() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, initializer=_obey_parent, initargs=theirs)

    waiting, flying = deque(map(deque, units)), {}
    idle = [_Worker(start_process(), own) for own in environments[: len(units)]]
    _LOG.info("starting %d worker processes", len(idle))
    busy = []  # workers whose unit has runs left
    try:
        while waiting or busy or flying:
            while busy or waiting and idle:
                worker = busy.pop() if busy else idle.pop()
                worker.unit = worker.unit or _taken(waiting, worker, kind)
                run = worker.unit.popleft()
                # The process is spawned by submit. It takes signals when it is ready to.
                with _environment(worker.environment), _signals_later():
                    flying[worker.process.submit(_ending, execute, run)] = worker, run
                yield run, "started", None, ""
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                worker, run = flying.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    worker.process.shutdown()
                    worker.process, worker.compiled = start_process(), set()
                    outcome = "failed", None, "its process died, killed or out of memory"
                (busy if worker.unit else idle).append(worker)
                yield run, *outcome
    except BaseException:
        saving.close()
        raise
    finally:
        try:
            for worker in [*idle, *busy, *(worker for worker, _ in flying.values())]:
                worker.process.shutdown(cancel_futures=True)
        finally:
            for end in (saving, lifeline, *theirs):
                end.close()


@dataclass
class _Worker:
    process: ProcessPoolExecutor
    environment: Mapping[str, str]
    unit: deque = field(default_factory=deque)  # the runs that are left of what it is at
    compiled: set = field(default_factory=set)  # of what kinds its runs were


def _taken(waiting: deque, worker: _Worker, kind: Callable[[Any], tuple[Any, Any]]) -> deque:
    """Takes the unit that a worker does next out of those that wait."""
    row = [unit for unit in waiting if kind(unit[0])[0] == kind(waiting[0][0])[0]]
    unit = next((unit for unit in row if kind(unit[0])[1] in worker.compiled), row[0])
    worker.compiled.add(kind(unit[0])[1])
    waiting.remove(unit)
    return unit


def _obey_parent(saving: connection.Connection, lifeline: connection.Connection) -> None:
    """In a worker: leaves signals to the parent, and ends when the parent asks for it or is gone.

    Signals stay blocked, as they are when a worker is begun. What the parent says is handled as if
    SIGTERM had come, so that a training notes it, and saves a checkpoint after its step.
    """
    signal.signal(signal.SIGTERM, runtime.stop)

    def watch() -> None:
        # Nothing is ever sent: an end becomes ready when the other is closed.
        connection.wait([saving, lifeline])
        if signal.getsignal(signal.SIGTERM) is not runtime.stop:  # a training is under way
            _thread.interrupt_main(signal.SIGTERM)
            connection.wait([lifeline], SAVING_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ending(execute: Callable, run: Any) -> tuple[str, float | None, str]:
    """In a worker: ends the process after a run that was stopped has saved its checkpoint."""
    try:
        return execute(run)
    except KeyboardInterrupt:
        os._exit(1)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Signals wait until the end; a process that is begun meanwhile inherits that they do.

    Another thread may take a signal that is blocked in this one, and Python then runs the handler
    in the main thread all the same: so that one waits too.
    """
    came: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, runtime.SIGNALS)
    main = threading.current_thread() is threading.main_thread()
    ours = [n for n in runtime.SIGNALS if main and signal.getsignal(n) is not None]
    handlers = {n: signal.signal(n, lambda number, _: came.append(number)) for n in ours}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)
