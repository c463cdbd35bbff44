"""Whether samples follow their controls: what is measured in a sample against its control.

Edges are found by the function that makes them (`data.controls.edges`). Masks are read by a small
network that is trained once on the data's own pairs of examples and masks and kept in the cache;
its own agreement on held-out pairs says how far it is to be trusted.
"""

import functools
import logging
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffax.data import Dataset
from diffax.data.controls import edges
from diffax.data.dataset import to_float
from diffax.evaluation import judges
from diffax.files import content_hash

_LOG = logging.getLogger("diffax")
# A change of any of these, or of the network, makes another segmenter.
SETTINGS = {"version": 2, "steps": 400, "batch_size": 32, "learning_rate": 3e-3, "width": 24}
_MOST_CLASSES = 16
_LEAST_SHARE = 0.005  # of all places, that the value of a class has
_LEAST_COVERED = 0.7  # of all places, that have the value of a class, or nearly
_NEAR = 8 / 127.5  # values at most so far apart are of one class, since resizing rings


class Segmenter(NamedTuple):
    """The network of a data set with its parameters.

    Attributes:
      values: of the classes in a mask, as floats in [-1, 1], ascending.
      iou: of held-out pairs.
      fingerprint: of the data and the settings.
    """

    params: Any
    values: tuple[float, ...]
    iou: float
    fingerprint: str


class _Network(nn.Module):
    """A class for every place: convolutions at the size of x, a half and a quarter of it."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, ..., C) in [-1, 1] -> logits, (B, ..., K)."""
        spatial, width = x.ndim - 2, SETTINGS["width"]

        def conv(h: jax.Array, factor: int, stride: int = 1) -> jax.Array:
            h = nn.Conv(factor * width, (3,) * spatial, strides=stride)(h)
            return nn.silu(nn.GroupNorm(num_groups=4)(h))

        def up(h: jax.Array, like: jax.Array) -> jax.Array:
            shape = (*like.shape[:-1], h.shape[-1])
            return jnp.concatenate([like, jax.image.resize(h, shape, "nearest")], axis=-1)

        whole = conv(x, 1)
        half = conv(conv(whole, 1, 2), 1)
        quarter = conv(conv(half, 2, 2), 2)
        half = conv(up(quarter, half), 1)
        return nn.Dense(self.num_classes)(conv(up(half, whole), 1))


def classes_of(masks: np.ndarray) -> tuple[float, ...]:
    """The values of the classes in masks, (N, ..., 1) uint8 or float32, as floats; () if these are
    no masks.

    A class has a value that stands at least at one place in 200. Of such values that lie near each
    other the most frequent one stands for all, since resizing blurs a value. It leaves values far
    between, too; if more than three places in ten have one, or there are more than 16 classes,
    these are no masks.
    """
    if masks.shape[-1] != 1:
        return ()
    values, counts = np.unique(masks, return_counts=True)
    often = counts >= _LEAST_SHARE * masks.size
    if counts[often].sum() < _LEAST_COVERED * masks.size:
        return ()
    values, counts = to_float(values[often]), counts[often]
    ends = np.flatnonzero(np.diff(values) > _NEAR) + 1
    groups = np.split(np.arange(len(values)), ends)
    if not 2 <= len(groups) <= _MOST_CLASSES:
        return ()
    return tuple(float(values[group[np.argmax(counts[group])]]) for group in groups)


def numbered(masks: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    """The class of every place, (N, ...): that of the nearest value."""
    known = np.array(values, np.float32)
    between = (known[1:] + known[:-1]) / 2
    return np.digitize(to_float(masks)[..., 0], between)


def iou(found: np.ndarray, expected: np.ndarray, num_classes: int) -> np.ndarray:
    """Intersection over union of each example, (N,), averaged over the classes that either has.

    found, expected: (N, ...) class numbers.
    """
    axes = tuple(range(1, found.ndim))
    each = []
    for number in range(num_classes):
        a, b = found == number, expected == number
        inter, union = (a & b).sum(axes), (a | b).sum(axes)
        each.append(np.where(union > 0, inter / np.maximum(union, 1), np.nan))
    return np.nanmean(each, axis=0)


def edge_f1(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of the edges of each example, (N,), place by place; 1 where neither
    has any.

    x: the samples; like: the examples whose edges they were to have; (N, ..., C) in [-1, 1].
    """
    found, expected = (edges(to_float(part)) > 0 for part in (x, like))
    axes = tuple(range(1, found.ndim))
    both, sizes = (found & expected).sum(axes), found.sum(axes) + expected.sum(axes)
    return np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)


def get_segmenter(dataset: Dataset) -> Segmenter:
    """The segmenter of a data set with masks, from the cache or trained now.

    Raises:
      ValueError: the controls are no masks, or of another size than the examples.
    """
    train, held_out = dataset.train, dataset.eval
    values = classes_of(train.arrays["control"])
    if not values or train.arrays["control"].shape[1:-1] != dataset.shape[:-1]:
        raise ValueError(
            f"the controls of {dataset.name!r} are no masks: those have one channel, the size of"
            f" the examples and 2 to {_MOST_CLASSES} values"
        )
    parts = [part for split in (train, held_out) for part in (split.x, split.arrays["control"])]
    fingerprint = content_hash(SETTINGS, *parts)

    def make() -> tuple[Any, float]:
        _LOG.info("training the segmenter of %s, once", dataset.name)
        made = Segmenter(_train(dataset, values), values, 0.0, fingerprint)
        agreed = float(agreement(made, held_out.x, held_out.arrays["control"]).mean())
        _LOG.info("intersection over union %.3f on held-out pairs", agreed)
        return made.params, agreed

    params, agreed = judges.kept("segmenters", dataset, fingerprint, "iou", make)
    return Segmenter(params, values, agreed, fingerprint)


def read_masks(segmenter: Segmenter, x: np.ndarray) -> np.ndarray:
    """The class of every place of examples, (N, ..., C) uint8 or float32: (N, ...)."""
    apply = _apply(len(segmenter.values))
    parts = []
    for i in range(0, len(x), 256):
        rows = np.minimum(np.arange(i, i + min(256, len(x))), len(x) - 1)
        parts.append(np.asarray(apply(segmenter.params, to_float(x[rows])))[: len(x) - i])
    return np.concatenate(parts)


def agreement(segmenter: Segmenter, x: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`iou` of what is read in x and of masks, (N, ..., 1): (N,)."""
    expected = numbered(masks, segmenter.values)
    return iou(read_masks(segmenter, x), expected, len(segmenter.values))


@functools.lru_cache(maxsize=4)
def _apply(num_classes: int) -> Any:
    network = _Network(num_classes)
    return jax.jit(lambda params, x: jnp.argmax(network.apply({"params": params}, x), axis=-1))


def _train(dataset: Dataset, values: tuple[float, ...]) -> Any:
    """Adam on the cross-entropy of every place, examples mirrored along random axes and noised a
    little, since samples are not as clean as data."""
    network, size = _Network(len(values)), SETTINGS["batch_size"]
    x, number = dataset.train.x, numbered(dataset.train.arrays["control"], values)
    decay = optax.cosine_decay_schedule(SETTINGS["learning_rate"], SETTINGS["steps"])

    def loss(params, batch):
        logits = network.apply({"params": params}, batch["x"])
        of_places = optax.softmax_cross_entropy_with_integer_labels(logits, batch["number"])
        return of_places.mean()

    def batches():
        rng = np.random.default_rng(0)
        for _ in range(SETTINGS["steps"]):
            rows = rng.integers(0, len(x), size)
            axes = [a for a in range(1, x.ndim - 1) if rng.random() < 0.5]
            noised = to_float(x[rows]) + rng.normal(0, 0.05, (size, *x.shape[1:]))
            mirrored = np.flip(noised, axes).astype(np.float32)
            yield {"x": mirrored, "number": np.flip(number[rows], axes)}

    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *dataset.shape)))["params"]
    return judges.fitted(loss, params, optax.adam(decay), batches())
