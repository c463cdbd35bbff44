"""What several networks say of the same pair of arms: a ranking is settled only where they agree.

A network whose features judge samples has tastes of its own, and may favour what it was trained on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffax.ablation.findings import Finding

DECIDED = ("lower", "higher")


@dataclass(frozen=True)
class Opinion:
    """The outcome of a comparison by the metric `label`, over the features of `network`."""

    network: str
    label: str
    outcome: str


def hear(findings: Sequence[Finding]) -> list[list[Opinion]]:
    """For each finding the opinions of all on the same subject by the same measure.

    Empty for a metric of no pretrained network.
    """
    said: list[list[Opinion]] = []
    heard: dict[Hashable, list[Opinion]] = {}
    for c in findings:
        shared = heard.setdefault((c.metric.measure, c.subject), [])
        if c.metric.network:
            shared.append(Opinion(c.metric.network, c.metric.label, c.outcome))
        said.append(shared if c.metric.network else [])
    return said


def networks(opinions: Sequence[Opinion]) -> list[str]:
    """Those that have an opinion, each once."""
    return list(dict.fromkeys(opinion.network for opinion in opinions))


def settled(opinions: Sequence[Opinion]) -> bool:
    """Whether there are two networks or more and all decide, after correction, alike."""
    outcomes = {opinion.outcome for opinion in opinions}
    return len(networks(opinions)) > 1 and len(outcomes) == 1 and outcomes <= {*DECIDED}
