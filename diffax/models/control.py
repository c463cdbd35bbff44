"""A ControlNet: a trained copy of a U-Net's encoder beside the U-Net, which stays as it was."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers, operations
from diffax.models.unet import UNet

BASE = "base"  # the parameters of the U-Net that stays


class ControlBranch(UNet):
    """A U-Net's way down and middle on x and a control, with a zero-initialised layer on each
    output (Zhang 2023, section 3.2). Its fields are those of the U-Net."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise_level: jax.Array,
        given: Mapping[str, Any],
        image: jax.Array,
        train: bool,
    ) -> list[jax.Array]:
        """What is added to each skip connection, in their order, and to the middle, which is last.

        Args:
          given: the conditions by name, as the U-Net takes them.
          image: the control, (B, ..., C'), of x's size or of whole multiples of it.
        """
        dtype, spatial, zeros = layers.DTYPES[self.dtype], x.ndim - 2, nn.initializers.zeros
        hint = operations.folded(image, x.shape[1:-1]).astype(dtype)
        hint = layers.silu(layers.conv(self.channels, spatial, dtype, "hint_0")(hint))
        hint = layers.silu(layers.conv(self.channels, spatial, dtype, "hint_1")(hint))
        hint = layers.conv(self.channels, spatial, dtype, "hint_2", kernel_init=zeros)(hint)
        emb = self._embedded(noise_level, given)
        middle, skips = self._down(x, emb, train, hint)
        return [
            layers.dense(h.shape[-1], dtype, f"joint_{i}", kernel_init=zeros)(h)
            for i, h in enumerate([*skips, middle])
        ]


class ControlNet(UNet):
    """A U-Net, and for each control a branch beside it (Zhang 2023).

    The U-Net's skip connections and middle are s_i + sum_k strength_k joint_ki. The joints of a
    branch start at zero, so that the output is the U-Net's, bit for bit; so it is where all the
    strengths are 0. Where this differs from the authors' network: the control goes through three
    convolutions of the U-Net's first width, and one that is larger than x is folded to its size
    beforehand (`operations.folded`), where theirs has strided convolutions.

    The fields are those of the U-Net, and:

    Attributes:
      control_shape: (..., C'), of the controls of one example, side by side in the channels.
      control_channels: how many of the channels each control has.

    The parameters are those of the U-Net under "base", and of the branches under "control_0", ...
    """

    control_channels: Sequence[int] = ()

    def __post_init__(self):
        self.control_channels = tuple(self.control_channels)
        super().__post_init__()

    @nn.compact
    def _network(
        self, x: jax.Array, noise_level: jax.Array, given: Mapping[str, Any], train: bool
    ) -> jax.Array:
        joints, begin = [], 0
        control, plain = given["control"] or self._none(x), {**given, "control": None}
        for i, channels in enumerate(self.control_channels):
            image = control["image"][..., begin : begin + channels]
            begin += channels
            branch = ControlBranch(**_fields_of(self), name=f"control_{i}")
            own = branch(x, noise_level, plain, image, train)
            strength = control["strength"][:, i : i + 1]
            own = [_times(strength, joint) for joint in own]
            joints = jax.tree.map(jnp.add, joints, own) if joints else own
        # What stays as it was has no dropout.
        base = UNet(**_fields_of(self), name=BASE)
        return base._network(x, noise_level, plain, False, joints)

    def _none(self, x: jax.Array) -> dict[str, jax.Array]:
        """No control: strengths of 0."""
        num = len(self.control_channels)
        image = jnp.zeros((len(x), *self.control_shape), x.dtype)
        return {"image": image, "strength": jnp.zeros((len(x), num), x.dtype)}


def _fields_of(network: ControlNet) -> dict[str, Any]:
    """The fields for a branch or the U-Net: copies of those that are networks, such as that of
    captions, since each has parameters of its own."""
    own = {name: getattr(network, name) for name in _FIELDS}
    modules = {name: value for name, value in own.items() if isinstance(value, nn.Module)}
    return own | {name: module.clone(parent=None, name=None) for name, module in modules.items()}


def _times(strength: jax.Array, joint: jax.Array) -> jax.Array:
    return operations.expand_rows(strength, joint.ndim).astype(joint.dtype) * joint


# What a branch and the U-Net have of a ControlNet's fields.
_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(UNet)
    if field.name not in ("parent", "name", "control_shape")
)


def trained_part(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a ControlNet without those of the U-Net that stays."""
    return {name: own for name, own in params.items() if name != BASE}


def started(params: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The branches' first parameters: those that the U-Net has too are its own, the others as in
    `params`."""
    return {
        branch: {name: base.get(name, first) for name, first in own.items()}
        for branch, own in trained_part(params).items()
    }
