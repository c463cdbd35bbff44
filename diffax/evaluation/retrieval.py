"""Whether samples are of what their captions say, by a judge of pictures and captions.

The judge is a small network that is trained once on the data's own pairs and kept in the cache: it
gives vectors to examples and to captions, and is trained so that those of a pair agree (Radford
2021). A sample is right if its own caption fits it best among several. The judge's own share on
held-out pairs says how far it is to be trusted.
"""

import logging
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffax.data import Dataset
from diffax.data.dataset import to_float
from diffax.evaluation import extractors, judges
from diffax.files import content_hash

_LOG = logging.getLogger("diffax")
CANDIDATES = 16  # captions among which a sample's own is to be found
# A change of any of these, or of the network, makes another judge.
SETTINGS = {
    **{"version": 1, "steps": 600, "batch_size": 128, "learning_rate": 2e-3, "width": 64},
    **{"words": 4096, "most_words": 16, "weight_decay": 1e-2},
}


class Judge(NamedTuple):
    """The network of a data set with its parameters.

    Attributes:
      captions: the distinct ones of the data set.
      accuracy: the share of held-out examples whose own caption it finds.
      fingerprint: of the data and the settings.
    """

    params: Any
    captions: tuple[str, ...]
    accuracy: float
    fingerprint: str


class _Network(nn.Module):
    """Examples and captions as vectors of norm 1, and the logarithm of a scale."""

    @nn.compact
    def __call__(self, x: jax.Array, words: jax.Array, train: bool = False) -> tuple:
        width = SETTINGS["width"]
        features, _ = extractors.Network(1, width, name="examples")(x, train)
        table = nn.Embed(SETTINGS["words"], width, name="words")
        there = (words >= 0)[..., None]
        mean = jnp.sum(table(jnp.maximum(words, 0)) * there, 1) / jnp.maximum(there.sum(1), 1)
        made = [
            nn.Dense(width, name="example")(features),
            nn.Dense(width, name="caption")(nn.relu(nn.Dense(width, name="hidden")(mean))),
        ]
        scale = self.param("scale", nn.initializers.constant(2.3), ())
        return *(v / jnp.linalg.norm(v + 1e-6, axis=-1, keepdims=True) for v in made), scale


def words_of(captions: Sequence[str]) -> np.ndarray:
    """The words of captions by number, (n, 16) int32; -1 where there are no more.

    A word's number is its CRC-32 modulo 4096, so that no list of words is kept.
    """
    found = np.full((len(captions), SETTINGS["most_words"]), -1, np.int32)
    for row, caption in enumerate(captions):
        words = re.findall(r"\w+", caption.lower())[: SETTINGS["most_words"]]
        found[row, : len(words)] = [zlib.crc32(w.encode()) % SETTINGS["words"] for w in words]
    return found


def get_judge(dataset: Dataset) -> Judge:
    """The judge of a data set with captions, from the cache or trained now.

    Raises:
      ValueError: the examples have no spatial axis.
    """
    if len(dataset.shape) < 2:
        raise ValueError(
            f"captions are judged of images and signals, and {dataset.name!r} has examples of shape"
            f" {dataset.shape}"
        )
    parts = (dataset.train, dataset.eval)
    fingerprint = content_hash(
        SETTINGS, *(v for s in parts for v in (s.x, s.arrays["text"].tolist()))
    )
    captions = tuple(sorted({*dataset.train.arrays["text"], *dataset.eval.arrays["text"]}))

    def make() -> tuple[Any, float]:
        _LOG.info("training the judge of the captions of %s, once", dataset.name)
        judge = Judge(_train(dataset), captions, 0.0, fingerprint)
        held_out = dataset.eval
        right = found(judge, held_out.x, held_out.arrays["text"].tolist(), seed=0)
        _LOG.info("it finds %.3f of the captions of held-out data", right.mean())
        return judge.params, float(right.mean())

    params, accuracy = judges.kept("judges", dataset, fingerprint, "accuracy", make)
    return Judge(params, captions, accuracy, fingerprint)


def found(judge: Judge, x: np.ndarray, captions: Sequence[str], seed: int) -> np.ndarray:
    """Whether the judge finds the caption of each example, (N,) booleans.

    It is to fit best among 16, or as many as there are: its own and others of the data set, drawn
    by the seed. x: (N, ..., C), uint8 or float32 in [-1, 1].
    """
    others, rng = np.array(judge.captions), np.random.default_rng(seed)
    distinct = sorted({*captions, *judge.captions})
    number = {caption: i for i, caption in enumerate(distinct)}
    of_captions = _vectors(judge, np.zeros((1, *x.shape[1:]), np.float32), words_of(distinct))[1]
    of_examples = np.concatenate(
        [
            _vectors(judge, to_float(x[i : i + 256]), words_of([""]))[0]
            for i in range(0, len(x), 256)
        ]
    )
    right = np.zeros(len(x), bool)
    for row, caption in enumerate(captions):
        wrong = rng.permutation(others[others != caption])[: CANDIDATES - 1]
        fits = of_captions[[number[caption], *(number[c] for c in wrong)]] @ of_examples[row]
        right[row] = fits[0] > fits[1:].max(initial=-np.inf)
    return right


@jax.jit
def _apply(params: Any, x: jax.Array, words: jax.Array) -> tuple:
    return _Network().apply({"params": params}, x, words)[:2]


def _vectors(judge: Judge, x: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    examples, captions = _apply(judge.params, x, words)
    return np.asarray(examples), np.asarray(captions)


def _train(dataset: Dataset) -> Any:
    """AdamW on the symmetric cross-entropy of each batch, examples shifted by up to a pixel.

    Another example of the same caption is no wrong answer, and is left out.
    """
    network, size = _Network(), SETTINGS["batch_size"]
    x, words = dataset.train.x, words_of(dataset.train.arrays["text"].tolist())
    _, number = np.unique(dataset.train.arrays["text"], return_inverse=True)
    decay = optax.cosine_decay_schedule(SETTINGS["learning_rate"], SETTINGS["steps"])
    optimizer = optax.adamw(decay, weight_decay=SETTINGS["weight_decay"])

    def loss(params, batch_and_key):
        batch, key = batch_and_key
        shift_key, dropout_key = jax.random.split(key)
        shift = jax.random.randint(shift_key, (batch["x"].ndim - 2,), -1, 2)
        shifted = jnp.roll(batch["x"], shift, axis=tuple(range(1, batch["x"].ndim - 1)))
        rngs = {"dropout": dropout_key}
        made = network.apply({"params": params}, shifted, batch["words"], True, rngs=rngs)
        examples, captions, scale = made
        fits = jnp.exp(scale) * examples @ captions.T
        same = batch["number"][:, None] == batch["number"]
        fits = jnp.where(same & ~jnp.eye(len(same), dtype=bool), -1e9, fits)
        own = jnp.arange(len(fits))
        both = (fits, fits.T)
        losses = [optax.softmax_cross_entropy_with_integer_labels(f, own) for f in both]
        return jnp.mean(jnp.stack(losses))

    def batches(key):
        rng = np.random.default_rng(0)
        for own in jax.random.split(key, SETTINGS["steps"]):
            rows = rng.integers(0, len(x), size)
            yield {"x": to_float(x[rows]), "words": words[rows], "number": number[rows]}, own

    init_key, run_key = jax.random.split(jax.random.key(0))
    params = jax.jit(network.init)(init_key, jnp.zeros((1, *dataset.shape)), words[:1])["params"]
    return judges.fitted(loss, params, optimizer, batches(run_key))
