"""Embeddings, normalisation, attention: closed forms, and that both platforms' forms agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compare_forms, equations

from diffax.models import embeddings, operations, platform
from diffax.models.cpu import operations as cpu_operations

pytestmark = pytest.mark.usefixtures("hasty_compiler")

# Closed forms


def test_sinusoidal_embedding_is_its_closed_form():
    position = np.array([0.0, 0.5, 7.0, 123.25, 1000.0])
    with jax.enable_x64(True):
        got = np.asarray(embeddings.sinusoidal(jnp.asarray(position), 6))
    assert got.dtype == np.float64
    angle = position[:, None] / np.array([1.0, 10000 ** (1 / 3), 10000 ** (2 / 3)])
    want = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    single = embeddings.sinusoidal(jnp.asarray(position, jnp.float32), 6)
    np.testing.assert_allclose(single, want, rtol=0, atol=1e-4)
    assert embeddings.sinusoidal(jnp.arange(3), 6).dtype == jnp.float32


def test_log_snr_position_is_affine_and_bounded():
    log_snr = jnp.array([-jnp.inf, -30.0, -20.0, -1.0, 0.0, 5.0, 20.0, 1e9, jnp.inf])
    want = [100, 100, 100, 52.5, 50, 37.5, 0, 0, 0]
    np.testing.assert_allclose(embeddings.log_snr_position(log_snr), want, rtol=1e-6)
    slope = jax.vmap(jax.grad(embeddings.log_snr_position))(log_snr)
    np.testing.assert_array_equal(
        np.asarray(slope)[[0, 1, 3, 4, 5, 7, 8]], [0, 0, -2.5, -2.5, -2.5, 0, 0]
    )
    assert np.all(np.isfinite(np.asarray(slope)))
    assert np.isnan(embeddings.log_snr_position(jnp.array(jnp.nan)))


def test_the_embedding_tells_levels_apart_without_haste():
    log_snr = jnp.linspace(-20, 20, 401)
    waves = embeddings.sinusoidal(embeddings.log_snr_position(log_snr), 32)
    apart = np.linalg.norm(np.asarray(waves)[:, None] - np.asarray(waves)[None], axis=-1)
    steps = np.abs(np.subtract.outer(np.arange(401), np.arange(401)))
    assert apart[steps == 1].min() > 0.1  # levels 0.1 apart
    assert apart[steps >= 10].min() > 1.0  # nothing returns to where it was
    assert apart[steps == 1].max() < 0.5


def group_norm_reference(x, scale, bias, groups):
    """In numpy, two passes."""
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
    return normal.reshape(x.shape) * scale + bias


def attention_reference(query, key, value):
    out = np.empty_like(query)
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        logits = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ value[b, :, h]
    return out


GROUP_NORMS = [operations.group_norm, cpu_operations.group_norm]
ATTENTIONS = [operations.attention, cpu_operations.attention]


@pytest.mark.parametrize("group_norm", GROUP_NORMS)
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 4, 6), (2, 2, 3, 2, 6)])
def test_group_norm_is_its_closed_form(group_norm, shape):
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(2, 3, shape), rng.normal(size=6), rng.normal(size=6)
    with jax.enable_x64(True):
        got = np.asarray(group_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), 3))
    np.testing.assert_allclose(got, group_norm_reference(x, scale, bias, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_is_its_closed_form(attention):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 5, 3, 4))
    got = attention(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got, attention_reference(q, k, v), rtol=0, atol=2e-6)


def test_upsampling_repeats_each_entry():
    x = jnp.arange(2 * 2 * 3 * 2).reshape(2, 2, 3, 2)
    want = np.asarray(x)[:, [0, 0, 1, 1]][:, :, [0, 0, 1, 1, 2, 2]]
    np.testing.assert_array_equal(operations.upsample(x), want)
    used = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(operations.upsample)(x).jaxpr)}
    assert "gather" not in used


# The two forms of each operation


@pytest.mark.parametrize("per_example", [False, True])
def test_both_group_norms_agree(per_example):
    rng = np.random.default_rng(1)
    shape = (2, 8) if per_example else (8,)
    with jax.enable_x64(True):
        x, weight = jnp.asarray(rng.normal(1, 2, (2, 2, 3, 4, 8)))
        scale, bias = jnp.asarray(rng.normal(size=(2, *shape)))
        forms = [lambda x, s, b, form=form: form(x, s, b, 2) for form in GROUP_NORMS]
        compare_forms(forms, (x, scale, bias), weight, 1e-11)


def test_both_attentions_agree():
    q, k, v, weight = jax.random.normal(jax.random.key(0), (4, 2, 7, 3, 4))
    compare_forms(ATTENTIONS, (q, k, v), weight, 3e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_silus_agree(dtype):
    x = jnp.array([-1e4, -90.0, -20.0, -1.0, 0.0, 0.5, 3.0, 100.0, 1e4], dtype)
    rtol = 3e-6 if dtype == jnp.float32 else 0.01
    compare_forms([operations.silu, cpu_operations.silu], (x,), jnp.ones(x.shape, dtype), rtol)


def test_the_backend_decides(monkeypatch):
    assert platform.on_cpu() == (jax.default_backend() == "cpu")
    chosen = platform.by_platform(lambda x: ("cpu", x), lambda x: ("plain", x))
    for answer, form in ((True, "cpu"), (False, "plain")):
        monkeypatch.setattr(platform, "on_cpu", lambda answer=answer: answer)
        assert chosen(3) == (form, 3)


@pytest.mark.parametrize("group_norm", GROUP_NORMS)
def test_one_pass_variance_is_accurate_however_large_the_mean(group_norm):
    normal = np.random.default_rng(0).normal(size=(2, 64, 8))
    one, zero = jnp.ones(8), jnp.zeros(8)
    for mean in (10, 1000, 30000):  # in deviations
        x = (normal + mean).astype(np.float32)
        want = group_norm_reference(x.astype(np.float64), 1.0, 0.0, 2)
        got = group_norm(jnp.asarray(x), one, zero, 2)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    flat = jnp.full((2, 64, 8), 1e6)
    out, gradient = jax.value_and_grad(lambda x: group_norm(x, one, zero, 2).sum())(flat)
    assert np.isfinite(out)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("group_norm", GROUP_NORMS)
def test_statistics_of_bfloat16_are_taken_in_float32(group_norm):
    x = jnp.asarray(np.random.default_rng(0).normal(10, 1, (2, 4096, 8)), jnp.bfloat16)
    got = group_norm(x, jnp.ones(8), jnp.zeros(8), 2)
    assert got.dtype == jnp.float32
    want = group_norm_reference(np.asarray(x, np.float64), 1.0, 0.0, 2)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)
