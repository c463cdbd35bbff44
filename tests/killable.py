"""A program that trains in processes which may be killed.

It imports everything once and forks for each run, since the imports take longer than a short run.
Each line of its input asks for one, [config as JSON, workdir]; it answers with the process's id,
and when that has ended with its status. What `train` returns is put beside the workdir.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

from small_runs import compiled_quickly

from diffax import config as config_lib
from diffax import training
from diffax.data import mixture2d, pipeline  # noqa: F401 - imported before the fork


def run(config: str, workdir: str) -> int:
    """Trains in this process; returns its exit status."""
    try:
        _, metrics = training.train(config_lib.from_json(config), workdir)
    except Exception:
        traceback.print_exc()
        return 1
    Path(workdir).with_suffix(".returned").write_text(json.dumps(metrics))
    return 0


def main(compiled: str) -> None:
    """Serves until its input ends. JAX's devices are first touched in the forked processes."""
    gc.freeze()  # so that the processes share what was imported
    with compiled_quickly(compiled):
        for line in sys.stdin:
            pid = os.fork()
            if pid == 0:
                status = run(*json.loads(line))
                sys.stderr.flush()
                os._exit(status)
            print(pid, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
