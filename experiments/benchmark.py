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

With --against=diffusers every part is run in turn with the same of diffusers (PyTorch): same
architecture, number of parameters (within 1%), batch, precision and optimizer, one core, a process
for each, and the ratios ours / theirs are given: medians over the pairs, with lowest and highest.
It needs `pip install ".[bench]"`, here or, by --peer-python, in an environment of its own.
"""

import argparse
import itertools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pairing

from diffax import data, models
from diffax.models import layers, platform
from diffax.training import feed

# Structure and parameter counts are those of diffusers' UNet2DModel (6.47M, 1.62M, 1.00M).
NETWORKS = {
    "A": dict(
        shape=(32, 32, 3),
        fields=dict(channels=64, channel_mults=(1, 2, 2), attention_resolutions=(16,)),
    ),
    "B": dict(  # 28x28 padded to 32x32
        shape=(32, 32, 1),
        fields=dict(channels=32, channel_mults=(1, 2, 2), attention_resolutions=(16,)),
    ),
    "C": dict(
        shape=(8, 8, 1),
        fields=dict(channels=32, channel_mults=(1, 2), attention_resolutions=(4,)),
    ),
}
COMMON_FIELDS = dict(num_blocks=2, head_width=64, embedding="add")


def build(network: str, dtype: str = "float32") -> tuple:
    """The network of a workload and the shape of one example."""
    shape = NETWORKS[network]["shape"]
    module = models.get("unet", **COMMON_FIELDS, **NETWORKS[network]["fields"], dtype=dtype)
    return module, shape


def init(module: nn.Module, shape: tuple[int, ...], key: jax.Array) -> dict:
    """The network's variables for examples of that shape."""
    return module.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))


def count_parameters(network: str) -> int:
    """Numbers in the network's variables, without computing them."""
    variables = jax.eval_shape(partial(init, *build(network)), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def peak_memory_mb() -> float:
    """The most memory held so far, in MB (10^6 bytes): the device's, or the process's on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    used = stats.get("peak_bytes_in_use")
    return pairing.process_peak_mb() if used is None else used / 1e6


class Program:
    """A map from a state to the next, compiled, and the times it took; the state is donated."""

    def __init__(self, step: Callable, state, steps_per_call: int = 1) -> None:
        begin = time.perf_counter()
        self._compiled = jax.jit(step, donate_argnums=0).lower(state).compile()
        self.compile_seconds = time.perf_counter() - begin
        self._state = jax.block_until_ready(self._compiled(state))
        self._peak_memory_mb = peak_memory_mb()
        self._steps = steps_per_call
        self._wall, self._cpu = [], []

    def run(self) -> dict:
        """Runs and times it; what a child of `pairing` adds to its answer."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        self._state = jax.block_until_ready(self._compiled(self._state))
        self._wall.append((time.perf_counter() - begin) / self._steps)
        self._cpu.append((time.process_time() - begin_cpu) / self._steps)
        return dict(compile_seconds=self.compile_seconds)

    def figures(self) -> dict:
        """Medians over all runs; the peak memory is that after the first."""
        return dict(
            seconds_per_step=statistics.median(self._wall),
            cpu_seconds_per_step=statistics.median(self._cpu),
            compile_seconds=self.compile_seconds,
            peak_memory_mb=self._peak_memory_mb,
            repeats=len(self._wall),
        )


NUM_STEPS = 50  # of DDIM


def prepare(network: str, batch: int, dtype: str) -> tuple:
    """The network, its variables, and for a batch random data, noise and noise levels."""
    module, shape = build(network, dtype)
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(partial(init, module, shape), compiler_options=platform.run_once())
    x, eps = jax.random.normal(keys[0], (2, batch, *shape))
    return module, draw(keys[2]), x, eps, jnp.linspace(-10.0, 10.0, batch)


def forward(*task) -> Program:
    """A forward pass."""
    module, variables, x, eps, log_snr = prepare(*task)

    def step(state):
        variables, _ = state
        return variables, module.apply(variables, x, log_snr)

    return Program(step, (variables, eps))


def train(*task) -> Program:
    """A training step: eps-MSE, Adam with learning rate 1e-4."""
    module, variables, x, eps, log_snr = prepare(*task)
    optimizer = optax.adam(1e-4)

    def loss(variables):
        return jnp.mean((module.apply(variables, x, log_snr, train=True) - eps) ** 2)

    def step(state):
        variables, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state)
        return optax.apply_updates(variables, updates), opt_state

    return Program(step, (variables, jax.jit(optimizer.init)(variables)))


def ddim(*task) -> Program:
    """`diffax.sample` with DDIM: one scan over all steps. A step is one of its NUM_STEPS."""
    import diffax

    module, variables, x, _, _ = prepare(*task)
    schedule = diffax.schedules.get("cosine")

    def step(state):
        variables, _ = state
        predict = diffax.by_log_snr(lambda x, log_snr: module.apply(variables, x, log_snr))
        return variables, diffax.sample(
            jax.random.key(1), predict, schedule, x.shape, sampler="ddim", num_steps=NUM_STEPS
        )

    return Program(step, (variables, x), NUM_STEPS)


class Input:
    """The input pipeline alone, to batches on the device, as training reads it; the times it took.

    From 8-bit images in memory; a step is a batch.
    """

    def __init__(self, network: str, batch: int, dtype: str) -> None:
        del dtype  # batches are float32
        shape = NETWORKS[network]["shape"]
        values = np.random.default_rng(0).integers(0, 256, (50 * batch, *shape), np.uint8)
        batches = data.batches(data.Split(values, np.zeros(len(values), np.int32)), batch, seed=0)
        place = partial(jax.tree.map, jax.device_put)
        self._feed = feed.Feed(batches, place, itertools.repeat(1))
        self._batch, self._wall, self._cpu = batch, [], []
        self.run()  # fills the buffers
        self._wall, self._cpu = [], []

    def run(self, times: int = 100) -> None:
        """Takes so many batches, and times them."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for _, batch in itertools.islice(self._feed, times):
            jax.block_until_ready(batch)
        self._wall.append((time.perf_counter() - begin) / times)
        self._cpu.append((time.process_time() - begin_cpu) / times)

    def figures(self) -> dict:
        """Medians over all runs."""
        seconds = statistics.median(self._wall)
        return dict(
            seconds_per_step=seconds,
            cpu_seconds_per_step=statistics.median(self._cpu),
            images_per_second=self._batch / seconds,
        )


PARTS = dict(forward=forward, train=train, sample=ddim, input=Input)

# What each workload runs, how often in a turn; of these, what a peer runs too; the part whose
# figures stand at the top of its report; and the ratios of parts to others.
STEPS = dict(
    parts=dict(forward=1, train=1, input=1),
    shared=("forward", "train"),
    headline="train",
    ratios=dict(input="train"),
)
SAMPLING = dict(
    parts=dict(sample=1, forward=5),
    shared=("sample", "forward"),
    headline="sample",
    ratios=dict(sample="forward"),
)
WORKLOADS = {
    "A": dict(network="A", batch=16, repeats=5, **STEPS),
    "B": dict(network="B", batch=16, repeats=9, **STEPS),
    "C": dict(network="C", batch=128, repeats=15, **STEPS),
    "D": dict(network="B", batch=64, repeats=1, **SAMPLING),
}


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


def describe(name: str, dtype: str) -> dict:
    """What is measured."""
    network, batch = WORKLOADS[name]["network"], WORKLOADS[name]["batch"]
    return dict(
        workload=name,
        parameters=count_parameters(network),
        batch=batch,
        shape=list(NETWORKS[network]["shape"]),
        dtype=dtype,
    )


def run(name: str, dtype: str = "float32", repeats: int | None = None) -> dict:
    """The figures of a workload; those of its headline part stand at the top as well."""
    workload = WORKLOADS[name]
    task = workload["network"], workload["batch"], dtype
    programs = {part: PARTS[part](*task) for part in workload["parts"]}
    for _ in range(repeats or workload["repeats"]):
        for part, times in workload["parts"].items():
            for _ in range(times):
                programs[part].run()
    parts = {part: program.figures() for part, program in programs.items()}
    for part, other in workload["ratios"].items():
        for key, clock in (("", "seconds_per_step"), ("cpu_", "cpu_seconds_per_step")):
            parts[part][f"{key}ratio_to_{other}"] = parts[part][clock] / parts[other][clock]
    top = ("seconds_per_step", "compile_seconds", "peak_memory_mb")
    head = {key: parts[workload["headline"]][key] for key in top}
    return dict(**describe(name, dtype), **head, **parts, **versions())


# Peers: the program, beside this one, that runs the same parts with another library.
PEERS = {"diffusers": "diffusers_peer.py"}


def peer_task(name: str, dtype: str, core: int | None) -> dict:
    """What a program needs to know to run a workload as this one does."""
    network = NETWORKS[WORKLOADS[name]["network"]]
    fields = dict(COMMON_FIELDS, **network["fields"])
    return dict(
        fields,
        workload=name,
        shape=network["shape"],
        batch=WORKLOADS[name]["batch"],
        norm_groups=layers.num_groups(fields["channels"]),
        num_steps=NUM_STEPS,
        dtype=dtype,
        core=core,
    )


def start(task: dict) -> tuple[dict, dict[str, Callable]]:
    """This program as a child of `pairing`."""
    workload = WORKLOADS[task["workload"]]
    given = workload["network"], workload["batch"], task["dtype"]
    parts = {part: lambda part=part: PARTS[part](*given).run for part in workload["shared"]}
    return dict(parameters=count_parameters(given[0]), versions=versions()), parts


def check_parameters(ours: int, theirs: int) -> None:
    """Raises ValueError unless two numbers of parameters are equal within 1%."""
    if abs(ours - theirs) > 0.01 * theirs:
        raise ValueError(
            f"our network has {ours} parameters and theirs {theirs}; they must agree within 1%"
        )


def against(
    peer: str, name: str, dtype: str = "float32", repeats: int | None = None, python: str = ""
) -> dict:
    """The parts of a workload in turn with a peer's: the ratios, ours / theirs, and the figures.

    Raises:
      RuntimeError: the peer can't run; the sentence says why.
      ValueError: the networks differ in size, or `python` is no program.
    """
    here, workload = Path(__file__).resolve().parent, WORKLOADS[name]
    python = python or sys.executable
    if shutil.which(python) is None:
        raise ValueError(f"--peer-python is {python!r}; it must be a program that can be run")
    task = json.dumps(peer_task(name, dtype, max(pairing.cores(), default=None)))
    commands = dict(
        theirs=[python, str(here / PEERS[peer]), task],
        ours=[sys.executable, str(here / "benchmark.py"), f"--serve={task}"],
    )
    with (
        pairing.Child(peer, commands["theirs"]) as theirs,
        pairing.Child("diffax", commands["ours"]) as ours,
    ):
        check_parameters(ours.about["parameters"], theirs.about["parameters"])
        parts = {
            part: pairing.in_turn(ours, theirs, part, repeats or workload["repeats"])
            for part in workload["shared"]
        }
        about = dict(describe(name, dtype), peer=peer, peer_parameters=theirs.about["parameters"])
        return about | parts | ours.about["versions"] | theirs.about["versions"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--workload", choices=[*sorted(WORKLOADS), "all"])
    choice.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one line of JSON a workload")
    parser.add_argument("--dtype", default="float32", choices=sorted(layers.DTYPES))
    parser.add_argument("--repeats", type=int, help="timed runs (default: the workload's own)")
    parser.add_argument("--against", choices=sorted(PEERS), help="run in turn with this library")
    parser.add_argument("--peer-python", default="", help="the Python that has this library")
    options = parser.parse_args(argv)
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1")
    if options.peer_python and options.against is None:
        parser.error(f"--peer-python is {options.peer_python!r}, which only --against uses")
    if options.serve is not None:
        pairing.pin(options.serve["core"])  # before JAX looks how many cores there are
        pairing.serve(partial(start, options.serve))
        return
    measure = run
    if options.against is not None:
        measure = partial(against, options.against, python=options.peer_python)
    for name in sorted(WORKLOADS) if options.workload == "all" else [options.workload]:
        try:
            result = measure(name, dtype=options.dtype, repeats=options.repeats)
        except (RuntimeError, ValueError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        print(json.dumps(result) if options.json else json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
