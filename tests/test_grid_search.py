"""Grids found for a network: their parts against closed forms, what they gain, what is refused."""

import itertools
import math

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import compiled_quickly

import diffax
from diffax import rates, samplers, schedules
from diffax.process import by_log_snr
from diffax.samplers import grid_search, grids, learned
from diffax.schedules import alpha_of, sigma_of

pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEY = jax.random.key(0)
LINE = schedules.linear_logsnr(8.0, -8.0)
START = jax.random.normal(jax.random.key(1), (256, 2))
ROWS = jnp.zeros(
    (len(START), 1)
)  # as of a condition for each start: no other number of them will do
MODES = by_log_snr(lambda x, log_snr: exact.three_modes().eps(x, log_snr) + ROWS)
SMALL = dict(teacher_steps=64, candidates=16)
DETERMINISTIC = {
    "ddim": {}, "euler": {}, "heun": {}, "plms": {}, "dpm_solver": {"order": 3}, "dpmpp_2s": {},
    "dpmpp_2m": {}, "unipc": {},
}  # fmt: skip


def best_fixed(found):
    return min(error for error, _ in found.fixed.values())


def best_fixed_held_out(found):
    return min(held_out for _, held_out in found.fixed.values())


# --- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_the_shortest_path_is_that_of_all_paths(num, remembers):
    rng, size = np.random.default_rng(num), 7
    begin, costs = rng.random(size), rng.random((size if remembers else 1, size, size + 1))
    costs[:, ~np.triu(np.ones((size, size + 1), bool), 1)] = np.inf

    def length(path):
        before = [path[0], *path[:-1]] if remembers else [0] * num
        after = [*path[1:], size]
        return begin[path[0]] + sum(costs[h, i, j] for h, i, j in zip(before, path, after))

    want = min(itertools.combinations(range(size), num), key=length)
    np.testing.assert_array_equal(grid_search.shortest_path(begin, costs, num), want)


def test_sensitivities_are_the_flow_s_jacobian():
    """For N(m, v) the flow multiplies distances by sqrt(v) / sqrt(alpha^2 v + sigma^2)."""
    mean, v = 1.0, 0.25
    predict = exact.independent(mean, v)
    over = samplers.loop.range_of(LINE, "eps", 20.0, -20.0)
    levels = grids.logsnr(over, 400)
    denoise = samplers.loop.make_denoiser(predict, "eps")
    z = jnp.linspace(-2, 2, 5)[:, None]
    alpha, sigma = (f(levels.log_snr)[:, None, None] for f in (alpha_of, sigma_of))
    states = alpha * mean + jnp.sqrt(alpha**2 * v + sigma**2) * z
    path = grid_search._Path(levels, None, levels, states, None, None, states[-1])
    fields = dict.fromkeys(grid_search._Task._fields) | dict(key=KEY, denoise=denoise, path=path)
    found = grid_search._sensitivities(grid_search._Task(**fields))
    want = math.sqrt(v) / jnp.sqrt(alpha**2 * v + sigma**2)
    want = jnp.broadcast_to(want[:, None], found[:-1].shape)
    np.testing.assert_allclose(jnp.abs(found[:-1]), want, rtol=0.02)


def test_weights_are_no_constants_of_a_program(tmp_path):
    """Other weights find the program that is on disk."""
    x, kept = np.ones((3, 4), np.float32), []
    with compiled_quickly(tmp_path):
        for seed in (0, 1):
            weights = np.random.default_rng(seed).standard_normal((4, 5)).astype(np.float32)
            on_device = jnp.asarray(weights)
            run = grid_search._compiled(lambda x, w=on_device: {"y": jnp.tanh(x @ w)})
            np.testing.assert_allclose(run(x)["y"], np.tanh(x @ weights), rtol=1e-5)
            kept.append(sum("jit_run" in p.name for p in tmp_path.iterdir()))
    assert kept[0] == kept[1] > 0


@exact.in_float64
def test_the_learned_solver_holds_dpmpp_2m():
    levels = samplers.visited_levels(LINE, 6, "angle")
    x, predict = jnp.asarray(np.asarray(START[:4]), jnp.float64), by_log_snr(exact.wrong)

    def run(sampler, **options):
        return diffax.sample(KEY, predict, LINE, x.shape, sampler, grid=levels, x_init=x, **options)

    table = tuple(map(float, np.ravel(learned.as_dpmpp_2m(levels))))
    same = run("learned", coefficients=table)
    np.testing.assert_allclose(same, run("dpmpp_2m"), rtol=1e-6)  # levels are of float32
    with pytest.raises(ValueError, match="has coefficients for 6 steps, not for the 5"):
        diffax.sample(KEY, predict, LINE, (4, 2), "learned", 5, coefficients=table)
    with pytest.raises(ValueError, match="coefficients has 5 numbers: 4 are needed for each step"):
        samplers.get("learned", coefficients=table[:5])


# --- what is found ------------------------------------------------------------------------------


def test_every_deterministic_solver_is_tried_here():
    chosen = {name for name in samplers.SAMPLERS if not samplers.get(name).stochastic}
    assert chosen == {*DETERMINISTIC, "learned"}


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_dp_is_at_most_as_far_off_as_every_fixed_grid(sampler):
    """With every solver: on the starts it saw, and by much in most; on others hardly more."""
    options = DETERMINISTIC[sampler]
    found = grid_search.search(MODES, LINE, START, [4], sampler, **options, **SMALL).found[4]
    print(f"{sampler} {found.error:.4f} {best_fixed(found):.4f}")
    print(f"held out {found.held_out:.4f} {best_fixed_held_out(found):.4f}")
    assert found.error < 0.9 * best_fixed(found)
    assert found.held_out < 1.15 * best_fixed_held_out(found)
    assert np.all(np.diff(found.levels.log_snr) > 0) and found.levels.t.shape == (4,)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_gradient_is_at_most_as_far_off_as_every_fixed_grid(sampler):
    found = grid_search.search(MODES, LINE, START, [4], sampler, "gradient", **SMALL).found[4]
    assert found.error < 0.9 * best_fixed(found)
    assert found.held_out < 1.25 * best_fixed_held_out(found)


def test_coefficients_are_learned_with_the_levels():
    found, levels_alone = (
        grid_search.search(MODES, LINE, START, [4], *which, **SMALL).found[4]
        for which in (("learned", "learned"), ("dpmpp_2m", "gradient"))
    )
    assert found.coefficients.shape == (4, 4)
    assert found.error <= levels_alone.error < best_fixed(found)
    table = tuple(map(float, found.coefficients.ravel()))
    x = diffax.sample(
        KEY, MODES, LINE, START.shape, "learned", grid=found.levels, x_init=START,
        coefficients=table,
    )  # fmt: skip
    fine = diffax.sample(
        KEY, MODES, LINE, START.shape, "dpmpp_2m", 400, grid="logsnr", x_init=START
    )
    used = np.arange(len(START)) % 4 != 3
    apart = np.sqrt(np.mean(np.sum((x - fine)[used] ** 2, axis=1)))
    np.testing.assert_allclose(apart, found.error, atol=0.02)


def test_ays_minimises_its_bound_for_a_gaussian():
    """x0 = N(0, 1), where x0-hat = alpha x: E|x0(x_l) - x0(x_i)|^2 = alpha_l^2 - alpha_i^2."""
    x = jax.random.normal(KEY, (4000, 1))
    predict = exact.independent(0.0, 1.0)
    found = grid_search.search(predict, LINE, x, [3], method="ays", **SMALL).found[3]
    over = samplers.loop.range_of(LINE, "eps", 20.0, -20.0)
    inner = np.asarray(grids.logsnr(over, 64).log_snr)[np.round(np.linspace(0, 63, 16)).astype(int)]

    def step(first, last):
        log_snr = np.linspace(first, last, 2001)
        change = alpha_of(log_snr) ** 2 - alpha_of(first) ** 2
        return 0.5 * np.trapezoid(change, np.exp(log_snr))

    def bound(path):
        ends = [*path, inner[-1]]
        return sum(step(a, b) for a, b in zip(ends[:-1], ends[1:]))

    want = min(([inner[0], a, b] for a, b in itertools.combinations(inner[1:], 2)), key=bound)
    assert bound(np.asarray(found.levels.log_snr, np.float64)) < 1.05 * bound(want)


@pytest.mark.parametrize("kind", rates.CLOSED_FORMS)
def test_levels_of_equal_rate_are_those_of_the_closed_form(kind):
    """The rate is estimated on the teacher's x0, here N(1, 1/2): level by level to 0.4 in log-SNR,
    of 16 between -8 and 8."""
    predict, x = exact.independent(1.0, 0.5), jax.random.normal(KEY, (1000, 2))
    found = grid_search.search(predict, LINE, x, [5], method=kind, **SMALL)
    over = samplers.loop.range_of(LINE, "eps", 20.0, -20.0)
    want = grids.levels(over, rates.gaussian([0.5, 0.5], 1.0, kind, 8.0, -8.0), 5)
    np.testing.assert_allclose(found.found[5].levels.log_snr, want.log_snr, atol=0.4)
    assert found.calls == 64 + 16 + 65 * (2 if kind in ("constant_change", "transport") else 1)


@pytest.mark.parametrize("method", ["dp", "gradient", "ays", "entropy"])
def test_discrete_time(method):
    schedule = LINE.discretize(50)
    found = grid_search.search(MODES, schedule, START, [4], "dpmpp_2m", method, **SMALL).found[4]
    assert np.issubdtype(found.levels.t.dtype, np.integer)
    np.testing.assert_array_equal(found.levels.log_snr, schedule.log_snrs[found.levels.t])
    assert np.all(np.diff(found.levels.t) < 0)
    if method in ("dp", "gradient"):
        assert found.error <= best_fixed(found)


def test_a_predictor_of_the_index_and_zero_snr():
    """The levels are indices, which the predictor knows; the first has no signal."""
    schedule = schedules.zero_terminal_snr(LINE.discretize(50))
    by_level = exact.predicts(exact.three_modes(), "v")
    predict = lambda x, t: by_level(x, schedule.log_snrs[t])  # noqa: E731
    options = dict(prediction="v", **SMALL)
    found = grid_search.search(predict, schedule, START, [4], "ddim", **options).found[4]
    assert found.error < best_fixed(found)
    with pytest.raises(ValueError, match="'gradient' moves levels continuously"):
        grid_search.search(predict, schedule, START, [4], method="gradient", **options)


def test_one_matrix_serves_all_step_counts_and_the_cost_is_told():
    searched = grid_search.search(MODES, LINE, START, [1, 2, 5], **SMALL)
    alone = grid_search.search(MODES, LINE, START, [5], **SMALL)
    assert list(searched.found) == [1, 2, 5]
    np.testing.assert_array_equal(searched.found[5].levels.t, alone.found[5].levels.t)
    assert searched.calls == alone.calls == 64 + 16 + 16 * 9
    assert all(found.calls % num == 0 for num, found in searched.found.items())
    levels = grids.optimize(MODES, LINE, START, 5, **SMALL)
    np.testing.assert_array_equal(levels.t, alone.found[5].levels.t)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="best"), "method='best': allowed are dp, gradient, ays, entropy"),
        (dict(sampler="ddpm"), "sampler='ddpm' draws noise"),
        (dict(sampler="ddim", eta=0.5), "sampler='ddim' draws noise"),
        (dict(num_steps=17), "steps=17: must be a whole number from 1 to 16"),
        (dict(x_init=START[:7]), "x_init has 7 starts: at least 8 are needed"),
        (dict(method="learned"), "'learned' is for the sampler 'learned', and it alone"),
        (dict(method="gradient", begins=0), "begins=0: must be a whole number from 1"),
        (dict(sampler="learned"), "method='dp' with sampler='learned'"),
    ],
)
def test_what_can_t_be_is_refused(options, message):
    given = dict(x_init=START, num_steps=4) | options
    with pytest.raises(ValueError, match=message):
        grids.optimize(MODES, LINE, **given, **SMALL)
