"""DDPM on CIFAR-10: Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models".

    diffax train --config=configs/published/ddpm_cifar10.py --workdir=runs/ddpm
    diffax evaluate --workdir=runs/ddpm --metrics=bpd,fid,inception_score

Published: FID 3.17, Inception score 9.46, at most 3.75 bits/dim; 35.7M parameters. (FID and score
are in the abstract, size and hours in appendix B; the bits/dim, of table 1, are from memory.)
Hardware: theirs was a TPU v3-8, 10.6 hours for 800,000 steps of batch 128.
Run here: the network's parameters are counted and a narrowed copy trains for a step, in a test;
the full network was timed on an H200 (experiments/results/accelerator.md). Never to the end.
Not theirs: the network is conditioned on the log-SNR, not on the step (that would be
model.unet.conditioning=step).
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
    config.model.unet.num_blocks = 2
    config.model.unet.attention_resolutions = (16,)
    config.model.unet.head_width = 256  # one head
    config.model.unet.embedding = "add"
    config.model.unet.dropout = 0.1
    config.schedule.name = "linear"
    config.schedule.num_steps = 1000
    config.objective.time_sampling = "uniform"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.ema.decay = 0.9999
    config.training.batch_size = 128
    config.training.num_steps = 800_000
    config.training.sample_every = 20_000
    config.training.checkpoint_every = 10_000
    config.sampling.sampler = "ddpm"
    config.sampling.variance = "fixed_large"
    config.sampling.num_steps = 1000
    config.sampling.clip_x0 = 1.0
    config.evaluation.num_samples = 50_000
    config.evaluation.metrics = ("fid", "inception_score")
    return config
