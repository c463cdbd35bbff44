"""A small U-Net on Fashion-MNIST, 28x28 in a frame of 32x32; TFDS fetches the data on first use.

    diffax train --config=configs/fashion_mnist.py --workdir=/tmp/fashion_mnist

Expect the loss to fall quickly at first and recognisable clothes in samples/ later. Take a GPU, or
on a CPU fewer steps: --config.training.num_steps=2000.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.data.pad_to = 32
    config.data.flip = True
    config.model.unet.channels = 32
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.objective.prediction = "v"
    config.training.num_steps = 20_000
    config.training.sample_every = 2000
    config.sampling.clip_x0 = 1.0
    return config
