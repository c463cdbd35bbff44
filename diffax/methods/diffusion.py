"""Diffusion: a network learns to denoise; a learned schedule descends its own objective beside it.

In order: the state, the network as a predictor, the loss and its gradient, the update of a learned
schedule, the training step, samples. What is measured of a state stands in `diffusion_measures`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffax import likelihood, objectives, process, samplers, schedules
from diffax.data import DatasetInfo
from diffax.distributed.batch import BatchSharding, over_micro_batches
from diffax.methods import base, diffusion_measures
from diffax.methods.base import Batch, Bounded, Method, Metrics
from diffax.methods.teacher import Teacher
from diffax.models import conditioning, control
from diffax.models.conditioning import Cond, Condition
from diffax.models.control import BASE
from diffax.process import AnySchedule, Predict
from diffax.time_sampling import TimeSampler, times_of


class TrainState(flax.struct.PyTreeNode):
    """All that changes in training; with the data it is all that a step needs."""

    step: jax.Array  # int32 (): updates so far
    params: Any  # of the network
    ema_params: Any  # their exponential moving average, by which one samples and evaluates
    opt_state: Any
    schedule: AnySchedule
    schedule_opt_state: Any  # () unless the schedule is learned
    time_sampler_state: Any
    key: jax.Array  # PRNG key; constant: the keys of a step are folded from it and the step


class ControlState(TrainState):
    """That of a ControlNet: `params` are those of its branches."""

    base: Any = None  # the parameters of the U-Net that stays as it was; constant


class Objective(NamedTuple):
    """The network's objective; see `objectives.training_loss`. Without `importance_weights` the
    density of `times` weighs the loss."""

    prediction: str
    weighting: str
    times: TimeSampler
    learned_variance: bool
    hybrid_weight: float
    importance_weights: bool = True


class ScheduleLearning(NamedTuple):
    """How a learned schedule is updated: every so many steps, by its optimiser.

    Its objective is that of `objectives.schedule_gradient`. `decay`, step -> factor, multiplies the
    updates. `num_steps` is that of the bound, 0 for continuous time.
    """

    objective: str
    optimizer: optax.GradientTransformation
    decay: Callable[[jax.Array], jax.Array]
    update_every: int
    num_steps: int


# --- the network as a predictor -----------------------------------------------------------------


def _step_number(t: jax.Array) -> jax.Array:
    """The index itself in discrete time, 1000 t in continuous time; float32."""
    scale = 1.0 if jnp.issubdtype(t.dtype, jnp.integer) else 1000.0
    return scale * t.astype(jnp.float32)


def _by_step(function: Predict) -> Predict:
    return lambda x_t, t: function(x_t, _step_number(t))


# By what its `conditioning` says: (x, noise level) -> prediction becomes a predictor.
_BY: dict[str, Callable[[Predict], Predict]] = {"log_snr": process.by_log_snr, "step": _by_step}


def predictor(
    model: nn.Module,
    params: Any,
    cond: Cond | jax.Array | None = None,
    train: bool = False,
    rngs: dict[str, jax.Array] | None = None,
    mean_only: bool = False,
) -> Predict:
    """The network as `sample`, `vlb` and `training_loss` take it.

    It is conditioned on the log-SNR (`process.by_log_snr`), or if its `conditioning` is "step" on
    the step number: the index of a discrete schedule, 1000 t of a continuous one.

    Args:
      model, params: a network of `diffax.models` and its parameters.
      cond: condition -> (batch, ...); an array is the label, (batch,) int32 classes; None is the
        null of each condition.
      train: whether dropout acts; it then needs `rngs`, {"dropout": key}.
      mean_only: leave out the second half of the channels of a network with learned variance.
    """
    cond = cond if isinstance(cond, Mapping) else {} if cond is None else {"label": cond}

    def network(x: jax.Array, noise_level: jax.Array) -> jax.Array:
        out = conditioning.apply(model, params, x, noise_level, cond, train=train, rngs=rngs)
        return out[..., : x.shape[-1]] if mean_only else out

    return _BY[getattr(model, "conditioning", "log_snr")](network)


# --- the method ---------------------------------------------------------------------------------

REQUIRED = {"loss": base.LOSS, "grad_norm": base.GRAD_NORM, "update_size": base.UPDATE_SIZE}
REQUIRED_OF_SCHEDULE = {
    "schedule_grad_norm": Bounded("norm of the schedule's gradient", "schedule_learning"),
    "schedule_update_size": Bounded(
        "norm of the schedule's update over that of its parameters",
        "schedule_learning",
        base.LARGEST_UPDATE,
    ),
}

# The options of sampling that are the denoiser's; the others are those of `samplers.sample`.
DENOISER_OPTIONS = (
    "schedule", "with_variance", "guidance_scale", "guidance_interval", "guidance_rescale",
)  # fmt: skip


def step_keys(key: jax.Array) -> dict[str, jax.Array]:
    """The keys of what is drawn in one step."""
    names = ("times", "noise", "dropout", "label", "schedule")
    return dict(zip(names, jax.random.split(key, len(names))))


def diffusion(
    data: DatasetInfo,
    network: nn.Module,
    conditions: Mapping[str, Condition],
    schedule: Callable[[jax.Array], AnySchedule],
    schedule_steps: int,
    objective: Objective,
    schedule_learning: ScheduleLearning,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
    grad_accumulation: int,
    evaluation: diffusion_measures.Settings,
    sampling: Mapping[str, Any],
    frozen: Teacher | None = None,
) -> Method:
    """Diffusion: the network descends the mean of weight * loss at times drawn by the time sampler.

    A learned schedule then descends its own objective, with the network held fixed. Gradients flow
    from neither into the other. Both are averaged over micro-batches.

    With `frozen` the network is a `ControlNet`: its branches start from that run's parameters and
    are trained, and these parameters themselves stand in the state as they are.

    The step's metrics: "loss"; "loss_variance", over the batch; "grad_norm", before clipping;
    "learning_rate"; "update_size", the norm of the update over that of the parameters (at least 1);
    "worst_log_snr", of the example with the largest loss, or with one that is not finite. For a
    learned schedule also "schedule_updated" (1 or 0) and, in steps that update it (0 else),
    "schedule_vlb" and "schedule_vlb_variance" (bits/dim and its square, of one example at one
    time), "schedule_grad_norm", "schedule_grad_variance" (the trace of the covariance of the
    batch's gradient) and "schedule_update_size".

    Args:
      data: what is known of the data.
      network: a network of `diffax.models`.
      conditions: those that the network is conditioned on.
      schedule: key -> the schedule that training begins with.
      schedule_steps: T, where the schedule acts in discrete time; 0 for its own time.
      objective, schedule_learning, evaluation: see these classes.
      optimizer: of the network; `learning_rate`, step -> rate, is only logged.
      ema_decay: of the moving average of the parameters.
      grad_accumulation: micro-batches per step.
      sampling: default options of `samplers.sample` and of the denoiser.
      frozen: the run whose network the branches of a ControlNet stand beside; None for none.

    Raises:
      ValueError: a network that doesn't denoise, or parameters of `frozen` that don't fit it.
    """
    base.require_denoiser("diffusion", network)
    times = objective.times
    first = jax.eval_shape(schedule, jax.random.key(0))
    is_learned = schedules.is_learned(first)
    learns = is_learned and schedule_learning.update_every > 0

    def effective(own: AnySchedule) -> AnySchedule:
        return schedules.effective(own, schedule_steps)

    def first_params(key: jax.Array) -> Any:
        return network.init(key, jnp.zeros((1, *data.shape)), jnp.zeros((1,)))["params"]

    if frozen is not None and frozen.params is not None:
        own = jax.eval_shape(first_params, jax.random.key(0))[BASE]
        frozen.check_fits(objective.prediction, own, first, "base")

    def init(key: jax.Array) -> TrainState:
        init_key, schedule_key, run_key = jax.random.split(key, 3)
        params, own, of_state = first_params(init_key), schedule(schedule_key), TrainState
        if frozen is not None:
            stays = params[BASE] if frozen.params is None else frozen.params
            stays = jax.tree.map(jnp.asarray, stays)
            params, own = control.started(params, stays), frozen.schedule_or(own)
            of_state = functools.partial(ControlState, base=stays)
        # The types of an update; weak ones of Python's numbers would compile the second step anew.
        own = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), own)
        return of_state(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=params,
            opt_state=optimizer.init(params),
            schedule=own,
            schedule_opt_state=schedule_learning.optimizer.init(own) if is_learned else (),
            time_sampler_state=times.init(),
            key=run_key,
        )

    def all_params(state: TrainState, params: Any) -> Any:
        """The parameters of the network, of which `params` are trained."""
        return params if frozen is None else {**params, BASE: state.base}

    # --- the network's loss ---

    def conditions_of_step(batch: Batch, key: jax.Array, sharding: BatchSharding) -> Cond:
        cond = conditioning.conditions_of(conditions, batch)
        masks = conditioning.dropped(conditions, key, len(batch["x"]) * sharding.size)
        return conditioning.drop(conditions, cond, sharding.local(masks))

    def loss_and_gradient(
        state: TrainState,
        x0: jax.Array,
        cond: Cond,
        keys: dict[str, jax.Array],
        sharding: BatchSharding,
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """The mean of weight * loss over the global batch, its gradient, and rows, (batch,) each:
        "u", at which the time was drawn, "loss", "weighted", "log_snr" and "eps_error"."""
        num = len(x0) * sharding.size
        acting = effective(state.schedule)
        timing = times.along(state.time_sampler_state, acting)
        u, weight = times.sample(timing, keys["times"], num)
        weight = weight if objective.importance_weights else jnp.ones_like(weight)
        noise = jax.random.normal(keys["noise"], (num, *x0.shape[1:]), x0.dtype)
        local = sharding.local({"u": u, "weight": weight, "noise": noise})

        def loss_of(params: Any, rows: Batch, dropout: jax.Array) -> tuple[jax.Array, Batch]:
            losses, aux = objectives.training_loss(
                None,
                predictor(
                    network,
                    all_params(state, params),
                    rows["cond"],
                    train=True,
                    rngs={"dropout": dropout},
                ),
                acting,
                rows["x0"],
                times_of(acting, rows["u"]),
                prediction=objective.prediction,
                weighting=objective.weighting,
                learned_variance=objective.learned_variance,
                hybrid_weight=objective.hybrid_weight,
                noise=rows["noise"],
            )
            scale = process.eps_scale(objective.prediction, aux["log_snr"])
            each = {
                "loss": losses,
                "weighted": rows["weight"] * losses,
                "log_snr": aux["log_snr"],
                "eps_error": scale * aux["mse"],
            }
            return jnp.mean(each["weighted"]), each

        def of_rows(rows: Batch, number: jax.Array | int) -> tuple[Any, Batch]:
            part = sharding.index() * grad_accumulation + number
            dropout = jax.random.fold_in(keys["dropout"], part)
            value = jax.value_and_grad(loss_of, has_aux=True)
            (loss, each), gradient = value(state.params, rows, dropout)
            return (loss, gradient), each

        rows = {"x0": x0, "cond": cond, **local}
        means, each = over_micro_batches(of_rows, rows, grad_accumulation)
        loss, gradient = sharding.mean(means)
        return loss, gradient, sharding.gather(each) | {"u": u}

    def gradient(state: TrainState, batch: Batch, key: jax.Array, sharding: BatchSharding) -> Any:
        keys = step_keys(key)
        cond = conditions_of_step(batch, keys["label"], sharding)
        return loss_and_gradient(state, batch["x"], cond, keys, sharding)[1]

    # --- the learned schedule ---

    def schedule_gradients(
        sharding: BatchSharding, whole: tuple[AnySchedule, Any], rows: Batch
    ) -> tuple[Any, likelihood.VLB]:
        """The gradient of each half of the batch, with a first axis of 2, and the terms of all
        rows, (pairs, 2)."""
        own, params = whole

        def gradient_of_half(half: Batch) -> tuple[Any, likelihood.VLB]:
            return objectives.schedule_gradient(
                None,
                predictor(network, params, half["cond"], mean_only=objective.learned_variance),
                own,
                half["x0"],
                objective=schedule_learning.objective,
                prediction=objective.prediction,
                num_steps=schedule_learning.num_steps or schedule_steps or None,
                levels=data.levels,
                has_aux=True,
                draws=half["draws"],
            )

        def of_both(rows: Batch, number: jax.Array | int) -> tuple[Any, likelihood.VLB]:
            del number
            return jax.vmap(gradient_of_half, in_axes=1, out_axes=(0, 1))(rows)

        halves, terms = over_micro_batches(of_both, rows, grad_accumulation)
        return sharding.mean(halves), sharding.gather(terms)

    def update_schedule(
        state: TrainState, x0: jax.Array, cond: Cond, key: jax.Array, sharding: BatchSharding
    ) -> tuple[AnySchedule, Any, Metrics]:
        # Every other example makes up a half. The distance between the gradients of the halves
        # gives the variance of their mean.
        pairs = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:]), {"x0": x0, "cond": cond})
        shape = (len(x0) * sharding.size // 2, *x0.shape[1:])
        draw = jax.vmap(lambda key: likelihood.draw(key, shape, x0.dtype), out_axes=1)
        rows = {**pairs, "draws": sharding.local(draw(jax.random.split(key)))}
        # Device by device, since XLA would move the batch about to join the halves' axis with it.
        given = state.schedule, all_params(state, state.params)
        halves, terms = sharding.by_device(schedule_gradients, given, rows)
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), halves)
        apart = jax.tree.map(lambda g: 0.5 * (g[0] - g[1]), halves)
        updates, opt_state = schedule_learning.optimizer.update(
            mean, state.schedule_opt_state, state.schedule
        )
        updates = optax.tree.scale(schedule_learning.decay(state.step), updates)
        metrics = {
            "schedule_updated": jnp.ones(()),
            "schedule_vlb": jnp.mean(terms.total),
            "schedule_vlb_variance": jnp.mean(jnp.var(terms.diffusion, axis=0)),
            "schedule_grad_norm": optax.tree.norm(mean),
            "schedule_grad_variance": optax.tree.norm(apart) ** 2,
            "schedule_update_size": base.update_size(updates, state.schedule),
        }
        return optax.apply_updates(state.schedule, updates), opt_state, metrics

    def maybe_update_schedule(
        state: TrainState, x0: jax.Array, cond: Cond, key: jax.Array, sharding: BatchSharding
    ) -> tuple[AnySchedule, Any, Metrics]:
        if not learns:
            return state.schedule, state.schedule_opt_state, {}

        def update(*given: Any) -> tuple[AnySchedule, Any, Metrics]:
            return update_schedule(*given, sharding)

        if schedule_learning.update_every == 1:
            return update(state, x0, cond, key)

        def keep(*given: Any) -> tuple[AnySchedule, Any, Metrics]:
            shapes = jax.eval_shape(update, *given)
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[2])
            return state.schedule, state.schedule_opt_state, nothing

        turn = state.step % schedule_learning.update_every == 0
        return jax.lax.cond(turn, update, keep, state, x0, cond, key)

    # --- the training step ---

    required = REQUIRED | (REQUIRED_OF_SCHEDULE if learns else {})
    seen_by_times = ("log_snr", "eps_error") if times.by_level else ("u", "loss")

    def step(
        state: TrainState, batch: Batch, sharding: BatchSharding
    ) -> tuple[TrainState, Metrics]:
        keys = step_keys(jax.random.fold_in(state.key, state.step))
        cond = conditions_of_step(batch, keys["label"], sharding)
        loss, grads, each = loss_and_gradient(state, batch["x"], cond, keys, sharding)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        own, schedule_opt_state, schedule_metrics = maybe_update_schedule(
            state, batch["x"], cond, keys["schedule"], sharding
        )
        timing = times.along(state.time_sampler_state, effective(state.schedule))
        worst = jnp.argmax(jnp.nan_to_num(each["loss"], nan=jnp.inf))
        metrics = {
            "loss": loss,
            "loss_variance": jnp.var(each["weighted"]),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
            "update_size": base.update_size(updates, state.params),
            "worst_log_snr": each["log_snr"][worst],
            **schedule_metrics,
        }
        state = base.advance(
            state,
            metrics,
            required,
            params=params,
            ema_params=base.moving_average(state.ema_params, params, ema_decay, state.step),
            opt_state=opt_state,
            schedule=own,
            schedule_opt_state=schedule_opt_state,
            time_sampler_state=times.update(timing, *(each[name] for name in seen_by_times)),
        )
        return state, metrics

    def diagnose(metrics: Mapping[str, float]) -> tuple[str, str | None]:
        log_snr = metrics.get("worst_log_snr", math.nan)
        # A learned schedule has finite ends: one that gives something else is what went wrong.
        at_fault = "schedule_learning" if learns and not math.isfinite(log_snr) else None
        return f"where the worst example is at log-SNR {log_snr:.3g}", at_fault

    # --- samples ---

    def denoiser(
        state: TrainState,
        cond: Cond,
        schedule: AnySchedule | None = None,
        with_variance: bool = False,
        guidance_scale: jax.Array | float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
    ) -> tuple[Predict, AnySchedule]:
        """The averaged network under `cond`, guided where there is a scale; its schedule.

        `schedule`: to sample along, None for the run's own. `with_variance`: a network that has
        learned the reverse variance gives that too.
        """
        mean_only = objective.learned_variance and not with_variance

        def under(cond: Cond) -> Predict:
            return predictor(
                network, all_params(state, state.ema_params), cond, mean_only=mean_only
            )

        predict = under(cond)
        if guidance_scale is not None:
            predict = samplers.guidance.classifier_free(
                lambda x, log_snr, cond: under(cond)(x, log_snr),
                cond,
                conditioning.null_of(conditions, cond),
                guidance_scale,
                guidance_interval,
                guidance_rescale,
            )
        return predict, effective(state.schedule) if schedule is None else schedule

    def edit(
        state: TrainState,
        keys: jax.Array,
        cond: Cond,
        operation: Callable,
        given: tuple[jax.Array, ...] = (),
        **options: Any,
    ) -> Any:
        options = {**sampling, **options, "prediction": objective.prediction}
        asked = {name: options.pop(name) for name in DENOISER_OPTIONS if name in options}
        predict, along = denoiser(state, cond, **asked)
        return operation(keys, predict, along, (len(keys), *data.shape), *given, **options)

    def sample(state: TrainState, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        return edit(state, keys, cond, samplers.sample, **options)

    def preview(state: TrainState, keys: jax.Array, batch: Batch) -> jax.Array:
        return sample(state, keys, conditioning.conditions_of(conditions, batch))

    def curves(state: TrainState) -> dict[str, dict[str, list]]:
        density = times.curve(state.time_sampler_state)
        return diffusion_measures.schedule_curve(state) | (
            {"training_times": density} if density else {}
        )

    def averaged(state: TrainState, batch: Batch) -> Predict:
        cond = conditioning.conditions_of(conditions, batch)
        params, mean_only = all_params(state, state.ema_params), objective.learned_variance
        return predictor(network, params, cond, mean_only=mean_only)

    measures = diffusion_measures.Measures(
        averaged, lambda state: effective(state.schedule), objective.prediction, data.levels,
        evaluation,
    )  # fmt: skip
    return Method(
        init=init,
        step=step,
        sample=sample,
        measures=measures.measures,
        compared=measures.compared,
        required_finite=required,
        preview=preview,
        gradient=gradient,
        edit=edit,
        curves=curves,
        profiles={"loss_by_log_snr": measures.loss_by_log_snr},
        diagnose=diagnose,
        diagnostics=("worst_log_snr", "update_size", "schedule_updated", "schedule_update_size"),
        flags={"schedule_": "schedule_updated"},
        batch_factors={
            "config.training.grad_accumulation": grad_accumulation,
            "the halves of a batch between which a learned schedule's gradient is compared": (
                2 if is_learned else 1
            ),
        },
    )
