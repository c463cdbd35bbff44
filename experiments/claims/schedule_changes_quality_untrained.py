"""One can change the schedule without retraining and still see a measurable quality shift.

Networks of the cosine schedule in continuous time, log-SNR from 10 to -10, conditioned on the
log-SNR, sampled by DDIM in 25 steps uniform in t of the cosine, the linear, the sigmoid and the
log-SNR-linear schedule. Measured: ratios of Fréchet distances of the same network, another schedule
over cosine; where a ratio is below 1 its reciprocal, since the claim names no direction. Supported:
each of the three differs by more than a tenth. Contradicted: one differs by less.
"""

from laboratory import between_equal_ends
from verdicts import AS_GOOD, column, either_way, judge, ratio_of

CLAIM = "One can change the schedule without retraining and still see a measurable quality shift."
NETWORKS = {"cosine": between_equal_ends("cosine")}
OTHERS = {"linear": "linear", "sigmoid": "sigmoid", "linear_logsnr": "log-SNR-linear"}
COLUMNS = {"cosine": "distance, DDIM 25 steps along cosine"} | {
    name: f"along {words}" for name, words in OTHERS.items()
}


def measure(lab, trained, seed):
    return {
        name: lab.distance(
            trained, seed, sampler="ddim", num_steps=25, grid="uniform", schedule=name
        )
        for name in COLUMNS
    }


def verdict(raw):
    return judge(
        *(
            either_way(
                ratio_of(
                    f"distance, along {words} and cosine",
                    column(raw, "cosine", name),
                    column(raw, "cosine", "cosine"),
                    low=AS_GOOD,
                    inside=f"{words} shifts the quality by more than a tenth",
                    outside=f"{words} shifts it by less than a tenth",
                )
            )
            for name, words in OTHERS.items()
        )
    )
