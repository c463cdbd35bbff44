"""Diffusion stands smaller data sets better than a GAN.

GANs and diffusion (`contestants`) trained on all, a third and a tenth of the training images, for
equally many operations. Measured: the Fréchet distance to all training images, of diffusion in 100
steps of DDIM; and the share of samples that copy, whose nearest image of those trained on is less
than a third as far as the second nearest (Yoon 2023; Gu 2023). Supported: from all images to a
third, and to a tenth, the distance grows less with diffusion than with the GAN, and at a tenth
diffusion has no larger share of copies. Contradicted: one is not so.
"""

import numpy as np
import scipy.spatial
from contestants import diffusion, distance, gan
from verdicts import column, difference_of, judge, ratio_of

CLAIM = "Diffusion stands smaller data sets better than a GAN."
SIZES = {"all": "plain", "a third": "third", "a tenth": "tenth"}
NETWORKS = {
    f"{name}, {size}": make(data)
    for name, make in (("diffusion", diffusion), ("GAN", gan))
    for size, data in SIZES.items()
}
COLUMNS = {"frechet": "distance", "copies": "share of copies"}


def measure(lab, trained, seed):
    calls = 1 if trained.run.config.method.name == "gan" else 100
    options = {"sampler": "ddim", "num_steps": calls}
    samples = lab.draw(trained, lab.scale.num_samples, seed, **options)
    return {
        "frechet": distance(lab, trained, seed, calls),
        "copies": copies(samples, trained.dataset.train.array()),
    }


def copies(samples, images):
    """The share of samples of which the nearest image is less than a third as far as the next."""
    rows = [np.asarray(x).reshape(len(x), -1) for x in (samples, images)]
    nearest = scipy.spatial.cKDTree(rows[1]).query(rows[0], k=2)[0]
    return float(np.mean(nearest[:, 0] < nearest[:, 1] / 3))


def verdict(raw):
    def growth(name, size):
        return column(raw, f"{name}, {size}", "frechet") / column(raw, f"{name}, all", "frechet")

    return judge(
        *(
            ratio_of(
                f"growth of the distance from all images to {size}, GAN over diffusion",
                growth("GAN", size),
                growth("diffusion", size),
                low=1.0,
                inside=f"with {size} of the images the GAN loses more",
                outside=f"with {size} of the images the GAN loses less",
            )
            for size in ("a third", "a tenth")
        ),
        difference_of(
            "share of copies at a tenth, diffusion less GAN",
            column(raw, "diffusion, a tenth", "copies"),
            column(raw, "GAN, a tenth", "copies"),
            high=0.0,
            inside="diffusion copies no more of them",
            outside="diffusion copies more of them",
        ),
    )
