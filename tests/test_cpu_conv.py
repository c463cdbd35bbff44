"""The CPU's convolutions and products against the plain ones, and who gets which."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_trees_close, compare_forms, equations, quick_jit

from diffax.models import layers, operations, platform
from diffax.models.cpu import conv, winograd

pytestmark = pytest.mark.usefixtures("hasty_compiler")


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
        monkeypatch.setattr(winograd, name, 20)  # one image, or several, at a time
    args = normal(0, *shape), normal(1, 3, 3, shape[-1], features)
    weight = normal(2, *shape[:-1], features)
    compare_forms([conv_plain, winograd.conv_3x3], args, weight, 1e-5)


@pytest.mark.parametrize("matrices", [winograd.ROWS, winograd.IMAGES])
def test_minimal_filtering_filters(matrices):
    """In float64, for every input and filter that has a single one."""
    for x, kernel in itertools.product(np.eye(6), np.eye(3)):
        products = (matrices.filter @ kernel) * (matrices.input @ x)
        np.testing.assert_allclose(
            matrices.output @ products, np.correlate(x, kernel, "valid"), atol=1e-14
        )


@pytest.mark.parametrize("least", [2, 4])
def test_the_convolution_of_4x4_images_is_the_convolution(least, monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_IMAGES_IN_HALVES", least)  # in halves, or all at once
    args = normal(0, 3, 4, 4, 2), normal(1, 3, 3, 2, 3)
    compare_forms([conv_plain, winograd.conv_of_4x4], args, normal(2, 3, 4, 4, 3), 1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 3, 2, 2), (1, 2, 1, 3, 2)])
def test_an_upsampled_convolution_is_upsampling_and_convolution(shape):
    args = normal(0, *shape), normal(1, *(3,) * (len(shape) - 2), 2, 3)
    weight = normal(2, shape[0], *(2 * size for size in shape[1:-1]), 3)
    forms = [operations.upsampled_conv, conv.upsampled_conv]
    compare_forms(forms, args, weight, 1e-5)


def test_products_agree():
    args = normal(0, 2, 2, 3, 4), normal(1, 4, 6)
    compare_forms([product_plain, conv.product_cpu], args, normal(2, 2, 2, 3, 6), 1e-5)


def test_bfloat16_stays_bfloat16():
    x, kernel = normal(0, 2, 4, 4, 3).astype(jnp.bfloat16), normal(1, 3, 3, 3, 2)
    kernel = kernel.astype(jnp.bfloat16)
    doubled = [operations.upsampled_conv, conv.upsampled_conv]
    flat = [product_plain, conv.product_cpu]
    for forms, args in ((doubled, (x, kernel)), (flat, (x, kernel[0, 0]))):
        want, got = (quick_jit(form)(*args) for form in forms)
        assert want.dtype == got.dtype == jnp.bfloat16
        assert_trees_close(want.astype(jnp.float32), got.astype(jnp.float32), 0.03)


def test_vmap_maps_either_argument():
    x, kernels = normal(0, 2, 4, 8, 3), normal(1, 2, 3, 3, 3, 2)
    for axes, args in (((None, 0), (x, kernels)), ((0, None), (x[:, None], kernels[0]))):
        forms = [jax.vmap(form, axes) for form in (conv_plain, winograd.conv_3x3)]
        assert_trees_close(*(quick_jit(form)(*args) for form in forms), 1e-5)


# Who gets which

NAMES = {"conv_3x3_wide", "conv_3x3_narrow"}


def primitives(function, *args):
    jaxpr = jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr  # traced anew
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
    monkeypatch.setattr(conv, "LEAST_WORK", 1)
    monkeypatch.setattr(platform, "alone", lambda: True)
    module = layers.conv(features, len(shape) - 2, layers.DTYPES[dtype], None, **fields)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert bool(NAMES & primitives(module.apply, variables, x)) == fast
    monkeypatch.setattr(conv, "LEAST_WORK", 1e12)
    assert not NAMES & primitives(module.apply, variables, x)


def test_4x4_images_are_one_tile_each(monkeypatch):
    monkeypatch.setattr(platform, "alone", lambda: True)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)
    for shape, form in (
        ((32, 4, 4, 16), winograd.conv_of_4x4),
        ((31, 4, 4, 16), None),
        ((999, 8, 4, 16), None),
        ((9999, 4, 8, 16), winograd.conv_3x3),
    ):
        assert conv._fast_conv(jax.ShapeDtypeStruct(shape, jnp.float32), kernel) is form


def test_one_cpu_device_is_asked_for(monkeypatch):
    for on_cpu, devices, alone in ((True, 1, True), (True, 8, False), (False, 1, False)):
        monkeypatch.setattr(platform, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        assert platform.alone() == alone


def test_layers_keep_the_parameters_and_values_of_flax(monkeypatch):
    """Names, shapes and what is drawn, on any platform: files of parameters stay readable."""
    x = normal(0, 2, 4, 8, 16)
    trees = []
    for fast in (True, False):
        monkeypatch.setattr(conv, "LEAST_WORK", 1)
        monkeypatch.setattr(platform, "alone", lambda fast=fast: fast)
        monkeypatch.setattr(platform, "on_cpu", lambda fast=fast: fast)
        for make in (layers.conv, layers.upsampling_conv):
            module = make(16, 2, jnp.float32, None)
            trees.append(quick_jit(module.init_with_output)(jax.random.key(1), x))
        module = layers.dense(6, jnp.float32, None)
        trees.append(quick_jit(module.init_with_output)(jax.random.key(1), x))
    for got, want in zip(trees[:3], trees[3:]):
        assert set(got[1]["params"]) == {"kernel", "bias"}
        assert_trees_close(got, want, 1e-5)


def test_devices_that_share_a_batch_get_the_plain_forms(monkeypatch):
    """Several devices by their number, one by the mesh it is under: there gradients agree."""
    monkeypatch.setattr(conv, "LEAST_WORK", 1)
    module = layers.dense(5, jnp.float32, None)
    x, kernel = normal(0, 8, 4, 3), dict(params=dict(kernel=normal(1, 3, 5), bias=jnp.zeros(5)))

    def gradient(kernel, x):
        return jax.grad(lambda kernel: jnp.sin(module.apply(kernel, x)).sum())(kernel)

    assert "product" not in primitives(gradient, kernel, x)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "product" in primitives(gradient, kernel, x)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    specs = dict(in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())
    spread = jax.shard_map(gradient, mesh=mesh, **specs)  # it sums over devices by itself
    assert_trees_close(quick_jit(gradient)(kernel, x), quick_jit(spread)(kernel, x), 1e-5)


def test_a_function_of_one_argument_alone_can_be_linearized():
    x, kernel = normal(0, 2, 4, 8, 3), normal(1, 3, 3, 3, 2)
    along = functools.partial(winograd.conv_3x3, kernel=kernel)
    _, tangent = jax.linearize(along, x)
    np.testing.assert_allclose(tangent(x), conv_plain(x, kernel), atol=5e-5)
