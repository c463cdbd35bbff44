"""The U-Net of Ho 2020 (35.7M parameters) on CIFAR-10; TFDS fetches the data on first use.

    diffax train --config=configs/cifar10.py --workdir=/tmp/cifar10

Made for an accelerator: bfloat16 compute, 500,000 steps. Expect objects that are recognisable in
samples/ well before the end. To try it without one, set training.batch_size=8: two CPU cores take
about 2 s per step.
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
    config.model.unet.head_width = 256
    config.model.unet.embedding = "add"
    config.model.unet.dropout = 0.1
    config.model.unet.dtype = "bfloat16"
    config.schedule.name = "linear"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.ema.decay = 0.9999
    config.training.num_steps = 500_000
    config.training.sample_every = 10_000
    config.training.checkpoint_every = 10_000
    config.sampling.clip_x0 = 1.0
    return config
