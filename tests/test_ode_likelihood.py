"""Likelihood by the probability-flow ODE, where the density is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import gaussian, in_float64, independent, predictor, three_modes
from scipy import stats

from diffax import likelihood, schedules
from diffax.process import by_log_snr

pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEY = jax.random.key(0)
ENDS = dict(log_snr_max=8.0, log_snr_min=-24.0)
SCHEDULE = schedules.linear_logsnr(**ENDS)


def density(mixture, x0):
    """log of the exact density at the clean end, whose flow the ODE follows."""
    return mixture.log_density(x0, jnp.full(len(x0), ENDS["log_snr_max"]))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@in_float64
def test_exact_divergence_gives_the_density_of_a_mixture(prediction):
    mixture = three_modes(np.float64)
    x0 = mixture.sample(KEY, 50)
    found = jax.jit(
        lambda x0: likelihood.ode_log_likelihood(
            predictor(mixture, prediction), SCHEDULE, x0, divergence="exact", prediction=prediction
        )
    )(x0)
    # what remains is the prior, standard normal where the flow ends at log-SNR -24
    np.testing.assert_allclose(found, density(mixture, x0), atol=2e-4)


@in_float64
def test_order_four_and_the_adaptive_method():
    mixture = three_modes(np.float64)
    x0 = mixture.sample(KEY, 20)

    def run(num_steps):
        options = dict(divergence="exact", num_steps=num_steps, tolerance=1e-9)
        return likelihood.ode_log_likelihood(predictor(mixture), SCHEDULE, x0, **options)

    best = jax.jit(run, static_argnums=0)(1600)
    errors = [np.abs(jax.jit(run, static_argnums=0)(n) - best).max() for n in (100, 200, 400)]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    print(errors, slopes)
    assert slopes[-1] > 3.7
    np.testing.assert_allclose(jax.jit(run, static_argnums=0)(None), best, atol=1e-6)


@in_float64
def test_hutchinson_is_unbiased():
    """Over 4,000 draws of the probes, within five standard errors; and it depends on the key."""
    data = gaussian(dtype=np.float64)
    x0 = data.sample(KEY, 2)

    @jax.jit
    def run(key):
        return likelihood.ode_log_likelihood(predictor(data), SCHEDULE, x0, key=key, num_steps=60)

    found = jax.lax.map(run, jax.random.split(KEY, 4000), batch_size=200)
    exact = likelihood.ode_log_likelihood(
        predictor(data), SCHEDULE, x0, divergence="exact", num_steps=60
    )
    spread = np.asarray(found.std(0))
    assert np.all(spread > 1e-3)  # the covariance's off-diagonal shows
    assert np.all(np.abs(found.mean(0) - exact) < 5 * spread / math.sqrt(4000))
    # Student's 95% interval of 20 draws holds the truth that often: 400 times, within four
    # standard deviations of such a share
    draws = np.asarray(found).reshape(200, 20, 2)
    error = draws.std(axis=1, ddof=1) / math.sqrt(20)
    held = np.abs(draws.mean(axis=1) - exact) < stats.t.ppf(0.975, 19) * error
    assert abs(held.mean() - 0.95) < 4 * math.sqrt(0.95 * 0.05 / held.size)


def test_the_schedule_matters_by_its_ends_alone():
    """Continuous, discrete and learned ones; a predictor told the time too."""
    f, x0 = independent(0.2, 0.3), jax.random.normal(KEY, (4, 3, 2))
    run = jax.jit(
        lambda schedule, predict: likelihood.ode_log_likelihood(
            predict, schedule, x0, key=KEY, num_steps=50
        ),
        static_argnums=1,
    )
    want = run(SCHEDULE, f)
    shape = schedules.with_endpoints(schedules.cosine(), **ENDS)
    for schedule in (shape, schedules.learned(**ENDS), SCHEDULE.discretize(10)):
        first, last = map(float, schedules.ends_of(schedule))
        line = schedules.linear_logsnr(first, last)
        np.testing.assert_allclose(run(schedule, f), run(line, f), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(run(shape, f), want, rtol=1e-4, atol=1e-3)
    by_time = lambda x, t: f(x, SCHEDULE.log_snr(t))  # noqa: E731
    np.testing.assert_allclose(run(SCHEDULE, by_time), want, rtol=1e-3, atol=1e-2)


def test_bits_per_dim_of_quantised_data():
    """Against the cross entropy of N(0, 1/16) data and the model, less log2 of the bins' width."""
    variance, width = 1 / 16, 2 / 255
    real = jnp.sqrt(variance) * jax.random.normal(KEY, (4000, 1, 4))
    x0 = jnp.round((real + 1) * 127.5) / 127.5 - 1
    found = jax.jit(
        lambda x0: likelihood.ode_bits_per_dim(
            independent(0.0, variance), SCHEDULE, x0, key=KEY, num_steps=50, divergence="exact"
        )
    )(x0)
    # the density at the clean end is wider than the data's, by its noise
    alpha2 = 1 / (1 + math.exp(-ENDS["log_snr_max"]))
    spread = alpha2 * variance + 1 - alpha2
    cross = 0.5 * math.log2(2 * math.pi * spread) + 0.5 * variance / spread / math.log(2)
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - (cross - math.log2(width))) < 5 * error + 1e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(divergence="trace"), "divergence='trace': allowed are exact, hutchinson"),
        (dict(key=None), "give a key"),
        (dict(num_steps=0), "num_steps=0"),
        (dict(num_probes=1.5), "num_probes=1.5"),
        (dict(prediction="flaw"), "allowed are eps, x0, v, score"),
        (dict(schedule=schedules.cosine()), "with_endpoints"),
        (dict(schedule=SCHEDULE.discretize(5), predict=lambda x, t: x), "by_log_snr"),
    ],
)
def test_refusals(arguments, said):
    given = dict(predict=by_log_snr(lambda x, l: x), schedule=SCHEDULE, key=KEY)
    given["x0"] = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=said):
        likelihood.ode_log_likelihood(**{**given, **arguments})
