"""With the linear schedule the signal is not destroyed at T; zero terminal SNR repairs this.

Ho 2020's linear betas and Rombach 2022's ("scaled linear"), T = 1000, each with and without the
rescaling of Lin 2023; trailing steps of DDIM, 50. What is predicted is x0: eps is undefined at zero
SNR, and the small network is narrower than these images have pixels, whose noise it could not pass
on, as eps and v ask. The data are images of which half are negatives, so that the mean brightness
has two far modes, which a sampler that starts from pure noise misses if training never saw pure
noise. Measured: the share of the signal's amplitude left at T, sqrt(alpha_bar_T), exactly; and the
standard deviation of the mean brightness of samples over that of the data. Supported: signal is
left, the samples' brightness varies less than the data's with the linear schedule, and more with
zero terminal SNR than without. How much is missed depends on the size of the images: noise of N
values averages to 1 / sqrt(N), the leaked brightness does not shrink. Rombach's schedule is shown
beside it and decides nothing.
"""

import numpy as np
from laboratory import published
from verdicts import column, exact, judge, ratio_of

CLAIM = (
    "With the linear schedule the signal is not destroyed at T; zero terminal SNR repairs mean"
    " brightness."
)
_LATENT = {"schedule__beta_min": 0.00085, "schedule__beta_max": 0.012}


def _network(name, repaired, **more):
    more |= {"objective__prediction": "x0", "schedule__zero_terminal_snr": repaired}
    return published(name, data="half inverted", **more)


NETWORKS = {
    "linear": _network("linear", False),
    "linear, zero terminal SNR": _network("linear", True),
    "scaled linear": _network("quadratic", False, **_LATENT),
    "scaled linear, zero terminal SNR": _network("quadratic", True, **_LATENT),
}
COLUMNS = {"left": "sqrt(alpha_bar) at T", "spread": "deviation of brightness over the data's"}


def measure(lab, trained, seed):
    samples = lab.draw(
        trained, lab.scale.num_samples, seed, sampler="ddim", num_steps=50, grid="trailing"
    )
    images = lab.images(trained.kind).train.array()
    drawn, real = (np.std(x.mean(axis=(1, 2, 3))) for x in (samples, images))
    schedule = trained.run.state.schedule
    return {
        "left": float(schedule.alpha(schedule.num_steps - 1)),
        "spread": float(drawn / real),
    }


def verdict(raw):
    plain, repaired = (column(raw, name, "spread") for name in list(NETWORKS)[:2])
    return judge(
        exact(
            "sqrt(alpha_bar) at T, linear",
            float(column(raw, "linear", "left")[0]),
            low=1e-6,
            inside="the linear schedule leaves signal at T",
            outside="the linear schedule leaves no signal at T",
        ),
        ratio_of(
            "deviation of brightness, linear over the data",
            plain,
            np.ones_like(plain),
            high=1.0,
            inside="brightness varies less than in the data",
            outside="brightness varies more than in the data",
        ),
        ratio_of(
            "deviation of brightness, zero terminal SNR over linear",
            repaired,
            plain,
            low=1.0,
            inside="zero terminal SNR widens it",
            outside="zero terminal SNR narrows it",
        ),
    )
