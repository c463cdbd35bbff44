"""The network's loss: weightings and the hybrid loss against their published formulas."""

import math

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffax import likelihood, objectives, process, schedules
from diffax.objectives import WEIGHTINGS

pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEY = jax.random.key(0)
LEVELS = np.linspace(-12, 12, 49)


# --- weightings ---------------------------------------------------------------------------------


def weight(name, prediction="eps", fall=3.0):
    """The factor of the squared error in the network's own space, at LEVELS."""
    log_snr = jnp.asarray(LEVELS)
    scale = process.eps_scale(prediction, log_snr)
    return WEIGHTINGS[name](log_snr, jnp.full_like(log_snr, fall), scale)


@exact.in_float64
def test_weightings_are_the_published_ones():
    """Each in the space of the prediction that its paper writes it in."""
    snr = np.exp(LEVELS)
    published = [
        ("simple", "eps", np.ones_like(snr)),  # Ho 2020, eq. 14
        ("simple", "v", np.ones_like(snr)),
        ("elbo", "eps", 3.0 / 2 * np.ones_like(snr)),  # Kingma 2021
        ("elbo", "x0", 3.0 / 2 * snr),  # -SNR'(t) / 2
        ("min_snr", "x0", np.minimum(snr, 5)),  # Hang 2023
        ("min_snr", "eps", np.minimum(snr, 5) / snr),
        ("min_snr", "v", np.minimum(snr, 5) / (snr + 1)),
        ("sigmoid", "eps", 3.0 / 2 / (1 + np.exp(LEVELS - 2))),  # Kingma & Gao 2023
        ("p2", "eps", 1 / (1 + snr)),  # Choi 2022, k = gamma = 1
    ]
    assert {name for name, *_ in published} | {"edm"} == set(WEIGHTINGS)
    for name, prediction, expected in published:
        np.testing.assert_allclose(weight(name, prediction), expected, rtol=1e-12, err_msg=name)


@exact.in_float64
def test_edm_weighting_is_the_loss_of_karras_2022():
    """E over log sigma ~ N(-1.2, 1.2^2) of (sigma^2 + d^2) / (sigma d)^2 |D - x0|^2, d = 0.5.

    In units of d, sigma is exp(-log_snr / 2), and the loss in half of that is the weighted one.
    """

    def error(log_snr):  # any smooth error in x0, for data of unit deviation
        return 1 / (1 + np.exp(log_snr)) ** 2

    z = np.linspace(-9, 9, 20_001)
    sigma = np.exp(-1.2 + 1.2 * z)
    published = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * 0.25 * error(-2 * np.log(sigma / 0.5))
    # the errors of the paper's data are d^2 = 0.25 times those of unit data
    published = np.trapezoid(published * stats.norm.pdf(z), z)

    grid = np.linspace(-24, 26, 50_001)
    ours = objectives.edm(jnp.asarray(grid), jnp.ones(len(grid)), jnp.exp(jnp.asarray(grid)))
    ours = np.trapezoid(np.asarray(ours) * error(grid), grid)
    # mean 1.01 stands for 2.4 - 2 log 2 = 1.0137
    np.testing.assert_allclose(2 * ours, published, rtol=0.01)


def test_weightings_are_finite_in_float32_at_every_level():
    for prediction in exact.PREDICTIONS:
        for name in WEIGHTINGS:
            assert np.all(np.isfinite(weight(name, prediction))), (name, prediction)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@exact.in_float64
def test_a_weighting_means_the_same_through_every_prediction(weighting):
    """Except simple, which weighs the error in the network's own space."""
    mixture, schedule = exact.three_modes(np.float64), schedules.linear_logsnr(6.0, -6.0)
    x0, t = mixture.sample(KEY, 64), jnp.linspace(0.01, 0.99, 64)

    def losses(prediction):
        return objectives.training_loss(
            jax.random.key(1),
            exact.predictor(mixture, prediction),
            schedule,
            x0,
            t,
            prediction=prediction,
            weighting=weighting,
        )[0]

    by_eps = losses("eps")
    for prediction in exact.PREDICTIONS[1:]:
        same = np.allclose(losses(prediction), by_eps, rtol=1e-7, atol=0)
        assert same == (weighting != "simple")


@pytest.mark.parametrize("prediction", exact.PREDICTIONS)
def test_the_elbo_weighting_has_the_mean_of_the_bounds_diffusion_term(prediction):
    n, mixture = 40_000, exact.gaussian()
    schedule = schedules.cosine_logsnr(5.0, -5.0)
    x0, predict = mixture.sample(KEY, n), exact.predictor(mixture, prediction)
    losses, aux = objectives.training_loss(
        jax.random.key(1),
        predict,
        schedule,
        x0,
        jax.random.uniform(jax.random.key(2), (n,)),
        prediction=prediction,
        weighting="elbo",
    )
    bound = likelihood.vlb(
        jax.random.key(3), predict, schedule, x0, prediction=prediction, levels=None
    )
    a, b = (np.asarray(values, np.float64) for values in (losses / math.log(2), bound.diffusion))
    assert abs(a.mean() - b.mean()) < 5 * math.sqrt((a.var() + b.var()) / n)
    assert set(aux) == {"log_snr", "mse"}
    assert all(value.shape == (n,) for value in aux.values())


def test_one_may_give_ones_own_weighting():
    x0, t = jnp.ones((3, 2)), jnp.array([0.2, 0.5, 0.8])
    losses, aux = objectives.training_loss(
        KEY,
        exact.predictor(exact.gaussian()),
        schedules.linear_logsnr(),
        x0,
        t,
        weighting=lambda log_snr, minus_dlogsnr_dt, scale: 2 + 0 * log_snr,
    )
    np.testing.assert_allclose(losses, 2 * aux["mse"], rtol=1e-6)


def test_no_gradient_flows_to_the_schedule():
    def loss(schedule):
        return objectives.training_loss(
            KEY,
            exact.predictor(exact.gaussian()),
            schedule,
            jnp.ones((4, 2)),
            jnp.linspace(0.1, 0.9, 4),
            weighting="elbo",
        )[0].sum()

    gradient = jax.grad(loss)(schedules.learned(kind="polynomial", learn_endpoints=True))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


# --- learned variance ---------------------------------------------------------------------------

BETAS = np.array([0.002, 0.005, 0.02, 0.1, 0.3, 0.6])
BAR = np.cumprod(1 - BETAS)
TOTAL = len(BETAS)


def two_halves(x, t):
    """A predictor of eps and of the fraction that is told the index."""
    t = t.astype(x.dtype)[:, None]
    return jnp.concatenate([jnp.tanh(x) * 0.8, 0.9 * jnp.sin(x + t)], axis=-1)


def eight_bit(key, shape):
    """Whole numbers of levels, all 256 of them, -1 to 1."""
    return jax.random.randint(key, shape, 0, 256) / 127.5 - 1.0


def published_term(x0, x_t, eps, fraction, t):
    """L_t of Nichol & Dhariwal 2021 per number, in bits, written out for one example."""
    before = BAR[t - 1] if t > 0 else 1.0
    small = BETAS * (1 - np.concatenate([[1.0], BAR[:-1]])) / (1 - BAR)
    share = (fraction + 1) / 2
    log_variance = share * np.log(BETAS[t]) + (1 - share) * np.log(small[max(t, 1)])

    def posterior_mean(x0):
        return (np.sqrt(before) * BETAS[t] * x0 + np.sqrt(1 - BETAS[t]) * (1 - before) * x_t) / (
            1 - BAR[t]
        )

    mean = posterior_mean((x_t - np.sqrt(1 - BAR[t]) * eps) / np.sqrt(BAR[t]))
    if t > 0:
        gap = (posterior_mean(x0) - mean) ** 2
        ratio = np.exp(log_variance) / small[t]
        nats = 0.5 * (np.log(ratio) + 1 / ratio + gap / np.exp(log_variance) - 1)
    else:
        normal = stats.norm(mean, np.exp(log_variance / 2))
        above = np.where(x0 > 0.999, 1.0, normal.cdf(x0 + 1 / 255))
        below = np.where(x0 < -0.999, 0.0, normal.cdf(x0 - 1 / 255))
        nats = -np.log(above - below)
    return nats.mean() / np.log(2)


@exact.in_float64
def test_hybrid_loss_is_that_of_nichol_and_dhariwal():
    """L_simple + 0.001 T L_t, for every t; their eqs. 4-7, 15, 16."""
    x0 = eight_bit(jax.random.key(4), (TOTAL, 5))
    t = jnp.arange(TOTAL)
    losses, aux = objectives.training_loss(
        KEY, two_halves, schedules.from_betas(BETAS), x0, t, learned_variance=True
    )
    noise = np.asarray(jax.random.normal(KEY, x0.shape))
    bar = BAR[:, None]
    x_t = np.sqrt(bar) * np.asarray(x0) + np.sqrt(1 - bar) * noise
    eps, fraction = np.split(np.asarray(two_halves(jnp.asarray(x_t), t)), 2, axis=-1)
    terms = [
        published_term(np.asarray(x0)[i], x_t[i], eps[i], fraction[i], i) for i in range(TOTAL)
    ]
    np.testing.assert_allclose(aux["variance_term"], terms, rtol=1e-6)
    simple = np.mean((eps - noise) ** 2, axis=1)
    np.testing.assert_allclose(losses, simple + 1e-3 * TOTAL * np.array(terms), rtol=1e-6)


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 1.0, 6.0])
@pytest.mark.parametrize("mean", [0.0, -0.98, 1.3])
@exact.in_float64
def test_the_decoder_gives_all_256_levels_a_probability_of_one_in_sum(mean, fraction):
    x0 = (jnp.arange(256) / 127.5 - 1.0)[:, None]
    bits = objectives.variance_term(
        schedules.from_betas(BETAS),
        jnp.full_like(x0, fraction),
        jnp.full_like(x0, mean),
        x0,
        x0,
        jnp.zeros(256, jnp.int32),
    )
    np.testing.assert_allclose(jnp.sum(2.0**-bits), 1.0, rtol=1e-7)


def test_the_bound_trains_the_variance_and_not_the_mean():
    """With finite gradients in float32 at every t, for fractions within and beyond [-1, 1]."""
    schedule = schedules.cosine().discretize(50)
    t = jnp.arange(50)
    x0 = eight_bit(jax.random.key(5), (50, 3))

    def terms(mean_gain, fraction):
        def predict(x, t):
            return jnp.concatenate([mean_gain * x, x * 0 + fraction], axis=-1)

        _, aux = objectives.training_loss(
            KEY, predict, schedule, x0, t, learned_variance=True, prediction="eps"
        )
        return jnp.sum(aux["variance_term"])

    gradient = jax.jit(jax.grad(terms, argnums=(0, 1)))
    for fraction in (-2.0, -1.0, 0.0, 1.0, 2.0):
        by_mean, by_fraction = gradient(jnp.asarray(0.7), jnp.asarray(fraction))
        assert by_mean == 0
        assert np.isfinite(by_fraction)
        assert by_fraction != 0


# --- refusals -----------------------------------------------------------------------------------


def loss(schedule=None, predict=None, **options):
    schedule = schedules.cosine() if schedule is None else schedule
    t = jnp.zeros(4, jnp.int32) if schedule.num_steps else jnp.full(4, 0.5)
    predict = predict or (lambda x, t: x)
    return objectives.training_loss(KEY, predict, schedule, jnp.ones((4, 1)), t, **options)


def zero_snr(num_steps=None):
    schedule = schedules.zero_terminal_snr(schedules.linear())
    return schedule if num_steps is None else schedule.discretize(num_steps)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(prediction="noise"), "prediction='noise'.* eps, x0, v, score"),
        (dict(weighting="snr"), "weighting='snr'.*: allowed are simple, elbo"),
        (dict(learned_variance=True), "learned_variance=True needs a discrete schedule"),
        (dict(predict=lambda x, t: jnp.zeros((4, 2))), r"gave shape \(4, 2\), and \(4, 1\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss(**options)


@pytest.mark.parametrize("num_steps", [None, 20])
def test_eps_is_refused_at_zero_snr(num_steps):
    with pytest.raises(ValueError, match="prediction='v' or prediction='x0'"):
        loss(zero_snr(num_steps))


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_weight_by_the_slope_is_refused_at_zero_snr_in_discrete_time(weighting, prediction):
    """Where it would be NaN; the others are finite at the last index."""
    options = dict(weighting=weighting, prediction=prediction)
    if weighting in ("elbo", "sigmoid", "edm"):
        with pytest.raises(ValueError, match=f"weighting='{weighting}' weighs by the slope"):
            loss(zero_snr(20), **options)
        return
    losses, _ = objectives.training_loss(
        KEY,
        lambda x, t: x,
        zero_snr(20),
        jnp.ones((2, 1)),
        jnp.array([18, 19]),
        **options,
    )
    assert np.all(np.isfinite(losses))
