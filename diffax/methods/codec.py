"""Codecs: between the space of the data and the space where a method works.

A method knows nothing of a codec: `through` gives it batches that are encoded, and decodes what it
draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.data import DatasetInfo
from diffax.methods.autoencoder import AutoencoderState, latent_deviation
from diffax.methods.base import Batch, Measure, Method


def _same(x: jax.Array) -> jax.Array:
    return x


class Codec(NamedTuple):
    """A map from data to the space where a method works, and back.

    Attributes:
      shape: of one example there, (..., Z).
      encode: x, (batch, ..., C) float32 -> z, (batch, *shape) float32; traceable.
      decode: z -> x; traceable.
      fingerprint: tells this codec from others; "" for the identity.
    """

    shape: tuple[int, ...]
    encode: Callable[[jax.Array], jax.Array] = _same
    decode: Callable[[jax.Array], jax.Array] = _same
    fingerprint: str = ""


def of_autoencoder(
    network: nn.Module, state: AutoencoderState, shape: tuple[int, ...], fingerprint: str
) -> Codec:
    """The codec of a trained autoencoder for data of a shape, by its averaged parameters.

    z = (mean of q(z | x) - m) / s, with m and s the mean and deviation per channel of the training
    set's latents, so that z has about unit variance.
    """
    variables = {"params": state.ema_params}
    mean, deviation = state.latent_mean, latent_deviation(state)

    def encode(x: jax.Array) -> jax.Array:
        return (network.apply(variables, x, method="encode")[0] - mean) / deviation

    def decode(z: jax.Array) -> jax.Array:
        return network.apply(variables, z * deviation + mean, method="decode")

    return Codec(network.latent_shape(shape), encode, decode, fingerprint)


def normalised(codec: Codec, mean: Sequence[float], deviation: Sequence[float]) -> Codec:
    """The codec whose latents are (z - mean) / deviation, per channel; itself for () and ()."""
    if not mean:
        return codec
    m, s = (jnp.asarray(values, jnp.float32) for values in (mean, deviation))

    def encode(x: jax.Array) -> jax.Array:
        return (codec.encode(x) - m) / s

    def decode(z: jax.Array) -> jax.Array:
        return codec.decode(z * s + m)

    return codec._replace(encode=encode, decode=decode)


def seen_through(codec: Codec, data: DatasetInfo) -> DatasetInfo:
    """What a method knows of data that a codec encodes: real numbers of the codec's shape."""
    return dataclasses.replace(data, shape=codec.shape, levels=None) if codec.fingerprint else data


def coarsest(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The least of a mask, (batch, ..., C), over what each latent of a shape (..., Z) stands for:
    (batch, ..., 1)."""
    mask = jnp.min(mask, axis=-1)
    for axis, size in enumerate(shape[:-1], 1):
        parts = (*mask.shape[:axis], size, mask.shape[axis] // size, *mask.shape[axis + 1 :])
        mask = jnp.min(mask.reshape(parts), axis=axis + 1)
    return mask[..., None]


def _filled(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x, (batch, ..., C), where the mask is 1, and the mean of that, per channel, where it is 0: an
    encoder sees beyond what a latent stands for, and another colour there would show."""
    mask = jnp.broadcast_to(mask, x.shape)
    axes = tuple(range(1, x.ndim - 1))
    known = jnp.sum(mask, axes, keepdims=True)
    mean = jnp.sum(mask * x, axes, keepdims=True) / jnp.maximum(known, 1)
    return mask * x + (1 - mask) * mean


def through(method: Method, codec: Codec, of_latents: bool = False) -> Method:
    """The method on data in data space, working in the codec's.

    Its measures are of the codec's space, and say so. What is drawn is decoded. Data that are
    edited are encoded before and decoded afterwards; where a part of them is known, a latent counts
    as known if all that it stands for is, and the result has that part as it was given.

    `of_latents`: its batches hold latents already, so that nothing is encoded.
    """
    if not codec.fingerprint:
        return method

    def encoded(batch: Batch) -> Batch:
        return batch if of_latents else {**batch, "x": codec.encode(batch["x"])}

    def in_its_space(measure: Measure) -> Measure:
        def per_example(state: Any, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
            return measure.per_example(state, key, encoded(batch))

        def summary(found: Any) -> dict[str, Any]:
            return {**measure.summary(found), "space": f"latents of shape {codec.shape}"}

        return measure._replace(per_example=per_example, summary=summary)

    def with_encoded(function: Callable) -> Callable | None:
        """The function whose second argument is a batch."""
        if function is None:
            return None
        return lambda state, batch, *others, **named: function(
            state, encoded(batch), *others, **named
        )

    def all_in_its_space(measures: Mapping[str, Measure]) -> dict[str, Measure]:
        return {name: in_its_space(measure) for name, measure in measures.items()}

    def sample(state: Any, keys: jax.Array, cond: Any, **options: Any) -> jax.Array:
        return codec.decode(method.sample(state, keys, cond, **options))

    def edit(
        state: Any, keys: jax.Array, cond: Any, operation: Any, given: Any = (), **options: Any
    ) -> Any:
        of = dict(zip(operation.given, given))
        within = dict(of)
        if "mask" in of:
            within["data"] = _filled(of["data"], of["mask"])
            within["mask"] = coarsest(of["mask"], codec.shape)
        if "data" in of:
            within["data"] = codec.encode(within["data"])
        made = method.edit(state, keys, cond, operation, tuple(within.values()), **options)
        found = dict(zip(operation.made, made if len(operation.made) > 1 else (made,)))
        found["data"] = codec.decode(found["data"])
        if "mask" in of:
            found["data"] = of["mask"] * of["data"] + (1 - of["mask"]) * found["data"]
        if "error" in found:
            apart = (found["data"] - of["data"]) ** 2
            found["error"] = jnp.sqrt(jnp.mean(apart, axis=tuple(range(1, apart.ndim))))
        values = tuple(found.values())
        return values if len(values) > 1 else values[0]

    def preview(state: Any, keys: jax.Array, batch: Batch) -> jax.Array:
        return codec.decode(method.preview(state, keys, encoded(batch)))

    def reconstruct(state: Any, batch: Batch) -> jax.Array:
        return codec.decode(method.reconstruct(state, encoded(batch)))

    return method._replace(
        step=with_encoded(method.step),
        gradient=with_encoded(method.gradient),
        sample=method.sample and sample,
        preview=method.preview and preview,
        edit=method.edit and edit,
        reconstruct=method.reconstruct and reconstruct,
        measures=all_in_its_space(method.measures),
        compared=all_in_its_space(method.compared),
        profiles={name: with_encoded(profile) for name, profile in method.profiles.items()},
    )
