"""A variational diffusion model of CIFAR-10 without augmentation: Kingma et al. 2021.

    diffax train --config=configs/published/vdm_cifar10.py --workdir=runs/vdm
    diffax evaluate --workdir=runs/vdm --metrics=bpd

Published: 2.64 bits/dim, as the authors' repository quotes the paper, whose checkpoint gives 2.637;
the paper's table has 2.65, from memory, after 10 million steps.
Hardware: theirs was a TPU v3-8; how long is not said there, weeks by the number of steps.
Run here: the network's parameters are counted and a narrowed copy trains for a step, in a test.
Not theirs: their network is also given Fourier features of its input, which matter for the last
tenths of a bit; diffax's U-Net has none, so expect a worse bound. AdamW's second decay is optax's
0.999, theirs 0.99. As in their public config the schedule's two ends are learned; here its shape
is too, as in their paper.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "cifar10"
    config.model.unet.channels = 128
    config.model.unet.channel_mults = (1,)  # 32x32 throughout
    config.model.unet.num_blocks = 32
    config.model.unet.attention_resolutions = ()  # in the middle alone
    config.model.unet.head_width = 128
    config.model.unet.embedding = "add"
    config.model.unet.dropout = 0.1
    config.schedule.name = "learned"
    config.schedule.log_snr_max = 13.3
    config.schedule.log_snr_min = -5.0
    config.schedule.learn_endpoints = True
    config.objective.weighting = "elbo"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.9999
    config.training.batch_size = 128
    config.training.num_steps = 10_000_000
    config.training.eval_every = 100_000
    config.training.sample_every = 100_000
    config.training.checkpoint_every = 10_000
    config.sampling.sampler = "ddpm"
    config.sampling.num_steps = 1000
    return config
