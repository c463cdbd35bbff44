"""One training step: a pure function state, batch -> state, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import likelihood, objectives, time_sampling
from diffax.training.gradient import Batch, make_gradient, step_keys, told
from diffax.training.spread import HERE, Spread, over_micro_batches
from diffax.training.state import DatasetInfo, TrainState, predictor

Metrics = dict[str, jax.Array]

# One step that moves the parameters by so many times their norm leaves nothing of what was learned,
# and a network of which every later loss overflows. Of a usual rate it is far below 1.
LARGEST_UPDATE = 10.0


class Bounded(NamedTuple):
    """What an error calls a metric that must be finite, and at most so large, for a step to count;
    the config's section whose learning rate is at fault where it isn't."""

    words: str
    section: str
    largest: float = math.inf

    def holds(self, value: Any) -> Any:
        """Whether a value, or each of an array, is finite and small enough."""
        return (abs(value) < math.inf) & (value <= self.largest)


# A training step gives metrics, scalars all. Those that must hold for an update to be made:
MUST_HOLD = {
    "loss": Bounded("loss", "optimizer"),
    "grad_norm": Bounded("gradient norm", "optimizer"),
    "update_size": Bounded(
        "norm of the network's update over that of its parameters", "optimizer", LARGEST_UPDATE
    ),
    "schedule_grad_norm": Bounded("norm of the schedule's gradient", "schedule_learning"),
    "schedule_update_size": Bounded(
        "norm of the schedule's update over that of its parameters",
        "schedule_learning",
        LARGEST_UPDATE,
    ),
}


def make_train_step(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, spread: Spread = HERE
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step of a config; pure, to be compiled by `jit`, or by `pmap` with its `spread`.

    A batch has "x", (batch, ..., C) float32, and "label", (batch,) int32 or None. The network
    descends the mean of weight * loss at times drawn by the time sampler; a learned schedule then
    descends its own objective, with the network held fixed. Gradients flow from neither into the
    other. Both are averaged over `training.grad_accumulation` micro-batches. Where the loss or a
    gradient is not finite, or an update is more than `LARGEST_UPDATE` times what it is added to,
    the step is counted but nothing is updated.

    Metrics: "loss"; "loss_variance", over the batch; "grad_norm", before clipping; "learning_rate";
    "update_size", the norm of the update over that of the parameters (at least 1); "worst_log_snr",
    of the example with the largest loss, or with one that is not finite; and for a learned schedule
    "schedule_updated" (1 or 0) and, in steps that update it (0 else), "schedule_vlb" and
    "schedule_vlb_variance" (bits/dim and its square, of one example at one time),
    "schedule_grad_norm", "schedule_grad_variance" (the trace of the covariance of the batch's
    gradient) and "schedule_update_size".
    """
    optimizer = config_lib.build_optimizer(config)
    learning_rate = config_lib.learning_rate_at(config)
    times = time_sampling.get(config.objective.time_sampling)
    gradient = make_gradient(config, model, dataset, spread)
    update_schedule = _make_schedule_update(config, model, dataset, spread)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = step_keys(jax.random.fold_in(state.key, state.step))
        batch = told(config, dataset, batch, keys["label"], spread)
        loss, grads, each = gradient(state, batch, keys)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = moving_average(state.ema_params, params, config.ema.decay, state.step)
        schedule, schedule_opt_state, schedule_metrics = update_schedule(
            state, batch["x"], batch["label"], keys["schedule"]
        )
        worst = jnp.argmax(jnp.nan_to_num(each["loss"], nan=jnp.inf))
        metrics = {
            "loss": loss,
            "loss_variance": jnp.var(each["weighted"]),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
            "update_size": _size(updates, state.params),
            "worst_log_snr": each["log_snr"][worst],
            **schedule_metrics,
        }
        updated = dict(
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            schedule=schedule,
            schedule_opt_state=schedule_opt_state,
            time_sampler_state=times.update(state.time_sampler_state, each["u"], each["loss"]),
        )
        before = {name: getattr(state, name) for name in updated}
        hold = [b.holds(metrics[name]) for name, b in MUST_HOLD.items() if name in metrics]
        good = jnp.all(jnp.stack(hold))
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, before)
        return state.replace(step=state.step + 1, **kept), metrics

    return train_step


def moving_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """d average + (1 - d) params, with d = min(decay, (1 + step) / (10 + step)).

    The warm-up of d makes the average follow quickly while it still holds the initial values.
    """
    d = _decay_in(step, decay)
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def _decay_in(step: jax.Array, decay: float) -> jax.Array:
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def share_of_start(decay: float, num_steps: int) -> float:
    """The weight that the initial parameters have in their moving average after some steps."""
    # After a thousand steps of a rising decay less than 1e-20 of it is left.
    return float(jnp.prod(_decay_in(jnp.arange(min(num_steps, 1000)), decay)))


def _size(updates: Any, of: Any) -> jax.Array:
    return optax.tree.norm(updates) / jnp.maximum(optax.tree.norm(of), 1.0)


def _make_schedule_update(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, spread: Spread
) -> Callable:
    """(state, x0, label, key) -> schedule, its optimiser's state, metrics."""
    section = config.schedule_learning
    optimizer = config_lib.build_schedule_optimizer(config)
    decay = config_lib.schedule_decay_at(config)
    mean_only = config.objective.learned_variance

    def gradients(spread, whole, rows):
        """The gradient of each half, (2,) first, and the terms, (pairs, 2), of all rows."""
        schedule, params = whole

        def gradient_of_half(half):
            return objectives.schedule_gradient(
                None,
                predictor(model, params, half["label"], mean_only=mean_only),
                schedule,
                half["x0"],
                objective=section.objective,
                prediction=config.objective.prediction,
                num_steps=section.num_steps or config.schedule.num_steps or None,
                levels=dataset.levels,
                has_aux=True,
                draws=half["draws"],
            )

        def of_both(rows, number):
            del number
            return jax.vmap(gradient_of_half, in_axes=1, out_axes=(0, 1))(rows)

        halves, terms = over_micro_batches(of_both, rows, config.training.grad_accumulation)
        return spread.mean(halves), spread.join(terms)

    def measured_gradient(state, x0, label, key):
        # Every other example makes up a half; how far the halves' gradients lie apart tells the
        # variance of their mean.
        pairs = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:]), {"x0": x0, "label": label})
        shape = (len(x0) * spread.size // 2, *x0.shape[1:])
        draw = jax.vmap(lambda key: likelihood.draw(key, shape, x0.dtype), out_axes=1)
        rows = {**pairs, "draws": spread.mine(draw(jax.random.split(key)))}
        # Device by device, since XLA would move the batch about to join the halves' axis with it.
        halves, terms = spread.by_device(gradients, (state.schedule, state.params), rows)
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), halves)
        apart = jax.tree.map(lambda g: 0.5 * (g[0] - g[1]), halves)
        return mean, {
            "schedule_updated": jnp.ones(()),
            "schedule_vlb": jnp.mean(terms.total),
            "schedule_vlb_variance": jnp.mean(jnp.var(terms.diffusion, axis=0)),
            "schedule_grad_norm": optax.tree.norm(mean),
            "schedule_grad_variance": optax.tree.norm(apart) ** 2,
        }

    def update(state, x0, label, key):
        gradient, metrics = measured_gradient(state, x0, label, key)
        updates, opt_state = optimizer.update(gradient, state.schedule_opt_state, state.schedule)
        updates = optax.tree.scale(decay(state.step), updates)
        metrics = {**metrics, "schedule_update_size": _size(updates, state.schedule)}
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
