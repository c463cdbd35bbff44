"""Ablations of real, tiny trainings: what arms share is made once, and parts add up to a whole."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import compiled_quickly, small_config

from diffax import cli, data, runtime, training
from diffax.ablation import Arm, Spec, measure, report_on, runner
from diffax.data import sources

ROOT = Path(__file__).parents[1]
CONFIG = """
from small_runs import small_config

def get_config():
    return small_config(training__num_steps=6, evaluation__num_samples=64, evaluation__repeats=2,
                        training__eval_every=3, evaluation__gradient_batches=2)
"""
# What was compiled once is read from the disk, by other processes too.
COMMAND = """
import sys
from diffax import cli, runtime
runtime.start = lambda *_, **__: None
sys.exit(cli.main(sys.argv[1:]))
"""
ARMS = ["sampling.num_steps=3", "sampling.num_steps=5"]


def ablate(workdir, *flags):
    config = workdir.parent / "config.py"
    config.write_text(CONFIG)
    axis = "--axis=sampling.num_steps=3,5"
    fixed = [f"--config={config}", f"--workdir={workdir}", axis, "--seeds=2", "--workers=1"]
    fixed.append("--seeds-together=never")  # until a later flag says otherwise
    return ["ablate", *fixed, *flags]


def numbers(workdir, part):
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))[part]


def files(workdir):
    """All but those of checkpoints, and what was measured under settings of a hash."""
    paths = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return {str(path) for path in paths if "checkpoints" not in path.parts}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Where compiled programs are kept; the command line leaves the settings alone."""
    folder = tmp_path_factory.mktemp("compiled")
    sources._cached.cache_clear()  # data that another file made, and its compiler rounded otherwise
    with pytest.MonkeyPatch.context() as patch, compiled_quickly(folder):
        patch.setattr(runtime, "start", lambda *_, **__: None)
        yield folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick):
    """A grid of two ways to sample × two seeds, and where it trained."""
    trained, train = [], training.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "train", lambda config, home: trained.append(home) or train(config, home)
        )
        workdir = tmp_path_factory.mktemp("whole") / "work"
        assert cli.main(ablate(workdir)) == 0
    return workdir, trained


def test_trainings_on_other_data_are_not_used(whole, capsys):
    """What is finished is no exception; of data that nothing is known of, nothing is said."""
    path = whole[0] / "trainings" / "common" / "seed1" / "dataset.json"
    before = path.read_text()
    found = json.loads(before)
    path.write_text(json.dumps(found | {"fingerprint": "of other data"}))
    assert cli.main(ablate(whole[0])) == 1
    said = f"{path.parent} holds a training on other data: as many examples have another content"
    assert said in capsys.readouterr().err
    path.write_text(json.dumps(found | {"fingerprint": "", "num_train": 0}))
    assert cli.main(ablate(whole[0])) == 0
    path.write_text(before)


def test_an_ablation_judged_by_samples_needs_no_bound(tmp_path, quick):
    """The bound is measured of the arm that has one; the report lacks nothing for the other's."""
    ends = dict(schedule__log_snr_max=None, schedule__log_snr_min=None)
    sizes = dict(training__num_steps=6, evaluation__num_samples=64, evaluation__repeats=2)
    config = small_config(evaluation__metrics=("swd",), **ends, **sizes)
    arms = [Arm(name, {"schedule.name": name}) for name in ("cosine", "linear_logsnr")]
    spec = Spec("T", "Q?", "cosine", ())
    report = runner.run_ablation(spec, config, arms, [0], tmp_path, 1, vectorise=False)
    assert report.analysis.missing == []
    assert [metric.key for metric in report.analysis.spec.metrics][:2] == ["swd", "bpd"]
    measured = {arm for arm, key in report.analysis.cells if key == "bpd"}
    assert measured == {"linear_logsnr"}
    of_cosine = measure.measured_metrics([], [config], data.load_cached(config.data))
    assert [metric.key for metric in of_cosine] == ["swd"]
    config.evaluation.metrics = ()
    with pytest.raises(ValueError, match="needs finite .* or name a score of samples"):
        runner.run_ablation(spec, config, arms, [0], tmp_path / "c", 1)
    assert not (tmp_path / "c").exists()


def test_a_unet_and_a_dit_of_equal_compute_are_arms_of_one_ablation():
    """The command of docs/ablations.md."""
    command = "diffax ablate --config=configs/ablation_digits.py --workdir=runs/networks"
    words = (ROOT / "docs" / "ablations.md").read_text("utf-8").replace("\\\n", " ").splitlines()
    (line,) = (line for line in words if line.startswith(command))
    flags = [word for word in line.split() if word.startswith("--config.")]
    config = cli.read_config(str(ROOT / "configs" / "ablation_digits.py"), flags)
    arms, left_out = runner.possible_arms(config, {"model.name": ["unet", "dit"]})
    assert "--axis model.name=unet,dit" in line and not left_out
    assert runner.costs_differ(runner.design(config, arms)["model.name=dit"])
    unet, dit = (measure.operations(runner.arm_config(config, arm, 3)) for arm in arms)
    assert 0.9 < dit / unet < 1.1


@pytest.mark.parametrize("key", ["training.batch_size", "sampling.num_steps"])
def test_operations_are_counted_where_arms_may_differ_in_them(key, tmp_path, monkeypatch):
    def stopped(arms, seeds, run_one, *_, **__):
        assert run_one.keywords["counts"] == (key == "training.batch_size")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_grid", stopped)
    arms = [Arm(str(value), {key: value}) for value in (2, 4)]
    config = small_config(evaluation__metrics=("swd",))
    with pytest.raises(KeyboardInterrupt):
        runner.run_ablation(Spec("T", "Q?", "2", ()), config, arms, [0], tmp_path, 1)


def test_ways_to_sample_share_one_training(whole):
    workdir, trained = whole
    homes = [str(home.relative_to(workdir)) for home in trained]
    assert homes == ["trainings/common/seed0", "trainings/common/seed1"]
    assert all((home / "checkpoints").is_dir() for home in trained)
    few, many = (numbers(workdir, "summary")[arm] for arm in ARMS)
    for key in ("bpd", "grad_variance"):  # of the training
        assert few[key] == many[key] and few[key]["mean"] > 0
    for run in numbers(workdir, "runs"):
        assert run["evaluation"]["grad_variance"]["num_batches"] == 2
        curve = run["curves"]["gradient_variance"]
        assert curve["step"] == [3, 6]
        measured = run["metrics"]["grad_variance"]
        assert curve["variance"][-1] == pytest.approx(measured, rel=1e-5)
    assert few["swd"]["values"] != many["swd"]["values"]  # of the samples
    repeats = {c["metric"]: c["repeats"] for c in numbers(workdir, "comparisons")}
    assert repeats["bpd"] and not repeats["swd"]


def test_seeds_in_one_program_give_the_same_numbers_to_rounding(whole, tmp_path, monkeypatch):
    alone, _ = whole
    made, train_together = [], training.train_together
    monkeypatch.setattr(
        training, "train_together", lambda c, d: made.append(list(d)) or train_together(c, d)
    )
    assert cli.main(ablate(tmp_path, "--seeds-together=auto")) == 0
    homes = [tmp_path / "trainings" / "common" / f"seed{seed}" for seed in (0, 1)]
    assert made == [homes]
    assert files(tmp_path) - files(alone) == {
        f"trainings/common/seed{seed}/together.json" for seed in (0, 1)
    }
    runs, others = numbers(tmp_path, "runs"), numbers(alone, "runs")
    for run, other in zip(runs, others, strict=True):
        assert (run["arm"], run["seed"]) == (other["arm"], other["seed"])
        assert run["metrics"] == pytest.approx(other["metrics"], rel=1e-3)
        assert (run["training"]["seeds"], other["training"]["seeds"]) == ([0, 1], [other["seed"]])
    told = [numbers(w, "environment")["seeds trained in one program"] for w in (tmp_path, alone)]
    assert told == [2, 1]
    assert runs[0]["training"]["seconds"] > 0
    # What is complete is not trained again: another way to sample, of the same trainings.
    for result in (tmp_path / "runs").glob("*/*/result.json"):
        result.unlink()
    assert cli.main(ablate(tmp_path, "--seeds-together=auto")) == 0
    assert made == [homes] and numbers(tmp_path, "summary") is not None


def test_where_seeds_cannot_be_trained_together_each_is_by_itself(
    whole, tmp_path, monkeypatch, caplog
):
    def fail(configs, directories):
        raise FloatingPointError("the loss is nan in one of them")

    monkeypatch.setattr(training, "train_together", fail)
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    assert cli.main(ablate(tmp_path, "--seeds-together=always")) == 0
    assert "each seed is trained by itself, since together" in caplog.text
    assert "the loss is nan in one of them" in caplog.text
    for part in ("summary", "comparisons"):
        assert numbers(tmp_path, part) == numbers(whole[0], part)
    assert files(tmp_path) == files(whole[0])


def test_small_networks_are_trained_together_by_default():
    config = small_config(model__mlp__width=64, training__batch_size=256)
    assert measure.seeds_at_once(config) == 8
    config.training.batch_size = 4096
    assert measure.seeds_at_once(config) == 1
    assert measure.seeds_at_once(config, True) > 100
    config = small_config()
    assert measure.seeds_at_once(config) > 100 and measure.seeds_at_once(config, False) == 1
    config.model.name = "unet"
    assert measure.seeds_at_once(config) == 1


def test_two_parts_at_once_and_a_report_are_one_run(whole, quick, tmp_path, capsys):
    workdir = tmp_path / "parts"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(quick),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    other = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *ablate(workdir, "--shard=1/2")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert cli.main(ablate(workdir, "--shard=2/2")) == 0
    here, (said, errors) = capsys.readouterr(), other.communicate(timeout=600)
    assert other.returncode == 0, errors
    assert "part 1 of 2 is done" in said and "part 2 of 2 is done" in here.out
    assert not (workdir / "results.json").exists()
    # One training each.
    assert ("seed 0" in errors, "seed 1" in errors) == (True, False)
    assert ("seed 0" in here.err, "seed 1" in here.err) == (False, True)
    # A machine that has one arm alone, and one that has the other.
    first = tmp_path / "first"
    first.mkdir()
    for name in ("ablation.json", "real_samples.npz"):
        (first / name).write_bytes((workdir / name).read_bytes())
    (first / "runs").mkdir()
    (workdir / "runs" / ARMS[0]).rename(first / "runs" / ARMS[0])
    half = report_on([first])
    assert len(half.analysis.missing) == 2 and "Partial report" in half.html.read_text("utf-8")
    assert cli.main(["report", f"--workdir={first}", f"--workdir={workdir}"]) == 0
    for part in ("summary", "comparisons", "verdict", "missing", "config", "metrics"):
        assert numbers(first, part) == numbers(whole[0], part)


def test_a_training_of_another_config_is_refused_before_any_work(whole, tmp_path, capsys):
    workdir, _ = whole
    other = ablate(workdir, "--config.optimizer.learning_rate=0.5")
    assert cli.main([a.replace("=3,5", "=4") for a in other]) == 1
    assert "optimizer.learning_rate was 0.01, is 0.5" in capsys.readouterr().err


def test_reports_of_different_ablations_are_not_merged(whole, tmp_path, capsys):
    workdir, _ = whole
    kept = json.loads((workdir / "ablation.json").read_text())
    kept["config"]["training"]["num_steps"] = 7
    (tmp_path / "ablation.json").write_text(json.dumps(kept))
    assert cli.main(["report", f"--workdir={workdir}", f"--workdir={tmp_path}"]) == 1
    assert "config.training.num_steps is 6 in one workdir and 7" in capsys.readouterr().err
    assert cli.main(["report", f"--workdir={tmp_path / 'nothing'}"]) == 1
    assert "holds no ablation: there is no ablation.json" in capsys.readouterr().err
    (tmp_path / "ablation.json").write_bytes((workdir / "ablation.json").read_bytes())
    assert cli.main(["report", f"--workdir={tmp_path}"]) == 1
    assert "no finished run under" in capsys.readouterr().err


def test_runs_that_two_workdirs_hold_must_be_the_same(whole, tmp_path):
    workdir, _ = whole
    path = next((workdir / "runs").glob("*/seed0/result.json"))
    other = tmp_path / "runs" / path.parent.parent.name / "seed0" / "result.json"
    other.parent.mkdir(parents=True)
    (tmp_path / "ablation.json").write_bytes((workdir / "ablation.json").read_bytes())
    (tmp_path / "real_samples.npz").write_bytes((workdir / "real_samples.npz").read_bytes())
    other.write_bytes(path.read_bytes())
    same = report_on([workdir, tmp_path], tmp_path / "out")
    assert len(same.analysis.results) == 4
    read = json.loads(path.read_text())
    read["result"]["metrics"]["bpd"] += 1
    other.write_text(json.dumps(read))
    with pytest.raises(ValueError, match="with other numbers"):
        report_on([workdir, tmp_path], tmp_path / "out")
