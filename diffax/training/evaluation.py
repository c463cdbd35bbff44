"""What is measured of a state: the variational bound on a split, with the averaged parameters, and
the variance of the gradient, with those being trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import arguments, likelihood
from diffax import config as config_lib
from diffax.data import Dataset, Split
from diffax.training import parallel, progress
from diffax.training.gradient import make_gradient_variance
from diffax.training.state import DatasetInfo, TrainState, predictor


def make_eval_step(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo
) -> Callable[[TrainState, jax.Array, dict[str, Any]], likelihood.VLB]:
    """(state, key, batch) -> the terms of the bound, (batch,) each; pure.

    A batch has "x", "label" and may have "number", (batch,): see `likelihood.draw`.
    """

    def eval_step(state: TrainState, key: jax.Array, batch: dict[str, Any]) -> likelihood.VLB:
        label = batch["label"] if config.model.class_conditional else None
        mean_only, x0 = config.objective.learned_variance, batch["x"]
        return likelihood.vlb(
            None,
            predictor(model, state.ema_params, label, mean_only=mean_only),
            config_lib.acting_schedule(config, state.schedule),
            x0,
            num_steps=config.evaluation.vlb_num_steps or None,
            prediction=config.objective.prediction,
            levels=dataset.levels,
            draws=likelihood.draw(key, x0.shape, x0.dtype, batch.get("number")),
        )

    return eval_step


def make_bound(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, split: Split, mesh: Mesh
) -> Callable[[TrainState, int], likelihood.VLB]:
    """(state, seed) -> the bound's terms on a split, each (repeats, examples) float64 in bits/dim.

    The examples are the first `evaluation.num_examples` (0: all); each is seen at
    `evaluation.repeats` noise levels. The noise of an example depends on the seed and on the
    example alone, so that two states, or two runs, are compared under the same noise, however the
    examples are cut into batches and spread over devices.

    Raises:
      ValueError: `evaluation.batch_size` is no multiple of the number of devices.
    """
    eval_step = make_eval_step(config, model, dataset)
    return _over_split(config, eval_step, split, mesh, config.evaluation.repeats)


def make_ode_bits(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, split: Split, mesh: Mesh
) -> Callable[[TrainState, int], jax.Array]:
    """(state, seed) -> `likelihood.ode_bits_per_dim` of a split, (1, examples) float64.

    With `evaluation.ode_num_steps` steps; the rest is as in `make_bound`.
    """

    def ode_bits(state: TrainState, key: jax.Array, batch: dict[str, Any]) -> jax.Array:
        label = batch["label"] if config.model.class_conditional else None
        mean_only = config.objective.learned_variance
        return likelihood.ode_bits_per_dim(
            predictor(model, state.ema_params, label, mean_only=mean_only),
            config_lib.acting_schedule(config, state.schedule),
            batch["x"],
            key=likelihood.keys_of(key, batch["number"]),
            levels=dataset.levels,
            prediction=config.objective.prediction,
            num_steps=config.evaluation.ode_num_steps,
        )

    return _over_split(config, ode_bits, split, mesh, repeats=1)


def _over_split(
    config: ConfigDict, measure: Callable, split: Split, mesh: Mesh, repeats: int
) -> Callable[[TrainState, int], Any]:
    """(state, seed) -> measure(state, key, batch) of a split; arrays (repeats, examples), float64.

    `measure` gives a pytree of (batch,) arrays.
    """
    largest = config.evaluation.batch_size
    parallel.check_divides("evaluation.batch_size", largest, mesh)
    num = min(config.evaluation.num_examples or len(split), len(split))
    # As many batches as it takes, of equal size: little is left to fill up.
    size = math.ceil(num / math.ceil(num / largest) / mesh.size) * mesh.size
    compiled = jax.jit(measure, out_shardings=parallel.replicated(mesh))

    def run(state: TrainState, seed: int) -> Any:
        # Arrays lie as in training, so that a program in the compilation cache is found there.
        state = jax.device_put(state, parallel.state_sharding(state, mesh))
        whole_key = arguments.seeded(seed)
        keys = [jax.random.fold_in(whole_key, repeat) for repeat in range(repeats)]
        parts = []
        for i in progress.counted(range(0, num, size), "evaluating", "batches"):
            # The last batch is filled up, so that all have one shape, and cut afterwards.
            indices = np.minimum(np.arange(i, i + size), num - 1)
            label = None if split.label is None else split.label[indices]
            batch = {"x": split.array(indices), "label": label, "number": indices}
            batch = parallel.place_batch(batch, mesh)
            # One ends before the next begins, since the CPUs of several hosts keep no order.
            repeated = [jax.device_get(compiled(state, key, batch)) for key in keys]
            parts.append(jax.tree.map(lambda *arrays: np.stack(arrays), *repeated))
        whole = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1)[:, :num], *parts)
        return jax.tree.map(lambda array: array.astype(np.float64), whole)

    return run


def make_evaluation(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, data: Dataset, mesh: Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """state -> what the loop logs of it, always under the same noise (`config.seed`).

    On the evaluation split means in bits/dim, "eval_vlb" and its terms "eval_prior",
    "eval_diffusion" and "eval_reconstruction"; and "eval_vlb_variance", the variance of one
    example's diffusion term at one time. On the training split "eval_grad_variance", by
    `make_gradient_variance`, unless `evaluation.gradient_batches` is 0.
    """
    bound = make_bound(config, model, dataset, data.eval, mesh)
    variance = None
    if config.evaluation.gradient_batches:
        variance = make_gradient_variance(config, model, dataset, data.train, mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        terms = bound(state, config.seed)
        found = {
            "eval_vlb": float(np.mean(terms.total)),
            **{f"eval_{name}": float(np.mean(term)) for name, term in terms._asdict().items()},
            "eval_vlb_variance": float(np.var(terms.diffusion)),
        }
        if variance is not None:
            found["eval_grad_variance"] = variance(state, config.seed)
        return found

    return evaluate
