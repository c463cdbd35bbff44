"""What does growth cost? Steps, compilation, checkpoints and memory against what is made larger.

    python experiments/growth.py                  # a quarter of an hour on one CPU core
    taskset -c 0 python experiments/growth.py     # the same where others use the machine too
    python experiments/growth.py --quick --workdir=/tmp/growth     # minutes: does it run?

Batch size, image size and width of a U-Net each grow on their own, the rest being as in the middle
of the plan, and the training step is timed as `diffax train` makes it: compiled by
`training.loop.compile_run`. Then the same few steps are made on 1, 2, 4 and 8 host devices, in
one process and in two, in every layout, and compared with those of one device: the parameters (by
their norm) and each loss may differ by TOLERANCE of their size; else the exit status is 1.

Each point is measured in a process of its own, once in each round, so that a slow minute of the
machine falls on all points alike. Compilation counts in the first round; the others load what it
compiled. Every result is kept as it is made, and the same command resumes if interrupted. The
tables and the picture go to results/, or with --quick to the workdir.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import growth_report
from growth_measure import host_devices

from diffax.files import read_json, write_json
from diffax.report.formatting import format_seconds

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TOLERANCE = 1e-5


class Plan(NamedTuple):
    """What is measured. `base` and `grown` speak of batch (examples), size (pixels along a side)
    and channels; `times` steps are timed in each round."""

    base: Mapping[str, int]
    grown: Mapping[str, Sequence[int]]
    devices: Sequence[int]
    process_layouts: Sequence[str]
    rounds: int
    times: int


FULL = Plan(
    base=dict(batch=32, size=16, channels=32),
    grown=dict(batch=(8, 32, 128), size=(8, 16, 32), channels=(16, 32, 64)),
    devices=(1, 2, 4, 8),
    process_layouts=("data", "fsdp", "both", "pmap"),
    rounds=2,
    times=5,
)
QUICK = Plan(
    base=dict(batch=8, size=8, channels=16),
    grown=dict(batch=(8, 16)),
    devices=(2,),
    process_layouts=("both",),
    rounds=1,
    times=2,
)

# --- measuring ------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A measurement and the name under which its result is kept."""

    name: str
    kind: str
    arguments: dict[str, Any]
    environment: dict[str, str]


def points(plan: Plan) -> dict[str, dict[str, int]]:
    """name -> batch, size and channels; the base belongs to every axis and is there once."""
    every = (plan.base | {axis: n} for axis, values in plan.grown.items() for n in values)
    return {growth_report.point_name(point): point for point in every}


def tasks(plan: Plan, workdir: Path) -> list[Task]:
    """In the order in which they are run: the comparisons follow the first round of the points."""

    def of_round(number: int) -> list[Task]:
        found = []
        for name, point in points(plan).items():
            compiled = str(workdir / "compiled" / name)
            arguments = {**point, "times": plan.times, "compiled": compiled}
            found.append(Task(f"{name} round{number}", "step", arguments, {}))
        return found

    cpu = {"JAX_PLATFORMS": "cpu"}
    several = cpu | {"XLA_FLAGS": host_devices(max(plan.devices))}
    first, *others = map(of_round, range(plan.rounds))
    return [
        *first,
        Task("devices", "devices", {"devices": plan.devices}, several),
        Task("processes", "processes", {"layouts": plan.process_layouts}, cpu),
        *itertools.chain(*others),
    ]


def run_task(task: Task) -> dict[str, Any]:
    """The result of a measurement in a process of its own."""
    if task.name.endswith("round0"):  # what a stopped run compiled would hide the compilation
        shutil.rmtree(task.arguments["compiled"], ignore_errors=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, HERE / "growth_measure.py", task.kind, json.dumps(task.arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | task.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the measurement {task.name!r} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def run_all(every: Sequence[Task], store: Path, versions: Mapping[str, str]) -> dict[str, Any]:
    """name -> result, of all tasks; those that `store` holds are taken from there."""
    kept = {"versions": dict(versions), "results": {}}
    if store.exists():
        kept = read_json(store, ["versions", "results"])
        if kept["versions"] != versions:
            raise ValueError(f"{store} was made with {kept['versions']}; delete it to begin anew")
    left = [task for task in every if task.name not in kept["results"]]
    begun = time.monotonic()
    for i, task in enumerate(left, 1):
        kept["results"][task.name] = run_task(task)
        write_json(store, kept)
        elapsed = time.monotonic() - begun
        eta = elapsed / i * (len(left) - i)
        print(
            f"[{i}/{len(left)}] {task.name} | elapsed {format_seconds(elapsed)} | about"
            f" {format_seconds(eta)} left",
            file=sys.stderr,
            flush=True,
        )
    return kept["results"]


# --- reading --------------------------------------------------------------------------------------


def merge(plan: Plan, results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """name of a point -> its figures over all rounds: medians; of the first what is compiled.

    The process's memory is the least of all rounds: of those that only loaded the program.
    """
    merged = {}
    for name, point in points(plan).items():
        rounds = [results[f"{name} round{number}"] for number in range(plan.rounds)]
        lists = ("step", "step_cpu", "save", "restore")
        medians = {k: statistics.median([x for r in rounds for x in r[k]]) for k in lists}
        least = min(r["process_mb"] for r in rounds)
        first = rounds[0]["save"][0]
        merged[name] = {**rounds[0], **point, **medians, "first_save": first, "process_mb": least}
    return merged


def differences(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows: processes, devices, layout, and how far the run is from one device's."""
    return [
        dict(processes=processes, **row)
        for processes, name in ((1, "devices"), (2, "processes"))
        for row in results[name]
    ]


def processor() -> str:
    """The name of the CPU, as far as it can be told."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few and small points")
    parser.add_argument("--rounds", type=int, help="over the points (default 2; with --quick 1)")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "growth")
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; it must be at least 1")
    plan = QUICK if args.quick else FULL
    plan = plan._replace(rounds=args.rounds or plan.rounds)
    workdir = args.workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    store = workdir / ("quick.json" if args.quick else "growth.json")
    results = run_all(tasks(plan, workdir), store, versions)
    merged, apart = merge(plan, results), differences(results)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = dict(
        date=datetime.date.today().isoformat(),
        command="python experiments/growth.py" + " --quick" * args.quick,
        machine=f"{processor()}, {cores} core{'s' * (cores > 1)}",
        tolerance=TOLERANCE,
        rounds=plan.rounds,
        times=plan.times,
        **versions,
    )
    out = workdir if args.quick else HERE / "results"
    text = growth_report.write(out, plan.base, plan.grown, merged, apart, about)
    print(text)
    far = growth_report.too_far(apart, TOLERANCE)
    for row in far:
        print(f"further from one device than {TOLERANCE:g}: {row}", file=sys.stderr)
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
