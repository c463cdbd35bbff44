"""Diffusion in the latents of an autoencoder of Fashion-MNIST; samples are decoded.

    diffax train --config=configs/autoencoder_fashion_mnist.py --workdir=runs/autoencoder
    diffax train --config=configs/latent_fashion_mnist.py --workdir=runs/latent
    diffax sample --workdir=runs/latent

The latents, 8x8x4, are encoded once, normalised per channel and kept in the cache, so that training
does not run the encoder. Another autoencoder is named by --config.codec.path=DIR.

A step takes 0.06 s of a CPU core, all 3,000 three minutes. Its distance was not measured; what
latents save at 16x16 is in experiments/results/latent_compute.md.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.data.pad_to = 32
    config.data.flip = True
    config.codec.name = "run"
    config.codec.path = "runs/autoencoder"
    config.model.class_conditional = True
    config.model.unet.channels = 32
    config.model.unet.channel_mults = (1, 2)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = ()
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.objective.prediction = "v"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.995
    config.training.batch_size = 64
    config.training.num_steps = 3000
    config.training.sample_every = 1500
    config.sampling.sampler = "dpmpp_2m"
    config.sampling.num_steps = 20
    config.sampling.guidance_scale = 2.0
    config.evaluation.gradient_batches = 0
    return config
