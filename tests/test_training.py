"""The step and the loop: what is learned, what is kept apart, what is logged, what stops a run."""

import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from small_runs import (
    LEARNED,
    MIXTURE,
    assert_close,
    assert_equal,
    batch_of,
    compiled_quickly,
    prepare,
    small_config,
)

from diffax import config as config_lib
from diffax import data, objectives, process, schedules, training
from diffax.config import optimizers
from diffax.training import loop, parallel, writers
from diffax.training.step import moving_average
from diffax.training.window import NonFiniteError, Window


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


def train_steps(config, num, batch_seed=0):
    step, state = prepare(config)
    metrics = []
    for i in range(num):
        state, measured = step(state, batch_of(seed=batch_seed + i))
        metrics.append(jax.device_get(measured))
    return state, metrics


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
    names = {"updated", "vlb", "vlb_variance", "grad_norm", "grad_variance"}
    assert {n.removeprefix("schedule_") for n in metrics[0] if n.startswith("schedule_")} == names
    assert all(m["schedule_grad_norm"] > 0 and m["schedule_grad_variance"] > 0 for m in metrics)


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
    config.schedule_learning.learning_rate = 0.25
    step, state = prepare(config)
    batch = batch_of()
    new, metrics = step(state, batch)
    model = config_lib.build_model(config, MIXTURE)
    key = jax.random.split(jax.random.fold_in(state.key, 0), 5)[4]

    @jax.jit
    def gradient(x, key):
        predict = training.predictor(model, state.params)
        return objectives.schedule_gradient(state.schedule, predict, x, key, levels=None)

    keys = jax.random.split(key)
    halves = [gradient(batch["x"][half::2], keys[half]) for half in (0, 1)]
    expected = jax.tree.map(lambda s, g, h: s - 0.25 * 0.5 * (g + h), state.schedule, *halves)
    assert_close(new.schedule, expected, rtol=1e-4, atol=1e-5)
    apart = jax.tree.map(lambda g, h: 0.5 * (g - h), *halves)
    variance = float(optax.tree.norm(apart)) ** 2
    assert float(metrics["schedule_grad_variance"]) == pytest.approx(variance, rel=1e-3)


def test_schedule_is_updated_every_so_many_steps():
    config = small_config(**LEARNED, schedule_learning__update_every=3)
    step, state = prepare(config)
    changed, window = [], Window()
    for i in range(6):
        new, metrics = step(state, batch_of(seed=i))
        leaves = zip(jax.tree.leaves(state.schedule), jax.tree.leaves(new.schedule))
        changed.append(any(not np.array_equal(a, b) for a, b in leaves))
        window.add(i, metrics)
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
    assert set(metrics[0]) == {"loss", "loss_variance", "grad_norm", "learning_rate"}
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
    np.testing.assert_array_equal(process.told(predict, x, t, -t)[:, 0], -t)
    predict = training.predictor(Echo("step"), {}, mean_only=True)
    np.testing.assert_array_equal(process.told(predict, x, t, -t)[:, 0], [0.0, 500.0, 1000.0])
    steps = jnp.array([0, 5, 999])
    np.testing.assert_array_equal(process.told(predict, x, steps, -t)[:, 0], [0, 5, 999])
    assert training.predictor(Echo("step"), {})(x, t).shape == (3, 4)


@pytest.mark.parametrize("num_steps", [0, 20])
def test_step_conditioning_trains_and_samples(num_steps):
    config = small_config(model__conditioning="step", schedule__num_steps=num_steps)
    config_lib.validate(config)
    state, metrics = train_steps(config, 4)
    assert np.isfinite([m["loss"] for m in metrics]).all()
    model = config_lib.build_model(config, MIXTURE)
    draw = jax.jit(training.make_sampler(config, model, MIXTURE, 5))
    samples = draw(state, jax.random.key(0))
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
    model = config_lib.build_model(config, info)
    for sampler, variance in (("ddim", None), ("ddpm", "learned")):
        config.sampling.sampler, config.sampling.variance = sampler, variance
        draw = jax.jit(training.make_sampler(config, model, info, 3))
        assert draw(state, jax.random.key(0)).shape == (3, 2)
    terms = jax.jit(training.make_eval_step(config, model, info))(
        state, jax.random.key(0), batch_of()
    )
    assert terms.total.shape == (32,)


# --- non-finite steps -----------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, LEARNED])
def test_a_bad_step_is_counted_but_changes_nothing(changes):
    step, state = prepare(small_config(**changes))
    batch = batch_of()
    batch["x"][0] = np.nan
    new, metrics = step(state, batch)
    assert np.isnan(metrics["loss"])
    assert int(new.step) == 1
    assert_equal(new.replace(step=0, key=0), state.replace(step=0, key=0))


def test_window_names_the_first_bad_step_and_quantity():
    window = Window([{"step": 3, "loss": 1.0, "grad_norm": 1.0}])
    window.add(4, {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(np.inf)})
    window.add(5, {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(1.0)})
    with pytest.raises(NonFiniteError, match="gradient norm is inf in step 4") as caught:
        window.check()
    assert (caught.value.step, caught.value.quantity) == (4, "gradient norm")


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    """A learning rate of 1e30 ruins the network in one step; the next one shows it."""
    config = small_config(
        optimizer__learning_rate=1e30, optimizer__warmup_steps=0, training__checkpoint_every=1
    )
    with pytest.raises(NonFiniteError) as caught:
        training.train(config, tmp_path)
    assert (caught.value.step, caught.value.quantity) == (2, "loss")
    assert "the checkpoint of step 1 in" in str(caught.value)
    assert "learning_rate" in str(caught.value)
    assert int(training.load(tmp_path).state.step) == 1
    assert writers.read_json_lines(tmp_path / "metrics.jsonl") == []


# --- devices --------------------------------------------------------------------------------


def test_eight_devices_equal_one():
    """Network and schedule: the batch is the same, only the order of the sums differs."""
    results = []
    config = small_config(**LEARNED)
    model = config_lib.build_model(config, MIXTURE)
    for num_devices in (1, 8):
        mesh = parallel.make_mesh(num_devices)
        init = functools.partial(training.create_state, config, model, MIXTURE)
        state = parallel.compile_init(init, mesh)(jax.random.key(config.seed))
        step = parallel.compile_step(training.make_train_step(config, model, MIXTURE), mesh)
        for i in range(3):
            state, metrics = step(state, parallel.place_batch(batch_of(seed=i), mesh))
        assert len(state.params["first"]["kernel"].sharding.device_set) == num_devices
        results.append(jax.device_get((state.replace(key=()), metrics)))
    assert_close(*results, rtol=1e-5, atol=1e-5)


def test_meshes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_devices is 9, but there are 8 devices"):
        parallel.make_mesh(9)
    with pytest.raises(ValueError, match=r"training.batch_size is 12; it must be a multiple of 8"):
        parallel.check_divides("training.batch_size", 12, parallel.make_mesh())


# --- the loop -------------------------------------------------------------------------------


def test_train_on_the_mixture_approaches_the_exact_denoiser(tmp_path):
    """The loss falls to near that of the exact noise prediction, which nothing can beat."""
    config = small_config(
        model__width=64, model__depth=2, training__num_steps=600, training__log_every=100,
        training__batch_size=256, training__eval_every=600, training__sample_every=600,
        optimizer__decay="cosine", optimizer__learning_rate=4e-3, ema__decay=0.98,
    )  # fmt: skip
    state, metrics = training.train(config, tmp_path)
    mixture = data.default_mixture()
    keys = jax.random.split(jax.random.key(1), 3)
    x0, noise = mixture.sample(keys[0], 20_000), jax.random.normal(keys[1], (20_000, 2))
    log_snr = state.schedule.log_snr(jax.random.uniform(keys[2], (20_000,)))
    x_t = process.q_sample_at(x0, log_snr, noise)
    best = float(jnp.mean((noise - mixture.eps(x_t, log_snr)) ** 2))
    predict = training.predictor(config_lib.build_model(config, MIXTURE), state.ema_params)
    reached = float(jnp.mean((noise - predict(x_t, log_snr)) ** 2))
    lines = writers.read_json_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [100, 200, 300, 400, 500, 600]
    assert lines[0]["loss"] > 1.15 * best
    assert best < reached < 1.06 * best
    assert metrics == {k: v for k, v in lines[-1].items() if k != "step"}
    assert all(type(value) is float for value in metrics.values())
    assert metrics["eval_vlb"] == pytest.approx(
        sum(metrics[f"eval_{term}"] for term in ("prior", "diffusion", "reconstruction"))
    )

    picture = Image.open(tmp_path / "samples" / "step_000600.png")
    assert picture.size == (600, 600)
    assert len(np.unique(np.asarray(picture))) > 2
    curve = json.loads((tmp_path / "schedule" / "step_000600.json").read_text())
    assert curve["t"][0] == 0
    assert curve["t"][-1] == 1
    table = schedules.from_json(json.dumps(curve))
    t = jnp.linspace(0.0, 1.0, 33)
    np.testing.assert_allclose(table.log_snr(t), state.schedule.log_snr(t), atol=1e-3)


def test_train_on_digits(tmp_path, tmp_path_factory):
    """A U-Net with dropout and labels, on images: loss, samples, what can be read back."""
    config = small_config(
        data__name="digits", data__data_dir=str(tmp_path_factory.mktemp("tfds")),
        model__name="unet", model__width=128, model__depth=3, model__channels=8,
        model__channel_mults=(1,), model__num_blocks=1, model__attention_resolutions=(),
        model__class_conditional=True, model__dropout=0.1,
        training__num_steps=20, training__log_every=5, training__sample_every=20,
        training__eval_every=20, optimizer__learning_rate=3e-3, ema__decay=0.9,
        evaluation__repeats=2,
    )  # fmt: skip
    state, metrics = training.train(config, tmp_path)
    losses = [line["loss"] for line in writers.read_json_lines(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    assert 1 < metrics["eval_vlb"] < 20
    assert sorted(path.name for path in (tmp_path / "schedule").iterdir()) == [
        "step_000000.json",
        "step_000020.json",
    ]
    assert Image.open(tmp_path / "samples" / "step_000020.png").size[0] >= 512

    run = training.load(tmp_path)
    assert (run.dataset.shape, run.dataset.num_classes, run.dataset.levels) == ((8, 8, 1), 10, 256)
    assert config_lib.differences(run.config, config) == {}
    assert_equal(run.state.ema_params, state.ema_params)
    assert_equal(run.state.schedule, state.schedule)
    bound = training.make_bound(
        run.config, run.model, run.dataset, data.load(run.config.data).eval, parallel.make_mesh(1)
    )
    terms = bound(run.state, config.seed)
    assert terms.total.shape == (2, 100)
    assert np.mean(terms.total) == pytest.approx(metrics["eval_vlb"], rel=1e-6)


def test_the_bound_does_not_depend_on_the_batch_size():
    """A last batch that is filled up counts only its own examples."""
    config = small_config(evaluation__num_examples=10, evaluation__batch_size=10)
    config.evaluation.repeats = 1
    split = data.Split(np.random.default_rng(0).standard_normal((12, 2)).astype(np.float32))
    _, state = prepare(config)
    model = config_lib.build_model(config, MIXTURE)
    mesh = parallel.make_mesh(1)
    results = []
    for size in (10, 4):
        config.evaluation.batch_size = size
        results.append(training.make_bound(config, model, MIXTURE, split, mesh)(state, 0))
    assert [terms.total.shape for terms in results] == [(1, 10), (1, 10)]
    # The prior term takes no noise, so it is the same whatever the batches.
    np.testing.assert_allclose(results[0].prior, results[1].prior, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training__batch_size": 0}, "training.batch_size is 0"),
        ({"data__name": "nonsense"}, "nonsense"),
        ({"model__class_conditional": True}, "'mixture2d' has no labels"),
        ({"training__batch_size": 60_000}, "60000 must be from 1 to 50000"),
        (
            {"evaluation__batch_size": 100, "parallel__num_devices": 8},
            "evaluation.batch_size is 100",
        ),
        ({"model__name": "unet", "model__width": 128, "model__depth": 3}, "spatial axis"),
    ],
)
def test_train_refuses_before_any_work(tmp_path, changes, words):
    """And leaves nothing behind that would stand in the way of the corrected call."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        training.train(small_config(**changes), tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="workdir .*file.* can't be written to"):
        training.train(small_config(), tmp_path / "file" / "run")


class Interrupting:
    """Batches that come with a Ctrl-C at the sixth."""

    def __init__(self, iterator):
        self.iterator, self.count = iterator, 0

    @classmethod
    def wrapping(cls, batches):
        return lambda *args, **kwargs: cls(batches(*args, **kwargs))

    def __next__(self):
        self.count += 1
        if self.count == 6:
            signal.raise_signal(signal.SIGINT)
        return next(self.iterator)

    def get_state(self):
        return self.iterator.get_state()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch):
    """The interrupted and resumed run ends where an undisturbed one does."""
    config = small_config()
    expected, _ = training.train(config, tmp_path / "undisturbed")
    monkeypatch.setattr(loop.data, "batches", Interrupting.wrapping(data.batches))
    with pytest.raises(KeyboardInterrupt, match="after step 6, which is saved"):
        training.train(config, tmp_path / "run")
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert int(training.load(tmp_path / "run").state.step) == 6
    state, _ = training.train(config, tmp_path / "run")
    assert_equal(state.params, expected.params)
