"""Latent diffusion cuts compute by about 50 times at like quality.

Measured by experiments/latent_compute.py, on Fashion-MNIST at 16x16: a U-Net in pixels, and without
its upper levels in the latents of autoencoders of factor 2 and 4. The quantity is the ratio of the
floating-point operations of the network's training, pixels over latents, to the lowest Fréchet
distance that both reach, of factor 4; the autoencoder's own cost stands beside. Supported: the
ratio lies between 25 and 100. Contradicted: it lies outside.
"""

from verdicts import column, judge, ratio_of

CLAIM = "Latent diffusion cuts compute by about 50 times at like quality."
EXPERIMENT = "experiments/latent_compute.py"
NETWORKS = {}
ARMS = ("factor 2", "factor 4")
COLUMNS = {
    "pixels": "operations in pixels",
    "network": "operations in latents, network alone",
    "whole": "operations in latents, with the autoencoder and encoding",
    "distance": "distance that both reach",
}


def verdict(raw):
    return judge(
        ratio_of(
            "operations to equal distance, pixels over latents of factor 4",
            column(raw, "factor 4", "pixels"),
            column(raw, "factor 4", "network"),
            25,
            100,
            inside="in latents the network takes about a fiftieth of the operations",
            below="in latents the network takes more than a twenty-fifth of the operations",
            above="in latents the network takes less than a hundredth of the operations",
        )
    )
