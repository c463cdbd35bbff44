"""EDM on CIFAR-10, unconditional, with the DDPM++ network: Karras et al. 2022.

    diffax train --config=configs/published/edm_cifar10.py --workdir=runs/edm
    diffax evaluate --workdir=runs/edm --metrics=fid

Published: FID 1.97 with 35 calls of the network (18 steps of Heun's method), the least of three
sets of 50,000 samples; 55.7M parameters. (The number of parameters is from memory.)
Hardware: theirs was 8 V100, about two days for 200 million images.
Run here: the network's parameters are counted and a narrowed copy trains for a step, in a test.
Not theirs: no augmentation but flips, where they have geometric ones that the network is
conditioned on, with probability 0.12: expect a worse FID. The preconditioning for data of deviation
0.5 is v prediction here, which is theirs for data of deviation 1. The network is diffax's U-Net of
equal size: no scaled skips, no filters in resampling.
"""

import math

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.unet.channels = 128
    config.model.unet.channel_mults = (2, 2, 2)
    config.model.unet.num_blocks = 4
    config.model.unet.attention_resolutions = (16,)
    config.model.unet.head_width = 256  # one head
    config.model.unet.dropout = 0.13
    # log sigma ~ N(-1.2, 1.2^2), which is log-SNR ~ N(2.4, 2.4^2), from sigma 0.002 to 80.
    config.schedule.name = "edm"
    config.schedule.mean = 2.4
    config.schedule.std = 2.4
    config.schedule.log_snr_max = -2 * math.log(0.002)
    config.schedule.log_snr_min = -2 * math.log(80.0)
    config.objective.prediction = "v"
    config.objective.time_sampling = "uniform"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 19_531  # 10 million images
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.5 ** (512 / 500_000)  # half of it is half a million images old
    config.training.batch_size = 512
    config.training.num_steps = 390_625
    config.training.sample_every = 10_000
    config.training.checkpoint_every = 5_000
    config.sampling.sampler = "heun"
    config.sampling.grid = "karras"
    config.sampling.num_steps = 18
    config.evaluation.num_samples = 50_000
    config.evaluation.metrics = ("fid",)
    return config
