"""What is measured of a state: a method's measures on a split of the data, and the variance of its
gradient between batches."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import arguments, distributed, evaluation
from diffax import config as config_lib
from diffax.data import Dataset, DatasetInfo, Split
from diffax.methods import Measure, Method
from diffax.methods.base import Arrays, Batch, State
from diffax.models import platform
from diffax.training import codecs, progress, teachers


def over_split(
    config: ConfigDict, measure: Measure, split: Split, mesh: Mesh
) -> Callable[[State, int], Arrays]:
    """(state, seed) -> what a measure gives on a split, each (repeats, examples) float64.

    The random numbers of an example depend on the seed and on the example alone, so that two
    states, or two runs, are compared under the same noise, however the examples are cut into
    batches and divided over devices.

    Args:
      config: its evaluation.num_examples are the examples of the split that count, the first so
        many (0: all), evaluation.batch_size the most in one call, over all devices.
      measure: of a method.
      mesh: the devices.

    Raises:
      ValueError: the batch size is no multiple of the number of devices.
    """
    section = config.evaluation
    distributed.check_divides("evaluation.batch_size", section.batch_size, mesh)
    split = config_lib.conditions.encoded(config, split)
    num = min(section.num_examples or len(split), len(split))
    # As many batches as it takes, of equal size: little is left to fill up.
    size = math.ceil(num / math.ceil(num / section.batch_size) / mesh.size) * mesh.size
    compiled = distributed.jit_over_numbers(
        measure.per_example, out_shardings=distributed.replicated(mesh)
    )

    def run(state: State, seed: int) -> Arrays:
        # Arrays lie as in training, so that a program in the compilation cache is found there.
        state = measure.of_state(state)
        state = jax.device_put(state, distributed.state_sharding(state, mesh))
        whole_key = arguments.seeded(seed)
        keys = [jax.random.fold_in(whole_key, repeat) for repeat in range(measure.repeats)]
        parts = []
        for i in progress.counted(range(0, num, size), "evaluating", "batches"):
            # The last batch is filled up, so that all have one shape, and cut afterwards.
            indices = np.minimum(np.arange(i, i + size), num - 1)
            batch = {**split.batch(indices), "number": indices}
            batch = distributed.place_batch(batch, mesh)
            # One ends before the next begins, since the CPUs of several hosts keep no order.
            repeated = [jax.device_get(compiled(state, key, batch)) for key in keys]
            for name, values in repeated[0].items():
                if values.shape != (size,):
                    raise ValueError(
                        f"a measure gave {name!r} of shape {values.shape}; one number for each"
                        f" example is needed, shape {(size,)}"
                    )
            parts.append(jax.tree.map(lambda *arrays: np.stack(arrays), *repeated))
        whole = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1)[:, :num], *parts)
        return jax.tree.map(lambda array: array.astype(np.float64), whole)

    return run


def make_gradient_variance(
    method: Method, split: Split, mesh: Mesh, batch_size: int, num_batches: int
) -> Callable[[State, int], float]:
    """(state, seed) -> the variance of a training batch's gradient: the trace of its covariance.

    Over `num_batches` batches of `batch_size` examples of a split, drawn anew with all that the
    gradient draws, at the parameters being trained:

        (sum |g_i|^2 - |sum g_i|^2 / n) / (n - 1),

    which is unbiased. Before clipping; the unit is that of the loss, squared, over that of the
    parameters, squared.

    Raises:
      ValueError: fewer than two batches.
    """
    if num_batches < 2:
        raise ValueError(
            f"config.evaluation.gradient_batches is {num_batches}; the variance of the gradient"
            " needs at least 2"
        )
    like = jax.eval_shape(method.init, jax.random.key(0)).params
    whole = distributed.replicated(mesh)
    where = distributed.state_sharding(like, mesh), whole

    @functools.partial(jax.jit, out_shardings=where)
    def start() -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like), jnp.zeros(())

    add = distributed.jit_over_numbers(
        _adding(method.gradient, distributed.Global(mesh)), donate_argnums=2, out_shardings=where
    )
    norms = jax.jit(_norms, out_shardings=whole)

    def variance(state: State, seed: int) -> float:
        state = jax.device_put(state, distributed.state_sharding(state, mesh))
        sums, rng = start(), np.random.default_rng(seed)
        batches = range(num_batches)
        for i in progress.counted(batches, "measuring the variance of the gradient", "batches"):
            rows = rng.choice(len(split), batch_size, replace=batch_size > len(split))
            batch = distributed.place_batch(split.batch(rows), mesh)
            key = jax.random.fold_in(jax.random.key(seed), i)
            # One ends before the next begins, since the CPUs of several hosts keep no order.
            sums = jax.block_until_ready(add(state, sums, batch, key))
        of_sum, squares = map(float, jax.device_get(norms(sums)))
        return (squares - of_sum / num_batches) / (num_batches - 1)

    return variance


@functools.lru_cache(maxsize=8)
def _adding(gradient: Callable, sharding: distributed.BatchSharding) -> Callable:
    """Adds the gradient of a batch, and its square, to the sums of those before."""

    def add(state: State, sums: Any, batch: Batch, key: jax.Array) -> Any:
        own = gradient(state, batch, key, sharding)
        total, squares = sums
        return jax.tree.map(jnp.add, total, own), squares + optax.tree.norm(own) ** 2

    return add


def _norms(sums: Any) -> tuple[jax.Array, jax.Array]:
    total, squares = sums
    return optax.tree.norm(total) ** 2, squares


def measure_on(
    method: Method, name: str, config: ConfigDict, split: Split, mesh: Mesh
) -> Callable[[State, int], Arrays]:
    """`over_split` of the method's measure of that name.

    Raises:
      ValueError: the method has no such measure, or it is impossible of this run; or as
        `over_split`.
    """
    if name not in method.measures:
        known = ", ".join(method.measures)
        raise ValueError(
            f"{name!r} can't be measured: method {config.method.name!r} has {known or 'nothing'}"
        )
    if sentence := method.measures[name].impossible():
        raise ValueError(sentence)
    return over_split(config, method.measures[name], split, mesh)


def reconstructions(
    method: Method, split: Split, num: int, batch_size: int, mesh: Mesh
) -> Callable[[State], np.ndarray]:
    """state -> what a method makes of the first `num` examples of a split, (num, ..., C)."""
    reconstruct = distributed.jit_over_numbers(
        method.reconstruct, out_shardings=distributed.replicated(mesh)
    )
    size = -(-min(batch_size, num) // mesh.size) * mesh.size

    def run(state: State) -> np.ndarray:
        state = jax.device_put(state, distributed.state_sharding(state, mesh))
        parts = []
        for i in progress.counted(range(0, num, size), "reconstructing", "batches"):
            rows = np.minimum(np.arange(i, i + size), num - 1)
            batch = distributed.place_batch({"x": split.array(rows)}, mesh)
            parts.append(jax.device_get(reconstruct(state, batch)))
        return np.concatenate(parts)[:num]

    return run


def _scores_of_reconstructions(
    config: ConfigDict, method: Method, dataset: Dataset, mesh: Mesh
) -> Callable[[State], dict[str, float]]:
    section = config.evaluation
    reference = evaluation.Reference.of(dataset, config.data)
    num = min(section.num_samples, len(dataset.eval))
    planned = evaluation.plan(section.metrics, reference, dataset.shape, num)
    made = reconstructions(method, dataset.eval, num, section.batch_size, mesh)

    def scores(state: State) -> dict[str, float]:
        drawn = functools.cache(lambda: made(state))
        by_name = evaluation.pending(planned, drawn, reference, config.seed)
        entries = {name: measure() for name, measure in by_name.items()}
        numbers = [(name, number) for name in entries for number in evaluation.numbers(name)]
        return {f"eval_{number.key}": entries[name][number.entry] for name, number in numbers}

    return scores


def make_evaluation(
    config: ConfigDict, method: Method, dataset: Dataset, mesh: Mesh
) -> Callable[[State], dict[str, float]]:
    """state -> what the loop logs of it, always under the same noise (`config.seed`).

    On the evaluation split what each measure logs, as "eval_<name>", and of a method that
    reconstructs the scores of `evaluation.metrics` of its reconstructions. On the training split
    "eval_grad_variance", unless `evaluation.gradient_batches` is 0.
    """
    logs = {
        name: measure.logged
        for name, measure in method.measures.items()
        if measure.logged is not None and not measure.impossible()
    }
    measured = {name: measure_on(method, name, config, dataset.eval, mesh) for name in logs}
    variance, num = None, config.evaluation.gradient_batches
    if num and method.gradient is not None:
        size = config.training.batch_size
        variance = make_gradient_variance(method, dataset.train, mesh, size, num)
    scored = None
    if method.reconstruct is not None and method.sample is None and config.evaluation.metrics:
        scored = _scores_of_reconstructions(config, method, dataset, mesh)

    def evaluate(state: State) -> dict[str, float]:
        found = {}
        for name, log in logs.items():
            values = log(measured[name](state, config.seed))
            found |= {f"eval_{key}": value for key, value in values.items()}
        if scored is not None:
            found |= scored(state)
        if variance is not None:
            found["eval_grad_variance"] = variance(state, config.seed)
        return found

    return evaluate


def operations(config: ConfigDict, dataset: Dataset) -> float:
    """Floating-point operations of a training step, by XLA's count of its program before it is
    optimised, in the forms for an accelerator on every platform; nan where XLA counts none.

    All that the step does counts: network, conditions and their encoder if it is trained along,
    gradient, optimiser, averages. An encoder that is frozen, such as MiniLM or a codec whose
    latents are kept, runs once before training and does not count.

    Args:
      config: of the run; nothing is trained and nothing is read but what it starts from.
      dataset: its data.
    """
    info = DatasetInfo.of(dataset)
    of_latents = config.codec.name != "identity" and config.codec.cache
    teacher = teachers.teacher_of(config, info)
    method = codecs.build_method(config, info, teacher, of_latents)
    shape = codecs.inside(config, info).shape if of_latents else info.shape
    first = np.arange(1)
    one = config_lib.conditions.encoded(config, dataset.train.take(first)).batch(first)
    rows = config.training.batch_size
    batch = {
        name: jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), value)
        for name, value in one.items()
    }
    batch["x"] = jax.ShapeDtypeStruct((rows, *shape), np.float32 if of_latents else one["x"].dtype)
    state = jax.eval_shape(method.init, jax.random.key(0))
    step = functools.partial(method.step, sharding=distributed.LOCAL)
    with platform.plain():
        counted = jax.jit(step).lower(state, batch).cost_analysis() or {}
    return float(counted.get("flops", math.nan))
