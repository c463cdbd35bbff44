"""Flow matching gives better samples than the cosine schedule at equal compute.

Flow matching is here the rectified-flow schedule with the prediction u = eps - x0 and logit-normal
training times without importance weights (Esser 2024); cosine predicts the noise, or v, on the
simple loss with stratified times. All in continuous time, log-SNR from 10 to -10, the same network,
as many steps. Measured: ratios of Fréchet distances of samples in 25 steps of DDIM (which is
Euler's method on the flow), uniform in the t of each schedule. Supported: flow matching has the
smaller distance than cosine with either prediction. Contradicted: it has the larger one than one.
"""

from laboratory import between_equal_ends
from verdicts import column, judge, ratio_of

CLAIM = "Flow matching gives better samples than the cosine schedule at equal compute."
NETWORKS = {
    "flow matching": between_equal_ends(
        "rectified_flow",
        objective__prediction="flow",
        objective__time_sampling="logit_normal",
        objective__importance_weights=False,
    ),
    "cosine, noise": between_equal_ends("cosine"),
    "cosine, v": between_equal_ends("cosine", objective__prediction="v"),
}
STEPS = (10, 25)
COLUMNS = {f"frechet-{steps}": f"distance, DDIM {steps} steps" for steps in STEPS}


def measure(lab, trained, seed):
    options = dict(sampler="ddim", grid="uniform")
    return {
        f"frechet-{steps}": lab.distance(trained, seed, num_steps=steps, **options)
        for steps in STEPS
    }


def verdict(raw):
    return judge(
        *(
            ratio_of(
                f"distance in 25 steps, flow matching over {other}",
                column(raw, "flow matching", "frechet-25"),
                column(raw, other, "frechet-25"),
                high=1.0,
                inside=f"flow matching is better than {other}",
                outside=f"flow matching is worse than {other}",
            )
            for other in NETWORKS
            if other != "flow matching"
        )
    )
