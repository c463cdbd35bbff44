"""Learning the density of training times reaches cosine's final distance in 1.4 times fewer steps.

InfoNoise (Raya 2026) says so of its gated entropy rate, learned online, on networks that predict
x0. Three trainings on the cosine schedule, log-SNR from 10 to -10, all predicting x0 on the simple
loss: 3,000 steps with uniform times, and 2,100 steps with uniform times and with times drawn by the
online rate, gate 0.2, without importance weights. The learning rate decays to the end of each.
Measured: ratios of Fréchet distances of samples in 50 steps of DDIM. Supported: the learned density
in 2,100 steps has at most the distance of the uniform one in 3,000, and less than the uniform one
in 2,100. Contradicted: one is not so.
"""

from laboratory import between_equal_ends
from verdicts import column, judge, ratio_of

CLAIM = (
    "Learning the density of training times reaches cosine's final distance in 1.4 times fewer"
    " steps."
)
_RATE = {
    "objective__time_sampling": "rate",
    "objective__gate": 0.2,
    "objective__importance_weights": False,
}
_X0, _FEWER = {"objective__prediction": "x0"}, {"training__num_steps": 2100}
NETWORKS = {
    "uniform, 3,000 steps": between_equal_ends("cosine", **_X0),
    "uniform, 2,100 steps": between_equal_ends("cosine", **_X0, **_FEWER),
    "learned, 2,100 steps": between_equal_ends("cosine", **_X0, **_FEWER, **_RATE),
}
COLUMNS = {"frechet": "distance, DDIM 50 steps"}


def measure(lab, trained, seed):
    return {"frechet": lab.distance(trained, seed, sampler="ddim", num_steps=50, grid="uniform")}


def verdict(raw):
    learned = column(raw, "learned, 2,100 steps", "frechet")
    return judge(
        ratio_of(
            "distance, learned 2,100 steps over uniform 3,000",
            learned,
            column(raw, "uniform, 3,000 steps", "frechet"),
            high=1.0,
            inside="the learned density is there in 1.4 times fewer steps",
            outside="the learned density is not there in 1.4 times fewer steps",
        ),
        ratio_of(
            "distance, learned 2,100 steps over uniform 2,100",
            learned,
            column(raw, "uniform, 2,100 steps", "frechet"),
            high=1.0,
            inside="it is better than the uniform density in as many steps",
            outside="it is worse than the uniform density in as many steps",
        ),
    )
