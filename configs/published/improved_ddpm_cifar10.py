"""Improved DDPM on CIFAR-10: Nichol & Dhariwal 2021, L_hybrid with the cosine schedule.

    diffax train --config=configs/published/improved_ddpm_cifar10.py --workdir=runs/improved
    diffax evaluate --workdir=runs/improved --metrics=bpd,fid

Published (500,000 steps): FID 3.19, 3.17 bits/dim; both are from memory, of the paper's table of
objectives. Their checkpoint's name says 50M parameters.
Hardware: not published for this model. By XLA's count a step has 1.4 times the operations of
DDPM's.
Run here: the network's parameters are counted and a narrowed copy trains for a step, in a test.
Not theirs: their attention has 4 heads at 16x16 and at 8x8, which 256 channels make 64 wide, as
here. The network is conditioned on the log-SNR, not the step.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.unet.channels = 128
    config.model.unet.channel_mults = (1, 2, 2, 2)
    config.model.unet.num_blocks = 3
    config.model.unet.attention_resolutions = (16, 8)
    config.model.unet.head_width = 64
    config.model.unet.dropout = 0.3
    config.schedule.name = "cosine"
    config.schedule.num_steps = 4000
    config.objective.learned_variance = True
    config.objective.hybrid_weight = 1e-3
    config.objective.time_sampling = "uniform"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.9999
    config.training.batch_size = 128
    config.training.num_steps = 500_000
    config.training.sample_every = 20_000
    config.training.checkpoint_every = 10_000
    config.sampling.sampler = "ddpm"
    config.sampling.variance = "learned"
    config.sampling.num_steps = 4000
    config.sampling.clip_x0 = 1.0
    config.evaluation.num_samples = 50_000
    config.evaluation.metrics = ("fid",)
    return config
