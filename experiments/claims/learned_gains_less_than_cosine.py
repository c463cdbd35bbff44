"""The gap between linear and cosine is larger than that between cosine and learned.

Three schedules in continuous time between equal ends, log-SNR 10 and -10, so that they differ in
shape alone; simple loss; the learned one follows the variance of the bound (Kingma 2021). Measured:
Fréchet distances of DDIM samples in 100 steps, uniform in t. A gap is a ratio of distances, and
that from linear to cosine is cosine's gain. Supported: it is larger than the factor between cosine
and learned, whichever of the two is better. Contradicted: it is smaller than that factor.
"""

from laboratory import between_equal_ends
from verdicts import column, judge, ratio_of

CLAIM = "The gap between linear and cosine is larger than that between cosine and learned."
NETWORKS = {name: between_equal_ends(name) for name in ("linear", "cosine", "learned")}
COLUMNS = {"frechet": "distance, DDIM 100 steps"}


def measure(lab, trained, seed):
    return {"frechet": lab.distance(trained, seed, sampler="ddim", num_steps=100)}


def verdict(raw):
    linear, cosine, learned = (column(raw, name, "frechet") for name in NETWORKS)
    return judge(
        ratio_of(
            "linear over cosine, over cosine over learned",
            (linear / cosine),
            (cosine / learned),
            1.0,
            inside="cosine gains more on linear than learned gains on cosine",
            outside="learned gains more on cosine than cosine gains on linear",
        ),
        ratio_of(
            "linear over cosine, over learned over cosine",
            linear / cosine,
            learned / cosine,
            1.0,
            inside="cosine gains more on linear than learned loses on cosine",
            outside="learned loses more on cosine than cosine gains on linear",
        ),
    )
