"""The training step: what it updates, what it keeps apart, and what the network is told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import (
    LEARNED,
    MIXTURE,
    assert_close,
    assert_equal,
    batch_of,
    compiled_quickly,
    prepare,
    run_of,
    small_config,
    train_steps,
)

import diffax
from diffax import config as config_lib
from diffax import objectives, process, schedules, time_sampling, training
from diffax.config import checks, optimizers
from diffax.methods import moving_average
from diffax.schedules import alpha_of, sigma_of
from diffax.training.metric_buffer import MetricBuffer


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


# --- one step -------------------------------------------------------------------------------


def test_step_is_adam_on_the_weighted_loss():
    """The step repeated by hand: same noise, same times, optax called directly."""
    config = small_config(optimizer__clip_norm=0.0, objective__time_sampling="uniform")
    step, state = prepare(config)
    batch = batch_of()
    new, metrics = step(state, batch)

    model = config_lib.build_model(config, MIXTURE)
    names = ("times", "noise", "dropout", "label", "schedule")
    keys = dict(zip(names, jax.random.split(jax.random.fold_in(state.key, 0), 5)))
    t = jax.random.uniform(keys["times"], (32,))
    noise = jax.random.normal(keys["noise"], (32, 2))
    log_snr = state.schedule.log_snr(t)
    x_t = process.q_sample_at(batch["x"], log_snr, noise)

    def losses(params):
        out = model.apply({"params": params}, x_t, log_snr)
        return jnp.mean((out - noise) ** 2, axis=-1)

    def loss(params):
        return jnp.mean(losses(params))

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    adam = optax.adam(1e-2 / 5)  # the first of five warm-up steps
    updates, _ = adam.update(grads, adam.init(state.params))
    assert_close(new.params, optax.apply_updates(state.params, updates), rtol=1e-4, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2 / 5)
    variance = float(jnp.var(jax.jit(losses)(state.params)))
    assert float(metrics["loss_variance"]) == pytest.approx(variance, rel=1e-4)
    assert int(new.step) == 1


def test_moving_average_formula():
    """d = min(decay, (1 + k) / (10 + k)) in step k, against a plain loop in float64."""
    values = np.random.default_rng(0).standard_normal((30, 3))
    average = expected = values[0]
    for k, value in enumerate(values):
        average = moving_average(jnp.asarray(average), jnp.asarray(value), 0.6, jnp.int32(k))
        d = min(0.6, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * value
    np.testing.assert_allclose(average, expected, rtol=1e-5)


def test_the_step_uses_the_moving_average():
    step, state = prepare(small_config())
    new, _ = step(state, batch_of())
    expected = moving_average(state.ema_params, new.params, 0.999, 0)
    assert_close(new.ema_params, expected, rtol=1e-5, atol=1e-7)


def test_time_sampler_state_is_carried():
    step, state = prepare(small_config(objective__time_sampling="importance"))
    for _ in range(3):
        state, _ = step(state, batch_of())
    assert int(jnp.sum(state.time_sampler_state.count)) == 3 * 32


@pytest.mark.parametrize("prediction", ["score", "flow"])
def test_what_few_networks_predict_is_trained_and_sampled_too(prediction):
    config = small_config(objective__prediction=prediction, objective__weighting="elbo")
    config_lib.validate(config)
    method = config_lib.build_method(config, MIXTURE)
    step, state = prepare(config)
    state, metrics = step(state, batch_of())
    x = method.sample(state, jax.random.split(jax.random.key(0), 3), {}, num_steps=3)
    assert x.shape == (3, 2) and np.all(np.isfinite(x)) and np.isfinite(metrics["loss"])
    score = prediction == "score"
    config.objective.weighting = "simple"
    assert any("the score's error grows" in line for line in checks.remarks(config)) == score


def test_the_online_rate_learns_from_the_error_of_eps_and_is_a_curve():
    """Whatever the prediction; the curve is the density of log-SNR that is drawn from."""
    config = small_config(objective__time_sampling="rate", objective__prediction="v")
    method = config_lib.build_method(config, MIXTURE)
    step, state = prepare(config)
    assert float(jnp.sum(state.time_sampler_state.count)) == 0
    new, _ = step(state, batch_of())
    seen = new.time_sampler_state
    assert float(jnp.sum(seen.count)) == 32
    mean = float(jnp.sum(seen.total)) / 32  # v's error is about 1, that of eps alpha^2 of it
    assert 0.1 < mean < 1.5
    curve = method.curves(new)["training_times"]
    mass = -np.trapezoid(curve["density"], curve["log_snr"])
    assert 0.95 < mass < 1.02
    assert "training_times" not in config_lib.build_method(small_config(), MIXTURE).curves(new)


def test_importance_weights_weigh_the_loss_unless_they_are_left_out(monkeypatch):
    plain = time_sampling.uniform()

    def doubled(state, key, batch):
        u, weight = plain.sample(state, key, batch)
        return u, 2 * weight

    monkeypatch.setitem(
        time_sampling.TIME_SAMPLERS, "doubled", lambda: plain._replace(sample=doubled)
    )
    losses = []
    for weighed in (True, False):
        config = small_config(
            objective__time_sampling="doubled", objective__importance_weights=weighed
        )
        step, state = prepare(config)
        losses.append(step(state, batch_of())[1]["loss"])
    np.testing.assert_allclose(losses[0], 2 * losses[1], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizer_of_the_config_is_used(optimizer):
    """With a zero gradient the weights decay under adamw and stay under sgd."""
    decay = 0.5 if optimizers.takes_weight_decay(optimizer) else 0.0
    config = small_config(optimizer__name=optimizer, optimizer__weight_decay=decay)
    config.objective.weighting = "simple"
    step, state = prepare(config)
    # All weights are equal and the last layer is zero, so that only the last layer has a gradient.
    state = state.replace(params=jax.tree.map(jnp.ones_like, state.params))
    state.params["last"] = jax.tree.map(jnp.zeros_like, state.params["last"])
    new, _ = step(state, batch_of())
    factor = 1 - decay * 1e-2 / 5
    np.testing.assert_allclose(new.params["first"]["kernel"], factor, rtol=1e-6)


# --- the learned schedule -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "objective", "num_steps"),
    [("monotone", "variance", 0), ("piecewise_linear", "vlb", 8), ("polynomial", "variance", 0)],
)
def test_schedule_moves_between_fixed_ends(kind, objective, num_steps):
    config = small_config(
        **LEARNED, schedule__kind=kind, schedule_learning__objective=objective,
        schedule_learning__num_steps=num_steps,
    )  # fmt: skip
    config_lib.validate(config)
    _, before = prepare(config)
    after, metrics = train_steps(config, 3)
    t = jnp.linspace(0.0, 1.0, 9)
    old, new = (np.asarray(state.schedule.log_snr(t)) for state in (before, after))
    assert np.abs(new - old)[1:-1].max() > 3e-4
    np.testing.assert_allclose(new[[0, -1]], [6.0, -6.0], atol=1e-5)
    assert np.all(np.diff(new) < 0)
    names = {"updated", "vlb", "vlb_variance", "grad_norm", "grad_variance", "update_size"}
    assert {n.removeprefix("schedule_") for n in metrics[0] if n.startswith("schedule_")} == names
    assert all(m["schedule_grad_norm"] > 0 and m["schedule_grad_variance"] > 0 for m in metrics)


@pytest.mark.parametrize(("objective", "own_steps"), [("variance", 0), ("vlb", 0), ("vlb", 5)])
def test_in_discrete_time_the_network_sees_the_steps_of_the_learned_schedule(objective, own_steps):
    """The loss is that of the discretised schedule as it is now; what is learned is continuous."""
    config = small_config(
        **LEARNED, schedule__num_steps=8, objective__prediction="v",
        schedule_learning__objective=objective, schedule_learning__num_steps=own_steps,
        schedule_learning__optimizer="sgd", schedule_learning__learning_rate=0.25,
        schedule_learning__decay="constant",
    )  # fmt: skip
    config_lib.validate(config)
    step, state = prepare(config)
    state = step(state, batch_of(seed=1))[0]  # away from the start
    batch = batch_of()
    new, metrics = step(state, batch)
    assert state.schedule.num_steps is None
    keys = jax.random.split(jax.random.fold_in(state.key, 1), 5)
    u, _ = time_sampling.stratified().sample((), keys[0], 32)
    noise = jax.random.normal(keys[1], (32, 2))
    model, levels = config_lib.build_model(config, MIXTURE), state.schedule.discretize(8)
    log_snr = levels.log_snr(jnp.floor(u * 8).astype(jnp.int32))
    alpha, sigma = (process.expand_to(f(log_snr), noise) for f in (alpha_of, sigma_of))
    predict = training.predictor(model, state.params)
    out = predict(alpha * batch["x"] + sigma * noise, log_snr)
    expected = jnp.mean((out - (alpha * noise - sigma * batch["x"])) ** 2)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)

    def gradient(half, key):
        return objectives.schedule_gradient(
            key, predict, state.schedule, batch["x"][half::2], objective=objective,
            prediction="v", num_steps=own_steps or 8, levels=None,
        )  # fmt: skip

    halves = [jax.jit(gradient, static_argnums=0)(i, k) for i, k in enumerate(
        jax.random.split(keys[4]))]  # fmt: skip
    followed = jax.tree.map(lambda s, g, h: s - 0.25 * 0.5 * (g + h), state.schedule, *halves)
    assert_close(new.schedule, followed, rtol=1e-4, atol=1e-5)


def test_a_learned_schedule_in_discrete_time_samples_and_bounds_by_its_steps():
    config = small_config(**LEARNED, schedule__num_steps=6)
    state, _ = train_steps(config, 2)
    fixed = state.replace(schedule=state.schedule.discretize(6))
    method = config_lib.build_method(config, MIXTURE)
    batch = batch_of() | {"number": np.arange(32)}
    for function in (
        lambda s: method.measures["bpd"].per_example(s, jax.random.key(1), batch),
        lambda s: method.sample(s, jax.random.split(jax.random.key(2), 3), {}),
    ):
        function = jax.jit(function)
        assert_close(function(state), function(fixed), rtol=1e-5, atol=1e-6)
    config.sampling.num_steps = 7
    with pytest.raises(ValueError, match="num_steps=7.*1 to 6"):
        config_lib.validate(config)


def test_learned_endpoints_move_when_asked_for():
    config = small_config(**LEARNED, schedule__learn_endpoints=True)
    state, _ = train_steps(config, 3)
    ends = np.asarray(schedules.ends_of(state.schedule))
    assert np.abs(ends - [6.0, -6.0]).min() > 1e-4


def test_no_weight_decay_on_the_schedule():
    """However the network's weights decay, the schedule's step is the same."""
    plain = small_config(**LEARNED)
    decayed = small_config(**LEARNED, optimizer__name="adamw", optimizer__weight_decay=10.0)
    (a, _), (b, _) = train_steps(plain, 1), train_steps(decayed, 1)
    assert_equal(a.schedule, b.schedule)
    assert not np.array_equal(a.params["first"]["kernel"], b.params["first"]["kernel"])
    # And without a gradient nothing moves it: no decay of its own.
    optimizer = config_lib.build_schedule_optimizer(decayed)
    nothing = jax.tree.map(jnp.zeros_like, a.schedule)
    updates, _ = optimizer.update(nothing, optimizer.init(a.schedule), a.schedule)
    assert_equal(updates, nothing)


def test_network_does_not_feel_the_schedules_learning():
    """One step with and without it: the network's update is the same."""
    on = small_config(**LEARNED)
    off = small_config(**LEARNED, schedule_learning__update_every=0)
    (with_learning, _), (without, metrics) = train_steps(on, 1), train_steps(off, 1)
    assert_close(with_learning.params, without.params, rtol=1e-5, atol=1e-7)
    assert not any(name.startswith("schedule_") for name in metrics[0])
    _, start = prepare(off)
    assert_equal(without.schedule, start.schedule)


def test_schedule_does_not_feel_the_networks_learning():
    """Its update is that of `schedule_gradient` under the network before the step."""
    config = small_config(**LEARNED, schedule_learning__optimizer="sgd")
    config.schedule_learning.clip_norm = 0.0
    rate = config.schedule_learning.learning_rate = 1e-3  # at 0.25 the update would be too large
    step, state = prepare(config)
    batch = batch_of()
    new, metrics = step(state, batch)
    model = config_lib.build_model(config, MIXTURE)
    key = jax.random.split(jax.random.fold_in(state.key, 0), 5)[4]

    @jax.jit
    def gradient(x, key):
        predict = training.predictor(model, state.params)
        return objectives.schedule_gradient(key, predict, state.schedule, x, levels=None)

    keys = jax.random.split(key)
    halves = [gradient(batch["x"][half::2], keys[half]) for half in (0, 1)]
    expected = jax.tree.map(lambda s, g, h: s - rate * 0.5 * (g + h), state.schedule, *halves)
    assert_close(new.schedule, expected, rtol=1e-4, atol=1e-5)
    apart = jax.tree.map(lambda g, h: 0.5 * (g - h), *halves)
    variance = float(optax.tree.norm(apart)) ** 2
    assert float(metrics["schedule_grad_variance"]) == pytest.approx(variance, rel=1e-3)


def test_the_schedules_rate_decays_over_the_steps():
    """After a quarter of them, a linear decay leaves three quarters of the same update."""
    changes = {}
    for decay in ("constant", "linear"):
        config = small_config(
            **LEARNED, schedule_learning__optimizer="sgd", schedule_learning__decay=decay
        )
        step, state = prepare(config)
        state = state.replace(step=jnp.int32(config.training.num_steps // 4))
        new, _ = step(state, batch_of())
        changes[decay] = jax.tree.map(lambda a, b: a - b, new.schedule, state.schedule)
    assert optax.tree.norm(changes["constant"]) > 1e-3
    expected = jax.tree.map(lambda change: 0.75 * change, changes["constant"])
    assert_close(changes["linear"], expected, rtol=1e-3, atol=1e-6)


def test_schedule_is_updated_every_so_many_steps():
    config = small_config(**LEARNED, schedule_learning__update_every=3)
    step, state = prepare(config)
    changed, window = [], MetricBuffer(config_lib.build_method(config, MIXTURE))
    for i in range(6):
        new, metrics = step(state, batch_of(seed=i))
        leaves = zip(jax.tree.leaves(state.schedule), jax.tree.leaves(new.schedule))
        changed.append(any(not np.array_equal(a, b) for a, b in leaves))
        window.add(i, jax.tree.map(lambda value: value[None], metrics))
        state = new
    assert changed == [True, False, False, True, False, False]
    entries = window.memory()
    assert [entry["schedule_updated"] for entry in entries] == [1, 0, 0, 1, 0, 0]
    mean = window.take_mean()  # over the steps that updated it
    for name in ("schedule_vlb", "schedule_grad_norm"):
        assert mean[name] == pytest.approx((entries[0][name] + entries[3][name]) / 2)
    assert mean["loss"] == pytest.approx(np.mean([entry["loss"] for entry in entries]))


def test_fixed_schedules_cost_nothing():
    """No optimiser state, no metrics; a discrete schedule's table is not taken for parameters."""
    config = small_config(schedule__num_steps=10)
    state, metrics = train_steps(config, 1)
    assert state.schedule_opt_state == ()
    common = {"loss", "loss_variance", "grad_norm", "learning_rate", "worst_log_snr"}
    assert set(metrics[0]) == common | {"update_size"}
    assert_equal(state.schedule, config_lib.build_schedule(config))


# --- what the network is told ---------------------------------------------------------------


class Echo:
    """Stands for a network: gives back what it is told."""

    def __init__(self, conditioning):
        self.conditioning = conditioning

    def apply(self, variables, x, noise_level, label, train, rngs):
        told = jnp.broadcast_to(noise_level[:, None], x.shape)
        return jnp.concatenate([told, jnp.full_like(x, 7.0)], axis=-1)


def test_predictor_tells_log_snr_or_step():
    x, t = jnp.zeros((3, 2)), jnp.array([0.0, 0.5, 1.0])
    predict = training.predictor(Echo("log_snr"), {}, mean_only=True)
    assert process.takes_log_snr(predict)
    np.testing.assert_array_equal(process.call_predictor(predict, x, t, -t)[:, 0], -t)
    predict = training.predictor(Echo("step"), {}, mean_only=True)
    np.testing.assert_array_equal(
        process.call_predictor(predict, x, t, -t)[:, 0], [0.0, 500.0, 1000.0]
    )
    steps = jnp.array([0, 5, 999])
    np.testing.assert_array_equal(process.call_predictor(predict, x, steps, -t)[:, 0], [0, 5, 999])
    assert training.predictor(Echo("step"), {})(x, t).shape == (3, 4)


@pytest.mark.parametrize("num_steps", [0, 20])
def test_step_conditioning_trains_and_samples(num_steps):
    config = small_config(model__mlp__conditioning="step", schedule__num_steps=num_steps)
    config_lib.validate(config)
    state, metrics = train_steps(config, 4)
    assert np.isfinite([m["loss"] for m in metrics]).all()
    samples = diffax.Generator(run_of(config, state), num_devices=1)(5)
    assert samples.shape == (5, 2)
    assert np.isfinite(samples).all()


def test_labels_are_told_and_dropped():
    """The row of the class table that learns is that of the label, or the null class."""
    info = training.DatasetInfo("points", (2,), 10, None, ())
    batch = batch_of() | {"label": np.full(32, 3, np.int32)}
    for dropout, row in ((0.0, 3), (1.0, 10)):
        config = small_config(model__class_conditional=True, model__label_dropout=dropout)
        config_lib.validate(config)
        step, state = prepare(config, info)
        for _ in range(3):  # the first step only moves the zero-initialised layer
            before, (state, _) = state, step(state, batch)
        tables = [s.params["noise_embedding"]["classes"]["embedding"] for s in (before, state)]
        moved = np.abs(np.asarray(tables[1] - tables[0])).max(axis=1) > 0
        assert moved.nonzero()[0].tolist() == [row]


def test_learned_variance_trains_samples_and_evaluates():
    """Its second half of channels serves ddpm, and is left out elsewhere."""
    config = small_config(objective__learned_variance=True, schedule__num_steps=10)
    config_lib.validate(config)
    info = training.DatasetInfo("points", (2,), 0, 256, ())
    step, state = prepare(config, info)
    state, metrics = step(state, batch_of())
    assert np.isfinite(metrics["loss"])
    for sampler, variance in (("ddim", None), ("ddpm", "learned")):
        config.sampling.sampler, config.sampling.variance = sampler, variance
        generate = diffax.Generator(run_of(config, state, info), num_devices=1)
        assert generate(3).shape == (3, 2)
    bound = config_lib.build_method(config, info).measures["bpd"].per_example
    terms = jax.jit(bound)(state, jax.random.key(0), batch_of() | {"number": np.arange(32)})
    assert {name: term.shape for name, term in terms.items()} == {
        "prior": (32,), "diffusion": (32,), "reconstruction": (32,)
    }  # fmt: skip


# --- non-finite steps ---------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, LEARNED])
def test_a_bad_step_is_counted_but_changes_nothing(changes):
    step, state = prepare(small_config(**changes))
    batch = batch_of()
    batch["x"][0] = np.nan
    new, metrics = step(state, batch)
    assert np.isnan(metrics["loss"])
    assert int(new.step) == 1
    assert_equal(new.replace(step=0, key=0), state.replace(step=0, key=0))
