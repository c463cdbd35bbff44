"""A consistency model on digits, tuned from a trained diffusion run: one or two calls to a sample.

    diffax train --config=configs/digits.py --config.objective.prediction=v --workdir=runs/teacher
    diffax train --config=configs/consistency_digits.py --workdir=runs/consistency
    diffax sample --workdir=runs/consistency --steps=1
    diffax evaluate --workdir=runs/consistency --metrics=frechet --steps=2

With --config.method.teacher="" it is trained from nothing; with --config.method.distill=true it
learns from the teacher's steps.

600 steps, about 7 a second on two cores: the Fréchet distance of 500 samples (see
configs/progressive_digits.py; the teacher's is 2.4 at 100 steps) is 6.6 at one step (5.3 to 7.9),
4.2 at two (2.9 to 5.6) and 4.8 at four (3.3 to 6.2).
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
    config.method.name = "consistency"
    config.method.teacher = "runs/teacher"
    config.method.first_intervals = 8
    config.method.last_intervals = 64
    config.method.doubling_steps = 150
    config.objective.prediction = "v"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.decay = "cosine"
    config.training.num_steps = 600
    config.training.checkpoint_every = 300
    config.training.sample_every = 300
    config.sampling.sampler = "consistency"
    config.sampling.num_steps = 2
    config.sampling.clip_x0 = 1.0
    config.ema.decay = 0.99
    config.training.batch_size = 64
    config.training.log_every = 100
    config.evaluation.num_samples = 500
    return config
