"""What does diffax do with what makes no sense, and what does it lose when it is disturbed?

    python experiments/fuzz.py --num=2000                  # odd inputs
    python experiments/fuzz.py --num=50 --kinds=files --workers=1
    python experiments/fuzz.py --num=0 --faults            # kills, damage, full disks, two jobs
    python experiments/fuzz.py --show=keys:17              # one input again, with its traceback

Odd inputs are config keys with odd values (what is accepted trains two steps), command lines,
files (pictures, .npz, configs, the files of a run) and calls of the library. Each is made from its
number, so that a fault can be seen again. Each must be refused in a sentence or give finite
numbers. They run in child processes with a limit of time and of memory; a child that dies is an
abort.

Faults are disturbances of a training: killed at random moments, its newest checkpoint damaged, the
disk full, a second job in the same workdir, one of two processes killed. Each must end with the
numbers of the undisturbed run, or with those of the newest checkpoint that is whole.

Prints a table, and writes it with what was found as --out (Markdown, and JSON beside it). The exit
status is 1 if anything was wrong.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = {"keys": 0.35, "flags": 0.25, "files": 0.25, "calls": 0.15}  # share of the inputs
OUTCOMES = {
    "refused": True,
    "worked": True,
    "wrongly refused": False,
    "no sentence": False,
    "nonsense": False,
    "not finite": False,
    "traceback": False,
    "abort": False,
    "hung": False,
}  # and whether it is as it should be
SECONDS, GIGABYTES = 120, 6  # of one input


class Child:
    """A process that tries inputs, one after the other; started again where one ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def _start(self) -> subprocess.Popen:
        # By the command prlimit: Python's preexec_fn may hang beside the threads of JAX.
        limit = ["prlimit", f"--data={GIGABYTES * 2**30}"]
        return subprocess.Popen(
            [*limit, sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", **os.environ},
        )

    def try_one(self, kind: str, number: int) -> dict:
        """What became of an input, as `fuzz_inputs.try_one` says it, or abort or hung."""
        self._process = self._process or self._start()
        begin = time.monotonic()
        timer = threading.Timer(SECONDS, self._process.kill)
        timer.start()
        try:
            print(kind, number, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if answer:
            return json.loads(answer)
        status, self._process = self._process.wait(), None
        seconds = round(time.monotonic() - begin, 1)
        outcome = "hung" if seconds >= SECONDS else "abort"
        about = dict(words="see --show", details=f"status {status}", seconds=seconds)
        return dict(kind=kind, number=number, outcome=outcome, **about)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def serve() -> None:
    """Tries what its input names, a line each, and answers with a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import fuzz_inputs

    for line in sys.stdin:
        kind, number = line.split()
        print(json.dumps(fuzz_inputs.try_one(kind, int(number))), file=answers, flush=True)


def numbers(num: int, kinds: list[str], first: int) -> list[tuple[str, int]]:
    """So many inputs, by kind."""
    whole = sum(KINDS[kind] for kind in kinds)
    counts = {kind: round(num * KINDS[kind] / whole) for kind in kinds}
    return [(kind, first + i) for kind in kinds for i in range(counts[kind])]


def try_all(inputs: list[tuple[str, int]], workers: int) -> list[dict]:
    """The records of all inputs, in their order; says how far it is."""
    children: queue.SimpleQueue[Child] = queue.SimpleQueue()
    for _ in range(workers):
        children.put(Child())
    begin, done = time.monotonic(), 0

    def one(given: tuple[str, int]) -> dict:
        nonlocal done
        child = children.get()
        try:
            record = child.try_one(*given)
        finally:
            children.put(child)
        done += 1
        if not OUTCOMES[record["outcome"]]:
            print(_line(record), file=sys.stderr, flush=True)
        if done % 100 == 0:
            left = (time.monotonic() - begin) / done * (len(inputs) - done)
            print(f"{done} of {len(inputs)}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
        return record

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        records = list(pool.map(one, inputs))
    while not children.empty():
        children.get().close()
    return records


def _line(record: dict) -> str:
    details = " ".join(record["details"].split())[:300]
    name = f"{record['kind']}:{record['number']}"
    return f"{name}: {record['outcome']}: {record['words'][:200]}: {details}"


def table(records: list[dict]) -> str:
    """How often each kind of input had each outcome."""
    counts = collections.Counter((r["kind"], r["outcome"]) for r in records)
    kinds = list(dict.fromkeys(r["kind"] for r in records))
    lines = [["input", "tried", *OUTCOMES], ["---"] + ["---:"] * (1 + len(OUTCOMES))]
    for kind in kinds:
        row = [counts[kind, outcome] for outcome in OUTCOMES]
        lines.append([kind, sum(row), *row])
    total = [sum(counts[kind, outcome] for kind in kinds) for outcome in OUTCOMES]
    lines.append(["all", sum(total), *total])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def faults_table(records: list[dict]) -> str:
    """How often each kind of disturbance was met, and what was lost."""
    lines = ["| disturbance | tried | handled | lost |", "| --- | ---: | ---: | ---: |"]
    for kind in dict.fromkeys(r["kind"] for r in records):
        own = [r for r in records if r["kind"] == kind]
        handled, lost = sum(r["handled"] for r in own), sum(r["lost"] for r in own)
        lines.append(f"| {kind} | {len(own)} | {handled} | {lost} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=2000, help="odd inputs in all")
    parser.add_argument("--first", type=int, default=0, help="number of the first of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of inputs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--faults", action="store_true", help="disturb trainings too")
    parser.add_argument("--out", type=Path, help="a Markdown file; JSON beside it")
    parser.add_argument("--show", metavar="KIND:NUMBER", help="try one input here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve()
        return 0
    if args.show:
        import fuzz_inputs

        kind, _, number = args.show.partition(":")
        case = fuzz_inputs.KINDS[kind](int(number))
        print(f"{case.words}\nmust be refused: {case.wrong}; must not: {case.right}", flush=True)
        print(case.run())
        return 0
    kinds = args.kinds.split(",")
    records = try_all(numbers(args.num, kinds, args.first), args.workers)
    bad = [record for record in records if not OUTCOMES[record["outcome"]]]
    parts = [table(records)] if records else []
    faults = []
    if args.faults:
        import fuzz_faults

        faults = fuzz_faults.run()
        parts.append(faults_table(faults))
    parts.append("\n".join(f"- {_line(record)}" for record in bad))
    text = "\n\n".join(filter(None, parts))
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
        args.out.with_suffix(".json").write_text(json.dumps(records + faults, indent=1) + "\n")
    return 1 if bad or any(fault["lost"] or not fault["handled"] for fault in faults) else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
