"""Mean flow on digits, from nothing: one call to a sample.

    diffax train --config=configs/mean_flow_digits.py --workdir=runs/mean_flow
    diffax sample --workdir=runs/mean_flow --steps=1
    diffax evaluate --workdir=runs/mean_flow --metrics=frechet --steps=1

1,000 steps, two minutes of one core. The Fréchet distance of 500 samples (see
configs/progressive_digits.py, whose teacher has 2.4 at 100 steps after 700 steps of training) is
20.6 at one step (18.5 to 22.7), 1.3 at two (0.7 to 1.9) and 1.3 at four. A person recognises the
digits of one step, which are somewhat blurred. Uniform times, which helped one call by far on
points in the plane (experiments/results/few_steps.md), do not help here
(--config.objective.time_sampling=uniform): 23.9 (22.1 to 25.7), 2.4 (1.6 to 3.1) and 1.8.
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
    config.schedule.name = "rectified_flow"
    config.method.name = "mean_flow"
    config.method.instant_share = 0.5
    config.objective.prediction = "flow"
    config.objective.time_sampling = "logit_normal"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.training.num_steps = 1000
    config.training.checkpoint_every = 500
    config.training.sample_every = 500
    config.sampling.num_steps = 1
    config.sampling.clip_x0 = 1.0
    config.ema.decay = 0.99
    config.training.batch_size = 64
    config.training.log_every = 100
    config.evaluation.num_samples = 500
    return config
