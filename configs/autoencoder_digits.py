"""A KL-regularised autoencoder of the embedded digits: 8x8 to 4x4x2 and back.

    diffax train --config=configs/autoencoder_digits.py --workdir=runs/autoencoder
    diffax ablate --config=configs/autoencoder_digits.py --workdir=runs/kl \\
        --axis=method.kl_weight=1e-6,1e-2 --seeds=3

2,000 steps take about a minute on two cores and reach a PSNR of about 29.5 dB on held-out
digits. With --config.data.name=fashion_mnist, 28x28 to 14x14x2, 300 steps reach 25.7 dB. A
diffusion run in its latents has config.codec.name="run" and its workdir as config.codec.path.
"""

from diffax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digits"
    config.method.name = "autoencoder"
    config.method.kl_weight = 1e-6
    config.model.name = "autoencoder"
    config.model.autoencoder.channels = 32
    config.model.autoencoder.channel_mults = (1, 2)
    config.model.autoencoder.latent_channels = 2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.99
    config.training.batch_size = 64
    config.training.num_steps = 2000
    config.training.eval_every = 500
    config.training.sample_every = 1000
    return config
