"""The CPU's convolutions and products against the plain ones, and who gets which."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_trees_close, compare_forms, equations, quick_jit

from diffax.models import layers, platform, platform_conv


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def conv_plain(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def product_plain(x, kernel):
    return jnp.einsum("...c,cd->...d", x, kernel)


# Fewer channels than outputs and more take different forms of the weight gradient.
@pytest.mark.parametrize("shape, features", [((2, 5, 8, 2), 3), ((6, 1, 4, 3), 2)])
def test_the_convolution_of_fewer_multiplications_is_the_convolution(shape, features, monkeypatch):
    for name in ("ENTRIES_OF_CHUNK", "TILES_OF_CHUNK"):
        monkeypatch.setattr(platform_conv, name, 20)  # one image, or several, at a time
    args = normal(0, *shape), normal(1, 3, 3, shape[-1], features)
    weight = normal(2, *shape[:-1], features)
    compare_forms([conv_plain, platform_conv.conv_3x3], args, weight, 1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 3, 2, 2), (1, 2, 1, 3, 2)])
def test_an_upsampled_convolution_is_upsampling_and_convolution(shape):
    args = normal(0, *shape), normal(1, *(3,) * (len(shape) - 2), 2, 3)
    weight = normal(2, shape[0], *(2 * size for size in shape[1:-1]), 3)
    forms = [platform_conv.upsampled_conv_plain, platform_conv.upsampled_conv_cpu]
    compare_forms(forms, args, weight, 1e-5)


def test_products_agree():
    args = normal(0, 2, 2, 3, 4), normal(1, 4, 6)
    compare_forms([product_plain, platform_conv.product_cpu], args, normal(2, 2, 2, 3, 6), 1e-5)


def test_bfloat16_stays_bfloat16():
    x, kernel = normal(0, 2, 4, 4, 3).astype(jnp.bfloat16), normal(1, 3, 3, 3, 2)
    kernel = kernel.astype(jnp.bfloat16)
    doubled = [platform_conv.upsampled_conv_plain, platform_conv.upsampled_conv_cpu]
    flat = [product_plain, platform_conv.product_cpu]
    for forms, args in ((doubled, (x, kernel)), (flat, (x, kernel[0, 0]))):
        want, got = (quick_jit(form)(*args) for form in forms)
        assert want.dtype == got.dtype == jnp.bfloat16
        assert_trees_close(want.astype(jnp.float32), got.astype(jnp.float32), 0.03)


def test_vmap_maps_either_argument():
    x, kernels = normal(0, 2, 4, 8, 3), normal(1, 2, 3, 3, 3, 2)
    for axes, args in (((None, 0), (x, kernels)), ((0, None), (x[:, None], kernels[0]))):
        forms = [jax.vmap(form, axes) for form in (conv_plain, platform_conv.conv_3x3)]
        assert_trees_close(*(quick_jit(form)(*args) for form in forms), 1e-5)


# Who gets which

NAMES = {"conv_3x3_wide", "conv_3x3_narrow"}


def primitives(function, *args):
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return {eqn.primitive.name for eqn in equations(jaxpr)}


@pytest.mark.parametrize(
    "shape, features, dtype, fields, fast",
    [
        ((2, 8, 16, 16), 16, "float32", {}, True),
        ((2, 8, 16, 32), 16, "float32", {}, True),
        ((2, 8, 16, 16), 16, "bfloat16", {}, False),
        ((2, 8, 10, 16), 16, "float32", {}, False),  # no whole tiles
        ((2, 8, 16, 3), 16, "float32", {}, False),  # few channels
        ((2, 8, 16, 16), 16, "float32", dict(strides=2), False),
        ((2, 8, 16, 16), 16, "float32", dict(kernel_dilation=2), False),
        ((2, 8, 16, 16), 16, "float32", dict(feature_group_count=2), False),
        ((2, 16, 16), 16, "float32", {}, False),
        ((2, 8, 8, 8, 16), 16, "float32", {}, False),
    ],
)
def test_only_what_gains_is_computed_otherwise(shape, features, dtype, fields, fast, monkeypatch):
    monkeypatch.setattr(platform_conv, "LEAST_WORK", 1)
    monkeypatch.setattr(platform_conv, "alone", lambda: True)
    module = layers.conv(features, len(shape) - 2, layers.DTYPES[dtype], None, **fields)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert bool(NAMES & primitives(module.apply, variables, x)) == fast
    monkeypatch.setattr(platform_conv, "LEAST_WORK", 1e12)
    assert not NAMES & primitives(module.apply, variables, x)


def test_one_cpu_device_is_asked_for(monkeypatch):
    for on_cpu, devices, alone in ((True, 1, True), (True, 8, False), (False, 1, False)):
        monkeypatch.setattr(platform, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        assert platform_conv.alone() == alone


def test_layers_keep_the_parameters_and_values_of_flax(monkeypatch):
    """Names, shapes and what is drawn, on any platform: files of parameters stay readable."""
    x = normal(0, 2, 4, 8, 16)
    trees = []
    for fast in (True, False):
        monkeypatch.setattr(platform_conv, "LEAST_WORK", 1)
        monkeypatch.setattr(platform_conv, "alone", lambda fast=fast: fast)
        monkeypatch.setattr(platform, "on_cpu", lambda fast=fast: fast)
        for make in (layers.conv, layers.upsampling_conv):
            module = make(16, 2, jnp.float32, None)
            trees.append(quick_jit(module.init_with_output)(jax.random.key(1), x))
        module = layers.dense(6, jnp.float32, None)
        trees.append(quick_jit(module.init_with_output)(jax.random.key(1), x))
    for got, want in zip(trees[:3], trees[3:]):
        assert set(got[1]["params"]) == {"kernel", "bias"}
        assert_trees_close(got, want, 1e-5)


def test_products_of_a_sharded_batch_stay_where_they_are():
    """The gradient of a batch on eight devices: one device's numbers, and no gathering of x."""
    mesh = jax.make_mesh((8,), ("data",))
    over_batch = jax.NamedSharding(mesh, jax.P("data"))
    everywhere = jax.NamedSharding(mesh, jax.P())
    x, kernel = normal(0, 8, 4, 3), normal(1, 3, 5)

    def total(x, kernel):
        return jnp.sin(platform_conv.product_cpu(x, kernel)).sum()

    gradient = jax.grad(total, argnums=(0, 1))
    spread = quick_jit(gradient, in_shardings=(over_batch, everywhere))
    assert_trees_close(spread(x, kernel), quick_jit(gradient)(x, kernel), 1e-5)
    assert "all-gather" not in spread.lower(x, kernel).compile().as_text()


def test_a_function_of_one_argument_alone_can_be_linearized():
    x, kernel = normal(0, 2, 4, 8, 3), normal(1, 3, 3, 3, 2)
    along = functools.partial(platform_conv.conv_3x3, kernel=kernel)
    _, tangent = jax.linearize(along, x)
    np.testing.assert_allclose(tangent(x), conv_plain(x, kernel), atol=1e-5)
