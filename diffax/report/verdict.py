"""Sentences about an ablation, made from its intervals alone."""

from collections.abc import Callable

from diffax.report.analysis import Analysis, Comparison
from diffax.report.findings import Effect, Finding, networks
from diffax.report.formatting import one_line, p_text, span
from diffax.report.spec import SCALES, Metric, Spec, effect_text


def claim(spec: Spec, finding: Finding, pairs: bool = True) -> str:
    """What was found by one paired comparison, with its interval: the part before the colon.

    `pairs`: whether to say how many pairs of seeds, and of an effect how many combinations, it
    rests on."""
    f = finding
    found = _CLAIMS[type(f)](spec, f)
    if f.difference is None:
        return f"{found} in the only seed that both have"
    rests = f", {f.pairs} paired seeds" if pairs else ""
    if pairs and isinstance(f, Effect) and f.combinations > 1:
        rests += f", averaged over {averaged(f)}"
    return f"{found} ({spec.percent} interval {span(effect_text(f.metric), f.difference)}{rests})"


def averaged(effect: Effect) -> str:
    """How many combinations of the other axes an effect is the mean of, in words."""
    if effect.averaged < effect.combinations:
        return f"{effect.averaged} of {effect.combinations} combinations of the other axes"
    return f"{effect.combinations} combinations of the other axes"


def _of_arms(spec: Spec, c: Comparison) -> str:
    (arm, reference), metric = c.names, c.metric
    if metric.scale == "log":
        text = effect_text(metric)(c.effect)
        return f"{metric.label} of {arm} is {text} times that of {reference}"
    return f"{metric.label} of {arm} minus that of {reference} is {_amount(c)}"


def _of_levels(spec: Spec, e: Effect) -> str:
    metric, text = e.metric, effect_text(e.metric)(e.effect)
    (one, other), *rest = named_levels(e)
    if e.is_main and metric.scale == "log":
        return f"With {one} instead of {other}, {metric.label} is {text} times as large"
    if e.is_main:
        return f"With {one} instead of {other}, {metric.label} changes by {_amount(e)}"
    ((second, reference),) = rest
    if metric.scale == "log":
        found = f"The ratio of {metric.label} of {one} to {other} is {text} times as large"
        return f"{found} with {second} as with {reference}"
    found = f"The difference in {metric.label} of {one} to {other} changes by {_amount(e)}"
    return f"{found} with {second} instead of {reference}"


_CLAIMS: dict[type, Callable] = {Comparison: _of_arms, Effect: _of_levels}


def named_levels(effect: Effect) -> list[tuple[str, str]]:
    """For each axis of an effect "key=level", and the level that it is against."""
    rows = zip(effect.axes, effect.levels, effect.references)
    return [(one_line(f"{axis}={level}"), one_line(other)) for axis, level, other in rows]


def effect_name(effect: Effect) -> str:
    """An effect in a table: its axis and levels and, of an interaction, how they are crossed."""
    sign = SCALES[effect.metric.scale].sign
    rows = zip(effect.axes, effect.levels, effect.references)
    return " × ".join(one_line(f"{axis}: {level} {sign} {other}") for axis, level, other in rows)


def shown_effects(analysis: Analysis, metric: Metric) -> list[Effect]:
    """The effects on a metric, without those that are none because trainings are shared."""
    return [e for e in analysis.effects_of(metric.key) if not e.repeats]


def _amount(finding: Finding) -> str:
    unit = f" {finding.metric.unit}" if finding.metric.unit else ""
    return f"{effect_text(finding.metric)(finding.effect)}{unit}"


def conclusion(finding: Finding) -> str:
    """What may be said of it: the part after the colon.

    A difference is stated only where the interval leaves out no effect and Holm's corrected p is
    below 1 - confidence; otherwise it says that none can be seen, not that there is none. For a
    score over a pretrained network it says whether others agree.
    """
    f = finding
    interaction = isinstance(f, Effect) and not f.is_main
    if f.outcome == "suggested":
        side = "lower" if f.difference.high < f.difference.no_effect else "higher"
        return (
            f"{'an interaction' if interaction else side} by this interval alone, but not after"
            f" correction for {f.family} comparisons (p = {p_text(f.p_holm)}), so undecided"
        )
    if f.decided and interaction:
        return f"the two depend on one another{_backing(f)}"
    direction = {True: ", which is better", False: ", which is worse", None: ""}[f.better]
    return {
        "lower": f"lower{direction}{_backing(f)}",
        "higher": f"higher{direction}{_backing(f)}",
        "undecided": f"no {'interaction' if interaction else 'difference'} can be seen at this"
        " scale",
        "same": "no interaction at the digits shown"
        if interaction
        else "the same at the digits shown",
        "unknown": "too few to say",
    }[f.outcome]


def _backing(finding: Finding) -> str:
    """Whether feature extractors agree on a decided outcome; "" for a metric of none."""
    outcomes, count = finding.by_network, len(networks(finding.by_network))
    if finding.settled:
        return f", settled: {'both' if count == 2 else f'all {count}'} feature extractors agree"
    if count > 1:
        others = [f"{o.label} {o.outcome}" for o in outcomes if o.outcome != finding.outcome]
        return f", but not settled: {', '.join(others)}"
    return ", by one feature extractor alone" if count else ""


def needed(finding: Finding) -> str:
    """How many seeds would show what is undecided; "" where that is no number, or not more than
    there are."""
    if finding.outcome not in ("undecided", "suggested"):
        return ""
    power, seeds = next(iter(finding.seeds_needed.items()), (None, None))
    if seeds is None or seeds <= finding.pairs:
        return ""
    return f"; one of this size would be seen with {seeds:,} seeds ({float(power):.0%} power)"


def remark(analysis: Analysis, finding: Finding) -> str:
    """What is added to a finding: `needed`, or that a main effect is an average of unlike ones."""
    others = [
        axis
        for e in analysis.effects_of(finding.metric.key)
        if isinstance(finding, Effect) and e.decided and not e.is_main and finding.decided
        for axis in e.axes
        if finding.is_main and finding.axes[0] in e.axes and axis != finding.axes[0]
    ]
    depends = f"; how much depends on {' and '.join(dict.fromkeys(others))}" if others else ""
    return needed(finding) + depends


def sentence(spec: Spec, finding: Finding) -> str:
    """`claim`, `conclusion` and `needed` of one paired comparison, as one sentence."""
    return f"{claim(spec, finding)}: {conclusion(finding)}{needed(finding)}."


def headline(analysis: Analysis) -> Finding | None:
    """The largest decided finding by the first main metric that has one; None if none is decided.

    Of a design of several axes an effect, main or interaction, else a comparison of two arms. Sizes
    are compared within one metric alone, as differences or log-ratios: there is no unit that two
    metrics share. Of a question with a focus, the comparison with the baseline, whatever it shows.
    """
    stated = _stated(analysis)
    if analysis.design is None and analysis.spec.focus is not None:
        return next(iter(stated), None)
    decided = [f for f in stated if f.decided]
    of_first = [f for f in decided if f.metric.key == decided[0].metric.key]
    return max(of_first, key=lambda f: f.size, default=None)


def _stated(analysis: Analysis) -> list[Finding]:
    """What the verdict may speak of, metric by metric: main effects and what is decided of the
    interactions, or comparisons; main metrics only, and nothing that another says already."""
    found = analysis.effects if analysis.design else analysis.comparisons
    return [
        f
        for metric in analysis.spec.metrics
        for f in found
        if f.metric.key == metric.key and metric.main and not f.repeats
        and (f.decided or not isinstance(f, Effect) or f.is_main)
    ]  # fmt: skip


def verdict(analysis: Analysis, most: int = 12) -> list[Finding]:
    """The findings that a report states in words, the `headline` first.

    The same share of `most` for each metric, since the tables hold all; of a design's effects those
    that are decided before others. Empty if no two arms share a seed.
    """
    first, rows = headline(analysis), {}
    for f in _stated(analysis):
        rows.setdefault(f.metric.key, []).append(f)
    each = max(1, most // max(len(rows), 1))
    found = []
    for row in rows.values():
        if analysis.design:
            row.sort(key=lambda f: not f.decided)
        row.sort(key=lambda f: f is not first)
        found += row[:each]
    return sorted(found, key=lambda f: f is not first)


def nothing_decided(analysis: Analysis) -> str:
    """What is said first where there are several findings and none is decided; else ""."""
    stated = _stated(analysis)
    if headline(analysis) is not None or len(stated) < 2:
        return ""
    kind = "main effects and interactions" if analysis.design else "comparisons"
    found = analysis.effects if analysis.design else analysis.comparisons
    count = sum(f.metric.main and not f.repeats for f in found)
    return f"Of {count} {kind}"


NOTHING_DECIDED = "none is decided"


def sentences(analysis: Analysis) -> list[str]:
    """The whole verdict, a sentence each."""
    nothing = nothing_decided(analysis)
    first = [f"{nothing}: {NOTHING_DECIDED}."] if nothing else []
    return first + [
        f"{claim(analysis.spec, f)}: {conclusion(f)}{remark(analysis, f)}."
        for f in verdict(analysis)
    ]
