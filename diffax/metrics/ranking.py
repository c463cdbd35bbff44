"""Whether two networks whose features judge samples agree on which is better."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Ranked(NamedTuple):
    """A set of samples, its distance by one network, and the interval of that."""

    name: str
    distance: float
    low: float
    high: float


class Pair(NamedTuple):
    """Two sets of samples as two networks order them.

    `better` and `worse` are by the first network. `settled`: both networks have them in this order,
    with intervals that don't overlap. `agreed`: in this order, whatever the intervals.
    """

    better: str
    worse: str
    agreed: bool
    settled: bool


def settled(first: Sequence[Ranked], second: Sequence[Ranked]) -> list[Pair]:
    """Every pair of the names that two networks have judged, the best first.

    One network may favour what it was trained on: a ranking is settled only where both have it.
    Intervals that don't overlap are a stricter test than the interval of the difference.

    Raises:
      ValueError: a name twice, or the two lists are of different names.
    """
    by_name = {each.name: each for each in second}
    names = [each.name for each in first]
    if len(by_name) < len(second) or len(set(names)) < len(names) or set(names) != set(by_name):
        raise ValueError(
            f"the networks judged {', '.join(names)} and {', '.join(e.name for e in second)};"
            " each must judge the same names, once"
        )
    return [
        Pair(
            a.name,
            b.name,
            agreed=by_name[a.name].distance < by_name[b.name].distance,
            settled=a.high < b.low and by_name[a.name].high < by_name[b.name].low,
        )
        for a, b in itertools.combinations(sorted(first, key=lambda each: each.distance), 2)
    ]
