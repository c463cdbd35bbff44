"""Spatial control: beside x at the first layer, and by a ControlNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import assert_equal, small_config

from diffax import config as config_lib
from diffax import distributed, training
from diffax.data import controls
from diffax.models import DiT, UNet, control, operations
from diffax.models.control import ControlNet
from diffax.training import codecs, teachers

pytestmark = pytest.mark.usefixtures("hasty_compiler")
SMALL = dict(channels=8, channel_mults=(1, 2), num_blocks=1, attention_resolutions=(4,))
BATCH = 3
X = jax.random.normal(jax.random.key(0), (BATCH, 8, 8, 1))
LEVEL = jnp.array([-3.0, 0.0, 4.0])
LABEL = jnp.array([0, 2, 1])


def random_params(network, *args, seed=1, **kwargs):
    """Parameters without any zeros, in the shapes of those at initialisation."""
    shapes = jax.eval_shape(lambda key: network.init(key, *args, **kwargs), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes["params"])
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    made = [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return structure.unflatten(made)


def given(*strengths, shape=(8, 8, 3), seed=2):
    image = jax.random.normal(jax.random.key(seed), (BATCH, *shape))
    return {"image": image, "strength": jnp.broadcast_to(jnp.array(strengths), (BATCH, 2))}


def test_folding_puts_each_block_into_the_channels():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    found = operations.folded(x, (2, 2))
    assert found.shape == (2, 2, 2, 2 * 3 * 3)
    np.testing.assert_array_equal(found[1, 1, 0], x[1, 2:4, 0:3].reshape(-1))
    np.testing.assert_array_equal(operations.folded(x, (4, 6)), x)
    with pytest.raises(ValueError, match="can't be folded to .3, 6."):
        operations.folded(x, (3, 6))


@pytest.mark.parametrize(
    "network, shape",
    [
        (functools.partial(UNet, **SMALL, num_classes=3), (16, 16, 2)),
        (functools.partial(DiT, width=16, depth=1, num_classes=3), (8, 8, 3)),
    ],
)
def test_a_control_stands_beside_x(network, shape):
    """No control is a strength of 0, which a control of zeros is not; the output has x's shape."""
    made = network(control_shape=shape)
    params = {"params": random_params(made, X, LEVEL)}
    called = jax.jit(lambda params, control: made.apply(params, X, LEVEL, LABEL, control=control))
    apply = functools.partial(called, params)
    one = {"image": jnp.ones((BATCH, *shape)), "strength": jnp.ones((BATCH, 1))}
    none = jax.tree.map(jnp.zeros_like, one)
    zeros = {**one, "image": none["image"]}
    plain = apply(None)
    assert plain.shape == X.shape
    np.testing.assert_allclose(apply(none), plain, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(apply({**one, "strength": none["strength"]}), apply(none))
    assert not np.allclose(apply(zeros), plain) and not np.allclose(apply(one), apply(zeros))
    with pytest.raises(ValueError, match="the control's shape is .*, as the network was made"):
        made.apply(params, X, LEVEL, control={**one, "image": jnp.ones((BATCH, 4, 4, 3))})
    with pytest.raises(ValueError, match="this network was made without one"):
        network().apply(params, X, LEVEL, control=one)


@pytest.fixture(scope="module")
def two():
    """A U-Net's parameters, a ControlNet of two controls on it as it starts and with other joints,
    and functions of (control) for each."""
    fields = dict(**SMALL, num_classes=3)
    base = UNet(**fields)
    network = ControlNet(**fields, control_shape=(8, 8, 3), control_channels=(1, 2))
    of_base = random_params(base, X, LEVEL)
    first = jax.jit(network.init)(jax.random.key(5), X, LEVEL)["params"]
    start = control.started(first, of_base)
    other = random_params(network, X, LEVEL, seed=7)

    @jax.jit
    def apply(params, control):
        return network.apply({"params": params}, X, LEVEL, LABEL, control=control)

    plain = jax.jit(lambda params: base.apply({"params": params}, X, LEVEL, LABEL))(of_base)
    return plain, of_base, start, control.trained_part(other), apply


def test_a_controlnet_starts_as_its_base_bit_for_bit(two):
    """And is its base at strength 0, whatever it has learned, or without a control."""
    plain, base, start, other, apply = two
    assert np.std(plain) > 0
    np.testing.assert_array_equal(apply({**start, "base": base}, given(1.0, 0.7)), plain)
    np.testing.assert_array_equal(apply({**other, "base": base}, given(0.0, 0.0)), plain)
    assert not np.allclose(apply({**other, "base": base}, given(0.0, 1e-2)), plain)


def test_a_branch_starts_with_its_base_parameters(two):
    """All that a U-Net's encoder and middle have; what is new are the hint and the joints."""
    _, base, start, _, _ = two
    for branch in ("control_0", "control_1"):
        own = start[branch]
        new = {name for name in own if name not in base}
        assert new == {f"joint_{i}" for i in range(5)} | {f"hint_{i}" for i in range(3)}
        shared = own.keys() - new
        assert shared == {n for n in base if not n.startswith(("up_", "last"))}
        for name in shared:
            jax.tree.map(np.testing.assert_array_equal, own[name], base[name])


def test_controls_are_summed_by_their_strengths(two):
    """Joints add up: at the first joint's place the sum of both is that of each alone."""
    _, base, _, other, apply = two
    both = given(0.6, 0.3)
    single = ControlNet(**SMALL, num_classes=3, control_shape=(8, 8, 1), control_channels=(1,))
    alone = {"image": both["image"][..., :1], "strength": both["strength"][:, :1]}
    params = {"control_0": other["control_0"], "base": base}
    found = jax.jit(
        lambda params: single.apply({"params": params}, X, LEVEL, LABEL, control=alone)
    )(params)
    expected = apply({**other, "base": base}, {**both, "strength": jnp.array([[0.6, 0.0]] * BATCH)})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # Each row has its own strengths.
    rows = jnp.array([[0.6, 0.3], [0.0, 0.0], [0.6, 0.0]])
    mixed = apply({**other, "base": base}, {**both, "strength": rows})
    whole = apply({**other, "base": base}, both)
    for row, same in ((0, whole), (1, two[0]), (2, expected)):
        np.testing.assert_allclose(mixed[row], same[row], rtol=1e-5, atol=1e-5)


# --- controls that are computed from the data -----------------------------------------------------


def picture(size=16):
    """A bright square on black, in colour, and a black picture."""
    x = np.full((2, size, size, 3), -1, np.float32)
    x[0, 4:12, 4:12] = (1, 0.5, 0)
    return x


def test_edges_are_where_the_square_ends():
    x = picture()
    found = controls.edges(x)
    assert found.shape == (2, 16, 16, 1) and set(np.unique(found)) == {-1, 1}
    inside = np.zeros((16, 16), bool)
    inside[3:13, 3:13], inside[5:11, 5:11] = True, False  # a line of 2 along each side
    inside[3:13:9, 3:13:9] = False  # Sobel's kernels see little at a corner's outside
    np.testing.assert_array_equal(found[0, ..., 0] > 0, inside)
    assert np.all(found[1] == -1)  # an even picture has none
    # Brightness and contrast change nothing, and mirroring mirrors.
    np.testing.assert_array_equal(controls.edges(0.3 * x + 0.2), found)
    np.testing.assert_array_equal(controls.edges(x[:, :, ::-1]), found[:, :, ::-1])
    assert controls.edges(x[:, :, 5]).shape == (2, 16, 1)  # signals too


def test_the_other_controls_in_closed_form():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    np.testing.assert_allclose(controls.grey(x)[..., 0], x.mean(-1))
    low = controls.low_resolution(x)
    block = x[1, 4:8, 8:12].mean((0, 1))
    np.testing.assert_allclose(low[1, 4:8, 8:12], np.broadcast_to(block, (4, 4, 3)), atol=1e-6)
    masked = controls.masked(x)
    assert masked.shape == (2, 8, 12, 4)
    assert np.all(masked[:, 2:6, 3:9, :3] == 0) and np.all(masked[:, 2:6, 3:9, 3] == 1)
    hidden = masked[..., 3] > 0
    assert hidden.sum() == 2 * 4 * 6
    np.testing.assert_array_equal(masked[~hidden][:, :3], x[~hidden])
    even = np.full((1, 8, 8, 1), 0.25, np.float32)
    np.testing.assert_allclose(controls.blurred(even), even, rtol=1e-6)
    # A wave of length 4 keeps exp(-(2 pi / 4)^2 / 2) = 0.2912 of its height (deviation 1).
    wave = np.cos(np.arange(64) * np.pi / 2).reshape(1, 64, 1, 1) * np.ones((1, 64, 16, 1))
    wave = wave.astype(np.float32)[:, :16]
    np.testing.assert_allclose(controls.blurred(wave)[:, 4:12], 0.2912 * wave[:, 4:12], atol=0.005)


# --- runs -----------------------------------------------------------------------------------------


def config_of(**changes):
    """A tiny U-Net on digits."""
    unet = {f"model__unet__{name}": value for name, value in SMALL.items()}
    tiny = dict(data__name="digits", model__name="unet", **unet)
    return small_config(**(tiny | changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, a ControlNet on it that follows edges, and a network with edges as an input."""
    root = tmp_path_factory.mktemp("runs")
    of_control = dict(condition__control="edges", condition__control_dropout=0.25)
    configs = {
        "base": config_of(training__num_steps=4),
        "net": config_of(**of_control, condition__base=str(root / "base"), training__num_steps=6),
        "concat": config_of(**of_control, training__num_steps=6),
    }
    for name, config in configs.items():
        training.train(config, root / name)
    return {name: training.load(root / name) for name in configs}


def test_the_base_is_neither_trained_nor_in_the_gradient_and_the_optimiser(runs):
    base, net = runs["base"].state, runs["net"].state
    assert_equal(net.base, base.ema_params)
    assert set(net.params) == set(net.ema_params) == {"control_0"}
    leaves = {jnp.shape(leaf) for leaf in jax.tree.leaves(net.opt_state)}
    trained = {jnp.shape(leaf) for leaf in jax.tree.leaves(net.params)}
    assert leaves <= trained | {()}
    batch = config_lib.load_data(runs["net"].config).train.batch(np.arange(8))
    gradient = jax.jit(runs["net"].method.gradient, static_argnums=3)(
        net, batch, jax.random.key(0), distributed.LOCAL
    )
    assert jax.tree.structure(gradient) == jax.tree.structure(net.params)
    joints = gradient["control_0"]["joint_0"]["kernel"]
    assert np.any(np.asarray(joints)) and np.any(
        np.asarray(net.params["control_0"]["hint_2"]["kernel"])
    )


def test_a_controlnet_begins_with_the_samples_of_its_base(runs):
    """Before the first step, along the whole way of a sampler; it then moves away."""
    config = runs["net"].config
    teacher = teachers.teacher_of(config, runs["net"].dataset)
    method = codecs.build_method(config, runs["net"].dataset, teacher)
    first = jax.jit(method.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    image = jnp.ones((4, 8, 8, 1))

    @jax.jit
    def draw(state, strength):
        cond = {"control": {"image": image, "strength": strength}}
        return method.sample(state, keys, cond)

    plain = jax.jit(lambda state: runs["base"].method.sample(state, keys, {}))(runs["base"].state)
    np.testing.assert_array_equal(draw(first, jnp.ones((4, 1))), plain)
    np.testing.assert_array_equal(draw(runs["net"].state, jnp.zeros((4, 1))), plain)
    assert not np.allclose(draw(runs["net"].state, jnp.ones((4, 1))), plain)
