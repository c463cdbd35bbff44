"""The variational bound against closed forms, for Gaussian data and for 8-bit data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import gaussian, in_float64, independent, predictor
from schedule_cases import bounded

from diffax import likelihood, process, schedules

pytestmark = pytest.mark.usefixtures("hasty_compiler")

VARIANCE = 0.4
N = 40_000


def data_and_predictor(dtype=np.float64):
    """One-dimensional zero-mean Gaussian data and its exact predictor of eps."""
    data = gaussian(np.zeros(1), VARIANCE * np.eye(1), dtype)
    return data.sample(jax.random.key(0), N), predictor(data)


def error_at(log_snr):
    """E|eps - eps_hat|^2 = alpha^2 v / (alpha^2 v + sigma^2) for Gaussian data of variance v."""
    signal = VARIANCE / (1 + np.exp(-log_snr))
    return signal / (signal + 1 / (1 + np.exp(log_snr)))


def close(terms, expected, sigmas=5.0):
    """The mean of independent terms within so many of its standard errors."""
    terms = np.asarray(terms, np.float64)
    assert abs(terms.mean() - expected) < sigmas * terms.std() / math.sqrt(len(terms)) + 1e-9


@in_float64
def test_every_term_of_gaussian_data_has_its_closed_form():
    x0, predict = data_and_predictor()
    schedule = schedules.linear_logsnr(5.0, -5.0)
    terms = likelihood.vlb(jax.random.key(1), predict, schedule, x0, levels=None)
    grid = np.linspace(-5, 5, 100_001)
    close(terms.diffusion, 0.5 * np.trapezoid(error_at(grid), grid) / math.log(2))
    alpha2 = 1 / (1 + math.exp(5))
    prior = 0.5 * (alpha2 * VARIANCE - alpha2 - math.log(1 - alpha2)) / math.log(2)
    close(terms.prior, prior)
    # E over noise of -log N(x; x + exp(-5 / 2) noise, exp(-5))
    close(terms.reconstruction, 0.5 * (1 + math.log(2 * math.pi) - 5) / math.log(2))
    assert terms.total.shape == (N,)


@pytest.mark.parametrize("num_steps", [1, 4, 50])
@in_float64
def test_with_t_steps_the_diffusion_term_is_the_sum_over_the_steps(num_steps):
    x0, predict = data_and_predictor()
    schedule = schedules.cosine_logsnr(4.0, -4.0)
    levels = np.asarray(schedule.log_snr(jnp.arange(num_steps + 1) / num_steps))
    weights = np.expm1(levels[:-1] - levels[1:])
    expected = 0.5 * np.sum(weights * error_at(levels[1:])) / math.log(2)
    terms = likelihood.vlb(jax.random.key(2), predict, schedule, x0, num_steps, levels=None)
    close(terms.diffusion, expected)
    # A discrete schedule has its clean end at its first index, and so a step less.
    discrete = schedule.discretize(num_steps + 1)
    table = np.asarray(discrete.log_snrs)
    expected = 0.5 * np.sum(np.expm1(table[:-1] - table[1:]) * error_at(table[1:])) / math.log(2)
    terms = likelihood.vlb(jax.random.key(3), predict, discrete, x0, levels=None)
    close(terms.diffusion, expected)


@in_float64
def test_the_bound_lies_above_the_entropy_by_the_gap_that_it_should_have():
    """Total - entropy = KL(q(z_1) | N) + E KL(q(x | z_0) | decoder), both Gaussian here."""
    x0, predict = data_and_predictor()
    terms = likelihood.vlb(
        jax.random.key(4), predict, schedules.linear_logsnr(3.0, -3.0), x0, levels=None
    )
    entropy = 0.5 * math.log(2 * math.pi * math.e * VARIANCE)
    alpha2 = 1 / (1 + math.exp(3))
    marginal = alpha2 * VARIANCE + 1 - alpha2
    at_noisy_end = 0.5 * (marginal - 1 - math.log(marginal))
    # x given z_0: posterior N(m, s); decoder N(z_0 / alpha, w); averaged over z_0
    a2, s2 = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    posterior = VARIANCE * s2 / (a2 * VARIANCE + s2)
    width = s2 / a2
    gain = math.sqrt(a2) * VARIANCE / (a2 * VARIANCE + s2) - 1 / math.sqrt(a2)
    distance = gain**2 * (a2 * VARIANCE + s2)
    at_clean_end = 0.5 * (posterior / width + distance / width - 1 - math.log(posterior / width))
    close(terms.total, (entropy + at_noisy_end + at_clean_end) / math.log(2))


@in_float64
def test_more_steps_come_nearer_to_continuous_time_from_above():
    levels = {}
    for num_steps in (10, 100, 1000):
        table = np.linspace(6, -6, num_steps + 1)
        levels[num_steps] = 0.5 * np.sum(np.expm1(table[:-1] - table[1:]) * error_at(table[1:]))
    grid = np.linspace(-6, 6, 100_001)
    continuous = 0.5 * np.trapezoid(error_at(grid), grid)
    gaps = [value - continuous for value in levels.values()]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    x0, predict = data_and_predictor()
    schedule = schedules.linear_logsnr(6.0, -6.0)
    for num_steps, expected in levels.items():
        terms = likelihood.vlb(jax.random.key(5), predict, schedule, x0, num_steps, levels=None)
        close(terms.diffusion, expected / math.log(2))


@in_float64
def test_reconstruction_of_quantised_data_is_the_softmax_over_its_levels():
    levels, log_snr = 8, 3.0
    values = 2 * np.arange(levels) / (levels - 1) - 1
    x0 = jnp.asarray(values[[0, 3, 7]])[:, None]
    noise = jnp.asarray([[0.3], [-1.2], [0.8]])
    found = likelihood.reconstruction_term(x0, jnp.asarray(log_snr), noise, levels)
    for x, e, nats in zip(np.asarray(x0)[:, 0], np.asarray(noise)[:, 0], found):
        z = x + e * math.exp(-log_snr / 2)
        density = np.exp(-0.5 * math.exp(log_snr) * (z - values) ** 2)
        own = density[np.argmin(abs(values - x))]
        np.testing.assert_allclose(nats, -math.log(own / density.sum()), rtol=1e-10)
    # every value gets some probability, and at high log-SNR its own gets all
    certain = likelihood.reconstruction_term(x0, jnp.asarray(20.0), noise, levels)
    np.testing.assert_allclose(certain, 0.0, atol=1e-12)


def test_eight_bit_data_far_from_its_neighbours_cost_their_entropy():
    """Two equally likely values, exact predictor: one bit per dimension, within the ends' error."""
    low, high = 2 * 40 / 255 - 1, 2 * 215 / 255 - 1
    x0 = jnp.where(jax.random.bernoulli(jax.random.key(0), shape=(20_000, 1)), high, low)

    def exact(x_t, log_snr):
        alpha, sigma = (
            process.expand_to(f(log_snr), x_t) for f in (schedules.alpha_of, schedules.sigma_of)
        )
        logits = jnp.stack([-0.5 * ((x_t - alpha * m) / sigma) ** 2 for m in (low, high)])
        mean = jnp.sum(jax.nn.softmax(logits, axis=0) * jnp.array([low, high])[:, None, None], 0)
        return (x_t - alpha * mean) / sigma

    schedule = schedules.linear_logsnr(14.0, -12.0)
    terms = likelihood.vlb(jax.random.key(1), process.by_log_snr(exact), schedule, x0)
    close(terms.total, 1.0)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@in_float64
def test_the_bound_does_not_depend_on_what_the_network_predicts(prediction):
    data = gaussian(dtype=np.float64)
    x0 = data.sample(jax.random.key(0), 256)
    key, schedule = jax.random.key(1), schedules.linear_logsnr(5.0, -5.0)
    eps, own = (
        likelihood.vlb(key, predictor(data, p), schedule, x0, prediction=p, levels=None)
        for p in ("eps", prediction)
    )
    np.testing.assert_allclose(own.total, eps.total, rtol=1e-7)


@pytest.mark.parametrize("name", schedules.names())
def test_infinite_ends_are_refused_with_the_remedy(name):
    x0, predict = jnp.zeros((4, 2)), predictor(gaussian())
    first, last = schedules.concrete_ends(schedules.get(name))
    if math.isinf(first) or math.isinf(last):
        with pytest.raises(ValueError, match="with_endpoints"):
            likelihood.vlb(jax.random.key(0), predict, schedules.get(name), x0, levels=None)
    terms = likelihood.vlb(
        jax.random.key(0), predict, bounded(schedules.get(name)), x0, levels=None
    )
    assert bool(jnp.all(jnp.isfinite(terms.total)))


@pytest.mark.parametrize("num_steps", [0, -3, 2.5])
def test_a_wrong_number_of_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        likelihood.vlb(
            jax.random.key(0),
            predictor(gaussian()),
            schedules.linear_logsnr(),
            jnp.zeros((4, 2)),
            num_steps,
            levels=None,
        )


def test_a_discrete_schedule_has_its_own_number_of_steps():
    with pytest.raises(ValueError, match="this discrete schedule has 10 steps"):
        likelihood.vlb(
            jax.random.key(0),
            predictor(gaussian()),
            schedules.linear_logsnr().discretize(10),
            jnp.zeros((4, 2)),
            20,
            levels=None,
        )


def test_x0_error_and_eps_error_differ_by_the_snr():
    """eps_error reads each prediction's error exactly, at every log-SNR."""
    data = gaussian()
    x0 = data.sample(jax.random.key(0), 16)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    log_snr = jnp.linspace(-9.0, 9.0, 16)

    def off(prediction):
        exact = predictor(data, prediction)
        return process.by_log_snr(lambda x, level: exact(x, level) + 0.1)

    for prediction, factor in (
        ("eps", 1.0),
        ("x0", jnp.exp(log_snr)),
        ("v", jax.nn.sigmoid(log_snr)),
    ):
        x_t = process.q_sample_at(x0, log_snr, noise)
        target = process.target_of(prediction, x0, noise, log_snr)
        own = jnp.sum((off(prediction)(x_t, log_snr) - target) ** 2, axis=1)
        found = likelihood.eps_error(off(prediction), x0, noise, log_snr, log_snr, prediction)
        np.testing.assert_allclose(found, own * factor, rtol=1e-5)


def test_of_narrow_data_the_bound_is_taken_in_float32():
    """Sums over the data of bfloat16 would hold two digits."""
    x0, predict = jnp.linspace(-1, 1, 4 * 256).reshape(4, 256), independent(0.0, 0.3)
    x0 = x0.astype(jnp.bfloat16)
    arguments = (jax.random.key(0), predict, schedules.linear_logsnr())
    narrow, wide = (
        likelihood.vlb(*arguments, x, levels=None) for x in (x0, x0.astype(jnp.float32))
    )
    jax.tree.map(np.testing.assert_array_equal, narrow, wide)
    assert narrow.total.dtype == jnp.float32
    by_ode = jax.eval_shape(
        lambda x: likelihood.ode_log_likelihood(*arguments[1:], x, key=arguments[0]), x0
    )
    assert by_ode.dtype == jnp.float32


def test_the_bound_of_a_predictor_of_the_score_is_that_of_eps():
    mixture, schedule, key = gaussian(), schedules.linear_logsnr(6.0, -6.0), jax.random.key(0)
    x0 = jnp.linspace(-1, 1, 16).reshape(8, 2)
    by_eps, by_score = (
        likelihood.vlb(key, process.by_log_snr(f), schedule, x0, None, kind, levels=None)
        for kind, f in (("eps", mixture.eps), ("score", mixture.score))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), by_eps, by_score)


def test_what_is_drawn_for_an_example_depends_on_its_number_alone():
    """And its times are evenly spread over any examples in a row."""
    key, number = jax.random.key(3), jnp.arange(1000)
    whole = likelihood.draw(key, (1000, 2), number=number)
    part = likelihood.draw(key, (40, 2), number=number[300:340])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[300:340], b), whole, part)
    assert np.all((whole.u >= 0) & (whole.u < 1))
    for some in (whole.u, whole.u[:50], whole.u[700:733]):
        gaps = np.diff(np.sort(np.concatenate([some, some[:1] * 0, some[:1] * 0 + 1])))
        assert gaps.max() < 3 / len(some)
    assert np.abs(np.corrcoef(whole.noise.ravel(), whole.clean_noise.ravel())[0, 1]) < 0.1
    np.testing.assert_allclose(whole.noise.std(), 1, atol=0.06)
