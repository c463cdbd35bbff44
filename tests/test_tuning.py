"""Tuning by training: a run that is stopped, the metric, and the command line."""

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import assert_equal, compiled_quickly, small_config

from diffax import cli, data, evaluation, runtime, schedules, training
from diffax.ablation import analyse, runner
from diffax.training.writers import read_json_lines
from diffax.tuning import Trial, results, run, trials


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    """With the learning rates of the whole run; the same bits in the end."""
    config = small_config(optimizer__decay="cosine")
    expected, metrics = training.train(config, tmp_path / "whole")
    seen = []

    def stop(step, run):
        seen.append((step, int(run.state.step), run.config.training.num_steps))
        return step >= 7

    state, _ = training.train(config, tmp_path / "cut", stop)
    assert seen == [(step, step, 12) for step in range(1, 8)]
    assert int(state.step) == 7 == int(training.load(tmp_path / "cut").state.step)
    resumed, resumed_metrics = training.train(config, tmp_path / "cut")
    assert_equal(resumed.params, expected.params)
    assert_equal(resumed.opt_state, expected.opt_state)
    assert resumed_metrics == metrics
    read = [read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("cut", "whole")]
    assert read[0] == read[1]


@pytest.fixture(scope="module")
def mixture():
    return data.load(small_config().data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    training.train(small_config(training__num_steps=60), workdir)
    return training.load(workdir)


def spoiled(run, spread):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + spread * rng.standard_normal(x.shape, np.float32), run.state.ema_params
    )


def test_bpd_is_of_the_network_and_not_of_the_schedule(trained, mixture):
    """The same network under two schedules with the same ends has one and the same value; it is
    higher for a worse network."""
    other = schedules.get("linear_logsnr", log_snr_max=6.0, log_snr_min=-6.0)
    as_other = trained._replace(state=trained.state.replace(schedule=other))
    bpd = trials.metrics(trained.config)["bpd"]
    value = bpd(trained, mixture, 0)
    np.testing.assert_allclose(bpd(as_other, mixture, 0), value, rtol=1e-5)
    for spread in (0.3, 1.0):
        worse = trained._replace(state=trained.state.replace(ema_params=spoiled(trained, spread)))
        higher = bpd(worse, mixture, 0)
        assert higher > value
        value = higher


def test_a_metric_that_cannot_compare_schedules_is_refused(mixture):
    cases = [
        ("loss", {}, "visits easy ones has a low loss and no better network"),
        ("vlb_variance", {}, "not the network"),
        ("fd", {}, r"metric='fd' \(did you mean fid\?\): allowed are bpd, .*fd_lite0.*swd"),
        ("prdc", {}, "it is 4 numbers, precision, recall, density, coverage"),
        ("is", {}, "higher is better of it"),
        ("lpips_diversity", {}, "neither lower nor higher is better of it"),
        ("frechet", {}, "need labelled data with a spatial axis"),
        ("fd_lite0", {}, "lite0 takes images"),
        ("bpd", {"schedule__num_steps": 100}, "compares schedules in continuous time"),
        ("bpd", {"model__mlp__conditioning": "step"}, "conditioned on the log-SNR"),
        ("bpd", {"schedule__log_snr_max": None, "schedule__log_snr_min": None}, "finite log-SNR"),
    ]
    for metric, changes, words in cases:
        with pytest.raises(ValueError, match=words):
            trials.check_metric(metric, small_config(**changes), mixture)
    ends = {"schedule__log_snr_max": None, "schedule__log_snr_min": None}
    trials.check_metric("swd", small_config(**ends), mixture)  # by samples alone


SEARCH = ["--search=schedule.s=0.01:0.5:log", "--search=schedule.input_scale=0.8:1.2"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    config = small_config(training__num_steps=8, evaluation__repeats=2, evaluation__num_samples=32)
    (folder / "config.py").write_text(results.to_python(config, "Tiny."))
    return folder


def tune(folder, *flags):
    given = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'out'}", *SEARCH]
    return cli.main(["tune", *given, "--workers=1", *flags])


def instead_of_training(arm, seed, directory, text, workdir, counts=False):
    """What `runner.run_one` returns, with a bpd that is lower by 0.5 in the tuned arm."""
    bpd = seed - 0.5 * (arm.name == "tuned") + 0.01 * seed * len(arm.overrides)
    return {"metrics": {m.key: 1.0 for m in runner.METRICS} | {"swd": 1.0, "bpd": bpd}}


def test_tune_from_the_command_line(tuned, mixture, capsys, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda *_, **__: None)  # keeps the cache of this file
    monkeypatch.setattr(runner, "run_one", instead_of_training)  # has tests of its own
    assert tune(tuned, "--trials=2", "--confirm=2") == 0
    said = capsys.readouterr()
    out = tuned / "out"
    rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["1", "2"]
    assert "[2/2]" in said.err and "left" in said.err and "at step 2/8" in said.err
    assert not list(out.glob("trials/*/checkpoints"))

    # What was measured is what a training with that config is measured as.
    winner = min((r for r in rows if r["status"] == "complete"), key=lambda r: float(r["bpd"]))
    config = cli.read_config(str(out / "best.py"), [])
    assert config.schedule.s == float(winner["schedule.s"])
    training.train(config, tuned / "again")
    measured = trials.metrics(config)["bpd"](training.load(tuned / "again"), mixture, config.seed)
    np.testing.assert_allclose(measured, float(winner["bpd"]), rtol=1e-6)

    # The verdict is that of fresh seeds.
    (report,) = out.glob("confirm/trial_*/results.json")
    numbers = json.loads(report.read_text())
    assert {r["seed"] for r in numbers["runs"]} == {1, 2}
    assert {r["arm"] for r in numbers["runs"]} == {"default", "tuned"}
    assert said.out.splitlines()[-1] == numbers["verdict"][0]
    assert "Bits per dimension of tuned minus that of default is −0.470" in numbers["verdict"][0]


def test_a_score_of_samples_is_searched_and_confirmed(trained, mixture, tmp_path, monkeypatch):
    """By the number that `evaluate` gives; the confirmation measures it, and it is the headline."""
    found = evaluation.evaluate(trained, mixture, ["swd"], 3)["swd"]["swd"]
    assert trials.metrics(trained.config)["swd"](trained, mixture, 3) == found
    made = [Trial(1, {"schedule.s": 0.05}, "complete", {12: 1.0}, 1.0)]
    monkeypatch.setattr(run, "search", lambda *args, **settings: made)
    asked, nan = [], []

    def run_ablation(spec, config, arms, seeds, folder, workers):
        asked.append((spec.metrics[0].key, config.evaluation.metrics))
        results = [
            {"arm": a.name, "seed": s, "metrics": {"swd": math.exp(0.01 * s * len(a.overrides))}}
            for s in seeds
            for a in arms
        ]
        for result in results:
            if nan and result["arm"] == "tuned":
                result["metrics"]["swd"] = nan[0]
        spec = dataclasses.replace(spec, metrics=spec.metrics[:1])
        return SimpleNamespace(analysis=analyse(spec, results, partial=bool(nan)))

    monkeypatch.setattr(runner, "run_ablation", run_ablation)
    search = ["schedule.s=0.001:0.1:log"]
    tuned = run.tune(small_config(), search, tmp_path, 1, metric="swd", confirm=2)
    assert asked == [("swd", ("swd",))]
    assert tuned.verdict.startswith("Sliced Wasserstein distance of tuned is 1.015 times that of")
    nan[:] = [float("nan")]
    tuned = run.tune(small_config(), search, tmp_path, 1, metric="swd", confirm=2)
    said = "No comparison; missing: metric 'swd' of arm 'tuned', seed 1; metric 'swd' of"
    assert tuned.verdict.startswith(said)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--metric=loss"], "visits easy ones"),
        (["--confirm=1"], "at least 2 seeds"),
        (["--rungs=9"], "rungs=9"),
        (["--pruner=best"], "allowed are halving, median, none"),
        (["--search=schedule.tau=1:2"], "no schedule here takes it"),
        (["--search=schedule.log_snr_max=1:2"], "holds a search with other settings: search was"),
        (["--config.optimizer.learning_rate=0.5"], "learning_rate was 0.01 and is 0.5. Take"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(flags, words, tuned, capsys):
    """After the test before this one, whose workdir is as it was."""
    before = {path: path.stat().st_mtime_ns for path in (tuned / "out").glob("trials*")}
    assert tune(tuned, *flags) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1] and said[-1].startswith("diffax tune: ") and len(said) == 1
    assert before == {path: path.stat().st_mtime_ns for path in (tuned / "out").glob("trials*")}


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--trials=0", "--trials: '0': must be at least 1"),
        ("--budget=-1", "--budget: '-1': must be above 0"),
    ],
)
def test_a_flag_out_of_its_range_is_one_sentence(flag, words, tuned, capsys):
    with pytest.raises(SystemExit) as stopped:
        tune(tuned, flag)
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and words in said[-1] and len(said) == 1


def test_a_search_does_not_go_on_with_other_data(tuned, capsys, monkeypatch):
    monkeypatch.setattr(data.Dataset, "fingerprint", property(lambda _: "another"))
    assert tune(tuned) == 1
    said = capsys.readouterr().err
    assert "the fingerprint of the data was " in said and "and is 'another'" in said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule.s": 0.008}, "No trial was better than the config as it was."),
        ({"schedule.s": 0.05}, "Not confirmed: whether the winner is better is not known."),
    ],
)
def test_without_a_comparison_nothing_is_claimed(values, words, tmp_path, monkeypatch):
    made = [Trial(1, values, "complete", {12: 1.0}, 1.0)]
    monkeypatch.setattr(run, "search", lambda *args, **settings: made)
    found = run.tune(small_config(), ["schedule.s=0.001:0.1:log"], tmp_path, 1, confirm=0)
    assert (found.verdict, found.report, found.best) == (words, None, made[0])


def test_a_search_goes_by_what_the_method_compares_runs_by():
    """Of an autoencoder also by scores of what it gives back; and what misleads stays refused."""
    config = small_config(method__name="autoencoder", model__name="autoencoder")
    first, *scores = trials.metrics(config)
    assert first == "squared_error" and "frechet" in scores and "bpd" not in scores
    with pytest.raises(ValueError, match="metric='bpd'.*allowed are squared_error, frechet"):
        trials.check_metric("bpd", config)
    trials.check_metric("squared_error", config)
    of_diffusion = trials.metrics(small_config())
    assert "bpd" in of_diffusion and "swd" in of_diffusion and "vlb_variance" not in of_diffusion
