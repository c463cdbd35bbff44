"""Every key of a config, with its default; the default's type is the key's type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from diffax import models, samplers, schedules
from diffax.data import known_fields

# Fields of a network that are told by other keys: model.class_conditional together with the data,
# and objective.learned_variance.
_TOLD_BY_OTHERS = ("num_classes", "learned_variance")


def default_config() -> ConfigDict:
    """The config from which every other starts; a key that is not here does not exist.

    A key whose default is None takes a value of one type, and None stands for "as the schedule (or
    the sampler) has it by default".
    """
    config = ConfigDict()
    config.seed = 0  # of the initialisation, the order of the data, the noise and the samples

    # The fields are explained where the data reads them: diffax.data.DataConfig.
    config.data = ConfigDict(known_fields())

    model = config.model = ConfigDict()
    model.name = "unet"
    model.class_conditional = False  # tell the network the class label
    model.label_dropout = 0.1  # share of labels that are replaced by the null class
    for name in models.names():
        for field, value in model_fields(name).items():
            model[field] = value

    schedule = config.schedule = ConfigDict()
    schedule.name = "cosine"
    # The keywords of every constructor; log_snr_max and log_snr_min truncate the others' schedules.
    schedule.update(schedule_keywords())
    schedule.input_scale = 1.0  # b of input_scaled; 1: off
    schedule.base_resolution = 0  # of shifted, to the data's resolution; 0: off
    schedule.zero_terminal_snr = False  # rescale to end at zero SNR exactly
    schedule.num_steps = 0  # T of discrete time; 0: continuous time

    learning = config.schedule_learning = ConfigDict()  # acts if the schedule has parameters
    learning.objective = "variance"  # of the VLB estimate; or "vlb", in discrete time
    learning.optimizer = "adam"
    learning.learning_rate = 1e-3
    # Of the rate, from the first step to the last: by then the gradient is nearly all noise.
    learning.decay = "cosine"
    # On the schedule's gradient; 0: off. Its direction is that of rare large values: clipped, it
    # goes astray, the shape grows jumps, and the variance with them.
    learning.clip_norm = 0.0
    learning.update_every = 1  # training steps from one update to the next; 0: never
    learning.num_steps = 0  # T of the VLB that is followed; 0: schedule.num_steps

    objective = config.objective = ConfigDict()
    objective.prediction = "eps"  # what the network predicts
    objective.weighting = "simple"  # of the loss, by log-SNR
    objective.time_sampling = "stratified"
    objective.learned_variance = False  # the network also learns the reverse variance
    objective.hybrid_weight = 1e-3  # of the VLB in the loss, if the variance is learned

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "adam"
    optimizer.learning_rate = 3e-4  # at its peak
    optimizer.warmup_steps = 100  # linear rise to the peak
    optimizer.decay = "constant"  # from the warm-up to the last step
    optimizer.clip_norm = 1.0  # on the gradient's global norm; 0: off
    optimizer.weight_decay = 0.0

    config.ema = ConfigDict()
    config.ema.decay = 0.999  # in step k: min(decay, (1 + k) / (10 + k))

    training = config.training = ConfigDict()
    training.batch_size = 128  # over all devices
    training.grad_accumulation = 1  # micro-batches to a batch, one after the other: saves memory
    training.num_steps = 10_000
    training.steps_per_call = 1  # steps in one call of the device; more help where steps are short
    training.log_every = 100  # steps over which the logged metrics are averages
    training.eval_every = 0  # steps between likelihoods on the evaluation split; 0: never
    training.sample_every = 0  # steps between sample grids; 0: never
    training.checkpoint_every = 1000  # steps; there is always one at the end; 0: only there
    training.keep_checkpoints = 2  # the latest so many
    training.max_skipped = 10  # steps in a row whose loss or gradient is not finite; more: an error
    training.tensorboard = False  # also write TensorBoard files; needs TensorFlow
    training.allow_config_change = False  # resume although the config is not the one of before

    sampling = config.sampling = ConfigDict()
    sampling.sampler = "ddim"
    sampling.num_steps = 50
    sampling.schedule = config_dict.placeholder(str)  # a name; None: the one trained with
    sampling.grid = "uniform"
    sampling.clip_x0 = config_dict.placeholder(float)  # bound on |x0| in every step; None: off
    sampling.dynamic_threshold = config_dict.placeholder(float)  # a share, as 0.995; None: off
    sampling.low_order_finish = True  # the last step goes to x0; False: to the clean end
    sampling.guidance_scale = 1.0  # of a class-conditional network; 1: off
    sampling.guidance_interval = config_dict.placeholder(tuple)  # (low, high) in log-SNR; None: all
    sampling.guidance_rescale = 0.0  # share by which the deviation is brought back
    sampling.update(sampler_keywords())  # the options of every sampler
    sampling.num_samples = 64  # in a sample grid

    evaluation = config.evaluation = ConfigDict()
    evaluation.batch_size = 256
    evaluation.num_examples = 0  # of the evaluation split, the first so many; 0: all
    evaluation.vlb_num_steps = 0  # T of the bound; 0: continuous time
    evaluation.ode_num_steps = 50  # of the ODE likelihood
    # Over so many batches of the training split the variance of the gradient; 0: not measured.
    evaluation.gradient_batches = 16
    evaluation.num_samples = 2000  # drawn for the metrics of samples
    # Of samples, keys of diffax.scoring.scores(), as ("fd_lite0", "fd_mobilenet", "prdc"); (): the
    # Fréchet distance of a classifier's features, or sliced Wasserstein where none can be trained.
    evaluation.metrics = ()
    evaluation.repeats = 16  # noise levels at which each example is seen for bits/dim

    config.parallel = ConfigDict()
    config.parallel.mode = "mesh"  # jit over a mesh; or "pmap", whole copies of the state
    config.parallel.num_devices = 0  # the first so many; 0: all
    config.parallel.fsdp = 1  # devices over which each parameter is split, in mode "mesh"
    config.parallel.multihost = config_dict.placeholder(bool)  # None: if the job has several
    return config


def model_fields(name: str) -> dict[str, Any]:
    """The fields of a network that a config sets directly, with their defaults."""
    module = models.MODELS[name]
    return {f: getattr(module, f) for f in models.fields(name) if f not in _TOLD_BY_OTHERS}


def schedule_keywords() -> dict[str, Any]:
    """A None of the right type for each keyword of a schedule, but the PRNG key."""
    return _placeholders(schedules.key_types())


def sampler_keywords() -> dict[str, Any]:
    """A None of the right type for each option of a sampler."""
    return _placeholders(samplers.key_types())


def _placeholders(key_types: Mapping[str, type]) -> dict[str, Any]:
    return {name: config_dict.placeholder(kind) for name, kind in key_types.items()}
