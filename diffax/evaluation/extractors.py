"""Feature extractors: frozen networks whose features judge samples, and what is cached of them."""

import functools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffax.data import Dataset, Split
from diffax.data.dataset import to_float
from diffax.evaluation import judges
from diffax.evaluation.distances import FeatureStatistics
from diffax.files import cached, content_hash

# The features of at most this many examples are held: 400 MB of Inception's. Mean and covariance
# are of all.
NUM_KEPT = 50_000


class Extractor(NamedTuple):
    """A network with its weights.

    Attributes:
      name: "classifier", "inception", ...; scores over its features are named after it.
      network: network.apply({"params": params}, x) maps x, (B, ..., C) float32 in [-1, 1], to the
        features, (B, F), and the logits, (B, K). It includes the preprocessing.
      params: its weights.
      fingerprint: identifies weights and preprocessing; cached files are named by it.
      about: what else a reader should know about a number over these features; JSON-able.
      batch_size: examples at a time on one device.
    """

    name: str
    network: nn.Module
    params: Any
    fingerprint: str
    about: Mapping[str, Any]
    batch_size: int = 500


class Features(NamedTuple):
    """The features of a set of examples, in a random order that a seed fixes."""

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
    """Mean and covariance of the features of x, as `features`, with one batch in memory."""
    batches = (found for found, _ in _outputs(extractor, x, np.arange(len(x))))
    return functools.reduce(FeatureStatistics.update, batches, FeatureStatistics.of(next(batches)))


def reference_statistics(extractor: Extractor, split: Split) -> FeatureStatistics:
    """`feature_statistics` of a split, cached.

    The key is the extractor's fingerprint and the hash of the split's images after resizing,
    cropping and framing. So another size of the same data is another entry.
    """
    name = f"{extractor.fingerprint}-{content_hash(split.x)}"
    found = cached("statistics", name, lambda: vars(feature_statistics(extractor, split.x)))
    return FeatureStatistics.of_arrays(found)


def reference_features(extractor: Extractor, x: np.ndarray) -> np.ndarray:
    """`features` of examples of a data set, cached like `reference_statistics`.

    All runs of an ablation with the same seed need the same ones.
    """
    name = f"{extractor.fingerprint}-{content_hash(x)}"
    return cached("features", name, lambda: {"features": features(extractor, x)})["features"]


def shuffled(num: int, seed: int) -> np.ndarray:
    """A random permutation of 0 .. num - 1, fixed by the seed.

    Files and data sets are often sorted by class, so the first examples are not representative.
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


# --- the classifier of a data set -----------------------------------------------------------------


# The standard practice for small grey images, to which networks trained on photographs don't apply.


_LOG = logging.getLogger("diffax")
# A change of any of these, or of the network, makes another classifier.
SETTINGS = {"version": 1, "steps": 400, "batch_size": 128, "learning_rate": 2e-3, "width": 64}


class Network(nn.Module):
    """Three convolutions, pooling to at most 4 a side, a dense layer of features, logits."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """x: (B, ..., C) in [-1, 1]. Returns the features, (B, width), and the logits."""
        spatial = x.ndim - 2
        for factor, stride in ((0.25, 1), (0.5, 2), (0.5, 1)):
            features = int(self.width * factor)
            x = nn.relu(nn.Conv(features, (3,) * spatial, strides=stride)(x))
        for axis in range(1, x.ndim - 1):
            while x.shape[axis] > 4:
                window = [1] * spatial
                window[axis - 1] = 2
                x = nn.avg_pool(x, tuple(window), strides=tuple(window), padding="SAME")
        x = x.reshape(x.shape[0], -1)
        features = nn.relu(nn.Dense(self.width)(nn.Dropout(0.3, deterministic=not train)(x)))
        return features, nn.Dense(self.num_classes)(features)


def is_classifiable(dataset: Dataset) -> bool:
    """Whether `get_classifier` takes the data: they have labels and a spatial axis."""
    return dataset.num_classes > 0 and len(dataset.shape) > 1


def get_classifier(dataset: Dataset, seed: int = 0) -> Extractor:
    """The classifier of a data set, from the cache or trained now (seconds for digits, on a CPU).

    Args:
      dataset: labelled data with a spatial axis.
      seed: of initialisation and order.

    Raises:
      ValueError: data without labels or without a spatial axis.
    """
    if not is_classifiable(dataset):
        raise ValueError(
            f"a classifier's features need labelled data with a spatial axis, and {dataset.name!r}"
            f" has {dataset.num_classes} classes and shape {dataset.shape}: leave frechet, kid and"
            " prdc out"
        )
    arrays = [part for split in (dataset.train, dataset.eval) for part in (split.x, split.label)]
    fingerprint = content_hash(*arrays, dataset.num_classes, SETTINGS, seed)

    def make() -> tuple[Any, float]:
        _LOG.info("training the classifier of %s, once", dataset.name)
        params = _train(dataset, seed)
        trained = _extractor(dataset, params, 0.0, fingerprint)
        held_out = _at_most(dataset.eval, _DEVICE_BYTES // 4)
        said = np.argmax(logits(trained, held_out.array()), axis=1)
        accuracy = float(np.mean(said == held_out.label))
        _LOG.info("accuracy %.4f on held-out data", accuracy)
        return params, accuracy

    params, accuracy = judges.kept("classifiers", dataset, fingerprint, "accuracy", make)
    return _extractor(dataset, params, accuracy, fingerprint)


def _extractor(dataset: Dataset, params: Any, accuracy: float, fingerprint: str) -> Extractor:
    network = Network(dataset.num_classes, SETTINGS["width"])
    about = {"classifier_accuracy": accuracy}  # on the evaluation split
    return Extractor("classifier", network, params, fingerprint, about)


_DEVICE_BYTES = 2**30  # of examples by which a classifier is trained


def _at_most(split: Split, num_bytes: int) -> Split:
    """A split, or as many of its examples, drawn at random, as have so many bytes."""
    most = max(1, num_bytes // (math.prod(split.x.shape[1:]) * split.x.dtype.itemsize))
    return split if len(split) <= most else split.take(np.sort(shuffled(len(split), 0)[:most]))


def _train(dataset: Dataset, seed: int) -> Any:
    """Adam on the cross-entropy, images shifted by up to a pixel."""
    network = Network(dataset.num_classes, SETTINGS["width"])
    some = _at_most(dataset.train, _DEVICE_BYTES)
    x, label = jnp.asarray(some.x[:]), jnp.asarray(some.label)
    decay = optax.cosine_decay_schedule(SETTINGS["learning_rate"], SETTINGS["steps"])

    def loss(params, key):
        index_key, shift_key, dropout_key = jax.random.split(key, 3)
        index = jax.random.randint(index_key, (SETTINGS["batch_size"],), 0, len(label))
        batch = x[index]
        # 8-bit data are kept as they are until here: the whole set lies on the device.
        batch = batch / 127.5 - 1 if batch.dtype == jnp.uint8 else batch
        shift = jax.random.randint(shift_key, (x.ndim - 2,), -1, 2)
        batch = jnp.roll(batch, shift, axis=tuple(range(1, x.ndim - 1)))
        _, logits = network.apply({"params": params}, batch, True, rngs={"dropout": dropout_key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, label[index]).mean()

    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = jax.jit(network.init)(init_key, jnp.zeros((1, *dataset.shape)))["params"]
    keys = jax.random.split(run_key, SETTINGS["steps"])
    return judges.fitted(loss, params, optax.adam(decay), keys)
