"""The learned schedule's three forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import in_float64, randomised

from diffax import schedules
from diffax.schedules.learned import SHAPES

pytestmark = pytest.mark.usefixtures("hasty_compiler")

kinds = pytest.mark.parametrize("kind", SHAPES)
GRID = np.linspace(0, 1, 401)


@jax.jit
def _log_snr(schedule, t):
    return schedule.log_snr(t)


def _share(schedule, dtype=np.float32):
    """g(t): the share of the way from the clean end to the noisy one."""
    log_snr = np.asarray(_log_snr(schedule, GRID.astype(dtype)), np.float64)
    return (log_snr[0] - log_snr) / (log_snr[0] - log_snr[-1])


@kinds
@given(seed=st.integers(0, 2**31 - 1), scale=st.floats(0, 3))
def test_falls_between_its_ends_for_any_parameters(kind, seed, scale):
    schedule = randomised(schedules.get("learned", kind=kind), seed, scale)
    log_snr = np.asarray(_log_snr(schedule, GRID.astype(np.float32)))
    assert log_snr[0] == 10
    assert log_snr[-1] == -10
    assert np.all(np.diff(log_snr) <= 1e-5)  # float32 rounds 10 by 1e-6
    with jax.enable_x64(True):
        exact = np.asarray(_log_snr(in_float64(schedule), GRID))
    assert np.all(np.diff(exact) < 0)


@kinds
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31 - 1), scale=st.floats(0, 1), shift=st.floats(-1, 1))
def test_far_from_its_start_it_is_frozen_and_cut_into_steps(kind, seed, scale, shift):
    """However flat the shape is somewhere, its table falls, and no step has a negative variance."""
    far = {"monotone": 3, "piecewise_linear": 30, "polynomial": 30}[kind]  # the first holds logs
    scale, shift = far * scale, far * shift
    start = randomised(schedules.get("learned", kind=kind), seed, scale)
    schedule = jax.tree.map(lambda leaf: leaf + np.float32(shift), start)
    table = schedules.frozen(schedule)
    assert np.all(np.diff(table.log_snrs) < 0)
    np.testing.assert_allclose([table.log_snrs[0], table.log_snrs[-1]], [10, -10], rtol=1e-9)
    steps = _discretized(schedule)
    assert np.all(np.diff(steps.log_snrs) <= 0)
    assert np.all((np.asarray(steps.betas) >= 0) & (np.asarray(steps.betas) < 1))


@jax.jit
def _discretized(schedule):
    return schedule.discretize(500)


@pytest.mark.parametrize("seed", range(8))
def test_starts_near_linear(seed):
    # The monotone network within 0.03 of the line, the other two on it (float32).
    bounds = {"monotone": 0.03, "piecewise_linear": 1e-6, "polynomial": 1e-6}
    assert set(bounds) == set(SHAPES)
    for kind, bound in bounds.items():
        share = _share(schedules.get("learned", key=jax.random.key(seed), kind=kind))
        assert np.max(np.abs(share - GRID)) < bound
        assert np.all(np.abs(np.diff(share) * 400 - 1) < 0.5)  # the slope, too, is near 1


@kinds
def test_endpoints_fixed_or_learned(kind):
    fixed = schedules.get("learned", kind=kind, log_snr_max=9.0, log_snr_min=-4.0)
    free = schedules.get(
        "learned", kind=kind, log_snr_max=9.0, log_snr_min=-4.0, learn_endpoints=True
    )
    for schedule in (fixed, free):
        ends = schedule.log_snr(jnp.asarray([0.0, 1.0]))
        np.testing.assert_allclose(ends, [9.0, -4.0], rtol=1e-6)
        np.testing.assert_allclose(schedule.endpoints(), [9.0, -4.0], rtol=1e-6)

    assert len(jax.tree.leaves(free)) == len(jax.tree.leaves(fixed)) + 1
    assert not any(jax.tree.leaves(fixed.endpoint_mask()))
    for schedule in (
        free,
        schedules.shifted(free, 64, 32),
        schedules.with_endpoints(free, 5, -3),
        schedules.zero_terminal_snr(free),
    ):
        mask = schedule.endpoint_mask()
        assert jax.tree.structure(mask) == jax.tree.structure(schedule)
        marked = [
            leaf for leaf, end in zip(jax.tree.leaves(schedule), jax.tree.leaves(mask)) if end
        ]
        assert len(marked) == 1
        np.testing.assert_array_equal(marked[0], free.ends)


@kinds
def test_shape_has_no_gradient_at_the_ends_and_endpoints_have_all_of_it(kind):
    schedule = randomised(schedules.get("learned", kind=kind, learn_endpoints=True), seed=5)
    for t in (0.0, 1.0):
        gradient = jax.grad(lambda s: s.log_snr(t))(schedule)  # noqa: B023
        assert all(np.max(np.abs(leaf)) < 1e-5 for leaf in jax.tree.leaves(gradient.shape))
        assert gradient.ends[0] == 1  # both ends move with log_snr_max
    middle = jax.grad(lambda s: s.log_snr(0.4))(schedule)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(middle))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(middle.shape))


def test_a_common_factor_of_a_polynomial_s_parameters_is_no_direction():
    """The log-SNR doesn't change with it, and along it the gradient is zero exactly: Adam would
    make a step of full length of a rounding, another one on every layout of devices."""
    schedule = schedules.get("learned", kind="polynomial")
    larger = jax.tree.map(lambda p: 1e3 * (p + 0.25), randomised(schedule, seed=1))
    smaller = jax.tree.map(lambda p: p / 4096, larger)
    np.testing.assert_array_equal(_log_snr(larger, GRID), _log_snr(smaller, GRID))
    weights = np.random.default_rng(0).normal(size=GRID.size).astype(np.float32)
    mean = lambda schedule: jnp.sum(weights * schedule.log_snr(jnp.float32(GRID)))  # noqa: E731
    gradient = jax.jit(jax.grad(mean))(schedule)
    assert gradient.shape["c"] == 0 and gradient.shape["a"] != 0 and gradient.shape["b"] != 0


def test_polynomial_is_the_integral_of_the_square():
    schedule = randomised(schedules.get("learned", kind="polynomial"), seed=6)
    a, b, c = (np.float64(schedule.shape[name]) for name in "abc")
    square = (np.poly1d([a, b, c]) ** 2).integ()
    expected = (square(GRID) - square(0)) / (square(1) - square(0))
    np.testing.assert_allclose(_share(schedule), expected, atol=1e-6)


@kinds
def test_parameters_of_any_size_give_a_falling_log_snr(kind):
    """Far from the start a term may be e^100 times another, or rise before 0 or after 1 alone."""
    t = jnp.linspace(0.0, 1.0, 65)

    @jax.jit
    def values(schedule):
        weighted = lambda s: jnp.sum(jnp.cos(7 * t) * s.log_snr(t))  # noqa: E731
        return schedule.log_snr_and_slope(t), jax.grad(weighted)(schedule)

    for scale in (24.0, 100.0):
        for seed in range(10):
            schedule = randomised(schedules.get("learned", kind=kind), seed, scale)
            (log_snr, slope), gradient = values(schedule)
            assert np.diff(log_snr).max() <= 1e-5 and log_snr[0] == 10 and log_snr[-1] == -10
            assert all(np.isfinite(x).all() for x in jax.tree.leaves((slope, gradient)))


def test_piecewise_linear_is_the_cumulative_softmax():
    schedule = randomised(schedules.get("learned", kind="piecewise_linear", size=8), seed=7)
    logits = np.asarray(schedule.shape["logits"], np.float64)
    assert logits.shape == (8,)
    knots = np.concatenate([[0], np.cumsum(np.exp(logits) / np.exp(logits).sum())])
    expected = np.interp(GRID, np.linspace(0, 1, 9), knots)
    np.testing.assert_allclose(_share(schedule), expected, atol=1e-6)


def test_monotone_is_a_network_of_positive_weights():
    schedule = randomised(schedules.get("learned", size=5), seed=8)
    p = {name: np.asarray(value, np.float64) for name, value in schedule.shape.items()}
    positive = {name: np.exp(p[name]) for name in ("slope", "height", "steepness")}
    hidden = 1 / (1 + np.exp(-positive["steepness"] * (GRID[:, None] - p["centre"])))
    rise = positive["slope"] * GRID + (positive["height"] * hidden).mean(-1)
    expected = (rise - rise[0]) / (rise[-1] - rise[0])
    np.testing.assert_allclose(_share(schedule), expected, atol=1e-6)


@kinds
def test_can_learn_a_given_curve(kind):
    # Gradient descent on the shape brings it to the cosine_logsnr curve, which it doesn't start at.
    target = schedules.cosine_logsnr()
    t = jnp.linspace(0.0, 1.0, 65)
    goal = target.log_snr(t)

    def loss(schedule):
        return jnp.mean((schedule.log_snr(t) - goal) ** 2)

    optimizer = optax.adam(0.05)

    def step(carry, _):
        schedule, state = carry
        updates, state = optimizer.update(jax.grad(loss)(schedule), state)
        return (optax.apply_updates(schedule, updates), state), None

    start = schedules.get("learned", kind=kind)
    descend = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=300)[0])
    schedule, _ = descend((start, optimizer.init(start)))
    assert loss(schedule) < 0.1 * loss(start)
    np.testing.assert_array_equal(schedule.log_snr(jnp.asarray([0.0, 1.0])), [10.0, -10.0])


def test_key_decides_the_start_of_the_monotone_network_only():
    def leaves(seed, **keywords):
        key = jax.random.key(seed)
        return np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(schedules.get("learned", key=key, **keywords))]
        )

    np.testing.assert_array_equal(leaves(3), leaves(3))
    assert not np.array_equal(leaves(3), leaves(4))
    default = schedules.get("learned")
    assert np.array_equal(
        leaves(0), np.concatenate([np.ravel(x) for x in jax.tree.leaves(default)])
    )
    for kind in ("piecewise_linear", "polynomial"):
        np.testing.assert_array_equal(leaves(3, kind=kind), leaves(4, kind=kind))


@pytest.mark.parametrize(
    "keywords, words",
    [
        (dict(kind="spline"), ["kind='spline'", "monotone, piecewise_linear, polynomial"]),
        (dict(log_snr_max=-3.0, log_snr_min=3.0), ["log_snr_max=-3", "log_snr_min=3"]),
        (dict(size=0), ["size=0", "from 1 to 65536"]),
        (dict(depth=3), ["'depth'", "kind", "learn_endpoints"]),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(keywords, words):
    with pytest.raises(ValueError) as caught:
        schedules.get("learned", **keywords)
    for word in words:
        assert word in str(caught.value), caught.value
