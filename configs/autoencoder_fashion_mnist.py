"""An autoencoder of Fashion-MNIST, 32x32 to latents of 8x8x4, for latent diffusion.

    diffax train --config=configs/autoencoder_fashion_mnist.py --workdir=runs/autoencoder
    diffax evaluate --workdir=runs/autoencoder
    diffax train --config=configs/latent_fashion_mnist.py --workdir=runs/latent

A step takes 0.08 s of a CPU core, all 1,000 a minute and a half. Its PSNR was not measured; that of
smaller autoencoders at 16x16 is in experiments/results/latent_compute.md.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.data.pad_to = 32
    config.method.name = "autoencoder"
    config.method.kl_weight = 1e-6
    config.model.name = "autoencoder"
    config.model.autoencoder.channels = 16
    config.model.autoencoder.channel_mults = (1, 2, 2)
    config.model.autoencoder.latent_channels = 4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.99
    config.training.batch_size = 32
    config.training.num_steps = 1000
    config.training.eval_every = 500
    config.training.sample_every = 500
    config.evaluation.num_examples = 1000
    config.evaluation.gradient_batches = 0
    return config
