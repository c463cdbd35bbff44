"""Diffusion trains more stably than a GAN.

Ten seeds of a GAN and of diffusion, of equal training compute (`contestants`). Measured: the
Fréchet distance of the GAN in one pass and of diffusion in 100 steps of DDIM, and the variance of
the samples' features over that of the training images'. A training has collapsed where this ratio
is below 0.1. The spread is the mean over seeds of |log(distance / median of the arm)| (Brown &
Forsythe 1974). Supported: the spread of the GAN is larger, and at least a tenth of its trainings
collapse (interval of Clopper & Pearson 1934). Contradicted: one is not so.

As measured, none of the ten GANs collapsed. Of ten seeds that leaves a share of up to a third
possible, so that the second part could not have been contradicted: more than 40 seeds could.
"""

import numpy as np
from contestants import diffusion, distance, gan
from verdicts import column, difference_of, judge, share_of

CLAIM = "Diffusion trains more stably than a GAN: less spread over seeds, and no collapse."
SEEDS = 10
NETWORKS = {"diffusion": diffusion(), "GAN": gan()}
COLUMNS = {"frechet": "distance", "variance": "variance of the features over that of the data"}
COLLAPSED = 0.1


def measure(lab, trained, seed):
    calls = 1 if trained.run.config.method.name == "gan" else 100
    samples = lab.draw(trained, lab.scale.num_samples, seed, sampler="ddim", num_steps=calls)
    images = lab.images("plain").train.array()
    variances = [lab.features(trained, x).var(axis=0).sum() for x in (samples, images)]
    return {
        "frechet": distance(lab, trained, seed, calls),
        "variance": float(variances[0] / variances[1]),
    }


def spread(distances):
    """|log(distance / median)| of each seed."""
    logs = np.log(distances)
    return abs(logs - np.median(logs))


def verdict(raw):
    return judge(
        difference_of(
            "spread of log distance, GAN less diffusion",
            spread(column(raw, "GAN", "frechet")),
            spread(column(raw, "diffusion", "frechet")),
            low=0.0,
            inside="the GAN's distances are spread more widely over seeds",
            outside="the GAN's distances are spread less widely over seeds",
        ),
        share_of(
            "share of GANs that collapse",
            column(raw, "GAN", "variance") < COLLAPSED,
            low=0.1,
            inside="a tenth of the GANs or more collapse",
            outside="fewer than a tenth of the GANs collapse",
        ),
    )
