"""Improved DDPM on ImageNet 64x64, unconditional: Nichol & Dhariwal 2021, L_hybrid, cosine.

    diffax train --config=configs/published/improved_ddpm_imagenet64.py --workdir=runs/imagenet64
    diffax evaluate --workdir=runs/imagenet64 --metrics=bpd,fid

Published (1,500,000 steps): FID 19.2, 3.57 bits/dim; 120M parameters, all of them from memory.
Their checkpoint's name says 100M.
Hardware: not published for this model. By XLA's count a step has 5.9 times the operations of
DDPM's on CIFAR-10, so that 8 A100 and gradients by bfloat16 are a sensible least.
Data: TFDS's downsampled_imagenet/64x64, 1,281,149 images, 16 GB as bytes.
Run here: the network's parameters are counted and a narrowed copy trains for a step, in a test.
Not theirs: their attention has 4 heads whatever the width (96 wide at 16x16, 128 at 8x8); diffax
sets the width of a head, 96 here, and so has one head of 512 channels at 8x8. The network is
conditioned on the log-SNR, not on the step.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "downsampled_imagenet/64x64"
    config.data.eval_split = "validation"
    config.model.unet.channels = 128
    config.model.unet.channel_mults = (1, 2, 3, 4)
    config.model.unet.num_blocks = 3
    config.model.unet.attention_resolutions = (16, 8)
    config.model.unet.head_width = 128
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
    config.training.num_steps = 1_500_000
    config.training.sample_every = 50_000
    config.training.checkpoint_every = 10_000
    config.sampling.sampler = "ddpm"
    config.sampling.variance = "learned"
    config.sampling.num_steps = 250
    config.sampling.clip_x0 = 1.0
    config.evaluation.num_samples = 50_000
    config.evaluation.metrics = ("fid",)
    return config
