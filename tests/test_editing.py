"""Editing and inpainting, on data whose conditional distributions are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import COVARIANCE, MEAN, gaussian, in_float64, predictor, three_modes

import diffax
from diffax import samplers, schedules

pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEY = jax.random.key(0)
SCHEDULE = schedules.linear_logsnr()


# --- SDEdit -------------------------------------------------------------------------------------


def test_sdedit_keeps_at_small_strength_and_forgets_at_full():
    """Points outside the data: moved a little, or drawn to the modes."""
    mixture, x = three_modes(), jnp.tile(jnp.array([[2.0, 2.0]]), (2000, 1))
    run = jax.jit(
        lambda strength: samplers.sdedit(KEY, predictor(mixture), SCHEDULE, x, strength),
        static_argnums=0,
    )
    small, half, full = (np.asarray(run(strength)) for strength in (0.1, 0.5, 1.0))
    assert np.abs(small - x).max() < 0.2
    nearest = [np.linalg.norm(half - mean, axis=1) for mean in np.asarray(mixture.means)]
    assert np.mean(np.argmin(nearest, axis=0) == 2) > 0.7  # the upper right one, whose share is 0.2
    # forgotten: the masses are the data's, within four standard deviations
    nearest = [np.linalg.norm(full - mean, axis=1) for mean in np.asarray(mixture.means)]
    masses = np.bincount(np.argmin(nearest, axis=0), minlength=3) / len(full)
    np.testing.assert_allclose(masses, mixture.weights, atol=4 * np.sqrt(0.25 / 2000))
    with pytest.raises(ValueError, match="strength=0: must be above 0"):
        run(0)


# --- inversion ----------------------------------------------------------------------------------


@in_float64
def test_inversion_is_undone_by_ddim_with_an_error_of_order_one():
    data = gaussian(dtype=np.float64)
    x0, predict = data.sample(KEY, 50), predictor(data)

    def error(steps):
        start = samplers.invert(predict, SCHEDULE, x0, steps)
        again = diffax.sample(KEY, predict, SCHEDULE, x0.shape, num_steps=steps, x_init=start)
        return jnp.max(jnp.abs(again - x0)), start

    # the same through `reconstruct`, example by example
    start = samplers.invert(predict, SCHEDULE, x0, 50)
    again, each = samplers.reconstruct(predict, SCHEDULE, start, x0, 50)
    assert again.shape == x0.shape and each.shape == (50,)
    np.testing.assert_allclose(each, np.sqrt(np.mean((again - x0) ** 2, axis=1)), rtol=1e-6)
    np.testing.assert_allclose(jnp.max(jnp.abs(again - x0)), error(50)[0], rtol=1e-6)

    errors = []
    for steps in (50, 100, 200):
        value, start = jax.jit(error, static_argnums=0)(steps)
        errors.append(float(value))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    print(errors, slopes)
    np.testing.assert_allclose(slopes, 1.0, atol=0.25)
    # the exact flow turns the data into standard normal numbers, by the inverse symmetric root
    values, vectors = np.linalg.eigh(COVARIANCE)
    np.testing.assert_allclose(start, (x0 - MEAN) @ (vectors / values**0.5) @ vectors.T, atol=0.1)
    with pytest.raises(ValueError, match="zero SNR"):
        samplers.invert(predict, schedules.zero_terminal_snr(SCHEDULE), x0, prediction="v")


def test_interpolation_keeps_the_size():
    a, b = jax.random.normal(KEY, (2, 3, 400))
    between = samplers.interpolate(a, b, [0.0, 0.25, 0.5, 1.0])
    assert between.shape == (4, 3, 400)
    np.testing.assert_allclose(between[0], a, atol=1e-5)
    np.testing.assert_allclose(between[3], b, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(between[2]), jnp.linalg.norm(a), rtol=0.1)
    same = samplers.interpolate(a, a, [0.5])  # no angle between them
    np.testing.assert_allclose(same[0], a, rtol=1e-2)


# --- inpainting ---------------------------------------------------------------------------------


def test_inpainting_samples_the_conditional_of_a_gaussian():
    """The first coordinate is known: the second is normal with the regression's mean and variance.

    Within five standard errors and, since a finite number of resamples leaves a bias, 0.03 of both.
    """
    n, given = 4000, 1.8
    known = jnp.tile(jnp.array([[given, 0.0]]), (n, 1))
    mask = jnp.array([1.0, 0.0])
    predict = predictor(gaussian())
    run = jax.jit(
        lambda resamples: samplers.inpaint(
            KEY, predict, schedules.cosine(), known, mask, 100, 5, resamples
        ),
        static_argnums=0,
    )
    x = np.asarray(run(10))
    np.testing.assert_array_equal(x[:, 0], np.float32(given))
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    mean = MEAN[1] + slope * (given - MEAN[0])
    deviation = np.sqrt(COVARIANCE[1, 1] - slope * COVARIANCE[0, 1])
    assert abs(x[:, 1].mean() - mean) < 5 * deviation / np.sqrt(n) + 0.03
    assert abs(x[:, 1].std() - deviation) < 5 * deviation / np.sqrt(2 * n) + 0.03
    # without going back the two parts agree less: that is what the jumps are for
    once = np.asarray(run(1))
    assert abs(once[:, 1].mean() - mean) > 2 * abs(x[:, 1].mean() - mean)


@pytest.mark.parametrize(
    "edit",
    [
        lambda key, predict, x: samplers.sdedit(key, predict, SCHEDULE, x, 0.6, 5, sampler="ddpm"),
        lambda key, predict, x: samplers.inpaint(
            key, predict, SCHEDULE, x, jnp.array([1.0, 0.0]), 6, 2, 2
        ),
    ],
    ids=["sdedit", "inpaint"],
)
def test_with_a_key_of_its_own_an_example_does_not_depend_on_the_others(edit):
    predict = predictor(gaussian())
    x, keys = gaussian().sample(KEY, 6), jax.random.split(jax.random.key(5), 6)
    whole, part = edit(keys, predict, x), edit(keys[2:4], predict, x[2:4])
    np.testing.assert_allclose(whole[2:4], part, rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole[2:4], edit(keys[:2], predict, x[2:4]), rtol=1e-3)


def test_the_moves_of_repaint():
    """Down to x0, each stretch gone through as often as asked for; one move at a time."""
    moves = samplers.editing._moves(6, 2, 3)
    assert moves[0, 0] == 0 and moves[-1, 1] == 6
    np.testing.assert_array_equal(moves[1:, 0], moves[:-1, 1])
    assert set(np.diff(moves, axis=1).ravel()) == {1, -1}
    down = moves[moves[:, 1] > moves[:, 0]]
    counts = {tuple(move): int((down == move).all(1).sum()) for move in down}
    assert counts == {(0, 1): 3, (1, 2): 3, (2, 3): 3, (3, 4): 3, (4, 5): 1, (5, 6): 1}
    np.testing.assert_array_equal(samplers.editing._moves(3, 2, 1), [(0, 1), (1, 2), (2, 3)])


@pytest.mark.parametrize("wrong", [dict(jump_length=0), dict(num_resamples=1.5)])
def test_inpainting_refuses(wrong):
    (field,) = wrong
    with pytest.raises(ValueError, match=field):
        samplers.inpaint(KEY, predictor(gaussian()), SCHEDULE, jnp.ones((2, 2)), 1.0, **wrong)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_what_is_edited_keeps_its_dtype(dtype):
    """And the network sees float32, whatever it gives itself."""
    x, schedule, told = jnp.ones((2, 3, 1), dtype), schedules.linear_logsnr(), set()

    def half(x, log_snr):
        told.add(x.dtype)
        return 0.5 * x.astype(jnp.bfloat16)

    predict = diffax.by_log_snr(half)
    edits = (
        lambda x: samplers.sdedit(KEY, predict, schedule, x, 0.5, 6),
        lambda x: samplers.inpaint(KEY, predict, schedule, x, jnp.ones((3, 1), bool), 6),
        lambda x: samplers.invert(predict, schedule, x, 6),
        lambda x: samplers.reconstruct(predict, schedule, x, x, 6)[0],
        lambda x: samplers.interpolate(x, -x, [0.1, 0.9]),
    )
    assert {jax.eval_shape(edit, x).dtype for edit in edits} == {jnp.dtype(dtype)}
    assert told == {jnp.dtype(jnp.float32)}
