"""One job at a time in a workdir, and what a run does whose files are taken away."""

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
from diffax.training.lock import held
from diffax.tuning import tune


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(autouse=True)
def _said(monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)  # so that caplog sees it


HOLDER = """
import sys, pathlib
from diffax.training import lock
with lock.held([pathlib.Path(sys.argv[1])]):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder until its input ends."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], **pipes) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


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


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, holder, caplog):
    with pytest.raises(ValueError, match=f"process {holder.pid} on host"), held([tmp_path]):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / lock.NAME).exists()
    with held([tmp_path]):
        pass
    assert f"an earlier job (process {holder.pid} on host" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_deleted_is_made_again_or_lost(tmp_path, caplog):
    (tmp_path / "config.json").write_text("{}")
    with held([tmp_path]) as check:
        (tmp_path / lock.NAME).unlink()
        check()
        assert "was deleted while it was in use; it is made again" in caplog.text
        with pytest.raises(ValueError, match="is in use"), held([tmp_path]):
            pass
        (tmp_path / lock.NAME).unlink()
        with held([tmp_path]):
            with pytest.raises(lock.Lost, match="has taken the directory over"):
                check()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError("no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with held([tmp_path]):
        assert "can't be locked (no locks available)" in caplog.text


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
