"""Runs in processes that may be killed: a program that forks them, and its client in the tests.

The program imports everything once and forks for each run, since the imports take longer than a
short run. Each line of its input asks for one, [config as JSON, workdir, an environment for each of
its processes]; it answers with the processes' ids, and when all have ended with their statuses.
What `train` returns is put beside the workdir.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import jax
from small_runs import compiled_quickly

from diffax import config as config_lib
from diffax import training
from diffax.data import mixture, pipeline  # noqa: F401 - imported before the fork
from diffax.distributed import hosts, mesh


def run(config: str, workdir: str) -> int:
    """Trains in this process; returns its exit status."""
    hosts.HEARTBEAT_SECONDS = 10  # a test needn't wait longer
    mesh.LEAST_SPLIT = 64  # so that small networks are split too
    try:
        _, metrics = training.train(config_lib.from_json(config), workdir)
    except training.Interrupted as stop:
        metrics, status = {}, stop.exit_status
    except Exception:
        traceback.print_exc()
        return 1
    else:
        status = 0
    if hosts.is_first():
        Path(workdir).with_suffix(".returned").write_text(json.dumps(metrics))
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # waits for the others, as the end of a program of one's own
    return status


def serve(compiled: str) -> None:
    """Forks until its input ends. JAX's devices are first touched in the forked processes."""
    gc.freeze()  # so that the processes share what was imported
    with compiled_quickly(compiled):
        for line in sys.stdin:
            config, workdir, environments = json.loads(line)
            pids = []
            for environment in environments:
                pids.append(os.fork())
                if pids[-1] == 0:
                    os.dup2(2, 1)  # the answers are this program's alone: Gloo prints too
                    os.environ |= environment
                    status = run(config, workdir)
                    sys.stderr.flush()
                    os._exit(status)
            print(json.dumps(pids), flush=True)
            waited = [os.waitpid(pid, 0)[1] for pid in pids]
            print(json.dumps([os.waitstatus_to_exitcode(status) for status in waited]), flush=True)


class Killable:
    """The program, as the tests see it; programs that JAX compiles are kept in `compiled`."""

    def __init__(self, compiled):
        self._program = subprocess.Popen(
            # JAX warns of every fork, but here it has no threads yet.
            [sys.executable, "-W", "ignore", __file__, compiled],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, config, workdir, environments=({},)):
        """Begins to train, a process for each environment; returns their ids."""
        request = json.dumps([config_lib.to_json(config), str(workdir), environments])
        print(request, file=self._program.stdin, flush=True)
        self._pids = json.loads(self._program.stdout.readline())
        return self._pids

    def wait(self, seconds=300):
        """The exit statuses of what was started last, negative for a signal: of a process that
        takes longer, SIGKILL."""
        timer = threading.Timer(seconds, self._kill)
        timer.start()
        statuses = json.loads(self._program.stdout.readline())
        timer.cancel()
        return statuses

    def _kill(self):
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGKILL)

    def close(self):
        self._program.communicate()


def on_disk(workdir):
    """The steps of whole checkpoints, and those whose writing was begun."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    whole = {int(name) for name in names if name.isdigit()}
    return whole, {int(name.partition(".")[0]) for name in names if "tmp" in name}


def wait_until(condition, seconds=60):
    """Looks again and again, without a pause long enough to miss the writing of a checkpoint."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(1e-3)


if __name__ == "__main__":
    serve(sys.argv[1])
