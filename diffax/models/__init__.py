"""Networks: `get("unet", channels=64)` gives a flax module.

All are called alike, `module.apply(variables, x, noise_level, label=None, train=False)`, and know
nothing of schedules: they are told the noise level, by default as the log-SNR.
"""

import dataclasses

import flax.linen as nn

from diffax.models.mlp import MLP
from diffax.models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "mlp": MLP}


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(MODELS)


def fields(name: str) -> list[str]:
    """The fields of the network of that name, as `get` takes them.

    Raises:
      ValueError: no network has that name.
    """
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; it must be one of {', '.join(names())}")
    own = (field.name for field in dataclasses.fields(MODELS[name]))
    return [field for field in own if field not in ("parent", "name")]


def get(name: str, **kwargs) -> nn.Module:
    """The network of that name with the given fields, the others at their defaults.

    Raises:
      ValueError: unknown name or field, or a value that is not allowed; the sentence says what is.
    """
    allowed = fields(name)
    for key in kwargs:
        if key not in allowed:
            raise ValueError(f"{key!r} is no field of model {name!r}; it has {', '.join(allowed)}")
    return MODELS[name](**kwargs)


__all__ = ["MLP", "MODELS", "UNet", "fields", "get", "names"]
