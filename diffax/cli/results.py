"""The file of `diffax evaluate`: results merged by metric, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffax.metric import Metric

Entry = dict[str, Any]

EARLIER = "earlier"
_SUBJECT = ("step", "weights_hash", "samples_hash")  # what was measured


def read(path: Path) -> dict[str, Any]:
    """The results in a file: metric -> entry, and a list of entries under "earlier"; {} for none.

    Raises:
      ValueError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # of JSON or of UTF-8; said below
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(entry, list if name == EARLIER else dict) for name, entry in found.items()
    ):
        raise ValueError(
            f"{path} is there and holds no results of diffax evaluate: move it away, or name"
            " another file by --out"
        )
    return found


def merged(found: Mapping[str, Any], name: str, entry: Entry) -> dict[str, Any]:
    """The results with that of a metric.

    Those of other metrics stay if they are of the same checkpoint, or the same samples; what was
    measured of others, or of this metric under other conditions, is kept under "earlier".
    """
    kept, earlier = {}, list(found.get(EARLIER, []))
    for other, before in found.items():
        if other == EARLIER:
            continue
        if other != name and all(before.get(key) == entry.get(key) for key in _SUBJECT):
            kept[other] = before
        else:
            earlier.append({"metric": other, **before})
    own = {"metric": name, **_conditions(entry)}
    earlier = [before for before in earlier if _conditions(before) != own]
    return {**kept, name: entry, **({EARLIER: earlier} if earlier else {})}


def _conditions(entry: Entry) -> Entry:
    """What an entry says beside what is measured, which is a float, some, or null."""
    return {k: v for k, v in entry.items() if isinstance(v, (str, int, dict))}


def table(found: Mapping[str, Entry], measures: Mapping[str, Sequence[Metric]] = {}) -> str:
    """Lines of text: each number of each metric, its interval, and of what it is.

    `measures`: of a method's measures the numbers; those of scores are known.
    """
    rows = [("metric", "value", "interval", "of", "what it is")]
    rows += [row for name, entry in found.items() for row in _rows(name, entry, measures)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _rows(
    name: str, entry: Entry, measures: Mapping[str, Sequence[Metric]]
) -> list[tuple[str, ...]]:
    from diffax import evaluation

    known = measures[name] if name in measures else evaluation.numbers(name)
    numbers = [(n.key, n.entry or n.key, n.label) for n in known]
    spread = "-"
    if entry.get("low") is not None:
        spread = f"{_number(entry['low'])} to {_number(entry['high'])}"
    elif entry.get("standard_error") is not None:
        spread = f"± {_number(entry['standard_error'])}"
    kind = "samples" if "num_samples" in entry else "examples"
    of = f"{entry[count]} {kind}" if (count := f"num_{kind}") in entry else ""
    floor = f" (of held-out data {_number(entry['floor'])})" if "floor" in entry else ""
    return [(key, _number(entry[at]), spread, of, label + floor) for key, at, label in numbers]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
