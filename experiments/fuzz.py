"""What does diffax do with what makes no sense, and what does it lose when it is disturbed?

    python experiments/fuzz.py --num=2000                  # odd inputs
    python experiments/fuzz.py --num=50 --kinds=files --workers=1
    python experiments/fuzz.py --num=0 --faults            # kills, damage, full disks, two jobs
    python experiments/fuzz.py --show=keys:17              # one input again, with its traceback

Odd inputs are config keys with odd values (what is accepted trains two steps), command lines,
files (pictures, .npz, configs, the files of a run) and calls of the library. Each is made from its
number, so that a fault can be seen again. Each must be refused in a sentence or give finite
numbers. They run in child processes with a limit of computing time and of memory; a child that dies
is an abort.

Faults are disturbances of a training: killed at random moments, its newest checkpoint damaged, the
disk full, a second job in the same workdir, one of two processes killed. Each must end with the
numbers of the undisturbed run, or with those of the newest checkpoint that is whole.

Prints a table, and writes it with what was found as --out (Markdown, and JSON beside it), now and
then while it is at work too. The exit status is 1 if anything was wrong.
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
from collections.abc import Callable, Sequence
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
# Of one input: of computing and in all, since on a busy machine the first takes long; memory.
SECONDS, SECONDS_IN_ALL, GIGABYTES = 120, 1800, 6


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
        begin, ended, hung = time.monotonic(), threading.Event(), threading.Event()
        watch = threading.Thread(target=_watch, args=(self._process, ended, hung), daemon=True)
        watch.start()
        try:
            print(kind, number, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            ended.set()
            watch.join()
        if answer:
            return json.loads(answer)
        status, self._process = self._process.wait(), None
        seconds = round(time.monotonic() - begin, 1)
        outcome = "hung" if hung.is_set() else "abort"
        about = dict(words="see --show", details=f"status {status}", seconds=seconds)
        return dict(kind=kind, number=number, outcome=outcome, **about)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def _watch(process: subprocess.Popen, ended: threading.Event, hung: threading.Event) -> None:
    """Kills a process that takes longer than an input may, until `ended`."""
    begin, used = time.monotonic(), _computed(process)
    while not ended.wait(0.5):
        longest = time.monotonic() - begin > SECONDS_IN_ALL
        if longest or _computed(process) - used > SECONDS:
            hung.set()
            process.kill()
            return


def _computed(process: subprocess.Popen) -> float:
    """Seconds that a process has computed."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve() -> None:
    """Tries what its input names, a line each, and answers with a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import fuzz_inputs

    for line in sys.stdin:
        kind, number = line.split()
        print(json.dumps(fuzz_inputs.try_one(kind, int(number))), file=answers, flush=True)


def numbers(num: int, kinds: list[str], first: int) -> list[tuple[str, int]]:
    """So many inputs, of all kinds in turn, so that the first of them are a fair part."""
    whole = sum(KINDS[kind] for kind in kinds)
    counts = {kind: round(num * KINDS[kind] / whole) for kind in kinds}
    found = [((i + 0.5) / counts[kind], kind, i) for kind in kinds for i in range(counts[kind])]
    return [(kind, first + i) for _, kind, i in sorted(found)]


def try_all(
    inputs: list[tuple[str, int]], workers: int, keep: Callable[[list[dict]], None]
) -> list[dict]:
    """The records of all inputs, in their order; says how far it is, and keeps what there is."""
    children: queue.SimpleQueue[Child] = queue.SimpleQueue()
    for _ in range(workers):
        children.put(Child())
    begin, done = time.monotonic(), []

    def one(given: tuple[str, int]) -> dict:
        child = children.get()
        try:
            record = child.try_one(*given)
        finally:
            children.put(child)
        done.append(record)
        if not OUTCOMES[record["outcome"]]:
            print(_line(record), file=sys.stderr, flush=True)
        if len(done) % 20 == 0:
            left = (time.monotonic() - begin) / len(done) * (len(inputs) - len(done))
            said = f"{len(done)} of {len(inputs)}, {left / 60:.0f} min left"
            print(said, file=sys.stderr, flush=True)
            keep(list(done))
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


def table(records: Sequence[dict]) -> str:
    """How often each kind of input had each outcome."""
    counts = collections.Counter((r["kind"], r["outcome"]) for r in records)
    kinds = [kind for kind in KINDS if kind in {r["kind"] for r in records}]
    lines = [["input", "tried", *OUTCOMES], ["---"] + ["---:"] * (1 + len(OUTCOMES))]
    for kind in kinds:
        row = [counts[kind, outcome] for outcome in OUTCOMES]
        lines.append([kind, sum(row), *row])
    total = [sum(counts[kind, outcome] for kind in kinds) for outcome in OUTCOMES]
    lines.append(["all", sum(total), *total])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def faults_table(records: Sequence[dict]) -> str:
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

    def keep(records: list[dict], faults: Sequence[dict] = ()) -> None:
        if args.out:
            args.out.write_text(report(records, faults) + "\n", encoding="utf-8")
            text = json.dumps([*records, *faults], indent=1)
            args.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")

    records = try_all(numbers(args.num, kinds, args.first), args.workers, keep)
    faults = []
    if args.faults:
        import fuzz_faults

        faults = fuzz_faults.run()
    keep(records, faults)
    print(report(records, faults))
    bad = any(not OUTCOMES[record["outcome"]] for record in records)
    return 1 if bad or any(fault["lost"] or not fault["handled"] for fault in faults) else 0


def report(records: Sequence[dict], faults: Sequence[dict]) -> str:
    """The tables, and what was not as it should be."""
    bad = [f"- {_line(record)}" for record in records if not OUTCOMES[record["outcome"]]]
    parts = [table(records) if records else "", faults_table(faults) if faults else ""]
    return "\n\n".join(filter(None, [*parts, "\n".join(bad)]))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
