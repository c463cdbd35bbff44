"""Input scaling below 1 helps more as images grow.

The cosine schedule in continuous time, log-SNR from 10 to -10, and the same with the input scaled
by b = 0.5 (Chen 2023), on images of three sizes: the digits at 8x8, and each pixel repeated to
16x16 and 32x32, so that larger images say no more; Fashion-MNIST resized. What is predicted is x0:
the small network is narrower than the larger images have pixels, whose noise it could not pass on.
Measured: Fréchet distances of DDIM samples in 50 steps, repeated pixels averaged again, so that one
classifier judges all sizes of the digits. Supported: at the largest size b = 0.5 has a smaller
distance than b = 1, and the ratio of the two is smaller there than at the smallest size.
Contradicted: one of these goes the other way.
"""

from laboratory import between_equal_ends
from verdicts import column, judge, ratio_of

CLAIM = "Input scaling below 1 helps more as images grow."
SIZES = {"small": "8x8", "middle": "16x16", "large": "32x32"}
NETWORKS = {
    f"{words}, b = {b:g}": between_equal_ends(
        "cosine", data=kind, schedule__input_scale=b, objective__prediction="x0"
    )
    for kind, words in SIZES.items()
    for b in (1.0, 0.5)
}
COLUMNS = {"frechet": "distance, DDIM 50 steps"}


def measure(lab, trained, seed):
    return {"frechet": lab.distance(trained, seed, sampler="ddim", num_steps=50)}


def verdict(raw):
    ratios = {
        words: column(raw, f"{words}, b = 0.5", "frechet")
        / column(raw, f"{words}, b = 1", "frechet")
        for words in SIZES.values()
    }
    small, large = ratios["8x8"], ratios["32x32"]
    return judge(
        ratio_of(
            "distance at 32x32, b = 0.5 over b = 1",
            large,
            large**0,
            high=1.0,
            inside="at 32x32 b = 0.5 helps",
            outside="at 32x32 b = 0.5 harms",
        ),
        ratio_of(
            "that ratio at 32x32 over that at 8x8",
            large,
            small,
            high=1.0,
            inside="it helps more than at 8x8",
            outside="it helps less than at 8x8",
        ),
    )
