"""What `diffax.sample` takes, gives and refuses."""

import exact
import jax.numpy as jnp
import numpy as np
import pytest
import schedule_cases
from sampling_cases import KEY, draw

import diffax
from diffax import samplers, schedules
from diffax.process import by_log_snr
from diffax.schedules import alpha_of, sigma_of

pytestmark = pytest.mark.usefixtures("hasty_compiler")

PREDICT = exact.predictor(exact.gaussian())


def test_clipping_bounds_x0_and_keeps_eps_consistent():
    """Two steps by hand: eps is read anew from the clipped x0, so that x_t is still their sum."""
    schedule, bound = schedules.linear_logsnr(), 0.5
    start = jnp.array([[2.0, -0.1], [0.3, 1.0]])
    thrice = by_log_snr(lambda x, log_snr: 3 * x)
    options = dict(num_steps=2, prediction="x0", clip_x0=bound, return_trajectory=True)
    _, states = draw(schedule, start.shape, thrice, x_init=start, **options)
    first, second = samplers.visited_levels(schedule, 2).log_snr
    x0 = np.clip(3 * np.asarray(start), -bound, bound)
    eps = (start - alpha_of(first) * x0) / sigma_of(first)
    middle = alpha_of(second) * x0 + sigma_of(second) * eps
    np.testing.assert_allclose(states[1], middle, rtol=1e-5)
    np.testing.assert_allclose(states[2], np.clip(3 * middle, -bound, bound), rtol=1e-5)
    with pytest.raises(ValueError, match="clip_x0=-1"):
        draw(schedule, clip_x0=-1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_trajectory_begins_at_the_start_and_ends_at_the_result(sampler):
    start, schedule = jnp.arange(8.0).reshape(4, 2), schedules.cosine()
    options = dict(sampler=sampler, num_steps=7, x_init=start)
    x, states = draw(schedule, return_trajectory=True, **options)
    assert states.shape == (8, 4, 2)
    np.testing.assert_array_equal(states[0], start)
    np.testing.assert_array_equal(states[-1], x)
    np.testing.assert_allclose(x, draw(schedule, **options), rtol=1e-6)
    with pytest.raises(ValueError, match=r"x_init has shape \(3, 2\), and shape=\(4, 2\)"):
        draw(schedule, x_init=start[:3])


def test_whole_number_start_is_not_truncated():
    start = np.ones((4, 2), int)
    x = draw(schedules.cosine(), num_steps=7, x_init=start)
    same = draw(schedules.cosine(), num_steps=7, x_init=start.astype(np.float32))
    np.testing.assert_array_equal(x, same)


def test_images_are_sampled_like_vectors():
    """A predictor that treats every number alike gives the same numbers in any arrangement."""
    flat, image = (
        draw(
            schedules.cosine(),
            shape,
            exact.independent(0.3, 0.4),
            num_steps=9,
            x_init=jnp.linspace(-2, 2, 24).reshape(shape),
        )
        for shape in ((24, 1), (2, 3, 4, 1))
    )
    np.testing.assert_allclose(flat.ravel(), image.ravel(), rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "learned(monotone, learned ends)", "discrete linear"])
def test_predictors_are_told_the_time_or_the_level(name):
    """One value per example: t as the schedule counts it, or by `by_log_snr` the log-SNR."""
    schedule, told = schedule_cases.REPRESENTATIVE[name](), []

    def by_time(x, t):
        told.append(t)
        return exact.independent(0.3, 0.4)(x, schedule.log_snr(t))

    by_level = draw(schedule, predict=exact.independent(0.3, 0.4), num_steps=6)
    np.testing.assert_allclose(
        draw(schedule, predict=by_time, num_steps=6), by_level, rtol=2e-3, atol=2e-4
    )
    assert told[0].shape == (4,)
    assert told[0].dtype == (jnp.float32 if schedule.num_steps is None else jnp.int32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sampler="euler2"), "sampler='euler2' .did you mean euler.*: allowed are ddim, ddpm"),
        (dict(eta=2.0), "eta=2.0"),
        (dict(sampler="ddim", variance="fixed_small"), "no argument 'variance'; allowed are eta"),
        (dict(sampler="ddpm", variance="none"), "variance='none': allowed are fixed_small"),
        (dict(grid="cubic"), "grid='cubic': allowed are uniform, trailing"),
        (dict(prediction="noise"), "prediction='noise'.* eps, x0, v, score"),
    ],
)
def test_unknown_names_and_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(schedules.cosine(), **options)


@pytest.mark.parametrize("steps", [0, -3, 2.5])
@pytest.mark.parametrize("discrete", [False, True])
def test_step_counts_that_do_not_fit_are_refused(steps, discrete):
    schedule = schedules.cosine()
    schedule = schedule.discretize(20) if discrete else schedule
    allowed = "1 to 20, the schedule's own" if discrete else "1 to 1000000"
    with pytest.raises(ValueError, match=f"num_steps={steps}: must be .*{allowed}"):
        diffax.sample(KEY, PREDICT, schedule, (4, 2), num_steps=steps)


def test_more_steps_than_a_discrete_schedule_has_are_refused():
    with pytest.raises(ValueError, match="num_steps=21: must be .* 1 to 20"):
        diffax.sample(KEY, PREDICT, schedules.cosine().discretize(20), (4, 2), num_steps=21)


@pytest.mark.parametrize(
    ("options", "channels", "message"),
    [
        ({}, 4, r"gave shape \(4, 4\), and \(4, 2\) is needed"),
        ({}, 1, r"gave shape \(4, 1\), and \(4, 2\) is needed"),
        (dict(sampler="ddpm", variance="learned"), 2, r"\(4, 4\) is needed \(mean and variance\)"),
    ],
)
def test_predictions_of_the_wrong_shape_are_refused(options, channels, message):
    with pytest.raises(ValueError, match=message):
        diffax.sample(
            KEY, lambda x, t: jnp.zeros((4, channels)), schedules.cosine(), (4, 2), **options
        )


# --- one step -----------------------------------------------------------------------------------

ONE_STEP = {
    "cosine": schedules.cosine,
    "zero_terminal_snr linear": lambda: schedules.zero_terminal_snr(schedules.linear()),
    "discrete cosine": lambda: schedules.cosine().discretize(20),
    "one step": lambda: schedules.cosine().discretize(1),
    "one step, zero SNR": lambda: schedules.sigmoid().discretize(1),
}


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("name", ["cosine", "one step, zero SNR"])
def test_one_step_is_one_call_from_the_noisy_end(name, sampler):
    """What the network makes of the start as x0, in every solver; nothing is drawn."""
    schedule, start = ONE_STEP[name](), jnp.linspace(-2, 2, 8).reshape(4, 2)
    predict = exact.predictor(exact.gaussian(), "v")
    x = draw(schedule, predict=predict, x_init=start, sampler=sampler, num_steps=1, prediction="v")
    level = samplers.visited_levels(schedule, 1, prediction="v").log_snr
    want = exact.gaussian().denoise(start, jnp.broadcast_to(level, 4))
    np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", samplers.GRIDS)
@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_is_at_the_noisiest_level_of_every_grid(name, grid):
    schedule = ONE_STEP[name]()
    one = samplers.visited_levels(schedule, 1, grid, "v")
    assert one.t.shape == (1,)
    assert one.t[0] == (1.0 if schedule.num_steps is None else schedule.num_steps - 1) or (
        schedule.num_steps is None and one.log_snr[0] == pytest.approx(-20, abs=0.01)
    )


def test_a_schedule_of_one_step_says_that_it_has_one():
    with pytest.raises(ValueError, match="num_steps=50: must be .* 1 to 1, the schedule's own"):
        draw(schedules.cosine().discretize(1))


# --- the score ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "discrete cosine"])
def test_a_predictor_of_the_score_is_sampled_like_one_of_eps(name):
    schedule, mixture = ONE_STEP[name](), exact.gaussian()
    by_eps, by_score = (
        draw(
            schedule, predict=by_log_snr(f), num_steps=10, prediction=prediction, sampler="dpmpp_2m"
        )
        for prediction, f in (("eps", mixture.eps), ("score", mixture.score))
    )
    np.testing.assert_allclose(by_score, by_eps, rtol=1e-3, atol=1e-3)


def test_the_score_is_refused_at_zero_snr():
    with pytest.raises(ValueError, match="prediction='score' can't give x0 at zero SNR"):
        draw(ONE_STEP["zero_terminal_snr linear"](), prediction="score")
    with pytest.raises(ValueError, match="log_snr_min=-inf with prediction='score'"):
        draw(schedules.cosine(), prediction="score", log_snr_min=-np.inf)


# --- levels that float32 can't tell apart -------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "heun", "plms", "dpm_solver", "dpmpp_2m", "unipc"])
def test_between_equal_levels_there_is_no_step(sampler):
    """As where a learned schedule is flat in discrete time; multistep solvers would divide by 0."""
    log_snrs = jnp.linspace(9.0, -9.0, 6)
    start, predict = jnp.linspace(-2, 2, 8).reshape(4, 2), exact.independent(0.3, 0.4)
    want, found = (
        draw(
            schedules.from_log_snr_table(table), predict=predict, x_init=start, sampler=sampler,
            num_steps=len(table),
        )
        for table in (log_snrs, jnp.repeat(log_snrs, jnp.array([1, 1, 3, 1, 2, 1])))
    )  # fmt: skip
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
