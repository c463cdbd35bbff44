"""The grid: arms, resume, refusal, failure; in this process (workers: test_ablation_workers)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from diffax.ablation import load_results, store
from diffax.ablation.grid import (
    Arm,
    GridError,
    Sharing,
    grid,
    joined,
    print_progress,
    run_grid,
)
from diffax.ablation.measure import run_configuration
from diffax.config import default_config, relevant
from diffax.files import flatten, jsonable
from diffax.report.formatting import format_seconds
from diffax.training.checkpoint import Checkpoints

ARMS = [Arm("linear", {"schedule.name": "linear"}), Arm("cosine", {"schedule.name": "cosine"})]

# Runs whose arms begin with the same letter share something, seed by seed.
BY_KIND = Sharing(group=lambda arm, seed: (arm.name[0], seed))


class Recorder:
    """A run_one that notes its calls and fails or stops where it is told to."""

    def __init__(self, fail=(), stop=()):
        self.calls, self.fail, self.stop = [], set(fail), set(stop)

    def __call__(self, arm, seed, directory):
        self.calls.append((arm.name, seed))
        if (arm.name, seed) in self.stop:
            raise KeyboardInterrupt
        if (arm.name, seed) in self.fail:
            raise FloatingPointError("the loss is nan\nin step 7")
        return {
            "metrics": {"loss": np.float32(0.5) + seed},
            "directory_is_there": directory.is_dir(),
        }


ALL = [("linear", 0), ("cosine", 0), ("linear", 1), ("cosine", 1)]


def test_grid_is_the_full_product():
    arms = grid({"schedule.name": ["linear", "cosine"], "objective.prediction": ["eps", "v"]})
    assert [arm.name for arm in arms] == [
        "schedule.name=linear,objective.prediction=eps",
        "schedule.name=linear,objective.prediction=v",
        "schedule.name=cosine,objective.prediction=eps",
        "schedule.name=cosine,objective.prediction=v",
    ]
    assert arms[1].overrides == {"schedule.name": "linear", "objective.prediction": "v"}
    mults = grid({"model.unet.channel_mults": [(1, 2), (1, 2, 2)]})
    assert [arm.overrides["model.unet.channel_mults"] for arm in mults] == [(1, 2), (1, 2, 2)]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "axes is empty"),
        ({"a": []}, r"axes\['a'\] must be a list of one or more values, got \[\]"),
        ({"a": "cosine"}, r"axes\['a'\] must be a list of one or more values, got 'cosine'"),
        ({"a": [1, 1]}, r"axes\['a'\] has the value 1 twice"),
        ({"a": ["x", "X"]}, "two arms would share a directory"),
    ],
)
def test_grid_refuses(axes, message):
    with pytest.raises(ValueError, match=message):
        grid(axes)


def test_seeds_are_the_outer_loop_and_results_come_back(tmp_path):
    run = Recorder()
    results = run_grid(ARMS, [0, 1], run, tmp_path)
    assert run.calls == ALL
    assert [(r["arm"], r["seed"]) for r in results] == ALL
    assert [r["metrics"]["loss"] for r in results] == [0.5, 0.5, 1.5, 1.5]
    assert all(r["directory_is_there"] for r in results)
    assert all(r["seconds"] >= 0 for r in results)
    assert results == load_results(tmp_path, ["linear", "cosine"])


def test_finished_runs_are_not_run_again(tmp_path):
    first = run_grid(ARMS, [0], Recorder(), tmp_path)
    again, events = Recorder(), []
    results = run_grid(ARMS, [0, 1], again, tmp_path, on_progress=events.append)
    assert again.calls == ALL[2:]
    assert results[:2] == first
    kept = [(e.arm, e.seed) for e in events if e.status == "kept"]
    assert kept == ALL[:2]
    last = Recorder()
    assert run_grid(ARMS, [0, 1], last, tmp_path) == results
    assert last.calls == []


def test_an_interrupted_run_is_called_again_with_its_directory(tmp_path):
    def half(arm, seed, directory):
        (directory / "checkpoint").write_text("step 50")
        raise KeyboardInterrupt

    def resume(arm, seed, directory):
        return {"found": (directory / "checkpoint").read_text()}

    with pytest.raises(KeyboardInterrupt):
        run_grid(ARMS[:1], [0], half, tmp_path)
    assert not list(tmp_path.rglob("result.json"))
    assert run_grid(ARMS[:1], [0], resume, tmp_path)[0]["found"] == "step 50"


def test_interruption_keeps_what_is_finished(tmp_path):
    run = Recorder(stop=[("linear", 1)])
    with pytest.raises(KeyboardInterrupt):
        run_grid(ARMS, [0, 1], run, tmp_path)
    assert run.calls == ALL[:3]
    # All arms of the first seed: enough for a paired report.
    assert [(r["arm"], r["seed"]) for r in load_results(tmp_path, ["linear", "cosine"])] == ALL[:2]
    again = Recorder()
    run_grid(ARMS, [0, 1], again, tmp_path)
    assert again.calls == ALL[2:]


def test_another_configuration_is_refused_before_anything_runs(tmp_path):
    config = {"objective": {"prediction": "eps"}, "training": {"num_steps": 100}}
    run_grid(ARMS, [0], Recorder(), tmp_path, fingerprint=config)
    config["objective"]["prediction"] = "v"
    run = Recorder()
    with pytest.raises(ValueError, match="another configuration") as error:
        run_grid(ARMS, [1, 0], run, tmp_path, fingerprint=config)
    assert run.calls == []
    message = str(error.value)
    assert str(tmp_path / "runs" / "linear" / "seed0") in message
    assert "objective.prediction was 'eps', is 'v'" in message
    assert "num_steps" not in message
    assert "choose another --workdir or delete that directory" in message


def test_an_interrupted_run_of_another_configuration_is_refused_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_grid(ARMS, [0], Recorder(stop=[("linear", 0)]), tmp_path, fingerprint={"steps": 1})
    with pytest.raises(ValueError, match="steps was 1, is 2"):
        run_grid(ARMS, [0], Recorder(), tmp_path, fingerprint={"steps": 2})


def test_changed_overrides_of_an_arm_are_refused(tmp_path):
    run_grid(ARMS, [0], Recorder(), tmp_path)
    changed = [replace(ARMS[0], overrides={"schedule.name": "sigmoid"}), ARMS[1]]
    with pytest.raises(ValueError, match=r"schedule\.name was 'linear', is 'sigmoid'"):
        run_grid(changed, [0], Recorder(), tmp_path)


def test_a_configuration_with_flat_fields_of_networks_is_known_again(tmp_path):
    """They lay side by side in config.model once; a key that is new since then has its default."""
    now = default_config()
    now.model.update(name="mlp", mlp={"width": 32})
    was = now.to_dict()
    was["model"] = {"name": "mlp", "width": 32, "depth": 3, "channels": 64, "dropout": 0.0} | {
        key: was["model"][key] for key in ("class_conditional", "label_dropout")
    }
    del was["training"]["max_skipped"]
    run_grid(ARMS, [0], Recorder(), tmp_path, fingerprint=was)
    run = Recorder()
    run_grid(ARMS, [0], run, tmp_path, fingerprint=relevant(now))
    assert run.calls == []
    now.model.mlp.width = 16
    with pytest.raises(ValueError, match="model.mlp.width was 32, is 16"):
        run_grid(ARMS, [0], run, tmp_path, fingerprint=relevant(now))


def test_a_run_that_an_arm_starts_from_is_known_by_what_it_holds(tmp_path):
    def saved(name, value):
        checkpoints = Checkpoints(tmp_path / name / "checkpoints")
        checkpoints.save(3, {"a": np.float32(value)}, {"data": None})
        checkpoints.close()
        return str(tmp_path / name)

    def run(workdir):
        recorder = Recorder()
        run_grid(ARMS, [0], recorder, tmp_path / workdir, fingerprint=run_configuration(config))
        return len(recorder.calls)

    config = default_config()
    assert "content" not in run_configuration(config)
    config.training.init_from = saved("base", 1.0)
    assert run("work") == 2 and run("work") == 0
    shutil.copytree(tmp_path / "base", tmp_path / "first")
    saved("other", 2.0)
    for name, calls in (("first", 0), ("other", None)):
        shutil.rmtree(tmp_path / "base")
        shutil.copytree(tmp_path / name, tmp_path / "base")
        if calls is None:
            with pytest.raises(ValueError, match="another run lies in training.init_from than did"):
                run("work")
        else:
            assert run("work") == calls
    # A folder from before that was noted.
    run_grid(ARMS, [0], Recorder(), tmp_path / "old", fingerprint=relevant(config))
    with pytest.raises(ValueError, match="which run lay in training.init_from was not noted"):
        run("old")
    config.codec.update(name="run", path=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="codec.path is .*none': .* there is no checkpoint"):
        run_configuration(config)


def test_fingerprint_may_be_a_function_or_a_config_dict(tmp_path):
    config = ml_collections.ConfigDict({"log_snr_max": float("inf"), "mults": (1, 2)})
    run_grid(ARMS, [0], Recorder(), tmp_path, fingerprint=lambda arm, seed: config)
    same = ml_collections.ConfigDict({"mults": (1, 2), "log_snr_max": float("inf")})
    run = Recorder()
    run_grid(ARMS, [0], run, tmp_path, fingerprint=lambda arm, seed: same)
    assert run.calls == []
    other = {"log_snr_max": None, "mults": [1, 2]}  # None is not inf
    with pytest.raises(ValueError, match="log_snr_max was 'inf', is None"):
        run_grid(ARMS, [0], run, tmp_path, fingerprint=lambda arm, seed: other)


@pytest.mark.parametrize("text", ["", '{"arm": "lin', "[1, 2]", '{"arm": "linear", "seed": 0}'])
def test_a_damaged_result_is_named(tmp_path, text):
    run_grid(ARMS, [0], Recorder(), tmp_path)
    path = tmp_path / "runs" / "linear" / "seed0" / "result.json"
    path.write_text(text)
    run = Recorder()
    for read in (lambda: run_grid(ARMS, [0], run, tmp_path), lambda: load_results(tmp_path)):
        with pytest.raises(ValueError, match="is damaged .* delete it to run this again") as error:
            read()
        assert str(path) in str(error.value)
    path.unlink()
    run_grid(ARMS, [0], run, tmp_path)
    assert run.calls == [("linear", 0)]


def test_a_failing_run_does_not_stop_the_others(tmp_path):
    run, events = Recorder(fail=[("cosine", 0)]), []
    with pytest.raises(GridError) as error:
        run_grid(ARMS, [0, 1], run, tmp_path, on_progress=events.append)
    assert run.calls == ALL
    message = str(error.value)
    assert message.startswith(
        "1 of 4 runs failed: cosine seed 0 (FloatingPointError: the loss is nan)"
    )
    trace = tmp_path / "runs" / "cosine" / "seed0" / "traceback.txt"
    assert "in step 7" in trace.read_text()
    assert "Recorder" not in message
    failed = [e for e in events if e.status == "failed"]
    assert [(e.arm, e.seed, e.message) for e in failed] == [
        ("cosine", 0, "FloatingPointError: the loss is nan")
    ]
    assert len(load_results(tmp_path)) == 3
    again = Recorder()
    run_grid(ARMS, [0, 1], again, tmp_path)
    assert again.calls == [("cosine", 0)]
    assert not trace.exists()


@pytest.mark.parametrize("bad", [None, [1], {"model": object()}])
def test_a_result_that_json_cannot_hold_fails_its_run(tmp_path, bad):
    with pytest.raises(GridError, match=r"mapping|\['model'\] is of type object"):
        run_grid(ARMS[:1], [0], lambda arm, seed, directory: bad, tmp_path)


def test_progress_counts_and_estimates(tmp_path):
    events = []
    run_grid(ARMS, [0, 1], lambda *_: {"seconds": 60.0}, tmp_path, on_progress=events.append)
    assert [e.status for e in events] == ["started", "finished"] * 4
    assert [e.index for e in events if e.status == "finished"] == [1, 2, 3, 4]
    assert all(e.total == 4 for e in events)
    # Each run says that it took a minute, so what is left takes a minute each.
    assert [e.eta for e in events if e.status == "finished"] == [180.0, 120.0, 60.0, 0.0]
    assert events[0].eta is None


def test_printed_progress_reads_well(tmp_path, capsys):
    run_grid(ARMS, [0], lambda *_: {"seconds": 60.0}, tmp_path, on_progress=print_progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[1/2] linear, seed 0: started | elapsed ")
    assert lines[1].startswith("[1/2] linear, seed 0: finished | took 1 min 00 s | elapsed ")
    assert lines[1].endswith("about 1 min 00 s left")


def test_seconds_read_well():
    texts = [format_seconds(s) for s in (0.04, 8.25, 59.4, 61, 3599.6, 7500)]
    assert texts == ["0.0 s", "8.2 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 05 min"]


def test_odd_names_stay_inside_the_workdir(tmp_path):
    arms = [Arm("a/b"), Arm("../up"), Arm("x" * 300), Arm("x" * 299 + "y"), Arm("ünï=1,2")]
    results = run_grid(arms, [0], Recorder(), tmp_path)
    assert [r["arm"] for r in results] == [arm.name for arm in arms]
    runs = tmp_path / "runs"
    directories = {Path(r["directory"]).parent for r in results}
    assert len(directories) == 5
    assert {d.parent for d in directories} == {runs}
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": []}, "arms is empty"),
        ({"arms": [Arm("..")]}, "must name a directory, got '..'"),
        ({"arms": [Arm("a"), Arm("a", {"x": 1})]}, "share a directory: 'a' and 'a'"),
        ({"seeds": []}, r"seeds must be one or more distinct integers, got \[\]"),
        ({"seeds": [1, 1]}, "distinct integers"),
        ({"workers": 0}, "workers is 0"),
        ({"shard": (3, 2)}, "shard is 3/2; it must be i/n with i from 1 to n"),
        ({"fingerprint": {"f": print}}, r"the configuration\['config'\]\['f'\] is of type"),
    ],
)
def test_run_grid_refuses_before_anything_runs(tmp_path, change, message):
    run = Recorder()
    arguments = {"arms": ARMS, "seeds": [0], "run_one": run, "workdir": tmp_path} | change
    with pytest.raises(ValueError, match=message):
        run_grid(**arguments)
    assert run.calls == []
    assert not list(tmp_path.iterdir())


def test_load_results_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run under"):
        load_results(tmp_path)


def test_nothing_partial_is_left_and_files_are_strict_json(tmp_path):
    run_grid(ARMS, [0], lambda *_: {"x": np.array([1.0, np.nan, np.inf])}, tmp_path)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"configuration.json", "result.json"}

    def refuse(constant):
        raise AssertionError(constant)

    for path in tmp_path.rglob("result.json"):
        record = json.loads(path.read_text(), parse_constant=refuse)
        assert record["result"]["x"] == [1.0, None, None]


def test_jsonable_and_flatten():
    import jax.numpy as jnp

    value = {"a": {"b": jnp.ones(2, jnp.bfloat16), "c": (np.int64(1), None)}, "p": Path("x") / "y"}
    plain = jsonable(value)
    assert plain == {"a": {"b": [1.0, 1.0], "c": [1, None]}, "p": "x/y"}
    assert flatten(plain) == {"a.b": [1.0, 1.0], "a.c": [1, None], "p": "x/y"}
    assert flatten({"a": {}, "b": {"c": {}}}) == {"a": {}, "b.c": {}}


def test_runs_of_a_group_follow_one_another(tmp_path):
    arms = [Arm(f"{kind}{k}") for k in (1, 2) for kind in "ab"]
    run, events = Recorder(), []
    run_grid(
        arms, [0, 1], run, tmp_path, sharing=Sharing(group=lambda arm, seed: (arm.name[0], seed))
    )
    assert run.calls == [(f"{kind}{k}", seed) for seed in (0, 1) for kind in "ab" for k in (1, 2)]

    def first_takes_longer(arm, seed, directory):
        return {"seconds": 60.0 if arm.name.endswith("1") else 2.0}

    def kind(arm, seed):
        return arm.name[0], seed

    run_grid(
        arms,
        [0],
        first_takes_longer,
        tmp_path / "b",
        sharing=Sharing(group=kind),
        on_progress=events.append,
    )
    assert [e.eta for e in events if e.status == "finished"] == [180.0, 62.0, 2.0, 0.0]


def test_parts_make_up_the_grid(tmp_path):
    arms = [Arm(f"{kind}{k}") for k in (1, 2) for kind in "abc"]
    calls = []
    for i in (1, 2, 3, 4):
        run = Recorder()
        run_grid(
            arms,
            [0, 1],
            run,
            tmp_path,
            shard=(i, 4),
            sharing=Sharing(group=lambda arm, seed: (arm.name[0], seed)),
        )
        groups = {(name[0], seed) for name, seed in run.calls}
        assert len(run.calls) == 2 * len(groups)  # none is torn apart
        calls += run.calls
    assert sorted(calls) == sorted((arm.name, seed) for arm in arms for seed in (0, 1))
    again = Recorder()
    assert len(run_grid(arms, [0, 1], again, tmp_path)) == 12
    assert again.calls == []
    assert run_grid(arms[:1], [0], again, tmp_path, shard=(2, 2)) == []


def test_groups_of_one_key_are_joined_and_prepared_before_their_first_run(tmp_path):
    arms, run = [Arm("a1"), Arm("a2"), Arm("b1")], Recorder(fail=[("a1", 0)])
    sharing = Sharing(
        group=lambda arm, seed: (arm.name[0], seed),
        join=lambda arm, seed: (arm.name[0], 2 if arm.name[0] == "a" else 1),
        prepare=lambda runs: run.calls.append([(arm.name, seed) for arm, seed in runs]),
    )
    with pytest.raises(GridError):
        run_grid(arms, [0, 1, 2], run, tmp_path, sharing=sharing)
    first = [("a1", 0), ("a2", 0)]
    second = [("a1", 1), ("a2", 1), ("a1", 2), ("a2", 2)]
    single = [[("b1", seed)] for seed in range(3)]
    groups = [first, single[0], second, single[1], single[2]]
    assert run.calls == [call for group in groups for call in (group, *group)]
    # What is left is a group of its own.
    again = run.calls = []
    run.fail = set()
    results = run_grid(arms, [0, 1, 2], run, tmp_path, sharing=sharing)
    assert again == [[("a1", 0)], ("a1", 0)] and len(results) == 9


def test_parts_of_a_grid_are_disjoint_and_whole_where_groups_are_joined(tmp_path):
    """However far each machine has come, and whatever it joins: the parts are cut first."""
    arms, seeds, done = [Arm("a"), Arm("b")], range(5), []
    for part, most in ((1, 4), (2, 2), (3, 1)):
        run = Recorder()
        prepared = []
        run_grid(
            arms,
            seeds,
            run,
            tmp_path,
            shard=(part, 3),
            sharing=Sharing(
                join=lambda arm, seed, most=most: (arm.name, most),
                prepare=lambda runs, prepared=prepared: prepared.append(len(runs)),
            ),
        )
        assert max(prepared) <= most and sum(prepared) == len(run.calls)
        done += run.calls
    assert sorted(done) == [(arm.name, seed) for arm in arms for seed in seeds]


def test_a_preparation_that_fails_fails_the_first_run_alone(tmp_path):
    def fail(runs):
        raise OSError("no space left")

    with pytest.raises(GridError, match="1 of 2 runs failed: linear seed 0 .*no space left"):
        run_grid(
            ARMS[:1],
            [0, 1],
            Recorder(),
            tmp_path,
            sharing=Sharing(join=lambda arm, seed: (0, 2), prepare=fail),
        )
    assert [r["seed"] for r in load_results(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("seeds", "workers", "sizes"),
    [(4, 1, [4]), (4, 2, [2, 2]), (5, 2, [2, 3]), (3, 4, [1, 1, 1]), (20, 2, [6, 7, 7])],
)
def test_every_worker_keeps_a_group_and_none_is_too_large(seeds, workers, sizes, tmp_path):
    groups = [[store.make_run(ARMS[0], seed, tmp_path, {})] for seed in range(seeds)]
    parts = joined(groups, lambda arm, seed: (arm.name, 8), workers)
    assert [len(group) for group in parts] == sizes
    assert [run.seed for group in parts for run in group] == list(range(seeds))
