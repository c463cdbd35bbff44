"""Scores of samples against reference data; every number comes with what it depends on.

reference = Reference.of(diffax.data.load({"name": "digits"}))
score(samples, reference, ["frechet", "kid", "prdc"])

A score is a measure over the features of a network. Over Inception's the Fréchet distance is FID;
over another network's it is not, and has another name.
"""

from diffax.scoring.measures import MEASURES, NUM_PAIRED, Measure, Reading, Seen
from diffax.scoring.reference import Reference, Samples, read_samples
from diffax.scoring.table import (
    OTHER_NUMBERS,
    PUBLISHED,
    Number,
    Planned,
    Score,
    check_names,
    measure,
    measurements,
    numbers,
    plan,
    prepare,
    register,
    score,
    scores,
)

__all__ = [
    "MEASURES",
    "NUM_PAIRED",
    "Number",
    "OTHER_NUMBERS",
    "PUBLISHED",
    "Measure",
    "Planned",
    "Reading",
    "Reference",
    "Samples",
    "Score",
    "Seen",
    "check_names",
    "measure",
    "measurements",
    "numbers",
    "plan",
    "prepare",
    "read_samples",
    "register",
    "score",
    "scores",
]
