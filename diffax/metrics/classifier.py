"""A small classifier, trained once on a data set and cached, whose features judge samples.

The standard practice for small grey images, to which networks trained on photographs don't apply.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from diffax.data import Dataset
from diffax.data.content import content_hash
from diffax.metrics.cache import kept
from diffax.metrics.extractor import Extractor, logits

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


def get_classifier(
    dataset: Dataset, cache_dir: str | os.PathLike | None = None, seed: int = 0
) -> Extractor:
    """The classifier of a data set, from the cache or trained now (seconds for digits, on a CPU).

    Args:
      dataset: labelled data with a spatial axis.
      cache_dir: where it is kept; None for "classifiers" in `runtime.cache_directory()`. Two
        processes may ask at once: both train, and the one that ends last is kept.
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
    fingerprint = content_hash(
        dataset.train.x,
        dataset.train.label,
        dataset.eval.x,
        dataset.eval.label,
        dataset.num_classes,
        SETTINGS,
        seed,
    )

    def make() -> dict[str, Any]:
        _LOG.info("training the classifier of %s, once", dataset.name)
        params = _train(dataset, seed)
        trained = _extractor(dataset, params, 0.0, fingerprint)
        said = np.argmax(logits(trained, dataset.eval.array()), axis=1)
        accuracy = float(np.mean(said == dataset.eval.label))
        _LOG.info("accuracy %.4f on held-out data", accuracy)
        return {"accuracy": accuracy, **traverse_util.flatten_dict({"params": params}, sep="/")}

    folder = Path(cache_dir).absolute() if cache_dir is not None else "classifiers"
    arrays = kept(folder, f"{quote(dataset.name, safe='')}-{fingerprint}", make)
    accuracy = float(arrays.pop("accuracy"))
    params = traverse_util.unflatten_dict(arrays, sep="/")["params"]
    return _extractor(dataset, params, accuracy, fingerprint)


def _extractor(dataset: Dataset, params: Any, accuracy: float, fingerprint: str) -> Extractor:
    return Extractor(
        name="classifier",
        network=Network(dataset.num_classes, SETTINGS["width"]),
        params=params,
        fingerprint=fingerprint,
        about={"classifier_accuracy": accuracy},  # on the evaluation split
    )


def _train(dataset: Dataset, seed: int) -> Any:
    """Adam on the cross-entropy, images shifted by up to a pixel.

    A program per step, not one scan over all: inside a loop XLA's CPU backend runs a convolution's
    gradient several times as slowly (25 s against 6 s for digits on two cores).
    """
    network = Network(dataset.num_classes, SETTINGS["width"])
    x, label = jnp.asarray(dataset.train.x), jnp.asarray(dataset.train.label)
    decay = optax.cosine_decay_schedule(SETTINGS["learning_rate"], SETTINGS["steps"])
    optimizer = optax.adam(decay)

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

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, key):
        updates, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state)
        return optax.apply_updates(params, updates), opt_state

    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = jax.jit(network.init)(init_key, jnp.zeros((1, *dataset.shape)))["params"]
    opt_state = optimizer.init(params)
    for key in jax.random.split(run_key, SETTINGS["steps"]):
        params, opt_state = step(params, opt_state, key)
    return jax.device_get(params)
