"""Guidance, where the guided distribution is known: Gaussian classes with exact denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import gaussian, in_float64, predicts

import diffax
from diffax import process, schedules
from diffax.samplers import guidance

pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEY = jax.random.key(0)
MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])  # of the two classes; class 2 is the null class
SPREAD = 0.3 * np.eye(2)


def classes(dtype=np.float64):
    from diffax.data.mixture import GaussianMixture

    both = GaussianMixture(
        np.array([0.5, 0.5], dtype), MEANS.astype(dtype), np.stack([SPREAD, SPREAD]).astype(dtype)
    )
    return [gaussian(mean, SPREAD, dtype) for mean in MEANS], both


def network(prediction="eps"):
    """predict(x, log_snr, label) of the exact conditional means; label 2: of the mixture."""
    conditional, both = classes()
    all_ = [predicts(one, prediction) for one in (*conditional, both)]

    def predict(x, log_snr, label):
        outs = jnp.stack([f(x, log_snr) for f in all_])
        return outs[label, jnp.arange(len(x))]

    return jax.jit(predict)


LABEL = jnp.array([0, 1, 1, 0])


def test_scale_1_is_the_conditional_and_0_the_unconditional_model_exactly():
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (4, 2))
        level = jnp.linspace(-4.0, 4.0, 4)
        predict = network()
        for scale, label in ((1.0, LABEL), (0.0, jnp.full(4, 2))):
            guided = guidance.classifier_free(predict, LABEL, 2, scale)
            want = predict(x, level, label)
            if scale == 1:
                np.testing.assert_array_equal(guided(x, level), want)
            np.testing.assert_allclose(guided(x, level), want, rtol=1e-12, atol=1e-12)


@in_float64
def test_the_scale_extrapolates_may_follow_log_snr_and_may_be_limited():
    x, level = jax.random.normal(KEY, (4, 2)), jnp.array([-6.0, -1.0, 1.0, 6.0])
    predict = network()
    cond, uncond = (predict(x, level, label) for label in (LABEL, jnp.full(4, 2)))

    def expected(scale):
        return uncond + np.asarray(scale)[:, None] * (cond - uncond)

    found = guidance.classifier_free(predict, LABEL, 2, 3.0)(x, level)
    np.testing.assert_allclose(found, expected([3.0] * 4), rtol=1e-9, atol=1e-9)
    found = guidance.classifier_free(predict, LABEL, 2, lambda l: 1 + l**2)(x, level)
    np.testing.assert_allclose(found, expected(1 + level**2), rtol=1e-9, atol=1e-9)
    found = guidance.classifier_free(predict, LABEL, 2, 3.0, interval=(-2.0, 2.0))(x, level)
    np.testing.assert_allclose(found, expected([1.0, 3.0, 3.0, 1.0]), rtol=1e-9, atol=1e-9)


@in_float64
def test_rescale_brings_back_the_deviation():
    rng = np.random.default_rng(0)
    x, level = jnp.asarray(rng.normal(size=(4, 5, 2))), jnp.zeros(4)

    def predict(x, log_snr, label):
        return x * (1 + process.expand_to(label, x))

    cond = predict(x, level, LABEL)
    full, half, none = (
        guidance.classifier_free(predict, LABEL, 2, 4.0, rescale=r)(x, level) for r in (1, 0.5, 0)
    )
    np.testing.assert_allclose(full.std((1, 2)), cond.std((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(half, (full + none) / 2, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 1), (4, 5, 2)])
def test_rescale_leaves_alone_what_has_no_deviation(shape):
    """One number, or one value throughout: 0 / 0 in the formula."""
    level = jnp.zeros(4)
    predict = lambda x, log_snr, label: x * (1 + process.expand_to(label, x))  # noqa: E731
    for x in (jnp.full(shape, 0.3), jnp.zeros(shape)):
        guided, plain = (
            guidance.classifier_free(predict, LABEL, 2, 4.0, rescale=r)(x, level) for r in (1, 0)
        )
        np.testing.assert_array_equal(guided, plain)
    some = jnp.arange(1.0, 11.0).reshape(5, 2) * jnp.array([0.0, 1.0, 1.0, 0.0])[:, None, None]
    found = guidance.classifier_free(predict, LABEL, 2, 4.0, rescale=1)(some, level)
    np.testing.assert_allclose(
        found.std((1, 2)), predict(some, level, LABEL).std((1, 2)), rtol=1e-5
    )


def test_one_call_of_twice_the_batch_and_the_variance_half_is_left_alone():
    shapes = []

    def predict(x, log_snr, label):
        shapes.append((x.shape, log_snr.shape, label.shape))
        return jnp.concatenate([x * process.expand_to(label, x), 0 * x + 7.0], axis=-1)

    out = guidance.classifier_free(predict, LABEL, 2, 5.0)(jnp.ones((4, 3)), jnp.zeros(4))
    assert shapes == [((8, 3), (8,), (8,))]
    np.testing.assert_array_equal(out[:, 3:], 7.0)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@in_float64
def test_classifier_guidance_at_scale_1_is_the_conditional_model(prediction):
    """With the exact classifier of noisy data: Bayes' rule."""
    conditional, both = classes()

    def log_probability(x, log_snr):
        joint = jnp.stack([one.log_density(x, log_snr) for one in conditional])
        return joint[LABEL, jnp.arange(4)] + jnp.log(0.5) - both.log_density(x, log_snr)

    x, level = jax.random.normal(KEY, (4, 2)), jnp.linspace(-5.0, 5.0, 4)
    unguided = predicts(both, prediction)
    guided = guidance.by_classifier(unguided, log_probability, prediction=prediction)
    want = network(prediction)(x, level, LABEL)
    np.testing.assert_allclose(guided(x, level), want, rtol=1e-9, atol=1e-9)
    twice = guidance.by_classifier(unguided, log_probability, 2.0, prediction)(x, level)
    once = unguided(x, level)
    np.testing.assert_allclose(twice - once, 2 * (want - once), rtol=1e-9, atol=1e-9)
    at_zero_snr = guided(x, jnp.full(4, -jnp.inf)) if prediction != "eps" else x
    assert np.all(np.isfinite(at_zero_snr))


def test_guided_samples_are_of_their_class_and_further_from_the_other():
    label = jnp.arange(2000) % 2
    means = {}
    for scale in (1.0, 3.0):
        guided = guidance.classifier_free(network(), label, 2, scale)
        x = jax.jit(
            lambda key, f=guided: diffax.sample(key, f, schedules.cosine(), (2000, 2), num_steps=30)
        )(KEY)
        means[scale] = np.stack([np.asarray(x)[np.asarray(label) == k].mean(0) for k in (0, 1)])
    np.testing.assert_allclose(means[1.0], MEANS, atol=5 * np.sqrt(0.3 / 1000))
    assert np.all(np.abs(means[3.0]) > np.abs(MEANS) + 0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [(dict(interval=(2.0, -2.0)), "low < high"), (dict(rescale=2), "rescale=2")],
)
def test_refusals(options, said):
    with pytest.raises(ValueError, match=said):
        guidance.classifier_free(network(), LABEL, 2, 2.0, **options)


# --- thresholding, and a key for each example ---------------------------------------------------


def test_dynamic_threshold_scales_each_example_back():
    """Saharia 2022: x0 clipped to its own quantile, over that quantile; small ones stay."""
    big = jnp.concatenate([jnp.linspace(-3.0, 3.0, 101)[None], jnp.linspace(-0.5, 0.5, 101)[None]])
    predict = process.by_log_snr(lambda x, log_snr: big)
    x = diffax.sample(
        KEY, predict, schedules.cosine(), big.shape, num_steps=2, prediction="x0",
        dynamic_threshold=0.9,
    )  # fmt: skip
    reach = np.quantile(np.abs(big[0]), 0.9)
    np.testing.assert_allclose(x[0], np.clip(big[0], -reach, reach) / reach, rtol=1e-5)
    np.testing.assert_allclose(x[1], big[1], rtol=1e-6)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"dynamic_threshold={share}"):
            diffax.sample(KEY, predict, schedules.cosine(), big.shape, dynamic_threshold=share)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m_sde"])
def test_with_a_key_for_each_example_the_batch_does_not_matter(sampler):
    predict = process.by_log_snr(lambda x, log_snr: 0.5 * x)
    keys = jax.random.split(KEY, 6)
    run = jax.jit(
        lambda keys: diffax.sample(
            keys, predict, schedules.cosine(), (len(keys), 3), sampler, num_steps=5
        )
    )
    whole = run(keys)
    np.testing.assert_allclose(jnp.concatenate([run(keys[:2]), run(keys[2:])]), whole, rtol=1e-6)
    assert len(np.unique(np.asarray(whole))) == whole.size


def test_untyped_keys_draw_the_same():
    predict = process.by_log_snr(lambda x, log_snr: 0.5 * x)
    arguments = (predict, schedules.cosine(), (4, 2), "ddpm", 5)
    np.testing.assert_array_equal(
        diffax.sample(jax.random.PRNGKey(3), *arguments),
        diffax.sample(jax.random.key(3), *arguments),
    )
