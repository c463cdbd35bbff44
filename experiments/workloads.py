"""What benchmark.py measures: networks, parts that run them, workloads made of these."""

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pairing

from diffax import data, models
from diffax.models import layers, platform
from diffax.training.loop import DevicePrefetcher

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
    "cifar10": dict(  # of Ho 2020: 35.7M parameters, one attention head
        shape=(32, 32, 3),
        fields=dict(
            channels=128,
            channel_mults=(1, 2, 2, 2),
            attention_resolutions=(16,),
            head_width=256,
        ),
    ),
    "tiny": dict(
        shape=(8, 8, 1),
        fields=dict(
            channels=8, channel_mults=(1,), attention_resolutions=(), num_blocks=1, head_width=8
        ),
    ),
}
COMMON_FIELDS = dict(num_blocks=2, head_width=64, embedding="add")


def build(network: str, dtype: str = "float32", remat: bool = False) -> tuple:
    """The network of a workload and the shape of one example."""
    fields = COMMON_FIELDS | NETWORKS[network]["fields"]
    return models.get("unet", **fields, dtype=dtype, remat=remat), NETWORKS[network]["shape"]


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


def planned_memory_mb(compiled: jax.stages.Compiled) -> float:
    """What a program holds at once by the compiler's plan, in MB: arguments, results, the rest."""
    plan = compiled.memory_analysis()
    sizes = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return (sizes - plan.alias_size_in_bytes) / 1e6


class Program:
    """A map from a state to the next, compiled, and the times it took; the state is donated.

    `images`: how many it works on; `options`: of the compiler.
    """

    def __init__(
        self, step: Callable, state, images: int, steps_per_call: int = 1, options=None
    ) -> None:
        begin = time.perf_counter()
        self._compiled = jax.jit(step, donate_argnums=0).lower(state).compile(options)
        self.compile_seconds = time.perf_counter() - begin
        self._state = jax.block_until_ready(self._compiled(state))
        self._peak_memory_mb = peak_memory_mb()
        self._steps, self._images = steps_per_call, images
        self._wall, self._cpu = [], []

    def run(self, calls: int = 1) -> dict:
        """Runs it so many times and times it; what a child of `pairing` adds to its answer."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            self._state = self._compiled(self._state)
        jax.block_until_ready(self._state)
        self._wall.append((time.perf_counter() - begin) / (self._steps * calls))
        self._cpu.append((time.process_time() - begin_cpu) / (self._steps * calls))
        return dict(
            compile_seconds=self.compile_seconds,
            planned_memory_mb=planned_memory_mb(self._compiled),
            peak_memory_mb=peak_memory_mb(),
        )

    def figures(self) -> dict:
        """Medians over all runs; the peak memory is that after the first."""
        seconds = statistics.median(self._wall)
        return dict(
            seconds_per_step=seconds,
            images_per_second=self._images / (seconds * self._steps),
            **self._rate(seconds),
            cpu_seconds_per_step=statistics.median(self._cpu),
            compile_seconds=self.compile_seconds,
            planned_memory_mb=planned_memory_mb(self._compiled),
            peak_memory_mb=self._peak_memory_mb,
            repeats=len(self._wall),
        )

    def _rate(self, seconds: float) -> dict:
        """Operations a second where XLA counts them; none of a scan, whose body it counts once."""
        flops = (self._compiled.cost_analysis() or {}).get("flops")
        if self._steps > 1 or flops is None:
            return {}
        return dict(flops_per_second=flops / seconds)


def matrix_rate(dtype: str, size: int, repeats: int = 10) -> float:
    """Operations a second of the product of two random square matrices, the best of some runs."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), layers.DTYPES[dtype])
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(product(a, b))
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


NUM_STEPS = 50  # of DDIM


def prepare(network: str, batch: int, dtype: str, remat: bool = False) -> tuple:
    """The network, its variables, and for a batch random data, noise and noise levels."""
    module, shape = build(network, dtype, remat)
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

    return Program(step, (variables, eps), len(x))


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

    state, options = (variables, jax.jit(optimizer.init)(variables)), platform.train_step_options()
    return Program(step, state, len(x), options=options)


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

    return Program(step, (variables, x), len(x), NUM_STEPS)


class Input:
    """The input pipeline alone, to batches on the device, as training reads it; the times it took.

    From 8-bit images in memory; a step is a batch.
    """

    def __init__(self, network: str, batch: int, *_) -> None:
        shape = NETWORKS[network]["shape"]
        values = np.random.default_rng(0).integers(0, 256, (50 * batch, *shape), np.uint8)
        batches = data.batches(data.Split(values, np.zeros(len(values), np.int32)), batch, seed=0)
        place = partial(jax.tree.map, jax.device_put)
        self._batches = DevicePrefetcher(batches, place, itertools.repeat(1))
        self._batch, self._wall, self._cpu = batch, [], []
        self.run()  # fills the buffers
        self._wall, self._cpu = [], []

    def run(self, times: int = 100) -> None:
        """Takes so many batches, and times them."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for _, batch in itertools.islice(self._batches, times):
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
# `calls`: so many steps in a turn with a peer, so that a device needn't wait for the next.
FOR_CPUS = {
    "A": dict(network="A", batch=16, repeats=5, calls=1, **STEPS),
    "B": dict(network="B", batch=16, repeats=9, calls=1, **STEPS),
    "C": dict(network="C", batch=128, repeats=15, calls=1, **STEPS),
    "D": dict(network="B", batch=64, repeats=1, calls=1, **SAMPLING),
}
FOR_ACCELERATORS = {
    "E": dict(network="cifar10", batch=128, repeats=10, calls=10, **STEPS),
    "F": dict(network="cifar10", batch=512, repeats=8, calls=5, **STEPS),
    "G": dict(network="cifar10", batch=256, repeats=3, calls=1, **SAMPLING),
}
REHEARSALS = {  # stand for E and F, and for G, where a program is only tried
    "tiny": dict(network="tiny", batch=4, repeats=2, calls=2, **STEPS),
    "tiny_sampling": dict(network="tiny", batch=4, repeats=1, calls=1, **SAMPLING),
}
WORKLOADS = FOR_CPUS | FOR_ACCELERATORS | REHEARSALS
