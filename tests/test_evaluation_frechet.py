"""The Fréchet distance against closed forms, and the classifier whose features it takes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffax import data, evaluation
from diffax.evaluation import FeatureStatistics
from diffax.files import read_arrays, write_arrays


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
    commuting = evaluation.frechet_distance(
        statistics([0, 0, 0], rotated(a, 0)), statistics([1, 2, 2], rotated(b, 0))
    )
    assert commuting == pytest.approx(9 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-9)
    one = evaluation.frechet_distance(statistics([3.0], [[4.0]]), statistics([1.0], [[9.0]]))
    assert one == pytest.approx(4 + 1)
    same = statistics([1, 2, 3], rotated(a, 1))
    assert evaluation.frechet_distance(same, same) == pytest.approx(0, abs=1e-9)


def test_a_singular_covariance_is_no_exception():
    flat, point = statistics([0, 0], np.diag([1.0, 0.0])), statistics([0, 0], np.zeros((2, 2)))
    assert evaluation.frechet_distance(flat, point) == pytest.approx(1.0)
    assert evaluation.frechet_distance(point, flat) == pytest.approx(1.0)


@given(seed=st.integers(0, 100), cut=st.integers(1, 39), shift=st.floats(-1e4, 1e4))
def test_statistics_add_up_over_batches(seed, cut, shift):
    x = np.random.default_rng(seed).normal(size=(40, 3)) + shift
    whole = FeatureStatistics.of(x[:cut]).update(x[cut:])
    np.testing.assert_allclose(whole.mean, x.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-6, atol=1e-6)


def test_statistics_are_kept_exactly(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 4))
    write_arrays(tmp_path / "a" / "s.npz", vars(FeatureStatistics.of(x)))
    read = FeatureStatistics.of_arrays(read_arrays(tmp_path / "a" / "s.npz"))
    np.testing.assert_array_equal(read.covariance, FeatureStatistics.of(x).covariance)
    assert read.n == 10 and [p.name for p in (tmp_path / "a").iterdir()] == ["s.npz"]


def test_refusals():
    with pytest.raises(ValueError, match="at least 2"):
        FeatureStatistics.of(np.zeros((1, 3))).covariance  # noqa: B018
    with pytest.raises(ValueError, match=r"\(N, F\)"):
        FeatureStatistics.of(np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match="2.*3"):
        evaluation.frechet_distance(statistics([0, 0], np.eye(2)), statistics([0, 0, 0], np.eye(3)))


# --- finite samples ---------------------------------------------------------------------------


def gaussian(num, width, seed, scale=1.3, mean=0.2):
    return mean + scale * np.random.default_rng(seed).normal(size=(num, width))


def test_the_interval_covers_the_mean_of_repeated_samples():
    """Samples of one size: of 100 intervals of 95% at least 90 cover what they estimate."""
    reference = statistics(np.zeros(4), np.eye(4))
    draws = [gaussian(300, 4, seed) for seed in range(100)]
    distances = [evaluation.frechet_distance(FeatureStatistics.of(x), reference) for x in draws]
    covered = 0
    for x, distance in zip(draws, distances):
        error = evaluation.frechet_standard_error(x, reference)
        low, high = evaluation.normal_interval(distance, error)
        covered += low < np.mean(distances) < high
    assert covered >= 90


def test_the_influence_is_the_derivative_by_an_examples_weight():
    """By central differences in the weight of each example; and the bootstrap's error is near."""
    num, width = 400, 3
    x = np.random.default_rng(0).standard_t(5, size=(num, width)) @ rotated([1.0, 2.0, 0.5], 1)
    reference = statistics([0.5, 0.0, 0.1], rotated([1.0, 3.0, 0.2], 2))

    def distance(weights):
        mean = weights @ x
        covariance = (x - mean).T * weights @ (x - mean) * num / (num - 1)
        return evaluation.frechet_distance(evaluation.Moments(mean, covariance), reference)

    even, step = np.full(num, 1 / num), 1e-4
    psi = []
    for i in range(num):
        towards = np.eye(num)[i] - even
        change = distance(even + step * towards) - distance(even - step * towards)
        psi.append(change / (2 * step))
    error = evaluation.frechet_standard_error(x, reference)
    assert error == pytest.approx(np.std(psi, ddof=1) / np.sqrt(num), rel=0.01)
    counts = np.random.default_rng(1).multinomial(num, even, size=400)
    assert error == pytest.approx(np.std([distance(c / num) for c in counts]), rel=0.15)


@pytest.mark.parametrize("num", [20, 40])
def test_the_standard_error_stands_fewer_examples_than_features(num):
    """Within a factor of 1.5 of the deviation over 60 sets, with a singular covariance too."""
    reference = statistics(np.zeros(30), np.diag(1 / np.arange(1.0, 31)))
    draws = [gaussian(num, 30, seed) / np.sqrt(np.arange(1.0, 31)) for seed in range(60)]
    distances = [evaluation.frechet_distance(FeatureStatistics.of(x), reference) for x in draws]
    errors = [evaluation.frechet_standard_error(x, reference) for x in draws]
    assert 1 / 1.5 < np.mean(errors) / np.std(distances, ddof=1) < 1.5
    assert evaluation.frechet_standard_error(np.zeros((9, 30)), reference) == 0


def test_extrapolation_takes_away_the_bias_of_few_samples():
    """60 sets of 128: plain distances are more than twice too large. Extrapolated they are right to
    within a fifth of that, each is nearer than half of that on average, and the standard error is
    right too."""
    width = 8
    reference = statistics(np.zeros(width), np.eye(width))
    exact = width * (0.1**2 + 0.1**2)
    draws = [gaussian(128, width, seed, scale=1.1, mean=0.1) for seed in range(60)]
    plain = [evaluation.frechet_distance(FeatureStatistics.of(x), reference) for x in draws]
    found = [evaluation.frechet_infinity(x, reference) for x in draws]
    values = [each.value for each in found]
    bias = np.mean(plain) - exact
    assert bias > exact
    assert abs(np.mean(values) - exact) < bias / 5
    assert np.mean(np.abs(np.subtract(values, exact))) < bias / 2
    errors = [evaluation.frechet_standard_error(x, reference) for x in draws]
    assert 0.7 < np.mean(errors) / np.std(values, ddof=1) < 1.4
    assert found[0].distances[0] == pytest.approx(plain[0])
    assert found[0].sizes == (128, 64, 42, 32, 25)
    halves = [FeatureStatistics.of(half) for half in (draws[0][:64], draws[0][64:])]
    mean = np.mean([evaluation.frechet_distance(half, reference) for half in halves])
    assert found[0].distances[1] == pytest.approx(mean)
    line = np.polyfit(np.arange(1, 6) / 128, found[0].distances, 1)
    assert (found[0].slope, found[0].value) == pytest.approx(tuple(line))
    parabola = np.polyfit(np.arange(1, 6) / 128, found[0].distances, 2)
    assert found[0].value + found[0].bend == pytest.approx(parabola[-1])


@pytest.mark.parametrize("mean, scale", [(0.0, 1.0), (0.1, 1.1)])
def test_the_interval_of_the_extrapolated_distance_holds_the_exact_one(mean, scale):
    """Of 40 sets of the fewest examples; by the noise alone it is in fewer than 30 intervals.

    Samples of the reference's own distribution have negative distances; about them, too, the ends
    lie in order."""
    width, covered, by_noise = 64, 0, 0
    reference = statistics(np.zeros(width), np.eye(width))
    exact = width * (mean**2 + (scale - 1) ** 2)
    for seed in range(40):
        x = gaussian(evaluation.fewest_for_infinity(width), width, seed, scale, mean)
        found = evaluation.frechet_infinity(x, reference)
        error = evaluation.frechet_standard_error(x, reference)
        low, high = found.interval(error)
        assert low < found.value < high
        covered += low < exact < high
        by_noise += abs(found.value - exact) < 1.96 * error
    assert by_noise < 30 and covered >= 36


def test_ends_lie_about_the_estimate():
    """Cut off at 0, where the estimate is not below that itself."""
    assert evaluation.normal_interval(1.0, 1.0) == pytest.approx((0, 2.96), abs=1e-3)
    assert evaluation.normal_interval(-1.0, 0.1) == pytest.approx((-1, -0.804), abs=1e-3)
    ends = evaluation.normal_interval(-1.0, 0.1, lowest=-np.inf)
    assert ends == pytest.approx((-1.196, -0.804), abs=1e-3)


def test_extrapolation_asks_for_enough_examples():
    assert evaluation.fewest_for_infinity(8) == 64
    reference = statistics(np.zeros(8), np.eye(8))
    assert evaluation.frechet_infinity(gaussian(64, 8, 0), reference).sizes == (64, 32, 21, 16)
    with pytest.raises(ValueError, match=r"\(63, 8\).* at least 8 F"):
        evaluation.frechet_infinity(gaussian(63, 8, 0), reference)


def test_published_moments_are_read(tmp_path):
    mu, sigma = np.arange(3.0), rotated([1.0, 2.0, 3.0], 0)
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    found = evaluation.read_moments(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.mean, mu)
    assert evaluation.frechet_distance(found, statistics(mu, sigma)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mean": np.zeros(3)}, "holds mean; wanted are arrays mu"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"mu has shape \(3,\) and sigma \(2, 2\)"),
        ({"mu": np.zeros(1), "sigma": np.full((1, 1), np.nan)}, "not finite"),
        (None, "is not an .npz"),
    ],
)
def test_other_files_of_moments_are_refused(arrays, words, tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("mu")
    if arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match=words):
        evaluation.read_moments(path)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        evaluation.read_moments(tmp_path / "none.npz")


# --- the classifier ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load({"name": "digits"})


def test_the_classifier_of_digits_is_accurate_and_cached(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path))
    first = evaluation.get_classifier(digits)
    assert first.about["classifier_accuracy"] >= 0.95
    (path,) = (tmp_path / "classifiers").iterdir()
    written = path.stat().st_mtime_ns
    again = evaluation.get_classifier(digits)
    assert path.stat().st_mtime_ns == written and again.fingerprint == first.fingerprint
    x = digits.eval.array()
    features = evaluation.features(again._replace(batch_size=25), x)
    np.testing.assert_allclose(features, evaluation.features(first, x), rtol=1e-4, atol=1e-4)
    assert features.shape == (len(x), 64)
    # Held-out digits are far nearer to the training digits than noise or one class alone.
    reference = evaluation.feature_statistics(first, digits.train.x)
    noise = np.random.default_rng(0).uniform(-1, 1, x.shape).astype(np.float32)
    real, noisy, ones = (
        evaluation.frechet_distance(evaluation.feature_statistics(first, sample), reference)
        for sample in (x, noise, x[digits.eval.label == 1])
    )
    assert 5 * real < noisy and 5 * real < ones


def test_data_that_can_not_be_classified_are_refused(digits):
    unlabelled = dataclasses.replace(digits, num_classes=0)
    assert not evaluation.is_classifiable(unlabelled)
    with pytest.raises(ValueError, match="labelled"):
        evaluation.get_classifier(unlabelled)
