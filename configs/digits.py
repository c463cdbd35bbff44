"""A tiny U-Net on the 1,797 scanned digits of scikit-learn, 8x8: on a laptop, in a minute or two.

    diffax train --config=configs/digits.py --workdir=/tmp/digits

The data set comes with the package.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "digits"
    config.model.unet.channels = 32
    config.model.unet.channel_mults = (1, 2)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = (4,)
    config.schedule.name = "cosine"
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.995
    config.training.batch_size = 64
    config.training.num_steps = 700
    config.training.log_every = 100
    config.training.sample_every = 350
    config.training.eval_every = 700
    config.training.checkpoint_every = 350
    config.sampling.num_steps = 25
    config.sampling.clip_x0 = 1.0
    config.evaluation.num_samples = 500
    return config
