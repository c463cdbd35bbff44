"""What the methods of few steps share: a network that descends a loss between noise levels.

`progressive`, `consistency` and `mean_flow` say what is drawn for an example and what its loss is.
Here stand the state, the start from a teacher's parameters, the training step and the measure of
the loss on held-out examples. All work along any schedule, between log-SNR 20 and -20.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffax import likelihood, process, samplers, schedules
from diffax.data import DatasetInfo
from diffax.distributed.batch import BatchSharding, over_micro_batches
from diffax.methods import base
from diffax.methods.base import Arrays, Batch, Measure, Method, Metrics
from diffax.methods.diffusion import DENOISER_OPTIONS
from diffax.methods.teacher import Teacher
from diffax.metric import Metric
from diffax.models import conditioning
from diffax.models.conditioning import Cond, Condition
from diffax.process import AnySchedule, expand_to
from diffax.schedules import alpha_of, sigma_of
from diffax.time_sampling import TimeSampler, times_of

LIMIT = 20.0  # of the log-SNR, as `samplers.sample` has it by default


class StudentState(flax.struct.PyTreeNode):
    """All that changes in training."""

    step: jax.Array  # int32 (): updates so far
    params: Any  # of the network
    ema_params: Any  # their exponential moving average, by which one samples and evaluates
    opt_state: Any
    schedule: AnySchedule  # constant
    teachers: Any  # parameters that are learned from, each with a first axis; () for none
    key: jax.Array  # PRNG key; constant: the keys of a step are folded from it and the step


class Student(NamedTuple):
    """What a config builds for these methods; see `methods.PARTS`."""

    data: DatasetInfo
    network: nn.Module
    conditions: Mapping[str, Condition]
    schedule: Callable[[jax.Array], AnySchedule]
    schedule_steps: int
    prediction: str
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    ema_decay: float
    grad_accumulation: int
    sampling: Mapping[str, Any]
    repeats: int  # how often each example is seen when the loss is measured
    teacher: Teacher | None = None
    num_levels: int = 1  # that the network is conditioned on
    guidance_max: float = 1.0  # the largest scale of guidance that it is taught; 1: none

    # --- the network ---

    def first_params(self, key: jax.Array) -> Any:
        """The teacher's, as far as it has them, or else new ones."""
        given = None if self.teacher is None else self.teacher.params
        if given is not None and self.num_levels == 1:
            return jax.tree.map(jnp.asarray, given)
        levels = jnp.zeros((1,) if self.num_levels == 1 else (1, self.num_levels))
        own = self.network.init(key, jnp.zeros((1, *self.data.shape)), levels)["params"]
        if given is None:
            return own
        both = (flax.traverse_util.flatten_dict(params) for params in (own, given))
        params = flax.traverse_util.unflatten_dict(functools.reduce(operator.or_, both))
        return jax.tree.map(jnp.asarray, params)

    def call(
        self, params: Any, x: jax.Array, level: jax.Array, cond: Cond, dropout: Any = None
    ) -> jax.Array:
        """The network's output; `dropout`: the key by which it acts, None for not at all."""
        options = dict(train=False) if dropout is None else dict(train=True)
        rngs = None if dropout is None else {"dropout": dropout}
        return conditioning.apply(self.network, params, x, level, cond, rngs=rngs, **options)

    def denoised(
        self, params: Any, x: jax.Array, log_snr: jax.Array, cond: Cond, dropout: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """x0 and eps by the network's prediction, x = alpha x0 + sigma eps."""
        return self.parts(self.call(params, x, log_snr, cond, dropout), x, log_snr)

    def parts(
        self, out: jax.Array, x: jax.Array, log_snr: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """x0 and eps of what the network says, by its prediction."""
        scales = alpha_of(log_snr), sigma_of(log_snr)
        x0, eps = (process.convert(out, x, *scales, self.prediction, t) for t in ("x0", "eps"))
        return x0, eps

    # --- the schedule ---

    def along(self, state: StudentState) -> AnySchedule:
        """The schedule as it acts, in discrete time if that is so."""
        return schedules.effective(state.schedule, self.schedule_steps)

    def sampled_along(self, state: StudentState, asked: Mapping[str, Any]) -> AnySchedule:
        """The schedule that is asked for, or else the state's own."""
        return self.along(state) if asked["schedule"] is None else asked["schedule"]

    def log_snr(self, state: StudentState, u: jax.Array) -> jax.Array:
        """The log-SNR at u in [0, 1], from the clean to the noisy end, within the limit."""
        schedule = self.along(state)
        return jnp.clip(schedule.log_snr(times_of(schedule, u)), -LIMIT, LIMIT)


def check(
    name: str, student: Student, predictions: tuple[str, ...], solvers: tuple[str, ...]
) -> None:
    """Raises ValueError, in a sentence, for what none of these methods can be built of.

    Args:
      name: of the method.
      predictions: that the network may be trained for.
      solvers: by which the method can be sampled.
    """
    network, teacher, sampling = student.network, student.teacher, student.sampling
    base.require_denoiser(name, network)
    if getattr(network, "conditioning", "log_snr") != "log_snr":
        raise ValueError(
            f"method {name!r} needs a network that is conditioned on the log-SNR: set"
            " conditioning='log_snr' of the model"
        )
    if getattr(network, "learned_variance", False):
        raise ValueError(f"method {name!r} has no variance to learn: set learned_variance=False")
    if student.prediction not in predictions:
        raise ValueError(
            f"objective.prediction={student.prediction!r} with method {name!r}: it must be"
            f" {' or '.join(map(repr, predictions))}, which give x0 at the noisy end too"
        )
    if sampling["sampler"] not in solvers or sampling.get("eta", 0):
        own = " or ".join(map(repr, solvers))
        raise ValueError(
            f"sampling.sampler={sampling['sampler']!r} with method {name!r}: it is sampled by"
            f" {own}, without further noise"
        )
    _check_guidance(name, student)
    first = jax.eval_shape(student.schedule, jax.random.key(0))
    if schedules.is_learned(first) and teacher is None:
        raise ValueError(
            f"a learned schedule with method {name!r}, which learns none: name a fixed one, or a"
            " teacher that has learned it"
        )
    if teacher is not None and teacher.params is not None:
        alone = student._replace(teacher=None, num_levels=1)
        own = jax.eval_shape(alone.first_params, jax.random.key(0))
        teacher.check_fits(student.prediction, own, first, "teacher")


def _check_guidance(name: str, student: Student) -> None:
    sampling, largest = student.sampling, student.guidance_max
    scale = sampling["guidance_scale"]
    if scale is None:
        return
    if largest == 1:
        raise ValueError(
            f"sampling.guidance_scale with method {name!r}: it was not taught with guidance; set it"
            " to 1"
        )
    if not 1 <= scale <= largest:
        raise ValueError(
            f"sampling.guidance_scale={scale:g} with method {name!r}: the student is taught scales"
            f" from 1 to {largest:g}, by method.guidance_max"
        )
    for option in ("guidance_interval", "guidance_rescale"):
        if sampling[option]:
            raise ValueError(
                f"sampling.{option} with method {name!r}: the student is taught guidance without"
                " it; leave it out"
            )


def ddim(x0: jax.Array, eps: jax.Array, log_snr: jax.Array) -> jax.Array:
    """alpha x0 + sigma eps at the log-SNRs, (batch,): where a DDIM step of these parts goes."""
    return process.q_sample_at(x0, log_snr, eps)


def flow_time(log_snr: jax.Array) -> jax.Array:
    """tau = sigma / (alpha + sigma): the time of the straight path z = (1 - tau) x0 + tau eps."""
    return jax.nn.sigmoid(-log_snr / 2)


def path_scale(log_snr: jax.Array) -> jax.Array:
    """alpha + sigma: x = (alpha + sigma) z is the same point in the variance-preserving process."""
    return alpha_of(log_snr) + sigma_of(log_snr)


def straight(x: jax.Array, t: jax.Array, r: jax.Array, velocity: jax.Array) -> jax.Array:
    """x at log-SNR t gone to log-SNR r with a velocity dz / dtau on the straight path.

    With the velocity eps - x0 at t it is the DDIM step.
    """
    z = x / expand_to(path_scale(t), x)
    z = z - expand_to(flow_time(t) - flow_time(r), x) * velocity
    return expand_to(path_scale(r), x) * z


def sampled(
    student: Student,
    state: StudentState,
    keys: jax.Array,
    predict: process.Predict,
    prediction: str,
    options: Mapping[str, Any],
) -> jax.Array:
    """`samplers.sample` of a predictor by log-SNR, by the config's options and those of a call."""
    asked = {**student.sampling, **options, "prediction": prediction}
    along = student.sampled_along(state, asked)
    asked = {name: value for name, value in asked.items() if name not in DENOISER_OPTIONS}
    shape = (len(keys), *student.data.shape)
    return samplers.sample(keys, process.by_log_snr(predict), along, shape, **asked)


# --- the method -----------------------------------------------------------------------------------


def metric(name: str) -> Metric:
    """The held-out loss of a method, by a key of its own, so that no report sets the losses of two
    methods beside each other."""
    return Metric(
        f"{name}_loss",
        f"Loss of {name}",
        digits=4,
        meaning=f"The loss that method {name} descends, on held-out examples by the averaged"
        " parameters. It compares runs with the same options of the method.",
        entry="loss",
    )


REQUIRED = {"loss": base.LOSS, "grad_norm": base.GRAD_NORM, "update_size": base.UPDATE_SIZE}

# (params, state, rows, dropout) -> {"loss": (batch,)}, and "error" where the loss is weighted by
# its own size and another number is to be measured; rows are "x0", "noise", "cond" and what is
# drawn.
Losses = Callable[[Any, StudentState, Batch, Any], dict[str, jax.Array]]


def method(
    name: str,
    student: Student,
    draw: Callable[[StudentState, jax.Array, int], Batch],
    losses: Losses,
    sample: Callable[..., jax.Array],
    num_teachers: int = 0,
    rate: Callable[[jax.Array], jax.Array] = lambda step: jnp.ones(()),
    after: Callable[[StudentState], StudentState] = lambda state: state,
    logged: Callable[[jax.Array], Metrics] = lambda step: {},
    **fields: Any,
) -> Method:
    """The method that descends the mean of `losses`.

    The step's metrics: "loss", and "error" if there is one; "loss_variance", over the batch;
    "grad_norm", before clipping; "learning_rate"; "update_size"; and what `logged` adds.

    Args:
      name: the method's.
      draw: (state, key, num) -> the random numbers of so many examples, beside the noise.
      losses: the loss of each example.
      sample: as `Method.sample`.
      num_teachers: parameters that are kept to learn from; the first are those of the start.
      rate: step -> factor on the updates.
      after: what is done to a state after a step.
      logged: step -> metrics.
      fields: others of `Method`.
    """
    conditions, shape = student.conditions, student.data.shape

    def init(key: jax.Array) -> StudentState:
        init_key, schedule_key, run_key = jax.random.split(key, 3)
        params = student.first_params(init_key)
        own = student.schedule(schedule_key)
        own = own if student.teacher is None else student.teacher.schedule_or(own)
        teachers: Any = ()
        if num_teachers:
            teachers = jax.tree.map(
                lambda leaf: jnp.zeros((num_teachers, *leaf.shape), leaf.dtype).at[0].set(leaf),
                params,
            )
        return StudentState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=params,
            opt_state=student.optimizer.init(params),
            schedule=jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), own),
            teachers=teachers,
            key=run_key,
        )

    def drawn(state: StudentState, key: jax.Array, num: int) -> Batch:
        noise_key, own_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (num, *shape))
        return {"noise": noise, **draw(state, own_key, num)}

    def loss_and_gradient(
        state: StudentState, batch: Batch, key: jax.Array, sharding: BatchSharding
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """The mean over the global batch, its gradient, and the losses of each example."""
        drop_key, dropout_key, draw_key = jax.random.split(key, 3)
        num = len(batch["x"]) * sharding.size
        masks = conditioning.dropped(conditions, drop_key, num)
        local = sharding.local({"masks": masks, **drawn(state, draw_key, num)})
        cond = conditioning.conditions_of(conditions, batch)
        cond = conditioning.drop(conditions, cond, local.pop("masks"))

        def loss_of(params: Any, rows: Batch, dropout: jax.Array) -> tuple[jax.Array, Batch]:
            each = losses(params, state, rows, dropout)
            return jnp.mean(each["loss"]), each

        def of_rows(rows: Batch, number: jax.Array | int) -> tuple[Any, Batch]:
            part = sharding.index() * student.grad_accumulation + number
            dropout = jax.random.fold_in(dropout_key, part)
            value = jax.value_and_grad(loss_of, has_aux=True)
            (loss, each), gradient = value(state.params, rows, dropout)
            return (loss, gradient), each

        rows = {"x0": batch["x"], "cond": cond, **local}
        means, each = over_micro_batches(of_rows, rows, student.grad_accumulation)
        loss, gradient = sharding.mean(means)
        return loss, gradient, sharding.gather(each)

    def gradient(state: StudentState, batch: Batch, key: jax.Array, sharding: BatchSharding) -> Any:
        return loss_and_gradient(state, batch, key, sharding)[1]

    def step(
        state: StudentState, batch: Batch, sharding: BatchSharding
    ) -> tuple[StudentState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        loss, grads, each = loss_and_gradient(state, batch, key, sharding)
        updates, opt_state = student.optimizer.update(grads, state.opt_state, state.params)
        factor = rate(state.step)
        updates = optax.tree.scale(factor, updates)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **{name: jnp.mean(values) for name, values in each.items()},
            "loss": loss,
            "loss_variance": jnp.var(each["loss"]),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": student.learning_rate(state.step) * factor,
            "update_size": base.update_size(updates, state.params),
            **logged(state.step),
        }
        average = base.moving_average(state.ema_params, params, student.ema_decay, state.step)
        updated = dict(params=params, ema_params=average, opt_state=opt_state)
        return after(base.advance(state, metrics, REQUIRED, **updated)), metrics

    def held_out(state: StudentState, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        keys = likelihood.keys_of(key, batch["number"])
        one = jax.vmap(lambda key: jax.tree.map(lambda rows: rows[0], drawn(state, key, 1)))
        cond = conditioning.conditions_of(conditions, batch)
        rows = {"x0": batch["x"], "cond": cond, **one(keys)}
        found = losses(state.ema_params, state, rows, None)
        return {"loss": found.get("error", found["loss"])}

    def preview(state: StudentState, keys: jax.Array, batch: Batch) -> jax.Array:
        return sample(state, keys, conditioning.conditions_of(conditions, batch))

    measure = Measure(held_out, _summary, student.repeats, _logged, metrics=(metric(name),))
    return Method(
        init=init,
        step=step,
        sample=sample,
        measures={"loss": measure},
        required_finite=REQUIRED,
        gradient=gradient,
        diagnostics=("update_size",),
        batch_factors={"config.training.grad_accumulation": student.grad_accumulation},
        **{"preview": preview, **fields},
    )


def _summary(found: Arrays) -> dict[str, Any]:
    per_example = found["loss"].mean(axis=0)
    return {
        "loss": float(per_example.mean()),
        **base.standard_error(per_example),
        "num_examples": len(per_example),
        "repeats": len(found["loss"]),
    }


def _logged(found: Arrays) -> dict[str, float]:
    return {"loss": float(np.mean(found["loss"]))}


def gap(loss: jax.Array) -> jax.Array:
    """The squared distances of rows, (batch, ...) -> (batch,): sums over all but the first axis."""
    return jnp.sum(loss**2, range(1, loss.ndim))


def times_only(name: str, times: TimeSampler) -> None:
    """Raises ValueError for a density of times that follows the losses, which these don't feed."""
    if jax.tree.leaves(times.init()):
        raise ValueError(
            f"objective.time_sampling follows the losses of a diffusion model, and method {name!r}"
            " has others: take 'uniform', 'stratified' or 'logit_normal'"
        )
