"""Several seeds trained in one program: the same runs as by themselves, and as well kept."""

import functools
import logging
import shutil
import signal

import jax
import numpy as np
import pytest
from small_runs import (
    LEARNED,
    PowerCut,
    assert_close,
    assert_equal,
    compiled_quickly,
    cut_after,
    small_config,
)

from diffax import config as config_lib
from diffax import data, training
from diffax.distributed import LOCAL, VmappedRuns
from diffax.training import loop, writers
from diffax.training.checkpoint import Checkpoints

SEEDS = (3, 0)


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


def configs(**changes):
    common = {"training__checkpoint_every": 4, "training__keep_checkpoints": 1} | changes
    return [small_config(seed=seed, **common) for seed in SEEDS]


def homes(folder):
    return [folder / f"seed{seed}" for seed in SEEDS]


def steps_in(home):
    return sorted(int(path.name) for path in (home / "checkpoints").iterdir())


def arrays(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def files(home):
    """Every file but those of the checkpoints, which hold times."""
    paths = [path.relative_to(home) for path in sorted(home.rglob("*")) if path.is_file()]
    return {path: (home / path).read_bytes() for path in paths if path.parts[0] != "checkpoints"}


def assert_same_runs(folder, other):
    """Bit by bit."""
    for home, same in zip(homes(folder), homes(other)):
        assert files(home) == files(same)
        assert steps_in(home) == steps_in(same)
        assert_equal(*(arrays(training.load(each).state) for each in (home, same)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, training.train_together(configs(), homes(folder))


def assert_as_by_themselves(made, folder, tmp_path, **changes):
    for (state, metrics), home, config in zip(made, homes(folder), configs(**changes)):
        alone = tmp_path / home.name
        expected, expected_metrics = training.train(config, alone)
        assert_close(arrays(state), arrays(expected), rtol=1e-4, atol=1e-5)
        assert metrics == pytest.approx(expected_metrics, rel=1e-4)
        assert files(home).keys() == files(alone).keys()
        assert steps_in(home) == steps_in(alone)
        for name in ("config.json", "dataset.json"):
            assert (home / name).read_bytes() == (alone / name).read_bytes()
        lines, others = (writers.read_json_lines(d / "metrics.jsonl") for d in (home, alone))
        assert len(lines) == len(others)
        for line, other in zip(lines, others):
            assert line == pytest.approx(other, rel=1e-4)
        assert_equal(arrays(training.load(home).state), arrays(state))


def test_runs_are_those_by_themselves_to_rounding(undisturbed, tmp_path):
    folder, made = undisturbed
    assert_as_by_themselves(made, folder, tmp_path)


def test_with_a_learned_schedule_and_several_steps_to_a_call(tmp_path):
    changes = dict(
        LEARNED, schedule__kind="polynomial", schedule_learning__update_every=2,
        objective__time_sampling="rate", training__steps_per_call=4,
        training__sample_every=12, training__eval_every=12, evaluation__repeats=1,
    )  # fmt: skip
    made = training.train_together(configs(**changes), homes(tmp_path / "together"))
    assert_as_by_themselves(made, tmp_path / "together", tmp_path / "alone", **changes)


def test_the_schedules_turn_is_a_branch_under_vmap_too():
    """Not both branches and a choice, since the step is common to all runs."""
    config = small_config(**LEARNED, schedule_learning__update_every=2)
    info = training.DatasetInfo.of(data.load(config.data))
    method, layout = config_lib.build_method(config, info), VmappedRuns(2)
    like = jax.eval_shape(method.init, jax.random.key(0))

    def make(sharding):
        return functools.partial(method.step, sharding=sharding)

    step = layout.make_step(make)(LOCAL)
    batch = {"x": np.zeros((2, 32, 2), np.float32), "label": None}
    assert " cond[" in str(jax.make_jaxpr(step)(jax.eval_shape(layout.whole, like), batch))


# --- resumed ----------------------------------------------------------------------------------


def cut_between_saves(patch, saves):
    """After so many checkpoints, those of one step of all runs being counted one by one."""
    save, made = Checkpoints.save, []

    def limited(self, *args):
        if len(made) == saves:
            raise PowerCut
        made.append(None)
        save(self, *args)

    patch.setattr(Checkpoints, "save", limited)


@pytest.mark.parametrize(
    ("cut", "number", "found"),
    [(cut_after, 10, 8), (cut_between_saves, 3, 4)],
    ids=["after a checkpoint", "between two of a step"],
)
def test_a_killed_training_ends_as_if_nothing_had_happened(
    cut, number, found, undisturbed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        cut(patch, number)
        training.train_together(configs(), homes(tmp_path))
    steps = [set(steps_in(home)) for home in homes(tmp_path)]
    assert max(set.intersection(*steps)) == found
    assert (len(set(map(frozenset, steps))) > 1) == (cut is cut_between_saves)
    resumed = training.train_together(configs(), homes(tmp_path))
    assert_same_runs(tmp_path, undisturbed[0])
    assert [metrics for _, metrics in resumed] == [metrics for _, metrics in undisturbed[1]]
    # Complete, it is only read.
    again = training.train_together(configs(), homes(tmp_path))
    assert_equal(arrays(again[1][0]), arrays(resumed[1][0]))
    assert_same_runs(tmp_path, undisturbed[0])


def test_where_the_latest_of_one_run_is_damaged_all_go_on_from_the_one_before(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)  # so that caplog sees it
    runs = configs(training__keep_checkpoints=2)
    first, again = tmp_path / "first", tmp_path / "again"
    training.train_together(runs, homes(first))
    shutil.copytree(first, again)
    loop_file = homes(again)[1] / "checkpoints" / "12" / "loop" / "metadata"
    loop_file.write_bytes(loop_file.read_bytes()[:20])
    training.train_together(runs, homes(again))
    assert "step 12 in" in caplog.text and "those of step 8 are used" in caplog.text
    assert_same_runs(again, first)


def test_runs_without_a_step_in_common_go_on_by_themselves(tmp_path):
    stop = {"stop": lambda step, run: step == 6}
    training.train(configs()[0], homes(tmp_path)[0], **stop)
    with pytest.raises(ValueError, match="no checkpoint of a step in common.* train each by"):
        training.train_together(configs(), homes(tmp_path))
    assert steps_in(homes(tmp_path)[0]) == [6]
    assert int(training.train(configs()[0], homes(tmp_path)[0])[0].step) == 12


class Disturbing:
    """Batches of which something happens to the sixth and those that follow."""

    def __init__(self, iterator, disturb):
        self.iterator, self.disturb, self.count = iterator, disturb, 0

    def __next__(self):
        self.count += 1
        return self.disturb(self.count, next(self.iterator))

    def get_state(self):
        return self.iterator.get_state()

    def set_state(self, state):
        self.iterator.set_state(state)


def disturb_seed(monkeypatch, seed, disturb):
    """disturb(number, batch) -> batch, of the run of that seed."""
    batches = data.batches

    def some(split, size, own, **kwargs):
        iterator = batches(split, size, own, **kwargs)
        return Disturbing(iterator, disturb) if own == seed else iterator

    monkeypatch.setattr(loop.data, "batches", some)


def test_a_signal_saves_all_runs(undisturbed, tmp_path, monkeypatch):
    def interrupt(number, batch):
        if number == 6:
            signal.raise_signal(signal.SIGTERM)
        return batch

    with monkeypatch.context() as patch, pytest.raises(training.Interrupted) as stop:
        disturb_seed(patch, 0, interrupt)
        training.train_together(configs(training__checkpoint_every=0), homes(tmp_path))
    assert stop.value.exit_status == 143
    assert all(str(home) in str(stop.value) for home in homes(tmp_path))
    assert [steps_in(home) for home in homes(tmp_path)] == [[4]] * 2
    training.train_together(configs(), homes(tmp_path))
    assert_same_runs(tmp_path, undisturbed[0])


# --- not finite ---------------------------------------------------------------------------------


def spoiled(batch):
    return {**batch, "x": batch["x"] * np.nan}


def test_a_step_that_is_not_finite_is_skipped_in_its_own_run_alone(
    undisturbed, tmp_path, monkeypatch
):
    disturb_seed(monkeypatch, 0, lambda i, batch: spoiled(batch) if i == 6 else batch)
    training.train_together(configs(), homes(tmp_path))
    lines = [writers.read_json_lines(home / "metrics.jsonl") for home in homes(tmp_path)]
    skipped = [[line.get("skipped_steps") for line in of_run] for of_run in lines]
    assert skipped == [[None] * 3, [None, 1, None]]
    home, same = (homes(folder)[0] for folder in (tmp_path, undisturbed[0]))
    assert files(home) == files(same)
    assert_equal(*(arrays(training.load(each).state) for each in (home, same)))


def test_a_run_that_diverges_is_named_and_all_checkpoints_are_kept(tmp_path, monkeypatch):
    disturb_seed(monkeypatch, 0, lambda i, batch: spoiled(batch) if i > 5 else batch)
    changes = {"training__max_skipped": 4}  # so that step 8, of which it is not, would be saved
    with pytest.raises(training.NonFiniteError) as caught:
        training.train_together(configs(**changes), homes(tmp_path))
    assert (caught.value.step, caught.value.quantity) == (6, "loss")
    bad = homes(tmp_path)[1]
    assert f"in the run in {bad}; the checkpoint of step 4 in {bad}" in str(caught.value)
    assert [steps_in(home) for home in homes(tmp_path)] == [[4]] * 2
    state, _ = training.train(configs(**changes)[0], homes(tmp_path)[0])
    assert int(state.step) == 12


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer__learning_rate": 0.5}, "differ in optimizer.learning_rate; .* seed alone"),
        ({"seed": 3}, "the seeds of the runs must be distinct: .'3', '3'"),
    ],
)
def test_other_runs_are_refused(changes, words, tmp_path):
    first = configs()[0]
    second = small_config(**{"seed": 1} | changes, training__checkpoint_every=4)
    second.training.keep_checkpoints = 1
    with pytest.raises(ValueError, match=words):
        training.train_together([first, second], homes(tmp_path)[:2])
    assert not any(tmp_path.iterdir())


def test_one_workdir_for_two_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the workdirs of the runs must be distinct"):
        training.train_together(configs()[:2], [tmp_path, tmp_path])
    with pytest.raises(ValueError, match="2 configs and 1 workdirs"):
        training.train_together(configs(), [tmp_path])


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_devices": 2}, "there are 2 devices"), ({"mode": "pmap"}, "the mode is 'pmap'")],
)
def test_other_layouts_are_refused(changes, words, tmp_path):
    changes = {f"parallel__{key}": value for key, value in changes.items()}
    with pytest.raises(ValueError, match=f"on one device, in one process.*{words}"):
        training.train_together(configs(**changes), homes(tmp_path))
    assert not any(tmp_path.iterdir())
