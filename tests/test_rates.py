"""Rates: their integrals, what networks' come to for Gaussian data, and back and forth with
schedules."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import CONTINUOUS, check_refusal
from scipy.special import softplus

import diffax
from diffax import plots, process, rates, samplers, schedules

KEY = jax.random.key(0)
LINE = schedules.linear_logsnr()


def random_gaussian(seed, dims=3):
    """A mean and a covariance whose eigenvalues span three decades."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    eigenvalues = 10 ** rng.uniform(-2, 1, dims)
    return rng.standard_normal(dims), (vectors * eigenvalues) @ vectors.T


# --- the function itself ------------------------------------------------------------------------


def test_a_rate_is_a_density_with_its_integral_and_the_inverse_of_that():
    rate = rates.make_rate([-4.0, -1.0, 0.0, 3.0], [1.0, 3.0, 0.5, 2.0])
    l = jnp.linspace(-4, 3, 2001)
    area = np.concatenate([[0], np.cumsum(np.diff(l) * (rate(l[1:]) + rate(l[:-1])) / 2)])
    np.testing.assert_allclose(rate.total, 6 + 1.75 + 3.75, rtol=1e-6)
    np.testing.assert_allclose(rate.density(l) * rate.total, rate(l), rtol=1e-6)
    np.testing.assert_allclose(rate.cumulative(l), area / 11.5, atol=2e-5)
    share = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(rate.cumulative(rate.quantile(share)), share, atol=3e-7)
    np.testing.assert_allclose(rate.quantile(jnp.array([0.0, 1.0])), [-4, 3], atol=1e-6)
    assert rate(-5.0) == rate(4.0) == 0
    doubled = jax.jit(lambda r: jax.tree.map(lambda a: 2 * a, r))(rate)  # a pytree
    np.testing.assert_allclose(doubled.total, 4 * rate.total, rtol=1e-6)


@pytest.mark.parametrize("errors", [None, [0.1, 0.2, 0.3]])
def test_a_rate_is_read_back_from_json(errors):
    rate = rates.make_rate(np.array([-1.0, 0.1, 2.0]), [0.1, 1 / 3, 2.0], errors)
    assert rates.from_json(rate.to_json()) == rate
    single = jax.tree.map(jnp.asarray, rate)
    again = rates.from_json(single.to_json())
    np.testing.assert_array_equal(np.float32(again.values), single.values)


REFUSED = {
    "one knot": (lambda: rates.make_rate([0.0], [1.0]), ["at least 2"]),
    "falling": (lambda: rates.make_rate([1.0, 0.0], [1.0, 1.0]), ["increase"]),
    "zero": (lambda: rates.make_rate([0.0, 1.0], [1.0, 0.0]), ["positive", "value 1 is 0"]),
    "no JSON": (lambda: rates.from_json("[]"), ["not a saved rate", "TypeError"]),
    "beyond": (
        lambda: schedules.from_rate(rates.make_rate([-5.0, 5.0], [1.0, 1.0])),
        ["log_snr_max=10", "known from -5 to 5"],
    ),
    "no file": (lambda: schedules.from_rate(path="/no/rate.json"), ["path='/no/rate.json'"]),
    "unknown kind": (lambda: rates.gaussian([1.0], kind="entropi"), ["entropi", "second_moment"]),
    "discrete": (lambda: rates.of_schedule(LINE.discretize(10)), ["continuous"]),
    "unchanging": (lambda: rates.gaussian([1.0, 1.0], kind="transport"), ["positive"]),
    "no data": (lambda: rates.covariance([]), ["no data"]),
    "large": (lambda: rates.covariance(np.zeros((1, 64, 64, 3))), ["12,288", "8,192"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_rate_is_refused(case):
    check_refusal(*REFUSED[case])


# --- closed forms and estimates -----------------------------------------------------------------


def test_the_entropy_rate_integrates_to_the_mutual_information():
    """Half of it: I(x0; x_l) = sum log(1 + s e^l) / 2 nats for Gaussian data."""
    s = np.array([0.03, 0.5, 2.0])
    rate = rates.spectral(s, 8.0, -12.0, num_levels=2001)
    at = lambda l: softplus(l + np.log(s)).sum() / 2  # noqa: E731
    np.testing.assert_allclose(rate.total / 2, at(8.0) - at(-12.0), rtol=1e-5)


def test_a_streamed_covariance_is_that_of_all_data():
    x = np.random.default_rng(0).standard_normal((300, 2, 3, 1)) * 0.1 + 7
    rows = x.reshape(300, 6)
    for given_as in (x, [x[:70], x[70:71], x[71:]]):
        mean, cov = rates.covariance(given_as)
        np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(cov, np.cov(rows.T, bias=True), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", rates.CLOSED_FORMS)
@settings(max_examples=3)
@given(seed=st.integers(0, 10_000))
def test_estimates_with_the_exact_denoiser_are_the_closed_forms(kind, seed):
    """At every level within five of their standard errors, for data of any mean and covariance."""
    mean, cov = random_gaussian(seed)
    mixture = exact.gaussian(mean, cov)
    x0 = mixture.sample(jax.random.key(seed), 6000)
    estimate = getattr(rates, kind)
    found = estimate(exact.predictor(mixture), LINE, x0, jax.random.key(seed + 1), num_levels=17)
    expected = rates.gaussian(cov, mean, kind, num_levels=17)
    off = (np.asarray(found.values) - expected.values) / np.asarray(found.errors)
    assert np.abs(off).max() < 5
    assert np.asarray(found.errors / found.values).max() < 0.05


def test_the_schedule_from_the_covariance_is_that_from_the_exact_denoiser():
    """To 1e-4 of t."""
    n, s = 300_000, 10 ** np.linspace(-2, 0.5, 16)

    def eps(x, log_snr):
        alpha, sigma = (f(log_snr)[:, None] for f in (schedules.alpha_of, schedules.sigma_of))
        return sigma * x / (alpha**2 * s + sigma**2)

    white = np.random.default_rng(0).standard_normal((n, 16))
    x0 = np.float32(white * np.sqrt(s / np.mean(white**2, axis=0)))
    learned = schedules.from_rate(rates.entropy(process.by_log_snr(eps), LINE, x0, KEY))
    closed = schedules.from_rate(rates.spectral(s, num_levels=129))
    levels = jnp.linspace(-10, 10, 401)
    apart = learned.inverse_log_snr(levels) - closed.inverse_log_snr(levels)
    assert np.abs(apart).max() < 1e-4


def test_a_predictor_of_the_index_has_a_rate_at_the_indices():
    table, mixture = LINE.discretize(30), exact.gaussian()
    x0 = mixture.sample(KEY, 4000)

    def by_index(x, t):
        return mixture.eps(x, table.log_snr(t))

    found = rates.entropy(by_index, table, x0, KEY)
    np.testing.assert_array_equal(found.log_snrs, table.log_snrs[::-1])
    expected = rates.gaussian(exact.COVARIANCE, kind="entropy")(found.log_snrs)
    np.testing.assert_allclose(found.values, expected, rtol=0.1)
    with pytest.raises(ValueError, match="derivative by log-SNR"):
        rates.transport(by_index, table, x0, KEY)


# --- schedules and back -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "laplace", "learned(monotone, fixed ends)"])
def test_a_schedule_has_a_rate_of_which_it_is_the_schedule(name):
    schedule, ends = CONTINUOUS[name](), {"laplace": (10.0, -10.0)}.get(name, (8.0, -9.0))
    if name == "cosine":
        schedule = schedules.with_endpoints(schedule, *ends)
    again = schedules.from_rate(rates.of_schedule(schedule), *ends)
    t = jnp.linspace(0.0, 1.0, 301)
    np.testing.assert_allclose(again.log_snr(t), schedule.log_snr(t), rtol=0, atol=5e-3)
    assert not schedules.is_learned(again)


def test_equal_rate_per_unit_of_time():
    """And a file's rate is the same schedule."""
    rate = rates.gaussian(*random_gaussian(3)[::-1], kind="constant_change")
    schedule = schedules.from_rate(rate, 6.0, -7.0)
    t = jnp.linspace(0.0, 1.0, 33)
    shares = (rate.cumulative(6.0) - rate.cumulative(schedule.log_snr(t))) * rate.total
    np.testing.assert_allclose(np.diff(shares), float(shares[-1]) / 32, rtol=1e-3)


def test_a_file_of_a_rate_is_its_schedule(tmp_path):
    rate = rates.spectral([0.1, 1.0])
    (tmp_path / "rate.json").write_text(rate.to_json())
    assert schedules.get("from_rate", path=str(tmp_path / "rate.json")) == schedules.from_rate(rate)
    assert schedules.get("from_rate") == schedules.from_rate()


def test_a_grid_has_equal_rate_per_step(tmp_path):
    rate, mixture = rates.spectral([0.1, 1.0], 12.0, -12.0), exact.gaussian()
    levels = samplers.visited_levels(LINE, 9, rate)
    shares = rate.cumulative(levels.log_snr)
    np.testing.assert_allclose(np.diff(shares), (shares[-1] - shares[0]) / 8, rtol=1e-4)
    np.testing.assert_allclose(levels.log_snr[jnp.array([0, -1])], [-10, 10], atol=1e-5)
    (tmp_path / "rate.json").write_text(rate.to_json())
    arguments = (KEY, exact.predictor(mixture), LINE, (40, 2), "dpmpp_2m", 9)
    of_file = diffax.sample(*arguments, grid=str(tmp_path / "rate.json"))
    np.testing.assert_array_equal(of_file, diffax.sample(*arguments, grid=rate))
    assert samplers.visited_levels(LINE, 1, rate).log_snr == -10


def test_rates_are_drawn(tmp_path):
    chosen = {
        "of $data": rates.spectral([0.1, 1.0]),
        "estimated": rates.make_rate([-5.0, 0.0, 5.0], [1.0, 2.0, 1.0], [0.1, 0.2, 0.1]),
    }
    figure = plots.draw_rates(chosen)
    figure.savefig(tmp_path / "rates.png")
    density, times = figure.axes
    assert [line.get_label() for line in density.lines] == list(chosen)
    np.testing.assert_allclose(times.lines[1].get_ydata()[[0, -1]], [5, -5], atol=1e-6)
    assert len(density.collections) == 1  # the errors of the one that has some
