"""Samplers against closed forms, against the published algorithms, and against each other."""

import dataclasses
import math
from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schedule_cases
from sampling_cases import CASES, HALF, KEY, draw

import diffax
from diffax import samplers, schedules
from diffax.process import by_log_snr
from diffax.schedules import alpha_of, sigma_of

pytestmark = pytest.mark.usefixtures("hasty_compiler")

PREDICT = exact.predictor(exact.gaussian())


def noises(key, steps, shape):
    """The start and the noise of each step that `sample` draws from `key`."""
    start_key, step_key = jax.random.split(key)
    draw = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(step_key, i), shape))
    return jax.random.normal(start_key, shape), draw(jnp.arange(steps))


def marginal(level, z):
    """Standard normal z (n, 2) mapped to the Gaussian's exact marginal at this level."""
    alpha, sigma = alpha_of(level), sigma_of(level)
    root = jnp.linalg.cholesky(alpha**2 * exact.COVARIANCE + sigma**2 * np.eye(2))
    return alpha * exact.MEAN.astype(z.dtype) + z @ root.T.astype(z.dtype)


def white(n):
    """(n, 2) points with zero mean and unit covariance, exactly."""
    z = np.random.default_rng(0).normal(size=(n, 2))
    z -= z.mean(0)
    return (z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / n)).T).astype(np.float32)


# --- against closed forms ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear_logsnr", "cosine", "linear", "edm"])
@exact.in_float64
def test_ddim_converges_to_the_probability_flow_with_order_one(name):
    """For Gaussian data the flow keeps (x - alpha m) / sqrt(alpha^2 v + sigma^2) constant."""
    mean, v, z = 1.0, 0.25, jnp.array([[-2.0], [0.0], [0.5], [3.0]])
    schedule = schedules.get(name)
    predict = exact.predictor(exact.gaussian([mean], [[v]], np.float64))

    def along(log_snr):
        alpha, sigma = alpha_of(log_snr), sigma_of(log_snr)
        return alpha * mean + jnp.sqrt(alpha**2 * v + sigma**2) * z

    def error(steps):
        levels = samplers.visited_levels(schedule, steps, "linspace")
        x = diffax.sample(
            KEY,
            predict,
            schedule,
            z.shape,
            num_steps=steps,
            grid="linspace",
            x_init=along(levels.log_snr[0]),
        )
        alpha, sigma = alpha_of(levels.log_snr[-1]), sigma_of(levels.log_snr[-1])
        gain = alpha * v / (alpha**2 * v + sigma**2)  # the last step: E[x0 | x at the clean end]
        want = mean + gain * (along(levels.log_snr[-1]) - alpha * mean)
        return jnp.max(jnp.abs(x - want))

    errors = np.array([jax.jit(error, static_argnums=0)(n) for n in (100, 200, 400, 800)])
    assert errors[-1] < 0.01
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 1.0, atol=0.06)


@pytest.mark.parametrize("name", ["cosine", "zero_terminal_snr linear", "discrete linear"])
def test_sampling_depends_on_the_visited_levels_alone(name):
    """A predictor that is told the log-SNR gives the same from a table of the visited levels, so
    the walk over all schedules below may share one compilation."""
    schedule = schedule_cases.REPRESENTATIVE[name]()
    options = dict(num_steps=9, sampler="ddpm", prediction="v")
    levels = samplers.visited_levels(schedule, 9, prediction="v")
    want = draw(schedule, **options)
    np.testing.assert_allclose(
        draw(schedule_cases.table_of(levels), **options), want, rtol=1e-4, atol=1e-5
    )


@partial(jax.jit, static_argnames=("sampler", "prediction"))
def gaussian_draws(table, z, sampler, prediction):
    levels = samplers.visited_levels(table, table.num_steps, prediction=prediction)
    x = diffax.sample(
        KEY,
        exact.predictor(exact.gaussian(), prediction),
        table,
        z.shape,
        sampler,
        table.num_steps,
        prediction,
        x_init=marginal(levels.log_snr[0], z),
    )
    return x, levels.log_snr[-1]


# An entropy rate is next to nothing at the noisy end, which a uniform grid leaves in one long step:
# 100 or 200 of its steps are not enough for the bounds that hold for the others. The error falls as
# 1 / steps.
LONG_FIRST_STEP = ("from_rate(spectral)", "discrete from_rate")


@pytest.mark.parametrize("name", CASES)
def test_mean_and_covariance_of_gaussian_data(name):
    """In float32, where nothing may be infinite or NaN with 2 steps, nor with 1000 (or all T).

    The largest element of the covariance is 0.5; a discrete schedule has only 30 or 100 steps.
    """
    schedule, z = CASES[name](), white(2000)
    discrete = schedule.num_steps is not None
    if discrete and name in LONG_FIRST_STEP:
        schedule = schedules.from_rate().discretize(400)
    most = schedule.num_steps or 1000
    num_ddim = most if name in LONG_FIRST_STEP else min(most, 200)
    prediction = "x0" if schedule.zero_terminal else "eps"
    visit = jax.jit(lambda s: samplers.visited_levels(s, most, prediction=prediction))
    levels = visit(schedule)
    # the uniform grid of n steps is every (most / n)-th level of the one of most steps
    two, some, all_ = (
        schedule_cases.table_of(jax.tree.map(lambda level, n=n: level[:: most // n], levels))
        for n in (2, num_ddim, most)
    )
    assert two.num_steps == 2
    assert np.all(np.isfinite(gaussian_draws(two, z, "ddpm", prediction)[0]))
    for sampler, table, off in (("ddim", some, 1e-5), ("ddpm", all_, 0.03)):
        x, last = gaussian_draws(table, z, sampler, prediction)
        assert np.all(np.isfinite(x))
        alpha, sigma = alpha_of(last), sigma_of(last)
        # The last step gives E[x0 | x], whose covariance is that of x0 less what is left open.
        spread = alpha**2 * exact.COVARIANCE + sigma**2 * np.eye(2)
        want = alpha**2 * exact.COVARIANCE @ np.linalg.inv(spread) @ exact.COVARIANCE
        np.testing.assert_allclose(x.mean(0), exact.MEAN, rtol=0, atol=off)
        bound = {"ddim": 0.04, "ddpm": 0.12}[sampler] if discrete else 0.035
        np.testing.assert_allclose(np.cov(x.T), want, rtol=0, atol=bound)


def deviation_in_a_mode(log_snr, deviation, sampler):
    """What a sampler with the exact denoiser makes of N(m, deviation^2) at these levels, float64.

    Each step is affine in x, so that the variance follows a recursion; the noise of ancestral steps
    is that of the small variance, which is too small by what is still open about x0.
    """
    alpha, sigma = (np.asarray(f(log_snr), np.float64) for f in (alpha_of, sigma_of))
    gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)  # E[x0 | x] by x
    spread = alpha[0] ** 2 * deviation**2 + sigma[0] ** 2
    for i, (a, s, g) in enumerate(zip(alpha[:-1], sigma[:-1], gain[:-1])):
        b, r = alpha[i + 1], sigma[i + 1]
        if sampler == "ddim":
            by_x, noise = b * g + r / s * (1 - a * g), 0.0
        else:
            opened = s**2 - (a / b * r) ** 2  # the transition's variance
            by_x = a / b * r**2 / s**2 + b * opened / s**2 * g
            noise = opened * r**2 / s**2
        spread = by_x**2 * spread + noise
    return gain[-1] * np.sqrt(spread)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("cosine", "eps"),
        ("zero_terminal_snr linear", "x0"),
        ("discrete linear", "eps"),
        ("zero_terminal_snr discrete linear", "v"),
    ],
)
def test_modes_of_a_mixture(name, prediction, sampler):
    """Masses within 0.03 (four standard deviations of 4,000 draws), means within 0.03, and the
    deviation within each mode within four standard errors of what so many steps must give."""
    mixture, schedule = exact.three_modes(), schedule_cases.REPRESENTATIVE[name]()
    steps = schedule.num_steps or 200
    x = draw(
        schedule,
        (4000, 2),
        exact.predictor(mixture, prediction),
        sampler=sampler,
        num_steps=steps,
        prediction=prediction,
    )
    x, means = np.asarray(x), np.asarray(mixture.means)
    nearest = np.argmin(np.linalg.norm(x[:, None] - means, axis=-1), axis=1)
    levels = samplers.visited_levels(schedule, steps, prediction=prediction).log_snr
    for k, deviation in enumerate(np.sqrt(mixture.covariances[:, 0, 0])):
        mode = x[nearest == k]
        assert len(mode) / len(x) == pytest.approx(float(mixture.weights[k]), abs=0.03)
        np.testing.assert_allclose(mode.mean(0), means[k], rtol=0, atol=0.03)
        want = deviation_in_a_mode(levels, float(deviation), sampler)
        np.testing.assert_allclose(mode.std(0), want, rtol=4 / math.sqrt(2 * len(mode)))


def test_deviation_in_a_mode_tends_to_the_data_s_own():
    """With ever more steps; a hundred ancestral ones leave a mode of 0.1 a fifth too narrow."""
    for sampler, few, off in (("ddim", 0.15, 0.005), ("ddpm", 0.5, 0.025)):
        coarse, fine = (
            deviation_in_a_mode(np.linspace(-10, 10, n), 0.1, sampler) for n in (20, 2000)
        )
        assert abs(coarse / 0.1 - 1) < few
        assert abs(fine / 0.1 - 1) < off


# --- against the published algorithms -----------------------------------------------------------

BETAS = np.linspace(1e-3, 0.35, 40)
BAR = np.cumprod(1 - BETAS)
SHAPE = (5, 3)


def by_index(x, t):
    """A predictor of eps that is told the index, and is no simple function of either."""
    return jnp.tanh(x) + 0.1 * jnp.cos(t.astype(x.dtype))[:, None] * x


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@exact.in_float64
def test_ddpm_is_algorithm_2_of_ho_2020(variance):
    start, z = (np.asarray(a) for a in noises(KEY, len(BETAS), SHAPE))
    x = start
    for i, t in enumerate(reversed(range(len(BETAS)))):
        before = BAR[t - 1] if t > 0 else 1.0
        squared = {"fixed_small": BETAS[t] * (1 - before) / (1 - BAR[t]), "fixed_large": BETAS[t]}
        eps = np.asarray(by_index(x, jnp.full(len(x), t)))
        mean = (x - BETAS[t] / np.sqrt(1 - BAR[t]) * eps) / np.sqrt(1 - BETAS[t])
        x = mean + (np.sqrt(squared[variance]) * z[i] if t > 0 else 0)
    schedule = schedules.from_betas(BETAS)
    drawn = draw(schedule, SHAPE, by_index, sampler="ddpm", num_steps=40, variance=variance)
    np.testing.assert_allclose(drawn, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@exact.in_float64
def test_ddim_is_equation_12_of_song_2021(eta):
    """On every fourth index; sigma of eq. 16."""
    visited = list(range(39, -1, -4))
    start, z = (np.asarray(a) for a in noises(KEY, len(visited), SHAPE))
    x = start
    for i, t in enumerate(visited):
        before = BAR[visited[i + 1]] if i + 1 < len(visited) else 1.0
        deviation = eta * np.sqrt((1 - before) / (1 - BAR[t]) * (1 - BAR[t] / before))
        eps = np.asarray(by_index(x, jnp.full(len(x), t)))
        x0 = (x - np.sqrt(1 - BAR[t]) * eps) / np.sqrt(BAR[t])
        x = np.sqrt(before) * x0 + np.sqrt(1 - before - deviation**2) * eps + deviation * z[i]
    schedule = schedules.from_betas(BETAS)
    drawn = draw(schedule, SHAPE, by_index, num_steps=10, eta=eta)
    np.testing.assert_allclose(drawn, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "zero_terminal_snr linear", "discrete linear"])
@exact.in_float64
def test_ddim_with_eta_1_is_ddpm_with_the_small_variance(name):
    schedule = schedule_cases.in_float64(schedule_cases.REPRESENTATIVE[name]())
    options = dict(predict=by_log_snr(exact.wrong), num_steps=20, prediction="v")
    ancestral = draw(schedule, sampler="ddpm", **options)
    np.testing.assert_allclose(draw(schedule, eta=1, **options), ancestral, rtol=1e-9, atol=1e-9)


@exact.in_float64
def test_learned_variance_lies_between_small_and_large():
    """Fraction -1 is the small, 1 the large, 0 their geometric mean (Nichol & Dhariwal 2021)."""

    def states(variance, fraction=None):
        def predict(x, t):
            eps = by_index(x, t)
            return eps if fraction is None else jnp.concatenate([eps, eps * 0 + fraction], -1)

        schedule = schedules.from_betas(BETAS)
        options = dict(sampler="ddpm", num_steps=10, variance=variance, return_trajectory=True)
        return draw(schedule, SHAPE, predict, **options)[1]

    small, large = states("fixed_small"), states("fixed_large")
    np.testing.assert_allclose(states("learned", -1.0), small, rtol=1e-9)
    np.testing.assert_allclose(states("learned", 1.0), large, rtol=1e-9)
    # after the first step, from index 39 to 35, they differ by their deviations times its noise
    z = noises(KEY, 10, SHAPE)[1][0]
    beta = 1 - BAR[39] / BAR[35]
    low, high = np.sqrt((1 - BAR[35]) / (1 - BAR[39]) * beta), np.sqrt(beta)
    np.testing.assert_allclose(large[1] - small[1], (high - low) * z, rtol=1e-8)
    middle = states("learned", 0.0)[1]
    np.testing.assert_allclose(middle - small[1], (np.sqrt(low * high) - low) * z, rtol=1e-8)


# --- the ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("steps", [None, 100])
def test_zero_snr_is_started_at_exactly(steps, prediction):
    schedule = schedules.linear() if steps is None else schedules.linear().discretize(steps)
    schedule = schedules.zero_terminal_snr(schedule)
    levels = samplers.visited_levels(schedule, 10, prediction=prediction)
    assert levels.log_snr[0] == -jnp.inf
    assert np.all(np.isfinite(levels.log_snr[1:]))
    for sampler in ("ddim", "ddpm"):
        options = dict(sampler=sampler, num_steps=10, prediction=prediction)
        assert np.all(np.isfinite(draw(schedule, **options)))


@pytest.mark.parametrize("steps", [None, 100])
def test_eps_is_refused_at_zero_snr(steps):
    schedule = schedules.linear() if steps is None else schedules.linear().discretize(steps)
    with pytest.raises(ValueError, match="prediction='v' or prediction='x0'"):
        diffax.sample(KEY, PREDICT, schedules.zero_terminal_snr(schedule), (4, 2))
    with pytest.raises(ValueError, match="log_snr_min=-inf"):
        diffax.sample(KEY, PREDICT, schedules.cosine(), (4, 2), log_snr_min=-np.inf)


def test_infinite_ends_are_clipped_to_the_range_asked_for():
    levels = samplers.visited_levels(schedules.cosine(), 50)
    np.testing.assert_allclose(levels.log_snr[0], -20, atol=0.01)
    assert levels.log_snr[-1] < 20  # the last interval ends at the clean end
    levels = samplers.visited_levels(
        schedules.cosine(), 50, "linspace", log_snr_max=7.0, log_snr_min=-4.0
    )
    np.testing.assert_allclose(levels.log_snr[jnp.array([0, -1])], [-4, 7], atol=0.01)
    levels = samplers.visited_levels(schedules.cosine(), 50, prediction="v", log_snr_min=-np.inf)
    assert levels.log_snr[0] == -jnp.inf


# --- under transformations ----------------------------------------------------------------------


def test_one_trace_per_step_count_and_nothing_on_the_host():
    """The network is traced once whatever the number of steps, and not at all the second time."""
    traced = []

    def predict(x, t):
        traced.append(t)
        return 0.5 * x

    def draw(key, steps):
        return diffax.sample(
            key, predict, schedules.cosine(), (4, 2), sampler="ddpm", num_steps=steps
        )

    compiled = jax.jit(draw, static_argnums=1)
    for steps in (5, 50):
        traced.clear()
        compiled(KEY, steps)
        assert len(traced) == 1
        compiled(jax.random.key(1), steps)
        assert len(traced) == 1
    text = str(jax.make_jaxpr(draw, static_argnums=1)(KEY, 5))
    assert "scan" in text
    assert "callback" not in text


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_jit_vmap_and_pmap_agree(sampler):
    """Over keys, and with the schedule as an argument: learned, so that it has leaves."""
    schedule = schedules.learned(kind="polynomial")

    def run(schedule, key):
        return diffax.sample(key, HALF, schedule, (3, 2), sampler=sampler, num_steps=10)

    keys = jax.random.split(KEY, 8)
    compiled = jax.jit(run)
    one_by_one = jnp.stack([compiled(schedule, key) for key in keys])
    np.testing.assert_allclose(run(schedule, keys[0]), one_by_one[0], rtol=1e-4, atol=1e-5)
    for transform in (jax.vmap, jax.pmap):
        mapped = transform(run, in_axes=(None, 0))(schedule, keys)
        np.testing.assert_allclose(mapped, one_by_one, rtol=1e-4, atol=1e-5)


@exact.in_float64
def test_gradient_to_a_schedule_through_the_sampler():
    """Against central differences."""
    schedule = schedules.learned(kind="polynomial")

    @jax.jit
    def squared(b):
        moved = dataclasses.replace(schedule, shape={**schedule.shape, "b": b})
        predict = exact.independent(0.3, 0.4)
        return jnp.sum(diffax.sample(KEY, predict, moved, (3, 2), num_steps=5) ** 2)

    b, h = jnp.asarray(0.3), 1e-6
    numeric = (squared(b + h) - squared(b - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(squared)(b), numeric, rtol=1e-6)
