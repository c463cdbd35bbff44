"""How fast and how large are the networks? One line of JSON a workload with --json.

    python experiments/benchmark.py --workload=A --json
    taskset -c 0 python experiments/benchmark.py --workload=B --repeats=9
    python experiments/benchmark.py --workload=all --against=diffusers

Workloads A, B and C time a training step (eps-MSE, Adam) and a forward pass of one U-Net each; D
times DDIM sampling with B's network, 50 steps in one scan, and gives seconds per step of the 50 and
their ratio to a forward pass alone, timed in turn with it: 1 if no time passes between the steps.
Times are medians over runs after a first one: wall-clock seconds, and the CPU seconds of the
whole process, which mean more on a shared machine. On a CPU, peak memory is the process's own so
far (the forward pass comes first, compilation included), on an accelerator the device's. Beside a
training step stands the input pipeline alone: its images per second, and its time for a batch as a
share of the step's, below 1 if it keeps up.

As on the command line, a process that trains uses memory again (`diffax.runtime.reuse_memory`).

Workloads E, F and G are for an accelerator: the CIFAR-10 U-Net of Ho 2020 in training, with 128 and
with 512 images, and 50 DDIM steps of 256. A part's "flops_per_second" is what XLA counts in the
compiled step over the time, "share_of_peak" that over the rate of a large matrix product in the
same dtype. --remat computes each block again in the backward pass: compare the memory.

With --against=diffusers every part is run in turn with the same of diffusers (PyTorch): same
architecture, number of parameters (within 1%), batch, precision and optimizer, one core, a process
for each side and part, and the ratios ours / theirs are given: medians over the pairs, with lowest
and highest. By default the peer is run as it is (eager) on a CPU, and compiled on an accelerator
(torch.compile, channels_last); --peer-mode=eager or compile says which. On an accelerator both may
use tf32 where dtype is float32, both compile at once, and a turn is several steps. It needs
`pip install ".[bench]"`, here or, by --peer-python, in an environment of its own.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import flax
import jax
import pairing
from workloads import (
    COMMON_FIELDS,
    FOR_ACCELERATORS,
    FOR_CPUS,
    NETWORKS,
    NUM_STEPS,
    PARTS,
    WORKLOADS,
    count_parameters,
    matrix_rate,
)

from diffax import runtime
from diffax.models import layers, platform

# The matrices whose product shows the peak: large enough for the device.
MATRIX_SIZES = {"cpu": 1024}
LARGE_MATRIX = 8192


def versions() -> dict:
    """What the figures depend on besides the code."""
    return dict(
        backend=jax.default_backend(),
        device=jax.devices()[0].device_kind,
        cpu=pairing.cpu_model(),
        cores=len(pairing.cores()),
        jax=jax.__version__,
        flax=flax.__version__,
    )


def describe(name: str, dtype: str, remat: bool) -> dict:
    """What is measured."""
    network, batch = WORKLOADS[name]["network"], WORKLOADS[name]["batch"]
    return dict(
        workload=name,
        parameters=count_parameters(network),
        batch=batch,
        shape=list(NETWORKS[network]["shape"]),
        dtype=dtype,
        remat=remat,
    )


def _settle(parts: Iterable[str]) -> None:
    """Settings of a process that runs these parts."""
    if "train" in parts:
        runtime.reuse_memory()


def run(name: str, dtype: str = "float32", repeats: int | None = None, remat: bool = False) -> dict:
    """The figures of a workload; those of its headline part stand at the top as well."""
    workload = WORKLOADS[name]
    _settle(workload["parts"])
    task = workload["network"], workload["batch"], dtype, remat
    programs = {part: PARTS[part](*task) for part in workload["parts"]}
    for _ in range(repeats or workload["repeats"]):
        for part, times in workload["parts"].items():
            for _ in range(times):
                programs[part].run()
    parts = {part: program.figures() for part, program in programs.items()}
    for part, other in workload["ratios"].items():
        for key, clock in (("", "seconds_per_step"), ("cpu_", "cpu_seconds_per_step")):
            parts[part][f"{key}ratio_to_{other}"] = parts[part][clock] / parts[other][clock]
    peak = matrix_rate(dtype, MATRIX_SIZES.get(jax.default_backend(), LARGE_MATRIX))
    for figures in parts.values():
        if "flops_per_second" in figures:
            figures["share_of_peak"] = figures["flops_per_second"] / peak
    top = ("seconds_per_step", "compile_seconds", "peak_memory_mb")
    head = {key: parts[workload["headline"]][key] for key in top}
    about = dict(describe(name, dtype, remat), peak_flops_per_second=peak)
    return dict(**about, **head, **parts, **versions())


# Peers: the program, beside this one, that runs the same parts with another library.
PEERS = {"diffusers": "diffusers_peer.py"}
PEER_MODES = ("eager", "compile")


def peer_task(name: str, dtype: str, remat: bool = False, mode: str | None = None) -> dict:
    """What a program needs to know to run a workload as this one does.

    `mode`: of `PEER_MODES`; None: eager on a CPU, compiled on an accelerator.
    """
    network = NETWORKS[WORKLOADS[name]["network"]]
    on_cpu = platform.on_cpu()
    fields = dict(COMMON_FIELDS, **network["fields"])
    return dict(
        fields,
        workload=name,
        shape=network["shape"],
        batch=WORKLOADS[name]["batch"],
        calls=WORKLOADS[name]["calls"],
        mode=mode or ("eager" if on_cpu else "compile"),
        norm_groups=layers.num_groups(fields["channels"]),
        num_steps=NUM_STEPS,
        dtype=dtype,
        remat=remat,
        device="cpu" if on_cpu else "cuda",
        core=max(pairing.cores(), default=None) if on_cpu else None,
    )


def start(task: dict) -> tuple[dict, dict[str, Callable]]:
    """This program as a child of `pairing`."""
    workload = WORKLOADS[task["workload"]]
    given = workload["network"], workload["batch"], task["dtype"], task["remat"]
    _settle([task["part"]])
    parts = {task["part"]: lambda: partial(PARTS[task["part"]](*given).run, task["calls"])}
    return dict(parameters=count_parameters(given[0]), versions=versions()), parts


def check_parameters(ours: int, theirs: int) -> None:
    """Raises ValueError unless two numbers of parameters are equal within 1%."""
    if abs(ours - theirs) > 0.01 * theirs:
        raise ValueError(
            f"our network has {ours} parameters and theirs {theirs}; they must agree within 1%"
        )


def against(
    peer: str,
    name: str,
    dtype: str = "float32",
    repeats: int | None = None,
    remat: bool = False,
    python: str = "",
    mode: str | None = None,
    parts: Iterable[str] = (),
) -> dict:
    """The parts of a workload in turn with a peer's: the ratios, ours / theirs, and the figures.

    `mode` as in `peer_task`; `parts`: some of those that both run, all by default.

    Raises:
      RuntimeError: the peer can't run; the sentence says why.
      ValueError: the networks differ in size, or `python` is no program.
    """
    here, workload = Path(__file__).resolve().parent, WORKLOADS[name]
    python = python or sys.executable
    if shutil.which(python) is None:
        raise ValueError(f"--peer-python is {python!r}; it must be a program that can be run")
    about = peer_task(name, dtype, remat, mode)
    result = describe(name, dtype, remat) | dict(peer=peer, peer_mode=about["mode"])
    first_runs = pairing.one_by_one if about["device"] == "cpu" else pairing.at_once
    for part in parts or workload["shared"]:
        task = json.dumps(about | dict(part=part))
        commands = dict(
            theirs=[python, str(here / PEERS[peer]), task],
            ours=[sys.executable, str(here / "benchmark.py"), f"--serve={task}"],
        )
        with (
            pairing.Child(peer, commands["theirs"]) as theirs,
            pairing.Child("diffax", commands["ours"]) as ours,
        ):
            check_parameters(ours.about["parameters"], theirs.about["parameters"])
            result[part] = pairing.in_turn(
                ours, theirs, part, repeats or workload["repeats"], about["calls"], first_runs
            )
            result |= ours.about["versions"] | theirs.about["versions"]
            result["peer_parameters"] = theirs.about["parameters"]
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--workload", choices=[*sorted(WORKLOADS), "all"])
    choice.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one line of JSON a workload")
    parser.add_argument("--dtype", default="float32", choices=sorted(layers.DTYPES))
    parser.add_argument("--remat", action="store_true", help="rematerialise every block")
    parser.add_argument("--repeats", type=int, help="timed runs (default: the workload's own)")
    parser.add_argument("--against", choices=sorted(PEERS), help="run in turn with this library")
    parser.add_argument(
        "--peer-mode",
        choices=PEER_MODES,
        help="the peer as it is, or by torch.compile (default: eager on a CPU, else compile)",
    )
    parser.add_argument("--peer-python", default="", help="the Python that has this library")
    options = parser.parse_args(argv)
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1")
    for name in ("peer_python", "peer_mode"):
        value = getattr(options, name)
        if value and options.against is None:
            parser.error(f"--{name.replace('_', '-')} is {value!r}, which only --against uses")
    if options.serve is not None:
        pairing.pin(options.serve["core"])  # before JAX looks how many cores there are
        pairing.serve(partial(start, options.serve))
        return
    measure = run
    if options.against is not None:
        measure = partial(
            against, options.against, python=options.peer_python, mode=options.peer_mode
        )
    fitting = sorted(FOR_CPUS if platform.on_cpu() else FOR_ACCELERATORS)
    for name in fitting if options.workload == "all" else [options.workload]:
        try:
            result = measure(
                name, dtype=options.dtype, repeats=options.repeats, remat=options.remat
            )
        except (RuntimeError, ValueError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        print(json.dumps(result) if options.json else json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
