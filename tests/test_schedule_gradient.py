"""The learned schedule's objectives: gradients, and what following them does to exact data."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import in_float64, predicts, three_modes, wrong

from diffax import config as config_lib
from diffax import likelihood, objectives, process, schedules
from diffax.schedules.learned import SHAPES

pytestmark = pytest.mark.usefixtures("hasty_compiler")

ENDS = dict(log_snr_max=8.0, log_snr_min=-8.0)
EXACT = predicts(three_modes())
FIXED = {
    "linear_logsnr": lambda: schedules.linear_logsnr(**ENDS),
    "cosine": lambda: schedules.with_endpoints(schedules.cosine(), **ENDS),
    "linear": lambda: schedules.with_endpoints(schedules.linear(), **ENDS),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("objective, num_steps", [("variance", None), ("vlb", 5)])
@in_float64
def test_gradient_is_that_of_the_objective(kind, objective, num_steps):
    """Against central differences along random directions, same key on both sides."""
    mixture = three_modes(np.float64)
    x0 = mixture.sample(jax.random.key(0), 64)
    schedule = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64), schedules.learned(kind=kind, size=8, **ENDS)
    )
    predict, key = predicts(mixture), jax.random.key(1)

    @jax.jit
    def value(schedule):
        terms = likelihood.vlb(
            key, process.by_log_snr(predict), schedule, x0, num_steps, levels=None
        )
        return jnp.mean(terms.diffusion**2 if objective == "variance" else terms.total)

    gradient = jax.jit(
        lambda schedule: objectives.schedule_gradient(
            key, predict, schedule, x0, objective, num_steps=num_steps, levels=None
        )
    )(schedule)
    assert jax.tree.structure(gradient) == jax.tree.structure(schedule)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(schedule)))
        leaves, tree = jax.tree.flatten(schedule)
        way = tree.unflatten(
            [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves)]
        )
        ahead, behind = (
            value(jax.tree.map(lambda leaf, w, s=s: leaf + s * w, schedule, way))
            for s in (1e-6, -1e-6)
        )
        slope = sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (gradient, way))))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)


def gradient_of(schedule, x0, key):
    """By the variance objective, with the exact predictor."""
    return objectives.schedule_gradient(key, EXACT, schedule, x0, levels=None)


def test_a_fixed_schedule_has_an_empty_gradient():
    x0 = three_modes().sample(jax.random.key(0), 8)
    gradient = jax.jit(functools.partial(gradient_of, key=jax.random.key(1)))(FIXED["cosine"](), x0)
    assert jax.tree.leaves(gradient) == []


def test_learned_endpoints_get_the_gradient_of_the_bound():
    x0, key = three_modes().sample(jax.random.key(0), 256), jax.random.key(1)
    schedule = schedules.learned(learn_endpoints=True, size=8, **ENDS)

    def bound(schedule):
        return jnp.mean(
            likelihood.vlb(key, process.by_log_snr(EXACT), schedule, x0, levels=None).total
        )

    def second_moment(schedule):
        terms = likelihood.vlb(key, process.by_log_snr(EXACT), schedule, x0, levels=None)
        return jnp.mean(terms.diffusion**2)

    found = jax.jit(functools.partial(gradient_of, key=key))(schedule, x0)
    np.testing.assert_allclose(found.ends, jax.jit(jax.grad(bound))(schedule).ends, rtol=1e-4)
    for got, want in zip(
        *(jax.tree.leaves(g.shape) for g in (found, jax.jit(jax.grad(second_moment))(schedule)))
    ):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(objective="mse"), "variance"),
        (dict(objective="vlb"), "num_steps"),
        (dict(prediction="epsilon"), "x0"),
    ],
)
def test_refusals(arguments, said):
    x0 = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match=said):
        objectives.schedule_gradient(
            jax.random.key(0), EXACT, schedules.learned(size=4), x0, levels=None, **arguments
        )
    with pytest.raises(ValueError, match="continuous"):
        discrete = schedules.learned(size=4).discretize(10)
        objectives.schedule_gradient(jax.random.key(0), EXACT, discrete, x0, levels=None)


# --- following it -------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("predict", "steps", "rate"))
def followed(schedule, predict, steps=400, rate=3e-2):
    """The schedule after Adam on the variance objective, fresh data and noise in each step."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    mixture = three_modes()

    def step(carry, key):
        schedule, state = carry
        x0 = mixture.sample(key, 512)
        gradient = objectives.schedule_gradient(
            jax.random.fold_in(key, 1), predict, schedule, x0, levels=None
        )
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(schedule, updates), state), None

    keys = jax.random.split(jax.random.key(7), steps)
    (schedule, _), _ = jax.lax.scan(step, (schedule, optimizer.init(schedule)), keys)
    return schedule


@functools.partial(jax.jit, static_argnames=("predict", "n"))
def diffusion_terms(schedule, predict, n=200_000):
    """One draw of the diffusion term for each of n examples, bits/dim."""
    x0 = three_modes().sample(jax.random.key(11), n)
    return likelihood.vlb(
        jax.random.key(13), process.by_log_snr(predict), schedule, x0, levels=None
    ).diffusion


def interval_of_variance(terms, parts=40):
    """A 4-sigma interval of the variance, from the spread of the parts' own."""
    parts = np.asarray(terms, np.float64).reshape(parts, -1).var(axis=1, ddof=1)
    margin = 4 * parts.std(ddof=1) / math.sqrt(len(parts))
    return parts.mean() - margin, parts.mean() + margin


@functools.cache
def least_variance():
    """(the least variance that any shape can have, the best density of log-SNR on a grid).

    E[L^2] = E over log-SNR of (e / 2)^2 / density in the mean, e the squared error in eps: least
    for a density in proportion to sqrt(E[e^2]) (Cauchy-Schwarz).
    """
    levels = jnp.linspace(ENDS["log_snr_min"], ENDS["log_snr_max"], 257)
    x0 = three_modes().sample(jax.random.key(3), 20_000)
    noise = jax.random.normal(jax.random.key(5), x0.shape)

    @jax.jit
    def moments(level):
        log_snr = jnp.full(x0.shape[:1], level)
        error = likelihood.eps_error(
            process.by_log_snr(EXACT), x0, noise, log_snr, log_snr, "eps"
        ) / (2 * math.log(2) * x0.shape[1])
        return jnp.mean(error), jnp.mean(error**2)

    mean, square = jax.lax.map(moments, levels)
    root = np.sqrt(np.asarray(square))
    area, bound = np.trapezoid(root, levels), np.trapezoid(mean, levels)
    return area**2 - bound**2, np.asarray(levels), root / area


@pytest.mark.parametrize("kind", SHAPES)
def test_learning_lowers_the_variance_and_leaves_the_bound(kind):
    """On a mixture with its exact denoiser, at equal endpoints, for every kind of shape."""
    start = schedules.learned(kind=kind, **ENDS)
    schedule = followed(start, EXACT)
    terms = np.asarray(diffusion_terms(schedule, EXACT), np.float64)
    _, high = interval_of_variance(terms)
    for name, make in FIXED.items():
        others = np.asarray(diffusion_terms(make(), EXACT), np.float64)
        low, _ = interval_of_variance(others)
        assert high < low, f"{name}: {low} is not above {high}"
        # the expected bound does not move: within 5 standard errors of either estimate
        error = math.sqrt((terms.var() + others.var()) / len(terms))
        assert abs(terms.mean() - others.mean()) < 5 * error
    assert float(schedule.log_snr(0.0)) == ENDS["log_snr_max"]
    assert float(schedule.log_snr(1.0)) == ENDS["log_snr_min"]


@pytest.mark.parametrize(
    "kind, steps, rate, slack",
    [("monotone", 400, 1e-2, 1.1), ("piecewise_linear", 1500, 3e-2, 1.2)],
)
def test_learning_comes_near_the_least_possible_variance(kind, steps, rate, slack):
    """From 2.4 times the optimum to near it, and near the best density of log-SNR."""
    least, levels, density = least_variance()
    schedule = followed(schedules.learned(kind=kind, **ENDS), EXACT, steps=steps, rate=rate)
    low, high = interval_of_variance(diffusion_terms(schedule, EXACT))
    assert low < slack * least
    assert high > 0.95 * least  # nothing beats it: the estimate of the optimum itself is noisy
    t = np.asarray(schedule.inverse_log_snr(jnp.asarray(levels)))
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(levels))])
    np.testing.assert_allclose(1 - t, share, atol=0.12)  # log-SNR-linear is 0.33 away


def test_the_gradient_through_what_the_network_is_told_is_needed():
    """Cut there, the gradient is another one, and following it ends at a larger variance."""
    x0, key = three_modes().sample(jax.random.key(0), 4096), jax.random.key(1)
    schedule = schedules.learned(kind="piecewise_linear", **ENDS)

    full = objectives.schedule_gradient(key, EXACT, schedule, x0, levels=None)
    cut = objectives.schedule_gradient(key, deaf, schedule, x0, levels=None)
    a, b = full.shape["logits"], cut.shape["logits"]
    assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)) > 0.1
    right = interval_of_variance(diffusion_terms(followed(schedule, EXACT), EXACT))
    wronged = interval_of_variance(diffusion_terms(followed(schedule, deaf), EXACT))
    assert right[1] < wronged[0]


def test_by_default_the_gradient_is_not_clipped_since_that_goes_astray():
    """In small batches its direction is that of rare large values, which clipping outvotes."""
    learning = config_lib.default_config()
    learning.schedule_learning.learning_rate = 3e-3
    clipped = learning.copy_and_resolve_references()
    clipped.schedule_learning.clip_norm = 1.0
    mixture, start = three_modes(), schedules.learned(kind="monotone", size=32, **ENDS)

    def variance(config, key):
        optimizer = config_lib.build_schedule_optimizer(config)

        def step(carry, key):
            schedule, state = carry
            gradient = gradient_of(schedule, mixture.sample(key, 32), jax.random.fold_in(key, 1))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(schedule, updates), state), None

        carry, _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, 1000))
        return jnp.var(diffusion_terms(carry[0], EXACT, n=50_000))

    keys = jax.random.split(jax.random.key(5), 3)
    free, outvoted = (
        jax.jit(jax.vmap(functools.partial(variance, config)))(keys)
        for config in (learning, clipped)
    )
    assert 1.5 * jnp.max(free) < jnp.min(outvoted), (free, outvoted)


def deaf(x_t, log_snr):
    """The exact predictor, with no gradient through the level that it is told."""
    return EXACT(x_t, jax.lax.stop_gradient(log_snr))


def test_the_bound_is_the_same_along_every_shape_even_for_a_wrong_predictor():
    terms = {name: np.asarray(diffusion_terms(make(), wrong)) for name, make in FIXED.items()}
    terms["learned"] = np.asarray(diffusion_terms(schedules.learned(**ENDS), wrong))
    reference = terms.pop("linear_logsnr").astype(np.float64)
    for name, other in terms.items():
        error = math.sqrt((reference.var() + other.var()) / len(reference))
        assert abs(reference.mean() - other.mean()) < 5 * error, name


def test_learned_endpoints_lower_the_bound():
    start = schedules.learned(learn_endpoints=True, log_snr_max=3.0, log_snr_min=-3.0)
    schedule = followed(start, EXACT, steps=200)
    x0 = three_modes().sample(jax.random.key(17), 100_000)

    def total(schedule):
        return likelihood.vlb(
            jax.random.key(19), process.by_log_snr(EXACT), schedule, x0, levels=None
        ).total

    before, after = (np.asarray(jax.jit(total)(s), np.float64) for s in (start, schedule))
    error = math.sqrt((before.var() + after.var()) / len(before))
    assert after.mean() < before.mean() - 5 * error
