"""The gradient of the network's loss on a batch, and how much it varies between batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import objectives, time_sampling
from diffax.data import Split
from diffax.training import parallel, progress
from diffax.training.spread import HERE, Spread, Together, over_micro_batches
from diffax.training.state import DatasetInfo, TrainState, create_state, predictor

Batch = dict[str, Any]


def step_keys(key: jax.Array) -> dict[str, jax.Array]:
    """The keys of what is drawn in one step."""
    names = ("times", "noise", "dropout", "label", "schedule")
    return dict(zip(names, jax.random.split(key, len(names))))


def told(
    config: ConfigDict, dataset: DatasetInfo, batch: Batch, key: jax.Array, spread: Spread
) -> Batch:
    """The batch with the labels that the network is told: the null class for a share of them; None
    where it is told none."""
    if not config.model.class_conditional:
        return batch | {"label": None}
    label = batch["label"]
    dropped = jax.random.bernoulli(key, config.model.label_dropout, (len(label) * spread.size,))
    return batch | {"label": jnp.where(spread.mine(dropped), dataset.num_classes, label)}


def make_gradient(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, spread: Spread = HERE
) -> Callable[[TrainState, Batch, dict[str, jax.Array]], tuple[jax.Array, Any, Batch]]:
    """(state, batch that is `told`, step's keys) -> the loss, its gradient to the parameters, rows.

    The loss is the mean of weight * loss over the global batch, at times that the config's sampler
    draws. The rows, (batch,) each: "u", at which it drew, "loss", "weighted" and "log_snr".
    """
    times = time_sampling.get(config.objective.time_sampling)
    objective, micro_batches = config.objective, config.training.grad_accumulation

    def gradient(
        state: TrainState, batch: Batch, keys: dict[str, jax.Array]
    ) -> tuple[jax.Array, Any, Batch]:
        x0 = batch["x"]
        num = x0.shape[0] * spread.size
        u, weight = times.sample(state.time_sampler_state, keys["times"], num)
        noise = jax.random.normal(keys["noise"], (num, *x0.shape[1:]), x0.dtype)
        mine = spread.mine({"u": u, "weight": weight, "noise": noise})
        schedule = config_lib.acting_schedule(config, state.schedule)

        def loss_of(params: Any, rows: Batch, dropout: jax.Array) -> tuple[jax.Array, Batch]:
            losses, aux = objectives.training_loss(
                None,
                predictor(model, params, rows["label"], train=True, rngs={"dropout": dropout}),
                schedule,
                rows["x0"],
                time_sampling.times_of(schedule, rows["u"]),
                prediction=objective.prediction,
                weighting=objective.weighting,
                learned_variance=objective.learned_variance,
                hybrid_weight=objective.hybrid_weight,
                noise=rows["noise"],
            )
            each = {"loss": losses, "weighted": rows["weight"] * losses, "log_snr": aux["log_snr"]}
            return jnp.mean(each["weighted"]), each

        def of_rows(rows: Batch, number: jax.Array | int) -> tuple[Any, Batch]:
            part = spread.index() * micro_batches + number
            dropout = jax.random.fold_in(keys["dropout"], part)
            value = jax.value_and_grad(loss_of, has_aux=True)
            (loss, each), of_params = value(state.params, rows, dropout)
            return (loss, of_params), each

        rows = {"x0": x0, "label": batch["label"], **mine}
        means, each = over_micro_batches(of_rows, rows, micro_batches)
        loss, of_params = spread.mean(means)
        return loss, of_params, spread.join(each) | {"u": u}

    return gradient


def make_gradient_variance(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, split: Split, mesh: Mesh
) -> Callable[[TrainState, int], float]:
    """(state, seed) -> the variance of a training batch's gradient: the trace of its covariance.

    Over `evaluation.gradient_batches` batches of `training.batch_size` examples of a split, drawn
    anew with their times, noise and dropout, at the parameters being trained:

        (sum |g_i|^2 - |sum g_i|^2 / n) / (n - 1),

    which is unbiased. Before clipping; the unit is that of the loss, squared, over that of the
    parameters, squared.

    Raises:
      ValueError: fewer than two batches.
    """
    num, size = config.evaluation.gradient_batches, config.training.batch_size
    if num < 2:
        raise ValueError(
            f"config.evaluation.gradient_batches is {num}; the variance of the gradient needs at"
            " least 2"
        )
    gradient = make_gradient(config, model, dataset, Together(mesh))
    like = jax.eval_shape(functools.partial(create_state, config, model, dataset)).params
    whole = parallel.replicated(mesh)
    where = parallel.state_sharding(like, mesh), whole

    def start() -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like), jnp.zeros(())

    def add(state: TrainState, sums: Any, batch: Batch, key: jax.Array) -> Any:
        keys = step_keys(key)
        batch = told(config, dataset, batch, keys["label"], Together(mesh))
        _, of_params, _ = gradient(state, batch, keys)
        total, squares = sums
        return jax.tree.map(jnp.add, total, of_params), squares + optax.tree.norm(of_params) ** 2

    def norms(sums: Any) -> tuple[jax.Array, jax.Array]:
        total, squares = sums
        return optax.tree.norm(total) ** 2, squares

    start = jax.jit(start, out_shardings=where)
    add = jax.jit(add, donate_argnums=1, out_shardings=where)
    norms = jax.jit(norms, out_shardings=whole)

    def variance(state: TrainState, seed: int) -> float:
        state = jax.device_put(state, parallel.state_sharding(state, mesh))
        sums, rng = start(), np.random.default_rng(seed)
        for i in progress.counted(range(num), "measuring the variance of the gradient", "batches"):
            rows = rng.choice(len(split), size, replace=size > len(split))
            label = None if split.label is None else split.label[rows]
            batch = parallel.place_batch({"x": split.array(rows), "label": label}, mesh)
            key = jax.random.fold_in(jax.random.key(seed), i)
            # One ends before the next begins, since the CPUs of several hosts keep no order.
            sums = jax.block_until_ready(add(state, sums, batch, key))
        of_sum, squares = map(float, jax.device_get(norms(sums)))
        return (squares - of_sum / num) / (num - 1)

    return variance
