"""What an ablation asks: its question, its metrics, its arms; and how its numbers are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffax.evaluation import Metric
from diffax.report import statistics
from diffax.report.formatting import fixed, one_line, prefix, ratio, short_name, signed, significant
from diffax.report.statistics import Difference, Interval


@dataclass(frozen=True)
class Scale:
    """How a metric is averaged, compared and written."""

    mean: Callable[[Sequence[float]], float]
    interval: Callable[..., Interval]
    compare: Callable[..., Difference]
    effect: Callable[[float, float], float]
    sign: str  # between the two arms that are compared
    average: str
    value_text: Callable[[float, int], str]
    effect_text: Callable[[float, int], str]


SCALES = {
    "linear": Scale(
        lambda values: float(np.mean(values)),
        statistics.mean_interval,
        statistics.paired_difference,
        lambda a, b: a - b,
        "−",
        "mean",
        fixed,
        signed,
    ),
    "log": Scale(
        lambda values: float(np.exp(np.mean(np.log(values)))),
        statistics.geometric_interval,
        statistics.paired_ratio,
        lambda a, b: a / b,
        "÷",
        "geometric mean",
        significant,
        ratio,
    ),
}


def value_text(metric: Metric) -> Callable[[float], str]:
    """A value of a metric -> how it is written."""
    return lambda value: SCALES[metric.scale].value_text(value, metric.digits)


def effect_text(metric: Metric) -> Callable[[float], str]:
    """A difference or ratio of a metric -> how it is written."""
    return lambda effect: SCALES[metric.scale].effect_text(effect, metric.digits)


@dataclass(frozen=True)
class Spec:
    """What an ablation asks and how its report is to be read.

    Attributes:
      title, question: shown at the top.
      baseline: the arm that others are compared to.
      metrics: the first one is the headline.
      command: how to run the ablation again.
      config: the configuration common to all arms, nested, JSON-able.
      focus: the arm that the question is about. Then it is compared to every other arm, the
        baseline first; without it every arm is compared to the baseline.
      arms: the arms in order of display; () for those of the results, as they come.
      seeds: the seeds that were planned; () for those of the results.
      labels: arm -> name in the report; an arm without one goes by its `texts.short_name`.
      design: arm -> {config key: level}, the values in which arms differ, as text. Where each arm
        is another combination of the levels of two keys or more, the report has the effect of each
        key and how they interact; see `factorial`.
      subject: what was studied, listed at the top: data, network, length of training.
      remarks: what a reader must know first: sentences that stand at the top.
      method: a paragraph or more on what was done the same in all arms.
      environment: anything to list beside machine and versions, e.g. {"device": "2 CPU cores"}.
      real_samples: what the samples should look like; as a result's "samples".
      confidence: of every interval; Holm's corrected p is held against 1 - confidence.
    """

    title: str
    question: str
    baseline: str
    metrics: Sequence[Metric]
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    focus: str | None = None
    arms: Sequence[str] = ()
    seeds: Sequence[int] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    design: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    subject: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    method: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    real_samples: Any = None
    confidence: float = 0.95

    def label(self, arm: str) -> str:
        return one_line(self.labels.get(arm) or short_name(arm, self.arms))

    def common_label(self, arms: Sequence[str]) -> str:
        """The name of what some arms have in common: the levels of `design` that they share."""
        own = dict(self.design.get(arms[0], {}))
        for arm in arms[1:]:
            other = self.design.get(arm, {})
            own = {key: level for key, level in own.items() if other.get(key) == level}
        if own and not any(arm in self.labels for arm in arms):
            return ", ".join(self.level(key, level) for key, level in own.items())
        return "all arms" if set(arms) == set(self.arms) else self.label(arms[0])

    def level(self, key: str, level: str) -> str:
        """The name of a level of `design`, for people: a word alone where that says enough."""
        values = {k: set(levels) for k, levels in self.varied.items()}
        return one_line(f"{prefix(key, values)}{level}")

    @property
    def varied(self) -> dict[str, list[str]]:
        """Key -> its levels, of the keys in which arms differ."""
        found: dict[str, dict[str, None]] = {}
        for own in self.design.values():
            for key, level in own.items():
                found.setdefault(key, {})[level] = None
        return {key: list(levels) for key, levels in found.items()}

    @property
    def percent(self) -> str:
        return f"{100 * self.confidence:g}%"
