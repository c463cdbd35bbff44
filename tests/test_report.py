"""The page, the JSON and the table hold the numbers, stand alone and read well."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from ablation_cases import ARMS, SPEC, VARIANCE, make_results, values
from PIL import Image

from diffax.report import figures, statistics
from diffax.report.analysis import analyse
from diffax.report.build import build_report, environment, format_table
from diffax.report.formatting import p_text
from diffax.report.spec import Spec
from diffax.report.verdict import claim, conclusion, needed, sentence, verdict


class Page(HTMLParser):
    """Checks that tags are balanced, and collects text by tag, attributes and table rows."""

    VOID = ("meta", "img", "br", "wbr", "line", "path", "use")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows, self.texts, self.glued = [], [], [], [], False
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.glued = tag == "wbr"

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data if self.glued else f" {data}"
        self.glued = False

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def row(self, *starts):
        """The cells of the row that begins with the last of `starts`, found one after another."""
        rows = iter([" ".join(c.split()) for c in row] for row in self.rows)
        for start in starts:
            found = next(row for row in rows if row and row[0] == start)
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report") / "made" / "here"
    results = make_results()
    report = build_report(SPEC, results, workdir)
    return report, results, Page(report.html.read_text(encoding="utf-8"))


def test_page_holds_the_numbers(made):
    report, results, page = made
    header, cells = page.row(""), page.row("cosine baseline")
    assert header[1:3] == ["Var(VLB) ↓ bits², geometric", "Bits per dimension ↓ bits/dim"]
    bpd = statistics.mean_interval(values(results, "cosine", "bpd"))
    assert cells[2] == f"{bpd.mean:.3f} {bpd.low:.3f} to {bpd.high:.3f}"
    var = statistics.geometric_interval(values(results, "cosine", "var"))
    assert cells[1] == f"{var.mean:.2f} {var.low:.2f} to {var.high:.2f}"
    pairs = [values(results, arm, "var") for arm in ("learned", "cosine")]
    r = statistics.paired_ratio(*pairs)
    p = p_text(report.analysis.of_metric("var")[0].p_holm)
    row = page.row("Var(VLB) ↓ bits²", "learned ÷ cosine")
    seeds = [statistics.seeds_needed(np.log(r.mean), r.sd, 0.95, x, 2) for x in (0.8, 0.9)]
    assert row[1:] == [
        *(f"{r.mean:.2f}", f"{r.low:.2f} to {r.high:.2f}", "3", p),
        *("0.25", f"{seeds[0]} / {seeds[1]}", "▼ lower, better"),
    ]
    for stated in verdict(report.analysis):
        start = sentence(SPEC, stated).partition(" (")[0]
        assert start in page.text
    assert sentence(SPEC, verdict(report.analysis)[0]) in page.text


def test_page_tells_how_it_was_made(made):
    _, _, page = made
    for words in ("Is it worth it?", "make ablation", "training.num_steps 500", "two cores"):
        assert words in " ".join(" ".join(page.texts).split())
    assert "Same noise." in page.text
    assert "3 min 00 s" in page.text  # nine runs of 20 s
    assert environment()["python"] in page.text
    assert "jax" in page.text


def test_the_top_says_what_was_studied(tmp_path):
    results = make_results()
    for r in results:
        own = {"directory": f"{r['arm']}/{r['seed']}", "seconds": 9.0, "seeds": [r["seed"]]}
        many = 2_000 if r["arm"] == "learned" else 1_000
        r["training"] = own | {"parameters": many, "operations": 5e7 * many}
        # In pairs, one after another: two processes.
        r["finished"] = 1e9 + 20.0 * (1 + results.index(r) // 2)
        r["environment"] = {"device": "cpu", "diffax": "1.2", "commit": "abc123 (files changed)"}
    variance, *others = SPEC.metrics
    spec = replace(
        SPEC,
        metrics=[replace(variance, meaning="How noisy it is."), *others[:-1],
                 replace(others[-1], meaning="What is left.")],
        subject={"data": "digits: 9 examples", "steps": "500"},
        remarks=["Training was short: it ended early."],
        environment={},
        design={arm: {"schedule.name": arm} for arm in ARMS},
        config={"schedule": {"name": "cosine", "tau": 1.0}, "seed": 0},
    )  # fmt: skip
    report = build_report(spec, results, tmp_path)
    page, text = Page(report.html.read_text("utf-8")), report.markdown.read_text("utf-8")
    for words in (
        "data digits: 9 examples steps 500 parameters 1,000 to 2,000 arms 3 seeds 3 runs 9",
        "wall time 1 min 40 s summed over runs 3 min 00 s device cpu diffax 1.2, commit abc123",
        "Note. Training was short: it ended early.",
        "Var(VLB) How noisy it is.",
        "learned 2,000 1e+11",
        "schedule.name linear, cosine, learned (varied) seeds 0, 1, 2 schedule.tau 1.0",
    ):
        assert words in " ".join(" ".join(page.texts).split())
        if "varied" not in words and "data" not in words and "wall" not in words:
            assert words.split()[-1] in text
    plain = page.text
    # Where each first stands: behind the verdict, and behind the table of the others.
    assert plain.index("learned minus that of") < plain.index("How noisy it is.")
    assert plain.index("How noisy it is.") < plain.index("Results")
    assert plain.index("Results") < plain.index("What is left.") < plain.index("Paired differences")
    numbers = json.loads(report.json.read_text("utf-8"))
    assert numbers["config"] == {"schedule": {"tau": 1.0}, "seed": 0}
    assert numbers["varied"] == {"schedule.name": ARMS}
    assert "NOTE: Training was short" in report.table


def test_page_stands_alone(made):
    report, _, page = made
    text = report.html.read_text(encoding="utf-8")
    assert "script" not in {tag for tag, _ in page.tags}
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(http" not in text
    assert "@import" not in text
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in page.tags
    assert len(text) < 1_000_000


def test_ids_are_unique_and_references_resolve(made):
    report, _, page = made
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    text = report.html.read_text(encoding="utf-8")
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert used
    assert {a or b for a, b in used} <= set(ids)


def test_figures_take_the_colours_and_the_font_of_the_page(made):
    report, _, page = made
    drawings = re.findall(r"<svg viewBox.*?</svg>", report.html.read_text(encoding="utf-8"), re.S)
    named = [d for d in drawings if "aria-label" in d]
    # Two forests, two with points, two of schedules, two curves.
    assert len(named) == 8
    for drawing in named:
        assert "font-family" not in drawing
        assert "DejaVu" not in drawing
        assert not re.search(r"#[0-9a-f]{6}", drawing)
    assert any("var(--c1)" in drawing for drawing in named)
    style = re.search(r"<style>(.*?)</style>", report.html.read_text(encoding="utf-8"), re.S)[1]
    light, dark = re.findall(r":root\{(.*?)\}", style)[:2]
    for variable in set(re.findall(r"var\((--\w+)\)", "".join(named) + style)):
        assert f"{variable}:" in light
        assert f"{variable}:" in dark


def test_markdown_says_the_same_and_its_pictures_are_there(made):
    report, results, page = made
    text = report.markdown.read_text(encoding="utf-8")
    shown = re.findall(r'<img src="([^"]+)" alt="[^"]+"', text)
    folder = report.markdown.parent
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert len(shown) == len(set(shown)) and set(shown) == files
    # The figures of the page, its three sets of samples, and the legend.
    assert len(shown) == 8 + 3 + 1
    for name in shown:
        assert min(Image.open(folder / name).size) > 30
    plain = text.replace("\\", "")
    for stated in verdict(report.analysis):
        assert claim(SPEC, stated).partition(" (")[0] in plain
        assert f": **{conclusion(stated)}**{needed(stated)}." in plain
    cell = page.row("Var(VLB) ↓ bits²", "learned ÷ cosine")
    assert f"| {' | '.join(cell)} |" in plain
    for words in ("# Learned against fixed", "Same noise.", "```sh\nmake ablation\n```"):
        assert words in text
    assert "| training.num_steps | 500 |" in plain
    tables = [b for b in text.split("\n\n") if b.startswith("|")]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_page_shows_the_samples(made):
    report, results, page = made
    images = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(images) == 3
    data = base64.b64decode(images[1].partition(",")[2])
    first = next(r for r in results if r["arm"] == "cosine" and r["seed"] == 0)
    assert data == figures.sample_pictures([(first["samples"], ".")])[0]


def test_json_holds_the_numbers(made):
    report, results, _ = made

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    numbers = json.loads(report.json.read_text(encoding="utf-8"), parse_constant=refuse)
    bpd = statistics.mean_interval(values(results, "learned", "bpd"))
    assert numbers["summary"]["learned"]["bpd"]["interval"]["high"] == bpd.high
    assert (
        numbers["summary"]["learned"]["bpd"]["values"]["2"] == values(results, "learned", "bpd")[2]
    )
    first = numbers["comparisons"][0]
    assert (first["metric"], first["arm"], first["reference"]) == ("var", "learned", "cosine")
    pairs = [values(results, arm, "var") for arm in ("learned", "cosine")]
    assert first["difference"]["p_value"] == statistics.paired_ratio(*pairs).p_value
    assert numbers["verdict"][0] == sentence(SPEC, report.analysis.comparisons[0])
    # The runs are there raw, so that the report can be made again from the file.
    again = analyse(SPEC, numbers["runs"])
    assert again.comparisons == report.analysis.comparisons
    assert numbers["environment"]["device"] == "two cores"


def test_table_is_aligned_and_plain(made):
    report, results, _ = made
    blocks = report.table.split("\n\n")
    block = next(
        b for b in blocks if b.startswith("Bits per dimension [bits/dim], lower is better")
    )
    lines = block.splitlines()[1:]
    assert len({len(line) for line in lines}) == 1
    assert [line.split("  ")[0] for line in lines[1:]] == ["linear beta", "cosine", "learned"]
    bpd = statistics.mean_interval(values(results, "linear", "bpd"))
    assert f"{bpd.mean:.3f}" in lines[1]
    assert "−" not in report.table
    assert "learned ÷ arm" in report.table


def test_everything_that_is_text_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&'
    metric = replace(VARIANCE, label=evil, unit=evil)
    spec = Spec(
        evil,
        evil,
        "b",
        [metric],
        command=evil,
        config={evil: evil},
        labels={"a": evil},
        method=evil,
        environment={evil: evil},
    )
    results = [
        {
            "arm": arm,
            "seed": seed,
            "metrics": {"var": 1.0 + seed},
            "curves": {evil: {"step": [0, 1], "y": [1.0, 2.0]}},
            "samples": np.zeros((1, 2, 2), np.uint8),
        }
        for arm in ("a", "b")
        for seed in range(2)
    ]
    report = build_report(spec, results[:3], tmp_path, partial=True)
    text = report.html.read_text(encoding="utf-8")
    assert "<script" not in text
    page = Page(text)
    assert "<script" not in report.markdown.read_text(encoding="utf-8").replace("\\", "").replace(
        f"```sh\n{evil}\n```", ""
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count('<script>alert("x")</script>&') >= 10


def test_a_partial_report_compares_the_seeds_that_both_arms_have(tmp_path):
    results = make_results()
    results[3]["metrics"]["bpd"] = None  # linear, seed 1
    report = build_report(SPEC, results[:-1], tmp_path, partial=True)
    assert list(report.analysis.missing) == [
        "arm 'learned', seed 2",
        "metric 'bpd' of arm 'linear', seed 1",
    ]
    cosine, linear = report.analysis.of_metric("bpd")
    ours, theirs = values(results, "learned", "bpd"), values(results, "cosine", "bpd")
    assert cosine.difference == statistics.paired_difference(ours[:2], theirs[:2])
    assert (linear.pairs, linear.outcome) == (1, "unknown")
    page = Page(report.html.read_text(encoding="utf-8"))
    assert "Partial report. Missing: arm 'learned', seed 2" in page.text
    assert "PARTIAL: missing arm 'learned', seed 2" in report.table


def test_a_partial_report_of_one_run_says_that_there_is_nothing_to_compare(tmp_path):
    report = build_report(replace(SPEC, arms=ARMS), make_results()[:1], tmp_path, partial=True)
    assert "Nothing to compare yet." in Page(report.html.read_text(encoding="utf-8")).text
    assert "linear beta" in report.table


def test_an_arm_without_a_metric_or_a_curve_just_lacks_it(tmp_path):
    results = make_results()
    for r in results:
        if r["arm"] == "linear":
            del r["metrics"]["prior"], r["curves"]["schedule"], r["samples"]
    report = build_report(SPEC, results, tmp_path)
    assert ("linear", "prior") not in report.analysis.cells
    assert [c.reference for c in report.analysis.of_metric("prior")] == ["cosine"]
    page = Page(report.html.read_text(encoding="utf-8"))
    assert page.row("linear beta")[3] == "–"
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2


@pytest.mark.parametrize("partial", [False, True])
def test_a_value_of_zero_on_a_log_scale_leaves_a_report(partial, tmp_path):
    results = make_results()
    for r in results:
        if r["arm"] == "linear":
            r["metrics"]["var"] = float(r["seed"])
    report = build_report(SPEC, results, tmp_path, partial)
    page = Page(report.html.read_text(encoding="utf-8"))
    assert page.row("linear beta")[1] == "1.00 arithmetic, since not all are above 0"
    assert "'var' of arm 'linear' on its log scale, being 0 with seed 0" in page.text
    assert "metric 'var' of arm 'linear' on its log scale" in report.table
    for r in results:
        r["metrics"]["var"] = 0.0
    report = build_report(SPEC, results, tmp_path, partial)
    assert report.analysis.of_metric("var") == [] and report.html.exists()


UNDRAWN = "Not drawn, of {}: samples must be uint8 images"


@pytest.mark.parametrize("shape", [(6, 4, 4, 4), (6, 8, 8, 2), (6, 2, 2, 2, 1)])
def test_samples_that_are_no_pictures_leave_a_report(shape, tmp_path):
    results = make_results()
    for r in results:
        np.savez(tmp_path / f"{r['arm']}.npz", samples=np.zeros(shape, np.float32))
        r |= {"samples": f"{r['arm']}.npz", "directory": str(tmp_path)}
    spec = replace(SPEC, real_samples=np.zeros(shape, np.float32))
    report = build_report(spec, results, tmp_path)
    page = Page(report.html.read_text(encoding="utf-8"))
    assert UNDRAWN.format("real data; linear beta; cosine; learned") in page.text
    assert f"got float32 {shape}." in page.text and "The first samples" not in page.text
    assert "got float32" in report.markdown.read_text(encoding="utf-8") and report.json.exists()
    # What can be drawn is.
    results[1]["samples"] = np.zeros((6, 4, 4, 3), np.float32)
    page = Page(build_report(spec, results, tmp_path).html.read_text(encoding="utf-8"))
    assert UNDRAWN.format("real data; linear beta; learned") in page.text
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["samples: cosine"]


def test_what_a_metric_is_measured_on_stands_beside_it(tmp_path):
    variance, *others = SPEC.metrics
    spec = replace(SPEC, metrics=[replace(variance, basis="500 samples"), *others])
    report = build_report(spec, make_results(), tmp_path)
    page = Page(report.html.read_text(encoding="utf-8"))
    assert page.row("")[1] == "Var(VLB) ↓ bits², 500 samples, geometric"
    assert page.row("Var(VLB) ↓ bits², 500 samples")
    assert page.text.count("500 samples. ") >= 2  # captions of the figures
    assert "Var(VLB) [bits²], 500 samples, lower is better" in report.table


def test_format_table_needs_no_report():
    assert format_table(analyse(SPEC, make_results())).startswith("Learned against fixed\nIs it")


def test_a_curve_without_x_is_refused_and_nothing_is_written(tmp_path):
    results = make_results()
    results[0]["curves"]["odd"] = {"x": [1], "y": [2]}
    with pytest.raises(ValueError, match="a curve needs a column step, t or log_snr, got"):
        build_report(SPEC, results, tmp_path)
    assert not list(tmp_path.iterdir())
