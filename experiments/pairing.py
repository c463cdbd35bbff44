"""Programs timed in turn: each in a process of its own, told over a pipe which part to run next.

The parent writes the name of a part, one a line; the child runs it once and answers with one line
of JSON. While one child runs the others wait on their pipes, so that they share a core without
disturbing each other, and what drifts on the machine strikes all alike. The first run of a part
prepares it (compilation, memory) and counts for nothing. Standard library only: a child may live in
an environment that has none of the others' libraries.
"""

import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# What a child may add to its answers; of the first of them it is kept.
NOTES = ("compile_seconds", "planned_memory_mb")


def pin(core: int | None) -> None:
    """Keeps this process, and what it starts, on one core; None, or no such call here: anywhere."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def cores() -> set[int]:
    """The cores that this process may run on; empty where they can't be told apart."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def process_peak_mb() -> float:
    """The most memory this process has held so far, in MB (10^6 bytes)."""
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return kilobyte * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def serve(start: Callable[[], tuple[dict, dict[str, Callable]]]) -> None:
    """The child's side: answers until its input ends.

    Args:
      start: gives a dict about the program, which is the first answer, and for every part a
        function that prepares it and returns the function that runs it once; what that returns, a
        dict or None, joins the answer or takes the place of what is in it. A ValueError is sent as
        {"error": its sentence}.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not stand among the answers
    try:
        about, parts = start()
    except ValueError as error:
        print(json.dumps(dict(error=str(error))), file=answers)
        return
    print(json.dumps(about), file=answers)
    ready: dict[str, Callable] = {}
    for line in sys.stdin:
        part = line.strip()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        if part not in ready:
            ready[part] = parts[part]()
        notes = ready[part]() or {}
        wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        answer = dict(wall=wall, cpu=cpu, peak_memory_mb=process_peak_mb()) | notes
        print(json.dumps(answer), file=answers)


class Child:
    """A program that `serve`s; to be closed, or used in a `with` statement.

    What waits for an answer raises RuntimeError if the program could not begin, and said why, or
    ended without one.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    @functools.cached_property
    def about(self) -> dict:
        """What the program says of itself; waits until it has begun."""
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"{self._name} ended with status {status}, without an answer")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, part: str) -> None:
        """Has it run a part once; `answer` waits for the end."""
        self._process.stdin.write(part + "\n")

    def answer(self) -> dict:
        """Of the part asked for: {"wall": seconds, "cpu": seconds, "peak_memory_mb": ...}."""
        _ = self.about  # comes before all answers
        return self._answer()

    def run(self, part: str) -> dict:
        """Runs a part once, and waits for its answer."""
        self.ask(part)
        return self.answer()

    def close(self) -> None:
        """Ends the program, which sees the end of its input."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def one_by_one(children: list[Child], part: str) -> list[dict]:
    """The first runs of a part: for programs that share a core."""
    return [child.run(part) for child in children]


def at_once(children: list[Child], part: str) -> list[dict]:
    """The first runs of a part, all at the same time: where there are cores enough to compile."""
    for child in children:
        child.ask(part)
    return [child.answer() for child in children]


def in_turn(
    ours: Child,
    theirs: Child,
    part: str,
    repeats: int,
    calls: int = 1,
    first_runs: Callable = one_by_one,
) -> dict:
    """Runs a part by both, `repeats` times in turn after a first time, and compares.

    Which of the two goes first alternates. A ratio is the median over the pairs of ours / theirs,
    and stands with the lowest and the highest. Seconds are those of one of the `calls` that each
    makes in a turn; "first_seconds" are those of the whole first turn.
    """
    sides = dict(ours=ours, theirs=theirs)
    first = dict(zip(sides, first_runs(list(sides.values()), part)))
    runs = {side: [] for side in sides}
    for i in range(repeats):
        for side in (list(sides), list(reversed(sides)))[i % 2]:
            runs[side].append(sides[side].run(part))
    result = dict(repeats=repeats)
    for clock in ("cpu", "wall"):
        ratios = [a[clock] / b[clock] for a, b in zip(runs["ours"], runs["theirs"])]
        result[f"{clock}_ratio"] = statistics.median(ratios)
        result[f"{clock}_ratio_range"] = [min(ratios), max(ratios)]
    for side in sides:
        result[side] = dict(
            cpu_seconds=statistics.median(run["cpu"] for run in runs[side]) / calls,
            wall_seconds=statistics.median(run["wall"] for run in runs[side]) / calls,
            first_seconds=first[side]["wall"],
            peak_memory_mb=runs[side][-1]["peak_memory_mb"],
            **{key: first[side][key] for key in NOTES if key in first[side]},
        )
    return result
