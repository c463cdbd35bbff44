"""DiT-XL/2 in latents of ImageNet 256x256, with classes: Peebles & Xie 2023.

    diffax train --config=configs/published/dit_xl2_imagenet256.py --workdir=runs/dit \\
        --config.codec.path=runs/autoencoder --config.data.path=DIR --config.parallel.fsdp=8

Published (7 million steps): FID 2.27 with guidance 1.5 and 250 DDPM steps; 675M parameters. (The
authors' weights in PyTorch, in float32, give 2.21, says their repository.)
Hardware: theirs was a TPU v3-256 at 5.7 steps a second, two weeks.
Data: a folder of ImageNet's training images with a sub-folder per class.
Run here: the network's parameters are counted and a narrowed copy trains for a step, in a test.
Not theirs: the latents. They take Stable Diffusion's autoencoder, 32x32x4 at a scale of 0.18215;
diffax doesn't read its weights, so codec.path is an autoencoder that you trained with diffax, of
the same latents if you want the same network. The guidance here is of all channels, theirs of the
first three. The network is conditioned on the log-SNR, not the step.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 256
    config.data.flip = True
    config.codec.name = "run"
    config.model.name = "dit"
    config.model.class_conditional = True
    config.model.label_dropout = 0.1
    config.model.dit.patch_size = 2
    config.model.dit.width = 1152
    config.model.dit.depth = 28
    config.model.dit.head_width = 72
    config.model.dit.dtype = "bfloat16"
    config.model.dit.remat = True
    config.schedule.name = "linear"
    config.schedule.num_steps = 1000
    config.objective.learned_variance = True
    config.objective.hybrid_weight = 1e-3
    config.objective.time_sampling = "uniform"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.9999
    config.training.batch_size = 256
    config.training.num_steps = 7_000_000
    config.training.sample_every = 50_000
    config.training.checkpoint_every = 10_000
    config.sampling.sampler = "ddpm"
    config.sampling.variance = "learned"
    config.sampling.num_steps = 250
    config.sampling.guidance_scale = 1.5
    config.evaluation.num_samples = 50_000
    config.evaluation.metrics = ("fid",)
    return config
