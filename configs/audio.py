"""A 1-D U-Net on one's own signals, such as spoken digits: an array (N, L, C) in an .npz file.

    diffax train --config=configs/audio.py --workdir=/tmp/audio --config.data.path=signals.npz

L must be a multiple of 32, which five halvings need. If the file holds several arrays,
--config.data.array names the one. int16 is read as audio, k / 32768; floats must lie in [-1, 1], or
--config.data.range tells theirs. An array `label`, of numbers or words, gives classes. Expect
waveforms with the outline of the data's in samples/. No time has been measured.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "npz"
    config.model.unet.channels = 32
    config.model.unet.channel_mults = (1, 1, 2, 2, 4, 4)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = (128,)
    config.schedule.log_snr_max = 15.0
    config.schedule.log_snr_min = -10.0
    config.objective.prediction = "v"
    config.training.batch_size = 32
    config.training.num_steps = 20_000
    config.training.sample_every = 2000
    config.sampling.num_samples = 16
    return config
