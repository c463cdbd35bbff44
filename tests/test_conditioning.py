"""Conditions: what is dropped in training, what guidance compares with, and what a network gets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MIXTURE, small_config, step_of

from diffax import methods
from diffax.config.methods import PARTS
from diffax.models import conditioning
from diffax.models.conditioning import Condition

pytestmark = pytest.mark.usefixtures("hasty_compiler")
CONDITIONS = {
    "label": Condition(null=4, dropout=0.25),
    "text": Condition(null=np.zeros((3, 2), np.float32), dropout=0.5),
}
COND = {
    "label": jnp.arange(4000) % 4,
    "text": jnp.broadcast_to(jnp.arange(1.0, 7.0).reshape(3, 2), (4000, 3, 2)),
}


def test_each_condition_is_dropped_by_itself():
    """As often as asked, independently; what isn't dropped stays as it is."""
    masks = conditioning.dropped(CONDITIONS, jax.random.key(0), 4000)
    found = conditioning.drop(CONDITIONS, COND, masks)
    no_label = np.asarray(found["label"] == 4)
    no_text = np.asarray(jnp.all(found["text"] == 0, (1, 2)))
    for dropped, rate in ((no_label, 0.25), (no_text, 0.5), (no_label & no_text, 0.125)):
        assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / 4000)
    np.testing.assert_array_equal(found["label"][~no_label], COND["label"][~no_label])
    np.testing.assert_array_equal(found["text"][~no_text], COND["text"][~no_text])


def test_the_only_condition_draws_as_ever():
    """By the key itself, so that runs of one label resume as they were."""
    alone = {"label": CONDITIONS["label"]}
    masks = conditioning.dropped(alone, jax.random.key(3), 100)
    expected = jax.random.bernoulli(jax.random.key(3), 0.25, (100,))
    np.testing.assert_array_equal(masks["label"], expected)


def test_null_of_each():
    nulls = conditioning.null_of(CONDITIONS, COND)
    assert nulls["label"].shape == (4000,) and np.all(nulls["label"] == 4)
    assert nulls["text"].shape == (4000, 3, 2) and not np.any(nulls["text"])


def test_a_condition_may_be_a_pytree():
    """Each leaf has its null; one null may stand for a subtree; rows are dropped whole."""
    value = {"image": jnp.ones((4, 3, 3, 2)), "strengths": (jnp.ones(4), 2 * jnp.ones((4, 2)))}
    conditions = {"control": Condition(null={"image": 0.0, "strengths": -1.0}, dropout=0.5)}
    nulls = conditioning.null_of(conditions, {"control": value})["control"]
    assert jax.tree.structure(nulls) == jax.tree.structure(value)
    for null, own, expected in zip(*map(jax.tree.leaves, (nulls, value)), (0, -1, -1)):
        assert null.shape == own.shape and np.all(null == expected)
    mask = {"control": jnp.array([True, False, False, True])}
    found = conditioning.drop(conditions, {"control": value}, mask)["control"]
    for own, null, kept in zip(*map(jax.tree.leaves, (found, nulls, value))):
        np.testing.assert_array_equal(own[::3], null[::3])
        np.testing.assert_array_equal(own[1:3], kept[1:3])


class TwoConditions(nn.Module):
    """x scaled by what the text and the label say."""

    conditioning = "log_snr"

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False, text=None):
        w = self.param("w", nn.initializers.constant(0.5), ())
        if label is None:
            return w * x
        return w * x * (1 + label + 10 * jnp.sum(text, (1, 2)))[:, None]


def test_two_conditions_go_through_training_guidance_and_samples():
    """A further condition touches the network and the batch, nothing between."""
    taken = methods.arguments_of("diffusion")
    parts = {name: make(small_config(), MIXTURE) for name, make in PARTS.items() if name in taken}
    parts |= dict(network=TwoConditions(), conditions=CONDITIONS)
    method = methods.get("diffusion", **parts)
    state = method.init(jax.random.key(0))
    batch = {
        "x": jnp.ones((32, 2)),
        "label": jnp.arange(32) % 4,
        "text": jnp.ones((32, 3, 2)),
        "number": jnp.arange(32),
    }
    after, metrics = jax.jit(step_of(method))(state, batch)
    assert np.isfinite(metrics["loss"]) and float(after.params["w"]) != 0.5
    bound = method.measures["bpd"].per_example(state, jax.random.key(1), batch)
    assert np.isfinite(bound["diffusion"]).all()
    keys = jax.random.split(jax.random.key(2), 5)
    cond = {"label": jnp.array([0, 1, 2, 3, 3]), "text": 0.01 * jnp.ones((5, 3, 2))}
    plain = method.sample(state, keys, cond)
    assert plain.shape == (5, 2)
    # A scale of 1 is the conditional network exactly, 0 that of the nulls.
    np.testing.assert_allclose(
        method.sample(state, keys, cond, guidance_scale=1.0), plain, rtol=1e-4, atol=1e-5
    )
    nulls = conditioning.null_of(CONDITIONS, cond)
    np.testing.assert_allclose(
        method.sample(state, keys, cond, guidance_scale=0.0),
        method.sample(state, keys, nulls),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_network_gets_its_label_in_place_and_the_others_by_name():
    class Takes(nn.Module):
        @nn.compact
        def __call__(self, x, noise_level, label=None, train=False, text=None):
            return (x if label is None else x * label[:, None]) + (0 if text is None else text)

    x, level = jnp.ones((3, 2)), jnp.zeros(3)
    cond = {"label": jnp.array([1.0, 2.0, 3.0]), "text": 10 * jnp.ones((3, 1))}
    found = conditioning.apply(Takes(), {}, x, level, cond)
    np.testing.assert_array_equal(found[:, 0], [11, 12, 13])
    np.testing.assert_array_equal(conditioning.apply(Takes(), {}, x, level, {}), x)
    conditioning.check_takes(Takes(), ("label", "text"))
    with pytest.raises(ValueError, match="condition.control is set, and Takes takes no control"):
        conditioning.check_takes(Takes(), ("text", "control"))


@pytest.mark.parametrize("name", ["gan", "denoising_gan"])
def test_methods_with_a_discriminator_refuse_what_it_does_not_see(name):
    config = small_config(method__name=name, model__name="unet", sampling__num_steps=4)
    if name == "gan":
        config.update_from_flattened_dict({"model.name": "generator", "sampling.num_steps": 1})
    taken = methods.arguments_of(name)
    parts = {part: make(config, MIXTURE) for part, make in PARTS.items() if part in taken}
    parts["conditions"] = {"text": CONDITIONS["text"]}
    with pytest.raises(ValueError, match="its discriminator sees no text: leave condition.text"):
        methods.get(name, **parts)
