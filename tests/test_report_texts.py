"""Texts of users: names for people, and reports that hold whatever text there is."""

import html
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from ablation_cases import BPD
from matplotlib import rc_context

from diffax import cli
from diffax.report import figures
from diffax.report.analysis import analyse
from diffax.report.build import build_report
from diffax.report.formatting import legible, one_line, short_name, short_names
from diffax.report.spec import Spec

ODD = {
    "formula": r"$\frac{$",
    "two dollars": "$x$ and \\$",
    "underscores": "_a_b_",
    "powers": r"x^2 \alpha {",
    "markup": "<script>alert('&amp;')</script><!--",
    "pipes": "a|b||c",
    "code": "`` ` ``",
    "lines": "one\ntwo\r\n\n# three",
    "list": "- 1. +",
    "number": "1. first",
    "from right to left": "שלום \u202eabc",
    "emoji": "🌊 :wave: 👩‍🔬",
    "long": "word " * 60,
    "one long word": "x" * 300,
    "control": "bell\x07 null\x00 half \udcff",
    "colour": f'{figures.INK} id="a" font: 10px b; url(#c',
    "blank": " ",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report in which every text is odd: of arms, the question, units, curves, the config."""
    workdir, everything = tmp_path_factory.mktemp("odd"), " ".join(ODD.values())
    spec = Spec(
        ODD["formula"],
        everything,
        "formula",
        [replace(BPD, label=ODD["two dollars"], unit=everything, basis=ODD["pipes"])],
        labels=ODD,
        command=everything,
        method=f"{ODD['list']}\n\n{ODD['number']}",
        config={"data": {"name": ODD["formula"], everything: [everything]}},
        environment={ODD["pipes"]: everything},
    )
    results = [
        {
            "arm": arm,
            "seed": seed,
            "metrics": {"bpd": i + np.sin(100 * i + seed)},
            "curves": {everything: {"step": [0, 1], "loss": [1.0, i]}},
            "samples": np.zeros((1, 2, 2), np.uint8),
            "environment": {"device": ODD["formula"]},
        }
        for i, arm in enumerate(ODD)
        for seed in range(2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return build_report(spec, results, workdir)


def test_any_text_leaves_a_report_that_shows_it(made):
    page = made.html.read_text("utf-8")
    assert "<script" not in page
    shown = html.unescape(re.sub(r"<style>.*?</style>", "", page, flags=re.S))
    for text in ODD.values():
        assert one_line(text) in shown
    drawn = "".join(re.findall(r"<svg .*?</svg>", page, re.S))
    for name in ("formula", "underscores", "powers", "code", "colour"):
        assert html.escape(" ".join(ODD[name].split()), quote=False)[:20] in drawn
    numbers = json.loads(made.json.read_text("utf-8"))
    assert numbers["config"]["data"]["name"] == ODD["formula"]
    assert ODD["control"] in numbers["question"]
    made.table.encode("utf-8")


def test_no_text_is_markdown(made):
    text = made.markdown.read_text("utf-8")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) > 4
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    outside = re.sub(r"^(`{3,})sh\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "$" not in outside.replace("<span>$</span>", "")
    assert "<script" not in outside
    assert not re.search(r"^(-|\+|\d+\.) *(1|first)", outside, re.M)
    assert r"\:wave:" in outside


def test_the_legend_has_every_arm(made):
    drawn = figures.legend(made.analysis).legends[0].get_texts()
    assert len(drawn) == len(ODD) and drawn[2].get_text() == "_a_b_"


def test_a_figure_of_a_notebook_has_no_formulas_either(made):
    """Which saves it under settings of its own."""
    with rc_context({"text.parse_math": True}):
        figures._saved(figures.metric_points(made.analysis, made.analysis.spec.metrics[0]))
        figures._saved(figures.legend(made.analysis))


def test_what_no_page_can_hold_is_replaced():
    assert legible("a\x00b\x7f\ud800\n\t") == "a\ufffdb\ufffd\ufffd\n\t"
    assert one_line(" a\n\u2028b\x00 ") == "a b\ufffd"
    assert one_line("א 1") == "\u2068א 1\u2069"


def test_a_terminal_that_lacks_a_letter_stops_nothing(monkeypatch, tmp_path):
    import io
    import sys

    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    assert cli.main(["report", f"--workdir={tmp_path}/÷🌊\udcff"]) == 1
    stream.flush()
    assert rb"\xf7\U0001f30a\udcff holds no ablation" in stream.buffer.getvalue()


# --- names for people -----------------------------------------------------------------------------


def names(*arms):
    return list(short_names(arms).values())


def test_values_that_two_keys_have_are_named_by_the_whole_key():
    arms = [
        f"schedule.name={a},sampling.schedule={b}"
        for a in ("linear", "cosine")
        for b in ("None", "cosine")
    ]
    assert names(*arms) == [arm.replace(",", ", ") for arm in arms]
    other = [arm.replace("cosine,", "sigmoid,") for arm in arms]
    assert names(*other)[0] == "linear, sampling.schedule=None"


def test_last_parts_are_used_where_they_tell_keys_apart():
    assert names("sampling.schedule=None") == ["sampling.schedule=None"]
    assert names("training.num_steps=5,sampling.num_steps=5") == [
        "training.num_steps=5, sampling.num_steps=5"
    ]
    assert names("training.num_steps=5,sampling.num_steps=6") == [
        "training.num_steps=5, sampling.num_steps=6"
    ]
    assert names("sampling.eta=0.0", "sampling.eta=1.0") == ["eta=0.0", "eta=1.0"]
    assert names("sampling.clip=None,a.b=True", "sampling.clip=x,a.b=False") == [
        "clip=None, b=True",
        "clip=x, b=False",
    ]


def test_distinct_arms_have_distinct_names():
    arms = ("cosine", "schedule.name=cosine")
    assert names(*arms) == list(arms)
    assert short_name("a.b=c", ["a.b=d"]) == "c"
    spec = Spec("T", "Q?", "cosine", [BPD])
    results = [{"arm": arm, "seed": 0, "metrics": {"bpd": 1.0}} for arm in arms]
    assert analyse(spec, results).spec.arms == list(arms)
