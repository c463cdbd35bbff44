"""Every schedule against its published definition."""

import math

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from schedule_cases import REGISTERED

import diffax
from diffax import schedules

pytestmark = pytest.mark.usefixtures("hasty_compiler")

# Where the written-out forms have ten digits.
TIMES = np.concatenate([[1e-3], np.linspace(0.01, 0.99, 99), [0.995]])


def _logistic(x):
    return 1 / (1 + np.exp(-x))


def _tan_line(t, hi, lo):  # Salimans & Ho 2022, appendix: -2 log tan(a t + b)
    b = np.arctan(np.exp(-hi / 2))
    a = np.arctan(np.exp(-lo / 2)) - b
    return -2 * np.log(np.tan(a * t + b))


def _truncated(distribution, t, hi=10.0, lo=-10.0):
    below_hi, below_lo = distribution.cdf(hi), distribution.cdf(lo)
    return distribution.ppf(below_hi + t * (below_lo - below_hi))


def _from_alpha_bar(alpha_bar):
    return np.log(alpha_bar / (1 - alpha_bar))


def _sigmoid_alpha_bar(t, start=-3.0, end=3.0, tau=1.0):  # Chen 2023, algorithm "sigmoid_schedule"
    v_start, v_end = _logistic(start / tau), _logistic(end / tau)
    return (v_end - _logistic((t * (end - start) + start) / tau)) / (v_end - v_start)


def _integrated(beta, t):
    """exp(-integral of beta from 0 to t), by quadrature."""
    return np.exp([-scipy.integrate.quad(beta, 0, end, epsabs=1e-14)[0] for end in t])


def _interpolated_beta(power):
    return lambda t: 1000 * (1e-4 ** (1 / power) * (1 - t) + 0.02 ** (1 / power) * t) ** power


# name -> log-SNR in float64 as published, cancellation and all; t keeps away from the ends
DEFINITIONS = {
    "linear": lambda t: _from_alpha_bar(_integrated(_interpolated_beta(1), t)),
    "quadratic": lambda t: _from_alpha_bar(_integrated(_interpolated_beta(2), t)),
    "sigmoid_beta": lambda t: _from_alpha_bar(
        _integrated(lambda u: 1000 * (1e-4 + 0.0199 * _logistic(12 * u - 6)), t)
    ),
    "cosine": lambda t: _from_alpha_bar(
        np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    ),
    "sigmoid": lambda t: _from_alpha_bar(_sigmoid_alpha_bar(t)),
    "alpha_bar_linear": lambda t: _from_alpha_bar(1 - t),
    "rectified_flow": lambda t: _from_alpha_bar((1 - t) ** 2 / ((1 - t) ** 2 + t**2)),
    "linear_logsnr": lambda t: 10 - 20 * t,
    "cosine_logsnr": lambda t: _tan_line(t, 10, -10),
    "sigmoid_logsnr": lambda t: _truncated(scipy.stats.logistic(), t),
    "laplace": lambda t: _truncated(scipy.stats.laplace(0, 0.5), t),
    "edm": lambda t: _truncated(scipy.stats.norm(1.01, 2.4), t),
    "from_rate": None,  # nor this; see test_rates.py
    "learned": None,  # has no published values; see test_learned_schedule.py
}


@pytest.mark.parametrize("name", REGISTERED)
def test_continuous_form_is_the_published_one(name):
    assert name in DEFINITIONS, f"write the definition of {name} out in DEFINITIONS"
    if DEFINITIONS[name] is None:
        return
    with jax.enable_x64(True):
        log_snr = schedules.get(name).log_snr(TIMES)
    np.testing.assert_allclose(log_snr, DEFINITIONS[name](TIMES), atol=1e-9)


def test_defaults_that_sources_leave_open():
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            schedules.sigmoid(start=0, end=3, tau=0.3).alpha_bar(0.4),
            _sigmoid_alpha_bar(0.4, 0.0, 3.0, 0.3),
            rtol=1e-12,
        )
        # EDM: log sigma ~ N(-1.2, 1.2^2) for data of deviation 0.5, log-SNR = 2 log(0.5 / sigma)
        edm = schedules.get("edm")
        assert edm.mean == pytest.approx(2 * (math.log(0.5) + 1.2), abs=0.005)
        assert edm.std == pytest.approx(2 * 1.2)


@exact.in_float64
def test_rectified_flow_is_the_straight_path_but_for_its_scale():
    schedule, t = schedules.rectified_flow(), TIMES[:, None]
    x0, eps = np.random.default_rng(0).standard_normal((2, len(TIMES), 3))
    x_t, z_t = diffax.q_sample(schedule, x0, TIMES, eps), (1 - t) * x0 + t * eps
    np.testing.assert_allclose(x_t * np.hypot(1 - t, t), z_t, rtol=1e-12, atol=1e-14)
    # the velocity of z gives z's own ends: x0 = z - t u, eps = z + (1 - t) u
    scales = schedule.alpha(TIMES), schedule.sigma(TIMES)
    for target, value in {"x0": z_t - t * (eps - x0), "eps": z_t + (1 - t) * (eps - x0)}.items():
        found = diffax.convert(eps - x0, x_t, *scales, "flow", target)
        np.testing.assert_allclose(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("s", [0.5, 3.0])
@exact.in_float64
def test_the_shift_of_flow_matching_is_the_one_by_resolution(s):
    """t' = s t / (1 + (s - 1) t)."""
    flow, moved = schedules.rectified_flow(), s * TIMES / (1 + (s - 1) * TIMES)
    shifted = schedules.shifted(flow, s, 1)
    np.testing.assert_allclose(shifted.log_snr(TIMES), flow.log_snr(moved), rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        shifted.log_snr(TIMES), flow.log_snr(TIMES) - 2 * np.log(s), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("num_steps", (25, 100, 1000))
def test_betas_of_beta_families(num_steps):
    scale = 1000 / num_steps
    root = np.linspace(0.00085**0.5, 0.012**0.5, num_steps)
    published = {
        # Ho 2020; Rombach 2022 "scaled_linear"; the sigmoid of common code
        schedules.linear(): np.linspace(1e-4, 0.02, num_steps),
        schedules.quadratic(): np.linspace(1e-4**0.5, 0.02**0.5, num_steps) ** 2,
        schedules.quadratic(beta_min=0.00085, beta_max=0.012): root**2,
        schedules.sigmoid_beta(): _logistic(np.linspace(-6, 6, num_steps)) * (0.02 - 1e-4) + 1e-4,
    }
    for schedule, betas in published.items():
        discrete = schedule.discretize(num_steps)
        np.testing.assert_allclose(discrete.betas, scale * betas, atol=1e-7)
        np.testing.assert_allclose(
            discrete.alphas_cumprod, np.cumprod(1 - scale * betas), rtol=1e-6
        )


@pytest.mark.parametrize("num_steps", (1, 10, 1000))
def test_betas_of_alpha_bar_families(num_steps):
    def published(alpha_bar, largest):  # Nichol & Dhariwal 2021, betas_for_alpha_bar
        edges = [alpha_bar(i / num_steps) for i in range(num_steps + 1)]
        return np.array([min(1 - b / a, largest) for a, b in zip(edges, edges[1:])])

    cosine = published(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, 0.999)
    np.testing.assert_allclose(schedules.cosine().discretize(num_steps).betas, cosine, atol=1e-7)
    assert (num_steps == 1) or np.sum(cosine == 0.999) >= 1  # the clip is exercised

    sigmoid = published(_sigmoid_alpha_bar, 1.0)
    np.testing.assert_allclose(schedules.sigmoid().discretize(num_steps).betas, sigmoid, atol=1e-6)
    straight = published(lambda t: 1 - t, 1.0)
    found = schedules.alpha_bar_linear().discretize(num_steps)
    np.testing.assert_allclose(found.betas, straight, atol=1e-6)
    assert found.betas[-1] == 1
    assert found.zero_terminal
    assert not schedules.cosine().discretize(num_steps).zero_terminal


def test_continuous_linear_is_near_its_discrete_form_but_not_equal():
    linear = schedules.linear()
    times = (np.arange(1000) + 1) / 1000
    gap = np.abs(linear.log_snr(times) - linear.discretize(1000).log_snr(np.arange(1000)))
    assert 0.05 < gap.max() < 0.1
    assert np.median(gap) < 0.02


# --- quantile families --------------------------------------------------------------------------

DENSITIES = {
    "cosine_logsnr": ({}, scipy.stats.hypsecant(scale=2)),
    "sigmoid_logsnr": (dict(location=0.5, scale=1.5), scipy.stats.logistic(0.5, 1.5)),
    "laplace": (dict(mu=-0.5, b=0.8), scipy.stats.laplace(-0.5, 0.8)),
    "edm": ({}, scipy.stats.norm(1.01, 2.4)),
}


@pytest.mark.parametrize("hi, lo", ((10.0, -10.0), (3.0, -1.5)))
@pytest.mark.parametrize("name", DENSITIES)
def test_log_snr_of_a_uniform_time_has_the_truncated_density(name, hi, lo):
    arguments, density = DENSITIES[name]
    num = 4000
    uniform = (
        np.arange(num) + 0.5
    ) / num  # every quantile once: the statistic's least, 1 / (2 num)
    with jax.enable_x64(True):
        schedule = schedules.get(name, log_snr_max=hi, log_snr_min=lo, **arguments)
        sample = np.asarray(schedule.log_snr(uniform))

    def truncated(x):
        return (density.cdf(x) - density.cdf(lo)) / (density.cdf(hi) - density.cdf(lo))

    assert scipy.stats.kstest(sample, truncated).statistic <= 0.5 / num + 1e-9
    # and of truly random times, by the test's own p-value
    draws = schedule.log_snr(jax.random.uniform(jax.random.key(0), (num,)))
    assert scipy.stats.kstest(np.asarray(draws, np.float64), truncated).pvalue > 0.01


@pytest.mark.parametrize("name", ("linear_logsnr", *DENSITIES))
@pytest.mark.parametrize("hi, lo", ((10.0, -10.0), (13.3, -5.0), (1.0, 0.25), (60.0, -60.0)))
def test_endpoints_are_reached_exactly(name, hi, lo):
    # At +-60 the tails of laplace and edm underflow in float32, which must not show.
    schedule = schedules.get(name, log_snr_max=hi, log_snr_min=lo)
    ends = schedule.log_snr(jnp.asarray([0.0, 1.0]))
    np.testing.assert_array_equal(ends, np.asarray([hi, lo], np.float32))
    inside = schedule.log_snr(jnp.linspace(0, 1, 101))
    assert np.all(np.diff(inside) < 0)
