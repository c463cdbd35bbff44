"""Schedule and prediction type interact.

Cosine and linear in continuous time, log-SNR from 10 to -10, with networks that predict the noise,
v or x0, on the simple loss. Measured: what linear's Fréchet distance is over cosine's, DDIM in 50
steps, with v over with the noise, and with x0 over with the noise; where such a ratio of ratios is
below 1 its reciprocal, since the claim names no direction. Supported: both differ from 1 by more
than a tenth. Contradicted: one differs by less.
"""

from laboratory import between_equal_ends
from verdicts import AS_GOOD, column, either_way, judge, ratio_of

CLAIM = "Schedule and prediction type interact."
PREDICTIONS = {"eps": "the noise", "v": "v", "x0": "x0"}
NETWORKS = {
    f"{name}, {words}": between_equal_ends(name, objective__prediction=prediction)
    for name in ("cosine", "linear")
    for prediction, words in PREDICTIONS.items()
}
COLUMNS = {"frechet": "distance, DDIM 50 steps"}


def measure(lab, trained, seed):
    return {"frechet": lab.distance(trained, seed, sampler="ddim", num_steps=50, grid="uniform")}


def verdict(raw):
    def gain(words):
        linear, cosine = (
            column(raw, f"{name}, {words}", "frechet") for name in ("linear", "cosine")
        )
        return linear / cosine

    return judge(
        *(
            either_way(
                ratio_of(
                    f"linear over cosine, with {words} and with the noise",
                    gain(words),
                    gain("the noise"),
                    low=AS_GOOD,
                    inside=f"what cosine gains differs between {words} and the noise",
                    outside=f"what cosine gains hardly differs between {words} and the noise",
                )
            )
            for words in ("v", "x0")
        )
    )
