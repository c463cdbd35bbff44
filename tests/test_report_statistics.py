"""Intervals, tests and corrections: against scipy, closed forms and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from diffax.report import statistics

INTERVALS = [statistics.mean_interval, statistics.geometric_interval]
COMPARISONS = [statistics.paired_difference, statistics.paired_ratio]


# Student's t with two degrees of freedom has a closed form: (2p - 1) / sqrt(2p (1 - p)).
T_2 = 0.95 / np.sqrt(2 * 0.975 * 0.025)


def vectors(low=-100.0, high=100.0, size=None):
    size = st.integers(2, 12) if size is None else size
    return hnp.arrays(np.float64, size, elements=st.floats(low, high))


def ends(x):
    return np.array([x.mean, x.low, x.high])


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_mean_interval_is_scipys(confidence):
    x = np.random.default_rng(0).normal(3, 2, 7)
    low, high = stats.t.interval(confidence, 6, loc=x.mean(), scale=stats.sem(x))
    np.testing.assert_allclose(
        ends(statistics.mean_interval(x, confidence)), [x.mean(), low, high], rtol=1e-10
    )


def test_mean_interval_of_three_values_by_hand():
    interval = statistics.mean_interval([1.0, 2.0, 3.0])
    half = T_2 / np.sqrt(3)
    np.testing.assert_allclose(ends(interval), [2, 2 - half, 2 + half], rtol=1e-9)
    assert interval.n == 3


def test_geometric_interval_by_hand():
    # Logs 0, 1, 2: the interval of the log is 1 ± t / sqrt(3).
    interval = statistics.geometric_interval(np.exp([0.0, 1.0, 2.0]))
    half = T_2 / np.sqrt(3)
    np.testing.assert_allclose(ends(interval), np.exp([1, 1 - half, 1 + half]), rtol=1e-9)
    assert interval.mean == pytest.approx(stats.gmean(np.exp([0.0, 1.0, 2.0])))


def test_paired_difference_is_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.4, 1, 8), rng.normal(0, 1, 8)
    difference, reference = statistics.paired_difference(a, b, 0.9), stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.9)
    np.testing.assert_allclose(
        ends(difference), [np.mean(a - b), interval.low, interval.high], rtol=1e-10
    )
    assert difference.p_value == pytest.approx(reference.pvalue, rel=1e-10)
    assert difference.sd == pytest.approx(np.std(a - b, ddof=1), rel=1e-12)


def test_students_own_sleep_data():
    # Student 1908: hours of sleep gained under two drugs; mean 1.58, t = 4.0621, p = 0.00283.
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    two = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    difference = statistics.paired_difference(two, one)
    assert difference.mean == pytest.approx(1.58)
    assert difference.p_value == pytest.approx(0.00283, abs=5e-6)
    assert (round(difference.low, 2), round(difference.high, 2)) == (0.70, 2.46)


def test_paired_ratio_is_the_difference_of_logs():
    rng = np.random.default_rng(2)
    a, b = rng.lognormal(size=5), rng.lognormal(size=5)
    ratio, logs = statistics.paired_ratio(a, b), statistics.paired_difference(np.log(a), np.log(b))
    np.testing.assert_allclose(ends(ratio), np.exp(ends(logs)))
    assert (ratio.p_value, ratio.sd, ratio.no_effect) == (logs.p_value, logs.sd, 1.0)
    assert logs.no_effect == 0.0


@pytest.mark.parametrize("compare", COMPARISONS)
def test_constant_pairs_have_no_width(compare):
    a = np.array([1.0, 2.0, 4.0])
    same = compare(a, a)
    assert same.low == same.mean == same.high == same.no_effect
    assert same.p_value == 1.0
    moved = statistics.paired_difference(a + 1, a)
    assert (moved.low, moved.mean, moved.high, moved.p_value) == (1, 1, 1, 0.0)


@given(vectors(), st.data(), st.sampled_from([0.8, 0.95]))
def test_interval_and_test_agree(a, data, confidence):
    b = data.draw(vectors(size=st.just(a.size)))
    d = statistics.paired_difference(a, b, confidence)
    edge = min(abs(d.low), abs(d.high))
    if edge > 1e-9 * (1 + abs(d.mean)):  # away from the edge, where rounding decides
        assert (d.p_value < 1 - confidence) == (d.low > 0 or d.high < 0)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_mean_interval_covers(n):
    trials, rng = 4000, np.random.default_rng(n)
    hits = 0
    for x in rng.normal(5.0, 2.0, (trials, n)):
        interval = statistics.mean_interval(x)
        hits += interval.low <= 5.0 <= interval.high
    # Exact coverage 0.95; four standard deviations of a binomial.
    assert abs(hits / trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)


def test_paired_ratio_covers_and_keeps_its_level():
    trials, rng = 4000, np.random.default_rng(3)
    common = rng.normal(0, 3, (trials, 3))  # what the seed does to both arms cancels
    a = np.exp(common + rng.normal(np.log(0.5), 0.3, (trials, 3)))
    b = np.exp(common + rng.normal(0, 0.3, (trials, 3)))
    ratios = [statistics.paired_ratio(x, y) for x, y in zip(a, b)]
    covered = np.mean([r.low <= 0.5 <= r.high for r in ratios])
    null = np.mean([statistics.paired_ratio(x, 0.5 * y).p_value < 0.05 for x, y in zip(a, b)])
    bound = 4 * np.sqrt(0.95 * 0.05 / trials)
    assert abs(covered - 0.95) < bound
    assert abs(null - 0.05) < bound


def test_geometric_interval_covers_the_median_of_a_lognormal():
    trials, rng = 4000, np.random.default_rng(4)
    x = rng.lognormal(1.0, 1.0, (trials, 4))
    hits = [i.low <= np.e <= i.high for i in map(statistics.geometric_interval, x)]
    assert abs(np.mean(hits) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)


@given(vectors(), st.floats(-50, 50), st.floats(0.01, 50), st.booleans())
def test_mean_interval_moves_with_its_values(x, shift, factor, flip):
    factor = -factor if flip else factor
    old, new = (statistics.mean_interval(v) for v in (x, factor * x + shift))
    expected = factor * ends(old) + shift
    expected[1:] = np.sort(expected[1:])
    np.testing.assert_allclose(ends(new), expected, atol=1e-7, rtol=1e-7)


@given(vectors(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_geometric_interval_scales_and_stays_positive(x, factor):
    old, new = (statistics.geometric_interval(v) for v in (x, factor * x))
    np.testing.assert_allclose(ends(new), factor * ends(old), rtol=1e-6)
    assert 0 < new.low <= new.mean * (1 + 1e-12)
    # Never above the arithmetic mean.
    assert old.mean <= x.mean() * (1 + 1e-12)


@pytest.mark.parametrize("compare", COMPARISONS)
@given(data=st.data())
def test_comparisons_do_not_depend_on_order_and_turn_around(compare, data):
    a = data.draw(vectors(0.01, 100.0))
    b = data.draw(vectors(0.01, 100.0, st.just(a.size)))
    order = data.draw(st.permutations(range(a.size)))
    here, moved, turned = compare(a, b), compare(a[order], b[order]), compare(b, a)
    np.testing.assert_allclose(ends(moved), ends(here), rtol=1e-6, atol=1e-9)
    if here.log_scale:
        np.testing.assert_allclose(ends(turned)[[0, 2, 1]], 1 / ends(here), rtol=1e-6)
    else:
        np.testing.assert_allclose(ends(turned)[[0, 2, 1]], -ends(here), rtol=1e-6, atol=1e-9)
    assert turned.p_value == pytest.approx(here.p_value, rel=1e-6)


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, made monotone; the order given is kept.
    adjusted = statistics.holm([0.04, 0.01, 0.03, 0.02])
    np.testing.assert_allclose(adjusted, [0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.7]).tolist() == [0.7]
    assert statistics.holm([]).tolist() == []


@given(hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)), st.randoms())
def test_holm_is_monotone_between_raw_and_bonferroni(p, random):
    adjusted = statistics.holm(p)
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= np.minimum(1, p.size * p))
    assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)
    order = random.sample(range(p.size), p.size)
    np.testing.assert_array_equal(statistics.holm(p[order]), adjusted[order])


def test_holm_keeps_the_family_wise_level():
    trials, rng = 20000, np.random.default_rng(10)
    false_findings = [statistics.holm(p).min() < 0.05 for p in rng.uniform(size=(trials, 6))]
    # For independent true nulls the level is 1 - (1 - 0.05 / 6)^6 = 0.0490.
    level = 1 - (1 - 0.05 / 6) ** 6
    assert abs(np.mean(false_findings) - level) < 4 * np.sqrt(level * (1 - level) / trials)


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least 2 values, got 0"),
        ([1.0], "at least 2 values, got 1"),
        ([1.0, np.nan, 2.0], "must be finite, got nan at index 1"),
        ([1.0, 2.0, np.inf], "must be finite, got inf at index 2"),
    ],
)
def test_intervals_refuse_what_they_cannot_use(interval, values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_comparisons_refuse_what_they_cannot_use(compare):
    with pytest.raises(ValueError, match="paired by seed, got 3 and 2 values"):
        compare([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="b: every value must be finite"):
        compare([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ValueError, match="a: an interval needs at least 2"):
        compare([1.0], [1.0])
    with pytest.raises(ValueError, match="confidence is 95"):
        compare([1.0, 2.0], [1.5, 1.0], confidence=95)


@settings(max_examples=20)
@given(st.floats(max_value=0))
def test_log_scale_refuses_what_is_not_positive(bad):
    with pytest.raises(ValueError, match=r"log scale needs positive|must be finite"):
        statistics.geometric_interval([1.0, bad])
    with pytest.raises(ValueError, match=r"b: (a log scale needs positive|every value)"):
        statistics.paired_ratio([1.0, 2.0], [1.0, bad])


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
        statistics.holm([0.5, 1.5])
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
        statistics.holm([np.nan])
    with pytest.raises(ValueError, match="one-dimensional"):
        statistics.mean_interval(np.ones((2, 2)))


# --- the sign-flip test and power ---------------------------------------------------------------


def test_sign_flip_of_darwins_plants_is_fishers():
    # Fisher 1935, section 21: of the 2^15 patterns, 863 have a sum of 314 or more: p = 0.05267.
    eighths = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert sum(eighths) == 314
    assert statistics.sign_flip(eighths) == 2 * 863 / 2**15


@pytest.mark.parametrize("n", [2, 5, 6])
def test_sign_flip_has_its_grain(n):
    assert statistics.sign_flip(np.arange(1.0, n + 1)) == 2.0 ** (1 - n)
    assert statistics.sign_flip(np.zeros(n)) == 1.0
    assert statistics.paired_difference(np.ones(n), np.zeros(n)).p_sign_flip == 2.0 ** (1 - n)


def test_sign_flip_is_scipys():
    d = np.random.default_rng(11).normal(0.5, 1, 7)
    found = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert statistics.sign_flip(d) == pytest.approx(found.pvalue)


def test_sign_flip_keeps_its_level_where_differences_are_not_normal():
    trials, rng = 4000, np.random.default_rng(12)
    d = rng.standard_t(1, (trials, 8))  # no mean, no variance
    share = np.mean([statistics.sign_flip(x) <= 0.05 for x in d])
    assert share < 0.05 + 4 * np.sqrt(0.05 * 0.95 / trials)


def test_sign_flip_refuses():
    with pytest.raises(ValueError, match="at most 20 can be counted out, got 21"):
        statistics.sign_flip(np.ones(21))
    assert statistics.paired_difference(np.arange(21.0), np.ones(21)).p_sign_flip is None


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize(
    ("n", "effect"), [(2, 1.0), (3, 5.0), (5, 1.5), (34, 0.5), (199, 0.2), (9, 0.0)]
)
def test_power_is_that_of_scipys_noncentral_t(n, effect, confidence):
    critical, shift = stats.t.ppf((1 + confidence) / 2, n - 1), 2 * effect / 2 * np.sqrt(n)
    both = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    if not np.isfinite(both):  # scipy's lower tail is not a number where it is nothing
        both = stats.nct.sf(critical, n - 1, shift)
    found = statistics.paired_power(n, 2 * effect, 2.0, confidence)
    assert found == pytest.approx(both, abs=3e-3 if n == 2 else 1e-5)


def test_power_is_that_of_a_simulation():
    n, effect, trials, rng = 4, 1.2, 4000, np.random.default_rng(13)
    d = rng.normal(effect, 1.0, (trials, n))
    t = d.mean(axis=1) / (d.std(axis=1, ddof=1) / np.sqrt(n))
    for comparisons in (1, 3):
        found = np.mean(2 * stats.t.sf(np.abs(t), n - 1) < 0.05 / comparisons)
        claimed = statistics.paired_power(n, effect, 1.0, comparisons=comparisons)
        assert abs(found - claimed) < 4 * np.sqrt(claimed * (1 - claimed) / trials)


def test_seeds_needed_are_those_of_gpower():
    # G*Power 3.1, means: difference between two dependent means, two-sided, level 0.05.
    published = {0.2: (199, 265), 0.5: (34, 44), 0.8: (15, 19)}
    for effect, seeds in published.items():
        for power, n in zip((0.8, 0.9), seeds):
            assert statistics.seeds_needed(-3 * effect, 3.0, power=power) == n


@given(st.floats(0.05, 20), st.sampled_from([0.8, 0.9]), st.integers(1, 20))
def test_seeds_needed_is_the_least_that_is_enough(effect, power, comparisons):
    n = statistics.seeds_needed(effect, 1.0, 0.95, power, comparisons)
    assert statistics.paired_power(n, effect, 1.0, 0.95, comparisons) >= power
    if n > 2:
        assert statistics.paired_power(n - 1, effect, 1.0, 0.95, comparisons) < power


def test_seeds_needed_at_the_edges():
    assert statistics.seeds_needed(0.0, 1.0) is None
    assert statistics.seeds_needed(1e-6, 1.0) is None
    assert statistics.seeds_needed(1.0, 0.0) == statistics.seeds_needed(1e9, 1.0) == 2
    for change, said in (
        ({"power": 1.0}, "power is 1.0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"deviation": -1.0}, "effect and deviation must be finite"),
        ({"comparisons": 0}, "comparisons is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            statistics.seeds_needed(**{"effect": 1.0, "deviation": 1.0, **change})
