"""KID, precision, recall, density, coverage, sliced Wasserstein: closed forms and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffax import evaluation


def normal(num, width, seed, mean=0.0, deviation=1.0):
    return mean + deviation * np.random.default_rng(seed).standard_normal((num, width))


# --- the kernel distance ----------------------------------------------------------------------


def plain_kernel_distance(x, y):
    """Pair by pair."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    def within(a):
        return np.mean([k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j])

    return within(x) + within(y) - 2 * np.mean([k(p, q) for p in x for q in y])


def test_kernel_distance_is_the_mean_over_pairs():
    x, y = normal(23, 3, 0), normal(17, 3, 1, mean=0.5)
    for blocks in (2, 8):
        found = evaluation.kernel_distance(x, y, blocks=blocks)
        assert found.value == pytest.approx(plain_kernel_distance(x, y), rel=1e-10)


def test_kernel_distance_of_normal_distributions():
    """In one dimension E[(xy + 1)^3] is a sum over moments; 40 sets, within 4 standard errors.

    The standard errors are right too: on average they are the deviation of the 40 estimates.
    """

    def moments(m, s):
        return 1, m, m**2 + s**2, m**3 + 3 * m * s**2

    def k(p, q):
        return sum(math.comb(3, i) * a * b for i, (a, b) in enumerate(zip(p, q)))

    p, q = moments(0.3, 1.0), moments(0.0, 0.8)
    exact = k(p, p) + k(q, q) - 2 * k(p, q)
    found = [
        evaluation.kernel_distance(normal(300, 1, 2 * i, 0.3), normal(200, 1, 2 * i + 1, 0.0, 0.8))
        for i in range(40)
    ]
    values, errors = np.array(found).T
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / math.sqrt(40)
    assert 0.7 < errors.mean() / values.std(ddof=1) < 1.4


def test_kernel_distance_is_unbiased_for_equal_distributions():
    values = [
        evaluation.kernel_distance(normal(60, 4, 2 * i), normal(60, 4, 2 * i + 1)).value
        for i in range(100)
    ]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / 10


# --- precision, recall, density, coverage -----------------------------------------------------


def plain_prdc(x, y, k):
    """Point by point."""

    def radius(points, i):
        return sorted(np.linalg.norm(points[i] - p) for p in points)[k]  # the first is itself

    inside_y = np.array(
        [[np.linalg.norm(a - b) <= radius(y, i) for i, b in enumerate(y)] for a in x]
    )
    inside_x = np.array(
        [[np.linalg.norm(a - b) <= radius(x, j) for b in y] for j, a in enumerate(x)]
    )
    return (
        inside_y.any(axis=1).mean(),
        inside_x.any(axis=0).mean(),
        inside_y.sum(axis=1).mean() / k,
        inside_y.any(axis=0).mean(),
    )


@given(seed=st.integers(0, 1000), k=st.integers(1, 6), mean=st.floats(0, 2))
def test_prdc_is_that_of_plain_loops(seed, k, mean):
    x, y = normal(12, 2, seed, mean), normal(9, 2, seed + 1)
    np.testing.assert_allclose(evaluation.prdc(x, y, k), plain_prdc(x, y, k), rtol=1e-12)


def test_prdc_of_equal_distributions():
    """Density is 1 and coverage 1 - prod (M - i) / (N + M - i), i = 1 .. k (Naeem 2020)."""
    num, k = 400, 5
    found = [
        evaluation.prdc(normal(num, 3, 2 * i), normal(num, 3, 2 * i + 1), k) for i in range(12)
    ]
    mean = evaluation.PRDC(*np.mean(found, axis=0))
    covered = 1 - math.prod((num - i) / (2 * num - i) for i in range(1, k + 1))
    assert mean.coverage == pytest.approx(covered, abs=0.01)
    assert mean.density == pytest.approx(1, abs=0.03)
    assert mean.precision == pytest.approx(mean.recall, abs=0.02)


@pytest.mark.parametrize("copies", [1, 2, 7])
@pytest.mark.parametrize(("width", "mean"), [(2, 0.0), (64, 0.0), (3, 1e6)])
def test_points_against_copies_of_themselves(width, mean, copies):
    """All lie within each other's balls, whose edges go through copies of points.

    Of distinct points each is in its own ball and in k others on average, which makes the density
    (k + 1) / k.
    """
    x, k = normal(60, width, 0, mean), 5
    points = np.repeat(x, copies, axis=0)
    found = evaluation.prdc(points, points, k)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    np.testing.assert_allclose(found, evaluation.prdc(points[::-1], points, k), rtol=1e-12)
    if copies == 1:
        assert found.density == pytest.approx((k + 1) / k)
    part = evaluation.prdc(points, x, k)
    assert (part.precision, part.coverage) == (1, 1)


def test_points_that_are_all_the_same():
    same = np.full((20, 3), 0.1)
    assert evaluation.prdc(same, same, 5)[:2] == (1, 1)
    assert evaluation.prdc(same + 1e-9, same, 5)[:2] == (0, 0)


def test_fidelity_and_diversity_are_told_apart():
    """Samples of one mode of two are precise and cover half; noise costs precision alone."""
    data = np.concatenate([normal(300, 2, 0), normal(300, 2, 1, mean=20)])
    one_mode = evaluation.prdc(normal(600, 2, 2), data)
    assert one_mode.precision > 0.95 and one_mode.recall < 0.55 and one_mode.coverage < 0.55
    both = np.concatenate([normal(300, 2, 3), normal(300, 2, 4, mean=20)])
    noisy = evaluation.prdc(both + normal(600, 2, 5, deviation=2), data)
    good = evaluation.prdc(both, data)
    assert noisy.precision < good.precision - 0.2 and noisy.density < good.density - 0.2
    assert noisy.recall > good.recall - 0.1


# --- sliced Wasserstein -----------------------------------------------------------------------


def test_sliced_wasserstein_of_a_shift():
    """Each direction sees the shift's projection: |shift| / sqrt(F) by the root mean square."""
    x, shift = normal(50, 4, 0), np.array([3.0, 0.0, 4.0, 0.0])
    found = evaluation.sliced_wasserstein(x, x + shift, num_directions=20_000)
    assert found == pytest.approx(5 / 2, rel=0.02)
    assert evaluation.sliced_wasserstein(x, x[::-1]) == 0


def test_one_dimension_is_the_distance_of_quantiles():
    """Also for different numbers: {0, 1} against {0, 0, 3} differs by 1 on (1/2, 2/3), 2 after."""
    found = evaluation.sliced_wasserstein(np.array([[0.0], [1.0]]), np.array([[0.0], [0.0], [3.0]]))
    assert found == pytest.approx(math.sqrt(1 / 6 + 4 / 3))


# --- the Inception score ----------------------------------------------------------------------


def plain_inception_score(logits, splits):
    """Class by class, of the probabilities."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for part in np.array_split(p, splits):
        marginal = part.mean(axis=0)
        divergences = [sum(a * math.log(a / b) for a, b in zip(row, marginal)) for row in part]
        scores.append(math.exp(sum(divergences) / len(part)))
    return np.mean(scores), np.std(scores)


@given(seed=st.integers(0, 1000), splits=st.integers(1, 5))
def test_inception_score_is_that_of_plain_loops(seed, splits):
    logits = normal(23, 4, seed, deviation=3)
    found = evaluation.inception_score(logits, splits)
    np.testing.assert_allclose(found, plain_inception_score(logits, splits), rtol=1e-10)


def test_inception_score_of_the_unsure_and_of_the_sure():
    """1 where every class is as likely for every sample; K where each of K classes is sure."""
    assert evaluation.inception_score(np.zeros((50, 7)), 5) == pytest.approx((1, 0))
    sure = 1e4 * np.tile(np.eye(7), (10, 1))
    assert evaluation.inception_score(sure, 5) == pytest.approx((7, 0))
    assert evaluation.inception_score(sure[:, ::-1] - 1e5, 5) == pytest.approx((7, 0))


def test_inception_score_falls_as_samples_get_worse():
    """Classes dropped: to their number. Surer to less sure: less at each step."""
    sure = 1e4 * np.tile(np.eye(7), (10, 1))
    assert evaluation.inception_score(sure[sure.argmax(axis=1) < 3], 5).mean == pytest.approx(3)
    scores = [evaluation.inception_score(sure * scale, 5).mean for scale in (1, 4e-4, 2e-4, 1e-4)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < scores[0] / 2


# --- all --------------------------------------------------------------------------------------


def frechet(x, y):
    return evaluation.frechet_distance(*map(evaluation.FeatureStatistics.of, (x, y)))


def frechet_infinity(x, y):
    x = x[evaluation.shuffled(len(x), 0)]
    return evaluation.frechet_infinity(x, evaluation.FeatureStatistics.of(y)).value


DISTANCES = {
    "frechet": frechet,
    "frechet_infinity": frechet_infinity,
    "kid": lambda x, y: evaluation.kernel_distance(x, y).value,
    "1 - coverage": lambda x, y: 1 - evaluation.prdc(x, y).coverage,
    "1 - density": lambda x, y: 1 - evaluation.prdc(x, y).density,
    "swd": evaluation.sliced_wasserstein,
}


@pytest.mark.parametrize("name", DISTANCES)
def test_worse_samples_are_farther_away(name):
    """Noise added in three steps; and a mode dropped."""
    data = np.concatenate([normal(200, 4, 0, -2), normal(200, 4, 1, 2)])
    drawn = np.concatenate([normal(200, 4, 2, -2), normal(200, 4, 3, 2)])
    noise = normal(400, 4, 4)
    distance = DISTANCES[name]
    found = [distance(drawn + scale * noise, data) for scale in (0, 0.7, 1.4, 2.8)]
    assert found == sorted(found) and found[0] < found[3]
    if name != "1 - density":  # which asks for fidelity, not for diversity
        assert distance(drawn[:200], data) > found[0]


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: evaluation.kernel_distance(np.zeros((50, 3)), np.zeros((50, 2))),
            r"\(50, 3\) and",
        ),
        (lambda: evaluation.kernel_distance(np.zeros((50, 3)), np.zeros((30, 3))), "blocks is 20"),
        (
            lambda: evaluation.prdc(np.zeros((9, 3)), np.zeros((9, 2))),
            r"must be \(N, F\) and \(M, F\)",
        ),
        (
            lambda: evaluation.prdc(np.zeros((9, 3)), np.zeros((5, 3))),
            "k is 5; .* below .* 9 and 5",
        ),
        (lambda: evaluation.inception_score(np.zeros((9, 3)), 10), "splits is 10"),
        (lambda: evaluation.inception_score(np.zeros(9)), r"\(9,\)"),
        (
            lambda: evaluation.frechet_standard_error(
                np.zeros((9, 3)), evaluation.Moments(np.zeros(2), 0)
            ),
            r"\(3,\) wide on one side and \(2,\)",
        ),
        (lambda: evaluation.sliced_wasserstein(np.zeros((9, 3)), np.zeros((9, 2))), "of one shape"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
