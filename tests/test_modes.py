"""The grid of modes and the measure of which modes samples keep."""

import numpy as np
import pytest
from small_runs import small_config

from diffax import config as config_lib
from diffax import data, evaluation

GRID = {"name": "mixture2d", "modes": 25}


@pytest.fixture(scope="module")
def dataset():
    return data.load(GRID)


@pytest.fixture(scope="module")
def reference(dataset):
    return evaluation.Reference.of(dataset)


def scored(samples, reference):
    return evaluation.score(np.asarray(samples, np.float32), reference, ["modes"])["modes"]


@pytest.mark.parametrize(("modes", "deviation"), [(4, 0.1), (25, 0.025), (9, 1.0)])
def test_the_grid_has_zero_mean_and_identity_covariance(modes, deviation):
    mixture = data.grid_mixture(modes, deviation)
    np.testing.assert_allclose(mixture.mean, 0, atol=1e-6)
    np.testing.assert_allclose(mixture.covariance, np.eye(2), atol=1e-5)
    apart = np.diff(np.unique(np.round(mixture.means[:, 0], 5)))
    assert len(apart) == np.sqrt(modes) - 1
    np.testing.assert_allclose(apart, apart[0], rtol=1e-4)
    np.testing.assert_allclose(np.sqrt(mixture.eigenvalues), deviation * apart[0], rtol=1e-4)


def test_the_customary_25_modes_are_this_grid_scaled():
    mixture = data.grid_mixture(25, 0.025)
    means = np.asarray(mixture.means)
    scale = 4 / np.max(means)
    assert set(np.round(scale * means[:, 0]).tolist()) == {-4, -2, 0, 2, 4}
    np.testing.assert_allclose(scale * np.sqrt(mixture.eigenvalues), 0.05, rtol=1e-4)


def test_the_data_are_drawn_from_it_and_others_stay_as_they_were(dataset):
    assert dataset.train.x.shape == (50_000, 2) and "grid_mixture(25, 0.025)" in dataset.definition
    np.testing.assert_allclose(np.cov(dataset.train.x.T), np.eye(2), atol=0.03)
    eight = data.load({"name": "mixture2d"})
    assert eight.definition == "mixture2d: 50000 and 10000 points of default_mixture(), key 0"
    assert eight.mixture.num_components == 8 and eight.fingerprint != dataset.fingerprint


def test_the_mixture_itself_keeps_all_modes_and_has_the_expected_share_off(dataset, reference):
    found = scored(dataset.eval.x, reference)
    num, off = len(dataset.eval), np.exp(-4.5)
    assert found["modes_kept"] == found["num_modes"] == 25
    assert found["expected_off"] == pytest.approx(off)
    assert found["off_modes"] == pytest.approx(off, abs=4 * np.sqrt(off / num))
    # 2 n KL is nearly chi-squared with 24 degrees of freedom.
    assert found["modes_kl"] < (24 + 5 * np.sqrt(48)) / (2 * num)


def test_dropped_modes_and_samples_between_are_counted_exactly(dataset, reference):
    means = np.asarray(dataset.mixture.means)
    deviation = float(np.sqrt(dataset.mixture.eigenvalues[0, 0]))
    inside = means[:3] + [2.9 * deviation, 0]
    outside = means[3:5] + [0, 3.1 * deviation]
    between = (means[0] + means[1]) / 2
    found = scored([*inside, *inside[:1], *outside, between, [50.0, 50.0]], reference)
    assert found["modes_kept"] == 3 and found["off_modes"] == 4 / 8
    shares = np.array([0.5, 0.25, 0.25])
    assert found["modes_kl"] == pytest.approx(np.sum(shares * np.log(25 * shares)), rel=1e-5)
    collapsed = scored(np.repeat(means[7:8], 20, axis=0), reference)
    assert collapsed["modes_kept"] == 1 and collapsed["off_modes"] == 0
    assert collapsed["modes_kl"] == pytest.approx(np.log(25), rel=1e-5)
    none = scored(np.full((4, 2), 9.0), reference)
    assert (none["modes_kept"], none["off_modes"], none["modes_kl"]) == (0, 1, 0)


def test_elongated_modes_have_elongated_bounds():
    """Of the eight: 2.9 deviations along each axis of each mode are on it, 3.1 off."""
    eight = data.load({"name": "mixture2d"})
    mixture = eight.mixture
    means, axes = np.asarray(mixture.means), np.asarray(mixture.eigenvectors)
    for share, off in ((2.9, 0), (3.1, 1)):
        steps = share * np.sqrt(mixture.eigenvalues)[:, None, :] * axes
        points = (means[:, None, :] + np.swapaxes(steps, 1, 2)).reshape(-1, 2)
        alone = np.array([mixture_distance(mixture, p) for p in points])
        found = scored(points, evaluation.Reference.of(eight))
        assert found["off_modes"] == pytest.approx(np.mean(alone > 3))
        assert np.mean(alone > 3) >= off * 0.5


def mixture_distance(mixture, point):
    inverse = np.linalg.inv(np.asarray(mixture.covariances, np.float64))
    away = point - np.asarray(mixture.means, np.float64)
    return np.sqrt(np.einsum("ki,kij,kj->k", away, inverse, away).min())


def test_other_data_have_no_modes_and_other_numbers_of_modes_are_refused():
    digits = evaluation.Reference.of(data.load({"name": "digits"}))
    with pytest.raises(
        ValueError, match="metrics='modes': it needs a reference drawn from a known"
    ):
        evaluation.plan(["modes"], digits, (8, 8, 1), 10)
    for modes in (3, 1, 24):
        with pytest.raises(ValueError, match=f"data.modes is {modes}; it must be a square number"):
            config_lib.validate(small_config(data__modes=modes))
        with pytest.raises(ValueError, match="it must be a square number of at least 4"):
            data.grid_mixture(modes, 0.1)
    with pytest.raises(ValueError, match="data.modes=25 has no meaning for data.name='digits'"):
        data.load({"name": "digits", "modes": 25})
