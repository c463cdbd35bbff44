"""One job at a time in a workdir, and what a run does whose files are taken away."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from small_runs import compiled_quickly, small_config

from diffax import training
from diffax.ablation import Arm, Spec, runner
from diffax.training import lock
from diffax.training.lock import Lock, held
from diffax.tuning import tune


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(autouse=True)
def _said(monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)  # so that caplog sees it


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.05)


def of_another(folder, **changes):
    """The lock of a job of these properties, as it lies there."""
    other = Lock(folder)
    other._text = json.dumps(other._me | changes)
    assert other._create()
    return other


# --- the file -----------------------------------------------------------------------------------


def test_a_second_job_is_refused_and_the_first_goes_on(tmp_path):
    with held([tmp_path]) as check:
        with pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on host "):
            with held([tmp_path]):
                pass
        check()
        with held([tmp_path], "another.json"):
            pass
    assert not list(tmp_path.iterdir())


def test_of_many_at_once_one_has_it(tmp_path):
    (tmp_path / lock.NAME).write_text("")  # one that was being made when its job was killed
    os.utime(tmp_path / lock.NAME, (0, 0))
    outcomes, inside, most = [], [], []

    def work():
        try:
            with held([tmp_path]):
                inside.append(None)
                most.append(len(inside))
                time.sleep(0.3)
                inside.pop()
            outcomes.append("done")
        except ValueError:
            outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "done" in outcomes and set(most) == {1}


def test_the_lock_of_a_process_that_has_ended_is_taken_over(tmp_path, caplog):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = lock._began(child.pid)
    other = of_another(tmp_path, process=child.pid, began=began)
    with pytest.raises(ValueError, match=f"process {child.pid} "), held([tmp_path]):
        pass
    child.kill()  # not waited for: a zombie
    while lock._began(child.pid):
        time.sleep(0.01)
    with held([tmp_path]):
        pass
    assert f"an earlier job (process {child.pid} on host" in caplog.text
    child.communicate()
    other._create()
    with held([tmp_path]):  # there is no such process
        pass
    # Its number may be that of another process today.
    of_another(tmp_path, process=os.getpid(), began="1")
    with held([tmp_path]):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("differs", ["host", "boot", "processes"])
def test_a_lock_of_elsewhere_is_stale_when_it_is_not_renewed(differs, tmp_path, quick, caplog):
    """Another host, the same one before it was started anew, another container: its processes
    can't be looked for."""
    other = of_another(tmp_path, **{differs: "elsewhere"})
    end = threading.Event()

    def beat():
        while not end.wait(0.05):
            other.renew()

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(ValueError, match="is in use by process"), held([tmp_path]):
        pass
    end.set()
    thread.join()
    with held([tmp_path]) as check:
        assert "waiting up to" in caplog.text and "its lock is taken over" in caplog.text
        check()
        with pytest.raises(lock.Lost, match="taken the directory over"):
            other.check()
        other.renew()
        other.release()  # leaves alone what is another's
        check()


def test_the_holder_renews_it(tmp_path, quick):
    with held([tmp_path]):
        path = tmp_path / lock.NAME
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)


def test_an_ablation_and_a_search_are_refused_where_another_is_at_work(tmp_path):
    """But parts of an ablation share a workdir."""
    config, arms = small_config(), [Arm("a"), Arm("b")]
    spec = Spec("title", "question", "a", metrics=())
    refused = pytest.raises(ValueError, match=f"workdir {tmp_path} is in use by process")

    def ablate(shard):
        runner.run_ablation(spec, config, arms, [0], tmp_path, 1, shard)

    with held([tmp_path]):
        with refused:
            ablate((1, 1))
        with refused:
            tune(config, ["schedule.s=0.1:0.2"], tmp_path, 1)
    with held([tmp_path], "lock-2-of-3.json"), refused:
        ablate((2, 3))


# --- in training --------------------------------------------------------------------------------


def train(workdir, at, do, **changes):
    """Trains; at that step something is done."""

    def stop(step, run):
        if step == at:
            do()
        return False

    config = small_config(**{"training__checkpoint_every": 4} | changes)
    return training.train(config, workdir, stop)


def test_two_trainings_in_one_workdir(tmp_path):
    """The second is refused whoever asks; to read is allowed."""

    def second():
        for run in (
            lambda: training.train(small_config(seed=1), tmp_path),
            lambda: training.train_together(
                [small_config(seed=s) for s in (0, 1)], [tmp_path / "other", tmp_path]
            ),
        ):
            with pytest.raises(ValueError, match=f"workdir {tmp_path} is in use by process"):
                run()
        assert int(training.load(tmp_path).state.step) in (4, 8)
        assert training.load(tmp_path).config.seed == 0

    state, _ = train(tmp_path, 10, second)
    assert int(state.step) == 12 and not (tmp_path / lock.NAME).exists()
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("way", ["deleted", "moved", "emptied"])
def test_a_workdir_that_is_taken_away_ends_the_run_in_a_sentence(way, tmp_path):
    run = tmp_path / "run"
    do = {
        "deleted": lambda: shutil.rmtree(run),
        "moved": lambda: run.rename(tmp_path / "other"),
        "emptied": lambda: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in run.iterdir()],
    }[way]
    with pytest.raises(OSError, match=f"the run in {run} ends .*deleted or moved") as caught:
        train(run, 6, do, training__checkpoint_every=0)
    assert "\n" not in str(caught.value) and "no checkpoint was made" in str(caught.value)


def test_checkpoints_that_are_taken_away_at_the_end_are_noticed(tmp_path):
    folder = tmp_path / "checkpoints"

    def disturb():
        while not (folder / "8").exists():
            time.sleep(0.01)
        shutil.rmtree(folder)

    with pytest.raises(OSError, match="checkpoint"):
        train(tmp_path, 11, disturb, training__keep_checkpoints=1)
        assert int(training.load(tmp_path).state.step) == 12  # or there is a usable one
        raise OSError("checkpoint")
