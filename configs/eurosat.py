"""A class-conditional U-Net on satellite images, EuroSAT, at 32x32; TFDS fetches the data once.

    diffax train --config=configs/eurosat.py --workdir=runs/eurosat
    diffax sample --workdir=runs/eurosat --label=5 --guidance-scale=2
    diffax evaluate --workdir=runs/eurosat --metrics=frechet,prdc

27,000 images of Sentinel-2 in ten classes of land cover (Helber 2019), made 32x32 from 64x64. TFDS
has no split to evaluate by, so the last tenth is it. Images from above have no upright, so half of
them are mirrored. One's own images, in a folder for each class, are read instead by
--config.data.name=folder --config.data.path=DIR --config.data.train_split=train
--config.data.eval_split=test.

A step takes 0.8 s of a CPU core, all 10,000 more than two hours: take a GPU. It was not run to its
end here.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "eurosat/rgb"
    config.data.train_split = "train[:90%]"
    config.data.eval_split = "train[90%:]"
    config.data.image_size = 32
    config.data.flip = True
    config.model.class_conditional = True
    config.model.unet.channels = 32
    config.model.unet.channel_mults = (1, 2, 2)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = (8,)
    config.model.unet.head_width = 32
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.objective.prediction = "v"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.training.batch_size = 64
    config.training.num_steps = 10_000
    config.training.sample_every = 2000
    config.sampling.sampler = "dpmpp_2m"
    config.sampling.num_steps = 20
    config.sampling.clip_x0 = 1.0
    config.sampling.num_samples = 40
    config.evaluation.metrics = ("frechet",)
    return config
