"""Transforms: endpoints, zero terminal SNR, input scale, resolution shift, frozen tables."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schedule_cases
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import REGISTERED, bounded, randomised

from diffax import schedules

pytestmark = pytest.mark.usefixtures("hasty_compiler")

INFINITE = ("cosine", "sigmoid", "alpha_bar_linear", "rectified_flow")  # at both ends


# --- endpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTERED)
def test_truncation_is_the_schedules_own_shape_between_the_ends(name):
    hi, lo = 3.5, -0.25

    @jax.jit
    def both(schedule, t):
        first, last = schedule.inverse_log_snr(jnp.asarray([hi, lo], t.dtype))
        truncated = schedules.with_endpoints(schedule, hi, lo)
        return truncated.log_snr(t), schedule.log_snr(first + t * (last - first))

    t = np.linspace(0, 1, 21)
    with jax.enable_x64(True):
        found, expected = both(schedules.get(name), t)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found[jnp.asarray([0, -1])], [hi, lo])
    found, _ = both(schedules.get(name), t.astype(np.float32))
    np.testing.assert_array_equal(found[jnp.asarray([0, -1])], [hi, lo])


def test_truncating_to_a_schedules_own_ends_changes_nothing():
    t = jnp.linspace(0, 1, 101)
    for schedule in (schedules.linear_logsnr(), schedules.edm(), schedules.get("learned")):
        again = schedules.with_endpoints(schedule, 10, -10)
        np.testing.assert_allclose(again.log_snr(t), schedule.log_snr(t), atol=5e-6)


def test_a_truncated_learned_schedule_keeps_its_ends_while_its_shape_learns():
    learned = schedules.get("learned", kind="piecewise_linear", size=8)
    truncated = schedules.with_endpoints(learned, 5, -5)
    ends = jax.jit(lambda s: s.log_snr(jnp.asarray([0.0, 1.0])))
    np.testing.assert_array_equal(ends(truncated), [5.0, -5.0])
    np.testing.assert_array_equal(ends(randomised(truncated, seed=3)), [5.0, -5.0])
    # Implicit differentiation through the truncation: against differences, in float64.
    with jax.enable_x64(True):
        start = randomised(
            schedules.with_endpoints(schedules.get("learned", kind="polynomial"), 5, -5), seed=1
        )

        middle = jax.jit(lambda s: s.log_snr(0.3))

        gradient = jax.grad(middle)(start)
        for name in "abc":

            def moved(by, name=name):
                shape = dict(start.inner.shape)
                shape[name] = shape[name] + by
                inner = jax.tree.unflatten(jax.tree.structure(start), list(shape.values()))
                return float(middle(inner))

            difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
            np.testing.assert_allclose(gradient.inner.shape[name], difference, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear_logsnr", "cosine_logsnr", "learned"])
def test_stretching_is_affine_in_log_snr(name):
    schedule = schedules.get(name)
    stretched = schedules.with_endpoints(schedule, 14.0, -2.0, how="stretch")
    t = jnp.linspace(0, 1, 21)
    expected = -2 + (schedule.log_snr(t) + 10) * 16 / 20
    np.testing.assert_allclose(stretched.log_snr(t), expected, atol=1e-5)
    np.testing.assert_array_equal(stretched.log_snr(jnp.asarray([0.0, 1.0])), [14.0, -2.0])


def test_stretching_a_discrete_schedule():
    discrete = schedules.linear().discretize(50)
    stretched = schedules.with_endpoints(discrete, 8, -8, how="stretch")
    slope = np.diff(stretched.log_snrs) / np.diff(discrete.log_snrs)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-4)
    np.testing.assert_allclose(stretched.log_snrs[jnp.asarray([0, -1])], [8, -8], rtol=1e-6)


# --- zero terminal SNR --------------------------------------------------------------------------


def _lin_2023(betas):
    """Lin 2023, algorithm 1, as printed."""
    alphas_bar_sqrt = np.sqrt(np.cumprod(1 - betas))
    first, last = alphas_bar_sqrt[0].copy(), alphas_bar_sqrt[-1].copy()
    alphas_bar_sqrt -= last
    alphas_bar_sqrt *= first / (first - last)
    alphas_bar = alphas_bar_sqrt**2
    alphas = alphas_bar[1:] / alphas_bar[:-1]
    return 1 - np.concatenate([alphas_bar[0:1], alphas])


@pytest.mark.parametrize(
    "make",
    [
        schedules.linear,
        lambda: schedules.quadratic(beta_min=0.00085, beta_max=0.012),
        schedules.sigmoid_beta,
    ],
)
@pytest.mark.parametrize("num_steps", (50, 1000))
def test_zero_terminal_snr_of_a_discrete_schedule_is_lins_rescaling(make, num_steps):
    before = np.asarray(make().discretize(num_steps).betas, np.float64)
    expected = _lin_2023(before)
    with jax.enable_x64(True):
        exact = schedules.zero_terminal_snr(schedules.from_betas(before))
        np.testing.assert_allclose(exact.betas, expected, rtol=1e-9)
        np.testing.assert_allclose(exact.alphas_cumprod, np.cumprod(1 - expected), atol=1e-12)
    rescaled = schedules.zero_terminal_snr(make().discretize(num_steps))
    # float32: the table's last digit, magnified where alpha - alpha_last is a small difference
    np.testing.assert_allclose(rescaled.betas, expected, atol=3e-5)
    assert rescaled.zero_terminal
    assert rescaled.betas[-1] == 1
    assert rescaled.log_snr(num_steps - 1) == -np.inf
    assert rescaled.alpha(num_steps - 1) == 0
    assert rescaled.sigma(num_steps - 1) == 1


@pytest.mark.parametrize("name", REGISTERED)
def test_zero_terminal_snr_in_continuous_time(name):
    with jax.enable_x64(True):
        before = schedules.get(name)
        after = schedules.zero_terminal_snr(before)
        assert after.zero_terminal
        assert after.log_snr(1.0) == -np.inf
        assert after.alpha(1.0) == 0
        assert after.sigma(1.0) == 1
        np.testing.assert_allclose(after.log_snr(0.0), before.log_snr(0.0))
        t = jnp.asarray([0.1, 0.4, 0.7, 0.95])
        first, last = before.alpha(0.0), before.alpha(1.0)
        expected = (before.alpha(t) - last) * first / (first - last)
        np.testing.assert_allclose(after.alpha(t), expected, rtol=1e-10)


def test_which_schedules_end_at_zero_snr():
    # alpha_bar families only approach it in continuous time; at t = 1 exactly their table is there.
    for name in REGISTERED:
        assert not schedules.get(name).zero_terminal
        assert schedules.get(name).discretize(30).zero_terminal == (
            name in ("sigmoid", "alpha_bar_linear", "rectified_flow")
        )
        rescaled = schedules.zero_terminal_snr(schedules.get(name))
        assert rescaled.zero_terminal
        assert rescaled.discretize(30).zero_terminal
        assert schedules.shifted(rescaled, 64, 32).zero_terminal
        assert not bounded(schedules.get(name)).zero_terminal


# --- input scale and resolution shift -----------------------------------------------------------


def test_input_scale_is_the_renormalised_process():
    schedule, b = schedules.cosine(), 0.4
    scaled = schedules.input_scaled(schedule, b)
    t = jnp.asarray([0.1, 0.5, 0.9])
    alpha, sigma = schedule.alpha(t) * b, schedule.sigma(t)
    norm = jnp.sqrt(alpha**2 + sigma**2)
    np.testing.assert_allclose(scaled.alpha(t), alpha / norm, rtol=1e-5)
    np.testing.assert_allclose(scaled.sigma(t), sigma / norm, rtol=1e-5)


def test_shift_by_resolution():
    # Hoogeboom 2023, eq. 4: log-SNR of 256 pixels from the schedule made for 64: + 2 log(64 / 256)
    schedule = schedules.cosine()
    moved = schedules.shifted(schedule, resolution=256, base_resolution=64)
    t = jnp.asarray([0.2, 0.8])
    np.testing.assert_allclose(moved.log_snr(t), schedule.log_snr(t) - 2 * math.log(4), rtol=1e-5)
    same = schedules.shifted(schedule, 64, 64)
    np.testing.assert_array_equal(same.log_snr(t), schedule.log_snr(t))


def test_transforms_of_equal_schedules_are_equal():
    for transform in (
        schedules.zero_terminal_snr,
        lambda s: schedules.input_scaled(s, 0.5),
        lambda s: schedules.shifted(s, 256, 64),
        lambda s: schedules.with_endpoints(s, 5, -5),
    ):
        first, second = transform(schedules.cosine()), transform(schedules.cosine())
        assert first == second
        assert hash(first) == hash(second)
        assert first != transform(schedules.cosine(s=0.01))


# --- frozen -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("monotone", "piecewise_linear", "polynomial"))
def test_frozen_is_close_saves_and_loads(kind):
    learned = randomised(schedules.get("learned", kind=kind), seed=4, scale=0.5)
    table = schedules.frozen(learned)
    assert jax.tree.leaves(table) == []
    t = jnp.linspace(0, 1, 777)
    # linear interpolation between 1025 points: max |l''| / 8 / 1024^2, and kinks between points
    np.testing.assert_allclose(table.log_snr(t), learned.log_snr(t), atol=0.02)
    knots = jnp.linspace(0, 1, 1025)
    np.testing.assert_allclose(table.log_snr(knots), learned.log_snr(knots), atol=5e-6)
    np.testing.assert_array_equal(
        table.log_snr(jnp.asarray([0.0, 1.0])), learned.log_snr(jnp.asarray([0.0, 1.0]))
    )

    again = schedules.from_json(table.to_json())
    assert again == table
    assert hash(again) == hash(table)
    np.testing.assert_array_equal(again.log_snr(t), table.log_snr(t))
    assert json.loads(table.to_json())["format"] == "diffax.schedule.table"


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20, unique=True))
def test_any_falling_table_survives_the_round_trip(values):
    text = json.dumps({"log_snr": sorted(values, reverse=True)})
    table = schedules.from_json(text)
    assert schedules.from_json(table.to_json()) == table
    assert list(table.log_snrs) == sorted(values, reverse=True)


# --- errors -------------------------------------------------------------------------------------

linear = schedules.linear
ERRORS = {
    "how": (
        lambda: schedules.with_endpoints(linear(), 5, -5, how="clip"),
        ["how='clip'", "stretch, truncate"],
    ),
    "order": (
        lambda: schedules.with_endpoints(linear(), -5, 5),
        ["log_snr_max=-5", "log_snr_min=5"],
    ),
    "beyond the range": (
        lambda: schedules.with_endpoints(schedules.laplace(), 5, -20),
        ["log_snr_min=-20", "10 to -10", "how='stretch'"],
    ),
    "truncating discrete": (
        lambda: schedules.with_endpoints(linear().discretize(100), 5, -5),
        ["continuous", "before discretize", "how='stretch'"],
    ),
    "stretching infinite": (
        lambda: schedules.with_endpoints(linear(), 5, -5, how="stretch"),
        ["finite", "inf and -10.05", "with_endpoints"],
    ),
    "b": (lambda: schedules.input_scaled(linear(), 0), ["b=0", "positive"]),
    "b nan": (lambda: schedules.input_scaled(linear(), math.nan), ["b=nan", "positive"]),
    "resolution": (lambda: schedules.shifted(linear(), -64, 64), ["resolution=-64", "positive"]),
    "base": (lambda: schedules.shifted(linear(), 64, 0), ["base_resolution=0", "positive"]),
    "frozen discrete": (lambda: schedules.frozen(linear().discretize(50)), ["continuous"]),
    "frozen infinite": (lambda: schedules.frozen(linear()), ["finite", "with_endpoints"]),
    "frozen points": (lambda: schedules.frozen(bounded(linear()), 1), ["num_points=1", "2"]),
    "not json": (lambda: schedules.from_json("{"), ["not a saved schedule", "log_snr"]),
    "no table": (lambda: schedules.from_json("{}"), ["not a saved schedule", "log_snr"]),
    "not numbers": (lambda: schedules.from_json('{"log_snr": "ab"}'), ["not a saved schedule"]),
    "rising table": (lambda: schedules.from_json('{"log_snr": [1, 2]}'), ["decrease"]),
    "short table": (lambda: schedules.from_json('{"log_snr": [1]}'), ["at least two"]),
    "infinite table": (lambda: schedules.from_json('{"log_snr": [Infinity, 1]}'), ["finite"]),
    "purpose": (
        lambda: schedules.require_finite_ends(schedules.cosine(), "the ODE likelihood"),
        ["the ODE likelihood needs finite", "inf and -inf", "with_endpoints"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_field_value_and_what_is_allowed(case):
    schedule_cases.check_refusal(*ERRORS[case])


def test_finite_ends_pass_the_check_also_where_the_schedule_is_traced():
    schedules.require_finite_ends(schedules.laplace(), "this")

    @jax.jit
    def inside(schedule):
        schedules.require_finite_ends(schedule, "this")
        return schedules.with_endpoints(schedule, 5, -5).log_snr(0.5)

    learned = schedules.get("learned", learn_endpoints=True)
    np.testing.assert_allclose(
        inside(learned), schedules.with_endpoints(learned, 5, -5).log_snr(0.5), rtol=1e-5
    )
    with pytest.raises(ValueError, match="finite log-SNR at both ends"):
        inside(schedules.cosine())  # a fixed schedule is known while tracing too


# --- tables in float64 on the host --------------------------------------------------------------


def lin(betas):
    """Lin 2023, algorithm 1, as printed, in float64."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


@pytest.mark.parametrize("within", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_discrete_schedule_is_rescaled_to_float32_s_last_digit(within):
    """Made concrete, its table is changed in float64: from float32 it would be off by 1e-4."""
    for make in (
        lambda: schedules.linear().discretize(1000),
        lambda: schedules.cosine().discretize(50),
        lambda: schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
    ):
        betas = np.asarray(make().betas, np.float64)
        if make().num_steps == 1000:
            betas = np.linspace(1e-4, 0.02, 1000)
        found = within(lambda make=make: schedules.zero_terminal_snr(make()))()
        bar = np.asarray(jax.nn.sigmoid(found.log_snrs))
        rtol = 2e-6 if len(betas) == 1000 else 2e-4  # cosine's betas are rounded here
        np.testing.assert_allclose(bar, lin(betas), rtol=rtol)
        assert bar[-1] == 0 and found.betas[-1] == 1 and found.zero_terminal
        want = 1 - lin(betas)[1:] / lin(betas)[:-1]
        np.testing.assert_allclose(found.betas[1:], want, rtol=rtol)


def test_every_change_of_a_table_is_made_in_float64():
    table = schedules.linear().discretize(1000)
    exact = table.exact
    assert exact.dtype == np.float64
    twice = schedules.input_scaled(schedules.shifted(table, 128, 64), 0.5)
    want = (exact + 2 * np.log(0.5) + 2 * np.log(0.5)).astype(np.float32)
    np.testing.assert_array_equal(twice.log_snrs, want)
    stretched = schedules.with_endpoints(table, 8, -8, how="stretch")
    share = (exact - exact[-1]) / (exact[0] - exact[-1])
    np.testing.assert_array_equal(stretched.log_snrs, (16 * share - 8).astype(np.float32))
    # what has been through a transformation of JAX has its arrays alone, and is changed likewise
    again = jax.tree.map(lambda a: a, table)
    assert again.exact is None and again == table
    np.testing.assert_allclose(
        schedules.shifted(again, 128, 64).log_snrs, schedules.shifted(table, 128, 64).log_snrs,
        rtol=1e-6, atol=2e-6,
    )  # fmt: skip
