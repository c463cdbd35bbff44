"""Every schedule: what all have in common, the published definitions, and the errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schedule_cases
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import CONTINUOUS, DISCRETE, NUM_STEPS, REGISTERED, in_float64

import diffax
from diffax import schedules
from diffax.schedules import registry

continuous = pytest.mark.parametrize("name", CONTINUOUS)
discrete = pytest.mark.parametrize("name", DISCRETE)

# Times in float32, dense at both ends; the reference takes the very same numbers in float64.
TIMES = np.concatenate(
    [[1e-6, 1e-5, 1e-4, 1e-3], np.linspace(0.01, 0.99, 99), [0.995, 0.999, 1 - 1e-4]]
).astype(np.float32)
EPS32 = 2.0**-23
# Where the slope is compared with a difference: starts and steps. 1e-13 at the ends lies within the
# narrowest density's tail, 4e-9.
STARTS = np.array([0.0, 0.3001, 0.7001, 1.0])
STEPS = np.array([1e-13, 1e-6, 1e-6, -1e-13])
INFINITIES = np.array([np.inf, -np.inf], np.float32)

# Optimising code that runs once costs more than it gains.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@_jit
def _observe_single(schedule, t):
    """At (3, 4, 9) times, the first 0 and the last 1."""
    (log_snr, alpha, sigma), backward = jax.vjp(
        lambda t: (schedule.log_snr(t), schedule.alpha(t), schedule.sigma(t)), t
    )
    (gradient,) = backward((jnp.zeros_like(t), jnp.ones_like(t), -jnp.ones_like(t)))
    inverse = schedule.inverse_log_snr(jnp.concatenate([log_snr.ravel(), INFINITIES]))
    return {
        "ends": log_snr.ravel()[jnp.array([0, -1])],
        "log_snr": log_snr.ravel()[1:-1],
        "alpha": alpha.ravel()[1:-1],
        "sigma": sigma.ravel()[1:-1],
        "alpha_bar": schedule.alpha_bar(t).ravel()[1:-1],
        "slope of alpha - sigma": gradient.ravel()[1:-1],
        "inverse": inverse[1:-3],
        "beyond": inverse[-2:],
    }


@_jit
def _observe_double(schedule, t):
    num = len(t)
    log_snr, slope = schedule.log_snr_and_slope(jnp.concatenate([t, STARTS, STARTS + STEPS]))
    levels = jnp.concatenate([log_snr[:num], INFINITIES])
    inverse, inverse_slope = jax.jvp(schedule.inverse_log_snr, (levels,), (jnp.ones(num + 2),))
    return {
        "log_snr": log_snr[:num],
        "slope": slope[:num],
        "at starts": log_snr[num : num + 4],
        "slope at starts": slope[num : num + 4],
        "after steps": log_snr[num + 4 :],
        "inverse": inverse[:num],
        "inverse slope": inverse_slope[:num],
        "beyond": inverse[num:],
    }


@functools.cache
def single(name):
    """What the tests look at of a case in float32, as numpy arrays; computed once."""
    times = np.float32([0, *TIMES, 1]).reshape(3, 4, 9)
    return jax.device_get(_observe_single(CONTINUOUS[name](), times))


@functools.cache
def double(name):
    """The same in float64, at the same times."""
    schedule = CONTINUOUS[name]()
    with jax.enable_x64(True):
        out = jax.device_get(_observe_double(in_float64(schedule), TIMES.astype(np.float64)))
    assert out["log_snr"].dtype == np.float64
    return out


def test_classes_with_equal_fields_are_different_structures():
    """Or else one compiled function would serve them both."""
    names = ("linear", "quadratic", "sigmoid_beta", "linear_logsnr", "cosine_logsnr")
    structures = [jax.tree.structure(schedules.get(name)) for name in names]
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])
    assert structures[0] == jax.tree.structure(schedules.linear())


# --- what all schedules have in common ----------------------------------------------------------


def _size(name):
    """The size of the numbers that a log-SNR is computed from: its own and the finite ends'."""
    ends = np.abs(single(name)["ends"])
    return np.maximum(np.abs(double(name)["log_snr"]), max(1.0, *ends[np.isfinite(ends)], 0.0))


def _allowed_error(name):
    """Four roundings of the log-SNR plus what four roundings of t cost, in float32."""
    return 4 * EPS32 * (_size(name) + TIMES * np.abs(double(name)["slope"]))


@continuous
def test_log_snr_falls(name):
    for out in (single(name), double(name)):
        assert np.all(np.isfinite(out["log_snr"]))
        assert np.all(np.diff(out["log_snr"]) < 0)
    first, last = single(name)["ends"]
    assert first >= single(name)["log_snr"][0]
    assert last < single(name)["log_snr"][-1]
    assert np.all(double(name)["slope"] < 0)


@continuous
def test_alpha_and_sigma_follow_from_log_snr(name):
    out, exact = single(name), double(name)["log_snr"]
    np.testing.assert_allclose(out["alpha"] ** 2 + out["sigma"] ** 2, 1.0, atol=4 * EPS32)
    clean, noisy = 1 / (1 + np.exp(-exact)), 1 / (1 + np.exp(exact))
    # what the log-SNR may be off by (above), and as much again for its own rounding
    rtol = 2 * _allowed_error(name)
    assert np.all(np.abs(out["alpha"] / np.sqrt(clean) - 1) <= rtol)
    assert np.all(np.abs(out["sigma"] / np.sqrt(noisy) - 1) <= rtol)
    assert np.all(np.abs(out["alpha_bar"] / clean - 1) <= rtol)


@continuous
def test_float32_is_as_accurate_as_its_input_allows(name):
    # Against float64 at the same times: no cancellation at either end, t = 1e-6 and 1 - 1e-4
    # included.
    error = np.abs(single(name)["log_snr"] - double(name)["log_snr"])
    assert np.all(error <= _allowed_error(name))


@pytest.mark.parametrize("name", REGISTERED)
def test_float32_of_a_family_is_right_to_5e_6(name):
    assert np.abs(single(name)["log_snr"] - double(name)["log_snr"]).max() < 5e-6


@continuous
def test_inverse_gives_back_the_time(name):
    np.testing.assert_allclose(double(name)["inverse"], TIMES, rtol=1e-9, atol=1e-12)
    # float32: four roundings of t, and what four roundings of the log-SNR are worth in t
    allowed = 4 * EPS32 * (1 + _size(name) / np.abs(double(name)["slope"]))
    assert np.all(np.abs(single(name)["inverse"] - TIMES) <= allowed)


@continuous
def test_inverse_of_values_beyond_the_ends_is_the_end(name):
    np.testing.assert_array_equal(single(name)["beyond"], [0.0, 1.0])
    np.testing.assert_array_equal(double(name)["beyond"], [0.0, 1.0])


@continuous
def test_inverse_has_the_inverse_slope(name):
    out = double(name)
    np.testing.assert_allclose(out["inverse slope"] * out["slope"], 1.0, rtol=1e-5)


@continuous
def test_slope_is_the_derivative_up_to_the_finite_ends(name):
    out = double(name)
    finite = np.isfinite(out["at starts"])
    taken = (STARTS + STEPS) - STARTS  # as rounded
    difference = (out["after steps"][finite] - out["at starts"][finite]) / taken[finite]
    slope = out["slope at starts"][finite]
    # the log-SNR is rounded, by 1e-15 for its size and for the rounding of t: that over the step
    noise = 1e-15 * (10 + np.abs(slope)) / np.abs(STEPS[finite])
    assert np.all(np.abs(slope - difference) <= noise + 1e-4 * np.abs(difference))


@continuous
def test_gradients_are_finite_inside(name):
    out, slope = single(name), double(name)["slope"]
    # d alpha / dt = alpha sigma^2 l' / 2 and d sigma / dt = -sigma alpha^2 l' / 2
    alpha, sigma = out["alpha"], out["sigma"]
    expected = alpha * sigma * (alpha + sigma) * slope / 2
    np.testing.assert_allclose(out["slope of alpha - sigma"], expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", REGISTERED)
def test_takes_numbers(name):
    schedule = schedules.get(name)
    assert schedule.log_snr(0.5).shape == ()
    assert schedule.log_snr(1) == schedule.log_snr(1.0)


@pytest.mark.parametrize("name", {**CONTINUOUS, **DISCRETE})
def test_is_a_pytree(name):
    schedule = {**CONTINUOUS, **DISCRETE}[name]()
    leaves, tree = jax.tree.flatten(schedule)
    again = jax.tree.unflatten(tree, leaves)
    assert type(again) is type(schedule)
    assert jax.tree.structure(again) == tree
    assert hash(jax.tree.structure(again)) == hash(tree)
    has_parameters = "learned" in name and not name.startswith("frozen")
    assert bool(leaves) == (has_parameters or schedule.num_steps is not None)
    assert again == schedule
    assert hash(again) == hash(schedule)
    if leaves:
        assert jax.tree.map(lambda leaf: leaf + 1, schedule) != schedule


# --- one compilation for equal schedules --------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in REGISTERED if n != "learned"])
def test_equal_schedules_share_one_compilation(name):
    traces = []

    @jax.jit
    def alpha(schedule, t):
        traces.append(schedule)
        return schedule.alpha(t)

    for _ in range(3):
        alpha(schedules.get(name), 0.5)
        alpha(schedules.with_endpoints(schedules.get(name), 5, -5), 0.5)
    assert len(traces) == 2


def test_new_parameters_of_a_learned_schedule_share_one_compilation():
    traces = []

    @jax.jit
    def alpha(schedule, t):
        traces.append(1)
        return schedule.alpha(t)

    first, second = (
        alpha(schedules.get("learned", key=jax.random.key(seed)), 0.37) for seed in (0, 1)
    )
    assert len(traces) == 1
    assert first != second


# --- the published definitions, written out -----------------------------------------------------


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
    "linear_logsnr": lambda t: 10 - 20 * t,
    "cosine_logsnr": lambda t: _tan_line(t, 10, -10),
    "sigmoid_logsnr": lambda t: _truncated(scipy.stats.logistic(), t),
    "laplace": lambda t: _truncated(scipy.stats.laplace(0, 0.5), t),
    "edm": lambda t: _truncated(scipy.stats.norm(1.01, 2.4), t),
    "learned": None,  # has no published values; see test_learned_schedule.py
}


@pytest.mark.parametrize("name", REGISTERED)
def test_continuous_form_is_the_published_one(name):
    assert name in DEFINITIONS, f"write the definition of {name} out in DEFINITIONS"
    if DEFINITIONS[name] is None:
        return
    inside = slice(3, -1)  # 1e-3 .. 0.999, where the written-out form has ten digits
    expected = DEFINITIONS[name](TIMES[inside].astype(np.float64))
    np.testing.assert_allclose(double(name)["log_snr"][inside], expected, atol=1e-9)


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


# --- discrete schedules -------------------------------------------------------------------------


@discrete
@pytest.mark.parametrize("double", (False, True))
def test_discrete_betas_and_cumulative_product_agree(name, double):
    with jax.enable_x64(double):
        schedule = DISCRETE[name]()
        betas = np.asarray(schedule.betas, np.float64)
        t = jnp.arange(schedule.num_steps)
        assert schedule.betas.shape == schedule.alphas_cumprod.shape == (schedule.num_steps,)
        assert np.all(betas > 0)
        assert np.all(betas[:-1] < 1)
        assert schedule.zero_terminal == (betas[-1] == 1)
        assert np.all(np.diff(schedule.log_snr(t)) < 0)
        # each beta is rounded, which 1 - beta shows magnified
        eps = 2.0**-52 if double else EPS32
        rtol = 4 * eps * np.cumsum(1 / np.maximum(1 - betas, eps))
        product = np.cumprod(1 - betas)
        assert np.all(np.abs(schedule.alphas_cumprod - product) <= rtol * product)
        clean = schedule.alphas_cumprod
        np.testing.assert_allclose(schedule.alpha(t) ** 2, clean, atol=4 * eps)
        np.testing.assert_allclose(schedule.sigma(t) ** 2, 1 - clean, atol=4 * eps)
        np.testing.assert_array_equal(schedule.beta(t[3]), schedule.betas[3])
        np.testing.assert_array_equal(schedule.inverse_log_snr(schedule.log_snr(t)), t)
        gradient = jax.grad(lambda s: jnp.sum(s.alpha(t[:-1]) + s.sigma(t[:-1])))(schedule)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", REGISTERED)
def test_index_i_is_time_i_plus_one(name):
    schedule = schedules.get(name)
    discrete = schedule.discretize(NUM_STEPS)
    assert discrete.num_steps == NUM_STEPS
    times = (jnp.arange(NUM_STEPS) + 1.0) / NUM_STEPS
    gap = np.abs(discrete.log_snr(jnp.arange(NUM_STEPS)) - schedule.log_snr(times))
    # At T = 100 the beta families are only near their continuous form; the others equal it,
    # cosine's clip at the last step apart.
    near = 1.0 if name in ("linear", "quadratic", "sigmoid_beta") else 1e-4
    assert np.max(gap[:-1]) < near


def test_from_betas_traced_agrees_with_concrete():
    betas = jnp.linspace(1e-4, 0.02, 1000)
    concrete, traced = schedules.from_betas(betas), jax.jit(schedules.from_betas)(betas)
    np.testing.assert_allclose(traced.log_snrs, concrete.log_snrs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(traced.betas, concrete.betas)
    slope = jax.grad(lambda b: schedules.from_betas(b).log_snrs[-1])(betas)
    # d log_snr / d beta_j = -1 / ((1 - beta_j)(1 - alpha_bar))
    expected = -1 / ((1 - betas) * (1 - concrete.alphas_cumprod[-1]))
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_from_betas_with_a_last_beta_of_one_ends_at_zero_snr():
    schedule = schedules.from_betas([0.1, 0.5, 1.0])
    assert schedule.zero_terminal
    assert schedule.log_snr(2) == -np.inf
    assert schedule.alpha(2) == 0
    assert schedule.sigma(2) == 1


def test_slope_of_a_discrete_schedule_is_infinite_at_zero_snr_alone():
    schedule = schedules.zero_terminal_snr(schedules.linear().discretize(100))
    log_snr, slope = schedule.log_snr_and_slope(jnp.arange(100))
    differences = np.diff(log_snr)
    np.testing.assert_allclose(slope[1:-2], 50 * (differences[1:-1] + differences[:-2]), rtol=1e-5)
    np.testing.assert_allclose(slope[-2], 100 * differences[-2], rtol=1e-5)
    assert slope[-1] == -np.inf


@given(
    st.sampled_from([1, 2, 40]).flatmap(
        lambda n: st.lists(st.floats(1e-6, 0.999), min_size=n, max_size=n)
    )
)
def test_from_betas_and_back(betas):
    with jax.enable_x64(True):
        schedule = schedules.from_betas(betas)
        again = schedules.from_log_snr_table(schedule.log_snrs)
        np.testing.assert_allclose(again.betas, betas, rtol=1e-6, atol=1e-14)
        np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - np.array(betas)))


# --- one's own ----------------------------------------------------------------------------------


def _power_log_snr(t, power):
    return 10.0 - 20.0 * t**power


def test_registering_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_CONSTRUCTORS", dict(registry._CONSTRUCTORS))
    schedules.register(
        "power", lambda power=2.0: schedules.from_log_snr(_power_log_snr, power=power)
    )
    assert "power" in schedules.names()
    assert schedules.keywords("power") == ("power",)
    schedule = schedules.get("power", power=3.0)
    np.testing.assert_allclose(schedule.log_snr(0.5), 7.5)
    np.testing.assert_allclose(schedule.inverse_log_snr(7.5), 0.5, rtol=1e-6)
    assert schedule == schedules.get("power", power=3.0)
    assert hash(schedule) == hash(schedules.get("power", power=3.0))
    bounded = diffax.schedules.with_endpoints(schedule, 5.0, -5.0)
    assert bounded.discretize(10).log_snr(9) == -5.0
    with pytest.raises(ValueError, match="'power' is registered already"):
        schedules.register("power", schedules.cosine)


def test_names_and_constructors_agree():
    for name in schedules.names():
        assert callable(getattr(schedules, name))
        assert schedules.keywords(name) is not None


# --- errors -------------------------------------------------------------------------------------

ERRORS = {
    "unknown name": (lambda: schedules.get("cosin"), ["'cosin'", "mean 'cosine'", "linear_logsnr"]),
    "unknown keyword": (lambda: schedules.get("cosine", tau=1), ["'tau'", "'cosine'", "are s"]),
    "no keywords": (lambda: schedules.get("alpha_bar_linear", s=1), ["'s'", "are none"]),
    "beta order": (
        lambda: schedules.linear(beta_min=0.03, beta_max=0.02),
        ["beta_min=0.03", "beta_max=0.02", "0 < beta_min <= beta_max < 1"],
    ),
    "beta nan": (lambda: schedules.quadratic(beta_min=math.nan), ["beta_min=nan", "beta_max < 1"]),
    "s": (lambda: schedules.cosine(s=0), ["s=0", "positive"]),
    "sigmoid order": (lambda: schedules.sigmoid(start=3, end=-3), ["start=3", "end=-3", "start <"]),
    "tau": (lambda: schedules.sigmoid(tau=0), ["tau=0", "positive"]),
    "start": (lambda: schedules.sigmoid(start=-math.inf), ["start=-inf", "finite"]),
    "endpoints": (
        lambda: schedules.laplace(log_snr_max=-1, log_snr_min=1),
        ["log_snr_max=-1", "log_snr_min=1", "log_snr_max > log_snr_min"],
    ),
    "infinite endpoint": (
        lambda: schedules.linear_logsnr(log_snr_min=-math.inf),
        ["log_snr_min=-inf", "finite"],
    ),
    "b": (lambda: schedules.laplace(b=-1), ["b=-1", "positive"]),
    "mu": (lambda: schedules.laplace(mu=math.nan), ["mu=nan", "finite"]),
    "std": (lambda: schedules.edm(std=math.inf), ["std=inf", "finite"]),
    "mean": (lambda: schedules.edm(mean=math.inf), ["mean=inf", "finite"]),
    "scale": (lambda: schedules.sigmoid_logsnr(scale=0), ["scale=0", "positive"]),
    "too few steps": (
        lambda: schedules.linear().discretize(20),
        ["num_steps=20", "beta of 1,", "21 steps or more"],
    ),
    "too few steps, sigmoid": (
        lambda: schedules.sigmoid_beta().discretize(19),
        ["num_steps=19", "20 steps or more"],
    ),
    "no steps": (lambda: schedules.cosine().discretize(0), ["num_steps", "got 0", "whole number"]),
    "half steps": (lambda: schedules.cosine().discretize(2.5), ["num_steps", "2.5"]),
    "betas shape": (lambda: schedules.from_betas(np.ones((2, 3)) / 2), ["betas", "(2, 3)", "(T,)"]),
    "betas empty": (lambda: schedules.from_betas([]), ["betas", "(0,)"]),
    "betas range": (
        lambda: schedules.from_betas([0.1, 1.2, 0.3]),
        ["betas[1]", "1.2", "(0, 1)"],
    ),
    "betas one too early": (lambda: schedules.from_betas([0.1, 1.0, 0.3]), ["betas[1]", "last"]),
    "betas nan": (lambda: schedules.from_betas([0.1, math.nan]), ["betas[1]", "nan"]),
    "log_snr function": (
        lambda: schedules.from_log_snr(_power_log_snr, pow=2),
        ["_power_log_snr", "pow"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_field_value_and_what_is_allowed(case):
    schedule_cases.check_refusal(*ERRORS[case])


def test_the_smallest_number_of_steps_that_the_message_names_is_accepted():
    assert schedules.linear().discretize(21).num_steps == 21
    assert schedules.sigmoid_beta().discretize(20).num_steps == 20


@discrete
def test_discrete_time_is_an_integer(name):
    with pytest.raises(TypeError, match="integers 0 .. T - 1, got t of dtype float32"):
        DISCRETE[name]().log_snr(jnp.asarray(0.5))
