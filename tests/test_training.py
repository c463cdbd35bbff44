"""The training loop: what is learned, what is written, what is refused and what stops a run."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import (
    MIXTURE,
    a_method,
    assert_equal,
    batch_of,
    compiled_quickly,
    first_state,
    prepare,
    small_config,
)

from diffax import config as config_lib
from diffax import data, distributed, process, schedules, training
from diffax.methods import base, diffusion
from diffax.training import loop, writers
from diffax.training.metric_buffer import MetricBuffer, NonFiniteError, Trust


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


class Interrupting:
    """Batches that come with a signal at the sixth, which is fetched before the fourth step."""

    def __init__(self, iterator, number):
        self.iterator, self.number, self.count = iterator, number, 0

    @classmethod
    def wrapping(cls, batches, number):
        return lambda *args, **kwargs: cls(batches(*args, **kwargs), number)

    def __next__(self):
        self.count += 1
        if self.count == 6:
            signal.raise_signal(self.number)
        return next(self.iterator)

    def get_state(self):
        return self.iterator.get_state()


# --- non-finite steps -----------------------------------------------------------------------


def test_window_names_the_first_bad_step_and_quantity():
    window = MetricBuffer(a_method(), [{"step": 3, "loss": 1.0, "grad_norm": 1.0}])
    window.add(4, {"loss": jnp.array([1.0, np.nan]), "grad_norm": jnp.array([np.inf, 1.0])})
    with pytest.raises(NonFiniteError, match="gradient norm is inf in step 4") as caught:
        window.check()
    assert (caught.value.step, caught.value.quantity) == (4, "gradient norm")


def entry(step, loss):
    return {"loss": [loss], "grad_norm": [1.0], "worst_log_snr": [-float(step)]}


def test_so_many_steps_in_a_row_may_be_skipped_over_windows_too():
    window = MetricBuffer(a_method(), most_skipped=2)
    for step, loss in enumerate([1.0, np.nan, 3.0, np.nan, np.nan], 1):
        window.add(step, entry(step, loss))
    window.check()
    assert window.take_mean() == {"loss": 2.0, "grad_norm": 1.0, "skipped_steps": 3}
    memory = window.memory()
    for loss in (np.inf, 5.0):
        window = MetricBuffer(a_method(), memory, most_skipped=2)  # as after a resumption
        window.add(6, entry(6, loss))
        if np.isfinite(loss):
            window.check()
            assert window.take_mean() == {"loss": 5.0, "grad_norm": 1.0}
            assert window.memory() == []
        else:
            with pytest.raises(NonFiniteError, match="nan in step 4, .* -4; 3 steps in a row"):
                window.check()
    window = MetricBuffer(a_method(), memory, most_skipped=2)
    window.check()
    with pytest.raises(NonFiniteError, match="2 steps in a row"):
        window.check(last=True)


class Spoiling(Interrupting):
    """Batches of which the sixth is not finite."""

    def __next__(self):
        self.count += 1
        batch = next(self.iterator)
        return {**batch, "x": batch["x"] * np.nan} if self.count == 6 else batch


def test_a_bad_step_is_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.data, "batches", Spoiling.wrapping(data.batches, None))
    state, metrics = training.train(small_config(), tmp_path)
    assert int(state.step) == 12 and np.isfinite(metrics["loss"])
    lines = writers.read_json_lines(tmp_path / "metrics.jsonl")
    assert [line.get("skipped_steps") for line in lines] == [None, 1, None]
    assert "skipped_steps" not in metrics  # none in the last window
    assert all(np.isfinite(line["loss"]) for line in lines)


class SpoilingLate(Interrupting):
    """Batches of which from the sixth on none is finite; with a signal at the eleventh, which is
    fetched before step 9."""

    def __next__(self):
        self.count += 1
        if self.count == 11 and self.number:
            signal.raise_signal(self.number)
        batch = next(self.iterator)
        return {**batch, "x": batch["x"] * np.nan} if self.count >= 6 else batch


def test_nothing_is_saved_while_steps_are_skipped(tmp_path, monkeypatch):
    """Not by a signal either, which says so."""
    config = small_config(training__checkpoint_every=2, training__keep_checkpoints=1)
    late = SpoilingLate.wrapping(data.batches, signal.SIGTERM)
    monkeypatch.setattr(loop.data, "batches", late)
    with pytest.raises(training.Interrupted, match="skipped and is not saved: the checkpoint of"):
        training.train(config, tmp_path)
    assert checkpoints(tmp_path) == ["2", "4"]


def checkpoints(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


WILD = [
    ("optimizer.learning_rate", 1e2, base.LARGEST_UPDATE, ["8"]),
    ("optimizer.learning_rate", 1e30, base.LARGEST_UPDATE, ["8"]),
    ("schedule_learning.learning_rate", 1e3, base.LARGEST_UPDATE, ["8"]),
    # Where the step that ruins it is made: it is saved, and then found out. (A learned schedule is
    # finite for parameters of any size.)
    ("optimizer.learning_rate", 1e4, np.inf, ["8", "diverged-9"]),
]


SAVED_OFTEN = {
    "training__checkpoint_every": 1, "training__keep_checkpoints": 1, "training__num_steps": 8,
    "schedule__name": "learned", "schedule__size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def healthy_run(tmp_path_factory):
    """A run of eight steps, saved after every step, of which one stays; and its parameters."""
    workdir = tmp_path_factory.mktemp("healthy") / "run"
    state, _ = training.train(small_config(**SAVED_OFTEN), workdir)
    return workdir, jax.device_get(state.params)


@pytest.mark.parametrize(("key", "rate", "largest_update", "left"), WILD)
def test_a_wild_rate_is_named_and_a_lower_one_goes_on_from_what_was_good(
    key, rate, largest_update, left, healthy_run, tmp_path, monkeypatch
):
    workdir, healthy = healthy_run
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    for name, table in (
        ("update_size", diffusion.REQUIRED),
        ("schedule_update_size", diffusion.REQUIRED_OF_SCHEDULE),
    ):
        monkeypatch.setitem(table, name, table[name]._replace(largest=largest_update))
    settings = SAVED_OFTEN | {
        "training__allow_config_change": True, "training__num_steps": 24,
    }  # fmt: skip
    wild = small_config(**settings, **{key.replace(".", "__"): rate})
    with pytest.raises(NonFiniteError) as caught:
        training.train(wild, tmp_path)
    message = str(caught.value)
    assert f"A lower {key}={rate:g} usually helps" in message and "allow_config_change" in message
    assert f"the checkpoint of step 8 in {tmp_path / 'checkpoints'} is kept" in message
    assert checkpoints(tmp_path) == left
    assert_equal(jax.device_get(training.load(tmp_path).state.params), healthy)

    state, metrics = training.train(small_config(**settings), tmp_path)
    assert int(state.step) == 24 and metrics["loss"] < 2
    assert not np.array_equal(state.params["first"]["kernel"], healthy["first"]["kernel"])
    lines = writers.read_json_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]


def test_a_checkpoint_is_trusted_when_a_good_step_has_followed():
    trust = Trust(a_method().required_finite)
    for saved in (2, 4):
        trust.saved(saved)
    row = [{"step": step, "loss": np.nan, "grad_norm": 1.0} for step in (5, 6)]
    trust.see([{"step": 3, "loss": 1.0}, *row])
    assert (trust.step, trust.doubted) == (2, [4])
    trust.see([{"step": 7, "loss": 1e9}])  # finite by luck
    assert (trust.step, trust.doubted) == (2, [4])
    trust.see([{"step": 3, "loss": 1.0}])  # seen before
    trust.see([{"step": 8, "loss": 3.0}])
    assert (trust.step, trust.doubted) == (4, [])
    trust.saved(8)  # that the next update is too large tells nothing against it
    trust.see([{"step": 9, "loss": 3.0, "grad_norm": 1.0, "update_size": np.inf}])
    assert (trust.step, trust.doubted) == (8, [])


DIVERGING = [
    (1e30, 1.0, "the checkpoint of step 4 in {} is kept. A lower"),
    (1e-2, np.nan, "the checkpoint of step 4 in {0} is kept, and that of step 2, the last that is"
     " known to train: with {0}/4 moved away the run goes on"),
]  # fmt: skip


@pytest.mark.parametrize(("rate", "factor", "said"), DIVERGING)
def test_a_run_that_ended_well_keeps_its_end_when_going_on_diverges(
    rate, factor, said, tmp_path, monkeypatch
):
    """Because of the rate, or of data that are `factor` times what they were."""
    settings = {"training__checkpoint_every": 2, "training__keep_checkpoints": 3}
    training.train(small_config(**settings, training__num_steps=4), tmp_path)
    settings |= {"optimizer__learning_rate": rate, "training__allow_config_change": True}

    class Multiplied(Interrupting):
        def __next__(self):
            batch = next(self.iterator)
            return {**batch, "x": batch["x"] * factor}

        def set_state(self, state):
            self.iterator.set_state(state)

    monkeypatch.setattr(loop.data, "batches", Multiplied.wrapping(data.batches, None))
    for _ in range(2):  # nor is it lost the next time
        with pytest.raises(NonFiniteError) as caught:
            training.train(small_config(**settings), tmp_path)
        assert said.format(tmp_path / "checkpoints") in str(caught.value)
        assert checkpoints(tmp_path) == ["2", "4"]


# --- the loop -------------------------------------------------------------------------------


def test_train_on_the_mixture_approaches_the_exact_denoiser(tmp_path):
    """The loss falls to near that of the exact noise prediction, which nothing can beat."""
    config = small_config(
        model__mlp__width=64, model__mlp__depth=2, training__num_steps=600, training__log_every=100,
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
        model__name="unet", model__unet__channels=8, model__unet__channel_mults=(1,),
        model__unet__num_blocks=1, model__unet__attention_resolutions=(),
        model__class_conditional=True, model__unet__dropout=0.1,
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
    split, mesh = data.load(run.config.data).eval, distributed.make_mesh(1)
    terms = training.measure_on(run.method, "bpd", run.config, split, mesh)(run.state, config.seed)
    total = sum(terms.values())
    assert total.shape == (2, 100)
    assert np.mean(total) == pytest.approx(metrics["eval_vlb"], rel=1e-6)


def test_the_bound_is_taken_over_batches_of_equal_size(monkeypatch):
    """100 examples in at most 64 at a time: two of 50, and none filled up to 64."""
    config, sizes = small_config(), []
    dataset = data.load(config.data)
    method = config_lib.build_method(config, training.DatasetInfo.of(dataset))
    place = distributed.place_batch
    monkeypatch.setattr(
        distributed,
        "place_batch",
        lambda batch, mesh: sizes.append(len(batch["x"])) or place(batch, mesh),
    )
    bound = training.measure_on(method, "bpd", config, dataset.eval, distributed.make_mesh(1))
    terms = bound(first_state(config, method), 0)
    assert sizes == [50, 50] and terms["diffusion"].shape[1] == 100


@pytest.mark.parametrize("measure", ["bpd", "bpd_ode"])
def test_likelihoods_depend_on_neither_the_batch_s_size_nor_the_devices(measure):
    """The noise is the example's; a last batch that is filled up counts only its own."""
    split = data.Split(batch_of(130)["x"])
    config = small_config(evaluation__ode_num_steps=3, evaluation__repeats=2)
    info = dataclasses.replace(MIXTURE, levels=256)
    _, state = prepare(config)
    # a network that depends on what it sees, which the first does not
    state = state.replace(ema_params=jax.tree.map(lambda p: p + 0.1, state.ema_params))

    def values(size, devices, num=100, seed=0):
        config.evaluation.update(batch_size=size, num_examples=num)
        method, mesh = config_lib.build_method(config, info), distributed.make_mesh(devices)
        terms = training.measure_on(method, measure, config, split, mesh)(state, seed)
        return np.stack(jax.tree.leaves(terms))

    whole = values(100, 1)
    assert whole.shape[-1] == 100
    for size, devices in ((7, 1), (104, 8)):
        np.testing.assert_allclose(values(size, devices), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values(50, 1, 30), whole[..., :30], rtol=1e-5, atol=1e-5)
    assert np.abs(values(100, 1, seed=1) - whole).max() > 0.01


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
        ({"model__name": "unet"}, "spatial axis"),
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


@pytest.mark.parametrize(
    ("number", "default", "status"),
    [(signal.SIGINT, signal.default_int_handler, 130), (signal.SIGTERM, signal.SIG_DFL, 143)],
)
def test_a_signal_saves_and_says_how_to_go_on(number, default, status, tmp_path, monkeypatch):
    """The interrupted and resumed run ends where an undisturbed one does."""
    config = small_config()
    expected, _ = training.train(config, tmp_path / "undisturbed")
    monkeypatch.setattr(loop.data, "batches", Interrupting.wrapping(data.batches, number))
    with pytest.raises(KeyboardInterrupt, match="after step 4, which is saved") as stop:
        training.train(config, tmp_path / "run")
    monkeypatch.undo()
    assert stop.value.exit_status == status
    assert signal.getsignal(number) is default
    assert int(training.load(tmp_path / "run").state.step) == 4
    state, _ = training.train(config, tmp_path / "run")
    assert_equal(state.params, expected.params)


# --- what TensorBoard reads ---------------------------------------------------------------------


def test_tensorboard_gets_the_metrics_and_the_samples(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = small_config(training__tensorboard=True, training__sample_every=12)
    training.train(config, tmp_path)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    read = accumulator.EventAccumulator(str(events), size_guidance={"tensors": 0}).Reload()
    lines = writers.read_json_lines(tmp_path / "metrics.jsonl")
    tensor = pytest.importorskip("tensorboard.util.tensor_util")
    values = {e.step: float(tensor.make_ndarray(e.tensor_proto)) for e in read.Tensors("loss")}
    assert values == pytest.approx({line["step"]: line["loss"] for line in lines})
    assert "samples" in read.Tags()["tensors"]
