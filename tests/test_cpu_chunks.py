"""A network in chunks of the batch is the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import quick_jit

from diffax import models
from diffax.models import platform
from diffax.models.cpu import chunks

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.mark.parametrize(
    ("batch", "entries", "at_once"),
    [
        (16, 2**15, 8),
        (64, 2**15, 8),
        (8, 2**15, 8),  # all fit
        (500, 2**11, 500),  # 4 divide it: too few for the 128 that fit
        (320, 2**11, 64),
        (7, 2**15, 7),
        (6, 2**20, 1),  # one is too large already
        (12, 3 * 2**15, 2),  # 2.7 fit
    ],
)
def test_a_batch_goes_through_in_parts_that_fit(batch, entries, at_once, monkeypatch):
    assert chunks.examples_at_once(batch, entries) == batch  # the tests have 8 devices
    monkeypatch.setattr(platform, "alone", lambda: True)
    assert chunks.examples_at_once(batch, entries) == at_once


def test_a_network_in_chunks_is_the_network(monkeypatch):
    """Value, gradient, names of parameters; and training takes all at once."""
    fields = dict(channels=4, channel_mults=(1,), num_blocks=1, head_width=4, num_classes=3)
    network = models.get("unet", **fields, attention_resolutions=())
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    told = jnp.linspace(-5.0, 5.0, 6), jnp.arange(6) % 4
    variables = quick_jit(network.init)(jax.random.key(1), x, *told)
    variables = jax.tree.map(
        lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size).reshape(a.shape)), variables
    )

    def value_and_gradient(train):
        def loss(variables, x):
            out = network.apply(variables, x, *told, train=train)
            return jnp.sum(jnp.cos(jnp.arange(out.size)) * out.ravel())  # their order counts

        text = str(jax.make_jaxpr(loss)(variables, x))
        return quick_jit(jax.value_and_grad(loss, (0, 1)))(variables, x), "scan[" in text

    whole, in_loop = value_and_gradient(False)
    assert not in_loop
    monkeypatch.setattr(platform, "alone", lambda: True)
    monkeypatch.setattr(chunks, "ENTRIES", 2 * 4 * 4 * 4)  # two examples
    chunked, in_loop = value_and_gradient(False)
    assert in_loop
    for want, got in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert not value_and_gradient(True)[1]
    shapes = jax.eval_shape(network.init, jax.random.key(1), x, *told)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
