"""Consistency models: a network that goes to the clean end from any noise level in one call.

Song 2023 (consistency models), Song & Dhariwal 2023 (improved training), Geng 2024 (ECT: tuning a
trained diffusion model). In order: the consistency function, the method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffax import process
from diffax.data import DatasetInfo
from diffax.methods import few_steps
from diffax.methods.base import Batch, Method, Metrics
from diffax.methods.diffusion_measures import Settings
from diffax.methods.few_steps import Student, StudentState
from diffax.methods.teacher import Teacher
from diffax.models.conditioning import Cond, Condition
from diffax.process import AnySchedule
from diffax.time_sampling import TimeSampler

# How the loss between two levels is weighted, by their log-SNRs t (noisy) and r (clean), and by how
# far a change of the network's output at t moves f, |c_out|.
WEIGHTINGS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "output": lambda t, r, c_out: 1 / jnp.maximum(c_out, 1e-3),
    "gap": lambda t, r, c_out: 1 / jnp.maximum(jnp.exp(-t / 2) - jnp.exp(-r / 2), 1e-6),
    "angle": lambda t, r, c_out: 1 / jnp.maximum(_angle(t) - _angle(r), 1e-6),
    "none": lambda t, r, c_out: jnp.ones_like(t),
}
# c of the loss over sqrt(D), by the prediction, where none is given; see `consistency`.
HUBER = {"v": 0.00054, "flow": 0.00054, "x0": 1.0}


def _angle(log_snr: jax.Array) -> jax.Array:
    """arctan(sigma / alpha)."""
    return jnp.arctan(jnp.exp(-log_snr / 2))


def consistency(
    data: DatasetInfo,
    network: nn.Module,
    conditions: Mapping[str, Condition],
    schedule: Callable[[jax.Array], AnySchedule],
    schedule_steps: int,
    prediction: str,
    times: TimeSampler,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
    grad_accumulation: int,
    evaluation: Settings,
    sampling: Mapping[str, Any],
    teacher: Teacher | None = None,
    *,
    first_intervals: int = 8,
    last_intervals: int = 128,
    doubling_steps: int = 200,
    huber: float | None = None,
    weighting: str = "output",
    distill: bool = False,
    solver: str = "heun",
) -> Method:
    """A consistency model f(x, l), l the log-SNR: where the probability-flow ODE that passes x at l
    comes out at the clean end l_e of the schedule.

    f is the DDIM step from l to l_e by the network's own prediction:

        f(x, l) = alpha_e x0(x, l) + sigma_e eps(x, l),    x = alpha x0 + sigma eps.

    For v = alpha eps - sigma x0 it is c_skip x + c_out v with c_skip = alpha alpha_e + sigma
    sigma_e and c_out = sigma_e alpha - alpha_e sigma: at l = l_e they are 1 and 0, so that
    f(x, l_e) = x whatever the network says, and a network of a diffusion run begins as its own
    sampler of one step. As l_e goes to infinity these are the scalings of Karras 2022 for data of
    deviation 1.

    The loss of an example, at two neighbouring levels t (noisy) and r (clean) with one noise:

        w (sqrt(|f(x_t, t) - sg f(x_r, r)|^2 + c^2) - c),    c = huber sqrt(D),

    sg without gradient, by the parameters as they are (no moving average: Song & Dhariwal 2023,
    section 3.2). `huber` is their 0.00054 of v and the flow, and 1 of x0 for the reason below. t is
    at a time u of the schedule, drawn by `times`, r at max(u - 1 / N, 0). N doubles every
    `doubling_steps` from `first_intervals` to `last_intervals`. With `distill`, x_r is where the
    teacher's ODE goes from x_t in one step, in place of the example's own noise.

    From a teacher's weights this is consistency tuning; without a teacher, training from nothing.

    Where it differs from the published code: openai/consistency_models_cifar10 has the levels of
    Karras's grid in the variance-exploding process and shifts sigma in c_skip and c_out to meet the
    boundary; here the levels are any schedule's, equal steps of its time, and the boundary is met
    by the step's own angle. Its step of the solver is Euler's or Heun's in sigma; here DDIM (the
    same as Euler's) or Heun's rule along the straight path, whose velocity eps - x0 is bounded at
    both ends. Song & Dhariwal draw discrete levels; Geng (locuslab/ect) draws t continuously, as
    here, but lets r / t go to 1 where here u - r falls.

    The weight is 1 / |c_out| ("output"), with f = c_skip x + c_out times the network's output. The
    loss is nearly a distance, whose gradient by f has length 1 whatever its size, and c_out of that
    reaches the network. Of v or the flow c_out is about sigma. With a weight that is even over the
    levels the clean ones are then drowned in the noise of the others' gradients, and f stays the
    identity there. Since a level learns from the next cleaner one, the noise that is not removed
    there is in every sample. The published weight, 1 / (t - r) in sigma / alpha ("gap"), rises as
    1 / sigma too on a grid where t - r does as sigma. On one like cosine's it is nearly even, as is
    the same in the angle arctan(sigma / alpha) ("angle"). On 25 modes in the plane
    (experiments/few_steps.py) the sliced Wasserstein distance of samples of one, two and four calls
    was 0.20, 0.23 and 0.30 with "angle", and 0.066, 0.064 and 0.064 with "output".

    A network that predicts x0 needs a larger c. Except at the cleanest levels f is its output, so
    that a change of the output that is the same at all levels does not change the loss between two
    of them. Only the clean end, where f is the data, holds it in place, in one of N examples. With
    c near 0 an example's gradient has length 1 however small its error, and the noise of the other
    examples outweighs that end: the training diverges. With c = sqrt(D) the loss is nearly a
    square, whose gradient falls with the error, and the training is stable. (Digits with an MLP,
    1,000 steps from a teacher whose Fréchet distance is 11.5 in 100 steps: with huber=0.00054 it
    diverged; with 0.03, 0.1, 0.3 and 1 the distance in one call was 28, 23, 17 and 13. With v
    c_out falls with sigma, so that such a change is an error at every level: 0.00054, 0.1 and 1
    gave 18, 24 and 23.)

    The step's metrics: see `few_steps.method`; "intervals" is N.

    Args:
      data, network, conditions, optimizer, learning_rate, ema_decay, grad_accumulation: as of
        `diffusion`.
      schedule: key -> the schedule; a learned one is the teacher's.
      schedule_steps: T, where the schedule acts in discrete time; 0 for its own time.
      prediction: "v", "x0" or "flow".
      times: the density of u.
      evaluation: how often each example is seen when the loss is measured.
      sampling: default options of `samplers.sample`; its sampler is "consistency".
      teacher: whose weights are the student's first ones.
      first_intervals: N of the first steps.
      last_intervals: N at most.
      doubling_steps: training steps until N doubles.
      huber: c over sqrt(D), D the numbers of an example; near 0 the loss is the distance itself,
        far above the error its square. None: 0.00054, of x0 1.
      weighting: output, gap, angle or none.
      distill: learn from steps of the teacher.
      solver: of the teacher's steps, heun (two calls) or ddim (one).

    Raises:
      ValueError: parts or options that don't fit, in a sentence.
    """
    student = Student(
        data, network, conditions, schedule, schedule_steps, prediction, optimizer, learning_rate,
        ema_decay, grad_accumulation, sampling, evaluation.repeats, teacher,
    )  # fmt: skip
    few_steps.check("consistency", student, ("v", "x0", "flow"), ("consistency",))
    few_steps.times_only("consistency", times)
    if not 1 <= first_intervals <= last_intervals:
        raise ValueError(
            f"method.first_intervals={first_intervals} and method.last_intervals={last_intervals}:"
            " the first is at least 1, and the last no less"
        )
    if doubling_steps < 1:
        raise ValueError(f"method.doubling_steps is {doubling_steps}; it must be at least 1")
    huber = HUBER[prediction] if huber is None else huber
    if not 0 < huber < 1e3:
        raise ValueError(f"method.huber is {huber}; it must be above 0 and below 1000")
    for name, value, allowed in (
        ("weighting", weighting, tuple(WEIGHTINGS)),
        ("solver", solver, ("heun", "ddim")),
    ):
        if value not in allowed:
            raise ValueError(f"method.{name} is {value!r}; it must be {' or '.join(allowed)}")
    if distill and teacher is None:
        raise ValueError(
            "method.distill=True needs a teacher: set method.teacher to the workdir of a trained"
            " diffusion run"
        )
    c = huber * math.prod(data.shape) ** 0.5
    weigh = WEIGHTINGS[weighting]

    def intervals(step: jax.Array) -> jax.Array:
        doublings = jnp.minimum(step // doubling_steps, 30)
        return jnp.minimum(first_intervals * 2.0**doublings, last_intervals)

    def function(
        params: Any, state: StudentState, x: jax.Array, log_snr: jax.Array, cond: Cond, dropout: Any
    ) -> jax.Array:
        parts = student.denoised(params, x, log_snr, cond, dropout)
        end = student.log_snr(state, jnp.zeros(()))
        return few_steps.ddim(*parts, end)

    def moved(state: StudentState, log_snr: jax.Array) -> jax.Array:
        """|c_out|, (batch,): f is linear in the network's output."""
        nothing = jnp.zeros((len(log_snr), 1))
        parts = student.parts(nothing + 1, nothing, log_snr)
        return jnp.abs(few_steps.ddim(*parts, student.log_snr(state, jnp.zeros(()))))[:, 0]

    def draw(state: StudentState, key: jax.Array, num: int) -> Batch:
        return {"u": times.sample(times.init(), key, num)[0]}

    def taught(state: StudentState, x: jax.Array, t: jax.Array, r: jax.Array, cond: Cond):
        """Where the teacher's ODE goes from x at t."""
        params = jax.tree.map(lambda leaf: leaf[0], state.teachers)
        parts = student.denoised(params, x, t, cond)
        there = few_steps.ddim(*parts, r)
        if solver == "ddim":
            return there
        x0, eps = student.denoised(params, there, r, cond)
        return few_steps.straight(x, t, r, 0.5 * (parts[1] - parts[0] + eps - x0))

    def losses(params: Any, state: StudentState, rows: Batch, dropout: Any) -> Batch:
        u, x0, noise, cond = rows["u"], rows["x0"], rows["noise"], rows["cond"]
        t = student.log_snr(state, u)
        r = student.log_snr(state, jnp.maximum(u - 1 / intervals(state.step), 0.0))
        x_t = process.q_sample_at(x0, t, noise)
        x_r = taught(state, x_t, t, r, cond) if distill else process.q_sample_at(x0, r, noise)
        # The same dropout in both.
        aim = jax.lax.stop_gradient(function(params, state, x_r, r, cond, dropout))
        away = function(params, state, x_t, t, cond, dropout) - aim
        weight = weigh(t, r, moved(state, t))
        return {"loss": weight * (jnp.sqrt(few_steps.gap(away) + c**2) - c)}

    def sample(state: StudentState, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        def predict(x: jax.Array, log_snr: jax.Array) -> jax.Array:
            return function(state.ema_params, state, x, log_snr, cond, None)

        return few_steps.sampled(student, state, keys, predict, "x0", options)

    def logged(step: jax.Array) -> Metrics:
        return {"intervals": intervals(step)}

    teachers = 1 if distill else 0
    return few_steps.method(
        "consistency", student, draw, losses, sample, num_teachers=teachers, logged=logged
    )
