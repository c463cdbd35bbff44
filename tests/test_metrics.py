"""The Fréchet distance against closed forms, and the classifier whose features it takes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffax import data, metrics
from diffax.metrics import FeatureStatistics


def statistics(mean, covariance, n=100_000):
    """Statistics with exactly this mean and covariance, as if of n examples."""
    mean = np.asarray(mean, float)
    products = np.asarray(covariance, float) * (n - 1)
    return FeatureStatistics(n, mean, np.zeros_like(mean), products)


def rotated(values, seed):
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return axes @ np.diag(values) @ axes.T


def test_closed_forms():
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    commuting = metrics.frechet_distance(
        statistics([0, 0, 0], rotated(a, 0)), statistics([1, 2, 2], rotated(b, 0))
    )
    assert commuting == pytest.approx(9 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-9)
    one = metrics.frechet_distance(statistics([3.0], [[4.0]]), statistics([1.0], [[9.0]]))
    assert one == pytest.approx(4 + 1)
    same = statistics([1, 2, 3], rotated(a, 1))
    assert metrics.frechet_distance(same, same) == pytest.approx(0, abs=1e-9)


def test_a_singular_covariance_is_no_exception():
    flat, point = statistics([0, 0], np.diag([1.0, 0.0])), statistics([0, 0], np.zeros((2, 2)))
    assert metrics.frechet_distance(flat, point) == pytest.approx(1.0)
    assert metrics.frechet_distance(point, flat) == pytest.approx(1.0)


@given(seed=st.integers(0, 100), cut=st.integers(1, 39), shift=st.floats(-1e4, 1e4))
def test_statistics_add_up_over_batches(seed, cut, shift):
    x = np.random.default_rng(seed).normal(size=(40, 3)) + shift
    whole = FeatureStatistics.of(x[:cut]).update(x[cut:])
    np.testing.assert_allclose(whole.mean, x.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-6, atol=1e-6)


def test_statistics_are_kept_exactly(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 4))
    FeatureStatistics.of(x).save(tmp_path / "a" / "s.npz")
    read = FeatureStatistics.load(tmp_path / "a" / "s.npz")
    np.testing.assert_array_equal(read.covariance, FeatureStatistics.of(x).covariance)
    assert read.n == 10 and [p.name for p in (tmp_path / "a").iterdir()] == ["s.npz"]


def test_refusals():
    with pytest.raises(ValueError, match="at least 2"):
        FeatureStatistics.of(np.zeros((1, 3))).covariance  # noqa: B018
    with pytest.raises(ValueError, match=r"\(N, F\)"):
        FeatureStatistics.of(np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match="2.*3"):
        metrics.frechet_distance(statistics([0, 0], np.eye(2)), statistics([0, 0, 0], np.eye(3)))


def test_the_bootstrap_interval_covers_the_mean_of_repeated_samples():
    """Samples of one size: intervals of 95% cover what they estimate in at least 85% of 60."""
    rng = np.random.default_rng(0)
    reference = statistics(np.zeros(4), np.eye(4))
    draws = [rng.normal(size=(300, 4)) * 1.3 + 0.2 for _ in range(60)]
    distances = [metrics.frechet_distance(FeatureStatistics.of(x), reference) for x in draws]
    target, covered = np.mean(distances), 0
    for i, x in enumerate(draws):
        low, high = metrics.bootstrap_frechet(x, reference, seed=i, resamples=60)
        covered += low < target < high
    assert covered >= 51


@pytest.fixture(scope="module")
def digits():
    return data.load({"name": "digits"})


def test_the_classifier_of_digits_is_accurate_and_cached(digits, tmp_path):
    first = metrics.get_classifier(digits, cache_dir=tmp_path)
    assert first.about["classifier_accuracy"] >= 0.95
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = metrics.get_classifier(digits, cache_dir=tmp_path)
    assert path.stat().st_mtime_ns == written and again.fingerprint == first.fingerprint
    x = digits.eval.array()
    features = metrics.features(again, x, batch_size=100)
    np.testing.assert_allclose(features, metrics.features(first, x), rtol=1e-4, atol=1e-4)
    assert features.shape == (len(x), 64)
    # Held-out digits are far nearer to the training digits than noise or one class alone.
    reference = metrics.feature_statistics(first, digits.train.array())
    noise = np.random.default_rng(0).uniform(-1, 1, x.shape).astype(np.float32)
    real, noisy, ones = (
        metrics.frechet_distance(metrics.feature_statistics(first, sample), reference)
        for sample in (x, noise, x[digits.eval.label == 1])
    )
    assert 5 * real < noisy and 5 * real < ones


def test_data_that_can_not_be_classified_are_refused(digits):
    unlabelled = dataclasses.replace(digits, num_classes=0)
    assert not metrics.is_classifiable(unlabelled)
    with pytest.raises(ValueError, match="labelled"):
        metrics.get_classifier(unlabelled)
