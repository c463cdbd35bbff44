"""jit, vmap, pmap and grad agree on every pure function of schedules and process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedule_cases import NUM_STEPS, REPRESENTATIVE

import diffax

pytestmark = pytest.mark.usefixtures("hasty_compiler")

BATCH = 16
DEVICES = 8
representative = pytest.mark.parametrize("name", REPRESENTATIVE)


def everything(schedule, t, s, x0, noise):
    """Every pure function, for a batch: times t after s, (batch,); data, noise (batch, ..., C)."""
    log_snr = schedule.log_snr(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = diffax.q_sample(schedule, x0, t, noise)
    mean, variance = diffax.q_posterior(schedule, x0, x_t, t, s)
    return {
        "log_snr": log_snr,
        "alpha": alpha,
        "sigma": sigma,
        "alpha_bar": schedule.alpha_bar(t),
        "slope": schedule.log_snr_and_slope(t)[1],
        "inverse": schedule.inverse_log_snr(log_snr),
        "q_sample": x_t,
        "q_step": diffax.q_step(schedule, x0, t, noise, s),
        "mean": mean,
        "variance": variance,
        "eps to x0": diffax.convert(noise, x_t, alpha, sigma, "eps", "x0"),
        "x0 to v": diffax.convert(x0, x_t, alpha, sigma, "x0", "v"),
        "v to score": diffax.convert(noise, x_t, alpha, sigma, "v", "score"),
        "score to eps": diffax.convert(noise, x_t, alpha, sigma, "score", "eps"),
    }


def scalar(schedule, x0, noise, t, s):
    """A number that depends on all of the outputs, the integer ones apart."""
    out = everything(schedule, t, s, x0, noise)
    floats = [x for x in out.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.sin(x)) for x in floats)


@functools.cache
def arguments(name):
    schedule = REPRESENTATIVE[name]()
    x0, noise = np.random.default_rng(0).standard_normal((2, BATCH, 3, 2)).astype(np.float32)
    if schedule.num_steps is None:
        t = np.linspace(0.1, 0.9, BATCH, dtype=np.float32)
        return schedule, t, t - 0.07, x0, noise
    # short of the last step, whose slope is infinite at zero terminal SNR
    t = np.linspace(1, NUM_STEPS - 2, BATCH).astype(np.int32)
    return schedule, t, t - 1, x0, noise


def close(found, expected, rtol=2e-4, atol=2e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), (_, other) in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree_util.tree_leaves_with_path(expected)
    ):
        assert np.all(np.isfinite(other)), path
        size = max(1.0, np.max(np.abs(other)))
        np.testing.assert_allclose(
            one, other, rtol=rtol, atol=atol * size, err_msg=jax.tree_util.keystr(path)
        )


@functools.cache
def reference(name):
    return jax.device_get(jax.jit(everything)(*arguments(name)))


@representative
def test_jit_agrees_with_op_by_op(name):
    close(jax.device_get(everything(*arguments(name))), reference(name))


@representative
def test_vmap_over_examples_agrees(name):
    schedule, *batched = arguments(name)
    found = jax.jit(jax.vmap(everything, in_axes=(None, 0, 0, 0, 0)))(schedule, *batched)
    # per example, `variance` has axes to broadcast against the example, of size one
    close(
        jax.tree.map(lambda x, y: np.reshape(x, y.shape), found, reference(name)), reference(name)
    )


@representative
def test_pmap_over_eight_devices_agrees(name):
    devices = jax.devices("cpu")[:DEVICES]
    assert len(devices) == DEVICES, "tests/conftest.py asks XLA for eight host devices"
    schedule, *batched = arguments(name)
    shards = [x.reshape((DEVICES, BATCH // DEVICES) + x.shape[1:]) for x in batched]
    found = jax.pmap(everything, in_axes=(None, 0, 0, 0, 0), devices=devices)(schedule, *shards)
    whole = jax.tree.map(lambda x: np.asarray(x).reshape((BATCH,) + x.shape[2:]), found)
    close(whole, reference(name))


GRADIENTS = ("learned(monotone, learned ends)", "discrete linear")  # with array leaves


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_agree_under_jit_vmap_and_pmap(name):
    schedule, t, s, x0, noise = arguments(name)
    gradient = jax.grad(scalar, (0, 1, 2))
    expected = jax.device_get(jax.jit(gradient)(schedule, x0, noise, t, s))
    each = jax.jit(jax.vmap(gradient, in_axes=(None, 0, 0, 0, 0)))(schedule, x0, noise, t, s)
    summed = (jax.tree.map(lambda x: np.sum(x, 0), each[0]), *each[1:])
    close(summed, expected, 1e-3, 1e-4)

    def on_one_device(schedule, *shard):
        of_schedule, *of_data = gradient(schedule, *shard)
        return (jax.lax.psum(of_schedule, "devices"), *of_data)

    shards = [x.reshape((DEVICES, BATCH // DEVICES) + x.shape[1:]) for x in (x0, noise, t, s)]
    parallel = jax.pmap(
        on_one_device,
        axis_name="devices",
        in_axes=(None, 0, 0, 0, 0),
        devices=jax.devices("cpu")[:DEVICES],
    )
    found = jax.device_get(parallel(schedule, *shards))
    of_schedule = jax.tree.map(lambda x: x[0], found[0])
    whole = [np.reshape(x, (BATCH,) + x.shape[2:]) for x in found[1:]]
    close((of_schedule, *whole), expected, 1e-3, 1e-4)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_of_the_schedule_is_the_slope_of_the_value(name):
    schedule, t, s, x0, noise = arguments(name)
    leaves, tree = jax.tree.flatten(schedule)
    draw = np.random.default_rng(1).standard_normal
    with jax.enable_x64(True):
        leaves = [jnp.asarray(leaf, jnp.float64) for leaf in leaves]
        direction = [jnp.asarray(draw(leaf.shape) * 1e-3 * np.abs(leaf)) for leaf in leaves]
        rest = (*(np.asarray(x, np.float64) for x in (x0, noise)), t, s)
        value = jax.jit(lambda leaves: scalar(jax.tree.unflatten(tree, leaves), *rest))
        step = 1e-4
        ahead = value([x + step * d for x, d in zip(leaves, direction)])
        behind = value([x - step * d for x, d in zip(leaves, direction)])
        along = sum(jnp.sum(g * d) for g, d in zip(jax.grad(value)(leaves), direction))
        np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-7)
