"""Networks: `get("unet", channels=64)` gives a flax module.

Those that denoise are called alike, `module.apply(variables, x, noise_level, label=None,
train=False)`, and know nothing of schedules: they are conditioned on the noise level, by default as
the log-SNR. A network that doesn't denoise has the class attribute `denoises = False`.
"""

import inspect

import flax.linen as nn

from diffax.models.autoencoder import Autoencoder
from diffax.models.discriminator import Discriminator
from diffax.models.dit import DiT
from diffax.models.generator import Generator
from diffax.models.mlp import MLP
from diffax.models.unet import UNet
from diffax.registry import Registry, arguments, suggestion

MODELS: Registry[type[nn.Module]] = Registry(
    "model",
    {"unet": UNet, "dit": DiT, "mlp": MLP, "autoencoder": Autoencoder, "generator": Generator},
)
DISCRIMINATORS: Registry[type[nn.Module]] = Registry("discriminator", {"residual": Discriminator})
_NO_FIELDS = ("parent", "name")  # of every flax module


def register(name: str, network: type[nn.Module]) -> None:
    """Makes a network reachable by name, in configs and on the command line.

    Args:
      network: a class of flax modules, called as all here are: x, (batch, ..., C); noise_level and
        label, (batch,); train -> (batch, ..., C). Each of its fields has a default; those that are
        numbers, words or tuples become keys of config.model.<name>. It is given the log-SNR, unless
        it has a field `conditioning` that says "step". To be given classes it has a field
        `num_classes`, to learn the reverse variance a field `learned_variance`. A method
        `least_parameters()`, if it has one, is a lower bound of its size, by which an absurd one is
        refused before it is made; a method `remarks(shape)` says what of its fields has no effect
        for such examples. The class attribute `denoises = False` says that it is no denoiser,
        `generates = True` that it is called as a `Generator` is.

    Raises:
      ValueError: the name is taken or has a dot, it is no flax module, or a field has no default.
    """
    _check(MODELS, name, network)
    MODELS.register(name, network)


def register_discriminator(name: str, network: type[nn.Module]) -> None:
    """Makes a discriminator reachable as config.discriminator.name.

    Args:
      network: as for `register`, its fields being keys of config.discriminator.<name>; it is called
        as a `Discriminator` is, (x, noise_level, label, given) -> the logits and the features.

    Raises:
      ValueError: as `register`.
    """
    _check(DISCRIMINATORS, name, network)
    DISCRIMINATORS.register(name, network)


def _check(table: Registry, name: str, network: type[nn.Module]) -> None:
    """Raises ValueError unless a network can be registered under a name."""
    if "." in name:
        raise ValueError(
            f"a {table.kind} can't be named {name!r}: the name is a section of a config"
        )
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise ValueError(
            f"{table.kind} {name!r} must be a class of flax modules, and is {network!r}"
        )
    arguments(f"{table.kind} {name!r}", network, _NO_FIELDS)
    for field, parameter in inspect.signature(network).parameters.items():
        if parameter.default is parameter.empty:
            raise ValueError(f"{table.kind} {name!r}: its field {field!r} needs a default")


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(MODELS)


def fields(name: str, table: Registry = MODELS) -> list[str]:
    """The fields of the network of that name, as `get` takes them.

    Raises:
      ValueError: no network has that name.
    """
    own = inspect.signature(table.lookup(name)).parameters
    return [field for field in own if field not in _NO_FIELDS]


def get(name: str, table: Registry = MODELS, **kwargs) -> nn.Module:
    """The network of that name with the given fields, the others at their defaults.

    Raises:
      ValueError: unknown name or field, or a value that is not allowed; the sentence says what is.
    """
    allowed = fields(name, table)
    for key in kwargs:
        if key not in allowed:
            near = suggestion(key, allowed)
            raise ValueError(
                f"{key!r} is no field of {table.kind} {name!r}{near}; it has {', '.join(allowed)}"
            )
    return table[name](**kwargs)


__all__ = [
    "DISCRIMINATORS",
    "MODELS",
    "MLP",
    "Autoencoder",
    "DiT",
    "Discriminator",
    "Generator",
    "UNet",
    "fields",
    "get",
    "names",
    "register",
    "register_discriminator",
]
