"""From the linear to the cosine schedule FID improves by 5 to 15%, with nothing else changed.

Both as published, with the betas of T = 1000 (Ho 2020; Nichol & Dhariwal 2021), the same network,
loss and data. Measured: the ratio of the Fréchet distances, cosine over linear, of samples drawn by
the ancestral sampler in all 1000 steps, and by DDIM in 100. Supported: both ratios lie between 0.85
and 0.95. Contradicted: one lies outside, on the side that the sentence tells.
"""

from laboratory import published
from verdicts import column, judge, ratio_of

CLAIM = "Linear to cosine improves FID by 5 to 15%, with nothing else changed."
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
                f"{COLUMNS[key]}, cosine over linear",
                column(raw, "cosine", key),
                column(raw, "linear", key),
                0.85,
                0.95,
                inside=f"by {words} cosine improves the distance by 5 to 15%",
                below=f"by {words} cosine improves the distance by more than 15%",
                above=f"by {words} cosine improves the distance by less than 5%, or not at all",
            )
            for key, words in (("ddpm", "DDPM"), ("ddim", "DDIM"))
        )
    )
