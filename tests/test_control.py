"""Spatial control: beside x at the first layer, and by a ControlNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import DiT, UNet, control, operations
from diffax.models.control import ControlNet

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
