"""One training step: a pure function state, batch -> state, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import objectives, time_sampling
from diffax.training.state import DatasetInfo, TrainState, predictor

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]

# A training step gives these metrics, scalars all. Those that must be finite for an update to be
# made, and what an error calls them:
MUST_BE_FINITE = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "schedule_grad_norm": "norm of the schedule's gradient",
}


def make_train_step(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step of a config; pure, to be compiled by `jit`.

    A batch has "x", (batch, ..., C) float32, and "label", (batch,) int32 or None. The network
    descends the mean of weight * loss at times drawn by the time sampler; a learned schedule then
    descends its own objective, with the network held fixed. Gradients flow from neither into the
    other. Where the loss or a gradient is not finite, the step is counted but nothing is updated.

    Metrics: "loss"; "loss_variance", over the batch; "grad_norm", before clipping; "learning_rate";
    "worst_log_snr", of the example with the largest loss, or with one that is not finite; and for
    a learned schedule "schedule_updated" (1 or 0) and, in steps that update it (0 else),
    "schedule_vlb" and "schedule_vlb_variance" (bits/dim and its square, of one example at one
    time), "schedule_grad_norm" and "schedule_grad_variance" (the trace of the covariance of the
    batch's gradient).
    """
    optimizer = config_lib.build_optimizer(config)
    learning_rate = config_lib.learning_rate_at(config)
    times = time_sampling.get(config.objective.time_sampling)
    objective = config.objective
    update_schedule = _make_schedule_update(config, model, dataset)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        names = ("times", "noise", "dropout", "label", "schedule")
        keys = dict(zip(names, jax.random.split(jax.random.fold_in(state.key, state.step), 5)))
        x0, label = batch["x"], _told_label(config, dataset, batch, keys["label"])
        u, weight = times.sample(state.time_sampler_state, keys["times"], x0.shape[0])

        def loss_of(params):
            losses, aux = objectives.training_loss(
                keys["noise"],
                predictor(model, params, label, train=True, rngs={"dropout": keys["dropout"]}),
                state.schedule,
                x0,
                time_sampling.times_of(state.schedule, u),
                prediction=objective.prediction,
                weighting=objective.weighting,
                learned_variance=objective.learned_variance,
                hybrid_weight=objective.hybrid_weight,
            )
            return jnp.mean(weight * losses), (losses, aux["log_snr"])

        (loss, (losses, log_snr)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = moving_average(state.ema_params, params, config.ema.decay, state.step)
        schedule, schedule_opt_state, schedule_metrics = update_schedule(
            state, x0, label, keys["schedule"]
        )
        metrics = {
            "loss": loss,
            "loss_variance": jnp.var(weight * losses),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
            "worst_log_snr": log_snr[jnp.argmax(jnp.nan_to_num(losses, nan=jnp.inf))],
            **schedule_metrics,
        }
        updated = dict(
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            schedule=schedule,
            schedule_opt_state=schedule_opt_state,
            time_sampler_state=times.update(state.time_sampler_state, u, losses),
        )
        before = {name: getattr(state, name) for name in updated}
        finite = [jnp.isfinite(metrics[name]) for name in MUST_BE_FINITE if name in metrics]
        good = jnp.all(jnp.stack(finite))
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, before)
        return state.replace(step=state.step + 1, **kept), metrics

    return train_step


def moving_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """d average + (1 - d) params, with d = min(decay, (1 + step) / (10 + step)).

    The warm-up of d makes the average follow quickly while it still holds the initial values.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def _told_label(
    config: ConfigDict, dataset: DatasetInfo, batch: Batch, key: jax.Array
) -> jax.Array | None:
    """The labels that the network is told: the null class for a share of them; None without."""
    if not config.model.class_conditional:
        return None
    dropped = jax.random.bernoulli(key, config.model.label_dropout, batch["label"].shape)
    return jnp.where(dropped, dataset.num_classes, batch["label"])


def _make_schedule_update(config: ConfigDict, model: nn.Module, dataset: DatasetInfo) -> Callable:
    """(state, x0, label, key) -> schedule, its optimiser's state, metrics."""
    section = config.schedule_learning
    optimizer = config_lib.build_schedule_optimizer(config)
    mean_only = config.objective.learned_variance

    def gradient_of_half(schedule, params, x0, label, key):
        return objectives.schedule_gradient(
            schedule,
            predictor(model, params, label, mean_only=mean_only),
            x0,
            key,
            objective=section.objective,
            prediction=config.objective.prediction,
            num_steps=section.num_steps or None,
            levels=dataset.levels,
            has_aux=True,
        )

    def measured_gradient(schedule, params, x0, label, key):
        # Every other example makes up a half; how far the halves' gradients lie apart tells the
        # variance of their mean, and with this split the batch stays where it is on its devices.
        halves = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:]), (x0, label))
        per_half = jax.vmap(gradient_of_half, in_axes=(None, None, 1, 1, 0))
        gradients, aux = per_half(schedule, params, *halves, jax.random.split(key))
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
        apart = jax.tree.map(lambda g: 0.5 * (g[0] - g[1]), gradients)
        return mean, {
            "schedule_updated": jnp.ones(()),
            "schedule_vlb": jnp.mean(aux["vlb"]),
            "schedule_vlb_variance": jnp.mean(aux["variance"]),
            "schedule_grad_norm": optax.tree.norm(mean),
            "schedule_grad_variance": optax.tree.norm(apart) ** 2,
        }

    def update(state, x0, label, key):
        gradient, metrics = measured_gradient(state.schedule, state.params, x0, label, key)
        updates, opt_state = optimizer.update(gradient, state.schedule_opt_state)
        return optax.apply_updates(state.schedule, updates), opt_state, metrics

    def schedule_update(state, x0, label, key):
        if not config_lib.is_learned(state.schedule) or section.update_every == 0:
            return state.schedule, state.schedule_opt_state, {}
        if section.update_every == 1:
            return update(state, x0, label, key)

        def keep(state, x0, label, key):
            shapes = jax.eval_shape(update, state, x0, label, key)
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[2])
            return state.schedule, state.schedule_opt_state, nothing

        turn = state.step % section.update_every == 0
        return jax.lax.cond(turn, update, keep, state, x0, label, key)

    return schedule_update
