"""Checkpoints: what goes in comes out, and a resumed run is the run that was never interrupted."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import (
    LEARNED,
    MIXTURE,
    PowerCut,
    a_method,
    assert_equal,
    compiled_quickly,
    cut_after,
    prepare,
    small_config,
)

import diffax
from diffax import config as config_lib
from diffax import training
from diffax.training import writers
from diffax.training.checkpoint import Checkpoints
from diffax.training.metric_buffer import MetricBuffer

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


def plain(state):
    """The state with its key as integers, on the host."""
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


# --- the store ------------------------------------------------------------------------------


def trees():
    """Every kind of state that the trainer makes."""
    yield "discrete", small_config(schedule__num_steps=7)
    yield "importance", small_config(objective__time_sampling="importance")
    yield "rate", small_config(objective__time_sampling="rate")
    for kind in ("monotone", "piecewise_linear", "polynomial"):
        yield kind, small_config(**LEARNED, schedule__kind=kind)
    yield "ends", small_config(**LEARNED, schedule__learn_endpoints=True)


@pytest.mark.parametrize("config", [pytest.param(c, id=name) for name, c in trees()])
def test_a_state_comes_back_bit_by_bit(tmp_path, config):
    _, state = prepare(config)
    memory = {"data": {"next": 3}, "window": [{"loss": 0.1}], "metrics": {}}
    store = Checkpoints(tmp_path / "c", keep=2)
    store.save(1, state, memory)
    store.wait()
    restored, remembered = store.restore(jax.eval_shape(lambda: state), ONE)
    store.close()
    assert_equal(plain(restored), plain(state))
    assert remembered == memory
    assert restored.key.dtype == state.key.dtype


def test_what_is_saved_is_what_was_at_the_call(tmp_path):
    """Writing goes on while the donated state is overwritten by the next steps."""
    state = {"x": jnp.zeros((512, 512))}
    add = jax.jit(lambda s: {"x": s["x"] + 1}, donate_argnums=0)
    store = Checkpoints(tmp_path / "c", keep=10)
    for k in range(1, 6):
        state = add(state)
        store.save(k, state, {})
        for _ in range(10):
            state = add(state)
    for k in range(1, 6):
        restored, _ = store.restore(state, ONE, step=k)
        np.testing.assert_array_equal(restored["x"], 11 * (k - 1) + 1)
    store.close()


def test_the_loops_memory_may_change_while_it_is_written(tmp_path, monkeypatch):
    """The writing is held up until the caller has changed what it handed over."""
    changed, write = threading.Event(), json.dumps

    def late(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            assert changed.wait(60)
        return write(*args, **kwargs)

    store = Checkpoints(tmp_path / "c", keep=1)
    window = MetricBuffer(a_method(), [{"step": 1, "loss": 0.5}])
    memory = {"window": window.memory(), "metrics": {"loss": 0.5}}
    monkeypatch.setattr(json, "dumps", late)
    store.save(1, {"x": jnp.zeros(3)}, memory)
    window.add(2, {"loss": jnp.zeros(1)})  # an array, which JSON can't hold
    memory["window"].append(jnp.zeros(()))
    memory["metrics"]["loss"] = 7.0
    changed.set()
    store.wait()
    _, remembered = store.restore({"x": jnp.zeros(3)}, ONE)
    store.close()
    assert remembered == {"window": [{"step": 1, "loss": 0.5}], "metrics": {"loss": 0.5}}


def test_the_latest_are_kept(tmp_path):
    store = Checkpoints(tmp_path / "c", keep=2)
    for k in (1, 2, 5):
        store.save(k, {"x": jnp.full(3, k)}, {})
    store.wait()
    assert store.steps() == [2, 5]
    assert store.restore({"x": jnp.zeros(3, jnp.int32)}, ONE)[0]["x"][0] == 5
    assert store.restore({"x": jnp.zeros(3, jnp.int32)}, ONE, step=2)[0]["x"][0] == 2
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 1 in .*there are: 2, 5"):
        store.restore({"x": jnp.zeros(3, jnp.int32)}, ONE, step=1)
    store.close()


def test_other_arrays_are_refused_by_name(tmp_path):
    store = Checkpoints(tmp_path / "c", keep=1)
    store.save(1, {"a": {"b": jnp.zeros((2, 3))}}, {})
    store.wait()
    for like, words in (
        ({"a": {"b": jnp.zeros((2, 4))}}, r"a.b has shape \(2, 3\) there, and \(2, 4\) is needed"),
        ({"a": {"c": jnp.zeros((2, 3))}}, r"a.b has shape \(2, 3\) there, and none is needed"),
        (
            {"a": {"b": jnp.zeros((2, 3)), "c": jnp.zeros(())}},
            r"a.c has shape none there, and \(\) is needed",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            store.restore(like, ONE)
    store.close()


def test_other_precisions_are_read_and_converted(tmp_path):
    """A checksum is of what was saved: another dtype that is wanted is no damage."""
    value = np.linspace(0, 1, 10)
    with jax.enable_x64(True):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, {"a": jnp.asarray(value)}, {})
        checkpoints.wait()
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
            state, _ = checkpoints.restore({"a": jnp.zeros(10, dtype)}, ONE)
            np.testing.assert_array_equal(state["a"], value.astype(dtype))
    state, _ = checkpoints.restore({"a": jnp.zeros(10)}, ONE)
    checkpoints.close()
    np.testing.assert_array_equal(state["a"], value.astype(np.float32))


# --- resuming -------------------------------------------------------------------------------


def train_until_cut(monkeypatch, steps, config, workdir):
    with monkeypatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCut):
            training.train(config, workdir)


@pytest.mark.parametrize(
    "changes",
    [
        {"training__eval_every": 10, "training__sample_every": 9},
        {"objective__time_sampling": "rate", "optimizer__decay": "cosine"},
    ],
    ids=["fixed", "rate"],  # a learned one is in test_survival.py
)
def test_a_resumed_run_is_exactly_the_uninterrupted_one(tmp_path, monkeypatch, changes):
    """Cut off twice, between checkpoints and between log steps: every bit and every line agrees."""
    config = small_config(
        **changes, training__num_steps=23, training__log_every=5, training__checkpoint_every=4,
    )  # fmt: skip
    expected, metrics = training.train(config, tmp_path / "whole")
    for steps in (6, 9):  # the first part ends at step 6 (saved: 4), the second at 13 (saved: 12)
        train_until_cut(monkeypatch, steps, config, tmp_path / "cut")
    assert [int(training.load(tmp_path / "cut").state.step)] == [12]
    state, resumed_metrics = training.train(config, tmp_path / "cut")

    assert_equal(plain(state), plain(expected))
    assert resumed_metrics == metrics
    for name in ("metrics.jsonl", "dataset.json", "config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for pattern in ("samples/*", "schedule/*"):
        files = [
            path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob(pattern)
        ]
        assert len(files) == len(list((tmp_path / "cut").glob(pattern)))
        for name in files:
            assert (tmp_path / "cut" / name).read_bytes() == (
                tmp_path / "whole" / name
            ).read_bytes()


def test_a_complete_run_is_only_read(tmp_path, monkeypatch):
    config = small_config()
    state, metrics = training.train(config, tmp_path)
    cut_after(monkeypatch, 0)
    again, same_metrics = training.train(config, tmp_path)
    assert_equal(plain(again), plain(state))
    assert same_metrics == metrics


def test_two_runs_are_identical_and_seeds_differ(tmp_path):
    a, _ = training.train(small_config(), tmp_path / "a")
    b, _ = training.train(small_config(), tmp_path / "b")
    c, _ = training.train(small_config(seed=1), tmp_path / "c")
    assert_equal(plain(a), plain(b))
    assert not np.array_equal(a.params["first"]["kernel"], c.params["first"]["kernel"])


def test_a_longer_run_goes_on(tmp_path):
    """num_steps may grow; with a constant rate the result is that of one long run."""
    training.train(small_config(training__num_steps=8), tmp_path / "grown")
    state, _ = training.train(small_config(training__num_steps=12), tmp_path / "grown")
    expected, _ = training.train(small_config(training__num_steps=12), tmp_path / "whole")
    assert_equal(plain(state), plain(expected))


def test_another_number_of_steps_is_refused_where_a_rate_decays_over_them(tmp_path):
    """Grown, it would not be the run of that many steps."""
    for changes, words in (
        ({"optimizer__decay": "cosine"}, "optimizer.decay='cosine'"),
        (LEARNED, "schedule_learning.decay='cosine'"),
    ):
        workdir = tmp_path / words
        training.train(small_config(training__num_steps=4, **changes), workdir)
        with pytest.raises(ValueError, match=rf"num_steps was 4 and is 8 \(the steps of {words}\)"):
            training.train(small_config(training__num_steps=8, **changes), workdir)
        assert training.load(workdir).config.training.num_steps == 4


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    training.train(small_config(training__num_steps=8), tmp_path)
    with pytest.raises(ValueError, match="num_steps is 6, but the run in .* is at step 8 already"):
        training.train(small_config(training__num_steps=6), tmp_path)
    assert training.load(tmp_path).config.training.num_steps == 8


def test_another_config_is_refused_with_the_differences(tmp_path):
    training.train(small_config(), tmp_path)
    changed = small_config(seed=3, optimizer__learning_rate=0.5, training__log_every=2)
    with pytest.raises(ValueError) as caught:
        training.train(changed, tmp_path)
    message = str(caught.value)
    assert "optimizer.learning_rate was 0.01 and is 0.5; seed was 0 and is 3" in message
    assert "log_every" not in message
    assert "training.allow_config_change=True" in message

    changed.training.allow_config_change = True
    changed.training.num_steps = 14
    state, _ = training.train(changed, tmp_path)
    assert int(state.step) == 14
    assert training.load(tmp_path).config.seed == 3


def test_a_run_without_a_checkpoint_may_be_begun_anew(tmp_path, monkeypatch):
    """Its config is no obstacle, and its metrics are gone."""
    config = small_config(training__log_every=1)
    train_until_cut(monkeypatch, 3, config, tmp_path)
    assert len(writers.read_json_lines(tmp_path / "metrics.jsonl")) == 3
    training.train(small_config(seed=1), tmp_path)
    steps = [line["step"] for line in writers.read_json_lines(tmp_path / "metrics.jsonl")]
    assert steps == [4, 8, 12]


def test_a_state_of_another_model_is_refused(tmp_path):
    training.train(small_config(), tmp_path)
    changed = small_config(model__mlp__width=32, training__allow_config_change=True)
    with pytest.raises(ValueError, match="is of another model or config: ema_params"):
        training.train(changed, tmp_path)


# --- reading back ---------------------------------------------------------------------------


def test_load_needs_no_data_and_takes_any_kept_step(tmp_path, monkeypatch):
    config = small_config(training__checkpoint_every=6, schedule__name="linear_logsnr")
    state, _ = training.train(config, tmp_path)
    monkeypatch.setattr("diffax.data.load", None)
    run = training.load(tmp_path)
    assert_equal(plain(run.state), plain(state))
    assert run.dataset.changes(MIXTURE) == [] and run.dataset.num_train == 50_000
    assert int(training.load(tmp_path, step=6).state.step) == 6
    assert diffax.Generator(run)(3).shape == (3, 2)
    with pytest.raises(FileNotFoundError, match="there are: 6, 12"):
        training.load(tmp_path, step=5)


def test_load_says_when_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run: there is no config.json"):
        training.load(tmp_path)
    (tmp_path / "config.json").write_text(config_lib.to_json(small_config()))
    (tmp_path / "dataset.json").write_text(MIXTURE.to_json())
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        training.load(tmp_path)
