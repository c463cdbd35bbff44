"""Mean flow: a network that gives the average velocity between two noise levels.

Geng 2025 (Mean flows for one-step generative modeling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffax import samplers
from diffax.data import DatasetInfo
from diffax.methods import few_steps
from diffax.methods.base import Batch, Method
from diffax.methods.diffusion_measures import Settings
from diffax.methods.few_steps import Student, StudentState
from diffax.models.conditioning import Cond, Condition
from diffax.process import AnySchedule, expand_to
from diffax.time_sampling import TimeSampler

# The network's two levels run from 10 to -10 as tau goes from 0 to 1. The log-SNR itself would be
# infinite at the ends, and its derivative by tau, which the loss has, would be too.
REACH = 10.0


def mean_flow(
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
    *,
    instant_share: float = 0.75,
    adaptive_power: float = 1.0,
    adaptive_offset: float = 1e-3,
) -> Method:
    """The average velocity u(z, r, t) on the straight path z = (1 - t) x0 + t eps, r <= t:

        (t - r) u(z_t, r, t) = integral of v from r to t,    v = dz / dt = E[eps - x0 | z_t].

    Its derivative along the path gives the target of the loss, with one `jax.jvp`:

        u = v - (t - r) du/dt,    du/dt = v du/dz + du/dt at fixed z,

        loss = w |u(z_t, r, t) - sg(v - (t - r) du/dt)|^2,    w = sg 1 / (|.|^2 + offset)^power,

    with eps - x0 of the example for v, and sg without gradient. For a share of the examples r = t,
    where u is the velocity itself. A step of a sampler from t to r is z_r = z_t - (t - r) u: DDIM
    with the prediction "flow". One call from t = 1 to r = 0 gives x0.

    The weight keeps single examples from throwing training off, and moves the minimum away from the
    mean where |.|^2 varies much between examples, as it does in few dimensions: for points take
    power 0. (On the nine modes of `mixture2d`, after 3000 steps, the sliced Wasserstein distance of
    samples of one and of two calls was 0.38 and 0.35 with power 1, 0.17 and 0.07 with 0.)

    One call begins at t = 1, where logit-normal times lie hardly ever: 0.2% of them are above 0.95.
    In a short training the network knows nothing there. On 25 modes in the plane
    (experiments/few_steps.py) the sliced Wasserstein distance of samples of one call was 0.46 with
    objective.time_sampling="logit_normal" and 0.10 with "uniform"; of two calls 0.09 and 0.08. On
    digits (configs/mean_flow_digits.py) uniform times did not help: there the Fréchet distance of
    one call was 20.6 and 23.9, of two 1.3 and 2.4.

    A log-SNR l of any schedule is the time t = sigma / (alpha + sigma) of that path, where x =
    alpha x0 + sigma eps is (alpha + sigma) z: the schedule decides how often each t is trained, and
    where a sampler of several steps stops. Under `rectified_flow` it is the published method.

    Where it differs from the published code (Gsunshine/meanflow): the two times are drawn along the
    schedule by `times`, there as sigmoid(N(-0.4, 1)), which objective.time_sampling="logit_normal"
    with location -0.4 gives under `rectified_flow`; the examples with r = t are drawn at random and
    have the time of one draw, there they are the first of the batch and have the later of two;
    there is no guidance within the loss; their offset is 0.01; the network is given x, of unit
    variance, and 10 - 20 t and 10 - 20 (t - r) as noise levels, there z, t and t - r.

    The step's metrics: see `few_steps.method`; "error" is |.|^2 / D, not weighted.

    Args:
      data, network, conditions, optimizer, learning_rate, ema_decay, grad_accumulation: as of
        `diffusion`; the network is given two noise levels.
      schedule: key -> a fixed schedule.
      schedule_steps: T, where the schedule acts in discrete time; 0 for its own time.
      prediction: "flow".
      times: the density of both times.
      evaluation: how often each example is seen when the loss is measured.
      sampling: default options of `samplers.sample`.
      instant_share: of the examples, those with r = t.
      adaptive_power: of the weight; 0: none.
      adaptive_offset: of the weight, above 0.

    Raises:
      ValueError: parts or options that don't fit, in a sentence.
    """
    student = Student(
        data, network, conditions, schedule, schedule_steps, prediction, optimizer, learning_rate,
        ema_decay, grad_accumulation, sampling, evaluation.repeats, num_levels=2,
    )  # fmt: skip
    few_steps.check("mean_flow", student, ("flow",), ("ddim",))
    few_steps.times_only("mean_flow", times)
    for name, value, most in (
        ("instant_share", instant_share, 1.0),
        ("adaptive_power", adaptive_power, 10.0),
    ):
        if not 0 <= value <= most:
            raise ValueError(f"method.{name} is {value}; it must be between 0 and {most:g}")
    if not 0 < adaptive_offset < 1e6:
        raise ValueError(f"method.adaptive_offset is {adaptive_offset}; it must be above 0")

    def velocity(
        params: Any, z: jax.Array, t: jax.Array, r: jax.Array, cond: Cond, dropout: Any = None
    ) -> jax.Array:
        """u(z, r, t)."""
        x = z / expand_to(jnp.sqrt(t**2 + (1 - t) ** 2), z)
        levels = REACH - 2 * REACH * jnp.stack([t, t - r], axis=-1)
        return student.call(params, x, levels, cond, dropout)

    def draw(state: StudentState, key: jax.Array, num: int) -> Batch:
        first, second, third = jax.random.split(key, 3)
        return {
            "u": times.sample(times.init(), first, num)[0],
            "other": times.sample(times.init(), second, num)[0],
            "instant": jax.random.bernoulli(third, instant_share, (num,)),
        }

    def losses(params: Any, state: StudentState, rows: Batch, dropout: Any) -> Batch:
        x0, noise, cond = rows["x0"], rows["noise"], rows["cond"]
        one, other = (few_steps.flow_time(student.log_snr(state, rows[u])) for u in ("u", "other"))
        t = jnp.where(rows["instant"], one, jnp.maximum(one, other))
        r = jnp.where(rows["instant"], one, jnp.minimum(one, other))
        z, v = x0 + expand_to(t, x0) * (noise - x0), noise - x0

        def along(z: jax.Array, t: jax.Array) -> jax.Array:
            return velocity(params, z, t, r, cond, dropout)

        u, change = jax.jvp(along, (z, t), (v, jnp.ones_like(t)))
        aim = jax.lax.stop_gradient(v - expand_to(t - r, z) * change)
        squared = few_steps.gap(u - aim)
        weight = jax.lax.stop_gradient((squared + adaptive_offset) ** -adaptive_power)
        return {"loss": weight * squared, "error": squared / math.prod(data.shape)}

    def sample(state: StudentState, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        asked = {**sampling, **options}
        visited = samplers.visited_levels(
            student.sampled_along(state, asked), asked["num_steps"], asked["grid"], "flow"
        ).log_snr
        end = jnp.inf if asked["low_order_finish"] else student.log_snr(state, jnp.zeros(()))
        after = jnp.append(visited[1:], end)

        def predict(x: jax.Array, log_snr: jax.Array) -> jax.Array:
            """The average velocity from a visited level to the one that comes after it."""
            at = jnp.argmin(jnp.abs(visited - log_snr[:, None]), axis=1)
            t, r = few_steps.flow_time(log_snr), few_steps.flow_time(after[at])
            z = x / expand_to(few_steps.path_scale(log_snr), x)
            return velocity(state.ema_params, z, t, r, cond)

        return few_steps.sampled(student, state, keys, predict, "flow", options)

    return few_steps.method("mean_flow", student, draw, losses, sample)
