"""Worker processes: same results, failures contained, a clean stop, a core or a device each."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import jax
import pytest

from diffax.ablation import workers
from diffax.ablation.grid import Arm, GridError, Sharing, run_grid
from diffax.ablation.workers import _taken, _Worker, worker_environments

SCRIPT = """
import os, sys, time
from pathlib import Path
from diffax.ablation.grid import Arm, run_grid

def run_one(arm, seed, directory):
    (directory / "pid").write_text(str(os.getpid()))
    if seed > 0:
        time.sleep(600)
    return {"metrics": {"loss": 1.0}}

if __name__ == "__main__":
    run_grid([Arm("a"), Arm("b")], [0, 1, 2], run_one, sys.argv[1], workers=2)
"""

TRAINING = """
import sys, time
from diffax import runtime
from diffax.ablation.grid import Arm, run_grid
from diffax.runtime import Interruption

def run_one(arm, seed, directory):
    with Interruption() as signals:
        (directory / "begun").touch()
        while not signals.number:  # as the loop of training does, between two steps
            time.sleep(0.01)
        time.sleep(0.5)  # a signal that comes twice does not end the saving
        (directory / "saved").touch()
        raise runtime.Interrupted("", signals.number)

if __name__ == "__main__":
    with runtime.stoppable():
        run_grid([Arm("a"), Arm("b")], [0, 1], run_one, sys.argv[1], workers=2)
"""


def run_one(arm, seed, directory):
    if arm.name == "raises":
        raise ValueError("no such thing")
    if arm.name == "dies":
        os._exit(3)
    return {"pid": os.getpid(), "variable": os.environ.get("DIFFAX_TEST"), "sum": seed + 1}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child that has ended but was not waited for still has its number.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_workers_contain_failures_and_finish_the_rest(tmp_path):
    arms = [Arm("fine"), Arm("raises"), Arm("dies")]
    events = []
    with pytest.raises(GridError) as error:
        run_grid(
            arms,
            [0, 1],
            run_one,
            tmp_path,
            workers=2,
            on_progress=events.append,
            worker_environment=[{"DIFFAX_TEST": "one"}, {"DIFFAX_TEST": "two"}],
            sharing=Sharing(group=lambda arm, seed: seed),
        )
    message = str(error.value)
    assert message.startswith("4 of 6 runs failed: ")
    assert "raises seed 0, raises seed 1 (ValueError: no such thing)" in message
    assert "dies seed 0, dies seed 1 (its process died, killed or out of memory)" in message
    assert sorted(e.status for e in events) == ["failed"] * 4 + ["finished"] * 2 + ["started"] * 6
    trace = tmp_path / "runs" / "raises" / "seed0" / "traceback.txt"
    assert "ValueError: no such thing" in trace.read_text()
    assert "DIFFAX_TEST" not in os.environ
    # What is done is kept and is what this process would have computed, in one of its own.
    here = run_grid(arms[:1], [0, 1], pytest.fail, tmp_path, workers=2)
    assert [r["sum"] for r in here] == [1, 2]
    assert all(r["pid"] != os.getpid() for r in here)
    # A group for each seed, each in a worker with an environment of its own.
    assert {r["variable"] for r in here} == {"one", "two"}


def test_workers_need_a_function_that_can_be_sent(tmp_path):
    with pytest.raises(ValueError, match="top-level function"):
        run_grid([Arm("a"), Arm("b")], [0], lambda *_: {}, tmp_path, workers=2)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopping_the_parent_stops_the_workers_and_keeps_results(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "work" / "runs"
    try:
        # Both arms of seed 0 are done and both of seed 1 sleep.
        assert wait_for(lambda: all((runs / a / "seed1" / "pid").exists() for a in "ab"))
        assert wait_for(lambda: all((runs / a / "seed1" / "pid").read_text() for a in "ab"))
        pids = [int((runs / a / "seed1" / "pid").read_text()) for a in "ab"]
        assert len(set(pids)) == 2
        assert all(map(alive, pids))
        parent.send_signal(how)
        errors = parent.communicate(timeout=60)[1]
    finally:
        parent.kill()
    assert wait_for(lambda: not any(map(alive, pids)), 60)
    assert ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
    finished = sorted(str(p.relative_to(runs)) for p in runs.rglob("result.json"))
    assert finished == ["a/seed0/result.json", "b/seed0/result.json"]
    assert not (runs / "a" / "seed2").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", [os.kill, os.killpg])
def test_trainings_in_workers_save_before_they_end(tmp_path, number, to):
    """Whether the signal comes to the parent alone or, as Ctrl-C does, to all processes."""
    script = tmp_path / "script.py"
    script.write_text(TRAINING)
    command = [sys.executable, str(script), str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    pipes = dict(stderr=subprocess.PIPE, text=True, start_new_session=True)
    parent = subprocess.Popen(command, env=environment, **pipes)
    runs = tmp_path / "work" / "runs"
    try:
        assert wait_for(lambda: all((runs / a / "seed0" / "begun").exists() for a in "ab"))
        to(parent.pid, number)
        errors = parent.communicate(timeout=60)[1]
    finally:
        parent.kill()
    assert sorted(str(p.relative_to(runs)) for p in runs.rglob("saved")) == [
        "a/seed0/saved",
        "b/seed0/saved",
    ]
    assert errors.rstrip().endswith("diffax.runtime.Interrupted")
    assert errors.count("Traceback") == 1, errors


# --- which worker has which device ---------------------------------------------------------------


def on(monkeypatch, platform, count, visible=None):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_cpu_workers_have_one_thread(monkeypatch):
    on(monkeypatch, "cpu", 8)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert len(worker_environments(None, 9)) == 4
    assert len(worker_environments(None, 3)) == 3
    assert worker_environments(1, 9) == worker_environments(None, 1) == [{}]


def test_cpu_workers_keep_the_users_own_flags(monkeypatch):
    on(monkeypatch, "cpu", 8)
    for own in ("", "--xla_dump_to=here"):
        monkeypatch.setenv("XLA_FLAGS", own)
        flags = {e["XLA_FLAGS"] for e in worker_environments(2, 9)}
        assert flags == {f"{own} --xla_cpu_multi_thread_eigen=false".strip()}


@pytest.mark.parametrize("visible, names", [(None, "012"), ("5,6,7", "567")])
def test_each_gpu_has_a_worker(visible, names, monkeypatch):
    on(monkeypatch, "gpu", 3, visible)
    devices = [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(None, 9)]
    assert devices == list(names)
    assert len(worker_environments(None, 2)) == 2
    more = worker_environments(4, 9)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in more] == [*names, names[0]]
    assert {e["XLA_PYTHON_CLIENT_PREALLOCATE"] for e in more} == {"false"}


def test_a_tpu_belongs_to_one_process(monkeypatch):
    on(monkeypatch, "tpu", 4)
    assert worker_environments(None, 9) == worker_environments(1, 9) == [{}]
    with pytest.raises(ValueError, match="workers is 2, but a host's TPU belongs to one process"):
        worker_environments(2, 9)


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers is 0; at least 1"):
        worker_environments(0, 9)


def test_a_worker_goes_on_with_what_it_has_compiled():
    """Seeds stay the outer loop; within one, an arm stays with the worker that has its programs."""
    waiting = deque(deque([(seed, arm)]) for seed in range(3) for arm in "abc")
    one, other = _Worker(None, {}), _Worker(None, {})
    turns = (one, other, one, other, one, one, other, one, one)
    taken = [_taken(waiting, worker, lambda run: run)[0] for worker in turns]
    assert [seed for seed, _ in taken] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "".join(arm for _, arm in taken) == "abc" + "bac" + "bac"
    assert not waiting


def test_a_grid_tells_its_workers_the_seed_and_the_arm(tmp_path, monkeypatch):
    def in_parallel(execute, units, environments, kind):
        assert [kind(unit[0]) for unit in units] == [(s, a) for s in (0, 1) for a in "ab"]
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "in_parallel", in_parallel)
    with pytest.raises(KeyboardInterrupt):
        run_grid([Arm("a"), Arm("b")], [0, 1], run_one, tmp_path, workers=2)
