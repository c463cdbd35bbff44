"""The page of a report: what it is made of, and how that is written as HTML and as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape_markup
from typing import Any

from matplotlib.figure import Figure

from diffax.report import figures
from diffax.report.analysis import Analysis
from diffax.report.formatting import legible, one_line


@dataclass(frozen=True)
class TableCell:
    """A few words of a table: `small` beside or under them, the colour of an arm before them, and
    an arrow for what is better ("lower" or "higher")."""

    text: str
    small: str = ""
    arm: str | None = None
    direction: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table: kind "", "focus", or "group" for a heading of one cell."""

    cells: Sequence[TableCell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    kind: str  # "results", "effects", "differences" or "settled"
    head: Sequence[TableCell]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Panel:
    """A figure with its title and what to look at; `name` is its own on the page."""

    name: str
    figure: Figure
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Panels:
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Legend:
    """The arms with their colours."""

    arms: Sequence[TableCell]
    figure: Figure


@dataclass(frozen=True)
class Picture:
    name: str
    png: bytes
    title: TableCell


@dataclass(frozen=True)
class Pictures:
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Words:
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Code:
    title: str
    text: str


@dataclass(frozen=True)
class Listing:
    title: str
    items: Mapping[str, Any]


@dataclass(frozen=True)
class Meanings:
    """What each measure means."""

    items: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    blocks: Sequence[Table | Panels | Legend | Pictures | Words | Code | Listing | Meanings]


@dataclass(frozen=True)
class Verdict:
    """(mark, claim, conclusion, seeds needed) for each statement, the headline first."""

    lines: Sequence[tuple[str, str, str, str]]
    more: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    question: str
    remarks: Sequence[tuple[str, str]]  # (what it is about, what must be known first)
    verdict: Verdict
    meanings: Meanings  # of the measures that the verdict speaks of
    facts: Mapping[str, Any]
    sections: Sequence[Section]
    analysis: Analysis


# --- HTML: one file, without scripts or other files -----------------------------------------------


def escape(text: str) -> str:
    """A text as HTML in which nothing is markup."""
    return escape_markup(legible(text))


def render_html(page: Page) -> str:
    """The whole page as HTML."""
    body = [
        f'<header><p class="eyebrow">diffax ablation</p><h1>{escape(page.title)}</h1>'
        f'<p class="question">{escape(page.question)}</p></header>',
        *(
            f'<p class="remark"><b>{escape(about)}</b> {escape(text)}</p>'
            for about, text in page.remarks
        ),
        _html_facts(page),
        _html_verdict(page.verdict),
        _html_meanings(page.meanings, page.analysis),
        *(_html_section(section, page.analysis) for section in page.sections),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(page.title)}</title>\n<style>{stylesheet()}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}\n</main>\n</body>\n</html>\n"
    )


def _html_verdict(verdict: Verdict) -> str:
    if not verdict.lines:
        return '<section class="verdict"><p class="headline">Nothing to compare yet.</p></section>'
    said = [
        f"{escape(claim)}: <strong>{escape(conclusion)}</strong>{escape(needed)}."
        for _, claim, conclusion, needed in verdict.lines
    ]
    rest = "".join(
        f'<li><span class="mark" aria-hidden="true">{mark}</span>{line}</li>'
        for (mark, *_), line in zip(verdict.lines[1:], said[1:])
    )
    more = f"<p>{escape(verdict.more)}</p>" if verdict.more else ""
    return (
        f'<section class="verdict" aria-label="Verdict"><p class="headline">{said[0]}</p>'
        f"<ul>{rest}</ul>{more}</section>"
    )


def _html_facts(page: Page) -> str:
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in page.facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _html_section(section: Section, analysis: Analysis) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    content = "".join(_HTML_BLOCKS[type(block)](block, analysis) for block in section.blocks)
    return f"<section><h2>{escape(section.title)}</h2>{note}{content}</section>\n"


def _html_table(table: Table, analysis: Analysis) -> str:
    head = "".join(
        f'<th scope="col">{_html_content(cell, analysis)}</th>' if cell.text else "<th></th>"
        for cell in table.head
    )
    # A group of rows is one body, which a printed page keeps in one piece.
    bodies: list[str] = []
    for row in table.rows:
        if row.kind == "group" or not bodies:
            bodies.append("")
        bodies[-1] += _html_row(row, len(table.head), analysis)
    return (
        f'<div class="scroll" tabindex="0">{_HTML_SIDEWAYS}'
        f'<table class="{table.kind}"><thead><tr>{head}</tr></thead>'
        f"{''.join(f'<tbody>{rows}</tbody>' for rows in bodies)}</table></div>"
    )


_HTML_SIDEWAYS = '<p class="sideways" aria-hidden="true">This table goes on to the right →</p>'


def _html_row(row: Row, width: int, analysis: Analysis) -> str:
    kind = f' class="{row.kind}"' if row.kind else ""
    scope = f'colspan="{width}" scope="rowgroup"' if row.kind == "group" else 'scope="row"'
    first, *rest = (_html_content(cell, analysis) for cell in row.cells)
    cells = "".join(f"<td>{content}</td>" for content in rest)
    return f"<tr{kind}><th {scope}>{first}</th>{cells}</tr>"


def _html_content(cell: TableCell, analysis: Analysis) -> str:
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    if cell.arm is not None:
        swatch = _html_swatch(analysis, cell.arm)
        return f'<span class="key">{swatch}<span>{_html_breakable(cell.text)}{small}</span></span>'
    arrow = {"lower": "↓", "higher": "↑"}.get(cell.direction or "")
    wish = f'&nbsp;<abbr title="{cell.direction} is better">{arrow}</abbr>' if arrow else ""
    return f"{_html_breakable(cell.text)}{wish}{small}"


def _html_breakable(text: str) -> str:
    """With places where a long word or a key may be broken, so that no column is too wide."""
    marked = re.sub(r"(?<=[a-z][.=/])(?=\w{2})|(?<=\S{24})(?=\S)", "\u2028", one_line(text))
    return escape(marked).replace("\u2028", "<wbr>")


def _html_panels(block: Panels, analysis: Analysis) -> str:
    return f'<div class="panels">{"".join(map(_html_panel, block.panels))}</div>'


def _html_panel(panel: Panel) -> str:
    drawing = figures.svg(panel.figure, panel.name, f"{panel.title}. {panel.caption}")
    note = f"<figcaption>{escape(panel.caption)}</figcaption>" if panel.caption else ""
    return f"<figure><h3>{escape(panel.title)}</h3>{drawing}{note}</figure>"


def _html_legend(block: Legend, analysis: Analysis) -> str:
    items = "".join(f"<li>{_html_content(cell, analysis)}</li>" for cell in block.arms)
    return f'<ul class="legend">{items}</ul>'


def _html_pictures(block: Pictures, analysis: Analysis) -> str:
    drawn = "".join(
        f"<figure><h3>{_html_content(picture.title, analysis)}</h3>"
        f'<img alt="{escape(f"samples: {picture.title.text}")}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode()}"></figure>'
        for picture in block.pictures
    )
    return f'<div class="samples">{drawn}</div>'


def _html_meanings(block: Meanings, analysis: Analysis) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in block.items.items()
    )
    return f'<dl class="meanings">{items}</dl>' if items else ""


def _html_words(block: Words, analysis: Analysis) -> str:
    return "".join(f"<p>{escape(part)}</p>" for part in block.paragraphs)


def _html_code(block: Code, analysis: Analysis) -> str:
    if not block.text:
        return ""
    return f"<h3>{escape(block.title)}</h3><pre>{escape(block.text)}</pre>"


def _html_listing(block: Listing, analysis: Analysis) -> str:
    if not block.items:
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>"
        for k, v in block.items.items()
    )
    return f'<h3>{escape(block.title)}</h3><dl class="listing">{rows}</dl>'


_HTML_BLOCKS: dict[type, Callable[[Any, Analysis], str]] = {
    Table: _html_table,
    Panels: _html_panels,
    Legend: _html_legend,
    Pictures: _html_pictures,
    Words: _html_words,
    Code: _html_code,
    Listing: _html_listing,
    Meanings: _html_meanings,
}


def _html_swatch(analysis: Analysis, arm: str) -> str:
    index = figures.palette_index(analysis)[arm]
    dash = {"-": "none", "--": "5 3", ":": "1.5 2.5", "-.": "5 2 1.5 2"}[
        figures.line_style(index)[1]
    ]
    return (
        '<svg class="swatch" viewBox="0 0 20 8" aria-hidden="true">'
        '<line x1="1" y1="4" x2="19" y2="4" '
        f'style="stroke:var(--c{index % len(figures.PALETTE)})" stroke-dasharray="{dash}"/></svg>'
    )


def stylesheet() -> str:
    """The CSS of a report, with the figures' colours as variables for both colour schemes."""
    light = "".join(f"--c{i}:{colour};" for i, (colour, _) in enumerate(figures.PALETTE))
    dark = "".join(f"--c{i}:{colour};" for i, (_, colour) in enumerate(figures.PALETTE))
    paper = (
        f"--ink:{figures.INK};--muted:{figures.MUTED};--rule:{figures.RULE};--paper:{figures.PAPER};"
        f"--tint:#f3f4f1;--warn:#fdf3dc;--shade:rgba(0,0,0,.2);{light}"
    )
    night = (
        "--ink:#e6e8ea;--muted:#9aa1a9;--rule:#34393f;--paper:#14171a;"
        f"--tint:#1c2024;--warn:#352b12;--shade:rgba(255,255,255,.22);{dark}"
    )
    dark_screen = f"@media screen and (prefers-color-scheme:dark){{:root{{{night}}}}}"
    return f":root{{{paper}}}\n{dark_screen}\n{_CSS}"


_CSS = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em;
  margin: 0 0 .6rem; max-width: 24em; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .3rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.8rem 0 .5rem; }
p { margin: 0 0 .8rem; max-width: 44rem; }
small { font-size: .8125rem; color: var(--muted); }
section { margin-top: 3.2rem; }
.eyebrow { margin: 0 0 .7rem; color: var(--muted); font-size: .8125rem; letter-spacing: .04em; }
.question { font-size: 1.15rem; color: var(--muted); margin: 0; text-wrap: pretty; }
.note, figcaption { color: var(--muted); font-size: .875rem; line-height: 1.5; }
.note { margin-bottom: 1.3rem; }
.remark { background: var(--warn); padding: .8rem 1rem; margin: 1.5rem 0 0; max-width: none;
  font-size: .9375rem; overflow-wrap: anywhere; }
.verdict { margin-top: 1.8rem; padding: 1.4rem 1.6rem; background: var(--tint); }
.headline { font-size: 1.35rem; line-height: 1.4; margin: 0; max-width: 44rem; text-wrap: pretty; }
.verdict ul { margin: 1rem 0 0; padding: 0; list-style: none; font-size: .875rem; }
.verdict ul:empty { display: none; }
.verdict li { padding: .28rem 0 .28rem 1.6rem; position: relative; }
.verdict .mark { position: absolute; left: 0; color: var(--muted); }
.verdict > p:last-child { margin-bottom: 0; }
.verdict ul + p { margin-top: .8rem; font-size: .875rem; }
strong { font-weight: 650; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.6rem; margin: 1.4rem 0 0; }
.facts dt { color: var(--muted); font-size: .8125rem; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
/* What goes on to the right has a shade there, and says so where the browser can tell. */
.meanings { margin: 1.2rem 0 0; font-size: .875rem; line-height: 1.5; color: var(--muted); }
.meanings div { margin: 0 0 .35rem; max-width: 54rem; break-inside: avoid; }
.meanings dt { display: inline; font-weight: 600; color: var(--ink); }
.meanings dt::after { content: ": "; }
.meanings dd { display: inline; margin: 0; }
.scroll { overflow-x: auto; background:
    linear-gradient(to left, var(--paper) 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
.sideways { position: sticky; left: 0; margin: 0; height: 0; overflow: hidden; color: var(--muted);
  font-size: .8125rem; line-height: 1.5rem; animation: sideways 1s linear both;
  animation-timeline: scroll(nearest inline); }
@keyframes sideways { from, to { height: 1.5rem; } }
@supports not (animation-timeline: scroll()) {
  @media (max-width: 40rem) { .sideways { height: 1.5rem; animation: none; } }
}
.scroll + .scroll { margin-top: 1.8rem; }
.scroll + p { margin-top: 2rem; color: var(--muted); font-size: .875rem; line-height: 1.5; }
table { border-collapse: collapse; overflow-wrap: normal;
  font-variant-numeric: tabular-nums lining-nums; font-size: .9375rem; line-height: 1.35; }
td, thead th { text-align: right; }
td, th { padding: .45rem 0 .45rem 1.4rem; vertical-align: baseline; font-weight: 400;
  white-space: nowrap; }
tbody th { white-space: normal; max-width: 24rem; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--paper); padding-right: .5rem; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; max-width: 12rem; }
thead { border-bottom: 1px solid var(--muted); }
tbody tr + tr, tbody + tbody { border-top: 1px solid var(--rule); }
td small, thead small { display: block; font-weight: 400; margin-top: .1rem; }
tr.focus th, tr.focus td { font-weight: 650; }
tr.focus small { font-weight: 400; }
.group th { font-weight: 600; padding-top: 1.3rem; max-width: none; }
.group small { font-weight: 400; margin-left: .7rem; }
:is(.differences, .effects) td:last-child, .settled td, .settled thead th { text-align: left; }
abbr { text-decoration: none; color: var(--muted); font-weight: 400; }
:is(.differences, .effects, .settled) :is(td, th) { padding-top: .3rem; padding-bottom: .3rem; }
:is(.differences, .effects, .settled) tr.group th { padding-top: 1.1rem; }
.differences thead th:last-child, .effects thead th:last-child { text-align: left; }
.effects tbody tr:not(.group) th { min-width: 11rem; max-width: 21rem; }
.effects tbody th small { display: block; }
.scroll + .panels { margin-top: 1.8rem; }
.key { display: flex; align-items: baseline; }
.key > span { min-width: 0; }
.key small { margin-left: .5rem; font-weight: 400; }
.swatch { flex: none; width: 1.25rem; height: .5rem; margin-right: .55rem; vertical-align: .12em; }
.swatch line { stroke-width: 3; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: 0 0 1.2rem; padding: 0;
  list-style: none; font-size: .9375rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 2rem 2rem; margin-bottom: 1.6rem; }
figure { margin: 0; display: flex; flex-direction: column; min-width: 0; break-inside: avoid; }
figure h3 { font-size: .9375rem; margin: 0 0 .4rem; }
figcaption { margin-top: .5rem; max-width: 26rem; }
figure > svg { display: block; width: 100%; max-width: 26rem; height: auto; overflow: visible; }
.samples h3 { font-weight: 400; }
.samples { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(11rem, 46%), 1fr)); }
.samples img { display: block; width: 100%; height: auto; }
pre { background: var(--tint); padding: .9rem 1.1rem; overflow-wrap: anywhere; white-space:
pre-wrap;
  font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; }
.listing { columns: 20rem 3; column-gap: 2.5rem; margin: 0; font-size: .8125rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }
.listing div { display: flex; gap: 1rem; justify-content: space-between; padding: .22rem 0;
  border-bottom: 1px solid var(--rule); break-inside: avoid; }
.listing dt { color: var(--muted); overflow-wrap: anywhere; }
.listing dd { margin: 0; text-align: right; overflow-wrap: anywhere; max-width: 65%; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1.1rem 3rem; }
  h1 { font-size: 1.7rem; }
  .question { font-size: 1.1rem; }
  .headline { font-size: 1.2rem; }
  .verdict { padding: 1.1rem 1.1rem; margin-left: -1.1rem; margin-right: -1.1rem; }
  section { margin-top: 2.4rem; }
  table { font-size: .8125rem; }
  td, th { padding-left: .9rem; }
  tbody tr:not(.group) th, .effects tbody tr:not(.group) th { min-width: 8rem; max-width: 10rem; }
  tbody th { overflow-wrap: anywhere; }
  th .key small { display: block; margin-left: 0; }
  .group th { max-width: 20rem; }
  .settled td { white-space: normal; }
  :is(.differences, .effects) :is(td, thead th):is(:nth-child(4), :nth-child(6)) { display: none; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { margin-top: 1.6rem; }
  :root { --paper: #fff; }
  h2, h3, .note, .legend { break-after: avoid; break-inside: avoid; }
  tr, tbody, .results, .headline, .verdict li, .samples, pre { break-inside: avoid; }
  .scroll + p { break-after: avoid; }
  .samples { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: 1rem; }
  .panels { grid-template-columns: repeat(2, 1fr); }
  .verdict { box-decoration-break: clone; -webkit-box-decoration-break: clone; }
  .verdict, pre, .remark { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; background: none; }
  .sideways { display: none; }
  tbody tr:not(.group) th, .effects tbody tr:not(.group) th { min-width: 7rem; max-width: 11rem;
    overflow-wrap: anywhere; }
  .group th { overflow-wrap: anywhere; }
  :is(.differences, .effects) td:last-child { white-space: normal; min-width: 5rem; }
  table { font-size: 8.5pt; }
  small { font-size: .9em; }
  .samples h3 { font-size: 8pt; }
  td, th { padding-left: .8rem; }
}
"""


# --- Markdown as GitHub shows it, with PNG files beside it ----------------------------------------


_MD_ACROSS = 4  # sets of samples in one row


def render_markdown(page: Page, folder: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the PNG files that it shows: name -> content, to be put in `folder`."""
    files: dict[str, bytes] = {}

    def show(name: str, png: bytes, title: str, width: str = "") -> str:
        files[f"{name}.png"] = png
        alt = re.sub(r"[|$`]", lambda mark: f"&#{ord(mark[0])};", escape_markup(one_line(title)))
        return f'<img src="{folder}/{name}.png" alt="{alt}"{width}>'

    parts = [f"# {_md_text(page.title)}"]
    if page.question.strip():
        parts.append(f"*{_md_text(page.question)}*")
    parts += [f"> **{_md_text(about)}** {_md_text(text)}" for about, text in page.remarks]
    parts.append(" · ".join(f"{_md_text(k)}: {_md_text(v)}" for k, v in page.facts.items()))
    parts += _md_verdict(page.verdict)
    parts += _md_meanings(page.meanings, show)
    for section in page.sections:
        parts += _md_section(section, show)
    return "\n\n".join(parts) + "\n", files


def _md_verdict(verdict: Verdict) -> list[str]:
    if not verdict.lines:
        return ["**Nothing to compare yet.**"]
    said = [
        f"{_md_text(claim)}: **{_md_text(end)}**{_md_text(needed)}."
        for _, claim, end, needed in verdict.lines
    ]
    rest = "\n".join(f"- {line}" for line in said[1:])
    return [part for part in (said[0], rest, _md_text(verdict.more)) if part]


def _md_section(section: Section, show: Callable[..., str]) -> list[str]:
    parts = [f"## {_md_text(section.title)}"]
    if section.note:
        parts.append(_md_text(section.note))
    for block in section.blocks:
        parts += _MD_BLOCKS[type(block)](block, show)
    return parts


def _md_table(table: Table, show: Callable[..., str]) -> list[str]:
    width = len(table.head)
    lines = [_md_line(map(_md_content, table.head)), "|---" + "|---:" * (width - 1) + "|"]
    for row in table.rows:
        cells = [_md_content(cell) for cell in row.cells]
        if row.kind:
            cells = [f"**{cell}**" if i == 0 else cell for i, cell in enumerate(cells)]
        lines.append(_md_line([*cells, *[""] * (width - len(cells))]))
    return ["\n".join(lines)]


def _md_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_content(cell: TableCell) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(cell.direction or "", "")
    small = f"<br><sub>{_md_text(cell.small)}</sub>" if cell.small else ""
    return f"{_md_text(cell.text)}{arrow}{small}"


def _md_panels(block: Panels, show: Callable[..., str]) -> list[str]:
    parts = []
    for panel in block.panels:
        image = show(panel.name, figures.png(panel.figure), panel.title, ' width="420"')
        parts += [f"**{_md_text(panel.title)}.** {_md_text(panel.caption)}".rstrip(), image]
    return parts


def _md_legend(block: Legend, show: Callable[..., str]) -> list[str]:
    title = ", ".join(cell.text for cell in block.arms)
    return [show("legend", figures.png(block.figure), title, ' width="420"')]


def _md_pictures(block: Pictures, show: Callable[..., str]) -> list[str]:
    tables = []
    for i in range(0, len(block.pictures), _MD_ACROSS):
        row = block.pictures[i : i + _MD_ACROSS]
        images = [show(p.name, p.png, f"samples: {p.title.text}", ' width="200"') for p in row]
        lines = [
            _md_line([_md_content(p.title) for p in row]),
            "|---" * len(row) + "|",
            _md_line(images),
        ]
        tables.append("\n".join(lines))
    return tables


def _md_meanings(block: Meanings, show: Callable[..., str]) -> list[str]:
    lines = [f"- **{_md_text(name)}**: {_md_text(text)}" for name, text in block.items.items()]
    return ["\n".join(lines)] if lines else []


def _md_words(block: Words, show: Callable[..., str]) -> list[str]:
    return [_md_text(part) for part in block.paragraphs]


def _md_code(block: Code, show: Callable[..., str]) -> list[str]:
    if not block.text:
        return []
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
    return [f"### {_md_text(block.title)}", f"{fence}sh\n{legible(block.text)}\n{fence}"]


def _md_listing(block: Listing, show: Callable[..., str]) -> list[str]:
    if not block.items:
        return []
    lines = [_md_line([_md_text(k), _md_text(v)]) for k, v in block.items.items()]
    table = "\n".join(["| | |", "|---|---|", *lines])
    title = _md_text(block.title)
    return [f"<details><summary>{title}</summary>", table, "</details>"]


_MD_BLOCKS: dict[type, Callable[[Any, Callable[..., str]], list[str]]] = {
    Table: _md_table,
    Panels: _md_panels,
    Legend: _md_legend,
    Pictures: _md_pictures,
    Words: _md_words,
    Code: _md_code,
    Listing: _md_listing,
    Meanings: _md_meanings,
}


def _md_text(value: Any) -> str:
    """A text as Markdown on one line in which nothing is markup."""
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape_markup(one_line(str(value)), quote=False))
    text = re.sub(r":(?=[\w+-]+:)", r"\:", text)  # no emoji of GitHub's
    text = re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", text)  # no list, no rule
    return text.replace("$", "<span>$</span>")  # no formula: GitHub's way to say so
