"""A report in a browser, where one is installed: on a phone, on a desk and on paper."""

import base64

import numpy as np
import pytest
from ablation_cases import BPD, VARIANCE, make_design, make_results
from chromium import PROGRAM, Chromium

from diffax.report.build import build_report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
AXES = {
    "schedule.name": ["linear", "cosine"],
    "sampling.schedule": ["None", "cosine"],
    "objective.weighting": ["simple", "a_weighting_of_a_very_long_name_" + "x" * 40],
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """With a report of everything: a design, curves, samples, long names, what is missing."""
    rng = np.random.default_rng(0)
    spec, results = make_design(
        AXES,
        lambda seed, _: {"bpd": 3 + seed + rng.normal(), "var": np.exp(rng.normal())},
        metrics=(BPD, VARIANCE),
        without=[("cosine", "cosine", "simple")],
    )
    for result, drawn in zip(results, make_results(list("abcdefg"))):
        result |= {"curves": drawn["curves"], "samples": drawn["samples"], "seconds": 20.0}
    report = build_report(spec, results[:-1], tmp_path_factory.mktemp("seen"), partial=True)
    with Chromium() as opened:
        opened.open(report.html.as_uri())
        yield opened


def wider(browser, width, but):
    """What goes beyond that many pixels and does not lie in one of `but`."""
    return browser.evaluate(f"""[...document.querySelectorAll('body *')]
        .filter(e => !e.closest('{but}') && e.getBoundingClientRect().right > {width} + 1)
        .map(e => `${{e.tagName}} ${{e.getBoundingClientRect().right}} ${{e.textContent}}`)""")


def test_a_page_complains_of_nothing_and_draws_every_picture(browser):
    assert browser.errors == []
    widths = browser.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 7 and min(widths) > 0
    drawn = browser.evaluate(
        "[...document.querySelectorAll('figure > svg')].map(svg => svg.getBBox().width)"
    )
    assert len(drawn) > 10 and min(drawn) > 0


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen_but_tables_that_say_so(browser, width):
    browser.resize(width)
    assert wider(browser, width, ".scroll, svg *") == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    tables = browser.evaluate("""[...document.querySelectorAll('.scroll')].map(e =>
        [e.scrollWidth > e.clientWidth, e.querySelector('.sideways').clientHeight > 10])""")
    assert len(tables) == 3 and all(scrolls == said for scrolls, said in tables)
    assert width > 360 or all(scrolls for scrolls, _ in tables[1:])
    # The column of names stays, and leaves room for the others.
    shares = browser.evaluate("""[...document.querySelectorAll('.scroll')].map(e => {
        e.scrollLeft = 1000;
        const name = e.querySelector('tbody tr:last-child th').getBoundingClientRect();
        const box = e.getBoundingClientRect();
        e.scrollLeft = 0;
        return [name.left - box.left, name.width / box.width]})""")
    assert all(abs(gap) < 1 and share < 0.6 for gap, share in shares)


def test_everything_is_printed(browser):
    browser.resize(688, media="print")  # A4 within its margins
    assert wider(browser, 688, "svg *") == []
    texts = "td, th, p:not(.sideways), li, dt, dd, pre, img"
    hidden = browser.evaluate(f"""[...document.querySelectorAll('{texts}')]
        .filter(e => e.textContent || e.tagName == 'IMG')
        .filter(e => !e.getBoundingClientRect().width)
        .map(e => `${{e.tagName}} ${{e.textContent}}`)""")
    assert hidden == []
    pdf = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 1
