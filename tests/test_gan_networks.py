"""The generator, the discriminator, and networks that denoise with a latent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import BATCH, TINY, inputs, quick_jit, random_variables

from diffax import models
from diffax.models import conditioning

SMALL = dict(channels=8, channel_mults=(1, 2), num_blocks=1, num_classes=3)
SHAPES = [(8, 8, 1), (4, 3), (2,)]


def generator(shape, **fields):
    return models.get("generator", data_shape=shape, **{**SMALL, **fields})


def discriminator(**fields):
    return models.get("residual", models.DISCRIMINATORS, **{**SMALL, **fields})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_generator_makes_data_of_any_shape_by_latent_and_label(shape):
    network, z = generator(shape), jax.random.normal(jax.random.key(0), (BATCH, 5))
    variables = random_variables(network, z, jnp.zeros(BATCH, int))
    apply = quick_jit(network.apply)
    label = jnp.array([0, 1])
    made = apply(variables, z, label)
    assert made.shape == (BATCH, *shape) and made.dtype == jnp.float32
    assert np.all(np.abs(made - apply(variables, z[::-1], label)) > 0)
    assert np.all(np.abs(made - apply(variables, z, label[::-1])) > 0)
    np.testing.assert_array_equal(
        network.apply(variables, z), network.apply(variables, z, jnp.full(BATCH, 3))
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_discriminator_judges_each_example_alone(shape):
    """By the data, the noise level, the label and what is given."""
    network = discriminator()
    x, level = inputs(shape)
    told = (level, jnp.array([0, 1]), x[::-1])
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, *told)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: np.float32(0.2 * rng.normal(size=leaf.shape)), shapes)
    apply = quick_jit(network.apply)
    logit, features = apply(variables, x, *told)
    assert logit.shape == (BATCH,) and features.shape == (BATCH, 4 * SMALL["channels"])
    one = apply(variables, *(a[:1] for a in (x, *told)))
    np.testing.assert_allclose(one[0], logit[:1], rtol=1e-5, atol=1e-6)
    others = [(x + 1, *told)]
    others += [(x, *told[:i], told[i][::-1], *told[i + 1 :]) for i in range(3)]
    for other in others:
        assert np.all(np.abs(apply(variables, *other)[0] - logit) > 1e-6)


def test_clean_data_without_classes_need_no_embedding():
    network, (x, _) = discriminator(num_classes=0), inputs((8, 8, 1))
    params = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    assert not {"noise", "classes"} & params.keys()


def test_sizes_that_levels_can_not_halve_are_refused():
    three, key = dict(channel_mults=(1, 1, 1)), jax.random.key(0)
    for network, given in (
        (generator((6, 6, 1), **three), jnp.ones((1, 2))),
        (discriminator(**three), jnp.ones((1, 6, 6, 1))),
    ):
        with pytest.raises(ValueError, match="6 x 6, which 3 levels can't halve 2 times; every"):
            network.init(key, given)
    with pytest.raises(ValueError, match="channel_mults is .*; it must be a sequence of at least"):
        discriminator(channel_mults=())
    with pytest.raises(ValueError, match="'wide' is no field of discriminator 'residual'"):
        discriminator(wide=3)


@pytest.mark.parametrize(
    "name, fields, shape",
    [
        ("unet", TINY, (8, 8, 1)),
        ("dit", dict(width=16, depth=1, head_width=8), (8, 8, 1)),
        ("mlp", dict(width=8, depth=1), (2,)),
    ],
)
def test_a_latent_is_one_more_thing_that_a_denoiser_may_be_told(name, fields, shape):
    """It adds parameters of its own, and changes nothing where there is none."""
    network, (x, level) = models.get(name, **fields), inputs(shape)
    z = jax.random.normal(jax.random.key(2), (BATCH, 4))
    plain = jax.eval_shape(network.init, jax.random.key(0), x, level)["params"]
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, level, latent=z))["params"]
    added = shapes["noise_embedding"].pop("latent")
    assert jax.tree.structure(shapes) == jax.tree.structure(plain) and added
    shapes["noise_embedding"]["latent"] = added
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), shapes)
    apply = quick_jit(lambda z: conditioning.apply(network, params, x, level, {"latent": z}))
    assert np.all(np.abs(apply(z) - apply(-z)) > 0)


@pytest.mark.parametrize(
    "name, network, said",
    [
        ("a.b", models.Discriminator, "can't be named 'a.b'"),
        ("mine", 3, "must be a class of flax modules"),
    ],
)
def test_what_is_no_discriminator_is_not_registered(name, network, said):
    with pytest.raises(ValueError, match=said):
        models.register_discriminator(name, network)
