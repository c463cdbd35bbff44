"""The page of a report: the blocks that it is made of, each with its HTML and its Markdown.

The HTML is one file, without scripts or other files. The Markdown is as GitHub shows it, with PNG
files beside it. `show(name, png, title, width)` takes such a file, and gives the words that stand
for it.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape_markup
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from diffax.report import figures
from diffax.report.formatting import legible, one_line

Show = Callable[[str, bytes, str, int], str]
_ACROSS = 4  # sets of samples in one row of Markdown
_DASHES = {"-": "none", "--": "5 3", ":": "1.5 2.5", "-.": "5 2 1.5 2"}


def escape(text: Any) -> str:
    """A text as HTML in which nothing is markup."""
    return escape_markup(legible(str(text)))


def markdown(value: Any) -> str:
    """A text as Markdown on one line in which nothing is markup."""
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape_markup(one_line(str(value)), quote=False))
    text = re.sub(r":(?=[\w+-]+:)", r"\:", text)  # no emoji of GitHub's
    text = re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", text)  # no list, no rule
    return text.replace("$", "<span>$</span>")  # no formula: GitHub's way to say so


def _terms(kind: str, items: Mapping[str, Any]) -> str:
    rows = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in items.items())
    return f'<dl class="{kind}">{"".join(rows)}</dl>' if items else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class TableCell:
    """A few words of a table: `small` beside or under them, the colour of an arm, by its number in
    the figures, before them, and an arrow for what is better ("lower" or "higher")."""

    text: str
    small: str = ""
    colour: int | None = None
    direction: str | None = None

    @property
    def arrow(self) -> str:
        return {"lower": "↓", "higher": "↑"}.get(self.direction or "", "")

    def html(self) -> str:
        # Places where a long word or a key may be broken, so that no column is too wide.
        long = r"(?<=[a-z][.=/])(?=\w{2})|(?<=\S{24})(?=\S)"
        words = escape(re.sub(long, "\u2028", one_line(self.text))).replace("\u2028", "<wbr>")
        small = f"<small>{escape(self.small)}</small>" if self.small else ""
        if self.colour is not None:
            dash = _DASHES[figures.line_style(self.colour)[1]]
            swatch = (
                '<svg class="swatch" viewBox="0 0 20 8" aria-hidden="true">'
                f'<line x1="1" y1="4" x2="19" y2="4" stroke-dasharray="{dash}"'
                f' style="stroke:var(--c{self.colour % len(figures.PALETTE)})"/></svg>'
            )
            return f'<span class="key">{swatch}<span>{words}{small}</span></span>'
        better = f'&nbsp;<abbr title="{self.direction} is better">{self.arrow}</abbr>'
        return f"{words}{better if self.arrow else ''}{small}"

    def markdown(self) -> str:
        small = f"<br><sub>{markdown(self.small)}</sub>" if self.small else ""
        return f"{' '.join(filter(None, (markdown(self.text), self.arrow)))}{small}"


class Block(Protocol):
    """A part of a section."""

    def html(self) -> str: ...

    def markdown(self, show: Show) -> list[str]: ...


@dataclass(frozen=True)
class Row:
    """A row of a table: kind "", "focus", or "group" for a heading of one cell."""

    cells: Sequence[TableCell]
    kind: str = ""

    def html(self, width: int) -> str:
        kind = f' class="{self.kind}"' if self.kind else ""
        scope = f'colspan="{width}" scope="rowgroup"' if self.kind == "group" else 'scope="row"'
        first, *rest = (cell.html() for cell in self.cells)
        return f"<tr{kind}><th {scope}>{first}</th>{''.join(f'<td>{c}</td>' for c in rest)}</tr>"


@dataclass(frozen=True)
class Table:
    kind: str  # "results", "effects", "differences" or "settled"
    head: Sequence[TableCell]
    rows: Sequence[Row]

    def html(self) -> str:
        head = "".join(
            f'<th scope="col">{cell.html()}</th>' if cell.text else "<th></th>"
            for cell in self.head
        )
        # A group of rows is one body, which a printed page keeps in one piece.
        bodies: list[str] = []
        for row in self.rows:
            if row.kind == "group" or not bodies:
                bodies.append("")
            bodies[-1] += row.html(len(self.head))
        return (
            '<div class="scroll" tabindex="0"><p class="sideways" aria-hidden="true">This table'
            f' goes on to the right →</p><table class="{self.kind}"><thead><tr>{head}</tr></thead>'
            f"{''.join(f'<tbody>{rows}</tbody>' for rows in bodies)}</table></div>"
        )

    def markdown(self, show: Show) -> list[str]:
        width = len(self.head)
        lines = [_line([c.markdown() for c in self.head]), "|---" + "|---:" * (width - 1) + "|"]
        for row in self.rows:
            first, *rest = (cell.markdown() for cell in row.cells)
            first = f"**{first}**" if row.kind else first
            lines.append(_line([first, *rest, *[""] * (width - len(row.cells))]))
        return ["\n".join(lines)]


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

    def html(self) -> str:
        drawn = ""
        for p in self.panels:
            drawing = figures.svg(p.figure, p.name, f"{p.title}. {p.caption}")
            note = f"<figcaption>{escape(p.caption)}</figcaption>" if p.caption else ""
            drawn += f"<figure><h3>{escape(p.title)}</h3>{drawing}{note}</figure>"
        return f'<div class="panels">{drawn}</div>'

    def markdown(self, show: Show) -> list[str]:
        parts = []
        for p in self.panels:
            words = f"**{markdown(p.title)}.** {markdown(p.caption)}".rstrip()
            parts += [words, show(p.name, figures.png(p.figure), p.title, 420)]
        return parts


@dataclass(frozen=True)
class Legend:
    """The arms with their colours."""

    arms: Sequence[TableCell]
    figure: Figure

    def html(self) -> str:
        items = "".join(f"<li>{cell.html()}</li>" for cell in self.arms)
        return f'<ul class="legend">{items}</ul>'

    def markdown(self, show: Show) -> list[str]:
        title = ", ".join(cell.text for cell in self.arms)
        return [show("legend", figures.png(self.figure), title, 420)]


@dataclass(frozen=True)
class Pictures:
    """PNG files, each with its title."""

    pictures: Sequence[tuple[TableCell, bytes]]

    def html(self) -> str:
        drawn = "".join(
            f'<figure><h3>{title.html()}</h3><img alt="{escape(f"samples: {title.text}")}" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
            for title, png in self.pictures
        )
        return f'<div class="samples">{drawn}</div>'

    def markdown(self, show: Show) -> list[str]:
        images = [
            (title.markdown(), show(f"samples-{i}", png, f"samples: {title.text}", 200))
            for i, (title, png) in enumerate(self.pictures)
        ]
        tables = []
        for i in range(0, len(images), _ACROSS):
            titles, shown = zip(*images[i : i + _ACROSS])
            tables.append("\n".join([_line(titles), "|---" * len(titles) + "|", _line(shown)]))
        return tables


@dataclass(frozen=True)
class Words:
    paragraphs: Sequence[str]

    def html(self) -> str:
        return "".join(f"<p>{escape(part)}</p>" for part in self.paragraphs)

    def markdown(self, show: Show) -> list[str]:
        return [markdown(part) for part in self.paragraphs]


@dataclass(frozen=True)
class Code:
    title: str
    text: str

    def html(self) -> str:
        return f"<h3>{escape(self.title)}</h3><pre>{escape(self.text)}</pre>" * bool(self.text)

    def markdown(self, show: Show) -> list[str]:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))
        words = [f"### {markdown(self.title)}", f"{fence}sh\n{legible(self.text)}\n{fence}"]
        return words if self.text else []


@dataclass(frozen=True)
class Listing:
    title: str
    items: Mapping[str, Any]

    def html(self) -> str:
        return f"<h3>{escape(self.title)}</h3>" * bool(self.items) + _terms("listing", self.items)

    def markdown(self, show: Show) -> list[str]:
        lines = [_line([markdown(k), markdown(v)]) for k, v in self.items.items()]
        table = "\n".join(["| | |", "|---|---|", *lines])
        summary = f"<details><summary>{markdown(self.title)}</summary>"
        return [summary, table, "</details>"] if self.items else []


@dataclass(frozen=True)
class Meanings:
    """What each measure means."""

    items: Mapping[str, str]

    def html(self) -> str:
        return _terms("meanings", self.items)

    def markdown(self, show: Show) -> list[str]:
        lines = [f"- **{markdown(name)}**: {markdown(text)}" for name, text in self.items.items()]
        return ["\n".join(lines)] * bool(lines)


@dataclass(frozen=True)
class Verdict:
    """(mark, claim, conclusion, seeds needed) for each statement, the headline first."""

    lines: Sequence[tuple[str, str, str, str]]
    more: str = ""

    def html(self) -> str:
        if not self.lines:
            words = "Nothing to compare yet."
            return f'<section class="verdict"><p class="headline">{words}</p></section>'
        (_, first), *others = (
            (mark, f"{escape(claim)}: <strong>{escape(end)}</strong>{escape(needed)}.")
            for mark, claim, end, needed in self.lines
        )
        rest = "".join(
            f'<li><span class="mark" aria-hidden="true">{mark}</span>{line}</li>'
            for mark, line in others
        )
        more = f"<p>{escape(self.more)}</p>" if self.more else ""
        return (
            f'<section class="verdict" aria-label="Verdict"><p class="headline">{first}</p>'
            f"<ul>{rest}</ul>{more}</section>"
        )

    def markdown(self, show: Show) -> list[str]:
        if not self.lines:
            return ["**Nothing to compare yet.**"]
        first, *others = (
            f"{markdown(claim)}: **{markdown(end)}**{markdown(needed)}."
            for _, claim, end, needed in self.lines
        )
        rest = "\n".join(f"- {line}" for line in others)
        return [part for part in (first, rest, markdown(self.more)) if part]


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    blocks: Sequence[Block]

    def html(self) -> str:
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        content = "".join(block.html() for block in self.blocks)
        return f"<section><h2>{escape(self.title)}</h2>{note}{content}</section>\n"

    def markdown(self, show: Show) -> list[str]:
        parts = [f"## {markdown(self.title)}"] + [markdown(self.note)] * bool(self.note)
        return parts + [part for block in self.blocks for part in block.markdown(show)]


@dataclass(frozen=True)
class Page:
    title: str
    question: str
    remarks: Sequence[tuple[str, str]]  # (what it is about, what must be known first)
    facts: Mapping[str, Any]
    blocks: Sequence[Block]  # the verdict, the meanings of its measures, the sections

    def html(self) -> str:
        """The whole page as one file of HTML."""
        remarks = "".join(
            f'<p class="remark"><b>{escape(about)}</b> {escape(text)}</p>'
            for about, text in self.remarks
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_stylesheet()}</style>\n</head>\n"
            '<body>\n<main>\n<header><p class="eyebrow">diffax ablation</p>'
            f'<h1>{escape(self.title)}</h1><p class="question">{escape(self.question)}</p></header>'
            f"{remarks}{_terms('facts', self.facts)}{''.join(b.html() for b in self.blocks)}\n"
            "</main>\n</body>\n</html>\n"
        )

    def markdown(self, folder: str) -> tuple[str, dict[str, bytes]]:
        """The text, and the PNG files that it shows: name -> content, to be put in `folder`."""
        files: dict[str, bytes] = {}

        def show(name: str, png: bytes, title: str, width: int) -> str:
            files[f"{name}.png"] = png
            alt = escape_markup(one_line(title))
            alt = re.sub(r"[|$`]", lambda mark: f"&#{ord(mark[0])};", alt)
            return f'<img src="{folder}/{name}.png" alt="{alt}" width="{width}">'

        parts = [f"# {markdown(self.title)}"]
        if self.question.strip():
            parts.append(f"*{markdown(self.question)}*")
        parts += [f"> **{markdown(about)}** {markdown(text)}" for about, text in self.remarks]
        parts.append(" · ".join(f"{markdown(k)}: {markdown(v)}" for k, v in self.facts.items()))
        parts += [part for block in self.blocks for part in block.markdown(show)]
        return "\n\n".join(parts) + "\n", files


def _stylesheet() -> str:
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
    rules = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f":root{{{paper}}}\n{dark_screen}\n{rules}"
