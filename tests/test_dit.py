"""The diffusion transformer: patches, places, adaLN-Zero."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import BATCH, assert_trees_close, equations, inputs, quick_jit, random_variables

from diffax import models
from diffax.models.dit import DiTBlock, from_patches, modulated, places, to_patches

SMALL = dict(width=16, depth=2, head_width=8)


def dit(**fields):
    return models.get("dit", **{**SMALL, **fields})


@given(
    grid=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    size=st.integers(1, 3),
    channels=st.integers(1, 3),
)
def test_patches_are_cut_and_put_together(grid, size, channels):
    shape = (2, *(size * count for count in grid), channels)
    x = np.arange(math.prod(shape)).reshape(shape)
    tokens = to_patches(x, size)
    assert tokens.shape == (2, math.prod(grid), size ** len(grid) * channels)
    last = x[(0, *(slice(-size, None) for _ in grid))]
    np.testing.assert_array_equal(tokens[0, -1], last.reshape(-1))
    np.testing.assert_array_equal(from_patches(tokens, tuple(grid), size), x)


def test_no_two_places_are_alike():
    waves = np.asarray(places((8, 16), 16))
    assert waves.shape == (128, 16)
    distances = np.linalg.norm(waves[:, None] - waves[None], axis=-1)
    assert distances[~np.eye(128, dtype=bool)].min() > 0.1
    np.testing.assert_array_equal(waves[0], [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4)
    assert np.all(waves[1, :8] == waves[0, :8])  # the first axis, along which the two agree
    assert not np.allclose(waves[1, 8:], waves[0, 8:])


@pytest.mark.parametrize("shape", [(8, 3), (8, 4, 1), (4, 2, 4, 1)])
def test_any_number_of_axes(shape):
    x, log_snr = inputs(shape)
    module = dit(width=24, depth=1, head_width=24)
    out = quick_jit(module.apply)(random_variables(module, x, log_snr), x, log_snr)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32
    assert np.all(np.abs(np.asarray(out)) > 0)


def test_it_starts_at_zero_and_every_block_at_the_identity():
    x, log_snr = inputs()
    module = dit()
    variables = quick_jit(module.init)(jax.random.key(0), x, log_snr)
    np.testing.assert_array_equal(quick_jit(module.apply)(variables, x, log_snr), 0)
    h, emb = jnp.arange(96.0).reshape(2, 3, 16), jnp.ones((2, 16))
    block = DiTBlock(8, 4.0, jnp.float32)
    out, own = block.init_with_output(jax.random.key(0), h, emb)
    np.testing.assert_array_equal(out, h)
    assert jax.tree.structure(own["params"]) == jax.tree.structure(variables["params"]["block_1"])


def test_a_block_is_its_equation():
    rng = np.random.default_rng(0)
    h, emb = rng.normal(size=(2, 3, 4)).astype("f"), rng.normal(size=(2, 5)).astype("f")
    block = DiTBlock(4, 2.0, jnp.float32)
    variables = random_variables(block, h, emb)
    out = block.apply(variables, h, emb)

    def dense(name, a):
        return a @ np.asarray(p[name]["kernel"], np.float64) + np.asarray(p[name]["bias"])

    def norm(a):
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)

    p = variables["params"]
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = np.split(
        dense("modulation", emb)[:, None], 6, axis=-1
    )
    q, k, v = np.split(dense("qkv", norm(h) * (1 + scale) + shift), 3, axis=-1)
    weights = np.exp(q @ k.transpose(0, 2, 1) / 2)
    h = h + gate * dense("project", weights / weights.sum(-1, keepdims=True) @ v)
    hidden = dense("mlp_0", norm(h) * (1 + scale_mlp) + shift_mlp)
    gelu = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(out, h + gate_mlp * dense("mlp_1", gelu), rtol=1e-4, atol=1e-5)


def test_the_norm_of_bfloat16_is_taken_in_float32():
    h = jnp.array([[256.0, 257.0, 258.0, 259.0]])
    exact = modulated(h, 0.0, 0.0)
    np.testing.assert_allclose(exact, (h - 257.5) / np.sqrt(1.25), rtol=1e-5)
    narrow = h.astype(jnp.bfloat16)
    want = modulated(narrow.astype(jnp.float32), 0.0, 0.0)
    np.testing.assert_allclose(modulated(narrow, 0.0, 0.0).astype(jnp.float32), want, atol=1e-2)


def test_level_and_label_matter_and_the_null_class_is_no_label():
    x, log_snr = inputs((4, 4, 1))
    module = dit(num_classes=3)
    variables, apply = random_variables(module, x, log_snr), quick_jit(module.apply)
    none = apply(variables, x, log_snr)
    np.testing.assert_allclose(none, apply(variables, x, log_snr, jnp.full(BATCH, 3)), atol=1e-6)
    for other in (
        apply(variables, x, log_snr, jnp.array([1, 3])),
        apply(variables, x, log_snr.at[0].add(0.3)),
    ):
        assert float(jnp.abs(other[0] - none[0]).max()) > 1e-3 * float(jnp.abs(none[0]).max())
        np.testing.assert_allclose(other[1], none[1], rtol=1e-4, atol=1e-5)


def test_rematerialisation_changes_no_value_and_no_gradient():
    x, log_snr = inputs((4, 4, 1))
    results = []
    for remat in (False, True):
        module = dit(remat=remat)
        variables = random_variables(module, x, log_snr)

        def loss(variables, module=module):
            return (module.apply(variables, x, log_snr, train=True) ** 2).mean()

        names = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(loss)(variables).jaxpr)}
        assert any(name in names for name in ("checkpoint", "remat2", "remat")) == remat
        results.append(quick_jit(jax.value_and_grad(loss))(variables))
    assert_trees_close(*results, rtol=1e-4)


def test_the_place_of_a_patch_matters():
    """Without places, what is moved by a patch would come out moved."""
    x, log_snr = inputs((4, 4, 1))
    module = dit()
    variables, apply = random_variables(module, x, log_snr), quick_jit(module.apply)
    moved = apply(variables, jnp.roll(x, 2, axis=1), log_snr)
    back = jnp.roll(moved, -2, axis=1)
    out = apply(variables, x, log_snr)
    assert float(jnp.abs(back - out).max()) > 1e-2 * float(jnp.abs(out).max())


def test_wrong_sizes_are_refused():
    x, log_snr = inputs((6, 8, 1))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"size 6 x 8, which patch_size=4 does not divide;.* of 4"):
        dit(patch_size=4).init(key, x, log_snr)
    with pytest.raises(ValueError, match=r"width is 18; it must be a multiple of 4, since .* 2"):
        dit(width=18, head_width=18).init(key, x, log_snr)
    with pytest.raises(ValueError, match=r"a DiT takes \(B, ..., C\) with a spatial axis"):
        dit().init(key, x[:, 0, 0], log_snr)
    with pytest.raises(ValueError, match="head_width is 6, but attention acts on 16 channels"):
        dit(head_width=6)


def test_the_bound_of_its_size_is_below_it():
    x, log_snr = inputs()
    for fields in ({}, dict(width=64, depth=4, mlp_ratio=2.5)):
        module = dit(**fields)
        variables = jax.eval_shape(module.init, jax.random.key(0), x, log_snr)
        size = sum(leaf.size for leaf in jax.tree.leaves(variables))
        assert 0.6 * size < module.least_parameters() < size
