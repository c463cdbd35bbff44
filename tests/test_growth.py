"""The growth experiment: what it asks for, how it reads results, and its quickest measurement."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import growth
import growth_measure
import growth_report

APART = dict(parameters=1e-7, losses=2e-7, array=3e-5)
ABOUT = dict(
    date="2026-01-02", command="command", machine="machine", tolerance=1e-5, rounds=2, times=5,
    jax="1", jaxlib="2", flax="3", optax="4",
)  # fmt: skip


def made_up(task):
    """A result whose step time grows as the batch, and in which every second round is slower."""
    if task.kind != "step":
        return [dict(devices=2, layout="data", **APART)]
    slow = 1 + int(task.name[-1])
    seconds = [0.1 * slow * task.arguments["batch"]] * 5
    return dict(
        parameters=10**6, compile=20.0 * slow, compile_cpu=10.0, step=seconds, step_cpu=seconds,
        process_mb=1000.0 / slow, program_mb=100.0, save=[3.0 * slow, 0.1, 0.1],
        restore=[0.2], checkpoint_mb=9.0, backend="cpu", device="cpu",
    )  # fmt: skip


def test_every_point_is_measured_in_every_round_and_rounds_are_interleaved(tmp_path):
    tasks = growth.tasks(growth.FULL, tmp_path)
    assert len({task.name for task in tasks}) == len(tasks)
    steps = [task.name for task in tasks if task.kind == "step"]
    assert len(steps) == 7 * growth.FULL.rounds
    assert [name.split()[1] for name in steps[:7]] == ["round0"] * 7
    for task in tasks:
        assert json.loads(json.dumps(task.arguments)) and task.kind in growth_measure.MEASURES


def test_layouts_are_all_there_and_none_twice():
    assert growth_measure.layouts_of(1) == ["pmap"]
    assert growth_measure.layouts_of(2) == ["data", "fsdp", "pmap"]
    assert growth_measure.layouts_of(8) == ["data", "fsdp", "both", "pmap"]
    assert growth_measure.LAYOUTS["both"](8) == dict(num_devices=8, fsdp=4)


def test_what_was_measured_is_kept_and_other_versions_are_refused(tmp_path, monkeypatch):
    tasks, run = growth.tasks(growth.QUICK, tmp_path), []
    monkeypatch.setattr(growth, "run_task", lambda task: run.append(task.name) or made_up(task))
    store, versions = tmp_path / "growth.json", {"jax": "1"}
    growth.run_all(tasks[:1], store, versions)
    results = growth.run_all(tasks, store, versions)
    assert run == [task.name for task in tasks] and set(results) == set(run)
    with pytest.raises(ValueError, match="made with {'jax': '1'}; delete it"):
        growth.run_all(tasks, store, {"jax": "2"})


def test_the_report(tmp_path):
    plan = growth.FULL._replace(grown={"batch": (8, 32, 128)})
    results = {task.name: made_up(task) for task in growth.tasks(plan, tmp_path)}
    points, apart = growth.merge(plan, results), growth.differences(results)
    largest = points["batch128-size16-channels32"]
    assert largest["step"] == pytest.approx(0.15 * 128)  # between the two rounds
    assert largest["compile"] == 20.0 and largest["process_mb"] == 500.0
    assert largest["first_save"] == 3.0 and largest["save"] == 0.1
    text = growth_report.write(tmp_path, plan.base, plan.grown, points, apart, ABOUT)
    assert text == (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    (row,) = [line for line in text.splitlines() if line.startswith("| 128 |")]
    assert row.endswith("| 1.00 |")  # the step: in proportion
    assert "| 2 | 2 | data | 1.0×10⁻⁷ | 2.0×10⁻⁷ | 3.0×10⁻⁵ |" in text
    assert "The largest is 2.0×10⁻⁷, within the 1×10⁻⁵ that is allowed" in text
    assert "From 8 to 128, powers: a step 1.00, its memory 0.00" in text
    assert not growth_report.too_far(apart, 1e-5)
    nan = {**apart[0], "parameters": float("nan")}
    assert growth_report.too_far([nan], 1e-5) == [nan]
    worse = [{**apart[0], "losses": 2e-5}]
    text = growth_report.write(tmp_path, plan.base, plan.grown, points, worse, ABOUT)
    assert "2.0×10⁻⁵, NOT within the" in text


def test_runs_are_compared_by_norm_by_array_and_by_loss():
    one = {"large": np.full(4, 10.0), "small": np.full(1, 0.1), "zero": np.zeros(2)}
    other = {**one, "small": np.full(1, 0.2)}
    found = growth_measure.compare((other, [1.0, 3.0]), (one, [1.0, 2.0]))
    assert found == pytest.approx(dict(parameters=0.1 / 20, array=1.0, losses=0.5), rel=1e-3)


def test_a_checkpoint_is_measured(tmp_path):
    state = {"a": jax.numpy.arange(1000.0)}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = growth_measure.measure_checkpoint(state, sharding, times=2)
    assert len(found["save"]) == len(found["restore"]) == 2 and found["checkpoint_mb"] > 0
