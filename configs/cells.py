"""A U-Net that draws blood cells to a mask of nucleus and cytoplasm, 32x32.

    diffax train --config=configs/cells.py --workdir=/tmp/cells --config.data.path=/my/cells

The folder holds images, masks and a metadata.jsonl with a line for each image:
{"file_name": "images/001.png", "conditioning_file_name": "masks/001.png"}. The mask stands beside
x_t at the first layer. Of every tenth example it is left out in training, so that guidance knows
what is no mask. With --config.condition.base=RUN, a run of this file with
--config.condition.control= (empty), a ControlNet is trained beside it instead.

    diffax sample --workdir=/tmp/cells --control=mask.png --num=8

A step takes 0.15 s of a CPU core. After 800 steps samples agree with held-out masks by an
intersection over union of 0.84, where real cells have 0.90 by the same judge. `diffax evaluate
--workdir=/tmp/cells` says it of a run; experiments/results/control_cells.md compares both ways
along training.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 32
    config.data.flip = True
    config.condition.control = "files"
    config.condition.control_dropout = 0.1
    config.model.unet.channels = 16
    config.model.unet.channel_mults = (1, 2, 4)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = (8,)
    config.model.unet.head_width = 32
    config.schedule.name = "cosine"
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.objective.prediction = "v"
    config.optimizer.learning_rate = 1e-3
    config.ema.decay = 0.99
    config.training.batch_size = 16
    config.training.num_steps = 2000
    config.training.log_every = 100
    config.training.sample_every = 1000
    config.training.checkpoint_every = 500
    config.sampling.num_steps = 25
    config.sampling.clip_x0 = 1.0
    config.sampling.num_samples = 16
    config.evaluation.num_samples = 40
    config.evaluation.metrics = ("mask_iou",)
    return config
