"""Trainings that are disturbed, for `fuzz.py`: what they lose. Each in processes of its own."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzz_inputs
import jax
import numpy as np

from diffax import runtime, training

CONFIG = fuzz_inputs.CONFIG.replace(
    "    return config\n",
    """    config.schedule.name = "learned"
    config.schedule.size = 8
    config.training.num_steps = 4000
    config.training.log_every = 100
    config.training.checkpoint_every = 100
    return config
""",
)
REPEATS = {
    "killed": 15,
    "damaged checkpoint": 40,
    "full disk": 5,
    "second job": 4,
    "lost process": 2,
}


class Bench:
    """A folder with the undisturbed run; it says what is lost against that."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, root / "config.py"
        self.config.write_text(CONFIG)
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "DIFFAX_CACHE": str(root / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.whole = root / "whole"
        ended = self.wait(self.start(self.whole))
        if ended[0] != 0:
            raise RuntimeError(f"the undisturbed training ended with {ended}")
        self.states = {step: state_of(self.whole, step) for step in steps_of(self.whole)}

    def start(self, workdir: Path, limit: int | None = None, **environment: str):
        """`diffax train` in a process; `limit`: the largest file that it can write, in bytes."""
        words = ["-m", "diffax", "train", f"--config={self.config}", f"--workdir={workdir}"]
        limited = ["prlimit", f"--fsize={limit}"] if limit else []
        return subprocess.Popen(
            [*limited, sys.executable, *words, "--config.training.keep_checkpoints=50"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **environment},
        )

    def wait(self, process: subprocess.Popen, seconds: float = 300) -> tuple[int, str]:
        """The status and what it said; killed where it takes longer."""
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        return process.returncode, said

    def ends_whole(self, workdir: Path) -> str:
        """Empty if the same command makes the run whole, bit by bit; else what is lost."""
        status, said = self.wait(self.start(workdir))
        if status != 0:
            return f"not resumed: {said[-500:]}"
        if not same(state_of(workdir), state_of(self.whole)):
            return "another state at the end"
        names = [(w / "metrics.jsonl").read_text() for w in (workdir, self.whole)]
        return "" if names[0] == names[1] else "other metrics"


def steps_of(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def state_of(workdir: Path, step: int | None = None) -> Any:
    state = training.load(workdir, step).state
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def record(kind: str, words: str, lost: str, handled: bool = True) -> dict:
    return dict(kind=kind, words=words, lost=int(bool(lost)), handled=int(handled), details=lost)


def killed(bench: Bench, rng: random.Random) -> Iterator[dict]:
    """One run, killed again and again at random moments; then it must become whole."""
    workdir = bench.root / "killed"
    words = []
    for i in range(REPEATS["killed"]):
        process = bench.start(workdir)
        done = max(steps_of(workdir), default=0)
        # A third while it starts; the others once it is under way.
        end = time.monotonic() + (rng.uniform(0, 8) if i % 3 == 0 else 60)
        while time.monotonic() < end and max(steps_of(workdir), default=0) == done:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
        status, said = bench.wait(process)
        words.append((f"at step {max(steps_of(workdir), default=0)}", status, said))
    lost = bench.ends_whole(workdir)
    for at, status, said in words:
        # Killed before it could say anything, ended by SIGTERM after saving, or done already.
        known = status in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, 0)
        yield record("killed", f"{at}: {status}", lost, known and "Traceback" not in said)


def damaged(bench: Bench, rng: random.Random) -> Iterator[dict]:
    """A file of the newest checkpoint changed: the state that is read is that of some step."""
    for i in range(REPEATS["damaged checkpoint"]):
        workdir = bench.root / f"damaged_{i}"
        shutil.copytree(bench.whole, workdir, ignore=shutil.ignore_patterns(*older(bench.whole)))
        newest = workdir / "checkpoints" / str(steps_of(workdir)[-1])
        path = rng.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
        content = bytearray(path.read_bytes())
        what = rng.choice(("flip", "cut", "gone", "zeros"))
        if what == "gone":
            path.unlink()
        elif what == "cut":
            path.write_bytes(content[: rng.randrange(len(content) or 1)])
        elif what == "zeros":
            path.write_bytes(bytes(len(content)))
        elif content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        words = f"{path.relative_to(newest)}: {what}"
        try:
            state = state_of(workdir)
        except Exception as error:
            yield record("damaged checkpoint", words, f"{type(error).__name__}: {error}", False)
            continue
        wrong = not same(state, bench.states[int(state.step)])
        yield record("damaged checkpoint", words, "another state than was saved" * wrong)
        shutil.rmtree(workdir)


def older(workdir: Path) -> list[str]:
    """The steps of all checkpoints but the last three."""
    return [str(step) for step in steps_of(workdir)[:-3]]


def full(bench: Bench, rng: random.Random) -> Iterator[dict]:
    """No file may be larger than so many bytes, as where a quota is reached."""
    for i in range(REPEATS["full disk"]):
        workdir, limit = bench.root / f"full_{i}", int(10 ** rng.uniform(1, 4.5))
        status, said = bench.wait(bench.start(workdir, limit))
        fine = status == 1 and "Traceback" not in said and "can't be written" in said
        yield record("full disk", f"{limit} bytes: {said[-300:]}", bench.ends_whole(workdir), fine)


def second(bench: Bench, rng: random.Random) -> Iterator[dict]:
    """Two jobs in one workdir: one is refused, the other is whole."""
    for i in range(REPEATS["second job"]):
        workdir = bench.root / f"second_{i}"
        first = bench.start(workdir)
        pause = rng.uniform(0, 8)
        time.sleep(pause)
        ends = [bench.wait(process) for process in (bench.start(workdir), first)]
        fine = any(status == 0 for status, _ in ends)
        fine &= all(status in (0, 1) and "Traceback" not in said for status, said in ends)
        words = f"after {pause:.1f} s: {[status for status, _ in ends]}"
        yield record("second job", words, bench.ends_whole(workdir), fine)


def lost_process(bench: Bench, rng: random.Random) -> Iterator[dict]:
    """One of two processes is killed: the other ends, and a run of one goes on from there."""
    for i in range(REPEATS["lost process"]):
        workdir = bench.root / f"lost_{i}"
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        common = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
        both = [bench.start(workdir, **common, JAX_PROCESS_ID=str(n)) for n in range(2)]
        end = time.monotonic() + 120
        while not steps_of(workdir) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        both[i % 2].kill()
        ends = [bench.wait(process, 240) for process in both]
        fine = ends[1 - i % 2][0] not in (0, -signal.SIGKILL)  # by itself, not as it hung
        status, said = bench.wait(bench.start(workdir))
        lost = "" if status == 0 and steps_of(workdir)[-1] == max(bench.states) else said[-500:]
        yield record("lost process", f"{[status for status, _ in ends]}", lost, fine)


FAULTS: tuple[Callable[[Bench, random.Random], Iterator[dict]], ...] = (
    killed,
    damaged,
    full,
    second,
    lost_process,
)


def run(seed: int = 0) -> list[dict]:
    """The records of all disturbances."""
    runtime.start()
    records = []
    with tempfile.TemporaryDirectory(prefix="diffax-faults-") as folder:
        bench = Bench(Path(folder))
        for fault in FAULTS:
            for found in fault(bench, random.Random(f"{fault.__name__} {seed}")):
                records.append(found)
                if found["lost"] or not found["handled"]:
                    print(json.dumps(found), file=sys.stderr, flush=True)
            print(f"{fault.__name__}: done", file=sys.stderr, flush=True)
    return records
