"""Methods: what is trained, by name. A plugin may register others.

A method is a function that returns a `Method` and takes, by name, what a config builds for it
("data", "network", "optimizer", ...: `PARTS` lists them) and its own options. The
options are numbers, words or tuples, and become keys of `config.method`.
"""

import inspect
from collections.abc import Callable

from diffax.methods.autoencoder import autoencoder as _autoencoder
from diffax.methods.base import (
    GRAD_NORM,
    LARGEST_UPDATE,
    LOSS,
    UPDATE_SIZE,
    Bounded,
    Measure,
    Method,
    advance,
    fraction_of_start,
    moving_average,
    update_size,
)
from diffax.methods.consistency import consistency as _consistency
from diffax.methods.denoising_gan import denoising_gan as _denoising_gan
from diffax.methods.diffusion import TrainState, predictor
from diffax.methods.diffusion import diffusion as _diffusion
from diffax.methods.gan import gan as _gan
from diffax.methods.mean_flow import mean_flow as _mean_flow
from diffax.methods.progressive import progressive as _progressive
from diffax.registry import Constructors, require

# What a config builds for a method that has a parameter of that name; these are no options.
PARTS = {
    "data": "what is known of the data, a `diffax.data.DatasetInfo`",
    "network": "the flax module of config.model",
    "conditions": "name -> `diffax.models.conditioning.Condition`",
    "schedule": "key -> the schedule that training begins with",
    "teacher": "the run of config.method.teacher, a `diffax.methods.teacher.Teacher`, or None",
    "frozen": "the run of config.condition.base beside which a ControlNet is trained, likewise",
    "schedule_steps": "T where the schedule acts in discrete time, else 0",
    "objective": "config.objective as `diffax.methods.diffusion.Objective`",
    "prediction": "what the network predicts, config.objective.prediction",
    "times": "the density of training times, a `diffax.time_sampling.TimeSampler`",
    "schedule_learning": "config.schedule_learning as a `ScheduleLearning` of that module",
    "optimizer": "the optax transformation of config.optimizer",
    "learning_rate": "step -> learning rate",
    "num_steps": "of the training",
    "discriminator": "the flax module of config.discriminator",
    "discriminator_optimizer": "its optax transformation",
    "ema_decay": "of the moving average of the parameters",
    "grad_accumulation": "micro-batches per step",
    "evaluation": "how a diffusion model is measured",
    "perceptual": "(x, y) -> the LPIPS distance of images, (batch,), if method.lpips_weight is"
    " above 0, else None",
    "sampling": "config.sampling as options of `Method.sample`",
}
METHODS: Constructors[Method] = Constructors(
    "method",
    {
        "diffusion": _diffusion,
        "autoencoder": _autoencoder,
        "progressive": _progressive,
        "consistency": _consistency,
        "mean_flow": _mean_flow,
        "gan": _gan,
        "denoising_gan": _denoising_gan,
    },
    no_keys=PARTS,
)


def register(name: str, make: Callable[..., Method]) -> None:
    """Makes a method reachable by name, in configs and on the command line.

    Args:
      make: make(**parts and options) -> `Method`.

    Raises:
      ValueError: the name is taken, or an option's type isn't known or is another one than that of
        another method's option of the same name.
    """
    METHODS.register(name, make)


def get(name: str, **arguments: object) -> Method:
    """The method of that name from its parts and options.

    Raises:
      ValueError: an unknown name, or an argument that the method doesn't take or needs.
    """
    made = METHODS.build(name, **arguments)
    require(f"method {name!r}", made, "Method", *Method._fields)
    return made if made.compared else made._replace(compared=made.measures)


def arguments_of(name: str) -> tuple[str, ...]:
    """The parts and options that the method `name` takes."""
    return tuple(inspect.signature(METHODS.lookup(name)).parameters)


__all__ = [
    "GRAD_NORM",
    "LARGEST_UPDATE",
    "LOSS",
    "METHODS",
    "PARTS",
    "UPDATE_SIZE",
    "Bounded",
    "Measure",
    "Method",
    "TrainState",
    "advance",
    "arguments_of",
    "get",
    "moving_average",
    "predictor",
    "register",
    "fraction_of_start",
    "update_size",
]
