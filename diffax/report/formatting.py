"""Numbers and users' texts as they are written in tables, sentences, pages and figures."""

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from diffax.report.statistics import Difference, Interval

# --- numbers --------------------------------------------------------------------------------------


_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def fixed(x: float, digits: int) -> str:
    """`x` with `digits` decimals, a true minus sign and no negative zero."""
    return f"{round(x, digits) + 0.0:,.{digits}f}".replace("-", "−")


def signed(x: float, digits: int) -> str:
    """As `fixed`, with a plus sign before what is above zero."""
    text = fixed(x, digits)
    return text if text.startswith("−") or not text.strip("0.,") else f"+{text}"


def significant(x: float, digits: int) -> str:
    """`x` with `digits` significant digits: "0.00213", "1,240", "3.1×10⁻⁷"."""
    if x == 0 or not math.isfinite(x):
        return fixed(x, 0) if x == 0 else str(x)
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    if -5 < int(exponent) < 6:
        return fixed(float(f"{mantissa}e{exponent}"), max(0, digits - 1 - int(exponent)))
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")


def tick(x: float) -> str:
    """`x` as short as three significant digits allow: "0.5", "100"."""
    text = significant(x, 3)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def ratio(x: float, digits: int = 2) -> str:
    """A ratio: two decimals or digits, three where it is near one or above ten."""
    if 0.98 < x < 1.02:
        return fixed(x, 3)
    return fixed(x, 2) if 0.1 <= x < 10 else significant(x, 2 if x < 1 else 3)


def span(text: Callable[[float], str], interval: Interval | Difference | None) -> str:
    """The ends of an interval as "low to high", or a dash where there is none."""
    return "–" if interval is None else f"{text(interval.low)} to {text(interval.high)}"


def seeds_text(seeds: int | None) -> str:
    """A number of seeds; a dash where no number would do."""
    return "–" if seeds is None else f"{seeds:,}"


def p_text(p: float | None) -> str:
    """A p value as one reads it."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def format_seconds(seconds: float) -> str:
    """A time as one reads it: "8.3 s", "4 min 10 s" or "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# --- texts of users: names, questions and values are shown as they are, never read as markup ------


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
