"""How fast and how large are the networks? One workload a run, one line of JSON with --json.

    python experiments/benchmark.py --workload=A --json
    taskset -c 0 python experiments/benchmark.py --workload=B --repeats=9

Workloads A, B and C time a training step (eps-MSE, Adam) and a forward pass of one U-Net each; D
times DDIM sampling with B's network, 50 steps in one scan, and gives seconds per step of the 50 and
their ratio to a forward pass alone, timed in turn with it: 1 if no time passes between the steps.
Times are medians over runs after a first one: wall-clock seconds, and the CPU seconds of the
whole process, which mean more on a shared machine. On a CPU, peak memory is the process's own so
far (the forward pass comes first, compilation included), on an accelerator the device's.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffax import models
from diffax.models import platform

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
    kilobyte = 1 if sys.platform == "darwin" else 1024
    process = kilobyte * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use", process) / 1e6


class Program:
    """A map from a state to the next, compiled, and the times it took; the state is donated."""

    def __init__(self, step: Callable, state, steps_per_call: int = 1) -> None:
        begin = time.perf_counter()
        self._compiled = jax.jit(step, donate_argnums=0).lower(state).compile()
        self._compile_seconds = time.perf_counter() - begin
        self._state = jax.block_until_ready(self._compiled(state))
        self._steps = steps_per_call
        self._wall, self._cpu = [], []

    def run(self, times: int) -> None:
        """Runs and times it."""
        for _ in range(times):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            self._state = jax.block_until_ready(self._compiled(self._state))
            self._wall.append((time.perf_counter() - begin) / self._steps)
            self._cpu.append((time.process_time() - begin_cpu) / self._steps)

    def figures(self) -> dict:
        """Medians over all runs."""
        return dict(
            seconds_per_step=statistics.median(self._wall),
            cpu_seconds_per_step=statistics.median(self._cpu),
            compile_seconds=self._compile_seconds,
            peak_memory_mb=peak_memory_mb(),
            repeats=len(self._wall),
        )


def measure(step: Callable, state, repeats: int) -> dict:
    """The figures of a program that has run `repeats` times."""
    program = Program(step, state)
    program.run(repeats)
    return program.figures()


def train_and_forward(network: str, batch: int, dtype: str, repeats: int) -> dict:
    """Times a training step and a forward pass of a network on random data."""
    module, shape = build(network, dtype)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, *shape))
    eps = jax.random.normal(keys[1], (batch, *shape))
    log_snr = jnp.linspace(-10.0, 10.0, batch)
    draw = jax.jit(partial(init, module, shape), compiler_options=platform.run_once())
    variables = draw(keys[2])
    optimizer = optax.adam(1e-4)

    def loss(variables):
        return jnp.mean((module.apply(variables, x, log_snr, train=True) - eps) ** 2)

    def forward(state):
        variables, _ = state
        return variables, module.apply(variables, x, log_snr)

    def train(state):
        variables, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state)
        return optax.apply_updates(variables, updates), opt_state

    copy = jax.tree.map(jnp.copy, variables)
    return dict(
        forward=measure(forward, (copy, eps), repeats),
        train=measure(train, (variables, jax.jit(optimizer.init)(variables)), repeats),
    )


def ddim(network: str, batch: int, dtype: str, repeats: int, num_steps: int = 50) -> dict:
    """Times `diffax.sample` with DDIM: one scan over all steps. A step is one of its num_steps."""
    import diffax

    module, shape = build(network, dtype)
    schedule = diffax.schedules.get("cosine")

    def sample(state):
        variables, _ = state
        predict = diffax.by_log_snr(lambda x, log_snr: module.apply(variables, x, log_snr))
        return variables, diffax.sample(
            jax.random.key(1), predict, schedule, (batch, *shape), sampler="ddim",
            num_steps=num_steps,
        )  # fmt: skip

    def forward(state):
        variables, x = state
        return variables, module.apply(variables, x, jnp.zeros(batch))

    draw = jax.jit(partial(init, module, shape), compiler_options=platform.run_once())
    x = jnp.zeros((batch, *shape))
    sampling = Program(sample, (draw(jax.random.key(0)), x), num_steps)
    alone = Program(forward, (draw(jax.random.key(0)), jnp.copy(x)))
    alone.run(5)
    for _ in range(repeats):
        sampling.run(1)
        alone.run(5)
    figures, call = sampling.figures(), alone.figures()
    ratio = figures["cpu_seconds_per_step"] / call["cpu_seconds_per_step"]
    wall_ratio = figures["seconds_per_step"] / call["seconds_per_step"]
    ratios = dict(ratio_to_forward=wall_ratio, cpu_ratio_to_forward=ratio)
    return dict(sample=dict(figures, **ratios, num_steps=num_steps), forward=call)


# What each workload runs, and the part whose figures stand at the top of its report.
WORKLOADS = {
    "A": dict(run=train_and_forward, network="A", batch=16, repeats=5, headline="train"),
    "B": dict(run=train_and_forward, network="B", batch=16, repeats=9, headline="train"),
    "C": dict(run=train_and_forward, network="C", batch=128, repeats=15, headline="train"),
    "D": dict(run=ddim, network="B", batch=64, repeats=1, headline="sample"),
}


def run(name: str, dtype: str = "float32", repeats: int | None = None) -> dict:
    """The figures of a workload; those of its headline part stand at the top as well."""
    workload = WORKLOADS[name]
    network, batch = workload["network"], workload["batch"]
    parts = workload["run"](network, batch, dtype, repeats or workload["repeats"])
    top = ("seconds_per_step", "compile_seconds", "peak_memory_mb")
    return dict(
        workload=name,
        parameters=count_parameters(network),
        batch=batch,
        shape=list(NETWORKS[network]["shape"]),
        dtype=dtype,
        **{key: parts[workload["headline"]][key] for key in top},
        **parts,
        backend=jax.default_backend(),
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, help="timed runs (default: the workload's own)")
    options = parser.parse_args(argv)
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1")
    result = run(options.workload, options.dtype, options.repeats)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
