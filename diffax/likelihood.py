"""Likelihood: by the variational bound, in continuous and discrete time, and by the ODE."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.ode import odeint

from diffax import arguments, process
from diffax.process import AnySchedule, Predict
from diffax.registry import unknown
from diffax.schedules import alpha_of, ends_of, require_finite_ends, sigma_of
from diffax.time_sampling import stratified


class VLB(NamedTuple):
    """The three terms of -log p(x0) <= prior + diffusion + reconstruction, (batch,), bits/dim."""

    prior: jax.Array
    diffusion: jax.Array
    reconstruction: jax.Array

    @property
    def total(self) -> jax.Array:
        """Their sum, (batch,)."""
        return self.prior + self.diffusion + self.reconstruction


class Draws(NamedTuple):
    """The random numbers of one estimate of the bound."""

    u: jax.Array  # (batch,), in [0, 1): where in time
    noise: jax.Array  # (batch, ..., C), at that time
    clean_noise: jax.Array  # (batch, ..., C), at the clean end


def draw(
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    number: jax.Array | None = None,
) -> Draws:
    """What `vlb` draws for data of that shape, (batch, ..., C): times stratified over the batch.

    With `number`, (batch,) whole numbers, what is drawn for an example depends on the key and its
    number alone, not on the batch that it is in. Times are then evenly spread over any examples in
    a row: u = (u_0 + number phi) mod 1, phi the golden ratio.
    """
    key = process.typed(key)
    if key.ndim:
        raise ValueError(f"key has shape {key.shape}: times are drawn for all together, by one key")
    time_key, noise_key, clean_key = jax.random.split(key, 3)
    if number is None:
        u, _ = stratified().sample((), time_key, shape[0])
    else:
        # number phi mod 1 in 32 bits, exactly; 24 of them are kept
        turns = (number.astype(jnp.uint32) * jnp.uint32(2654435769)) >> 8
        u = jnp.mod(jax.random.uniform(time_key) + turns * 2.0**-24, 1.0)
        noise_key, clean_key = (keys_of(k, number) for k in (noise_key, clean_key))
    normal = functools.partial(jax.random.normal, dtype=dtype)
    noise, clean = (process.drawn(normal, k, shape) for k in (noise_key, clean_key))
    return Draws(u, noise, clean)


def keys_of(key: jax.Array, number: jax.Array) -> jax.Array:
    """A key for each example, (batch,), by its number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, number)


def vlb(
    key: jax.Array | None,
    predict: Predict,
    schedule: AnySchedule,
    x0: jax.Array,
    num_steps: int | None = None,
    prediction: str = "eps",
    levels: int | None = 256,
    draws: Draws | None = None,
) -> VLB:
    """An unbiased estimate, by one noise level per example, of the variational bound (Kingma 2021).

    With e = |eps - eps_hat(x_t)|^2 summed over the data's axes, in nats before the change of unit:

        prior = KL(q(x_1 | x0) | N(0, I)) = sum (sigma_1^2 + alpha_1^2 x0^2 - 1 - log sigma_1^2) / 2
        diffusion = E_t[-log_snr'(t) e] / 2                       in continuous time (eq. 17), or
                  = T E_i[expm1(log_snr(s_i) - log_snr(t_i)) e] / 2    with T steps (eq. 14)
        reconstruction = -E[log p(x0 | x at the clean end)]

    The clean end's decoder is p(x0 | z) proportional to q(z | x0): over the `levels`
    values of quantised data, or a Gaussian density for real data. Times are drawn stratified over
    the batch.

    A discrete schedule of T steps has its clean end at index 0, so its diffusion term has T - 1
    steps.

    Args:
      key: PRNG key.
      predict: as in `sample`.
      schedule: finite log-SNR at both ends.
      x0: (batch, ..., C). Quantised data is k / ((levels - 1) / 2) - 1 for k = 0 .. levels - 1.
      num_steps: T for a continuous schedule, None for continuous time. A discrete schedule has its
        own.
      prediction: "eps", "x0", "v", "score" or "flow".
      levels: 256 for 8-bit data, None for real-valued data (the bound is then on a density).
      draws: take these random numbers and need no key.

    Raises:
      ValueError: an infinite end (names `with_endpoints`), an unknown prediction, a num_steps that
        is not the discrete schedule's, arguments in another order, or quantised data outside
        [-1, 1].

    Examples:
      >>> import jax
      >>> import diffax
      >>> from diffax import schedules
      >>> predict = diffax.by_log_snr(lambda x, l: schedules.sigma_of(l)[:, None] * x)
      >>> schedule = schedules.get("linear_logsnr", log_snr_max=10.0, log_snr_min=-10.0)
      >>> x0 = jax.random.normal(jax.random.key(0), (4096, 2))
      >>> bound = diffax.vlb(jax.random.key(1), predict, schedule, x0, levels=None)
      >>> abs(float(bound.total.mean()) - 2.05) < 0.2  # log2(2 pi e) / 2, a standard normal's
      True
    """
    arguments.check_order("vlb", key=key, predict=predict, schedule=schedule, x0=x0)
    process.check_prediction(prediction)
    x0 = process.widened(arguments.quantised("x0", x0, levels))
    if key is None and draws is None:
        raise ValueError("key is None: the bound draws times and noise, so give a key, or `draws`")
    require_finite_ends(schedule, "vlb")
    u, noise, clean_noise = draw(key, x0.shape, x0.dtype) if draws is None else draws
    t, log_snr_t, weight = _transition(schedule, u, num_steps)
    error = eps_error(predict, x0, noise, t, log_snr_t, prediction)
    log_snr_clean, log_snr_noisy = ends_of(schedule)
    nats = VLB(
        prior=prior_term(x0, log_snr_noisy),
        diffusion=0.5 * weight * error,
        reconstruction=reconstruction_term(x0, log_snr_clean, clean_noise, levels),
    )
    return jax.tree.map(lambda value: value / (math.log(2) * math.prod(x0.shape[1:])), nats)


def eps_error(
    predict: Predict,
    x0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    log_snr: jax.Array,
    prediction: str,
) -> jax.Array:
    """|eps - eps_hat(x_t)|^2 summed over the data's axes, (batch,), for x_t at `log_snr` (batch,).

    Both eps are read from the prediction and from its target, whose difference is exact: for x0-
    and v-prediction eps - eps_hat is -alpha/sigma or alpha times the difference in the network's
    own space.
    """
    x_t = process.q_sample_at(x0, log_snr, noise)
    out = process.call_predictor(predict, x_t, t, log_snr)
    target = process.target_of(prediction, x0, noise, log_snr)
    squares = jnp.sum((out - target).astype(x0.dtype) ** 2, axis=tuple(range(1, x0.ndim)))
    return squares * process.eps_scale(prediction, log_snr)


def prior_term(x0: jax.Array, log_snr: jax.Array) -> jax.Array:
    """KL(q(x_1 | x0) | N(0, I)) in nats, (batch,), for `log_snr` at the noisy end."""
    # sigma^2 - 1 - log sigma^2 = softplus(log_snr) - alpha^2
    rest = jax.nn.softplus(log_snr) - alpha_of(log_snr) ** 2
    return 0.5 * jnp.sum(alpha_of(log_snr) ** 2 * x0**2 + rest, axis=tuple(range(1, x0.ndim)))


def reconstruction_term(
    x0: jax.Array, log_snr: jax.Array, noise: jax.Array, levels: int | None
) -> jax.Array:
    """-log p(x0 | x0 + noise exp(-log_snr / 2)) in nats, (batch,), at the clean end's `log_snr`."""
    axes = tuple(range(1, x0.ndim))
    if levels is None:
        return jnp.sum(0.5 * (noise**2 + math.log(2 * math.pi) - log_snr), axis=axes)
    half = 0.5 * (levels - 1)
    values = jnp.arange(levels, dtype=x0.dtype) / half - 1

    def one(example):
        x, z = example
        logits = -0.5 * jnp.exp(log_snr) * (z[..., None] - values) ** 2
        index = jnp.clip(jnp.round((x + 1) * half), 0, levels - 1).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - chosen)

    # example by example: the logits are `levels` times the size of the data
    return jax.lax.map(one, (x0, x0 + noise * jnp.exp(-0.5 * log_snr)))


def _transition(
    schedule: AnySchedule, u: jax.Array, num_steps: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """t, its log-SNR and the weight of |eps - eps_hat|^2 / 2 at u in [0, 1); each (batch,)."""
    if schedule.num_steps is not None:
        total = schedule.num_steps - 1
        if num_steps not in (None, schedule.num_steps) or total < 1:
            raise ValueError(
                f"num_steps={num_steps}: this discrete schedule has {schedule.num_steps} steps,"
                " and the bound takes all of them (2 or more)"
            )
        t = 1 + jnp.minimum(jnp.floor(u * total), total - 1).astype(jnp.int32)
        log_snr_t, log_snr_s = schedule.log_snr(t), schedule.log_snr(t - 1)
        return t, log_snr_t, total * jnp.expm1(log_snr_s - log_snr_t)
    if num_steps is None:
        log_snr_t, slope = schedule.log_snr_and_slope(u)
        return u, log_snr_t, -slope
    num_steps = arguments.whole("num_steps", num_steps, 1, arguments.MOST_STEPS)
    step = jnp.minimum(jnp.floor(u * num_steps), num_steps - 1)
    t, s = (step + 1) / num_steps, step / num_steps
    log_snr_t, log_snr_s = schedule.log_snr(t), schedule.log_snr(s)
    return t, log_snr_t, num_steps * jnp.expm1(log_snr_s - log_snr_t)


# --- by the probability-flow ODE ----------------------------------------------------------------


def ode_log_likelihood(
    predict: Predict,
    schedule: AnySchedule,
    x0: jax.Array,
    *,
    key: jax.Array | None = None,
    num_steps: int | None = 200,
    prediction: str = "eps",
    divergence: str = "hutchinson",
    num_probes: int = 1,
    tolerance: float = 1e-5,
) -> jax.Array:
    """log p(x0), (batch,), in nats: the probability-flow ODE's density at the clean end.

    With l = log-SNR / 2 as the time, the flow and the change of density along it are

        dx/dl = sigma^2 x - sigma eps(x),    d log p(x) / dl = -(D sigma^2 - sigma tr d eps / dx)

    and at the noisy end log p is the standard normal's (Song 2021, eqs. 13 and 39, there in t). The
    schedule matters by its ends alone, since the network is conditioned on the noise
    level.

    Args:
      predict: as in `sample`. In a discrete schedule it must be conditioned on the log-SNR
        (`by_log_snr`).
      schedule: finite log-SNR at both ends.
      x0: (batch, ..., C), real-valued; for quantised data see `ode_bits_per_dim`.
      key: for the probes of "hutchinson", which needs one; or one for each example, (batch,), whose
        numbers then don't depend on the others.
      num_steps: of the classical Runge-Kutta method of order 4, in equal steps of l, four calls
        each; None for adaptive steps (Dormand-Prince) to `tolerance`, relative and absolute.
      prediction: "eps", "x0", "v", "score" or "flow".
      divergence: "exact", one derivative for every number of an example, or "hutchinson", an
        unbiased estimate of the trace by `num_probes` random signs, the same along the flow.

    Raises:
      ValueError: an infinite end (names `with_endpoints`), an unknown divergence, a missing key, a
        count below 1, arguments in another order, or a discrete schedule with a predictor told the
        index.
    """
    order = dict(predict=predict, schedule=schedule, x0=x0, key=key)
    arguments.check_order("ode_log_likelihood", **order)
    x0 = process.widened(arguments.examples("x0", x0))
    process.check_prediction(prediction)
    require_finite_ends(schedule, "ode_log_likelihood")
    if not isinstance(divergence, str) or divergence not in _DIVERGENCES:
        raise ValueError(unknown("divergence", divergence, _DIVERGENCES))
    if divergence == "hutchinson" and key is None:
        raise ValueError("divergence='hutchinson' draws random probes: give a key")
    num_probes = arguments.whole("num_probes", num_probes, 1, arguments.MOST_STEPS)
    if num_steps is not None:
        num_steps = arguments.whole("num_steps", num_steps, 1, arguments.MOST_STEPS)
    if schedule.num_steps is not None and not process.takes_log_snr(predict):
        raise ValueError(
            "the ODE passes between the indices of a discrete schedule: give a predictor"
            " conditioned on the log-SNR (by_log_snr)"
        )
    size = math.prod(x0.shape[1:])
    probes = _DIVERGENCES[divergence](key, x0, num_probes)

    def eps_at(x: jax.Array, level: jax.Array) -> jax.Array:
        log_snr = jnp.full(x.shape[:1], 2 * level, x.dtype)
        by_time = not process.takes_log_snr(predict)
        t = schedule.inverse_log_snr(log_snr) if by_time else log_snr
        return process.denoise(predict, x, t, log_snr, prediction)[1]

    def velocity(state: tuple[jax.Array, jax.Array], level: jax.Array):
        x, _ = state
        sigma = sigma_of(2 * level)
        eps, pushed = jax.linearize(lambda x: eps_at(x, level), x)
        # one probe at a time: all at once would be so many times the memory
        axes = tuple(range(1, x.ndim))
        trace = jax.lax.map(lambda probe: jnp.sum(probe * pushed(probe), axes), probes[0])
        total = probes[1] * jnp.sum(trace, axis=0)
        return sigma**2 * x - sigma * eps, -(size * sigma**2 - sigma * total)

    clean, noisy = (jnp.asarray(0.5 * end, x0.dtype) for end in ends_of(schedule))
    start = (x0, jnp.zeros(x0.shape[:1], x0.dtype))
    if num_steps is None:
        x, change = _adaptively(velocity, start, clean, noisy, tolerance)
    else:
        x, change = _runge_kutta(velocity, start, clean, noisy, num_steps)
    prior = -0.5 * (jnp.sum(x**2, tuple(range(1, x.ndim))) + size * math.log(2 * math.pi))
    return prior - change


def ode_bits_per_dim(
    predict: Predict,
    schedule: AnySchedule,
    x0: jax.Array,
    *,
    key: jax.Array,
    levels: int | None = 256,
    **options,
) -> jax.Array:
    """Bits per dimension, (batch,), of quantised data by the ODE, with uniform dequantisation.

    x = x0 + w (u - 1/2), u uniform and w = 2 / (levels - 1) the bins' width; then -log2 of p(x) w^D
    is in the mean an upper bound (Theis 2016). With `levels` None the data is real-valued.

    Args:
      x0: as in `vlb`; key: PRNG key, or one for each example, (batch,). options: of
        `ode_log_likelihood`.

    Raises:
      ValueError: as `ode_log_likelihood`; quantised data outside [-1, 1].
    """
    order = dict(predict=predict, schedule=schedule, x0=x0, key=key)
    arguments.check_order("ode_bits_per_dim", **order)
    x0 = process.widened(arguments.quantised("x0", x0, levels))
    noise_key, probe_key = process.split_key(key)
    size, log_width = math.prod(x0.shape[1:]), 0.0
    if levels is not None:
        width = 2 / (levels - 1)
        uniform = functools.partial(jax.random.uniform, dtype=x0.dtype)
        x0 = x0 + width * (process.drawn(uniform, noise_key, x0.shape) - 0.5)
        log_width = math.log(width)
    log_density = ode_log_likelihood(predict, schedule, x0, key=probe_key, **options)
    return -(log_density / size + log_width) / math.log(2)


def _signs(key: jax.Array, x: jax.Array, num: int) -> tuple[jax.Array, float]:
    """Random signs, (num, *x.shape), and the weight of each."""
    rademacher = functools.partial(jax.random.rademacher, dtype=x.dtype)
    signs = process.drawn(rademacher, process.typed(key), (x.shape[0], num, *x.shape[1:]))
    return jnp.swapaxes(signs, 0, 1), 1 / num


def _units(key: jax.Array, x: jax.Array, num: int) -> tuple[jax.Array, float]:
    """Every unit vector: the trace itself, as a sum."""
    del key, num
    size = math.prod(x.shape[1:])
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    return jnp.broadcast_to(basis, (size, *x.shape)), 1.0


_DIVERGENCES: dict[str, Callable] = {"exact": _units, "hutchinson": _signs}


def _runge_kutta(velocity, state, first, last, num_steps):
    """The classical method of order 4, in equal steps."""
    h = (last - first) / num_steps

    def ahead(state, slope, by):
        return jax.tree.map(lambda s, v: s + by * v, state, slope)

    def step(state, i):
        time = first + i * h
        a = velocity(state, time)
        b = velocity(ahead(state, a, h / 2), time + h / 2)
        c = velocity(ahead(state, b, h / 2), time + h / 2)
        d = velocity(ahead(state, c, h), time + h)
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, a, b, c, d)
        return ahead(state, mean, h), None

    return jax.lax.scan(step, state, jnp.arange(num_steps))[0]


def _adaptively(velocity, state, first, last, tolerance):
    """By `jax.experimental.ode.odeint`, which wants an increasing time."""

    def forward(state, time):
        return jax.tree.map(jnp.negative, velocity(state, first - time))

    times = jnp.stack([jnp.zeros_like(first), first - last])
    states = odeint(forward, state, times, rtol=tolerance, atol=tolerance)
    return jax.tree.map(lambda s: s[-1], states)
