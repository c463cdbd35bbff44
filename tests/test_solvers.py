"""The solvers of the probability-flow ODE and the stochastic one: order, cost, ends, identities."""

import math
from functools import cache, partial
from pathlib import Path

import diffusers_cases
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schedule_cases

import diffax
from diffax import samplers, schedules
from diffax.process import by_log_snr
from diffax.schedules import alpha_of, sigma_of

pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEY = jax.random.key(0)
# name -> (sampler, its options, order of convergence, network calls in N steps)
SOLVERS = {
    "ddim": ("ddim", {}, 1, lambda n: n),
    "euler": ("euler", {}, 1, lambda n: n),
    "heun": ("heun", {}, 2, lambda n: 2 * n - 1),
    "plms": ("plms", {}, 2, lambda n: n + 1),
    "dpm_solver-1": ("dpm_solver", dict(order=1), 1, lambda n: n),
    "dpm_solver-2": ("dpm_solver", dict(order=2), 2, lambda n: 2 * n - 1),
    "dpm_solver-3": ("dpm_solver", dict(order=3), 3, lambda n: 3 * n - 2),
    "dpmpp_2s": ("dpmpp_2s", {}, 2, lambda n: 2 * n - 1),
    "dpmpp_2m": ("dpmpp_2m", {}, 2, lambda n: n),
    "unipc": ("unipc", {}, 3, lambda n: n),
    "learned": ("learned", {}, 1, lambda n: n),
}
STOCHASTIC = {
    "ddpm": ("ddpm", {}, None, lambda n: n),
    "ddim(eta=0.5)": ("ddim", dict(eta=0.5), None, lambda n: n),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, None, lambda n: n),
}
ALL = {**SOLVERS, **STOCHASTIC}
SCHEDULES = schedule_cases.CONTINUOUS | {
    f"{name} from 6 to -6": partial(schedules.with_endpoints, schedules.get(name), 6.0, -6.0)
    for name in ("linear_logsnr", "cosine")
}
BETWEEN = ("dpm_solver-2", "dpm_solver-3", "dpmpp_2s")  # need the log-SNR in discrete time
MEAN, VARIANCE = 1.0, 0.25


def flow(log_snr, z):
    """Where the exact probability flow of N(MEAN, VARIANCE) takes the path of this z."""
    alpha, sigma = alpha_of(log_snr), sigma_of(log_snr)
    return alpha * MEAN + jnp.sqrt(alpha**2 * VARIANCE + sigma**2) * z


def visited(name, steps, grid="uniform", prediction="eps", most=1000):
    """The levels of a schedule, the last one repeated up to `most` of them.

    No step is made between equal levels, so that all have one compiled program.
    """
    return _visited(name, steps, grid, prediction, most, double=jax.config.jax_enable_x64)


@cache
def _visited(name, steps, grid, prediction, most, double):
    schedule = SCHEDULES[name]()
    levels = samplers.visited_levels(schedule, steps, grid, prediction)
    missing = most - len(levels.t)
    return jax.tree.map(lambda a: jnp.append(a, jnp.repeat(a[-1:], missing)), levels)


@cache
def along(solver, prediction="eps", return_trajectory=False):
    """(levels, z) -> what a solver makes of the exact flow's start of z, with the exact denoiser of
    N(MEAN, VARIANCE); compiled once for all levels."""
    sampler, options, *_ = ALL[solver]

    @jax.jit
    def run(levels, z):
        mixture = exact.gaussian([MEAN], [[VARIANCE]], np.dtype(z.dtype))
        return diffax.sample(
            KEY, exact.predictor(mixture, prediction), schedules.linear_logsnr(), z.shape, sampler,
            prediction=prediction, grid=levels, x_init=flow(levels.log_snr[0], z),
            return_trajectory=return_trajectory, **options,
        )  # fmt: skip

    return run


def test_every_sampler_is_tested_here():
    of_consistency = {"consistency"}  # follows no flow of a denoiser: test_few_steps.py
    assert {sampler for sampler, *_ in ALL.values()} == set(samplers.SAMPLERS) - of_consistency


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["linear_logsnr", "cosine"])
@exact.in_float64
def test_order_of_convergence_to_the_exact_flow(name, solver):
    """At the clean end, before the step to x0: the error's slope against the number of steps."""
    _, _, order, _ = SOLVERS[solver]
    z = jnp.array([[-2.0], [0.0], [0.5], [3.0]])

    def error(steps):
        levels = visited(f"{name} from 6 to -6", steps, "linspace", most=320)
        _, states = along(solver, return_trajectory=True)(levels, z)
        return jnp.max(jnp.abs(states[-2] - flow(levels.log_snr[-1], z)))

    errors = np.array([error(n) for n in (80, 160, 320)])
    slopes = np.log2(errors[:-1] / errors[1:])
    print(f"{solver} on {name}: errors {errors}, slopes {slopes}")
    np.testing.assert_allclose(slopes[-1], order, atol=0.15)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm_solver-2", "dpmpp_2m", "dpm_solver-3"])
@exact.in_float64
def test_without_a_low_order_finish_the_last_step_has_the_order_too(solver):
    sampler, options, order, _ = SOLVERS[solver]
    schedule = schedules.with_endpoints(schedules.cosine(), 6.0, -6.0)
    predict = exact.predictor(exact.gaussian([MEAN], [[VARIANCE]], np.float64))
    z = jnp.array([[-2.0], [0.0], [0.5], [3.0]])

    @jax.jit
    def error(levels):
        x = diffax.sample(
            KEY, predict, schedule, z.shape, sampler, grid=levels, x_init=flow(-6.0, z),
            low_order_finish=False, **options,
        )  # fmt: skip
        return jnp.max(jnp.abs(x - flow(6.0, z)))

    errors = [error(visited("cosine from 6 to -6", steps, most=320)) for steps in (160, 320)]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("steps", [None, 10])
def test_a_grid_that_ends_at_the_clean_end_makes_no_step_there(solver, steps):
    sampler, options, *_ = ALL[solver]
    schedule = schedules.linear_logsnr(6.0, -6.0)
    schedule = schedule.discretize(steps) if steps else schedule

    def run(low_order_finish):
        return diffax.sample(
            KEY, exact.independent(0.3, 0.4), schedule, (3, 2), sampler, 5, grid="linspace",
            return_trajectory=True, low_order_finish=low_order_finish, **options,
        )  # fmt: skip

    x, states = jax.jit(run, static_argnums=0)(False)
    _, before = jax.jit(run, static_argnums=0)(True)
    np.testing.assert_array_equal(x, states[-1])
    np.testing.assert_array_equal(states[-1], states[-2])
    np.testing.assert_allclose(states[:-1], before[:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ALL)
def test_cost_in_network_calls(solver):
    """Where no step is a leap, which would be of one call in `heun`."""
    sampler, options, _, calls_in = ALL[solver]
    calls = []

    def counted(x, log_snr):
        jax.debug.callback(lambda _: calls.append(1), log_snr)
        return 0.5 * x

    for steps in (2, 7):
        calls.clear()
        run = partial(diffax.sample, sampler=sampler, num_steps=steps, **options)
        jax.jit(
            lambda run=run: run(
                KEY, by_log_snr(counted), schedules.linear_logsnr(2.0, -2.0), (1, 2)
            )
        )().block_until_ready()
        jax.effects_barrier()
        assert len(calls) == calls_in(steps)


# Those at zero SNR last: in float64 they alone run here, the others do in the tests of the order.
ENDS = ["linear", "cosine", "learned", "zero_terminal_snr linear", "zero_terminal_snr learned"]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("solver", ALL)
def test_finite_at_2_and_at_1000_steps_under_every_kind_of_end(solver, double):
    """And with the exact denoiser of N(MEAN, VARIANCE), near what it has to give."""
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        z = jnp.asarray(white(400), dtype)
        for name in ENDS[3:] if double else ENDS:
            prediction = "v" if "zero_terminal" in name else "eps"
            two, thousand = (visited(name, n, prediction=prediction) for n in (2, 1000))
            run = along(solver, prediction)
            assert np.all(np.isfinite(run(two, z))), name
            x = run(thousand, z)
            assert x.dtype == dtype
            assert np.all(np.isfinite(x)), name
            # 400 draws: four standard errors of the noise that a stochastic sampler adds
            np.testing.assert_allclose(x.mean(), MEAN, atol=0.1 if solver in STOCHASTIC else 0.01)
            bound = 4 / math.sqrt(2 * 400) if solver in STOCHASTIC else 0.02
            np.testing.assert_allclose(x.std(), math.sqrt(VARIANCE), rtol=bound)


# Without a noisy end of their own, or with one so near to none that the first step is as long.
ENDLESS = {
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "sharp sigmoid": lambda: schedules.sigmoid(tau=0.3),
    "alpha_bar_linear": schedules.alpha_bar_linear,
    "rectified_flow": schedules.rectified_flow,
    "shifted cosine": lambda: schedules.shifted(schedules.cosine(), 256, 64),
    "discrete cosine": lambda: schedules.cosine().discretize(1000),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_from_a_clipped_end_no_solver_is_further_off_than_ddim(solver):
    """In ten steps, the first from -20 to -3 or so: trapezoids in sigma / alpha were off by 40."""
    sampler, options, *_ = SOLVERS[solver]
    z, predict = jnp.asarray(white(400), jnp.float32), exact.independent(MEAN, VARIANCE)

    @partial(jax.jit, static_argnames=("name", "order"))
    def run(levels, name, **options):
        start = flow(levels.log_snr[0], z)
        arguments = (KEY, predict, schedules.linear_logsnr(), z.shape, name, 10)
        return diffax.sample(*arguments, grid=levels, x_init=start, **options)

    for name, make in ENDLESS.items():
        levels = samplers.visited_levels(make(), 10)
        levels = levels._replace(t=levels.t.astype(jnp.float32))
        found, ddim = run(levels, sampler, **options), run(levels, "ddim")
        assert abs(found.std() - 0.5) < 1.05 * abs(ddim.std() - 0.5) + 0.01, name
        np.testing.assert_allclose(found.mean(), MEAN, atol=0.01)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_default_grid_gives_the_mean_and_the_deviation_in_twenty_calls(solver):
    """Under schedules with infinite ends: to 15% with order 1, else to 8%."""
    sampler, options, order, calls_in = SOLVERS[solver]
    steps = max(n for n in range(21) if calls_in(n) <= 20)
    z = jnp.asarray(white(400), jnp.float32)
    for name in ("cosine", "sigmoid", "linear"):
        x = along(solver)(visited(name, steps, samplers.get(sampler, **options).grid), z)
        np.testing.assert_allclose(x.mean(), MEAN, atol=0.01)
        np.testing.assert_allclose(x.std(), 0.5, rtol=0.15 if order == 1 else 0.08)


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_without_a_word_of_a_grid_it_is_the_solver_s_own(sampler):
    def run(x, grid):
        predict = exact.independent(MEAN, VARIANCE)
        return diffax.sample(
            KEY, predict, schedules.cosine(), x.shape, sampler, 5, x_init=x, grid=grid
        )

    x, own = jnp.asarray(white(8), jnp.float32), samplers.get(sampler).grid
    drawn = {grid: jax.jit(run, static_argnums=1)(x, grid) for grid in (None, "uniform", "angle")}
    np.testing.assert_array_equal(drawn[None], drawn[own])
    assert not np.allclose(drawn["uniform"], drawn["angle"], atol=1e-3)
    want = samplers.visited_levels(schedules.cosine(), 5, own)
    levels = samplers.visited_levels(schedules.cosine(), 5, sampler=sampler)
    np.testing.assert_array_equal(levels.log_snr, want.log_snr)


# --- dtypes -------------------------------------------------------------------------------------

HALF_TYPES = (jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize("solver", ALL)
def test_the_result_has_the_state_s_dtype_whatever_the_network_s(solver):
    """And the network is told float32, or float64 where the state is that."""
    sampler, options, *_ = ALL[solver]
    schedule = schedules.cosine()

    def types(state, network):
        told = []

        def predict(x, log_snr):
            told.append(x.dtype)
            return (0.5 * x).astype(network)

        def run(x):
            return diffax.sample(
                KEY, by_log_snr(predict), schedule, x.shape, sampler, 5,
                x_init=x, return_trajectory=True, **options,
            )  # fmt: skip

        out = jax.eval_shape(run, jax.ShapeDtypeStruct((4, 2), state))
        assert {a.dtype for a in out} == {jnp.dtype(state)}
        return set(told)

    for state in (*HALF_TYPES, jnp.float32):
        for network in (*HALF_TYPES, jnp.float32):
            assert types(state, network) == {jnp.dtype(jnp.float32)}
    with jax.enable_x64(True):
        for state in (jnp.bfloat16, jnp.float32, jnp.float64):
            for network in (jnp.bfloat16, jnp.float32, jnp.float64):
                wide = jnp.float64 if state == jnp.float64 else jnp.float32
                assert types(state, network) == {jnp.dtype(wide)}


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_a_thousand_steps_of_a_narrow_state_are_those_of_float32(solver, dtype):
    """But for the rounding of the start and of the result, each by eps / 2 of its size."""
    sampler, options, *_ = ALL[solver]
    z, predict = jnp.asarray(white(400)).astype(dtype), exact.independent(MEAN, VARIANCE)

    @jax.jit
    def run(x):
        schedule = schedules.cosine()
        return diffax.sample(KEY, predict, schedule, x.shape, sampler, 1000, x_init=x, **options)

    narrow, wide = run(z), run(z.astype(jnp.float32))
    assert narrow.dtype == dtype
    np.testing.assert_array_equal(narrow, wide.astype(dtype))
    np.testing.assert_allclose(wide.std(), 0.5, atol=0.005 if solver in SOLVERS else 0.04)


def white(n):
    """(n, 1) numbers of mean 0 and variance 1, exactly."""
    z = np.random.default_rng(0).normal(size=(n, 1))
    return (z - z.mean()) / z.std()


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_stochastic_samplers_give_the_modes_of_a_mixture(solver):
    """Masses within 0.03 (four standard deviations of 4,000 draws), means within 0.03, deviations
    within a tenth."""
    sampler, options, *_ = STOCHASTIC[solver]
    mixture = exact.three_modes()
    x = jax.jit(
        lambda key: diffax.sample(
            key,
            exact.predictor(mixture),
            schedules.cosine(),
            (4000, 2),
            sampler,
            500,
            grid="logsnr",
            **options,
        )  # fmt: skip
    )(KEY)
    x, means = np.asarray(x), np.asarray(mixture.means)
    nearest = np.argmin(np.linalg.norm(x[:, None] - means, axis=-1), axis=1)
    for k, deviation in enumerate(np.sqrt(mixture.covariances[:, 0, 0])):
        mode = x[nearest == k]
        assert len(mode) / len(x) == pytest.approx(float(mixture.weights[k]), abs=0.03)
        np.testing.assert_allclose(mode.mean(0), means[k], rtol=0, atol=0.03)
        np.testing.assert_allclose(mode.std(0), deviation, rtol=0.1)


@pytest.mark.parametrize("solver", BETWEEN)
def test_levels_in_between_need_the_log_snr_in_discrete_time(solver):
    sampler, options, *_ = SOLVERS[solver]
    schedule = schedules.linear().discretize(100)
    with pytest.raises(ValueError, match="by_log_snr"):
        diffax.sample(KEY, lambda x, t: x, schedule, (2, 2), sampler, 10, **options)
    predict = exact.predictor(exact.gaussian())
    x = diffax.sample(KEY, predict, schedule, (2, 2), sampler, 10, **options)
    assert np.all(np.isfinite(x))


@pytest.mark.parametrize("solver", BETWEEN)
@exact.in_float64
def test_a_predictor_of_continuous_time_is_told_the_time_in_between(solver):
    sampler, options, *_ = SOLVERS[solver]
    schedule, f = schedules.cosine(), exact.independent(0.3, 0.4)
    by_time, by_level = (
        diffax.sample(KEY, predict, schedule, (3, 2), sampler, 8, **options)
        for predict in (lambda x, t: f(x, schedule.log_snr(t)), f)
    )
    np.testing.assert_allclose(by_time, by_level, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("same", ["euler", "dpm_solver-1", "learned"])
@exact.in_float64
def test_first_order_solvers_are_ddim(same):
    sampler, options, *_ = SOLVERS[same]
    arguments = (KEY, by_log_snr(exact.wrong), schedules.cosine(), (4, 2))
    options = {"num_steps": 9, "grid": "uniform", **options}
    ddim = diffax.sample(*arguments, num_steps=9)
    np.testing.assert_array_equal(diffax.sample(*arguments, sampler=sampler, **options), ddim)


@exact.in_float64
def test_without_history_the_stochastic_multistep_solver_is_ancestral():
    """Two steps have none to use: they are those of `ddpm` with the small variance."""
    arguments = (KEY, by_log_snr(exact.wrong), schedules.linear_logsnr(), (4, 2))
    two, ancestral = (diffax.sample(*arguments, name, 2) for name in ("dpmpp_2m_sde", "ddpm"))
    np.testing.assert_allclose(two, ancestral, rtol=1e-10)
    three, ancestral = (diffax.sample(*arguments, name, 3) for name in ("dpmpp_2m_sde", "ddpm"))
    assert not np.allclose(three, ancestral, rtol=1e-3)


def test_an_order_that_does_not_exist_is_refused():
    arguments = (KEY, by_log_snr(exact.wrong), schedules.cosine(), (4, 2))
    with pytest.raises(ValueError, match="order=4: must be a whole number from 1 to 3"):
        diffax.sample(*arguments, "dpm_solver", order=4)
    with pytest.raises(ValueError, match="'heun' has no argument 'eta'; allowed are none"):
        diffax.sample(*arguments, "heun", eta=1.0)


@pytest.mark.parametrize("case", diffusers_cases.CASES)
def test_agrees_with_diffusers(case):
    """Step by step, with what experiments/against_diffusers.py wrote down."""
    with np.load(Path(__file__).with_name("diffusers_reference.npz")) as reference:
        log_snrs, states = reference[f"{case}: log_snr"], reference[f"{case}: states"]
    bound = 1e-6 if case in diffusers_cases.IN_FLOAT32 else 1e-12
    assert diffusers_cases.difference(case, log_snrs, states) < bound
