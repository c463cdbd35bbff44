"""A GAN drops modes, and diffusion covers them.

GANs and diffusion of equal training compute (`contestants`), on digits and on 25 round modes in the
plane. Measured: recall of 1,000 samples over the classifier's features (Kynkäänniemi 2019, 5
neighbours); and of 10,000 points the number of modes that have one within 3 of their deviations,
and the Kullback-Leibler divergence of the modes' shares from equal ones. Diffusion in 100 steps of
DDIM. Supported: the GAN has lower recall, at least one mode fewer, and the larger divergence.
Contradicted: one is not so.

As measured, neither resolves the 25 modes: 0.98 of the points of both lie off every mode, so that
all have some on them. What each keeps after eight times as many examples, and where diffusion
predicts v, is in ../results/few_steps.md.
"""

from contestants import MODES, diffusion, gan
from laboratory import Network
from verdicts import column, difference_of, judge, ratio_of

from diffax import Generator
from diffax.evaluation import run as evaluation

CLAIM = "A GAN drops modes, and diffusion covers them."
NETWORKS = {
    "diffusion": diffusion(),
    "GAN": gan(),
    "diffusion, 25 modes": Network({**diffusion().overrides, **MODES}),
    "GAN, 25 modes": Network({**gan().overrides, **MODES}),
}
COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "modes_kept": "modes kept",
    "modes_kl": "divergence of the modes' shares, nats",
    "off_modes": "share off every mode",
}


def measure(lab, trained, seed):
    calls = 1 if trained.run.config.method.name == "gan" else 100
    options = {"sampler": "ddim", "num_steps": calls}
    if trained.dataset.mixture is None:
        found = lab.prdc(trained, lab.draw(trained, lab.scale.num_samples, seed, **options))
        return {"precision": found.precision, "recall": found.recall}
    points = Generator(trained.run, 1000, num_devices=1)(10_000, seed, **options)
    found = evaluation.evaluate(trained.run, trained.dataset, ("modes",), seed, points)["modes"]
    return {key: found[key] for key in ("modes_kept", "modes_kl", "off_modes")}


def verdict(raw):
    return judge(
        difference_of(
            "recall, GAN less diffusion",
            column(raw, "GAN", "recall"),
            column(raw, "diffusion", "recall"),
            high=0.0,
            inside="the GAN has lower recall",
            outside="the GAN has higher recall",
        ),
        difference_of(
            "modes kept of 25, GAN less diffusion",
            column(raw, "GAN, 25 modes", "modes_kept"),
            column(raw, "diffusion, 25 modes", "modes_kept"),
            high=-1.0,
            inside="it drops a mode or more that diffusion keeps",
            outside="it drops no mode that diffusion keeps",
        ),
        ratio_of(
            "divergence of the modes' shares, GAN over diffusion",
            column(raw, "GAN, 25 modes", "modes_kl"),
            column(raw, "diffusion, 25 modes", "modes_kl"),
            low=1.0,
            inside="its shares of the modes are less equal",
            outside="its shares of the modes are more equal",
        ),
    )
