"""The forward process against brute force, and the conversions between predictions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import CONTINUOUS, DISCRETE

import diffax
from diffax import process, schedules

pytestmark = pytest.mark.usefixtures("hasty_compiler")

discrete = pytest.mark.parametrize("name", DISCRETE)
KINDS = process.PREDICTIONS


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# --- q_sample and q_step ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ((4, 2), (4, 5, 1), (4, 3, 3, 2)))
@pytest.mark.parametrize("t", (0.3, np.array([0.1, 0.4, 0.7, 0.99])))
def test_q_sample_in_continuous_time(shape, t):
    schedule = schedules.cosine()
    x0, noise = normal(0, *shape), normal(1, *shape)
    alpha_bar = (
        np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    alpha_bar = np.reshape(alpha_bar, np.shape(t) + (1,) * (len(shape) - np.ndim(t)))
    expected = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * noise
    found = diffax.q_sample(schedule, jnp.asarray(x0), jnp.asarray(t), jnp.asarray(noise))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        process.q_sample_at(x0, schedule.log_snr(t), noise), expected, atol=2e-6
    )


@discrete
def test_q_sample_in_discrete_time(name):
    with jax.enable_x64(True):
        schedule = DISCRETE[name]()
        t = jnp.asarray([0, 7, 19, 29])
        clean = np.cumprod(1 - np.asarray(schedule.betas))[np.asarray(t)][:, None]
        x0, noise = normal(0, 4, 3), normal(1, 4, 3)
        expected = np.sqrt(clean) * x0 + np.sqrt(1 - clean) * noise
        np.testing.assert_allclose(
            diffax.q_sample(schedule, x0, t, noise), expected, rtol=1e-9, atol=1e-9
        )


def test_zero_snr_is_pure_noise_and_infinite_snr_pure_signal():
    schedule = schedules.sigmoid()
    x0, noise = jnp.asarray(normal(0, 3, 2)), jnp.asarray(normal(1, 3, 2))
    np.testing.assert_array_equal(diffax.q_sample(schedule, x0, 1.0, noise), noise)
    np.testing.assert_array_equal(diffax.q_sample(schedule, x0, 0.0, noise), x0)


@discrete
@pytest.mark.parametrize("double", (False, True))
def test_all_steps_composed_give_q_sample(name, double):
    with jax.enable_x64(double):
        schedule = DISCRETE[name]()
        t = jnp.arange(schedule.num_steps)
        one, zero = jnp.ones((schedule.num_steps, 1)), jnp.zeros((schedule.num_steps, 1))
        # the factor on x_prev and the deviation of the noise, of every step
        kept = np.asarray(diffax.q_step(schedule, one, t, zero), np.float64)[:, 0]
        added = np.asarray(diffax.q_step(schedule, zero, t, one), np.float64)[:, 0]
        beta = np.asarray(schedule.betas, np.float64)
        scale, variance = 1.0, 0.0
        for i in range(schedule.num_steps):
            scale, variance = scale * kept[i], variance * kept[i] ** 2 + added[i] ** 2
        tolerance = dict(rtol=1e-9, atol=1e-12) if double else dict(rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(kept, np.sqrt(1 - beta), atol=1e-10 if double else 1e-6)
        np.testing.assert_allclose(added, np.sqrt(beta), rtol=1e-6 if double else 1e-3)
        np.testing.assert_allclose(scale, schedule.alpha(t[-1]), **tolerance)
        np.testing.assert_allclose(variance, schedule.sigma(t[-1]) ** 2, **tolerance)


@given(
    st.sampled_from(["linear", "cosine", "laplace", "learned(polynomial, fixed ends)"]),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_a_step_from_s_to_t_goes_through_any_time_between(name, times):
    first, middle, last = sorted(times)
    with jax.enable_x64(True):
        schedule = CONTINUOUS[name]()
        one, zero = jnp.ones((1,)), jnp.zeros((1,))

        def step(s, t):
            kept = diffax.q_step(schedule, one, t, zero, s=s)
            return kept[0], diffax.q_step(schedule, zero, t, one, s=s)[0] ** 2

        (kept1, added1), (kept2, added2) = step(first, middle), step(middle, last)
        kept, added = step(first, last)
        np.testing.assert_allclose(kept1 * kept2, kept, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(added1 * kept2**2 + added2, added, rtol=1e-9, atol=1e-12)


# --- q_posterior --------------------------------------------------------------------------------


def bayes(x0, x_t, alpha_s, var_s, kept, added):
    """N(x_s; alpha_s x0, var_s) N(x_t; kept x_s, added), normalised in x_s: mean and variance."""
    precision = 1 / var_s + kept**2 / added
    mean = (alpha_s * x0 / var_s + kept * x_t / added) / precision
    return mean, 1 / precision


@discrete
def test_posterior_of_a_discrete_schedule_is_bayes_rule(name):
    with jax.enable_x64(True):
        schedule = DISCRETE[name]()
        last = schedule.num_steps - 1
        t = np.array([1, 7, 20, last])
        beta = np.asarray(schedule.betas)
        before = np.cumprod(1 - beta)[t - 1][:, None]
        x0, x_t = normal(0, 4, 3), normal(1, 4, 3)
        expected = bayes(
            x0, x_t, np.sqrt(before), 1 - before, np.sqrt(1 - beta[t])[:, None], beta[t][:, None]
        )
        mean, variance = diffax.q_posterior(schedule, x0, x_t, jnp.asarray(t))
        assert variance.shape == (4, 1)
        np.testing.assert_allclose(mean, expected[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(variance, expected[1], rtol=1e-6, atol=1e-12)
        # Ho 2020, eq. 7, as printed
        tilde = (1 - before) / (1 - before * (1 - beta[t])[:, None]) * beta[t][:, None]
        np.testing.assert_allclose(variance, tilde, rtol=1e-6, atol=1e-12)


@given(st.floats(-15, 15), st.floats(-15, 15), st.integers(0, 100))
def test_posterior_between_any_two_levels_is_bayes_rule(one, other, seed):
    log_snr_t, log_snr_s = sorted((one, other + 0.01))
    if log_snr_t == log_snr_s:
        return
    clean_t, clean_s = 1 / (1 + np.exp(-log_snr_t)), 1 / (1 + np.exp(-log_snr_s))
    noise_t, noise_s = 1 / (1 + np.exp(log_snr_t)), 1 / (1 + np.exp(log_snr_s))
    x0, x_t = normal(seed, 2, 2, 3)
    # beta = 1 - clean_t / clean_s = (noise_t - noise_s) / clean_s, without cancellation
    gap = -np.expm1(log_snr_t - log_snr_s)
    beta = gap * noise_t
    expected = bayes(x0, x_t, np.sqrt(clean_s), noise_s, np.sqrt(clean_t / clean_s), beta)
    with jax.enable_x64(True):
        levels = jnp.full((2,), log_snr_t), jnp.full((2,), log_snr_s)
        mean, variance = process.posterior_between(x0, x_t, *levels)
        np.testing.assert_allclose(process.transition_variance(*levels), beta, rtol=1e-6)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(variance, np.full((2, 1), expected[1]), rtol=1e-9)
    single = process.posterior_between(
        jnp.asarray(x0), jnp.asarray(x_t), jnp.float32(log_snr_t), jnp.float32(log_snr_s)
    )
    np.testing.assert_allclose(single[0], expected[0], rtol=1e-3, atol=1e-4)


def test_posterior_at_the_first_step_is_x0():
    x0, x_t = jnp.asarray(normal(0, 2, 3)), jnp.asarray(normal(1, 2, 3))
    mean, variance = diffax.q_posterior(
        schedules.linear().discretize(50), x0, x_t, jnp.array([0, 0])
    )
    np.testing.assert_array_equal(mean, x0)
    np.testing.assert_array_equal(variance, np.zeros((2, 1)))
    mean, variance = diffax.q_posterior(schedules.cosine(), x0, x_t, t=0.4, s=0.0)
    np.testing.assert_array_equal(mean, x0)
    np.testing.assert_array_equal(variance, np.zeros((1, 1)))


def test_posterior_from_zero_snr_forgets_x_t():
    x0, x_t = jnp.asarray(normal(0, 2, 3)), jnp.asarray(normal(1, 2, 3))
    for schedule, t, s in (
        (schedules.zero_terminal_snr(schedules.linear().discretize(50)), 49, 48),
        (schedules.cosine(), 1.0, 0.7),
    ):
        mean, variance = diffax.q_posterior(schedule, x0, x_t, jnp.asarray(t), s=jnp.asarray(s))
        np.testing.assert_allclose(mean, schedule.alpha(s) * x0, rtol=1e-6)
        np.testing.assert_allclose(variance, jnp.full((1, 1), schedule.sigma(s) ** 2), rtol=1e-6)
        stepped = diffax.q_step(schedule, x0, jnp.asarray(t), x_t, s=jnp.asarray(s))
        np.testing.assert_array_equal(stepped, x_t)


def test_gradients_of_the_posterior_are_finite_at_every_step():
    schedule = schedules.zero_terminal_snr(schedules.linear().discretize(25))
    x0, x_t = jnp.asarray(normal(0, 3, 2)), jnp.asarray(normal(1, 3, 2))

    def total(x0, x_t, t):
        mean, variance = diffax.q_posterior(schedule, x0, x_t, t)
        return jnp.sum(mean) + jnp.sum(variance)

    for t in (0, 1, 24):
        gradients = jax.grad(total, (0, 1))(x0, x_t, jnp.asarray(t))
        assert all(np.all(np.isfinite(g)) for g in gradients)

    def by_time(t, s):
        mean, variance = diffax.q_posterior(schedules.cosine(), x0, x_t, t, s)
        return jnp.sum(mean) + jnp.sum(variance)

    assert np.all(np.isfinite(jax.grad(by_time, (0, 1))(0.5, 0.3)))


def test_a_continuous_schedule_needs_the_earlier_time():
    x = jnp.zeros((2, 2))
    for call in (diffax.q_posterior, diffax.q_step):
        with pytest.raises(ValueError, match="give the earlier time s"):
            call(schedules.cosine(), x, 0.5, x) if call is diffax.q_step else call(
                schedules.cosine(), x, x, 0.5
            )


# --- conversions --------------------------------------------------------------------------------


def kinds_of(x0, eps, alpha, sigma):
    """The predictions that all say the same, by their definitions."""
    by_levels = {"v": alpha * eps - sigma * x0, "score": -eps / sigma}
    return {"eps": eps, "x0": x0, **by_levels, "flow": eps - x0}


PAIRS = list(itertools.product(KINDS, KINDS))


@given(
    log_snr=st.lists(st.floats(-15, 15), min_size=3, max_size=3),
    shape=st.sampled_from([(2,), (5, 1), (4, 4, 3)]),
    seed=st.integers(0, 2**31),
)
def test_every_conversion_gives_the_definition(log_snr, shape, seed):
    x0, eps = normal(seed, 2, 3, *shape)
    with jax.enable_x64(True):
        alpha, sigma = (
            schedules.alpha_of(jnp.array(log_snr)),
            schedules.sigma_of(jnp.array(log_snr)),
        )
        columns = [np.asarray(x).reshape((3,) + (1,) * len(shape)) for x in (alpha, sigma)]
        x_t = columns[0] * x0 + columns[1] * eps
        kinds = kinds_of(x0, eps, *columns)
        for source, target in PAIRS:
            found = diffax.convert(kinds[source], x_t, alpha, sigma, source, target)
            # at log-SNR +-15 a rounding of x_t grows by 1 / alpha or 1 / sigma, 2e3, and score's
            # own 1 / sigma as much again
            np.testing.assert_allclose(found, kinds[target], rtol=1e-9, atol=1e-8)
            again = diffax.convert(found, x_t, alpha, sigma, target, source)
            np.testing.assert_allclose(again, kinds[source], rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("source, target", PAIRS)
def test_conversions_in_float32_lose_what_the_noise_level_costs(source, target):
    log_snr = jnp.linspace(-10, 10, 9)
    alpha, sigma = schedules.alpha_of(log_snr), schedules.sigma_of(log_snr)
    x0, eps = normal(3, 2, 9, 4).astype(np.float32)
    a, s = np.asarray(alpha)[:, None], np.asarray(sigma)[:, None]
    kinds = kinds_of(x0, eps, a, s)
    found = diffax.convert(kinds[source], a * x0 + s * eps, alpha, sigma, source, target)
    assert found.dtype == jnp.float32
    size = {"score": 1 / s}.get(target, 1.0)
    error = np.abs(found - kinds[target]) / size
    assert np.max(error * np.minimum(a, s)) < 2e-6


def test_v_x0_and_flow_convert_to_everything_at_zero_snr_and_eps_to_nothing_plausible():
    x0, eps = jnp.asarray(normal(0, 2, 3)), jnp.asarray(normal(1, 2, 3))
    alpha, sigma = jnp.zeros(2), jnp.ones(2)
    kinds = kinds_of(x0, eps, 0.0, 1.0)
    for source, target in itertools.product(("v", "x0", "flow"), KINDS):
        found = diffax.convert(kinds[source], eps, alpha, sigma, source, target)
        np.testing.assert_allclose(found, kinds[target], rtol=0, atol=5e-7)  # eps - (eps - x0)
    for source, target in itertools.product(("eps", "score"), ("x0", "v", "flow")):
        # x_t = sigma eps exactly gives 0 / 0, any other x_t an infinity
        for x_t in (eps, eps + 0.1):
            found = diffax.convert(kinds[source], x_t, alpha, sigma, source, target)
            assert not np.any(np.isfinite(found))
    assert np.all(diffax.convert(eps, eps, alpha, sigma, "eps", "score") == -eps)
    assert np.all(diffax.convert(-eps, eps, alpha, sigma, "score", "eps") == eps)


def test_alpha_and_sigma_may_be_scalars_or_per_example():
    x_t, eps = jnp.asarray(normal(0, 3, 2, 1)), jnp.asarray(normal(1, 3, 2, 1))
    a, s = 0.6, 0.8
    scalar = diffax.convert(eps, x_t, a, s, "eps", "x0")
    each = diffax.convert(eps, x_t, jnp.full(3, a), jnp.full(3, s), "eps", "x0")
    np.testing.assert_array_equal(scalar, each)
    np.testing.assert_allclose(scalar, (x_t - s * eps) / a, rtol=1e-6)


@pytest.mark.parametrize("field", ("source", "target"))
def test_unknown_kinds_are_refused(field):
    arguments = {"source": "eps", "target": "x0", field: "noise"}
    with pytest.raises(ValueError, match=f"{field}='noise': allowed are eps, x0, v, score"):
        diffax.convert(jnp.zeros(2), jnp.zeros(2), 0.5, 0.5, **arguments)


# --- what a network predicts and is told --------------------------------------------------------


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("log_snr", (-8.0, 0.0, 5.0))
def test_target_and_the_scale_of_its_error(prediction, log_snr):
    x0, eps = normal(0, 2, 3, 2)
    with jax.enable_x64(True):
        alpha, sigma = schedules.alpha_of(log_snr), schedules.sigma_of(log_snr)
        target = process.target_of(prediction, x0, eps, jnp.asarray(log_snr))
        np.testing.assert_allclose(target, kinds_of(x0, eps, alpha, sigma)[prediction], rtol=1e-12)
        # a network that is off by d in its own kind is off by sqrt(eps_scale) d in eps
        x_t = alpha * x0 + sigma * eps
        off = np.asarray(target) + normal(1, 3, 2)
        as_eps = diffax.convert(off, x_t, alpha, sigma, prediction, "eps")
        factor = np.sum((as_eps - eps) ** 2) / np.sum((off - target) ** 2)
        scale = process.eps_scale(prediction, jnp.asarray(log_snr))
        np.testing.assert_allclose(scale, factor, rtol=1e-9)


def test_learned_log_variance_lies_between_the_two():
    large, small = jnp.log(0.02), jnp.log(0.01)
    found = process.learned_log_variance(jnp.asarray([-1.0, 0.0, 1.0]), large, small)
    np.testing.assert_allclose(np.exp(found), [0.01, np.sqrt(0.02 * 0.01), 0.02], rtol=1e-6)


def test_eps_prediction_is_refused_where_the_schedule_ends_at_zero_snr():
    rescaled = schedules.zero_terminal_snr(schedules.linear())
    for schedule in (rescaled, rescaled.discretize(50), schedules.sigmoid().discretize(50)):
        with pytest.raises(ValueError) as caught:
            process.refuse_eps_at_zero_snr(schedule, "eps")
        for word in ("prediction='eps'", "zero SNR", "prediction='v'", "prediction='x0'"):
            assert word in str(caught.value)
        process.refuse_eps_at_zero_snr(schedule, "v")
        process.refuse_eps_at_zero_snr(schedule, "x0")
        process.refuse_eps_at_zero_snr(schedule, "flow")
    process.refuse_eps_at_zero_snr(schedules.linear().discretize(50), "eps")
    with pytest.raises(ValueError, match="prediction='score' can't give x0 at zero SNR"):
        process.refuse_eps_at_zero_snr(rescaled, "score")
    with pytest.raises(ValueError, match="prediction='noise'.* eps, x0, v, score"):
        process.refuse_eps_at_zero_snr(rescaled, "noise")


def test_a_marked_predictor_is_told_the_noise_level():
    def echo(x_t, level):
        return x_t * 0 + level

    x_t = jnp.zeros(2)
    assert not process.takes_log_snr(echo)
    assert process.takes_log_snr(diffax.by_log_snr(echo))
    np.testing.assert_array_equal(process.call_predictor(echo, x_t, jnp.array([3, 4]), 7.0), [3, 4])
    np.testing.assert_array_equal(
        process.call_predictor(diffax.by_log_snr(echo), x_t, 3.0, 7.0), [7, 7]
    )
    np.testing.assert_array_equal(diffax.by_log_snr(echo)(x_t, 2.0), [2, 2])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("steps", [None, 50])
def test_narrow_data_are_computed_in_float32_and_rounded_once(dtype, steps):
    schedule = schedules.cosine() if steps is None else schedules.cosine().discretize(steps)
    t, s = (0.7, 0.3) if steps is None else (30, 29)
    x0, noise = (jnp.asarray(normal(seed, 4, 3)).astype(dtype) for seed in (0, 1))
    alpha, sigma = schedule.alpha(jnp.asarray(t)), schedule.sigma(jnp.asarray(t))
    for function in (
        lambda x0, noise: diffax.q_sample(schedule, x0, t, noise),
        lambda x0, noise: diffax.q_step(schedule, x0, t, noise, s=s),
        lambda x0, noise: diffax.q_posterior(schedule, x0, noise, t, s=s)[0],
        lambda x0, noise: diffax.convert(x0, noise, alpha, sigma, "eps", "x0"),
        lambda x0, noise: diffax.convert(x0, noise, 0.6, 0.8, "v", "score"),
    ):
        exact = function(x0.astype(jnp.float32), noise.astype(jnp.float32))
        np.testing.assert_array_equal(function(x0, noise), exact.astype(dtype))
    mixed = diffax.q_sample(schedule, x0, t, noise.astype(jnp.float32))
    assert mixed.dtype == jnp.float32


# --- a discrete table's own digits --------------------------------------------------------------

TABLES = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "steep": np.linspace(1e-3, 0.5, 20),
    "zero SNR": np.append(np.linspace(1e-3, 0.3, 19), 1.0),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_a_step_and_its_posterior_have_the_table_s_betas(name, compiled):
    """Against Ho 2020, eqs. 2, 6 and 7, in float64; from float32 levels betas lose three digits."""
    betas = TABLES[name]
    schedule, t = schedules.from_betas(betas), np.arange(len(betas))
    bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], bar[:-1]])
    x0, x_t = np.float32(normal(0, len(betas), 3)), np.float32(normal(1, len(betas), 3))

    def both(schedule, x0, x_t, t):
        step = diffax.q_step(schedule, x0, t, x_t)
        return step, *diffax.q_posterior(schedule, x0, x_t, t)

    both = jax.jit(both) if compiled else both
    step, mean, variance = both(schedule, jnp.asarray(x0), jnp.asarray(x_t), jnp.asarray(t))
    column = lambda a: np.asarray(a)[:, None]  # noqa: E731
    want = column(np.sqrt(1 - betas)) * x0 + column(np.sqrt(betas)) * x_t
    np.testing.assert_allclose(step, want, rtol=0, atol=6e-7)
    of_x0, of_x_t = (
        np.sqrt(before) * betas / (1 - bar),
        np.sqrt(1 - betas) * (1 - before) / (1 - bar),
    )
    np.testing.assert_allclose(mean, column(of_x0) * x0 + column(of_x_t) * x_t, rtol=0, atol=3e-6)
    np.testing.assert_allclose(variance, column((1 - before) / (1 - bar) * betas), rtol=3e-6)
