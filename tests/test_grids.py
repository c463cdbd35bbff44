"""Grids against their formulas, written out in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffax import samplers, schedules
from diffax.samplers import GRIDS

pytestmark = pytest.mark.usefixtures("hasty_compiler")

OF_LEVELS = ("logsnr", "karras", "angle")
OF_TIMES = tuple(name for name in GRIDS if name not in OF_LEVELS)


def visited(schedule, n, grid, **options):
    """(t, log_snr) as numpy arrays."""
    return tuple(np.asarray(a) for a in samplers.visited_levels(schedule, n, grid, **options))


def steps(total):
    """A discrete schedule of `total` steps, within the range that is never clipped."""
    return schedules.from_betas(np.full(total, 0.05))


# --- discrete time ------------------------------------------------------------------------------


@given(grid=st.sampled_from(sorted(GRIDS)), total=st.integers(2, 40), share=st.floats(0, 1))
def test_indices_decrease_strictly_within_the_schedule(grid, total, share):
    n = 2 + round(share * (total - 2))
    t, log_snr = visited(steps(total), n, grid)
    assert t.shape == log_snr.shape == (n,)
    assert np.issubdtype(t.dtype, np.integer)
    assert np.all(np.diff(t) < 0)
    assert 0 <= t[-1] and t[0] < total
    np.testing.assert_array_equal(log_snr, steps(total).log_snrs[t])
    if grid != "leading":
        assert t[0] == total - 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("total", [2, 7, 50])
def test_as_many_steps_as_there_are_visit_every_index(grid, total):
    t, _ = visited(steps(total), total, grid)
    np.testing.assert_array_equal(t, np.arange(total)[::-1])


@pytest.mark.parametrize("total, n", [(1000, 10), (100, 30), (50, 8)])
def test_index_formulas(total, n):
    expected = {
        "uniform": np.round(np.arange(total, 0, -total / n))[:n] - 1,
        "trailing": np.round(np.arange(total, 0, -total / n))[:n] - 1,
        "leading": np.arange(0, n * (total // n), total // n)[::-1],
        "linspace": np.round(np.linspace(total - 1, 0, n)),
    }
    for grid, indices in expected.items():
        np.testing.assert_array_equal(visited(steps(total), n, grid)[0], indices, err_msg=grid)


def test_quadratic_indices_are_squares_moved_apart_near_the_end():
    t, _ = visited(steps(1000), 10, "quadratic")
    np.testing.assert_array_equal(t, np.round(999 * (np.arange(9, -1, -1) / 9) ** 2))
    t, _ = visited(steps(20), 12, "quadratic")
    squares = np.round(19 * (np.arange(11, -1, -1) / 11) ** 2)
    assert np.any(np.diff(squares) == 0)  # the case would be empty otherwise
    assert t[0] == 19 and np.all(np.diff(t) < 0) and t[-1] >= 0


def of_levels(grid, first, last, n):
    """The log-SNRs of a level grid from `last`, the noisy end, to `first`, in float64."""
    shares = np.linspace(0, 1, n)
    noisy, clean = (np.arctan(np.exp(-end / 2)) for end in (last, first))
    angles = clean + (noisy - clean) * (1 - np.arange(n) / n) ** 1.25
    return {
        "logsnr": last * (1 - shares) + first * shares,
        "karras": -14 * np.log(np.exp(-last / 14) * (1 - shares) + np.exp(-first / 14) * shares),
        "angle": -2 * np.log(np.tan(angles)),
    }[grid]


@pytest.mark.parametrize("grid", OF_LEVELS)
def test_indices_of_a_level_grid_are_the_nearest(grid):
    """Where the steps lie close enough for all of them to differ."""
    schedule = schedules.linear_logsnr(10.0, -10.0).discretize(1000)
    _, log_snr = visited(schedule, 9, grid)
    wanted = of_levels(grid, *np.asarray(schedule.log_snrs)[[0, -1]], 9)
    np.testing.assert_allclose(log_snr, wanted, rtol=0, atol=0.011)  # half of a step of 0.02


# --- continuous time ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 10, 33])
def test_time_formulas(n):
    """Here log-SNR is 10 - 20 t, so that every grid is known in both."""
    i = np.arange(n)
    expected = {
        "uniform": 1 - i / n,
        "trailing": 1 - i / n,
        "leading": 1 - (i + 1) / n,
        "linspace": 1 - i / (n - 1),
        "quadratic": (1 - i / n) ** 2,
        "logsnr": 1 - i / (n - 1),
        "karras": 0.5
        + 0.7 * np.log(np.exp(5 / 7) + i / (n - 1) * (np.exp(-5 / 7) - np.exp(5 / 7))),
    }
    expected["angle"] = 0.5 - of_levels("angle", 10.0, -10.0, n) / 20
    assert set(expected) == set(GRIDS)
    for grid, times in expected.items():
        t, log_snr = visited(schedules.linear_logsnr(10.0, -10.0), n, grid)
        np.testing.assert_allclose(t, times, rtol=0, atol=2e-6, err_msg=grid)
        np.testing.assert_allclose(log_snr, 10 - 20 * times, rtol=0, atol=4e-5, err_msg=grid)
        assert np.all(np.diff(t) < 0)


@pytest.mark.parametrize("grid", OF_LEVELS)
@pytest.mark.parametrize(
    "name", ["alpha_bar_linear", "rectified_flow", "sigmoid", "cosine", "laplace"]
)
def test_level_grids_are_exact_where_float32_times_cannot_tell_levels_apart(name, grid):
    """Near t = 1, alpha_bar_linear's times are 6e-8 apart, and its log-SNR then 1 and more."""
    t, log_snr = visited(schedules.get(name), 1000, grid)
    first, last = visited(schedules.get(name), 2, "linspace")[1][::-1].astype(np.float64)
    np.testing.assert_allclose(log_snr, of_levels(grid, first, last, 1000), rtol=0, atol=0.02)
    assert np.all(np.diff(log_snr) > 0)
    assert np.all(np.diff(t) <= 0)


@pytest.mark.parametrize("grid", OF_TIMES)
@pytest.mark.parametrize("name", schedules.names())
def test_times_decrease_strictly_for_every_schedule(name, grid):
    t, log_snr = visited(schedules.get(name), 50, grid)
    assert t.shape == (50,)
    assert np.all(np.diff(t) < 0)
    assert np.all(np.diff(log_snr) > 0)
    assert -20 <= log_snr[0] and log_snr[-1] <= 20


# --- explicit times -----------------------------------------------------------------------------


def test_explicit_times_are_visited_as_given():
    given_times = [0.9, 0.5, 0.25]
    t, log_snr = visited(schedules.linear_logsnr(10.0, -10.0), 50, given_times)
    np.testing.assert_allclose(t, given_times)
    np.testing.assert_allclose(log_snr, [-8, 0, 5], atol=1e-5)
    t, _ = visited(steps(10), 50, jnp.array([9, 4, 0]))
    np.testing.assert_array_equal(t, [9, 4, 0])
    t, _ = visited(steps(10), 50, [7])
    np.testing.assert_array_equal(t, [7])


@pytest.mark.parametrize(
    "total, wrong",
    [
        (None, []),
        (None, [0.2, 0.5]),
        (None, [0.5, 0.5]),
        (None, [1.1, 0.5]),
        (None, [0.5, -0.1]),
        (None, [np.nan, 0.5]),
        (None, [[0.5, 0.1]]),
        (10, [10, 3]),
        (10, [3.0, 1.0]),
        (10, [3, 5]),
    ],
)
def test_explicit_times_that_do_not_fit_are_refused(total, wrong):
    schedule = schedules.cosine() if total is None else steps(total)
    with pytest.raises(ValueError, match="explicit (times|indices) decrease strictly"):
        visited(schedule, 50, wrong)
