"""A report as one HTML file: no scripts, no other files, nothing from the net."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html import escape as escape_markup
from typing import Any

from diffax.ablation import blocks, figures
from diffax.ablation.analysis import Analysis
from diffax.ablation.blocks import Cell, Page, Panel, Row, Section
from diffax.ablation.report_style import stylesheet
from diffax.ablation.texts import legible, one_line


def escape(text: str) -> str:
    """A text as it is, whatever it holds: nothing in it is markup."""
    return escape_markup(legible(text))


def render(page: Page) -> str:
    """The whole page as HTML."""
    body = [
        f'<header><p class="eyebrow">diffax ablation</p><h1>{escape(page.title)}</h1>'
        f'<p class="question">{escape(page.question)}</p></header>',
        *(
            f'<p class="remark"><b>{escape(about)}</b> {escape(text)}</p>'
            for about, text in page.remarks
        ),
        _facts(page),
        _verdict(page.verdict),
        _meanings(page.meanings, page.analysis),
        *(_section(section, page.analysis) for section in page.sections),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(page.title)}</title>\n<style>{stylesheet()}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}\n</main>\n</body>\n</html>\n"
    )


def _verdict(verdict: blocks.Verdict) -> str:
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


def _facts(page: Page) -> str:
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in page.facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _section(section: Section, analysis: Analysis) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    content = "".join(_BLOCKS[type(block)](block, analysis) for block in section.blocks)
    return f"<section><h2>{escape(section.title)}</h2>{note}{content}</section>\n"


def _table(table: blocks.Table, analysis: Analysis) -> str:
    head = "".join(
        f'<th scope="col">{_content(cell, analysis)}</th>' if cell.text else "<th></th>"
        for cell in table.head
    )
    # A group of rows is one body, which a printed page keeps in one piece.
    bodies: list[str] = []
    for row in table.rows:
        if row.kind == "group" or not bodies:
            bodies.append("")
        bodies[-1] += _row(row, len(table.head), analysis)
    return (
        f'<div class="scroll" tabindex="0">{_SIDEWAYS}'
        f'<table class="{table.kind}"><thead><tr>{head}</tr></thead>'
        f"{''.join(f'<tbody>{rows}</tbody>' for rows in bodies)}</table></div>"
    )


_SIDEWAYS = '<p class="sideways" aria-hidden="true">This table goes on to the right →</p>'


def _row(row: Row, width: int, analysis: Analysis) -> str:
    kind = f' class="{row.kind}"' if row.kind else ""
    scope = f'colspan="{width}" scope="rowgroup"' if row.kind == "group" else 'scope="row"'
    first, *rest = (_content(cell, analysis) for cell in row.cells)
    cells = "".join(f"<td>{content}</td>" for content in rest)
    return f"<tr{kind}><th {scope}>{first}</th>{cells}</tr>"


def _content(cell: Cell, analysis: Analysis) -> str:
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    if cell.arm is not None:
        swatch = _swatch(analysis, cell.arm)
        return f'<span class="key">{swatch}<span>{_breakable(cell.text)}{small}</span></span>'
    arrow = {"lower": "↓", "higher": "↑"}.get(cell.wish or "")
    wish = f'&nbsp;<abbr title="{cell.wish} is better">{arrow}</abbr>' if arrow else ""
    return f"{_breakable(cell.text)}{wish}{small}"


def _breakable(text: str) -> str:
    """With places where a long word or a key may be broken, so that no column is too wide."""
    marked = re.sub(r"(?<=[a-z][.=/])(?=\w{2})|(?<=\S{24})(?=\S)", "\u2028", one_line(text))
    return escape(marked).replace("\u2028", "<wbr>")


def _panels(block: blocks.Panels, analysis: Analysis) -> str:
    return f'<div class="panels">{"".join(map(_panel, block.panels))}</div>'


def _panel(panel: Panel) -> str:
    drawing = figures.svg(panel.figure, panel.name, f"{panel.title}. {panel.caption}")
    note = f"<figcaption>{escape(panel.caption)}</figcaption>" if panel.caption else ""
    return f"<figure><h3>{escape(panel.title)}</h3>{drawing}{note}</figure>"


def _legend(block: blocks.Legend, analysis: Analysis) -> str:
    items = "".join(f"<li>{_content(cell, analysis)}</li>" for cell in block.arms)
    return f'<ul class="legend">{items}</ul>'


def _pictures(block: blocks.Pictures, analysis: Analysis) -> str:
    drawn = "".join(
        f"<figure><h3>{_content(picture.title, analysis)}</h3>"
        f'<img alt="{escape(f"samples: {picture.title.text}")}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode()}"></figure>'
        for picture in block.pictures
    )
    return f'<div class="samples">{drawn}</div>'


def _meanings(block: blocks.Meanings, analysis: Analysis) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in block.items.items()
    )
    return f'<dl class="meanings">{items}</dl>' if items else ""


def _words(block: blocks.Words, analysis: Analysis) -> str:
    return "".join(f"<p>{escape(part)}</p>" for part in block.paragraphs)


def _code(block: blocks.Code, analysis: Analysis) -> str:
    if not block.text:
        return ""
    return f"<h3>{escape(block.title)}</h3><pre>{escape(block.text)}</pre>"


def _listing(block: blocks.Listing, analysis: Analysis) -> str:
    if not block.items:
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>"
        for k, v in block.items.items()
    )
    return f'<h3>{escape(block.title)}</h3><dl class="listing">{rows}</dl>'


_BLOCKS: dict[type, Callable[[Any, Analysis], str]] = {
    blocks.Table: _table,
    blocks.Panels: _panels,
    blocks.Legend: _legend,
    blocks.Pictures: _pictures,
    blocks.Words: _words,
    blocks.Code: _code,
    blocks.Listing: _listing,
    blocks.Meanings: _meanings,
}


def _swatch(analysis: Analysis, arm: str) -> str:
    index = figures.palette_index(analysis)[arm]
    dash = {"-": "none", "--": "5 3", ":": "1.5 2.5", "-.": "5 2 1.5 2"}[
        figures.line_style(index)[1]
    ]
    return (
        '<svg class="swatch" viewBox="0 0 20 8" aria-hidden="true">'
        '<line x1="1" y1="4" x2="19" y2="4" '
        f'style="stroke:var(--c{index % len(figures.PALETTE)})" stroke-dasharray="{dash}"/></svg>'
    )
