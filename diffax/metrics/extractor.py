"""Frozen networks whose features judge samples: one interface, whatever the network."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from diffax import runtime
from diffax.data import Split
from diffax.metrics.frechet import FeatureStatistics


class Extractor(NamedTuple):
    """A network with its weights.

    Attributes:
      name: "classifier", "inception", ...; what a number over its features is called after.
      network: network.apply({"params": params}, x) of x, (B, ..., C) float32 in [-1, 1], gives the
        features, (B, F), and the logits, (B, K). Its preprocessing is part of it.
      params: its weights.
      fingerprint: names weights and preprocessing; what is kept of it in the cache goes by it.
      about: what else a reader should know of a number over these features; JSON-able.
    """

    name: str
    network: nn.Module
    params: Any
    fingerprint: str
    about: Mapping[str, Any]


def features(extractor: Extractor, x: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """The features of x, (N, ..., C) float in [-1, 1]: (N, F) float32, in batches of one shape."""
    return _outputs(extractor, x, batch_size)[0]


def logits(extractor: Extractor, x: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """The logits of x, (N, ..., C) float in [-1, 1]: (N, K) float32."""
    return _outputs(extractor, x, batch_size)[1]


def feature_statistics(extractor: Extractor, x: np.ndarray) -> FeatureStatistics:
    """Mean and covariance of the features of x, (N, ..., C) float in [-1, 1]."""
    return FeatureStatistics.of(features(extractor, x))


def reference_statistics(extractor: Extractor, split: Split) -> FeatureStatistics:
    """`feature_statistics` of a split, kept in the cache by the hash of its images."""
    name = f"{extractor.fingerprint}-{content_hash(split.x)}.npz"
    path = runtime.cache_directory() / "statistics" / name
    if not path.exists():
        feature_statistics(extractor, split.array()).save(path)
    return FeatureStatistics.load(path)


def content_hash(*parts: Any) -> str:
    """16 hexadecimal digits of arrays (with shape and dtype) and of what can be written as JSON."""
    digest = hashlib.sha256()
    for part in parts:
        is_array = isinstance(part, np.ndarray)
        digest.update(str((part.shape, part.dtype) if is_array else json.dumps(part)).encode())
        digest.update(np.ascontiguousarray(part).tobytes() if is_array else b"")
    return digest.hexdigest()[:16]


def _outputs(extractor: Extractor, x: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for i in range(0, len(x), batch_size):
        batch = x[np.minimum(np.arange(i, i + batch_size), len(x) - 1)]
        outputs = _apply(extractor.params, batch, network=extractor.network)
        found.append([np.asarray(output)[: len(x) - i] for output in outputs])
    features, logits = map(np.concatenate, zip(*found))
    return features, logits


@functools.partial(jax.jit, static_argnames="network")
def _apply(params: Any, x: jax.Array, network: nn.Module) -> tuple[jax.Array, jax.Array]:
    return network.apply({"params": params}, x)
