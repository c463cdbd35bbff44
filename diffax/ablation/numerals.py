"""Numbers as people read them, in tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable

from diffax.ablation.statistics import Difference, Interval

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
