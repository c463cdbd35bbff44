"""Rates: how much happens at each log-SNR, from data, from a network, or from a schedule.

A `Rate` is a schedule (`schedules.from_rate`), a density of training times
(`objective.time_sampling="rate"`) and a sampling grid (`sample(grid=rate)`). Closed forms are of
Gaussian data: for the eigenvalues s_i of the covariance and log-SNR l,
w_i = s_i e^l / (1 + s_i e^l) is the share of direction i's variance that x_t tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from diffax import process
from diffax.process import AnySchedule, Predict
from diffax.registry import unknown
from diffax.schedules import LOG_SNR_MAX, LOG_SNR_MIN, Schedule, ends_of
from diffax.schedules.fields import in_float64
from diffax.schedules.from_rate import Rate, make_rate
from diffax.schedules.from_rate import rate_from_json as from_json

__all__ = [
    "CLOSED_FORMS", "Rate", "constant_change", "covariance", "entropy", "from_json", "gaussian",
    "make_rate", "of_schedule", "second_moment", "spectral", "transport",
]  # fmt: skip

_REACH = 20.0  # how far the range goes where a schedule's ends are infinite, as in `sample`

# --- closed forms -------------------------------------------------------------------------------
#
# (s, l, m^2) -> rate; s the eigenvalues, (1, d), l the log-SNR, (K, 1), and m the mean in the
# eigenvectors' coordinates, (1, d). They are what the estimates below come to with the exact
# denoiser.


def _entropy(s, l, m2):
    return np.sum(expit(l + np.log(s)), axis=1)


def _second_moment(s, l, m2):
    w = expit(l + np.log(s))
    return np.sqrt(np.sum(w, axis=1) ** 2 + 2 * np.sum(w**2, axis=1))


def _constant_change(s, l, m2):
    w = expit(l + np.log(s))
    return 0.5 * np.sqrt(np.sum(s * w * (1 - w), axis=1))


def _transport(s, l, m2):
    clean, noise = expit(l), expit(-l)
    variance = clean * s + noise
    change = ((s - 1) * clean * noise) ** 2 / variance**3 + 0.25 * m2 * clean * (
        noise / variance
    ) ** 2
    return np.sqrt(noise[:, 0] * np.sum(change, axis=1))


CLOSED_FORMS: dict[str, Callable] = {
    "entropy": _entropy,
    "second_moment": _second_moment,
    "constant_change": _constant_change,
    "transport": _transport,
}


def gaussian(
    cov: Any,
    mean: Any = 0.0,
    kind: str = "entropy",
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    num_levels: int = 257,
) -> Rate:
    """The rate of data N(`mean`, `cov`) under the exact denoiser, in closed form and float64.

    With w_i as above, alpha^2 = sigmoid(l), sigma^2 = sigmoid(-l), V_i = alpha^2 s_i + sigma^2, and
    m the mean in the eigenvectors' coordinates (derived here, but for the first, which follows from
    I-MMSE, Guo 2005):

        entropy          sum w_i                               of which half is nats per log-SNR
        second_moment    sqrt((sum w_i)^2 + 2 sum w_i^2)
        constant_change  sqrt(sum s_i w_i (1 - w_i)) / 2
        transport        sigma sqrt(sum ((s_i - 1) alpha^2 sigma^2)^2 / V_i^3
                                    + sum (m_i alpha sigma^2 / (2 V_i))^2)

    Args:
      cov: (d, d); or its eigenvalues, (d,), with `mean` in the eigenvectors' coordinates. Those
        below 1e-12 of the largest are taken as that.
      mean: (d,) or a number.
      kind: a name in `CLOSED_FORMS`, of the estimate that comes to it.
      log_snr_max, log_snr_min, num_levels: the knots are equally spaced between.
    """
    if kind not in CLOSED_FORMS:
        raise ValueError(unknown("kind", kind, CLOSED_FORMS))
    s, m = np.asarray(cov, np.float64), np.asarray(mean, np.float64)
    m = np.broadcast_to(m, s.shape[-1:])
    if s.ndim == 2:
        s, vectors = np.linalg.eigh(s)
        m = m @ vectors
    s = np.maximum(s, 1e-12 * s.max())
    levels = np.linspace(log_snr_min, log_snr_max, num_levels)
    return make_rate(levels, CLOSED_FORMS[kind](s[None], levels[:, None], m[None] ** 2))


def spectral(
    eigenvalues: Any,
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    num_levels: int = 257,
) -> Rate:
    """sum_i s_i e^l / (1 + s_i e^l): the entropy rate of Gaussian data of these eigenvalues, (d,).

    A schedule from the data's covariance alone: `spectral(np.linalg.eigvalsh(covariance(x)[1]))`.
    The idea of a schedule by the data's spectrum is that of Benita 2025 (2502.00180), who optimise
    the distance that remains after a number of steps instead.

    Examples:
      >>> from diffax import rates, schedules
      >>> rate = rates.spectral([4.0, 1.0, 0.01])
      >>> schedule = schedules.from_rate(rate, log_snr_max=8.0, log_snr_min=-8.0)
      >>> print(f"{schedule.log_snr(0.0):.1f} {schedule.log_snr(1.0):.1f}")
      8.0 -8.0
    """
    return gaussian(eigenvalues, 0.0, "entropy", log_snr_max, log_snr_min, num_levels)


_MOST_NUMBERS = 8192  # of an example: its covariance takes half a gigabyte


def covariance(batches: np.ndarray | Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean, (d,), and covariance, (d, d), of data, each example as one row of d numbers; float64.

    Args:
      batches: (N, ..., C), or an iterable of such arrays, of which only one is held at a time.

    Raises:
      ValueError: no data, or more than 8192 numbers in an example: give it smaller images, or the
        latents of an autoencoder.
    """
    whole = isinstance(batches, (np.ndarray, jax.Array))
    parts: Iterable = (
        (batches[i : i + 4096] for i in range(0, len(batches), 4096)) if whole else batches
    )
    count, mean, scatter = 0, 0.0, 0.0
    for part in parts:
        rows = np.asarray(part, np.float64).reshape(len(part), -1)
        if rows.shape[1] > _MOST_NUMBERS:
            raise ValueError(
                f"an example has {rows.shape[1]:,} numbers, and a covariance is made of at most"
                f" {_MOST_NUMBERS:,}: give smaller images, or latents"
            )
        # Chan's update: the scatter about the joint mean, without cancellation.
        own = rows.mean(axis=0)
        apart, total = own - mean, count + len(rows)
        centred = rows - own
        scatter = scatter + centred.T @ centred
        scatter = scatter + np.outer(apart, apart) * (count * len(rows) / total)
        mean, count = mean + apart * (len(rows) / total), total
    if count == 0:
        raise ValueError("there are no data to take the covariance of")
    return mean, scatter / count


def of_schedule(
    schedule: Schedule,
    log_snr_max: float | None = None,
    log_snr_min: float | None = None,
    num_levels: int = 1025,
) -> Rate:
    """-dt / d log_snr: the rate of which a schedule spends equal parts per unit of t.

    `schedules.from_rate` of it is the schedule again, fixed: of a learned one what it has learned.
    Each value is the mean over the cell around its knot, so that it is positive where the schedule
    jumps or is flat too.

    Args:
      schedule: continuous, concrete (not traced).
      log_snr_max, log_snr_min: by default the schedule's ends, at most 20 in size.
    """
    if schedule.num_steps is not None:
        raise ValueError("of_schedule needs a continuous schedule; this one is discrete")
    levels = _levels(schedule, log_snr_max, log_snr_min, num_levels)
    edges = np.concatenate([levels[:1], 0.5 * (levels[1:] + levels[:-1]), levels[-1:]])
    with in_float64():
        t = np.asarray(schedule.inverse_log_snr(jnp.asarray(edges, jnp.float64)))
    return make_rate(levels, np.maximum(-np.diff(t), 1e-12) / np.diff(edges))


def _levels(
    schedule: AnySchedule, log_snr_max: float | None, log_snr_min: float | None, num: int
) -> np.ndarray:
    first, last = (float(np.clip(end, -_REACH, _REACH)) for end in ends_of(schedule))
    high = first if log_snr_max is None else log_snr_max
    return np.linspace(last if log_snr_min is None else log_snr_min, high, num)


# --- estimates from a network -------------------------------------------------------------------


def entropy(
    predict: Predict, schedule: AnySchedule, x0: jax.Array, key: jax.Array, **options: Any
) -> Rate:
    """E|eps - eps_hat|^2: twice the rate of information, dI / dl = E|eps - eps_hat|^2 / 2 nats.

    I-MMSE (Guo 2005); "entropic time" where it is a sampling grid (Stancevic 2025, 2504.13612), the
    target of training times in InfoNoise (2602.18647, whose rate by log sigma, mmse / sigma^2, is
    the same function), and what `time_sampling.rate` learns online.

    This and the others below estimate the rate at each level without bias (second_moment,
    constant_change and transport: their square), from the same x0 and noise of its own at each, and
    keep the standard error. At each level errors count for the examples alone: two levels share x0.

    Args:
      predict: as in `sample`.
      schedule: gives the range, and the times of a predictor that is conditioned on t.
      x0: (n, ..., C), n of 2 or more.
      key: PRNG key.
      options: prediction="eps"; num_levels=129, equally spaced; log_snr_max, log_snr_min: by
        default the schedule's ends, at most 20 in size.
    """
    return _estimate(_squared_error, predict, schedule, x0, key, **options)


def second_moment(
    predict: Predict, schedule: AnySchedule, x0: jax.Array, key: jax.Array, **options: Any
) -> Rate:
    """sqrt(E[(|eps - eps_hat|^2)^2]): that of the schedule which minimises Var(VLB) (derived here).

    The term of one example is L = -l'(t) |eps - eps_hat|^2 / 2 (Kingma 2021, eq. 17), whose mean
    does not depend on the schedule; E[L^2] is least where -l'(t) times this rate is constant, by
    Cauchy and Schwarz. Arguments as in `entropy`.
    """

    def squared(*given):
        return _squared_error(*given) ** 2

    return _estimate(squared, predict, schedule, x0, key, root=True, **options)


def constant_change(
    predict: Predict, schedule: AnySchedule, x0: jax.Array, key: jax.Array, **options: Any
) -> Rate:
    """sqrt(E|d x0_hat(x_l, l) / dl|^2) along x_l = alpha x0 + sigma eps, x0 and eps held fixed.

    How fast the estimate of x0 changes as noise is added: constant-rate scheduling by a discrepancy
    of the predicted data (Okada 2024, 2411.12188), in the limit of neighbouring levels (derived
    here). Needs continuous levels. Arguments as in `entropy`.
    """

    def speed(denoise, x0, eps, log_snr):
        def estimate(log_snr):
            return denoise(process.q_sample_at(x0, log_snr, eps), log_snr)[0]

        return _sum(jax.jvp(estimate, (log_snr,), (jnp.ones_like(log_snr),))[1] ** 2)

    return _estimate(speed, predict, schedule, x0, key, root=True, differentiates=True, **options)


def transport(
    predict: Predict, schedule: AnySchedule, x0: jax.Array, key: jax.Array, **options: Any
) -> Rate:
    """sigma sqrt(E|d score(x, l) / dl|^2) at x ~ q(x_l) held fixed.

    The local cost of score-optimal schedules (Williams 2024, 2412.07877): the Fisher divergence
    between neighbouring marginals, in units of sigma, whose root is a length (derived here from the
    paper's description). With score = -eps_hat / sigma it is
    sqrt(E|d eps_hat / dl + alpha^2 eps_hat / 2|^2). Zero, and refused, for standard normal data,
    which noise doesn't change. Needs continuous levels. Arguments as in `entropy`.
    """

    def speed(denoise, x0, eps, log_snr):
        x = process.q_sample_at(x0, log_snr, eps)
        tangent = (jnp.ones_like(log_snr),)
        eps_hat, change = jax.jvp(lambda level: denoise(x, level)[1], (log_snr,), tangent)
        clean = process.expand_to(jax.nn.sigmoid(log_snr), x)
        return _sum((change + 0.5 * clean * eps_hat) ** 2)

    return _estimate(speed, predict, schedule, x0, key, root=True, differentiates=True, **options)


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _squared_error(denoise, x0, eps, log_snr):
    return _sum((denoise(process.q_sample_at(x0, log_snr, eps), log_snr)[1] - eps) ** 2)


def _estimate(
    statistic: Callable,
    predict: Predict,
    schedule: AnySchedule,
    x0: jax.Array,
    key: jax.Array,
    *,
    prediction: str = "eps",
    num_levels: int = 129,
    log_snr_max: float | None = None,
    log_snr_min: float | None = None,
    root: bool = False,
    differentiates: bool = False,
) -> Rate:
    """The mean of statistic(denoise, x0, eps, log_snr), (n,), at each level, or its root."""
    process.check_prediction(prediction)
    by_index = schedule.num_steps is not None and not process.takes_log_snr(predict)
    if by_index and differentiates:
        raise ValueError(
            "this rate is a derivative by log-SNR, which a predictor of the index has not: give one"
            " conditioned on the log-SNR (by_log_snr), or a continuous schedule"
        )
    levels = jnp.asarray(_levels(schedule, log_snr_max, log_snr_min, num_levels), jnp.float32)
    if by_index:
        levels = jnp.unique(schedule.log_snr(schedule.inverse_log_snr(levels)))
    x0 = process.widened(x0)
    levels = levels.astype(x0.dtype)

    def denoise(x: jax.Array, log_snr: jax.Array) -> tuple:
        t = log_snr if process.takes_log_snr(predict) else schedule.inverse_log_snr(log_snr)
        return process.denoise(predict, x, t, log_snr, prediction)

    @jax.jit
    def moments(key: jax.Array, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        def at(given: tuple) -> tuple[jax.Array, jax.Array]:
            key, log_snr = given
            eps = jax.random.normal(key, x0.shape, x0.dtype)
            found = statistic(denoise, x0, eps, jnp.full(x0.shape[:1], log_snr))
            return jnp.mean(found), jnp.std(found, ddof=1) / jnp.sqrt(len(x0))

        return jax.lax.map(at, (jax.random.split(key, len(levels)), levels))

    mean, error = moments(key, x0)
    if root:
        mean = jnp.sqrt(mean)
        error = error / (2 * mean)
    return make_rate(levels, mean, error)
