"""What is minimised: the network's loss, and the learned schedule's own objectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import arguments, likelihood, process
from diffax.process import AnySchedule, Predict
from diffax.registry import Registry, unknown
from diffax.schedules import DiscreteSchedule, Schedule, alpha_of

# --- weightings ---------------------------------------------------------------------------------
#
# Each is w(log_snr, minus_dlogsnr_dt, scale), the factor of the mean squared error in the network's
# own space. `minus_dlogsnr_dt` is -d log_snr / dt, `scale` the factor from that error to the error
# in eps. Those with `minus_dlogsnr_dt` weigh noise levels the same under every schedule; those
# without leave that to the schedule's shape.

Weighting = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def simple(log_snr: jax.Array, minus_dlogsnr_dt: jax.Array, scale: jax.Array) -> jax.Array:
    """1: the plain mean squared error of the prediction (Ho 2020, eq. 14)."""
    return jnp.ones_like(log_snr)


def elbo(log_snr: jax.Array, minus_dlogsnr_dt: jax.Array, scale: jax.Array) -> jax.Array:
    """-log_snr'(t) / 2 on the error in eps: the bound's diffusion term (Kingma 2021, eq. 17)."""
    return 0.5 * minus_dlogsnr_dt * scale


def min_snr(
    log_snr: jax.Array, minus_dlogsnr_dt: jax.Array, scale: jax.Array, gamma: float = 5.0
) -> jax.Array:
    """min(SNR, gamma) / SNR on the error in eps (Hang 2023, section 3.4)."""
    return jnp.exp(jnp.minimum(0.0, math.log(gamma) - log_snr)) * scale


def sigmoid(
    log_snr: jax.Array, minus_dlogsnr_dt: jax.Array, scale: jax.Array, bias: float = 2.0
) -> jax.Array:
    """-log_snr'(t) / 2 sigmoid(bias - log_snr) on the error in eps (Kingma & Gao 2023)."""
    return jax.nn.sigmoid(bias - log_snr) * elbo(log_snr, minus_dlogsnr_dt, scale)


def edm(
    log_snr: jax.Array,
    minus_dlogsnr_dt: jax.Array,
    scale: jax.Array,
    mean: float = 1.01,
    std: float = 2.4,
) -> jax.Array:
    """-log_snr'(t) / 2 N(log_snr; mean, std^2) (1 + 1 / SNR) on the error in eps.

    Karras 2022 as a weighting (Kingma & Gao 2023, table 1), for data of unit deviation: the paper's
    mean of 2.4 is for a deviation of 0.5, which lowers log-SNR by 2 log 2.
    """
    density = jnp.exp(-0.5 * ((log_snr - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    return density * (1 + jnp.exp(-log_snr)) * elbo(log_snr, minus_dlogsnr_dt, scale)


def p2(
    log_snr: jax.Array,
    minus_dlogsnr_dt: jax.Array,
    scale: jax.Array,
    k: float = 1.0,
    gamma: float = 1.0,
) -> jax.Array:
    """1 / (k + SNR)^gamma on the error in eps (Choi 2022, eq. 8)."""
    return jnp.exp(-gamma * jnp.logaddexp(math.log(k), log_snr)) * scale


WEIGHTINGS: Registry[Weighting] = Registry(
    "weighting",
    {
        "simple": simple,
        "elbo": elbo,
        "min_snr": min_snr,
        "sigmoid": sigmoid,
        "edm": edm,
        "p2": p2,
    },
)


def register_weighting(name: str, weighting: Weighting) -> None:
    """Makes a weighting reachable as config.objective.weighting: w(log_snr, minus_dlogsnr_dt,
    scale), like those above.

    Raises:
      ValueError: the name is taken.
    """
    WEIGHTINGS.register(name, weighting)


# --- the network's loss -------------------------------------------------------------------------


def training_loss(
    key: jax.Array | None,
    predict: Predict,
    schedule: AnySchedule,
    x0: jax.Array,
    t: jax.Array,
    *,
    prediction: str = "eps",
    weighting: str | Weighting = "simple",
    learned_variance: bool = False,
    hybrid_weight: float = 1e-3,
    noise: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """w(log_snr) mean |target - predict(x_t)|^2, per example; x_t = alpha x0 + sigma eps.

    With `learned_variance` the hybrid loss of Nichol & Dhariwal 2021, eq. 16: the variance half of
    the prediction adds `hybrid_weight` times T times its step's term of the bound, in bits/dim,
    with the gradient to the mean stopped. No gradient flows to the schedule.

    Args:
      key: PRNG key of the noise.
      predict: as in `sample`; 2 C channels with `learned_variance`.
      schedule: continuous or discrete; discrete for `learned_variance`.
      x0: (batch, ..., C).
      t: (batch,), the schedule's times.
      prediction: "eps", "x0", "v", "score" or "flow".
      weighting: a name in `WEIGHTINGS` or a function like those.
      noise: take this as eps, like x0, and need no key.

    Returns:
      losses, (batch,), and a dict of (batch,) arrays: "log_snr", "mse" (unweighted), and
      "variance_term" with learned variance.

    Raises:
      ValueError: an unknown prediction or weighting; eps-prediction with a zero-terminal-SNR
        schedule, or a weighting by the slope with a discrete one; `learned_variance` with a
        continuous schedule; a prediction of the wrong shape; arguments in another order, times
        outside the schedule (unless they are traced), or noise of another shape than x0's.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import diffax
      >>> from diffax import objectives
      >>> cosine = diffax.schedules.get("cosine")
      >>> x0, t = jnp.ones((4, 2)), jnp.array([0.2, 0.4, 0.6, 0.8])
      >>> losses, aux = objectives.training_loss(
      ...     jax.random.key(0), lambda x, t: x, cosine, x0, t, weighting="min_snr"
      ... )
      >>> losses.shape, sorted(aux)
      ((4,), ['log_snr', 'mse'])
    """
    arguments.check_order("training_loss", key=key, predict=predict, schedule=schedule, x0=x0)
    x0 = arguments.data("x0", x0)
    arguments.check_per_example("t", t, x0.shape)
    process.refuse_eps_at_zero_snr(schedule, prediction)
    if learned_variance and schedule.num_steps is None:
        raise ValueError(
            "learned_variance=True needs a discrete schedule, whose steps it is the variance of:"
            " set schedule.num_steps, or use schedule.discretize(T)"
        )
    _refuse_infinite_weight(schedule, prediction, weighting)
    schedule, x0 = jax.lax.stop_gradient(schedule), process.widened(x0)
    log_snr, slope = schedule.log_snr_and_slope(t)
    if noise is None:
        noise = jax.random.normal(key, x0.shape, x0.dtype)
    noise = arguments.data("noise", noise, x0.shape)
    x_t = process.q_sample_at(x0, log_snr, noise)
    out = process.call_predictor(predict, x_t, t, log_snr, halves=2 if learned_variance else 1)
    out, fraction = jnp.split(out, 2, axis=-1) if learned_variance else (out, None)
    target = process.target_of(prediction, x0, noise, log_snr)
    mse = _mean_over_data((out - target) ** 2)
    weight = get_weighting(weighting)(log_snr, -slope, process.eps_scale(prediction, log_snr))
    losses, aux = weight * mse, {"log_snr": log_snr, "mse": mse}
    if learned_variance:
        mean_x0 = process.convert(
            jax.lax.stop_gradient(out),
            x_t,
            alpha_of(log_snr),
            process.sigma_of(log_snr),
            prediction,
            "x0",
        )
        term = variance_term(schedule, fraction, mean_x0, x0, x_t, t)
        losses = losses + hybrid_weight * schedule.num_steps * term
        aux["variance_term"] = term
    return losses, aux


def get_weighting(weighting: str | Weighting) -> Weighting:
    """The weighting of that name, or the given function; ValueError with the allowed names."""
    return weighting if callable(weighting) else WEIGHTINGS.lookup(weighting)


def _refuse_infinite_weight(
    schedule: AnySchedule, prediction: str, weighting: str | Weighting
) -> None:
    """Zero SNR has no slope, nor has one step alone: in discrete time a weight by it is NaN."""
    weigh = get_weighting(weighting)
    if schedule.num_steps is None or not (schedule.zero_terminal or schedule.num_steps == 1):
        return
    with jax.ensure_compile_time_eval():
        last = jnp.asarray(-jnp.inf)
        finite = bool(jnp.isfinite(weigh(last, -last, process.eps_scale(prediction, last))))
    if not finite:
        raise ValueError(
            f"weighting={weighting!r} weighs by the slope of log-SNR, which is infinite at zero"
            " SNR, where this discrete schedule ends, and of one step alone: use 'simple',"
            " 'min_snr' or 'p2', or continuous time"
        )


def variance_term(
    schedule: DiscreteSchedule,
    fraction: jax.Array,
    mean_x0: jax.Array,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    levels: int = 256,
) -> jax.Array:
    """The bound's term of step t with learned variance, bits/dim, (batch,) (Nichol 2021, eqs. 4-7).

    KL(q(x_{t-1} | x_t, x0) | p(x_{t-1} | x_t)) for t > 0, and -log p(x0 | x_1) at t = 0, the
    Gaussian integrated over the quantisation bins of 8-bit data (Ho 2020, eq. 13).

    Args:
      fraction: the network's second half, (batch, ..., C).
      mean_x0: its estimate of x0, likewise.
      x0, x_t: likewise; t: (batch,), integer.
    """
    log_snr = schedule.log_snr(t)
    # At t = 0 the posterior's variance is 0; its logarithm is replaced by that of t = 1, as
    # published.
    later = jnp.maximum(t, 1)
    before = jnp.where(t > 0, schedule.log_snr(later - 1), jnp.inf)
    _, small = process.posterior_between(
        x0, x_t, schedule.log_snr(later), schedule.log_snr(later - 1)
    )
    large = process.expand_to(process.transition_variance(log_snr, before), x0)
    log_variance = process.learned_log_variance(fraction, jnp.log(large), jnp.log(small))
    true_mean, _ = process.posterior_between(x0, x_t, log_snr, before)
    mean, _ = process.posterior_between(mean_x0, x_t, log_snr, before)
    kl = 0.5 * (
        log_variance
        - jnp.log(small)
        - 1
        + jnp.exp(jnp.log(small) - log_variance)
        + (true_mean - mean) ** 2 * jnp.exp(-log_variance)
    )
    decoder = -_log_bin_probability(x0, mean, jnp.exp(0.5 * log_variance), levels)
    nats = jnp.where(process.expand_to(t > 0, x0), kl, decoder)
    return _mean_over_data(nats) / math.log(2)


def _log_bin_probability(x0, mean, deviation, levels):
    """log of the Gaussian's mass in x0's bin of width 2 / (levels - 1); the outer bins are open."""
    half = 1.0 / (levels - 1)
    upper = (x0 - mean + half) / deviation
    lower = (x0 - mean - half) / deviation
    log_cdf, log_sf = jax.scipy.stats.norm.logcdf, jax.scipy.stats.norm.logsf
    # in the upper half mirrored, so that the difference is taken where the probabilities are small
    flip = upper + lower > 0
    high, low = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    inner = log_cdf(high) + jnp.log(-jnp.expm1(jnp.minimum(log_cdf(low) - log_cdf(high), -1e-6)))
    inner = jnp.where(x0 > 1 - half, log_sf(lower), inner)
    return jnp.where(x0 < -1 + half, log_cdf(upper), inner)


def _mean_over_data(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


# --- the learned schedule's objectives ----------------------------------------------------------


@arguments.formerly("schedule", "predict", "x0", "key")
def schedule_gradient(
    key: jax.Array | None,
    predict: Predict,
    schedule: Schedule,
    x0: jax.Array,
    objective: str = "variance",
    prediction: str = "eps",
    num_steps: int | None = None,
    levels: int | None = 256,
    has_aux: bool = False,
    draws: likelihood.Draws | None = None,
) -> Any:
    """The gradient that a learned schedule descends; a pytree like the schedule.

    "variance": E[L^2], L the continuous-time diffusion term of one example at one time, bits/dim.
    Its mean does not depend on the shape between fixed ends, so the gradient is that of the
    variance (Kingma 2021, section 5 and its supplement). Endpoints, if learned, get the gradient of
    the bound itself instead.

    "vlb": the bound with `num_steps` steps, for every parameter: in discrete time it depends on the
    shape.

    The network's parameters are whatever `predict` closes over; no gradient is taken by them.

    The order schedule_gradient(schedule, predict, x0, key) is still taken, with a warning.

    Args:
      key: PRNG key.
      predict: predict(x_t, log_snr), x_t (batch, ..., C), log_snr (batch,). The
        gradient flows through both.
      schedule: continuous, with finite ends. A fixed one has no leaves and gets none back.
      x0: (batch, ..., C).
      prediction: "eps", "x0", "v", "score" or "flow". num_steps, levels: see `likelihood.vlb`.
      has_aux: also return the bound's terms, `likelihood.VLB`, whose `diffusion` is L.
      draws: take these random numbers, of `likelihood.draw`, and need no key.

    Raises:
      ValueError: an unknown objective, "vlb" without num_steps, a discrete schedule, infinite ends
        or arguments in another order.

    Examples:
      >>> import jax
      >>> import diffax
      >>> from diffax import objectives, schedules
      >>> learned = schedules.get("learned", log_snr_max=8.0, log_snr_min=-8.0)
      >>> predict = diffax.by_log_snr(lambda x, l: 0.9 * schedules.sigma_of(l)[:, None] * x)
      >>> x0 = jax.random.normal(jax.random.key(0), (64, 2))
      >>> gradient = objectives.schedule_gradient(
      ...     jax.random.key(1), predict, learned, x0, levels=None
      ... )
      >>> jax.tree.structure(gradient) == jax.tree.structure(learned)
      True
    """
    order = dict(key=key, predict=predict, schedule=schedule, x0=x0)
    arguments.check_order("schedule_gradient", **order)
    if not isinstance(objective, str) or objective not in SCHEDULE_OBJECTIVES:
        raise ValueError(unknown("schedule objective", objective, SCHEDULE_OBJECTIVES))
    if schedule.num_steps is not None:
        raise ValueError("schedule_gradient needs a continuous schedule, not a discretised one")
    predict = process.by_log_snr(predict)

    def bound(schedule, steps):
        return likelihood.vlb(key, predict, schedule, x0, steps, prediction, levels, draws)

    gradient, terms = SCHEDULE_OBJECTIVES[objective](schedule, bound, num_steps)
    return (gradient, terms) if has_aux else gradient


def _variance_gradient(schedule, bound, num_steps):
    del num_steps  # continuous time

    def both(schedule):
        terms = bound(schedule, None)
        return (jnp.mean(terms.diffusion**2), jnp.mean(terms.total)), terms

    (squared, mean), pull, terms = jax.vjp(both, schedule, has_aux=True)
    (by_variance,) = pull((jnp.ones_like(squared), jnp.zeros_like(mean)))
    ends = schedule.endpoint_mask()
    if not any(jax.tree.leaves(ends)):
        return by_variance, terms
    (by_bound,) = pull((jnp.zeros_like(squared), jnp.ones_like(mean)))
    return jax.tree.map(lambda end, v, b: b if end else v, ends, by_variance, by_bound), terms


def _bound_gradient(schedule, bound, num_steps):
    if num_steps is None:
        raise ValueError(
            "schedule objective='vlb' needs num_steps: in continuous time the bound does not depend"
            " on the schedule's shape"
        )

    def total(schedule):
        terms = bound(schedule, num_steps)
        return jnp.mean(terms.total), terms

    return jax.grad(total, has_aux=True)(schedule)


SCHEDULE_OBJECTIVES: dict[str, Callable] = {"variance": _variance_gradient, "vlb": _bound_gradient}
