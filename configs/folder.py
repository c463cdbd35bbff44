"""A U-Net on a folder of one's own images, resized and cropped to 64x64.

    diffax train --config=configs/folder.py --workdir=/tmp/mine --config.data.path=/my/images

Each sub-folder is a class; --config.model.class_conditional=true tells the network which. Images
that can't be read are named, all at once; --config.data.skip_bad=true leaves them out. Expect a few
thousand images to be needed for variety in samples/. Without an accelerator two CPU cores take
about 1.4 s per step of training.batch_size=4.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 64
    config.data.flip = True
    config.model.unet.channel_mults = (1, 2, 2, 4)
    config.schedule.base_resolution = 32
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.objective.prediction = "v"
    config.training.batch_size = 32
    config.training.num_steps = 50_000
    config.training.sample_every = 2000
    config.sampling.clip_x0 = 1.0
    config.sampling.num_samples = 16
    return config
