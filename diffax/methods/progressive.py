"""Progressive distillation: a student makes in one step what its teacher makes in two.

Salimans & Ho 2022. In order: the stages, the target, the method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffax import process, samplers
from diffax.data import DatasetInfo
from diffax.methods import few_steps
from diffax.methods.base import Batch, Method, Metrics
from diffax.methods.diffusion_measures import Settings
from diffax.methods.few_steps import Student, StudentState
from diffax.methods.teacher import Teacher
from diffax.models import conditioning
from diffax.models.conditioning import Cond, Condition
from diffax.process import AnySchedule, expand_to
from diffax.samplers import Level
from diffax.schedules import alpha_of, sigma_of

REACH = 10.0  # of the second level of a network that takes the scale of guidance: 10 to -10


def target(x: jax.Array, t: jax.Array, x_s: jax.Array, s: jax.Array) -> jax.Array:
    """The x0 with which one DDIM step from x at log-SNR t comes out at x_s at log-SNR s.

    (x_s - k x) / (alpha_s - k alpha_t) with k = sigma_s / sigma_t (Salimans & Ho 2022, algorithm
    2). At s = inf it is x_s. With a the angle arctan(sigma / alpha) it is
    (sin(a_t) x_s - sin(a_s) x) / sin(a_t - a_s).
    """
    k = sigma_of(s) / sigma_of(t)
    return (x_s - expand_to(k, x) * x) / expand_to(alpha_of(s) - k * alpha_of(t), x)


def stages(teacher_steps: int, last_steps: int) -> tuple[int, ...]:
    """The steps that a student makes in each stage: teacher_steps / 2, / 4, ... down to last_steps.

    Raises:
      ValueError: no halving leads from one to the other.
    """
    found, steps = [], teacher_steps
    while steps > last_steps >= 1 and steps % 2 == 0:
        steps //= 2
        found.append(steps)
    if steps != last_steps or not found:
        raise ValueError(
            f"method.teacher_steps={teacher_steps} and method.last_steps={last_steps}: the"
            " teacher's steps must be the student's last ones times 2, 4, 8 or another power of 2"
        )
    return tuple(found)


def progressive(
    data: DatasetInfo,
    network: nn.Module,
    conditions: Mapping[str, Condition],
    schedule: Callable[[jax.Array], AnySchedule],
    schedule_steps: int,
    prediction: str,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    num_steps: int,
    ema_decay: float,
    grad_accumulation: int,
    evaluation: Settings,
    sampling: Mapping[str, Any],
    teacher: Teacher | None = None,
    *,
    teacher_steps: int = 16,
    last_steps: int = 1,
    stage_steps: int = 1000,
    guidance_max: float = 1.0,
) -> Method:
    """Progressive distillation, all stages in one run.

    In a stage the student has N steps and its teacher 2 N, of one grid: equal steps of the
    schedule's time from the noisy end, the last one to x0. For an example at a level t of the
    student's, the teacher makes two DDIM steps, from x_t to x_m at the level between and to x_s at
    the student's next level s. The loss is

        max(SNR_t, 1) |x0(x_t, t) - x0~|^2 / D,

    x0~ the x0 with which a single step from x_t comes out at x_s (`target`), x0(x_t, t) by the
    student's own prediction, v or x0, D the numbers of an example.

    The first stage has the run in `method.teacher` as its teacher, each later one the averaged
    parameters with which the one before ended, and the student begins from these. Within a stage
    the learning rate falls linearly to 0. Stage k lasts from step k * stage_steps on. The
    parameters of the stages that have ended stay in the state, so that it is sampled at each number
    of steps that it has been taught, by the parameters of that stage.

    Where it differs from the authors' code (google-research/diffusion_distillation): there every
    stage is a run of its own with a new optimiser, and the levels are those of cosine's schedule
    from log-SNR 20 to -20; here the optimiser goes on from stage to stage, and the levels are any
    schedule's. Both take x0 of the second step itself as the target at the last level.

    With guidance_max above 1 the teacher is guided, and the student is conditioned on the scale w
    (Meng 2023): w is drawn uniformly from 1 to guidance_max for each example, the teacher of the
    first stage gives null + w (cond - null), and the network is given
    (w - 1) / (guidance_max - 1), as a level from 10 to -10, as a second noise level. At first it
    has no effect. One call is then one of both of guidance's, at any
    `sampling.guidance_scale` of these. Meng 2023 first distills the guidance alone, at all levels,
    and the steps afterwards; here the first stage does both.

    The step's metrics: see `few_steps.method`; "student_steps" is N.

    Args:
      data, network, conditions, optimizer, learning_rate, ema_decay, grad_accumulation: as of
        `diffusion`.
      schedule: key -> the schedule; a learned one is the teacher's.
      schedule_steps: T, where the schedule acts in discrete time; 0 for its own time.
      prediction: "v", "x0" or "flow".
      num_steps: of the training, for a check alone.
      evaluation: how often each example is seen when the loss is measured.
      sampling: default options of `samplers.sample`.
      teacher: needed.
      teacher_steps: DDIM steps of the teacher that the first stage halves.
      last_steps: of the student in the last stage.
      stage_steps: training steps of each stage.
      guidance_max: the largest scale of guidance that is taught; 1: the teacher is not guided.

    Raises:
      ValueError: parts or options that don't fit, in a sentence.
    """
    student = Student(
        data, network, conditions, schedule, schedule_steps, prediction, optimizer, learning_rate,
        ema_decay, grad_accumulation, sampling, evaluation.repeats, teacher,
        num_levels=2 if guidance_max > 1 else 1, guidance_max=guidance_max,
    )  # fmt: skip
    if not 1 <= guidance_max < math.inf:
        raise ValueError(
            f"method.guidance_max is {guidance_max}; it must be a number of at least 1"
        )
    if guidance_max > 1 and not any(condition.dropout for condition in conditions.values()):
        raise ValueError(
            f"method.guidance_max={guidance_max:g} needs a condition that the teacher's training"
            " has dropped: set model.class_conditional and model.label_dropout to the teacher's"
        )
    if teacher is None:
        raise ValueError(
            "method 'progressive' needs a teacher: set method.teacher to the workdir of a trained"
            " diffusion run"
        )
    few_steps.check("progressive", student, ("v", "x0", "flow"), ("ddim",))
    taught = stages(teacher_steps, last_steps)
    if stage_steps < 1:
        raise ValueError(f"method.stage_steps is {stage_steps}; it must be at least 1")
    if sampling["num_steps"] not in taught:
        raise ValueError(
            f"sampling.num_steps={sampling['num_steps']} with method 'progressive': the student is"
            f" taught {' and '.join(map(str, taught))} steps; with others it was never trained"
        )
    for name in ("grid", "schedule"):
        if sampling[name] not in (None, "uniform", "trailing"):
            raise ValueError(
                f"sampling.{name} with method 'progressive': the student is taught equal steps of"
                " its own schedule's time; leave it None"
            )
    asked = taught.index(sampling["num_steps"])
    if num_steps <= asked * stage_steps:
        raise ValueError(
            f"training.num_steps is {num_steps}, and sampling.num_steps={taught[asked]} is learned"
            f" from step {asked * stage_steps} on, with method.stage_steps={stage_steps}: raise the"
            f" first, to {len(taught) * stage_steps} for all stages, or lower the last"
        )

    def stage_of(step: jax.Array) -> jax.Array:
        return jnp.minimum(step // stage_steps, len(taught) - 1)

    def levels(state: StudentState) -> Level:
        """Those of the first stage's teacher and the clean end, (teacher_steps + 1,)."""
        visited = samplers.visited_levels(
            student.along(state), teacher_steps, "uniform", prediction
        )
        return jnp.append(visited.log_snr, jnp.inf)

    def draw(state: StudentState, key: jax.Array, num: int) -> Batch:
        # Every level of the student equally often, in random order.
        steps = jnp.asarray(taught)[stage_of(state.step)]
        offset_key, order_key = jax.random.split(key)
        u = jnp.mod(jax.random.uniform(offset_key) + jnp.arange(num) / num, 1.0)
        u = jax.random.permutation(order_key, u)
        drawn = {"number": jnp.minimum(jnp.floor(u * steps), steps - 1).astype(jnp.int32)}
        if guidance_max == 1:
            return drawn
        scale_key = jax.random.fold_in(key, 1)
        return drawn | {
            "scale": jax.random.uniform(scale_key, (num,), minval=1, maxval=guidance_max)
        }

    def told(log_snr: jax.Array, scale: jax.Array | float | None) -> jax.Array:
        """What the network is given: the log-SNR, and the scale where it is taught scales."""
        if guidance_max == 1:
            return log_snr
        share = (jnp.broadcast_to(scale, log_snr.shape) - 1) / (guidance_max - 1)
        return jnp.stack([log_snr, REACH - 2 * REACH * share], axis=-1)

    def losses(params: Any, state: StudentState, rows: Batch, dropout: Any) -> Batch:
        stage, visited = stage_of(state.step), levels(state)
        stride = teacher_steps // jnp.asarray(taught)[stage]
        at = rows["number"] * stride
        t, middle, s = visited[at], visited[at + stride // 2], visited[at + stride]
        x0, cond = rows["x0"], rows["cond"]
        x_t = process.q_sample_at(x0, t, rows["noise"])
        teacher_params = jax.tree.map(lambda leaf: leaf[stage], state.teachers)
        scale = rows.get("scale")

        def stepped(x: jax.Array, log_snr: jax.Array, after: jax.Array) -> jax.Array:
            """A DDIM step of the stage's teacher."""

            def said(cond: Cond) -> jax.Array:
                return student.call(teacher_params, x, told(log_snr, scale), cond)

            def guided() -> jax.Array:
                null = said(conditioning.null_of(conditions, cond))
                return null + expand_to(scale, x) * (said(cond) - null)

            # A stage's student says by itself what its guided teacher did.
            if scale is None:
                out = said(cond)
            else:
                out = jax.lax.cond(stage == 0, guided, lambda: said(cond))
            return few_steps.ddim(*student.parts(out, x, log_snr), after)

        x_s = stepped(stepped(x_t, t, middle), middle, s)
        aim = jax.lax.stop_gradient(target(x_t, t, x_s, s))
        out = student.call(params, x_t, told(t, scale), cond, dropout)
        found, _ = student.parts(out, x_t, t)
        weight = jnp.maximum(jnp.exp(t), 1.0) / math.prod(data.shape)
        return {"loss": weight * few_steps.gap(found - aim)}

    def after(state: StudentState) -> StudentState:
        """The next stage's beginning, where one has ended."""
        stage = state.step // stage_steps
        ends = (state.step % stage_steps == 0) & (stage < len(taught))
        learned = state.ema_params
        begun = state.replace(
            params=learned,
            teachers=jax.tree.map(
                lambda all, new: all.at[stage].set(new, mode="drop"), state.teachers, learned
            ),
        )
        return jax.tree.map(
            lambda new, old: old if new is old else jnp.where(ends, new, old), begun, state
        )

    def rate(step: jax.Array) -> jax.Array:
        return 1 - (step % stage_steps) / stage_steps

    def params_of(state: StudentState) -> Any:
        """Those of the stage whose number of steps is sampled with."""
        if asked == len(taught) - 1:
            return state.ema_params
        now = stage_of(state.step) == asked
        return jax.tree.map(
            lambda own, kept: jnp.where(now, own, kept[asked + 1]), state.ema_params, state.teachers
        )

    def sample(state: StudentState, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        params, scale = params_of(state), {**sampling, **options}["guidance_scale"]
        scale = 1.0 if scale is None else scale

        def predict(x: jax.Array, log_snr: jax.Array) -> jax.Array:
            return student.call(params, x, told(log_snr, scale), cond)

        return few_steps.sampled(student, state, keys, predict, prediction, options)

    def sampling_fault(state: StudentState) -> str:
        stage = int(stage_of(state.step))
        if asked <= stage:
            return ""
        return (
            f"sampling.num_steps={taught[asked]}: at step {int(state.step)} the student has been"
            f" taught {taught[stage]} steps at least; it learns {taught[asked]} from step"
            f" {asked * stage_steps} on"
        )

    def logged(step: jax.Array) -> Metrics:
        return {"student_steps": jnp.asarray(taught, jnp.float32)[stage_of(step)]}

    return few_steps.method(
        "progressive",
        student, draw, losses, sample, num_teachers=len(taught), rate=rate, after=after,
        logged=logged, sampling_fault=sampling_fault,
    )  # fmt: skip
