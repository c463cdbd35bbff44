"""Every schedule: what all have in common, continuous and discrete."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import CONTINUOUS, DISCRETE, NUM_STEPS, REGISTERED, in_float64

from diffax import schedules

pytestmark = pytest.mark.usefixtures("hasty_compiler")

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
    slope, inverse = out["slope"].copy(), out["inverse slope"]
    if "piecewise_linear" in name:
        # Rounding takes the inverse at a knot to either side, where the slope is its neighbour's.
        knots = 1 + np.flatnonzero(TIMES[1:-1] * 8 % 1 == 0)
        for at in knots:
            sides = slope[at - 1], slope[at + 1]
            slope[at] = min(sides, key=lambda side, at=at: abs(inverse[at] * side - 1))
    np.testing.assert_allclose(inverse * slope, 1.0, rtol=1e-5)


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
