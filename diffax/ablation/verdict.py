"""Sentences about an ablation, made from its intervals alone."""

from __future__ import annotations

from diffax.ablation.analysis import Analysis, Comparison
from diffax.ablation.numerals import p_text, span
from diffax.ablation.opinions import networks
from diffax.ablation.spec import Spec


def claim(spec: Spec, comparison: Comparison, pairs: bool = True) -> str:
    """What was found for one paired comparison, with its interval: the part before the colon.

    `pairs`: whether to say how many pairs of seeds it rests on."""
    c = comparison
    arm, reference, metric = spec.label(c.arm), spec.label(c.reference), c.metric
    effect = metric.effect_text(c.effect)
    if metric.scale == "log":
        found = f"{metric.label} of {arm} is {effect} times that of {reference}"
    else:
        unit = f" {metric.unit}" if metric.unit else ""
        found = f"{metric.label} of {arm} minus that of {reference} is {effect}{unit}"
    if c.difference is None:
        return f"{found} in the only seed that both have"
    interval = f"{spec.percent} interval {span(metric.effect_text, c.difference)}"
    return f"{found} ({interval}{f', {c.pairs} paired seeds' if pairs else ''})"


def conclusion(comparison: Comparison) -> str:
    """What may be said of it: the part after the colon.

    A difference is stated only where the interval leaves out no effect and Holm's corrected p is
    below 1 - confidence; otherwise it says that none can be seen, not that there is none. Of a
    score over a pretrained network it says what others make of it.
    """
    c = comparison
    if c.outcome == "suggested":
        side = "lower" if c.difference.high < c.difference.no_effect else "higher"
        return (
            f"{side} by this interval alone, but not after correction for {c.family} comparisons "
            f"(p = {p_text(c.p_holm)}), so undecided"
        )
    wish = {True: ", which is better", False: ", which is worse", None: ""}[c.better]
    return {
        "lower": f"lower{wish}{_backing(c)}",
        "higher": f"higher{wish}{_backing(c)}",
        "undecided": "no difference can be seen at this scale",
        "same": "the same at the digits shown",
        "unknown": "too few to say",
    }[c.outcome]


def _backing(comparison: Comparison) -> str:
    """What of a decided outcome the networks say; "" where none was asked."""
    opinions, count = comparison.opinions, len(networks(comparison.opinions))
    if comparison.settled:
        return f", settled: {'both' if count == 2 else f'all {count}'} networks say so"
    if count > 1:
        others = [f"{o.label} {o.outcome}" for o in opinions if o.outcome != comparison.outcome]
        return f", but not settled: {', '.join(others)}"
    return ", by one network alone" if count else ""


def needed(comparison: Comparison) -> str:
    """How many seeds would show what is undecided; "" where that is no number, or not more than
    there are."""
    if comparison.outcome not in ("undecided", "suggested"):
        return ""
    power, seeds = next(iter(comparison.seeds_needed.items()), (None, None))
    if seeds is None or seeds <= comparison.pairs:
        return ""
    return f"; one of this size would be seen with {seeds:,} seeds ({float(power):.0%} power)"


def sentence(spec: Spec, comparison: Comparison) -> str:
    """`claim`, `conclusion` and `needed` of one paired comparison, as one sentence."""
    return f"{claim(spec, comparison)}: {conclusion(comparison)}{needed(comparison)}."


def verdict(analysis: Analysis, most: int = 12) -> list[Comparison]:
    """The comparisons that a report states in words, the headline first.

    Main metrics only, the same share of `most` for each, since the tables hold all, and none that
    repeats what another says. Empty if no two arms share a seed.
    """
    main = [m.key for m in analysis.spec.metrics if m.main]
    rows = [[c for c in analysis.of_metric(key) if not c.repeats] for key in main]
    rows = [row for row in rows if row]
    return [c for row in rows for c in row[: max(1, most // len(rows))]]
