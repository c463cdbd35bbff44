"""Methods of few steps: on Gaussian data the optimal student, the consistency function and the
average velocity are known, and each loss is at its minimum there."""

import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.datasets
from data_files import save_npz
from small_runs import assert_close, prepare, small_config

import diffax
from diffax import config as config_lib
from diffax import data, distributed, methods, samplers, schedules, training
from diffax.ablation import measure
from diffax.data import DatasetInfo
from diffax.methods import few_steps, progressive
from diffax.methods.diffusion_measures import Settings
from diffax.methods.teacher import Teacher
from diffax.models import conditioning
from diffax.schedules import alpha_of, sigma_of
from diffax.training import codecs

pytestmark = pytest.mark.usefixtures("hasty_compiler")

DEVIATION = 0.6
MOST, LEAST = 8.0, -8.0  # log-SNR
SCHEDULE = schedules.with_endpoints(schedules.get("cosine"), MOST, LEAST)
POINTS = DatasetInfo("points", (3,), 0, None, ())


def deviation(log_snr):
    """Of x at a log-SNR."""
    return jnp.sqrt((alpha_of(log_snr) * DEVIATION) ** 2 + sigma_of(log_snr) ** 2)


def denoiser_gain(log_snr):
    """v / x of the exact denoiser."""
    alpha, sigma = alpha_of(log_snr), sigma_of(log_snr)
    return alpha * sigma * (1 - DEVIATION**2) / deviation(log_snr) ** 2


def made(name, network, **options):
    """A method on these data, with plain parts."""
    parts = dict(
        data=POINTS,
        network=network,
        conditions={},
        schedule=lambda key: SCHEDULE,
        schedule_steps=0,
        prediction="v",
        times=diffax.time_sampling.get("stratified"),
        optimizer=optax.sgd(0.1),
        learning_rate=lambda step: 0.1,
        num_steps=3,
        ema_decay=0.9,
        grad_accumulation=1,
        evaluation=Settings(1, 0, 1, 0, True),
        sampling=dict(
            sampler="ddim", num_steps=1, grid=None, guidance_scale=None, schedule=None,
            low_order_finish=True,
        ),
    )  # fmt: skip
    given = parts | options
    taken = methods.arguments_of(name)
    return methods.get(name, **{k: v for k, v in given.items() if k in taken})


def gaussian(num):
    x = DEVIATION * np.random.default_rng(1).standard_normal((num, 3)).astype(np.float32)
    return {"x": jnp.asarray(x), "label": None}


def keys(seed):
    return jax.random.split(jax.random.key(seed), 5)


# --- progressive ----------------------------------------------------------------------------------


class Gains(nn.Module):
    """Out is x times a number of its own for each of these levels."""

    levels: tuple[float, ...]

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False):
        gains = self.param("gains", nn.initializers.zeros, (len(self.levels),))
        at = jnp.argmin(jnp.abs(jnp.asarray(self.levels) - noise_level[:, None]), axis=1)
        return gains[at][:, None] * x


def test_the_target_of_two_steps_is_the_same_by_log_snr_and_by_angle():
    t, s = jnp.array([-7.0, -1.0, 2.0]), jnp.array([-2.0, 3.0, np.inf])
    x, x_s = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    a_t, a_s = (np.arctan(np.exp(-np.asarray(level, np.float64) / 2))[:, None] for level in (t, s))
    expected = (np.sin(a_t) * x_s - np.sin(a_s) * x) / np.sin(a_t - a_s)
    found = progressive.target(x, t, x_s, s)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], x_s[2])  # at the clean end
    # A single DDIM step of it comes out at x_s.
    eps = (x - expand(alpha_of(t)) * found) / expand(sigma_of(t))
    np.testing.assert_allclose(few_steps.ddim(found, eps, s), x_s, rtol=1e-4, atol=1e-5)


def expand(values):
    return values[:, None]


def test_each_stages_loss_is_least_at_the_known_student():
    """The teacher is the exact denoiser of Gaussian data, so that each stage's student is a number
    at each level; samples of the last one, by one call, are the teacher's by eight."""
    visited = samplers.visited_levels(SCHEDULE, 8, "uniform", "v").log_snr
    network = Gains(tuple(np.asarray(visited).tolist()))
    own = dict(network=network, teacher=Teacher("run"), teacher_steps=8, stage_steps=1)
    method = made("progressive", **own)
    state, levels = method.init(jax.random.key(0)), np.append(np.asarray(visited), np.inf)
    gains = np.asarray(denoiser_gain(visited), np.float64)
    state = state.replace(teachers={"gains": jnp.asarray([gains, 0 * gains, 0 * gains])})
    a = np.arctan(np.exp(-levels / 2))
    batch, loss = gaussian(64) | {"number": jnp.arange(64)}, method.measures["loss"].per_example

    def mean(params):
        found = loss(state.replace(ema_params=params), jax.random.key(3), batch)
        return jnp.mean(found["loss"])

    for stage, steps in enumerate((4, 2, 1)):
        stride = 8 // steps
        # x turns by the angle of a step: cos d x - sin d v.
        turn = np.cos(a[:-1] - a[1:]) - np.sin(a[:-1] - a[1:]) * gains
        if stage:
            before = stride // 2
            turn = np.ones(8)
            for i in range(0, 8, before):
                d = a[i] - a[i + before]
                turn[i] = np.cos(d) - np.sin(d) * gains[i]
        best = gains.copy()
        for i in range(0, 8, stride):
            d, both = a[i] - a[i + stride], turn[i] * turn[i + stride // 2]
            best[i] = (np.cos(d) - both) / np.sin(d)
        state = state.replace(step=jnp.asarray(stage))
        exact, off = ({"gains": jnp.asarray(g, jnp.float32)} for g in (best, best + 0.1))
        at_best, value = jax.grad(mean)(exact)["gains"], float(mean(exact))
        away = jax.grad(mean)(off)["gains"]
        assert value < 1e-9 and np.abs(at_best).max() < 1e-4 * np.abs(away).max()
        for i in (0, 8 - stride):
            step = jnp.zeros(8).at[i].set(0.01)
            sides = [float(mean({"gains": off["gains"] + sign * step})) for sign in (1, -1)]
            assert (sides[0] - sides[1]) / 0.02 == pytest.approx(float(away[i]), rel=2e-3)
        if stage < 2:  # it is the next one's teacher
            taught = state.teachers["gains"].at[stage + 1].set(exact["gains"])
            state = state.replace(teachers={"gains": taught})
        gains = best
    state = state.replace(ema_params=exact)
    denoise = diffax.process.by_log_snr(lambda x, level: expand(denoiser_gain(level)) * x)
    expected = samplers.sample(keys(0), denoise, SCHEDULE, (5, 3), num_steps=8, prediction="v")
    for steps in (4, 2, 1):
        sampling = dict(sampler="ddim", num_steps=steps, grid=None, guidance_scale=None)
        drawer = made("progressive", **own, sampling=sampling | {"schedule": None})
        np.testing.assert_allclose(drawer.sample(state, keys(0), {}), expected, rtol=1e-3)
        assert drawer.sampling_fault(state) == ""
        fault = drawer.sampling_fault(state.replace(step=jnp.asarray(0)))
        assert bool(fault) == (steps < 4)


def test_a_stages_parameters_become_the_next_ones_teacher():
    visited = samplers.visited_levels(SCHEDULE, 8, "uniform", "v").log_snr
    network = Gains(tuple(np.asarray(visited).tolist()))
    own = dict(teacher=Teacher("run"), teacher_steps=8, stage_steps=2, num_steps=6)
    method = made("progressive", network, **own)
    state = method.init(jax.random.key(0))
    start = {"gains": jnp.asarray(denoiser_gain(visited))}
    begun = state.replace(teachers=jax.tree.map(lambda a, b: a.at[0].set(b), state.teachers, start))
    step = jax.jit(lambda state: method.step(state, gaussian(16), distributed.LOCAL))
    rates, seen = [], [begun]
    for _ in range(5):
        state, metrics = step(seen[-1])
        rates.append((float(metrics["student_steps"]), round(float(metrics["learning_rate"]), 4)))
        seen.append(state)
    assert rates == [(4, 0.1), (4, 0.05), (2, 0.1), (2, 0.05), (1, 0.1)]
    assert not np.any(seen[1].teachers["gains"][1])
    for stage in (1, 2):
        after = seen[2 * stage]
        assert_close(after.teachers["gains"][stage], after.ema_params["gains"])
        assert_close(after.params, after.ema_params)


@pytest.mark.parametrize("num_steps", [None, 64, 50])
def test_a_students_levels_are_among_its_teachers(num_steps):
    """In discrete time too."""
    schedule = schedules.effective(SCHEDULE, num_steps or 0)
    levels = {n: samplers.visited_levels(schedule, n, "uniform", "v").log_snr for n in (16, 8, 2)}
    for n in (8, 2):
        np.testing.assert_array_equal(levels[n], levels[16][:: 16 // n])


class OfClass(nn.Module):
    """Out is x times a number of the class, the last one the null's, plus what the scale adds."""

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False):
        gains = self.param("gains", nn.initializers.zeros, (3,))
        out = gains[2 if label is None else label][..., None] * x
        if noise_level.ndim == 1:
            return out
        return out + self.param("told", nn.initializers.zeros, ()) * noise_level[:, 1:] * x


def guided_student(**options):
    gains = {"gains": jnp.asarray([0.3, -0.2, 0.1])}
    teacher = Teacher("run", gains, SCHEDULE, "v", "print")
    given = dict(guidance_max=3.0, teacher=teacher, teacher_steps=4, stage_steps=2)
    given["conditions"] = {"label": conditioning.Condition(2, 0.1)}
    return made("progressive", OfClass(), **(given | options))


def test_a_student_is_taught_two_guided_steps_at_the_scale_that_it_is_told():
    """The loss against one by hand, from the example's own draws."""
    method = guided_student()
    state = method.init(jax.random.key(0))
    assert state.params["told"] == 0 and state.params["gains"][0] == pytest.approx(0.3)
    batch = gaussian(1) | {"label": jnp.asarray([1]), "number": jnp.asarray([5])}
    found = method.measures["loss"].per_example(state, jax.random.key(3), batch)["loss"]

    key = diffax.likelihood.keys_of(jax.random.key(3), batch["number"])[0]
    noise_key, own_key = jax.random.split(key)
    eps = jax.random.normal(noise_key, (1, 3))
    scale = jax.random.uniform(jax.random.fold_in(own_key, 1), (1,), minval=1, maxval=3)
    levels = [SCHEDULE.log_snr(t) for t in (1.0, 0.75, 0.5, 0.25)] + [jnp.asarray(jnp.inf)]
    gain = 0.1 + scale * (-0.2 - 0.1)  # of the guided teacher

    def step(x, gain, now, after):
        alpha, sigma = alpha_of(now), sigma_of(now)
        x0, noise = (alpha - sigma * gain) * x, (sigma + alpha * gain) * x
        return alpha_of(after) * x0 + sigma_of(after) * noise, x0

    def by_hand(first):
        t, middle, s = levels[first : first + 3]
        x = alpha_of(t) * batch["x"] + sigma_of(t) * eps
        aim = step(step(x, gain, t, middle)[0], gain, middle, s)[0]
        x0 = progressive.target(x, t[None], aim, s[None])
        own = step(x, -0.2, t, s)[1]
        return max(np.exp(t), 1.0) * np.mean((x0 - own) ** 2)

    assert min(abs(found[0] - by_hand(first)) for first in (0, 2)) < 1e-5


def test_a_guided_student_is_sampled_at_the_scales_that_it_was_taught():
    options = dict(sampler="ddim", num_steps=1, grid=None, schedule=None, low_order_finish=True)
    none = dict(guidance_interval=None, guidance_rescale=0.0)
    sampling = options | none | dict(guidance_scale=None)
    method = guided_student(sampling=sampling)
    params = {"gains": jnp.zeros(3), "told": jnp.asarray(0.05)}
    state = method.init(jax.random.key(0)).replace(ema_params=params)
    cond = {"label": jnp.zeros(5, jnp.int32)}
    at = {w: method.sample(state, keys(0), cond, guidance_scale=w) for w in (1.0, 2.0, 3.0)}
    np.testing.assert_allclose(at[1.0], method.sample(state, keys(0), cond), rtol=1e-6)
    np.testing.assert_allclose(at[2.0] - at[1.0], at[3.0] - at[2.0], rtol=1e-4)  # told is linear
    assert np.max(abs(at[3.0] - at[1.0])) > 0.1
    for asked, said in (
        (dict(guidance_scale=4.0), "=4 with method 'progressive': .* scales from 1 to 3"),
        (dict(guidance_scale=0.5), "scales from 1 to 3"),
        (dict(guidance_scale=2.0, guidance_rescale=0.5), "guidance_rescale with method"),
    ):
        with pytest.raises(ValueError, match=said):
            guided_student(sampling=sampling | asked)
    with pytest.raises(ValueError, match="needs a condition that the teacher's training has drop"):
        guided_student(conditions={}, sampling=sampling)


# --- consistency ----------------------------------------------------------------------------------


class Blend(nn.Module):
    """v = (a f + b d) x: with a = 1 alone the consistency function, with b = 1 the denoiser."""

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False):
        a, b = (self.param(name, nn.initializers.zeros, ()) for name in "ab")
        skip, out = scalings(noise_level)
        inside = jnp.where(out == 0, 0.0, deviation(MOST) / deviation(noise_level) - skip)
        of_function = inside / jnp.where(out == 0, 1.0, out)
        return expand(a * of_function + b * denoiser_gain(noise_level)) * x


def scalings(log_snr):
    """c_skip and c_out of v prediction."""
    alpha, sigma = alpha_of(log_snr), sigma_of(log_snr)
    end = alpha_of(jnp.asarray(MOST)), sigma_of(jnp.asarray(MOST))
    return alpha * end[0] + sigma * end[1], end[1] * alpha - end[0] * sigma


def blend(a, b):
    return {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}


OF_CONSISTENCY = dict(
    huber=100.0,  # squares
    first_intervals=256,
    last_intervals=256,
    sampling=dict(
        sampler="consistency", num_steps=1, grid=None, guidance_scale=None, schedule=None
    ),
)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        (dict(distill=True), 1e-3),
        (dict(distill=True, solver="ddim"), 0.02),
        (dict(), 0.05),  # 65,536 examples with their own noise
        (dict(weighting="gap"), 0.2),
        (dict(weighting="angle"), 0.05),
    ],
)
def test_the_consistency_loss_is_least_at_the_known_function(options, bound):
    """The gradient there is below a share of that a fifth off."""
    method = made("consistency", Blend(), **OF_CONSISTENCY, **options, teacher=Teacher("run"))
    state = method.init(jax.random.key(0))
    if options.get("distill"):
        state = state.replace(teachers=jax.tree.map(lambda leaf: leaf[None], blend(0, 1)))
    batch = gaussian(2**16)
    gradient = jax.jit(lambda s: method.gradient(s, batch, jax.random.key(1), distributed.LOCAL))
    exact, off = (gradient(state.replace(params=blend(a, 0)))["a"] for a in (1.0, 1.2))
    assert abs(exact) < bound * abs(off)


def test_the_consistency_gradient_is_that_of_finite_differences():
    """Of the branch at the noisy level alone, in float64, with the same draws."""
    of_16 = dict(huber=0.1, first_intervals=16, last_intervals=16, weighting="none")
    method = made("consistency", Blend(), **(OF_CONSISTENCY | of_16))
    state = method.init(jax.random.key(0)).replace(params=blend(1.2, 0.1))
    batch, key = gaussian(64), jax.random.key(5)
    found = method.gradient(state, batch, key, distributed.LOCAL)["a"]
    noise_key, own_key = jax.random.split(jax.random.split(key, 3)[2])
    noise = jax.random.normal(noise_key, (64, 3))
    u = diffax.time_sampling.get("stratified").sample((), own_key, 64)[0]
    t, r = (SCHEDULE.log_snr(time) for time in (u, jnp.maximum(u - 1 / 16, 0.0)))

    def f(a, log_snr):
        skip, out = (np.asarray(part, np.float64) for part in scalings(log_snr))
        x = few_steps.ddim(batch["x"], noise, log_snr)
        with_a, with_b = (
            np.asarray(Blend().apply({"params": blend(*one)}, x, log_snr), np.float64)
            for one in ((1, 0), (0, 1))
        )
        return expand(skip) * x + expand(out) * (a * with_a + 0.1 * with_b)

    aim, c = f(1.2, r), 0.1 * 3**0.5

    def loss(a):
        return np.mean(np.sqrt(np.sum((f(a, t) - aim) ** 2, axis=1) + c**2) - c)

    assert found == pytest.approx((loss(1.201) - loss(1.199)) / 0.002, rel=1e-3)


class Bins(nn.Module):
    """Out is a number of its own for each of 8 equal ranges of cosine's time."""

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False):
        values = self.param("values", nn.initializers.zeros, (8,))
        angle = jnp.arctan(jnp.exp(-noise_level / 2))
        at = jnp.clip((8 * angle / (jnp.pi / 2)).astype(int), 0, 7)
        return expand(values[at]) * jnp.ones_like(x)


@pytest.mark.parametrize("prediction", ["v", "x0", "flow"])
def test_what_the_network_says_weighs_alike_at_all_levels(prediction):
    """The loss is nearly a distance, whose gradient by the output is then of length 1 everywhere.
    With one number to a point it is the sign of a difference: a sum of them says that of all."""
    line = DatasetInfo("points", (1,), 0, None, ())
    options = dict(huber=1e-6, first_intervals=4, last_intervals=4, prediction=prediction)
    method = made("consistency", Bins(), **(OF_CONSISTENCY | options), data=line)
    state = method.init(jax.random.key(0))
    values = 1e3 * jnp.arange(8.0)  # far apart: all differences have the sign of c_out
    batch = {"x": gaussian(4096)["x"][:, :1], "label": None}
    found = method.gradient(
        state.replace(params={"values": values}), batch, jax.random.key(1), distributed.LOCAL
    )["values"]
    assert np.ptp(abs(8 * found[2:7])) < 0.02  # but for the ends, which are cut


@pytest.mark.parametrize("prediction", ["v", "x0", "flow"])
def test_the_clean_end_is_itself_whatever_the_network_says(prediction):
    method = made("consistency", Blend(), **OF_CONSISTENCY, prediction=prediction)
    state = method.init(jax.random.key(0)).replace(ema_params=blend(3.0, -2.0))
    clean = samplers.Level(jnp.zeros((1,)), jnp.full((1,), MOST))
    start = samplers.base.standard_normal(diffax.process.split_key(keys(2))[0], (5, 3))
    found = method.sample(state, keys(2), {}, grid=clean)
    np.testing.assert_allclose(found, start, rtol=1e-5, atol=1e-5)


def test_training_a_consistency_model_that_predicts_x0_is_stable():
    """With the c of v it diverged: the gradient's norm was above 10 and the samples twice as large
    as the data."""
    info = DatasetInfo("points", (64,), 0, None, ())
    config = small_config(
        method__name="consistency",
        method__first_intervals=16,
        sampling__sampler="consistency",
        sampling__num_steps=1,
        objective__prediction="x0",
    )
    step, state = prepare(config, info)
    x = np.float32(sklearn.datasets.load_digits().data / 8 - 1)
    for at in np.random.default_rng(0).integers(0, len(x), (150, 32)):
        state, metrics = step(state, {"x": x[at]})
    assert metrics["grad_norm"] < 1
    made = codecs.build_method(config, info).sample(
        state, jax.random.split(jax.random.key(1), 64), {}
    )
    assert 0.7 < jnp.sqrt(jnp.mean(made**2)) / np.sqrt(np.mean(x**2)) < 1.1


def test_a_consistency_model_goes_to_the_clean_end_in_one_call_and_in_several():
    method = made("consistency", Blend(), **OF_CONSISTENCY)
    state = method.init(jax.random.key(0)).replace(ema_params=blend(1.0, 0.0))
    start = samplers.base.standard_normal(diffax.process.split_key(keys(0))[0], (5, 3))
    ratio = deviation(MOST) / deviation(LEAST)
    np.testing.assert_allclose(method.sample(state, keys(0), {}), ratio * start, rtol=1e-5)
    many = jax.random.split(jax.random.key(0), 20_000)
    several = method.sample(state, many, {}, num_steps=4)
    assert np.std(several) == pytest.approx(DEVIATION, rel=0.02)


# --- mean flow ------------------------------------------------------------------------------------


class Average(nn.Module):
    """a times the average velocity of Gaussian data."""

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False):
        t = (10 - noise_level[:, 0]) / 20
        r = t - (10 - noise_level[:, 1]) / 20
        a = self.param("a", nn.initializers.ones, ())
        z = x * expand(jnp.sqrt(t**2 + (1 - t) ** 2))
        spread = [jnp.sqrt((1 - time) ** 2 * DEVIATION**2 + time**2) for time in (t, r)]
        gain = (t + r) * (1 + DEVIATION**2) - 2 * DEVIATION**2
        return expand(a * gain / (spread[0] * (spread[0] + spread[1]))) * z


def test_the_mean_flow_loss_is_least_at_the_known_velocity():
    """To 1/20 of the gradient a fifth off, with 65,536 examples."""
    own = dict(prediction="flow", adaptive_power=0.0, instant_share=0.25)
    method = made("mean_flow", Average(), **own)
    state, batch = method.init(jax.random.key(0)), gaussian(2**16)
    gradient = jax.jit(lambda s: method.gradient(s, batch, jax.random.key(1), distributed.LOCAL))
    exact, off = (gradient(state.replace(params={"a": jnp.asarray(a)}))["a"] for a in (1.0, 1.2))
    assert abs(exact) < 0.05 * abs(off)


def test_the_mean_flow_gradient_is_that_of_finite_differences():
    """u = a U along the path has du/dt = a dU/dt, by differences in float64; weighted by 1 / |.|^2
    without gradient."""
    method = made("mean_flow", Average(), prediction="flow", adaptive_offset=0.01)
    state = method.init(jax.random.key(0)).replace(params={"a": jnp.asarray(1.2)})
    batch, key, num = gaussian(64), jax.random.key(5), 64
    found = method.gradient(state, batch, key, distributed.LOCAL)["a"]
    noise_key, own_key = jax.random.split(jax.random.split(key, 3)[2])
    keys_of = jax.random.split(own_key, 3)
    draw = diffax.time_sampling.get("stratified").sample
    times = [
        np.asarray(few_steps.flow_time(SCHEDULE.log_snr(draw((), k, num)[0])), np.float64)
        for k in keys_of[:2]
    ]
    instant = np.asarray(jax.random.bernoulli(keys_of[2], 0.75, (num,)))
    t = np.where(instant, times[0], np.maximum(*times))
    r = np.where(instant, times[0], np.minimum(*times))
    x0 = np.asarray(batch["x"], np.float64)
    noise = np.asarray(jax.random.normal(noise_key, (num, 3)), np.float64)

    def spread(time):
        return np.sqrt((1 - time) ** 2 * DEVIATION**2 + time**2)

    def of(time):  # U at a time of the example's own path
        gain = ((time + r) * (1 + DEVIATION**2) - 2 * DEVIATION**2) / (
            spread(time) * (spread(time) + spread(r))
        )
        return expand(gain) * (x0 + expand(time) * (noise - x0))

    change = (of(t + 1e-5) - of(t - 1e-5)) / 2e-5
    aim = noise - x0 - expand(t - r) * 1.2 * change
    weight = 1 / (np.sum((1.2 * of(t) - aim) ** 2, axis=1) + 0.01)

    def loss(a):
        return np.mean(weight * np.sum((a * of(t) - aim) ** 2, axis=1))

    assert found == pytest.approx((loss(1.201) - loss(1.199)) / 0.002, rel=1e-3)


def test_one_call_of_the_average_velocity_is_the_whole_path():
    method = made("mean_flow", Average(), prediction="flow")
    state = method.init(jax.random.key(0))
    start = samplers.base.standard_normal(diffax.process.split_key(keys(0))[0], (5, 3))
    expected = start * DEVIATION / deviation(LEAST)
    for num_steps in (1, 4):
        found = method.sample(state, keys(0), {}, num_steps=num_steps)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_network_that_is_given_two_levels_begins_as_one_that_is_given_the_first():
    network = diffax.models.get("mlp", width=16, depth=1)
    x, one = jnp.ones((4, 2)), jnp.linspace(-5, 5, 4)
    two = jnp.stack([one, -one], axis=-1)
    params = network.init(jax.random.key(0), x, two)["params"]
    params["last"]["kernel"] = jnp.ones_like(params["last"]["kernel"])
    found = network.apply({"params": params}, x, two)
    del params["noise_embedding"]["second_0"], params["noise_embedding"]["second_1"]
    assert_close(network.apply({"params": params}, x, one), found)


# --- the teacher ----------------------------------------------------------------------------------


def test_a_learned_schedule_is_the_teachers_as_it_was_trained():
    def learned(key):
        return schedules.get("learned", key=key, log_snr_max=MOST, log_snr_min=LEAST, size=4)

    params, own = blend(0.5, 0.5), learned(jax.random.key(7))
    teacher = Teacher("run", params, own, "v", "print")
    options = OF_CONSISTENCY | dict(schedule=learned, teacher=teacher)
    state = made("consistency", Blend(), **options).init(jax.random.key(0))
    assert_close(state.params, params)
    assert_close(state.schedule, own)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two runs of another seed, and one of another method."""
    root = tmp_path_factory.mktemp("teachers")
    for seed in (0, 1):
        config = small_config(objective__prediction="v", training__num_steps=2, seed=seed)
        training.train(config, root / str(seed))
    config = student_config("consistency", root / "0")
    training.train(config, root / "student")
    return root


def student_config(name, teacher, **changes):
    own = dict(
        progressive=dict(method__teacher_steps=8, method__stage_steps=1, sampling__num_steps=1),
        consistency=dict(sampling__sampler="consistency"),
    )[name]
    common = dict(
        method__name=name, method__teacher=str(teacher), objective__prediction="v",
        training__num_steps=3, sampling__num_samples=4,
    )  # fmt: skip
    return small_config(**(common | own | changes))


@pytest.mark.parametrize(
    ("teacher", "changes", "said"),
    [
        ("none", {}, "method.teacher is .*holds no run"),
        ("student", {}, "holds a run of method 'consistency'; it must hold one of method 'diff"),
        ("0", dict(data__name="digits"), "trained on other data than the student: .*mixture2d"),
        ("0", dict(objective__prediction="x0"), "is 'x0', and the teacher in .* predicts 'v'"),
        ("0", dict(model__mlp__width=8), "can't start from the weights .*: give config.model|give"),
        ("0", dict(method__name="diffusion"), "method 'diffusion' takes no teacher"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teachers, tmp_path, teacher, changes, said):
    config = student_config("progressive", teachers / teacher, **changes)
    if changes.get("method__name") == "diffusion":
        config.method.update(teacher_steps=None, stage_steps=None)
    if changes.get("data__name") == "digits":
        config.model.name = "unet"
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("progressive", dict(method__teacher=""), "needs a teacher: set method.teacher"),
        ("progressive", dict(objective__prediction="eps"), "must be 'v' or 'x0' or 'flow'"),
        ("progressive", dict(sampling__num_steps=8), "taught 4 and 2 and 1 steps; with others"),
        ("progressive", dict(method__teacher_steps=12), "another power of 2"),
        ("progressive", dict(training__num_steps=2), "learned from step 2 on"),
        ("progressive", dict(sampling__grid="karras"), "sampling.grid with method 'progressive'"),
        ("progressive", dict(schedule__name="learned", method__teacher=""), "needs a teacher"),
        ("consistency", dict(method__teacher="", method__distill=True), "distill=True needs"),
        ("consistency", dict(sampling__sampler="ddim"), "sampled by 'consistency'"),
        (
            "consistency",
            dict(method__weighting="much"),
            "weighting is 'much'; it must be output or gap",
        ),
        ("consistency", dict(schedule__name="learned", method__teacher=""), "which learns none"),
        ("consistency", dict(objective__time_sampling="rate"), "take 'uniform'"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, changes, said):
    with pytest.raises(ValueError, match=said):
        config_lib.validate(student_config(name, "run", **changes))


def test_guidance_is_refused_of_a_student():
    config = student_config("consistency", "run", sampling__guidance_scale=2.0)
    config.update_from_flattened_dict({"model.class_conditional": True, "data.name": "digits"})
    config.model.name = "unet"
    with pytest.raises(ValueError, match="guidance_scale with method 'consistency': it was not"):
        config_lib.validate(config)


def test_a_guided_student_of_a_run_takes_a_scale(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    save_npz(tmp_path / "data.npz", x=x, label=np.arange(40) % 2)
    of_classes = dict(
        data__name="npz", data__path=str(tmp_path / "data.npz"), model__class_conditional=True,
        training__num_steps=1,
    )  # fmt: skip
    taught, _ = training.train(
        small_config(objective__prediction="v", **of_classes), tmp_path / "teacher"
    )
    own = dict(method__teacher_steps=2, method__guidance_max=3.0)
    config = student_config("progressive", tmp_path / "teacher", **(of_classes | own))
    state, _ = training.train(config, tmp_path / "student")
    begun = jax.tree.map(lambda leaf: leaf[0], state.teachers)
    assert not np.any(begun["noise_embedding"].pop("second_1")["kernel"])
    del begun["noise_embedding"]["second_0"]
    assert_close(begun, taught.ema_params, rtol=0)
    generate = diffax.Generator(tmp_path / "student")
    one, two = (generate(3, label=1, guidance_scale=scale) for scale in (1.0, 2.0))
    assert np.all(np.isfinite(two)) and np.any(one != two)
    with pytest.raises(ValueError, match="guidance_scale=5 .* taught scales from 1 to 3"):
        generate(3, label=1, guidance_scale=5.0)


def test_a_student_begins_as_its_teacher_and_is_sampled_without_it(teachers, tmp_path):
    """It resumes with a copy of the teacher, not with another one, nor without."""
    shutil.copytree(teachers / "0", tmp_path / "teacher")
    config = student_config("progressive", tmp_path / "teacher")
    partly = dict(stop=lambda step, run: step == 1)
    state, _ = training.train(config, tmp_path / "run", **partly)
    taught = training.load(teachers / "0").state.ema_params
    assert_close(jax.tree.map(lambda leaf: leaf[0], state.teachers), taught, rtol=0)
    generate = diffax.Generator(tmp_path / "run")
    assert generate(2, num_steps=4).shape == (2, 2)
    with pytest.raises(ValueError, match="num_steps=1: at step 1 the student.* from step 2 on"):
        generate(2)
    shutil.move(tmp_path / "teacher", tmp_path / "moved")
    assert diffax.Generator(tmp_path / "run")(2, num_steps=4).shape == (2, 2)
    with pytest.raises(FileNotFoundError, match="method.teacher is .*holds no run"):
        training.train(config, tmp_path / "run")
    shutil.copytree(teachers / "1", tmp_path / "teacher")
    with pytest.raises(ValueError, match="is not the one that the run in .* started from"):
        training.train(config, tmp_path / "run")
    config.method.teacher = str(tmp_path / "moved")
    training.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "moved")
    generate = diffax.Generator(tmp_path / "run")
    assert all(np.isfinite(generate(2, num_steps=n)).all() for n in (4, 2, 1))
    with pytest.raises(ValueError, match="sdedit: method 'progressive' edits no data"):
        generate.sdedit(np.zeros((1, 2)), 0.5)
    with pytest.raises(ValueError, match="metrics='bpd': allowed are loss"):
        run = training.load(tmp_path / "run")
        diffax.evaluation.evaluate(run, data.load_cached(config.data), ["bpd"])


def test_a_student_is_measured_as_an_arm_of_an_ablation(teachers, tmp_path):
    config = student_config("consistency", teachers / "0", method__distill=True)
    _, found = measure.train_and_evaluate(config, tmp_path)
    assert {metric.key for metric in measure.metrics_of(config)} >= {"consistency_loss"}
    assert np.isfinite(found["metrics"]["consistency_loss"])
