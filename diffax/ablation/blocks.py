"""What a report is made of, whatever it is written in: `sections` fills these blocks with what an
analysis says, and `report_html` and `report_markdown` know how each kind is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from diffax.ablation.analysis import Analysis


@dataclass(frozen=True)
class Cell:
    """A few words of a table: `small` beside or under them, the colour of an arm before them, and
    an arrow for what is wished for ("lower" or "higher")."""

    text: str
    small: str = ""
    arm: str | None = None
    wish: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table: kind "", "focus", or "group" for a heading of one cell."""

    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    kind: str  # "results", "effects", "differences" or "settled"
    head: Sequence[Cell]
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

    arms: Sequence[Cell]
    figure: Figure


@dataclass(frozen=True)
class Picture:
    name: str
    png: bytes
    title: Cell


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
    """What measures say, each by its name."""

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
