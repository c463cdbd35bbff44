"""Numbers are those of the statistics, words follow from the numbers, errors name what is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from ablation_cases import ARMS, BPD, SPEC, VARIANCE, make_results, values

from diffax.report import statistics
from diffax.report.analysis import analyse
from diffax.report.formatting import p_text, ratio, short_name, signed, significant, tick
from diffax.report.spec import Spec
from diffax.report.verdict import sentence, verdict


def test_cells_and_comparisons_are_those_of_the_statistics():
    results = make_results()
    analysis = analyse(SPEC, results)
    for arm in ARMS:
        var, bpd = values(results, arm, "var"), values(results, arm, "bpd")
        assert analysis.cells[arm, "var"].interval == statistics.geometric_interval(var)
        assert analysis.cells[arm, "bpd"].interval == statistics.mean_interval(bpd)
        assert list(analysis.cells[arm, "bpd"].values.values()) == bpd
    pairs = [("learned", "cosine"), ("learned", "linear")]
    for key, compare in (
        ("var", statistics.paired_ratio),
        ("bpd", statistics.paired_difference),
    ):
        found = analysis.of_metric(key)
        assert [(c.arm, c.reference) for c in found] == pairs
        expected = [compare(*(values(results, x, key) for x in pair)) for pair in pairs]
        assert [c.difference for c in found] == expected
        assert [c.effect for c in found] == [d.mean for d in expected]
        corrected = statistics.holm([d.p_value for d in expected])
        assert [c.p_holm for c in found] == corrected.tolist()


def test_without_focus_every_arm_is_compared_to_the_baseline():
    analysis = analyse(replace(SPEC, focus=None), make_results())
    pairs = [(c.arm, c.reference, analysis.row(c)) for c in analysis.of_metric("bpd")]
    assert pairs == [("linear", "cosine", "linear"), ("learned", "cosine", "learned")]


def test_pairs_are_matched_by_seed_not_by_order():
    results = make_results()
    shuffled = [results[i] for i in np.random.default_rng(1).permutation(len(results))]
    spec = replace(SPEC, arms=ARMS)
    assert analyse(spec, shuffled).comparisons == analyse(spec, results).comparisons


def compared(a, b, metric=BPD, others=()):
    """The comparison of arm a with arm b, given their values seed by seed, and its sentence."""
    spec = Spec("T", "Q?", "b", [metric])
    arms = {"a": a, "b": b, **dict(others)}
    results = [
        {"arm": arm, "seed": seed, "metrics": {metric.key: v}}
        for arm, vs in arms.items()
        for seed, v in enumerate(vs)
    ]
    c = analyse(spec, results).comparisons[0]
    return c, sentence(spec, c)


def test_verdict_lower():
    c, text = compared([0.30, 0.33, 0.31], [1.0, 1.1, 1.0], VARIANCE)
    d = statistics.paired_ratio([0.30, 0.33, 0.31], [1.0, 1.1, 1.0])
    assert (c.outcome, c.better) == ("lower", True)
    assert text == (
        f"Var(VLB) of a is 0.30 times that of b (95% interval {d.low:.2f} to {d.high:.2f}, "
        "3 paired seeds): lower, which is better."
    )


def test_verdict_higher():
    c, text = compared([1.25, 1.26, 1.24], [1.0, 1.0, 1.0])
    assert (c.outcome, c.better) == ("higher", False)
    assert text == (
        "Bits per dimension of a minus that of b is +0.250 bits/dim (95% interval +0.225 to "
        "+0.275, 3 paired seeds): higher, which is worse."
    )
    for wish, words in ((False, "higher, which is better."), (None, ": higher.")):
        metric = replace(BPD, lower_is_better=wish)
        assert compared([1.25, 1.26, 1.24], [1.0, 1.0, 1.0], metric)[1].endswith(words)


def test_verdict_undecided():
    c, text = compared([1.01, 0.98, 1.02], [1.0, 1.0, 1.0])
    assert (c.outcome, c.better) == ("undecided", None)
    needed = statistics.seeds_needed(c.effect, c.difference.sd)
    assert needed == c.seeds_needed["0.8"] > 3
    assert text.endswith(
        "3 paired seeds): no difference can be seen at this scale; one of this size would be seen "
        f"with {needed} seeds (80% power)."
    )
    assert "+0.003 bits/dim (95% interval −0.048 to +0.055" in text


def test_verdict_does_not_state_what_the_correction_takes_back():
    a, b = [1.02, 1.03, 1.025, 1.010], [1.0, 1.0, 1.0, 1.0]
    alone, text = compared(a, b)
    assert alone.outcome == "higher"
    others = [(f"other{i}", [1.0, 1.1 + i / 100, 0.9, 1.0]) for i in range(9)]
    among, text = compared(a, b, others=others)
    assert among.difference == alone.difference
    assert among.outcome == "suggested"
    assert among.better is None
    assert among.p_holm == pytest.approx(10 * alone.p_holm)
    needed = statistics.seeds_needed(among.effect, among.difference.sd, comparisons=10)
    assert needed == among.seeds_needed["0.8"] > alone.seeds_needed["0.8"]
    assert text.endswith(
        "higher by this interval alone, but not after correction for 10 comparisons "
        f"(p = {p_text(among.p_holm)}), so undecided; one of this size would be seen with {needed} "
        "seeds (80% power)."
    )


def test_what_arms_share_is_one_comparison_and_no_comparison_with_itself():
    # Two ways to sample from each of two trainings: bits/dim knows only the trainings.
    values = {"b": [1.0, 1.1, 1.2], "a": [1.3, 1.31, 1.49]}
    results = [
        {"arm": f"{name}{k}", "seed": seed, "metrics": {"bpd": v}}
        for name, vs in values.items()
        for k in (1, 2)
        for seed, v in enumerate(vs)
    ]
    itself, *others = analyse(Spec("T", "Q?", "b1", [BPD]), results).comparisons
    alone = statistics.paired_difference(values["a"], values["b"])
    assert [(c.arm, c.p_holm, c.family) for c in others] == [
        ("a1", alone.p_value, 1),
        ("a2", alone.p_value, 1),
    ]
    assert (itself.arm, itself.outcome, itself.p_holm) == ("b2", "same", 1.0)
    assert list(itself.seeds_needed.values()) == [None, None]
    assert [c.repeats for c in (itself, *others)] == [True, False, True]
    stated = verdict(analyse(Spec("T", "Q?", "b1", [BPD]), results))
    assert [c.arm for c in stated] == ["a1"]


def test_verdict_of_what_is_equal_to_the_digits_shown():
    c, text = compared([1.0 + 1e-6, 1.0 + 1.1e-6, 1.0 + 1e-6], [1.0, 1.0, 1.0])
    assert c.difference.low > 0
    assert c.outcome == "same"
    assert text.endswith("the same at the digits shown.")


def test_verdict_of_one_seed():
    c, text = compared([0.5], [1.0], VARIANCE)
    assert (c.outcome, c.difference, c.p_holm) == ("unknown", None, None)
    assert text == (
        "Var(VLB) of a is 0.50 times that of b in the only seed that both have: too few to say."
    )


def test_verdict_has_the_headline_first_and_main_metrics_only():
    stated = verdict(analyse(SPEC, make_results()))
    keys = [(c.metric.key, c.reference) for c in stated]
    assert keys == [("var", "cosine"), ("var", "linear"), ("bpd", "cosine"), ("bpd", "linear")]
    assert stated[0].outcome == "lower"
    short = verdict(analyse(SPEC, make_results()), most=2)
    assert [(c.metric.key, c.reference) for c in short] == [("var", "cosine"), ("bpd", "cosine")]


def test_names_that_grid_made_are_shortened():
    names = {
        "schedule.name=cosine,schedule.num_steps=250": "cosine, num_steps=250",
        "model.unet.channel_mults=(1, 2),data.flip=True": "channel_mults=(1, 2), flip=True",
        "learned": "learned",
        "odd, name=": "odd, name=",
    }
    assert {name: short_name(name) for name in names} == names
    assert replace(SPEC, labels={"a.b=c": "C"}).label("a.b=c") == "C"


def test_numbers_read_well():
    assert [significant(x, 3) for x in (0.0, 1234.5, 0.012345, 3.1e-7, 2.5e9, 99.96, -1.5)] == [
        "0", "1,230", "0.0123", "3.10×10⁻⁷", "2.50×10⁹", "100", "−1.50",
    ]  # fmt: skip
    assert [tick(x) for x in (0.5, 4.0, 10.0, 100.0, 1000.0, 2.5e9)] == [
        "0.5", "4", "10", "100", "1,000", "2.50×10⁹",
    ]  # fmt: skip
    assert [signed(x, 2) for x in (0.004, -0.004, 0.005001, -1.0)] == [
        "0.00",
        "0.00",
        "+0.01",
        "−1.00",
    ]
    assert [ratio(x) for x in (0.0312, 0.305, 0.9912, 1.1, 12.34, 250.2)] == [
        "0.031", "0.30", "0.991", "1.10", "12.3", "250",
    ]  # fmt: skip
    assert [p_text(p) for p in (None, 0.0002, 0.0123, 0.5)] == ["–", "<0.001", "0.012", "0.50"]


def test_what_is_missing_is_an_error_that_names_it():
    results = make_results()
    del results[3]["metrics"]["bpd"]
    with pytest.raises(ValueError, match="missing: metric 'bpd' of arm 'linear', seed 1"):
        analyse(SPEC, results)
    results[3]["metrics"]["bpd"] = float("nan")
    with pytest.raises(ValueError, match="metric 'bpd' of arm 'linear', seed 1"):
        analyse(SPEC, results)
    for r in results:
        if r["arm"] == "linear":
            r["metrics"]["bpd"] = float("nan")
    said = "'bpd' of arm 'linear', seed 0; .* seed 1; .* seed 2"
    with pytest.raises(ValueError, match=said):
        analyse(SPEC, results)
    partial = analyse(SPEC, results, partial=True)
    assert len(partial.missing) == 3 and ("linear", "bpd") not in partial.cells
    with pytest.raises(ValueError, match="missing: arm 'learned', seed 2"):
        analyse(SPEC, make_results()[:-1])
    with pytest.raises(ValueError, match="missing: arm 'linear', seed 3; .* arm 'learned', seed 3"):
        analyse(replace(SPEC, seeds=range(4)), make_results())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "cos"}, r"baseline is 'cos'; the arms are \['linear', 'cosine', 'learned'\]"),
        ({"focus": "lerned"}, "focus is 'lerned'; the arms are"),
        ({"focus": "cosine"}, "focus and baseline are both 'cosine'"),
        ({"arms": ["cosine", "learned"]}, "results hold arm 'linear'; the arms are"),
        ({"metrics": []}, "metrics must be one or more"),
        ({"metrics": [BPD, BPD]}, "distinct keys"),
        (
            {"metrics": [replace(BPD, scale="cubic")]},
            "has scale 'cubic'; allowed are .*linear.*log",
        ),
        ({"metrics": [replace(BPD, key="bdp")]}, "metric 'bdp' has a finite value in no run"),
        (
            {"labels": {"linear": "cosine"}},
            "labels must tell the arms apart, got .'cosine', 'cosine'",
        ),
        ({"confidence": 95}, "confidence is 95"),
    ],
)
def test_a_wrong_spec_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        analyse(replace(SPEC, **change), make_results())


def test_wrong_results_are_refused():
    with pytest.raises(ValueError, match="results is empty"):
        analyse(SPEC, [])
    with pytest.raises(ValueError, match="hold arm 'linear', seed 0 twice"):
        analyse(SPEC, make_results() + make_results()[:1])
    with pytest.raises(ValueError, match=r"a result has no 'metrics'; it has \['arm', 'seed'\]"):
        analyse(SPEC, [{"arm": "linear", "seed": 0}])


@pytest.mark.parametrize("value", [0.0, -1e-6])
def test_what_has_no_place_on_a_log_scale_is_tabled_and_said(value):
    results = make_results()
    results[0]["metrics"]["var"] = value  # linear, seed 0
    analysis = analyse(SPEC, results)
    assert analysis.missing == [
        f"metric 'var' of arm 'linear' on its log scale, being {value:g} with seed 0"
    ]
    cell = analysis.cells["linear", "var"]
    assert (cell.interval, cell.on_scale) == (None, False)
    assert cell.mean == pytest.approx(np.mean(values(results, "linear", "var")))
    assert [c.reference for c in analysis.of_metric("var")] == ["cosine"]
    assert [c.reference for c in analysis.of_metric("bpd")] == ["cosine", "linear"]
    alone = analyse(SPEC, [r for r in results if r["arm"] != "linear"])
    assert analysis.of_metric("var") == alone.of_metric("var")
