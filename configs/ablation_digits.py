"""The learned-versus-cosine ablation on digits: twelve short trainings in minutes on two cores.

    python experiments/learned_vs_cosine.py

A smaller network than configs/digits.py has, so that a run takes a minute or two on one core.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "digits"
    config.model.unet.channels = 16
    config.model.unet.channel_mults = (1, 2)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = (4,)
    config.model.unet.head_width = 32
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.schedule_learning.learning_rate = 2e-2
    config.schedule_learning.update_every = 2
    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.99
    config.training.batch_size = 64
    config.training.num_steps = 600
    config.training.log_every = 100
    config.training.eval_every = 200
    config.training.checkpoint_every = 300
    config.sampling.clip_x0 = 1.0
    config.evaluation.num_samples = 500
    config.evaluation.repeats = 16
    config.sampling.num_steps = 25
    return config
