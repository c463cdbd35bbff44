"""Texts of users (names of arms, questions, values, classes) as pages, figures and terminals take
them: whatever they hold, they are shown and never read as markup."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence

_ISOLATE, _RELEASE = "\u2068", "\u2069"
_RIGHT_TO_LEFT = {"R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI", "FSI"}
_NO_WORDS = ("True", "False", "None")
_VAGUE = ("name", "schedule")  # last parts of keys that say nothing, or something else, alone


def legible(text: str) -> str:
    """`text` with U+FFFD for what no page can hold: control characters and halves of characters."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r" else c
        for c in text
    )


def one_line(text: str) -> str:
    """`legible` on one line; one that is written from right to left leaves its surroundings be."""
    line = " ".join(legible(text).split())
    if any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in line):
        return f"{_ISOLATE}{line}{_RELEASE}"
    return line


def for_matplotlib(text: str) -> str:
    """`one_line` with nothing in it that matplotlib would set as a formula."""
    line = one_line(text).translate({ord(mark): None for mark in (_ISOLATE, _RELEASE)})
    return line.replace("$", r"\$")


@functools.lru_cache(maxsize=64)
def short_names(arms: tuple[str, ...]) -> dict[str, str]:
    """Names for people of arms that `grid` named: distinct arms have distinct ones.

    "schedule.name=cosine,schedule.num_steps=250" becomes "cosine, num_steps=250". The values of a
    key stand alone if all are words and no other key has one of them; otherwise the last part of
    the key stands before them, or the whole key where another one ends like it, has like values or
    a name that says too little. Any other arm keeps its name.
    """
    read = {arm: pairs_of(arm) for arm in arms}
    values: dict[str, set[str]] = {}
    for pairs in read.values():
        for key, value in pairs.items():
            values.setdefault(key, set()).add(value)
    called = {key: prefix(key, values) for key in values}
    names = {
        arm: ", ".join(f"{called[key]}{value}" for key, value in pairs.items()) or arm
        for arm, pairs in read.items()
    }
    return names if len(set(names.values())) == len(names) else {arm: arm for arm in arms}


def prefix(key: str, values: Mapping[str, set[str]]) -> str:
    """What stands before the values of a key: "", "last_part=" or "the.whole.key=".

    `values`: of every key that varies, this one among them."""
    others = [other for other in values if other != key]
    alike = any(values[key] & values[other] for other in others)
    if not alike and all(v.isidentifier() and v not in _NO_WORDS for v in values[key]):
        return ""
    last = key.rpartition(".")[2]
    clear = last not in _VAGUE and all(last not in other.split(".") for other in others)
    return f"{last if clear and not alike else key}="


def pairs_of(arm: str) -> dict[str, str]:
    """key -> value of a name that `grid` made; nothing of another name."""
    pairs = [part.partition("=")[::2] for part in re.split(r",(?=[\w.]+=)", arm)]
    return dict(pairs) if all(key and value for key, value in pairs) else {}


def short_name(arm: str, arms: Sequence[str] = ()) -> str:
    """The name for people of one arm among some."""
    return short_names(tuple(dict.fromkeys([*arms, arm])))[arm]
