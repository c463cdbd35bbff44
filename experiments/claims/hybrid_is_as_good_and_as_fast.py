"""A diffusion-GAN hybrid has diffusion's quality at a GAN's speed.

A denoising diffusion GAN of four large steps (Xiao 2022), a GAN and diffusion of cosine's schedule,
of equal training compute (`contestants`). Measured: Fréchet distances, and the processor time of
samples, compiled before. Supported: the hybrid has at most 1.1 times the distance of diffusion in
100 steps of DDIM, and its samples take at most 5 times as long as the GAN's. Contradicted: one is
not so.

As measured, the hybrid has by far the largest distance of the three: it makes a fifth of the
training steps, of 4.9 times the operations, with an MLP as its generator. On digits with a U-Net,
at equal operations too, it fares better: see ../results/few_steps.md.
"""

from contestants import denoising_gan, diffusion, distance, gan, seconds
from verdicts import AS_GOOD, column, judge, ratio_of

CLAIM = "A diffusion-GAN hybrid has diffusion's quality at a GAN's speed."
NETWORKS = {"diffusion": diffusion(), "GAN": gan(), "hybrid": denoising_gan()}
COUNTS = {"diffusion": 100, "gan": 1, "denoising_gan": 4}
COLUMNS = {"frechet": "distance", "seconds": "processor seconds of 1,000 samples"}


def measure(lab, trained, seed):
    calls = COUNTS[trained.run.config.method.name]
    return {
        "frechet": distance(lab, trained, seed, calls),
        "seconds": seconds(trained, seed, calls, max(50_000 // calls, 4000)),
    }


def verdict(raw):
    return judge(
        ratio_of(
            "distance, hybrid over diffusion",
            column(raw, "hybrid", "frechet"),
            column(raw, "diffusion", "frechet"),
            high=AS_GOOD,
            inside="the hybrid is as good as diffusion",
            outside="the hybrid is not as good as diffusion",
        ),
        ratio_of(
            "processor time of a sample, hybrid over GAN",
            column(raw, "hybrid", "seconds"),
            column(raw, "GAN", "seconds"),
            high=5.0,
            inside="it is about as fast as the GAN",
            outside="it is more than 5 times as slow as the GAN",
        ),
    )
