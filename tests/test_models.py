"""diffax.models: fields, shapes, what the networks are told, transformations of the whole."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from networks import (
    BATCH,
    TINY,
    assert_trees_close,
    equations,
    inputs,
    quick_jit,
    random_variables,
    unet,
)

from diffax import models
from diffax.models import layers, platform

# Names, fields, values


def test_get_knows_the_table():
    assert models.names() == ["autoencoder", "dit", "generator", "mlp", "unet"]
    assert models.get("unet", channels=32).channels == 32
    assert models.get("unet", channel_mults=[1, 2]) == models.get("unet", channel_mults=(1, 2))
    assert hash(models.get("unet", channel_mults=[1, 2])) is not None
    assert models.fields("mlp")[:2] == ["width", "depth"]


def test_unknown_names_and_fields_are_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="model='resnet'.*: allowed are unet, dit, mlp"):
        models.get("resnet")
    with pytest.raises(
        ValueError,
        match="'chanels' is no field of model 'unet' .did you mean channels.*; it has channels,",
    ):
        models.get("unet", chanels=3)
    with pytest.raises(ValueError, match="'parent' is no field"):
        models.get("mlp", parent=None)


@pytest.mark.parametrize(
    "name, field, value, rule",
    [
        ("unet", "dropout", -0.1, r"a number in \[0, 1\)"),
        ("unet", "dropout", 1.0, r"a number in \[0, 1\)"),
        ("unet", "dropout", "0.1", r"a number in \[0, 1\)"),
        ("unet", "embedding", "film", "one of add, scale_shift"),
        ("unet", "dtype", "float16", "one of float32, bfloat16"),
        ("unet", "dtype", ["float32"], "one of float32, bfloat16"),
        ("unet", "conditioning", "time", "one of log_snr, step"),
        ("unet", "channels", 7, "an even positive integer"),
        ("unet", "channels", True, "an even positive integer"),
        ("unet", "channel_mults", (), "a sequence of at least 1 positive integers"),
        ("unet", "channel_mults", (1, 0), "a sequence of at least 1 positive integers"),
        ("unet", "attention_resolutions", 16, "a sequence of at least 0 positive integers"),
        ("unet", "num_blocks", 0, "a positive integer"),
        ("unet", "head_width", 0, "a positive integer"),
        ("unet", "num_classes", -1, "an integer >= 0"),
        ("dit", "patch_size", 0, "a positive integer"),
        ("dit", "mlp_ratio", 0.0, "a positive number"),
        ("mlp", "depth", 0, "a positive integer"),
        ("mlp", "width", 0, "an even positive integer"),
        ("mlp", "dtype", "double", "one of float32, bfloat16"),
    ],
)
def test_impossible_values_are_refused_at_construction(name, field, value, rule):
    said = rf"^{field} is .*; it must be {rule}(?: .did you mean .*)?$"
    with pytest.raises(ValueError, match=said):
        models.get(name, **{field: value})


# Shapes and sizes


@pytest.mark.parametrize("shape", [(8, 3), (8, 4, 3), (4, 2, 8, 3)])
def test_unet_takes_any_number_of_axes(shape):
    x, log_snr = inputs(shape)
    module = unet()
    out = quick_jit(module.apply)(random_variables(module, x, log_snr), x, log_snr)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32
    assert np.all(np.isfinite(out))
    assert np.all(np.abs(np.asarray(out)) > 0)


def test_unet_starts_at_zero():
    x, log_snr = inputs()
    module = unet()
    variables = quick_jit(module.init)(jax.random.key(0), x, log_snr)
    np.testing.assert_array_equal(quick_jit(module.apply)(variables, x, log_snr), 0)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    last = [k for k in paths if k.endswith(("conv_1/kernel", "project/kernel", "last/kernel"))]
    # conv_1 of 1 + 1 down, 2 middle, 2 + 2 up; attention of 1 down, 1 middle, 2 up; and the last.
    assert len(last) == 8 + 4 + 1
    assert all(np.all(np.asarray(paths[k]) == 0) for k in last)
    others = [k for k in paths if k.endswith("kernel") and k not in last]
    assert all(np.any(np.asarray(paths[k]) != 0) for k in others)


def test_a_quickly_compiled_init_draws_the_same_numbers():
    x, log_snr = inputs((2,))
    module = models.get("mlp", width=8, depth=1)
    quick = jax.jit(module.init, compiler_options=platform.run_once())
    results = [f(jax.random.key(0), x, log_snr) for f in (jax.jit(module.init), quick)]
    assert_trees_close(*results, 1e-5)


def test_mlp_starts_at_zero_and_answers_when_trained():
    x, log_snr = inputs((2,))
    module = models.get("mlp", width=16, depth=2)
    variables = quick_jit(module.init)(jax.random.key(0), x, log_snr)
    np.testing.assert_array_equal(module.apply(variables, x, log_snr), np.zeros((BATCH, 2)))
    out = module.apply(random_variables(module, x, log_snr), x, log_snr)
    assert out.shape == x.shape
    assert np.all(np.abs(np.asarray(out)) > 0)


@pytest.mark.parametrize("name, shape", [("unet", (8, 2)), ("dit", (8, 2)), ("mlp", (3,))])
def test_learned_variance_doubles_the_channels(name, shape):
    x, log_snr = inputs(shape)
    fields = TINY if name == "unet" else {}
    module = models.get(name, learned_variance=True, **fields)
    out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, log_snr)
    assert out.shape == (*x.shape[:-1], 2 * x.shape[-1])


@settings(max_examples=15, deadline=None)
@given(
    levels=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    channels=st.integers(1, 3),
)
def test_a_size_is_taken_if_and_only_if_the_levels_can_halve_it(levels, sizes, channels):
    module = unet(channel_mults=(1,) * levels)
    x = jax.ShapeDtypeStruct((BATCH, *sizes, channels), jnp.float32)
    noise_level = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    multiple = 2 ** (levels - 1)
    if all(size % multiple == 0 for size in sizes):
        out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, noise_level)
        assert out.shape == x.shape
    else:
        with pytest.raises(ValueError, match=f"multiple of {multiple}"):
            jax.eval_shape(module.init, jax.random.key(0), x, noise_level)


def test_the_refusal_names_size_levels_and_multiple():
    x, log_snr = inputs((28, 14, 1))
    with pytest.raises(ValueError, match=r"size 28 x 14, which 4 levels.*multiple of 8"):
        unet(channel_mults=(1, 1, 1, 1)).init(jax.random.key(0), x, log_snr)


def test_wrong_shapes_are_refused():
    x, log_snr = inputs()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"a U-Net takes \(B, ..., C\)"):
        unet().init(key, x[:, 0, 0], log_snr)
    with pytest.raises(ValueError, match=r"an MLP takes points, \(B, D\)"):
        models.get("mlp").init(key, x, log_snr)
    with pytest.raises(ValueError, match=r"noise_level's shape is \(2, 1\); it must be \(2,\)"):
        unet().init(key, x, log_snr[:, None])
    with pytest.raises(ValueError, match=r"noise_level's shape is \(\); it must be \(2,\)"):
        unet().init(key, x, 3.0)
    with pytest.raises(ValueError, match=r"label's shape is \(1,\); it must be \(2,\)"):
        unet(num_classes=3).init(key, x, log_snr, jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="num_classes is 0"):
        unet().init(key, x, log_snr, jnp.zeros(BATCH, jnp.int32))


@pytest.mark.parametrize("channels, width, heads", [(64, 64, 1), (128, 32, 4), (8, 64, 1)])
def test_number_of_heads(channels, width, heads):
    assert layers.num_heads(channels, width) == heads


def test_a_head_width_that_does_not_divide_is_refused():
    x, log_snr = inputs()
    with pytest.raises(ValueError, match="head_width is 6, but attention acts on 16 channels"):
        jax.eval_shape(unet(head_width=6).init, jax.random.key(0), x, log_snr)


def test_attention_stands_where_asked_and_in_the_middle():
    x, log_snr = inputs((8, 4, 1))

    def attentive(**fields):
        tree = jax.eval_shape(unet(**fields).init, jax.random.key(0), x, log_snr)["params"]
        return sorted(name for name in tree if name.endswith("_attention"))

    assert attentive(attention_resolutions=()) == ["middle_block_0_attention"]
    assert attentive(attention_resolutions=(8,)) == [
        "down_0_block_0_attention", "middle_block_0_attention",
        "up_0_block_0_attention", "up_0_block_1_attention",
    ]  # fmt: skip


@given(channels=st.integers(1, 2048))
def test_groups_divide_the_channels(channels):
    groups = layers.num_groups(channels)
    assert channels % groups == 0
    assert 1 <= groups <= 32


# What the networks are told


@pytest.fixture(scope="module")
def told():
    """A network with classes, its variables, and a jitted call."""
    module = unet(num_classes=3)
    x, log_snr = inputs()
    variables = random_variables(module, x, log_snr)
    return module, variables, quick_jit(module.apply)


def test_the_noise_level_matters(told):
    _, variables, apply = told
    x, log_snr = inputs()
    a, b = apply(variables, x, log_snr), apply(variables, x, log_snr.at[0].add(0.3))
    assert float(jnp.abs(a[0] - b[0]).max()) > 1e-3 * float(jnp.abs(a[0]).max())
    np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=1e-6)  # each example has its own


def test_no_label_is_the_null_class_and_labels_matter(told):
    _, variables, apply = told
    x, log_snr = inputs()
    none = apply(variables, x, log_snr)
    null = apply(variables, x, log_snr, jnp.full(BATCH, 3))
    np.testing.assert_allclose(none, null, rtol=1e-6, atol=1e-6)
    one = apply(variables, x, log_snr, jnp.array([1, 3]))
    assert float(jnp.abs(one[0] - null[0]).max()) > 1e-3 * float(jnp.abs(null[0]).max())
    np.testing.assert_allclose(one[1], null[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_gives_nan_not_another_class(told, label):
    _, variables, apply = told
    x, log_snr = inputs()
    out = np.asarray(apply(variables, x, log_snr, jnp.array([label, 0])))
    assert np.all(np.isnan(out[0]))
    assert np.all(np.isfinite(out[1]))


@pytest.mark.parametrize("label", [-1, 4, 2**32 + 3])
def test_a_concrete_label_out_of_range_is_refused(told, label):
    """Beyond 32 bits it would become another class; 3 is the null class."""
    module, variables, _ = told
    x, log_snr = inputs()
    with pytest.raises(ValueError, match=f"label={label}: must be a whole number from 0 to 3"):
        module.apply(variables, x, log_snr, np.array([label, 0]))


def test_the_gradient_to_the_told_log_snr(told):
    module, variables, _ = told
    x, _ = inputs()

    @quick_jit
    def slope(log_snr):
        return jax.grad(lambda level: (module.apply(variables, x, level) ** 2).sum())(log_snr)

    ends = slope(jnp.array([-jnp.inf, jnp.inf]))
    np.testing.assert_array_equal(ends, 0)
    within = np.asarray(slope(jnp.array([-19.0, 19.0])))
    assert np.all(np.isfinite(within))
    assert np.all(within != 0)
    level, h = jnp.array([-1.0, 1.0]), 0.02
    total = quick_jit(lambda level: (module.apply(variables, x, level) ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(
        slope(level), (total(level + h) - total(level - h)) / (2 * h), rtol=0.02
    )


@pytest.mark.parametrize("embedding", ["add", "scale_shift"])
def test_step_numbers_condition_too(embedding):
    module = unet(conditioning="step", embedding=embedding)
    x, _ = inputs((8, 1))
    apply = quick_jit(module.apply)
    variables = random_variables(module, x, jnp.zeros(BATCH))
    a = apply(variables, x, jnp.array([10, 500]))
    np.testing.assert_array_equal(a, apply(variables, x, jnp.array([10.0, 500.0])))
    b = np.asarray(apply(variables, x, jnp.array([11, 501])))
    assert np.all(np.abs(np.asarray(a) - b).max((1, 2)) > 0)


# Transformations of the whole network


def test_the_network_is_the_same_with_the_forms_of_either_platform(monkeypatch):
    module = unet(channels=16, head_width=8, channel_mults=(1,), attention_resolutions=(8,))
    x, log_snr = inputs()
    variables = random_variables(module, x, log_snr)
    results = []
    for on_cpu in (True, False):
        monkeypatch.setattr(platform, "on_cpu", lambda on_cpu=on_cpu: on_cpu)

        def loss(variables, log_snr):
            return (module.apply(variables, x, log_snr) ** 2).mean()

        results.append(quick_jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, log_snr))
    assert_trees_close(*results, rtol=1e-4)


def test_rematerialisation_changes_no_value_and_no_gradient():
    x, log_snr = inputs()
    fields = dict(dropout=0.3, channel_mults=(1,), attention_resolutions=(8,))
    variables = random_variables(unet(**fields), x, log_snr)
    results = []
    for remat in (False, True):
        module = unet(remat=remat, **fields)

        def loss(variables, module=module):
            rngs = {"dropout": jax.random.key(3)}
            out = module.apply(variables, x, log_snr, train=True, rngs=rngs)
            return (out**2).mean()

        names = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(loss)(variables).jaxpr)}
        assert any(name in names for name in ("checkpoint", "remat2", "remat")) == remat
        results.append(quick_jit(jax.value_and_grad(loss))(variables))
    assert_trees_close(*results, rtol=1e-4)


def test_rematerialisation_of_some_levels():
    """Level 0 has blocks on the way down and up, level 1 also the middle ones and attention."""
    x, log_snr = inputs()
    variables = jax.eval_shape(unet().init, jax.random.key(0), x, log_snr)

    def recomputed(**fields):
        jaxpr = jax.make_jaxpr(unet(**fields).apply)(variables, x, log_snr).jaxpr
        names = [eqn.primitive.name for eqn in equations(jaxpr)]
        return sum(name in ("checkpoint", "remat2", "remat") for name in names)

    first, second = (recomputed(remat=True, remat_levels=(level,)) for level in (0, 1))
    assert 0 < first < second
    assert recomputed(remat=True) == recomputed(remat=True, remat_levels=(0, 1)) == first + second
    assert recomputed(remat_levels=(0,)) == 0
    with pytest.raises(ValueError, match=r"remat_levels is \(2,\); it must be .* levels, 0 to 1"):
        unet(remat=True, remat_levels=(2,))


def test_dropout_acts_in_training_only():
    x, log_snr = inputs((8, 1))
    module = unet(dropout=0.5, channel_mults=(1,))
    variables = random_variables(module, x, log_snr)

    @functools.partial(quick_jit, static_argnums=0)
    def call(train, key):
        return module.apply(variables, x, log_snr, train=train, rngs={"dropout": key})

    first, again, second = (call(True, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    off = call(False, jax.random.key(0))
    np.testing.assert_array_equal(off, call(False, jax.random.key(1)))
    assert not np.allclose(first, off)
    without = quick_jit(unet(dropout=0.0, channel_mults=(1,)).apply)
    np.testing.assert_allclose(off, without(variables, x, log_snr), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, shape", [("unet", (8, 8, 1)), ("dit", (4, 4, 1)), ("mlp", (2,))])
def test_bfloat16_computes_with_float32_parameters_and_output(name, shape):
    fields = TINY if name == "unet" else dict(width=16)
    x, log_snr = inputs(shape)
    wide, narrow = (models.get(name, **fields, dtype=dtype) for dtype in ("float32", "bfloat16"))
    variables = random_variables(narrow, x, log_snr)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = quick_jit(narrow.apply)(variables, x, log_snr)
    assert out.dtype == jnp.float32
    want = quick_jit(wide.apply)(variables, x, log_snr)
    error = float(jnp.abs(out - want).max() / jnp.abs(want).max())
    assert 0 < error < 0.05
    found = list(equations(jax.make_jaxpr(narrow.apply)(variables, x, log_snr).jaxpr))
    products = [e for e in found if e.primitive.name in ("dot_general", "conv_general_dilated")]
    # At highest precision: the sums of a normalisation's groups, on a CPU.
    of_layers = [e for e in products if e.params["precision"] is None]
    assert {v.aval.dtype for e in of_layers for v in e.invars} == {jnp.dtype("bfloat16")}
    softmax = [e for e in found if e.primitive.name == "exp"]
    assert all(v.aval.dtype == jnp.float32 for e in softmax for v in e.invars)


@pytest.mark.parametrize("name, shape", [("unet", (4, 1)), ("mlp", (2,))])
def test_jit_vmap_and_pmap_agree_with_the_plain_call(name, shape):
    fields = dict(TINY, channel_mults=(1,)) if name == "unet" else dict(width=8)
    module = models.get(name, **fields)
    devices = jax.local_device_count()
    x = jax.random.normal(jax.random.key(0), (devices, BATCH, *shape))
    log_snr = jax.random.normal(jax.random.key(1), (devices, BATCH))
    variables = random_variables(module, x[0], log_snr[0])
    plain = module.apply(variables, x[0], log_snr[0])
    close = functools.partial(
        np.testing.assert_allclose, rtol=0, atol=1e-5 * float(jnp.abs(plain).max())
    )
    close(jax.jit(module.apply)(variables, x[0], log_snr[0]), plain)
    each = quick_jit(jax.vmap(module.apply, in_axes=(None, 0, 0)))(variables, x, log_snr)
    close(each[0], plain)
    spread = jax.pmap(module.apply, in_axes=(None, 0, 0))(variables, x, log_snr)
    close(np.asarray(spread), each)
