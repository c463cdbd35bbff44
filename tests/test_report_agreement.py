"""A ranking is settled only where two networks or more decide it alike; the page says which are."""

import json

import pytest
from test_report import Page

from diffax.ablation.measure import score_metrics
from diffax.report import sections
from diffax.report.analysis import analyse
from diffax.report.build import build_report
from diffax.report.spec import Spec
from diffax.report.verdict import conclusion, sentence

# Of three seeds of arm a; those of the baseline are all 1.
LOW, HIGH, UNSURE = (0.50, 0.51, 0.49), (2.0, 2.1, 1.9), (0.5, 1.0, 2.1)
SEEN = {"lower": LOW, "higher": HIGH, "undecided": UNSURE}


def made(said, **changes):
    """The spec and the results where the scores of those names have those values in arm a."""
    spec = Spec("T", "Q?", "b", score_metrics(list(said)), **changes)
    results = [
        {
            "arm": arm,
            "seed": seed,
            "metrics": {
                m.key: values[seed] if arm == "a" else 1.0
                for m, values in zip(spec.metrics, said.values())
            },
        }
        for seed in range(3)
        for arm in ("b", "a")
    ]
    return spec, results


def compared(**said):
    return analyse(*made(said)).comparisons


@pytest.mark.parametrize("first", SEEN)
@pytest.mark.parametrize("second", SEEN)
def test_a_ranking_is_settled_where_both_networks_decide_it_alike(first, second):
    found = compared(fd_lite0=SEEN[first], fd_mobilenet=SEEN[second])
    assert [c.outcome for c in found] == [first, second]
    assert [c.settled for c in found] == [first == second != "undecided"] * 2
    assert found[0].by_network == found[1].by_network
    assert [(o.network, o.outcome) for o in found[0].by_network] == [
        ("EfficientNet-Lite0", first),
        ("MobileNetV2", second),
    ]


def test_words_say_whether_it_is_settled():
    agreed = compared(fd_lite0=LOW, fd_mobilenet=LOW)
    assert conclusion(agreed[0]) == "lower, which is better, settled: both feature extractors agree"
    one, other = compared(fd_lite0=LOW, fd_mobilenet=UNSURE)
    assert conclusion(one) == (
        "lower, which is better, but not settled: FD (MobileNetV2) undecided"
    )
    assert conclusion(other) == "no difference can be seen at this scale"
    three = compared(fid=LOW, fd_lite0=LOW, fd_mobilenet=LOW)
    assert conclusion(three[2]).endswith("settled: all 3 feature extractors agree")
    assert [o.label for o in three[0].by_network][:2] == ["FID", "FD (EfficientNet-Lite0)"]


def test_one_network_alone_settles_nothing():
    """Neither do two measures of one network, nor its weights twice, nor what is no network."""
    alone = [*compared(fd_lite0=LOW), *compared(fd_lite0=LOW, kid_lite0=LOW)]
    alone += compared(fid=LOW, fd_inception_half_pixel=LOW)
    alone += compared(frechet=LOW, fd_lite0=LOW)[1:]
    alone += compared(fd_lite0=LOW, kid_mobilenet=LOW)
    for c in alone:
        assert not c.settled
        assert conclusion(c) == "lower, which is better, by one feature extractor alone"
    for c in (compared(frechet=LOW, fd_lite0=LOW)[0], *compared(swd=LOW, kid=LOW)):
        assert (c.by_network, c.settled) == ([], False)
        assert conclusion(c) == "lower, which is better"


def test_what_the_correction_takes_back_is_not_decided():
    spec, results = made(dict(fd_lite0=LOW, fd_mobilenet=(0.93, 0.96, 0.951)))
    others = [
        {
            **r,
            "arm": f"other{i}",
            "metrics": dict.fromkeys(r["metrics"], UNSURE[r["seed"]] + i / 100),
        }
        for i in range(9)
        for r in results
        if r["arm"] == "a"
    ]
    pair = [c for c in analyse(spec, results).comparisons if c.arm == "a"]
    assert [c.settled for c in pair] == [True, True]
    among = [c for c in analyse(spec, results + others).comparisons if c.arm == "a"]
    assert [c.outcome for c in among] == ["lower", "suggested"]
    assert [c.settled for c in among] == [False, False]


def test_a_network_that_lacks_the_pair_has_no_outcome():
    spec, results = made(dict(fd_lite0=LOW, fd_mobilenet=LOW))
    for r in results:
        if r["arm"] == "a":
            del r["metrics"]["fd_mobilenet"]
    (found,) = analyse(spec, results, partial=True).comparisons
    assert not found.settled and conclusion(found).endswith("by one feature extractor alone")


def test_the_page_has_a_table_of_rankings(tmp_path):
    spec, results = made(dict(fd_lite0=LOW, fd_mobilenet=LOW, kid_lite0=LOW, kid_mobilenet=HIGH))
    report = build_report(spec, results, tmp_path)
    page = Page(report.html.read_text(encoding="utf-8"))
    head, *_ = (row for row in page.rows if row[1:2] == [" ranking"])
    assert [cell.strip() for cell in head[2:]] == ["EfficientNet-Lite0", "MobileNetV2"]
    fd, kid = page.row("Fréchet distance ↓ ÷ b", "a"), page.row("KID ↓ − b", "a")
    assert fd == ["a", "settled: lower, better", "▼ lower", "▼ lower"]
    assert kid == ["a", "not settled", "▼ lower", "▲ higher"]
    plain = report.markdown.read_text(encoding="utf-8").replace("\\", "")
    assert f"| {' | '.join(fd)} |" in plain and f"| {' | '.join(kid)} |" in plain
    assert all("settled only if" in words for words in (page.text, plain))
    numbers = json.loads(report.json.read_text(encoding="utf-8"))["comparisons"]
    assert [c["settled"] for c in numbers] == [True, True, False, False]
    assert numbers[3]["by_network"][1]["outcome"] == "higher"
    for c in report.analysis.comparisons:
        assert sentence(spec, c).replace("−", "-") in report.table


def rankings(said, **changes):
    return sections._settled(analyse(*made(said, **changes)))


def test_the_table_has_what_two_networks_judged_alone():
    assert rankings(dict(fd_lite0=LOW, kid_mobilenet=LOW, swd=LOW, kid=LOW)) == []
    said = dict(fd_lite0=LOW, kid_mobilenet=LOW, fd_mobilenet=LOW, fid=HIGH)
    said |= dict(fd_inception_half_pixel=UNSURE)
    _, table = rankings(said, focus="a")
    names = ["", "ranking", "EfficientNet-Lite0", "MobileNetV2", "Inception"]
    assert [cell.text for cell in table.head] == names
    heading, row = table.rows
    assert (heading.cells[0].text, row.cells[0].text) == ("Fréchet distance", "a ÷ b")
    words = ["not settled", "▼ lower", "▼ lower", "▲ higher / ○ undecided"]
    assert [cell.text for cell in row.cells[1:]] == words


def test_what_is_equal_in_all_arms_has_no_empty_figure():
    blocks = sections._differences(analyse(*made(dict(fd_lite0=LOW, swd=(1.0, 1.0, 1.0))))).blocks
    panels, table = blocks
    assert [panel.title for panel in panels.panels] == ["FD (EfficientNet-Lite0)"]
    assert [row.cells[0].text for row in table.rows] == ["FD (EfficientNet-Lite0)", "a"]


def test_each_pair_of_arms_is_settled_by_itself():
    """Both networks have f below b; of f and c they disagree."""
    values = {"f": (1.0, 1.0), "b": (2.0, 2.0), "c": (2.0, 0.5)}
    metrics = score_metrics(["fd_lite0", "fd_mobilenet"])
    results = [
        {
            "arm": arm,
            "seed": seed,
            "metrics": {m.key: x * (1 + 0.01 * seed * (arm == "f")) for m, x in zip(metrics, seen)},
        }
        for seed in range(3)
        for arm, seen in values.items()
    ]
    found = analyse(Spec("T", "Q?", "b", metrics, focus="f"), results).comparisons
    settled = [(c.reference, c.outcome, c.settled) for c in found]
    assert settled == [
        ("b", "lower", True),
        ("c", "lower", False),
        ("b", "lower", True),
        ("c", "higher", False),
    ]
