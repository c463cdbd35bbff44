"""A report as Markdown, as GitHub shows it, with its figures as PNG files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from diffax.ablation import blocks, figures
from diffax.ablation.blocks import Cell, Page, Section
from diffax.ablation.texts import legible, one_line

_ACROSS = 4  # sets of samples in one row


def render(page: Page, folder: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the PNG files that it shows: name -> content, to be put in `folder`."""
    files: dict[str, bytes] = {}

    def show(name: str, png: bytes, title: str, width: str = "") -> str:
        files[f"{name}.png"] = png
        alt = re.sub(r"[|$`]", lambda mark: f"&#{ord(mark[0])};", escape(one_line(title)))
        return f'<img src="{folder}/{name}.png" alt="{alt}"{width}>'

    parts = [f"# {_text(page.title)}"]
    if page.question.strip():
        parts.append(f"*{_text(page.question)}*")
    parts += [f"> **{_text(about)}** {_text(text)}" for about, text in page.remarks]
    parts.append(" · ".join(f"{_text(k)}: {_text(v)}" for k, v in page.facts.items()))
    parts += _verdict(page.verdict)
    parts += _meanings(page.meanings, show)
    for section in page.sections:
        parts += _section(section, show)
    return "\n\n".join(parts) + "\n", files


def _verdict(verdict: blocks.Verdict) -> list[str]:
    if not verdict.lines:
        return ["**Nothing to compare yet.**"]
    said = [
        f"{_text(claim)}: **{_text(end)}**{_text(needed)}."
        for _, claim, end, needed in verdict.lines
    ]
    rest = "\n".join(f"- {line}" for line in said[1:])
    return [part for part in (said[0], rest, _text(verdict.more)) if part]


def _section(section: Section, show: Callable[..., str]) -> list[str]:
    parts = [f"## {_text(section.title)}"]
    if section.note:
        parts.append(_text(section.note))
    for block in section.blocks:
        parts += _BLOCKS[type(block)](block, show)
    return parts


def _table(table: blocks.Table, show: Callable[..., str]) -> list[str]:
    width = len(table.head)
    lines = [_line(map(_content, table.head)), "|---" + "|---:" * (width - 1) + "|"]
    for row in table.rows:
        cells = [_content(cell) for cell in row.cells]
        if row.kind:
            cells = [f"**{cell}**" if i == 0 else cell for i, cell in enumerate(cells)]
        lines.append(_line([*cells, *[""] * (width - len(cells))]))
    return ["\n".join(lines)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _content(cell: Cell) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(cell.wish or "", "")
    small = f"<br><sub>{_text(cell.small)}</sub>" if cell.small else ""
    return f"{_text(cell.text)}{arrow}{small}"


def _panels(block: blocks.Panels, show: Callable[..., str]) -> list[str]:
    parts = []
    for panel in block.panels:
        image = show(panel.name, figures.png(panel.figure), panel.title, ' width="420"')
        parts += [f"**{_text(panel.title)}.** {_text(panel.caption)}".rstrip(), image]
    return parts


def _legend(block: blocks.Legend, show: Callable[..., str]) -> list[str]:
    title = ", ".join(cell.text for cell in block.arms)
    return [show("legend", figures.png(block.figure), title, ' width="420"')]


def _pictures(block: blocks.Pictures, show: Callable[..., str]) -> list[str]:
    tables = []
    for i in range(0, len(block.pictures), _ACROSS):
        row = block.pictures[i : i + _ACROSS]
        images = [show(p.name, p.png, f"samples: {p.title.text}", ' width="200"') for p in row]
        lines = [_line([_content(p.title) for p in row]), "|---" * len(row) + "|", _line(images)]
        tables.append("\n".join(lines))
    return tables


def _meanings(block: blocks.Meanings, show: Callable[..., str]) -> list[str]:
    lines = [f"- **{_text(name)}**: {_text(text)}" for name, text in block.items.items()]
    return ["\n".join(lines)] if lines else []


def _words(block: blocks.Words, show: Callable[..., str]) -> list[str]:
    return [_text(part) for part in block.paragraphs]


def _code(block: blocks.Code, show: Callable[..., str]) -> list[str]:
    if not block.text:
        return []
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
    return [f"### {_text(block.title)}", f"{fence}sh\n{legible(block.text)}\n{fence}"]


def _listing(block: blocks.Listing, show: Callable[..., str]) -> list[str]:
    if not block.items:
        return []
    lines = [_line([_text(k), _text(v)]) for k, v in block.items.items()]
    table = "\n".join(["| | |", "|---|---|", *lines])
    title = _text(block.title)
    return [f"<details><summary>{title}</summary>", table, "</details>"]


_BLOCKS: dict[type, Callable[[Any, Callable[..., str]], list[str]]] = {
    blocks.Table: _table,
    blocks.Panels: _panels,
    blocks.Legend: _legend,
    blocks.Pictures: _pictures,
    blocks.Words: _words,
    blocks.Code: _code,
    blocks.Listing: _listing,
    blocks.Meanings: _meanings,
}


def _text(value: Any) -> str:
    """As it is, whatever it holds: nothing in it is markup, and it stays on one line."""
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(one_line(str(value)), quote=False))
    text = re.sub(r":(?=[\w+-]+:)", r"\:", text)  # no emoji of GitHub's
    text = re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", text)  # no list, no rule
    return text.replace("$", "<span>$</span>")  # no formula: GitHub's way to say so
