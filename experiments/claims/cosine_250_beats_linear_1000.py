"""Cosine with T = 250 is better than linear with T = 1000.

Both as published and sampled by the ancestral sampler in all their steps. Measured: the ratio of
Fréchet distances, cosine over linear. Supported: it is below 1. Contradicted: it is above.
"""

from laboratory import published
from verdicts import column, judge, ratio_of

CLAIM = "Cosine with T = 250 is better than linear with T = 1000."
NETWORKS = {
    "cosine, T = 250": published("cosine", 250),
    "linear, T = 1000": published("linear", 1000),
}
COLUMNS = {"frechet": "distance, DDPM all steps"}


def measure(lab, trained, seed):
    steps = trained.run.config.schedule.num_steps
    return {"frechet": lab.distance(trained, seed, sampler="ddpm", num_steps=steps)}


def verdict(raw):
    cosine, linear = (column(raw, name, "frechet") for name in NETWORKS)
    return judge(
        ratio_of(
            "distance, cosine with T = 250 over linear with T = 1000",
            cosine,
            linear,
            high=1.0,
            inside="cosine with T = 250 has the smaller distance",
            outside="cosine with T = 250 has the larger distance",
        )
    )
