"""Designs of several axes: effects by closed forms, their coverage, and how a report tells them."""

import html
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from ablation_cases import BPD, VARIANCE, make_design
from scipy import stats
from test_report import Page

from diffax.report import figures, findings, statistics
from diffax.report.analysis import analyse
from diffax.report.build import build_report, format_table
from diffax.report.spec import Spec
from diffax.report.verdict import effect_name, headline, sentences, verdict

TWO_BY_THREE = {"schedule.name": ["linear", "cosine"], "sampling.num_steps": ["10", "50"]}
EIGHT = {**TWO_BY_THREE, "objective.weighting": ["simple", "min_snr"]}
SIX = {"schedule.name": ["linear", "cosine", "learned"], "objective.weighting": ["simple", "elbo"]}


def effects_of(analysis, key="bpd"):
    """effect's name without the axes' -> effect."""
    return {(e.axes, e.levels): e for e in analysis.effects_of(key)}


# --- contrasts ------------------------------------------------------------------------------------


def test_a_contrast_of_two_arms_is_the_paired_comparison():
    a, b = np.random.default_rng(0).lognormal(size=(2, 6))
    for log_scale, compare in ((False, "paired_difference"), (True, "paired_ratio")):
        ours = statistics.contrast([a, b], [1, -1], 0.9, log_scale)
        theirs = getattr(statistics, compare)(a, b, 0.9)
        for name in ("mean", "low", "high", "p_value", "sd", "p_sign_flip"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-9)
        assert ours.log_scale == log_scale


def test_a_contrast_is_scipys_one_sample_test_of_the_weighted_sums():
    rng = np.random.default_rng(1)
    y, w = rng.normal(size=(4, 5)) * [[1], [5], [0.2], [2]], np.array([0.5, -0.5, 1.0, -1.0])
    found, reference = statistics.contrast(y, w), stats.ttest_1samp(w @ y, 0.0)
    interval = reference.confidence_interval(0.95)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-10)
    np.testing.assert_allclose(
        [found.mean, found.low, found.high], [(w @ y).mean(), *interval], rtol=1e-10
    )
    assert found.p_sign_flip == statistics.sign_flip(w @ y)


def test_values_that_cancel_do_so_exactly():
    row = np.random.default_rng(2).lognormal(size=7)
    values = [row, row, 3 * row, row, row, 3 * row]
    weights = np.array([1, 1, 1, -1, -1, -1]) / 3
    for log_scale in (False, True):
        assert not statistics.contrast_values(values, weights, log_scale).any()


@pytest.mark.parametrize(
    ("values", "weights", "log_scale", "said"),
    [
        (np.ones((2, 3)), [1, 1], False, "weights must add up to zero"),
        (np.ones((2, 3)), [0, 0], False, "not all be zero"),
        (np.ones((2, 3)), [1, -1, 0], False, r"got \(2, 3\) and \(3,\)"),
        (np.ones(3), [1, -1, 0], False, r"got \(3,\)"),
        (np.zeros((2, 3)), [1, -1], True, "a log scale needs positive values, got 0"),
        (np.full((2, 3), np.nan), [1, -1], False, "must be finite"),
        (np.ones((2, 1)), [1, -1], False, "at least 2 values, got 1"),
    ],
)
def test_what_is_no_contrast_is_refused(values, weights, log_scale, said):
    with pytest.raises(ValueError, match=said):
        statistics.contrast(values, weights, log_scale=log_scale)


# --- effects --------------------------------------------------------------------------------------

# Box, Hunter & Hunter, "Statistics for Experimenters", the pilot plant: two runs of each of the
# 2^3 combinations of temperature, concentration and catalyst; yields in %.
PLANT = {"a.temperature": ["160", "180"], "b.concentration": ["20", "40"], "c.catalyst": ["A", "B"]}
YIELDS = {
    ("160", "20", "A"): (59, 61), ("180", "20", "A"): (74, 70), ("160", "40", "A"): (50, 58),
    ("180", "40", "A"): (69, 67), ("160", "20", "B"): (50, 54), ("180", "20", "B"): (81, 85),
    ("160", "40", "B"): (46, 44), ("180", "40", "B"): (79, 81),
}  # fmt: skip


def test_effects_are_those_of_the_pilot_plant():
    """T 23, C -5, K 1.5; TC 1.5, TK 10, CK 0: there an interaction is half of ours."""
    spec, results = make_design(
        PLANT, lambda seed, levels: {"bpd": float(YIELDS[tuple(levels.values())][seed])}, (0, 1)
    )
    found = analyse(spec, results).effects_of("bpd")
    named = {"".join(axis[2:4] for axis in e.axes): e.effect for e in found}
    expected = {"te": 23, "co": -5, "ca": 1.5, "teco": 3, "teca": 20, "coca": 0}
    assert named == pytest.approx(expected)
    # The standard error of a main effect, of eight yields against eight: half of the sum of the
    # two runs' differences of the contrast, by hand for the temperature.
    t = next(e for e in found if e.axes == ("a.temperature",))
    each = [
        np.mean([YIELDS["180", c, k][run] - YIELDS["160", c, k][run] for c in ("20", "40")
                 for k in "AB"]) for run in (0, 1)
    ]  # fmt: skip
    reference = stats.ttest_1samp(each, 0.0)
    assert t.difference.p_value == pytest.approx(reference.pvalue)


def known(seed, levels):
    """Additive but for one interaction; what the seed adds to all cells cancels."""
    cosine, many = levels["schedule.name"] == "cosine", levels["sampling.num_steps"] == "50"
    snr = levels["objective.weighting"] == "min_snr"
    bpd = 3 + 10 * seed - 0.5 * cosine - 0.25 * many + 0.125 * snr + 0.25 * cosine * snr
    return {"bpd": bpd, "var": 2.0**seed * 0.5**cosine * 4.0 ** (cosine * many)}


def test_known_effects_of_a_two_cubed_design_are_found_exactly():
    analysis = analyse(*make_design(EIGHT, known, metrics=(BPD, VARIANCE)))
    found = {e.axes: e for e in analysis.effects_of("bpd")}
    name, steps, weighting = EIGHT
    expected = {
        (name,): -0.375, (steps,): -0.25, (weighting,): 0.25,
        (name, steps): 0.0, (name, weighting): 0.25, (steps, weighting): 0.0,
    }  # fmt: skip
    assert {axes: e.effect for axes, e in found.items()} == pytest.approx(expected)
    assert found[name,].averaged == found[name,].combinations == 4
    assert found[name, weighting].averaged == found[name, weighting].combinations == 2
    assert all(e.difference.sd < 1e-12 for e in found.values())
    assert found[name,].outcome == "lower" and found[name,].better
    assert found[name, weighting].outcome == "higher" and found[name, weighting].better is None
    ratios = {e.axes: e.effect for e in analysis.effects_of("var")}
    # The weighting changes nothing: no axis of this metric.
    assert ratios == pytest.approx({(name,): 1.0, (steps,): 2.0, (name, steps): 4.0})


def test_levels_of_an_axis_of_three_are_each_against_the_baselines():
    table = {"linear": 0.0, "cosine": -1.0, "learned": -3.0}

    def value(seed, levels):
        elbo = levels["objective.weighting"] == "elbo"
        learned = levels["schedule.name"] == "learned"
        return {"bpd": seed + table[levels["schedule.name"]] + elbo * (1 + 0.5 * learned)}

    spec, results = make_design(SIX, value)
    found = effects_of(analyse(spec, results))
    name, weighting = SIX
    assert {k: e.effect for k, e in found.items()} == pytest.approx(
        {
            ((name,), ("cosine",)): -1.0,
            ((name,), ("learned",)): -2.75,
            ((weighting,), ("elbo",)): 1 + 0.5 / 3,
            ((name, weighting), ("cosine", "elbo")): 0.0,
            ((name, weighting), ("learned", "elbo")): 0.5,
        }
    )
    # Another baseline: other references.
    other = replace(spec, baseline="schedule.name=learned,objective.weighting=elbo")
    found = effects_of(analyse(other, results))
    assert found[(name,), ("cosine",)].effect == pytest.approx(1.75)
    assert found[(name,), ("cosine",)].references == ("learned",)
    assert found[(weighting,), ("simple",)].effect == pytest.approx(-1 - 0.5 / 3)


def test_weights_by_hand():
    design = findings.Design({"x": ("a", "b", "c"), "y": ("0", "1")}, {})
    cells = [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1"), ("c", "0")]
    main = {("b", "0"): 0.5, ("b", "1"): 0.5, ("a", "0"): -0.5, ("a", "1"): -0.5}
    assert findings.weights(design, cells, {"x": "b"}) == main
    assert findings.weights(design, cells, {"x": "c"}) == {("c", "0"): 1, ("a", "0"): -1}
    both = {("b", "1"): 1, ("a", "1"): -1, ("b", "0"): -1, ("a", "0"): 1}
    assert findings.weights(design, cells, {"x": "b", "y": "1"}) == both
    assert findings.weights(design, cells, {"x": "c", "y": "1"}) == {}


def noisy(rng, **effect):
    def value(seed, levels):
        x = sum(effect.get(level, 0.0) for level in levels.values())
        return {"bpd": 5.0 * np.sin(seed) + x + rng.normal(0, 0.1)}

    return value


def test_p_is_corrected_for_all_effects_of_a_metric_together():
    spec, results = make_design(EIGHT, noisy(np.random.default_rng(3), cosine=-0.1), range(5))
    found = analyse(spec, results).effects_of("bpd")
    assert len(found) == 6 and {e.family for e in found} == {6}
    corrected = statistics.holm([e.difference.p_value for e in found])
    assert [e.p_holm for e in found] == corrected.tolist()
    for e in found:
        assert e.difference.p_sign_flip >= 2.0**-4
        needed = statistics.seeds_needed(e.effect, e.difference.sd, comparisons=6)
        assert e.seeds_needed["0.8"] == needed


def test_a_grid_with_holes_is_averaged_over_balanced_parts():
    """Marginal means of all cells there are would take the weighting for the schedule's doing."""
    without = [("cosine", "10", "min_snr")]

    def value(seed, levels):
        shift = {"cosine": -1.0, "min_snr": 10.0, "50": 2.0}
        return {"bpd": seed + sum(shift.get(level, 0.0) for level in levels.values())}

    spec, results = make_design(EIGHT, value, without=without)
    analysis = analyse(spec, results)
    found = effects_of(analysis)
    name, steps, weighting = EIGHT
    main = found[(name,), ("cosine",)]
    assert (main.effect, main.averaged, main.combinations) == (pytest.approx(-1.0), 3, 4)
    naive = [
        np.mean([value(0, own)["bpd"] for own in spec.design.values() if own[name] == level])
        for level in ("linear", "cosine")
    ]
    assert naive[1] - naive[0] < -2
    both = found[(name, weighting), ("cosine", "min_snr")]
    assert (both.effect, both.averaged, both.combinations) == (pytest.approx(0.0, abs=1e-12), 1, 2)
    assert analysis.design.missing == without
    # An effect of which no balanced part is there has no number.
    without = [("cosine", steps, "min_snr") for steps in ("10", "50")]
    found = effects_of(analyse(*make_design(EIGHT, value, without=without)))
    assert ((name, weighting), ("cosine", "min_snr")) not in found
    assert found[(name,), ("cosine",)].averaged == 2


def test_seeds_that_a_cell_lacks_are_left_out_of_its_effects_alone():
    spec, results = make_design(SIX, noisy(np.random.default_rng(4)), range(4))
    lost = "schedule.name=learned,objective.weighting=elbo"
    results = [r for r in results if (r["arm"], r["seed"]) != (lost, 2)]
    found = effects_of(analyse(spec, results, partial=True))
    name, weighting = SIX
    assert found[(name,), ("cosine",)].pairs == 4
    assert found[(name,), ("learned",)].pairs == found[(weighting,), ("elbo",)].pairs == 3
    one = analyse(spec, [r for r in results if r["seed"] == 0], partial=True)
    assert {e.outcome for e in one.effects} == {"unknown"} and not headline(one)


def test_arms_that_are_no_design_have_no_effects():
    results = [
        {"arm": arm, "seed": seed, "metrics": {"bpd": seed + i * 1.5**seed}}
        for i, arm in enumerate("abcd")
        for seed in range(3)
    ]
    spec = Spec("T", "Q?", "a", [BPD])
    assert analyse(spec, results).design is None
    # Keys that change together: no combination of the one has two levels of the other.
    together = {arm: {"x": str(i), "y": str(i), "z": "0"} for i, arm in enumerate("abcd")}
    analysis = analyse(replace(spec, design=together), results)
    assert analysis.design is None and not analysis.effects
    # One axis: its effects are the comparisons.
    single = {arm: {"x": str(i)} for i, arm in enumerate("abcd")}
    assert analyse(replace(spec, design=single), results).design is None


TRIALS = 2000
AXES = [(k,) for k in EIGHT] + list(itertools.combinations(EIGHT, 2))


@pytest.fixture(scope="module")
def simulated():
    """The effects on 2000 designs of 2 × 2 × 2 arms and four seeds: a seed's own effect, spreads
    that differ from cell to cell, and true effects of 0.3 and 0."""
    rng = np.random.default_rng(20)
    design = findings.Design({k: tuple(v) for k, v in EIGHT.items()}, {})
    cells = list(itertools.product(*EIGHT.values()))
    spread = np.linspace(0.2, 2.0, 8)
    noise = rng.normal(size=(TRIALS, 8, 4)) * spread[:, None] + rng.normal(0, 5, (TRIALS, 1, 4))
    truth = np.array([0.3 * (cell[0] == "cosine") for cell in cells])
    changed = [{k: v[1] for k, v in EIGHT.items() if k in axes} for axes in AXES]
    weights = [[findings.weights(design, cells, own).get(c, 0.0) for c in cells] for own in changed]
    return [[statistics.contrast(y, w) for w in weights] for y in noise + truth[:, None]]


def test_intervals_of_effects_cover(simulated):
    """Each of the six at 0.95, to four standard deviations of a binomial."""
    truth = [0.3, 0.0, 0.0, 0.0, 0.0, 0.0]
    covered = np.mean(
        [[d.low <= x <= d.high for d, x in zip(found, truth)] for found in simulated], axis=0
    )
    assert np.all(np.abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / TRIALS))


def test_no_effect_is_found_where_there_is_none(simulated):
    """Of five true nulls one or more is decided in 5% of the designs at most."""
    corrected = [statistics.holm([d.p_value for d in found])[1:].min() for found in simulated]
    assert np.mean(np.array(corrected) < 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / TRIALS)


# --- the report -----------------------------------------------------------------------------------


def trained(seed, levels):
    """bits/dim of a training, whatever the sampling; a distance of samples."""
    rng = np.random.default_rng([seed, *map(ord, levels["schedule.name"][:2])])
    cosine, many = levels["schedule.name"] == "cosine", levels["sampling.num_steps"] == "50"
    bpd = 2.0 + 0.01 * rng.normal() + 0.001 * cosine
    return {"bpd": bpd, "var": np.exp(0.2 * np.sin(7 * seed + many + 2 * cosine) - 2.0 * many)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    spec, results = make_design(
        TWO_BY_THREE, trained, range(5), (BPD, VARIANCE), trained_by=["schedule.name"]
    )
    return build_report(spec, results, tmp_path_factory.mktemp("design"))


def test_measures_of_a_training_stand_once(report):
    analysis = report.analysis
    linear, cosine = (
        f"schedule.name={name},sampling.num_steps=10" for name in ("linear", "cosine")
    )
    assert analysis.shown["bpd"] == {linear: "linear", cosine: "cosine"}
    assert len(analysis.shown["var"]) == 4
    (told,) = [c for c in analysis.of_metric("bpd") if not c.repeats]
    assert told.names == ("cosine", "linear")
    own = [f"{name}, num_steps={n}" for name in ("linear", "cosine") for n in (10, 50)]
    assert [c.names for c in analysis.of_metric("var")] == [(name, own[0]) for name in own[1:]]
    assert {e.axes for e in analysis.effects_of("bpd")} == {("schedule.name",)}
    page = Page(report.html.read_text("utf-8"))
    rows = [row for row in page.rows if "2.0" in " ".join(row)]
    assert len(rows) == 2 and page.row("linear baseline") and page.row("cosine")
    assert page.row("cosine, num_steps=50")
    assert "Bits per dimension does not depend on sampling.num_steps at all." in page.text
    block = next(b for b in report.table.split("\n\n") if b.startswith("Bits per dimension"))
    assert [line.split()[0] for line in block.splitlines()[2:]] == ["linear", "cosine"]
    labels = figures.metric_points(analysis, BPD).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["linear", "cosine"]


def test_the_headline_is_the_largest_decided_effect(report):
    first, *others = verdict(report.analysis)
    assert (first.metric.key, first.axes, first.outcome) == (
        "var",
        ("sampling.num_steps",),
        "lower",
    )
    said = sentences(report.analysis)[0]
    start = "With sampling.num_steps=50 instead of 10, Var(VLB) is"
    assert said.startswith(f"{start} {first.effect:.2f} times as large (95% interval ")
    assert "5 paired seeds, averaged over 2 combinations of the other axes): lower" in said
    # Main effects are all stated, of the interactions those that are decided.
    assert [(f.metric.key, f.is_main) for f in others] == [("bpd", True), ("var", True)]
    page = Page(report.html.read_text("utf-8"))
    assert f"{said.partition(' (')[0]} (95% interval" in page.text
    assert json.loads(report.json.read_text("utf-8"))["verdict"] == sentences(report.analysis)


def test_of_several_decided_effects_the_largest_leads_and_its_interaction_is_said():
    def value(seed, levels):
        return {"bpd": known(seed, levels)["bpd"] + rng.normal(0, 0.01)}

    rng = np.random.default_rng(8)
    analysis = analyse(*make_design(EIGHT, value, range(4)))
    stated = [(f.axes, f.outcome) for f in verdict(analysis)]
    name, steps, weighting = EIGHT
    assert stated[0] == ((name,), "lower")
    assert {axes for axes, _ in stated} == {(name,), (steps,), (weighting,), (name, weighting)}
    said = sentences(analysis)
    assert said[0].endswith("lower, which is better; how much depends on objective.weighting.")
    (both,) = [text for text in said if text.startswith("The difference in ")]
    assert both.startswith(
        "The difference in Bits per dimension of schedule.name=cosine to linear changes by +0.2"
    )
    assert both.endswith("the two depend on one another.")


def test_where_nothing_is_decided_the_headline_says_so():
    spec, results = make_design(EIGHT, noisy(np.random.default_rng(5)), range(3))
    analysis = analyse(spec, results)
    assert headline(analysis) is None
    assert sentences(analysis)[0] == "Of 6 main effects and interactions: none is decided."
    # So it does for arms on one axis; and a decided comparison leads.
    table = {"a": 0.0, "b": 0.02, "c": -3.0}

    def one_axis(c):
        results = [
            {"arm": arm, "seed": s, "metrics": {"bpd": s + (c if arm == "c" else x) * 1.1**s}}
            for arm, x in table.items()
            for s in range(4)
        ]
        return analyse(Spec("T", "Q?", "a", [BPD]), results)

    assert [f.arm for f in verdict(one_axis(-3.0))] == ["c", "b"]
    noise = np.random.default_rng(9).normal(size=(2, 4))
    none = [
        {"arm": arm, "seed": s, "metrics": {"bpd": float(x)}}
        for arm, row in zip("abc", [np.zeros(4), *noise])
        for s, x in enumerate(row)
    ]
    assert sentences(analyse(Spec("T", "Q?", "a", [BPD]), none))[0] == (
        "Of 2 comparisons: none is decided."
    )


def test_files_hold_the_effects(report):
    analysis, numbers = report.analysis, json.loads(report.json.read_text("utf-8"))
    assert numbers["axes"] == TWO_BY_THREE and numbers["missing_combinations"] == []
    found = {(e["metric"], *e["axes"]): e for e in numbers["effects"]}
    (var,) = [e for e in analysis.effects_of("var") if e.axes == ("sampling.num_steps",)]
    kept = found["var", "sampling.num_steps"]
    assert kept["difference"]["high"] == var.difference.high and kept["p_holm"] == var.p_holm
    assert kept["levels"] == ["50"] and kept["references"] == ["10"]
    page, text = Page(report.html.read_text("utf-8")), report.markdown.read_text("utf-8")
    row = page.row("sampling.num_steps: 50 ÷ 10")
    d = var.difference
    assert row[1:3] == [f"{d.mean:.2f}", f"{d.low:.2f} to {d.high:.2f}"]
    assert f"| {' | '.join(row)} |" in html.unescape(text.replace("\\", ""))
    assert effect_name(analysis.effects_of("var")[2]).replace("−", "-") in report.table
    for words in ("## Effects of each axis", "Var(VLB): schedule.name × sampling.num\\_steps"):
        assert words in text
    # Two forests, and an interaction for the metric that has both axes.
    shown = {path.name for path in (report.html.parent / "report_files").glob("*.png")}
    assert {"effects-0.png", "effects-1.png", "interaction-0.png"} <= shown
    assert "interaction-1.png" not in shown


def test_pictures_draw_the_numbers(report):
    analysis = report.analysis
    ax = figures.interaction(analysis, VARIANCE, list(TWO_BY_THREE)).axes[0]
    for line, steps in zip(ax.lines, TWO_BY_THREE["sampling.num_steps"], strict=True):
        means = [
            analysis.cells[f"schedule.name={name},sampling.num_steps={steps}", "var"].mean
            for name in ("linear", "cosine")
        ]
        np.testing.assert_allclose(line.get_ydata(), means)
    assert ax.get_yscale() == "log"
    assert figures.interaction(analysis, BPD, list(TWO_BY_THREE)) is None
    rows = analysis.effects_of("var")
    forest = figures.effects(analysis, VARIANCE, rows).axes[0]
    drawn = [tuple(np.atleast_1d(line.get_xdata())) for line in forest.lines]
    for e in rows:
        assert (e.difference.low, e.difference.high) in drawn and (e.effect,) in drawn


def test_a_grid_with_holes_says_which_cells_are_missing(tmp_path):
    spec, results = make_design(
        EIGHT, noisy(np.random.default_rng(7)), without=[("cosine", "50", "simple")]
    )
    report = build_report(spec, results, tmp_path)
    page = Page(report.html.read_text("utf-8"))
    assert (
        "The grid lacks 1 of 8 combinations: schedule.name=cosine, sampling.num_steps=50, "
        "objective.weighting=simple. Each mean is over the combinations that both levels have."
    ) in page.text
    name = "schedule.name: cosine − linear 3 of 4 combinations of the other axes"
    assert page.row(name)[3] == "3"
    assert "schedule.name: cosine - linear" in format_table(report.analysis)
