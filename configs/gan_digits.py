"""A GAN on the embedded digits, 8x8: samples in one call of the generator.

    diffax train --config=configs/gan_digits.py --workdir=runs/gan
    diffax evaluate --workdir=runs/gan
    diffax ablate --config=configs/gan_digits.py --workdir=runs/gans --seeds=3 \\
        --axis=method.adversarial_loss=relativistic,non_saturating

The relativistic loss with R1 and R2; the generator has 76,000 parameters, the discriminator 61,000.
2,000 steps took nine minutes at low priority on two busy cores; the samples are digits from 500
steps on. The Fréchet distance of 500 samples was 1.02 (0.60 to 1.45). Held-out digits have 0.69,
and configs/digits.py (of v, 755,000 parameters, 700 steps) has 2.41 (1.68 to 3.13) at 100 ddim
steps. Precision was 0.98 and recall 0.90, those of diffusion 0.93 and 0.94.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "digits"
    config.method.name = "gan"
    config.model.name = "generator"
    config.model.generator.channels = 16
    config.model.generator.channel_mults = (1, 2)
    config.model.generator.num_blocks = 1
    config.discriminator.residual.channels = 16
    config.discriminator.residual.channel_mults = (1, 2)
    config.discriminator.residual.num_blocks = 1
    # Without momentum, as adam with betas 0 and 0.9.
    config.discriminator.optimizer = "rmsprop"
    config.discriminator.learning_rate = 1e-3
    config.optimizer.name = "rmsprop"
    config.optimizer.learning_rate = 1e-3
    config.ema.decay = 0.995
    config.training.batch_size = 64
    config.training.num_steps = 2000
    config.training.log_every = 100
    config.training.sample_every = 500
    config.sampling.num_steps = 1
    config.sampling.clip_x0 = 1.0
    config.evaluation.num_samples = 500
    return config
