"""Time samplers: what they draw, and that their weights keep every mean right."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffax import rates, schedules, time_sampling
from diffax.time_sampling import TIME_SAMPLERS

pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEY = jax.random.key(9)


def loss_at(u):
    """A loss that varies much with the time; its integral over u is 1/3 + 1/10."""
    return u**2 + 0.1


def trained(name, steps=200, batch=64):
    """The sampler and its state after some updates."""
    sampler = time_sampling.get(name)

    def step(state, key):
        u, _ = sampler.sample(state, key, batch)
        return sampler.update(state, u, loss_at(u)), None

    state, _ = jax.lax.scan(step, sampler.init(), jax.random.split(jax.random.key(0), steps))
    return sampler, state


@pytest.mark.parametrize("name", TIME_SAMPLERS)
@pytest.mark.parametrize("learnt", [False, True])
def test_weighted_means_are_unbiased(name, learnt):
    sampler, state = trained(name) if learnt else (time_sampling.get(name), None)
    state = sampler.init() if state is None else state
    u, weight = sampler.sample(state, jax.random.key(1), 200_000)
    assert u.shape == weight.shape == (200_000,)
    assert 0 <= float(u.min()) and float(u.max()) <= 1
    values = np.asarray(weight * loss_at(u), np.float64)
    margin = 5 * values.std() / math.sqrt(len(values))
    assert abs(values.mean() - (1 / 3 + 0.1)) < margin


@pytest.mark.parametrize("name", ["uniform", "stratified"])
def test_each_draw_is_uniform(name):
    sampler = time_sampling.get(name)
    keys = jax.random.split(jax.random.key(2), 4000)
    first = jax.vmap(lambda key: sampler.sample(sampler.init(), key, 8)[0][0])(keys)
    assert stats.kstest(np.asarray(first), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_stratified_draws_have_one_in_each_stratum(batch):
    u, _ = time_sampling.stratified().sample((), jax.random.key(3), batch)
    gaps = np.diff(np.sort(np.asarray(u, np.float64)))
    np.testing.assert_allclose(gaps, 1 / batch, atol=1e-6)


def test_stratified_estimates_vary_less():
    def spread(name):
        sampler = time_sampling.get(name)
        keys = jax.random.split(jax.random.key(4), 500)
        means = jax.vmap(lambda key: jnp.mean(loss_at(sampler.sample((), key, 32)[0])))(keys)
        return float(jnp.std(means))

    assert spread("stratified") < 0.2 * spread("uniform")


def test_importance_draws_in_proportion_to_the_root_mean_square_loss():
    """p(u) ~ sqrt(E[loss^2 | u]) (Nichol & Dhariwal 2021, eq. 18), and the loss varies less so."""
    sampler, state = trained("importance")
    u, weight = sampler.sample(state, jax.random.key(5), 400_000)
    counts, _ = np.histogram(np.asarray(u), bins=100, range=(0, 1))
    middle = (np.arange(100) + 0.5) / 100
    expected = loss_at(middle) / loss_at(middle).sum()
    np.testing.assert_allclose(counts / counts.sum(), expected, rtol=0.15)
    weighted = np.asarray(weight * loss_at(u))
    plain = np.asarray(loss_at(jax.random.uniform(jax.random.key(6), (400_000,))))
    assert weighted.var() < 0.05 * plain.var()


def test_importance_is_uniform_until_every_bin_is_full():
    sampler = time_sampling.importance(bins=4, kept=2)
    state = sampler.init()
    for u in (0.1, 0.4, 0.6, 0.9):
        _, weight = sampler.sample(state, jax.random.key(7), 16)
        np.testing.assert_allclose(weight, 1.0, rtol=1e-6)
        state = sampler.update(state, jnp.full((2,), u), jnp.full((2,), 1.0 + 9 * u))
    _, weight = sampler.sample(state, jax.random.key(8), 1000)
    assert float(weight.max()) > 1.5


def test_importance_keeps_the_latest_losses_of_a_bin():
    sampler = time_sampling.importance(bins=2, kept=3)
    state = sampler.init()
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        state = sampler.update(state, jnp.array([0.25]), jnp.array([loss]))
    np.testing.assert_array_equal(np.sort(state.losses[0]), [3.0, 4.0, 5.0])
    np.testing.assert_array_equal(state.losses[1], 0.0)
    # more in one batch than a bin holds: as many as it holds, each once
    state = sampler.update(sampler.init(), jnp.full((5,), 0.75), jnp.arange(1.0, 6.0))
    np.testing.assert_array_equal(np.sort(state.losses[1]), [1.0, 2.0, 3.0])


def test_logit_normal_times_are_normal_in_the_log_snr_of_rectified_flow():
    """All but the uniform share; N(-2 location, (2 scale)^2)."""
    sampler = time_sampling.get("logit_normal", location=0.5, scale=1.2, floor=1e-6)
    u, weight = sampler.sample((), jax.random.key(9), 4000)
    log_snr = np.asarray(schedules.rectified_flow().log_snr(u))
    assert stats.kstest(log_snr, stats.norm(-1.0, 2.4).cdf).pvalue > 1e-3
    density = stats.norm(0.5, 1.2).pdf(-log_snr / 2) / np.asarray(u * (1 - u))
    np.testing.assert_allclose(weight, 1 / density, rtol=0.05)
    assert time_sampling.get("logit_normal", floor=0.1).sample((), KEY, 4000)[1].max() <= 10


SCHEDULES = {
    "cosine": schedules.cosine,
    "edm": schedules.edm,
    "discrete": lambda: schedules.linear().discretize(37),
}


def error_at(log_snr):
    """An error of eps with a hump."""
    return 0.02 + 0.9 * jnp.exp(-(((log_snr - 1) / 2) ** 2))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_online_rate_draws_in_proportion_to_the_error_by_log_snr(name):
    """And its weights keep the mean over time of a function of the level."""
    schedule, sampler = SCHEDULES[name](), time_sampling.get("rate", floor=0.02)

    def step(state, key):
        u, _ = sampler.sample(state, key, 512)
        log_snr = schedule.log_snr(time_sampling.times_of(schedule, u))
        state = sampler.update(state, log_snr, error_at(log_snr))
        return sampler.along(state, schedule), None

    start, keys = sampler.along(sampler.init(), schedule), jax.random.split(jax.random.key(0), 60)
    state, _ = jax.jit(lambda start: jax.lax.scan(step, start, keys))(start)
    u, weight = sampler.sample(state, KEY, 100_000)
    log_snr = np.asarray(schedule.log_snr(time_sampling.times_of(schedule, u)))
    values = np.asarray(weight, np.float64) * np.cos(log_snr)
    times = np.arange(37) if name == "discrete" else (np.arange(400_000) + 0.5) / 400_000
    exact = np.cos(np.asarray(schedule.log_snr(times), np.float64)).mean()
    assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(len(values))
    if name == "discrete":
        return
    counts, edges = np.histogram(log_snr, bins=24, range=(-6, 6), density=True)
    middle = 0.5 * (edges[1:] + edges[:-1])
    np.testing.assert_allclose(
        counts / counts.sum(), error_at(middle) / error_at(middle).sum(), rtol=0.15, atol=0.002
    )
    learned = time_sampling.learned_rate(state)
    np.testing.assert_allclose(learned(middle), error_at(middle), rtol=0.1, atol=0.02)
    drawn = sampler.curve(state)
    density = np.interp(middle, drawn["log_snr"][::-1], drawn["density"][::-1])
    np.testing.assert_allclose(density / density.sum(), counts / counts.sum(), rtol=0.1, atol=0.002)


def test_a_rate_of_a_file_stays_and_a_gate_takes_low_noise_away(tmp_path):
    known = rates.spectral([0.5])
    (tmp_path / "rate.json").write_text(known.to_json())
    fixed = time_sampling.get("rate", path=str(tmp_path / "rate.json"), floor=1e-3)
    line = schedules.linear_logsnr()
    state = fixed.along(fixed.init(), line)
    u, _ = fixed.sample(fixed.update(state, jnp.zeros(9), jnp.ones(9)), KEY, 2000)
    assert stats.kstest(np.asarray(known.cumulative(line.log_snr(u))), "uniform").pvalue > 1e-3
    plain, gated = (time_sampling.get("rate", gate=gate) for gate in (0.0, 0.2))
    high = [
        float((sampler.sample(sampler.init(), KEY, 2000)[0] < 0.25).mean())
        for sampler in (plain, gated)
    ]  # log-SNR above 5, where sigma / alpha is below 0.08
    assert high[0] > 0.45 and high[1] < 0.2


def test_times_are_drawn_as_another_schedule_draws_them():
    """On a schedule linear in log-SNR, by cosine's density, whole and in a half of the draws."""
    line = schedules.linear_logsnr(10.0, -10.0)
    cosine = schedules.with_endpoints(schedules.cosine(), 10.0, -10.0)
    for share, floor in ((1.0, 1e-3), (0.5, 0.5)):
        times = time_sampling.get("rate", like="cosine", floor=floor)
        state = times.along(times.init(), line)
        u, weight = times.sample(times.update(state, jnp.zeros(9), jnp.ones(9)), KEY, 20_000)
        t = cosine.inverse_log_snr(line.log_snr(u))
        middle = np.mean((np.asarray(t) > 0.25) & (np.asarray(t) < 0.75))
        of_line = float(jnp.diff(line.inverse_log_snr(cosine.log_snr(jnp.array([0.25, 0.75]))))[0])
        np.testing.assert_allclose(middle, share * 0.5 + (1 - share) * of_line, atol=0.005)
        np.testing.assert_allclose(jnp.mean(weight), 1, atol=0.05)
    with pytest.raises(ValueError, match="path='a.json' and like='cosine': give one of them"):
        time_sampling.get("rate", path="a.json", like="cosine")
    with pytest.raises(ValueError, match="cosin"):
        time_sampling.get("rate", like="cosin")


@pytest.mark.parametrize("name", ["importance", "logit_normal"])
def test_shares_are_shares(name):
    with pytest.raises(ValueError, match="floor=0: must be above 0 and at most 1"):
        time_sampling.get(name, floor=0)
    with pytest.raises(ValueError, match="has no argument 'flor' .did you mean floor"):
        time_sampling.get(name, flor=0)


@settings(max_examples=8)
@given(u=st.floats(0, 1, width=32), total=st.integers(1, 2000))
def test_times_are_the_schedules_own(u, total):
    discrete = schedules.linear_logsnr().discretize(total)
    index = int(time_sampling.times_of(discrete, jnp.float32(u)))
    assert 0 <= index < total
    assert index == min(math.floor(np.float32(u) * np.float32(total)), total - 1)
    t = float(time_sampling.times_of(schedules.cosine(), jnp.float32(u)))
    assert 0 < t < 1 and abs(t - u) < 1e-6
    assert math.isfinite(float(schedules.cosine().log_snr(jnp.float32(t))))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="stratified"):
        time_sampling.get("uniformly")
