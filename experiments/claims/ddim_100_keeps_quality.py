"""A model trained at T = 1000 and sampled by DDIM with 100 steps keeps its quality.

The linear and the cosine schedule as published. Measured: for each the ratio of the Fréchet
distance by DDIM in 100 steps to that of the same network by the ancestral sampler in all 1000.
Supported: both ratios are at most 1.1. Contradicted: one is larger.
"""

from laboratory import published
from verdicts import AS_GOOD, column, judge, ratio_of

CLAIM = "A model trained at T = 1000 and sampled by DDIM with 100 steps keeps its quality."
NETWORKS = {"linear": published("linear"), "cosine": published("cosine")}
COLUMNS = {"ddpm": "distance, DDPM 1000 steps", "ddim": "distance, DDIM 100 steps"}


def measure(lab, trained, seed):
    return {
        "ddpm": lab.distance(trained, seed, sampler="ddpm", num_steps=1000),
        "ddim": lab.distance(trained, seed, sampler="ddim", num_steps=100),
    }


def verdict(raw):
    return judge(
        *(
            ratio_of(
                f"distance, DDIM 100 over DDPM 1000, {name}",
                column(raw, name, "ddim"),
                column(raw, name, "ddpm"),
                high=AS_GOOD,
                inside=f"with {name} DDIM in 100 steps keeps the quality",
                outside=f"with {name} DDIM in 100 steps loses more than a tenth",
            )
            for name in NETWORKS
        )
    )
