"""A small network on points of a Gaussian mixture in the plane: the test bench, in seconds.

    diffax train --config=configs/mixture2d.py --workdir=/tmp/mixture2d

The mixture's exact denoiser, density and entropy are known (diffax.data.default_mixture()), so that
everything measured here has a right answer.
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "mixture2d"
    config.model.name = "mlp"
    config.model.mlp.width = 64
    config.schedule.name = "cosine"
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.995
    config.training.batch_size = 256
    config.training.num_steps = 3000
    config.training.log_every = 250
    config.training.eval_every = 1500
    config.training.sample_every = 1500
    config.sampling.num_samples = 2048
    config.evaluation.batch_size = 2048
    return config
