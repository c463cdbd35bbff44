"""GAN training is cheaper per epoch and needs more restarts.

Ten seeds of a GAN and of diffusion, of networks of like size (`contestants`). Measured: the
floating-point operations of a training step per example, counted by XLA; and the Fréchet distance.
A training is to be restarted where its distance is more than 1.5 times the median of its arm.
Supported: the GAN has fewer operations per example, and at least a tenth of its trainings are to be
restarted (interval of Clopper & Pearson 1934). Contradicted: one is not so.

As measured, an epoch of the GAN takes three times the operations: two networks, each asked more
than once in a step, and the penalties' second derivatives. No seed was to be restarted; as in
diffusion_trains_more_stably ten seeds can't contradict that a tenth are.
"""

import numpy as np
from contestants import diffusion, distance, gan, operations
from verdicts import column, exact, judge, share_of

CLAIM = "GAN training is cheaper per epoch and needs more restarts."
SEEDS = 10
NETWORKS = {"diffusion": diffusion(), "GAN": gan()}
COLUMNS = {"operations": "operations of a training step per example", "frechet": "distance"}
RESTART = 1.5


def measure(lab, trained, seed):
    calls = 1 if trained.run.config.method.name == "gan" else 100
    return {
        "operations": operations(trained),
        "frechet": distance(lab, trained, seed, calls),
    }


def verdict(raw):
    cost = {name: np.mean(column(raw, name, "operations")) for name in NETWORKS}
    distances = column(raw, "GAN", "frechet")
    return judge(
        exact(
            "operations of an epoch, GAN over diffusion",
            cost["GAN"] / cost["diffusion"],
            low=0.0,
            high=1.0,
            inside="an epoch of the GAN is cheaper",
            outside="an epoch of the GAN is dearer",
        ),
        share_of(
            "share of GANs to be restarted",
            distances > RESTART * np.median(distances),
            low=0.1,
            inside="a tenth of its trainings or more are to be restarted",
            outside="fewer than a tenth of its trainings are to be restarted",
        ),
    )
