"""A schedule from the data's covariance alone is as good as one from a network.

The spectral rate is the entropy rate of Gaussian data of the same covariance, in closed form
(`rates.spectral`); the other one is estimated of a network that was trained on cosine before, on
held-out data (`rates.entropy`, Stancevic 2025). Benita 2025 and others make schedules of the data's
spectrum. Networks are trained on the schedules of equal rate, log-SNR from 10 to -10, on the simple
loss, and cosine beside them. Measured: ratios of Fréchet distances of samples in 50 steps of DDIM,
uniform in the t of each schedule, and of Var(VLB) along it; the bound along the log-SNR-linear
schedule. Supported: with the spectral schedule both are at most 1.1 times those with the network's,
and the bound at most 0.05 bits/dim above. Contradicted: one of these is not so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from laboratory import ENDS, Rated, between_equal_ends
from verdicts import AS_GOOD, column, difference_of, judge, ratio_of

from diffax import evaluation, rates, training

CLAIM = "A schedule from the data's covariance alone is as good as one from a network."
MARGIN = 0.05  # bits/dim
COSINE = between_equal_ends("cosine")
_ENDS = {key.removeprefix("schedule."): value for key, value in ENDS.items()}


def spectral(trained, seed):
    """Of the training images; it asks no network."""
    del seed
    covariance = rates.covariance(trained.dataset.train.array())[1]
    return rates.spectral(np.linalg.eigvalsh(covariance), **_ENDS)


def of_network(trained, seed):
    """The network's entropy rate on the held-out images."""
    run, x0 = trained.run, jnp.asarray(trained.dataset.eval.array())
    predict = training.predictor(run.model, run.state.ema_params)
    return rates.entropy(predict, run.state.schedule, x0, jax.random.key(seed))


NETWORKS = {
    "spectral": between_equal_ends("from_rate")._replace(rated=Rated(COSINE, spectral)),
    "of a network": between_equal_ends("from_rate")._replace(rated=Rated(COSINE, of_network)),
    "cosine": COSINE,
}
COLUMNS = {
    "frechet": "distance, DDIM 50 steps",
    "frechet_cosine": "along cosine's levels",
    "variance": "Var(VLB), (bits/dim)²",
    "bpd": "bits/dim",
}


def measure(lab, trained, seed):
    found = evaluation.compare(trained.run, trained.dataset, seed)
    draws = dict(sampler="ddim", num_steps=50, grid="uniform")
    return {
        "frechet": lab.distance(trained, seed, **draws),
        "frechet_cosine": lab.distance(trained, seed, schedule="cosine", **draws),
        "variance": found["bpd_own"]["vlb_variance"],
        "bpd": found["bpd"]["bpd"],
    }


def verdict(raw):
    def of(key):
        return (column(raw, name, key) for name in ("spectral", "of a network"))

    ratios = {"frechet": "distance", "variance": "Var(VLB)"}
    return judge(
        *(
            ratio_of(
                f"{words}, spectral over a network's",
                *of(key),
                high=AS_GOOD,
                inside=f"the {words} of the spectral schedule is as low",
                outside=f"the {words} of the spectral schedule is higher",
            )
            for key, words in ratios.items()
        ),
        difference_of(
            "bits/dim, spectral less a network's",
            *of("bpd"),
            high=MARGIN,
            inside=f"its bits/dim are at most {MARGIN} more",
            outside=f"its bits/dim are more than {MARGIN} higher",
        ),
    )
