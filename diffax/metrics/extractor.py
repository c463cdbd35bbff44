"""Frozen networks whose features judge samples: one interface, whatever the network."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffax.data import Split
from diffax.data.content import content_hash
from diffax.data.dataset import to_float
from diffax.metrics.cache import kept
from diffax.metrics.frechet import FeatureStatistics

# Of this many examples at most the features themselves are kept: 400 MB of Inception's. All count
# for mean and covariance.
NUM_KEPT = 50_000


class Extractor(NamedTuple):
    """A network with its weights.

    Attributes:
      name: "classifier", "inception", ...; what a number over its features is called after.
      network: network.apply({"params": params}, x) of x, (B, ..., C) float32 in [-1, 1], gives the
        features, (B, F), and the logits, (B, K). Its preprocessing is part of it.
      params: its weights.
      fingerprint: names weights and preprocessing; what is kept of it in the cache goes by it.
      about: what else a reader should know of a number over these features; JSON-able.
      batch_size: examples at a time on one device.
    """

    name: str
    network: nn.Module
    params: Any
    fingerprint: str
    about: Mapping[str, Any]
    batch_size: int = 500


class Features(NamedTuple):
    """What an extractor makes of a set of examples, in an order that a seed draws."""

    statistics: FeatureStatistics  # of all
    kept: np.ndarray  # (n, F) float32, of the first n = min(N, NUM_KEPT)
    logits: np.ndarray  # (n, K) float32, of the same


def width(extractor: Extractor, shape: tuple[int, ...]) -> int:
    """F, the number of features of an example of `shape`, (..., C); nothing is computed."""
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    found, _ = jax.eval_shape(extractor.network.apply, {"params": extractor.params}, x)
    return found.shape[-1]


def features(extractor: Extractor, x: np.ndarray) -> np.ndarray:
    """The features of x, (N, ..., C) uint8 or float32 in [-1, 1]: (N, F) float32.

    8-bit data become float batch by batch, and each batch is split over all local devices.
    """
    return np.concatenate([found for found, _ in _outputs(extractor, x, np.arange(len(x)))])


def logits(extractor: Extractor, x: np.ndarray) -> np.ndarray:
    """The logits of x, as `features`: (N, K) float32."""
    return np.concatenate([found for _, found in _outputs(extractor, x, np.arange(len(x)))])


def measured(extractor: Extractor, x: np.ndarray, seed: int = 0) -> Features:
    """Mean and covariance of the features of all of x, and the features of some, as `Features`."""
    statistics, kept, room = None, [], NUM_KEPT
    for found, scores in _outputs(extractor, x, shuffled(len(x), seed)):
        statistics = statistics.update(found) if statistics else FeatureStatistics.of(found)
        if room > 0:
            kept.append((found[:room], scores[:room]))
            room -= len(found)
    return Features(statistics, *map(np.concatenate, zip(*kept)))


def feature_statistics(extractor: Extractor, x: np.ndarray) -> FeatureStatistics:
    """Mean and covariance of the features of x, as `features`; no more than a batch is held."""
    batches = (found for found, _ in _outputs(extractor, x, np.arange(len(x))))
    return functools.reduce(FeatureStatistics.update, batches, FeatureStatistics.of(next(batches)))


def reference_statistics(extractor: Extractor, split: Split) -> FeatureStatistics:
    """`feature_statistics` of a split, kept in the cache.

    By the extractor's fingerprint and the hash of the split's images as they are after resizing,
    cropping and framing: another size of the same data is another entry.
    """
    name = f"{extractor.fingerprint}-{content_hash(split.x)}"
    found = kept("statistics", name, lambda: vars(feature_statistics(extractor, split.x)))
    return FeatureStatistics.of_arrays(found)


def reference_features(extractor: Extractor, x: np.ndarray) -> np.ndarray:
    """`features` of examples of a data set, kept in the cache as `reference_statistics` are.

    All runs of an ablation with the same seed ask for the same ones.
    """
    name = f"{extractor.fingerprint}-{content_hash(x)}"
    return kept("features", name, lambda: {"features": features(extractor, x)})["features"]


def shuffled(num: int, seed: int) -> np.ndarray:
    """0 .. num - 1 in an order that the seed draws.

    Files and data sets often come sorted by class: the first examples are no fair choice.
    """
    return np.random.default_rng(seed).permutation(num)


def _outputs(
    extractor: Extractor, x: np.ndarray, order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features and logits of x[order], batch by batch; all batches are of one shape."""
    if len(order) == 0:
        raise ValueError("there are no examples to take features of")
    mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    params = jax.device_put(extractor.params, whole)
    # Few examples make a smaller batch, of a power of two, so that few programs are compiled.
    each = 2 ** int(np.ceil(np.log2(max(len(order) / mesh.size, 1))))
    batch_size = min(each, extractor.batch_size) * mesh.size
    for i in range(0, len(order), batch_size):
        index = order[np.minimum(np.arange(i, i + batch_size), len(order) - 1)]
        batch = jax.device_put(to_float(x[index]), split)
        found = _apply(params, batch, network=extractor.network)
        yield tuple(np.asarray(output)[: len(order) - i] for output in found)


@functools.partial(jax.jit, static_argnames="network")
def _apply(params: Any, x: jax.Array, network: nn.Module) -> tuple[jax.Array, jax.Array]:
    return network.apply({"params": params}, x)
