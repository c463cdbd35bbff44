"""Building blocks of the networks, for any number of spatial axes: x is (B, ..., C) throughout."""

import numbers
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax import arguments
from diffax.models import embeddings, operations, platform
from diffax.models.cpu import chunks
from diffax.models.cpu import conv as cpu_conv
from diffax.models.cpu import operations as cpu_operations
from diffax.registry import suggestion

group_norm = platform.by_platform(cpu_operations.group_norm, operations.group_norm)
attention = platform.by_platform(cpu_operations.attention, operations.attention)
silu = platform.by_platform(cpu_operations.silu, operations.silu)
upsampled_conv = platform.by_platform(cpu_conv.upsampled_conv, operations.upsampled_conv)
in_chunks = chunks.in_chunks

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def check(allowed: bool, field: str, value: object, rule: str) -> None:
    """Raises ValueError naming the field, its value and the rule, unless `allowed`."""
    if not allowed:
        raise ValueError(f"{field} is {value!r}; it must be {rule}")


def is_whole(value: object, at_least: int) -> bool:
    """Whether value is an integer (True and False are none) of at least that size."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= at_least


def check_name(field: str, value: object, table: dict) -> None:
    """Refuses a value that is no name of the table."""
    known = isinstance(value, str) and value in table
    check(known, field, value, f"one of {', '.join(table)}{suggestion(value, table)}")


def check_shared_fields(module: nn.Module, width_field: str) -> None:
    """Checks the fields that every network has."""
    width = getattr(module, width_field)
    check(is_whole(width, 2) and width % 2 == 0, width_field, width, "an even positive integer")
    check(is_whole(module.num_classes, 0), "num_classes", module.num_classes, "an integer >= 0")
    check_name("dtype", module.dtype, DTYPES)
    check_name("conditioning", module.conditioning, embeddings.CONDITIONINGS)


def check_conditions(
    x: jax.Array, noise_level: jax.Array, label: jax.Array | None, num_classes: int
) -> None:
    """Refuses a noise level or label that is not one number per example, or a label for nothing.

    The noise level may be two numbers, (B, 2); see `embeddings.Conditioning`.
    """
    rule = f"{x.shape[:1]}, one number per example of x, whose shape is {x.shape}"
    of_two = (*x.shape[:1], 2)
    for name, value in (("noise_level", noise_level), ("label", label)):
        shape = x.shape[:1] if value is None else jnp.shape(value)
        fits = shape == x.shape[:1] or (name == "noise_level" and shape == of_two)
        check(fits, f"{name}'s shape", shape, rule)
    if label is not None and num_classes == 0:
        raise ValueError("a label was given, but num_classes is 0: this network knows no classes")
    if label is not None:
        arguments.check_labels(label, num_classes)


def check_control(
    x: jax.Array, control: Mapping[str, jax.Array] | None, shape: tuple[int, ...]
) -> None:
    """Refuses a control that is not of the shape that a network was made for, or for nothing."""
    if control is None:
        return
    if not shape:
        raise ValueError("a control was given, and this network was made without one")
    found, expected = jnp.shape(control["image"]), (len(x), *shape)
    check(found == expected, "the control's shape", found, f"{expected}, as the network was made")


def beside(
    x: jax.Array, control: Mapping[str, jax.Array] | None, shape: tuple[int, ...]
) -> jax.Array:
    """[x, strength image, strength] along the channels; x itself without a control's shape.

    The last channel tells a control of zeros from none (None is a strength of 0). An image that is
    larger than x by whole factors is folded to its size: each block of it becomes channels.

    Raises:
      ValueError: an image of another size.
    """
    if not shape:
        return x
    if control is None:
        zeros = {"image": jnp.zeros((len(x), *shape), x.dtype)}
        control = zeros | {"strength": jnp.zeros((len(x), 1), x.dtype)}
    strength = operations.expand_rows(control["strength"][:, :1], x.ndim)
    image = operations.folded(control["image"], x.shape[1:-1])
    flag = jnp.broadcast_to(strength, (*x.shape[:-1], 1))
    return jnp.concatenate([x, strength * image, flag], axis=-1)


def check_channel_mults(module: nn.Module) -> None:
    """Checks a network's `channel_mults` and makes them a tuple."""
    mults = module.channel_mults
    fits = isinstance(mults, list | tuple) and mults and all(is_whole(m, 1) for m in mults)
    check(bool(fits), "channel_mults", mults, "a sequence of at least 1 positive integers")
    module.channel_mults = tuple(mults)


def check_halvings(sizes: tuple[int, ...], levels: int) -> None:
    """Raises ValueError unless each level but the first can halve spatial axes of these sizes."""
    multiple = 2 ** (levels - 1)
    if any(size == 0 or size % multiple for size in sizes):
        said = " x ".join(map(str, sizes))
        raise ValueError(
            f"x has spatial size {said}, which {levels} levels can't halve {levels - 1} times;"
            f" every axis must be a multiple of {multiple}: pad the data or use fewer levels"
        )


def num_heads(channels: int, head_width: int) -> int:
    """Heads of `head_width` channels each; channels fewer than that form one head."""
    if channels > head_width and channels % head_width:
        raise ValueError(
            f"head_width is {head_width}, but attention acts on {channels} channels; "
            "it must divide them, or be at least as large"
        )
    return max(1, channels // head_width)


def num_groups(channels: int) -> int:
    """At most 32 groups of at least 4 channels where they allow it (Karras 2022, code)."""
    limit = max(1, min(32, channels // 4))
    return max(groups for groups in range(1, limit + 1) if channels % groups == 0)


def conv(features: int, spatial: int, dtype: jnp.dtype, name: str, **kwargs) -> nn.Conv:
    """A padded convolution with a kernel of 3 along each of `spatial` axes."""
    kwargs.setdefault("conv_general_dilated", cpu_conv.conv)
    return nn.Conv(features, (3,) * spatial, dtype=dtype, name=name, **kwargs)


def upsampling_conv(features: int, spatial: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    """`conv` of what is first doubled along every axis by repeating each entry."""
    return conv(features, spatial, dtype, name, conv_general_dilated=_doubled_conv)


def _doubled_conv(x: jax.Array, kernel: jax.Array, *_, **__) -> jax.Array:
    """`upsampled_conv` as flax calls a convolution."""
    return upsampled_conv(x, kernel)


def dense(features: int, dtype: jnp.dtype, name: str, **kwargs) -> nn.Dense:
    """A linear layer on the channels of (B, ..., C)."""
    return nn.Dense(features, dtype=dtype, name=name, dot_general=cpu_conv.product, **kwargs)


class Norm(NamedTuple):
    """How a network normalises: by so many groups, 0 for `num_groups` of each width."""

    groups: int = 0
    epsilon: float = operations.NORM_EPSILON


class GroupNorm(nn.Module):
    """Group normalisation, statistics in float32; the result has x's dtype.

    `modulation`, (B, 2C), holds a scale s and a shift b for each example: norm(x) (1 + s) + b.
    """

    norm: Norm = Norm()

    @nn.compact
    def __call__(self, x: jax.Array, modulation: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if modulation is not None:
            extra, shift = jnp.split(modulation.astype(scale.dtype), 2, axis=-1)
            scale, bias = scale * (1 + extra), bias * (1 + extra) + shift
        groups = self.norm.groups or num_groups(channels)
        return group_norm(x, scale, bias, groups, self.norm.epsilon).astype(x.dtype)


def _add(norm: Callable, h: jax.Array, signal: jax.Array) -> jax.Array:
    return norm(h + operations.expand_rows(signal, h.ndim))


def _scale_shift(norm: Callable, h: jax.Array, signal: jax.Array) -> jax.Array:
    return norm(h, signal)


# How the embedding enters a block: channels of signal per channel of the block, and what it does.
# "add" is Ho 2020; "scale_shift" is the adaptive group normalisation of Dhariwal & Nichol 2021.
EMBEDDINGS = {"add": (1, _add), "scale_shift": (2, _scale_shift)}


class ResBlock(nn.Module):
    """skip(x) + conv(dropout(silu(norm(conv(silu(norm(x))))))), with `emb`, if any, at the second
    norm.

    The second convolution starts at zero. The skip is the identity, or linear if channels change.
    """

    channels: int
    dropout: float
    embedding: str
    dtype: jnp.dtype
    norm: Norm = Norm()

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array | None, train: bool) -> jax.Array:
        spatial, norm = x.ndim - 2, GroupNorm(self.norm, name="norm_1")
        h = silu(GroupNorm(self.norm, name="norm_0")(x))
        h = conv(self.channels, spatial, self.dtype, "conv_0")(h)
        if emb is None:
            h = silu(norm(h))
        else:
            width, condition = EMBEDDINGS[self.embedding]
            signal = nn.Dense(width * self.channels, dtype=self.dtype, name="embed")(silu(emb))
            h = silu(condition(norm, h, signal))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.channels, spatial, self.dtype, "conv_1", kernel_init=nn.initializers.zeros)(h)
        if x.shape[-1] != self.channels:
            # A 1x1 convolution; as a matrix product its gradient is three times as fast on a CPU.
            x = dense(self.channels, self.dtype, "skip")(x)
        return x + h


class DenseBlock(nn.Module):
    """skip(x) + dense(silu(dense(silu(x)) (1 + s) + b)) for points, (B, C).

    The scale s and the shift b are linear in `emb`; without it there are none. The last layer
    starts at zero. The skip is the identity, or linear if channels change.
    """

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array | None) -> jax.Array:
        h = dense(self.channels, self.dtype, "dense_0")(silu(x))
        if emb is not None:
            signal = nn.Dense(2 * self.channels, dtype=self.dtype, name="embed")(silu(emb))
            scale, shift = jnp.split(signal, 2, axis=-1)
            h = h * (1 + scale) + shift
        h = dense(self.channels, self.dtype, "dense_1", kernel_init=nn.initializers.zeros)(silu(h))
        if x.shape[-1] != self.channels:
            x = dense(self.channels, self.dtype, "skip")(x)
        return x + h


def block(
    channels: int, spatial: int, dtype: jnp.dtype, name: str
) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    """(x, emb) -> a residual block of x: a `ResBlock`, or for points a `DenseBlock`."""
    if not spatial:
        return DenseBlock(channels, dtype, name=name)
    of_space = ResBlock(channels, 0.0, "scale_shift", dtype, name=name)
    return lambda x, emb: of_space(x, emb, False)


class Attention(nn.Module):
    """x + project(attention(norm(x))) over all positions; `project` starts at zero."""

    head_width: int
    dtype: jnp.dtype
    norm: Norm = Norm()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]
        heads = num_heads(channels, self.head_width)
        h = GroupNorm(self.norm, name="norm")(x).reshape(batch, -1, channels)
        qkv = dense(3 * channels, self.dtype, "qkv")(h)
        qkv = qkv.reshape(batch, -1, 3, heads, channels // heads)
        h = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        zeros = nn.initializers.zeros
        out = dense(channels, self.dtype, "project", kernel_init=zeros)
        return x + out(h.reshape(x.shape))
