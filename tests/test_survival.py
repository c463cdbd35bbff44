"""What a run survives: to be killed at any moment, a full disk, data that are gone."""

import contextlib
import functools
import os
import resource
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from killable import Killable, on_disk, wait_until
from small_runs import LEARNED, assert_equal, compiled_quickly, small_config

from diffax import training
from diffax.data import batches
from diffax.training import loop
from diffax.training.loop import DevicePrefetcher

# --- killed at any moment -------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def killable(compiled):
    program = Killable(compiled)
    yield program
    program.close()


def kill_often(killable, config, workdir, kills, rng):
    """Begins a run and kills it so often; returns what was on disk at each kill.

    At random moments: every other time while it starts or soon after, else by turns while a
    checkpoint is written and right after one was.
    """
    found = []
    for kill in range(kills):
        newest = max(on_disk(workdir)[0], default=0)

        def another(newest=newest):
            return max(on_disk(workdir)[0], default=0) > newest

        (pid,) = killable.start(config, workdir)
        if kill % 2 == 0:
            end = time.monotonic() + rng.uniform(0, 0.3 + kill / 20)  # the first comes early
            wait_until(lambda end=end, another=another: time.monotonic() > end or another())
        elif kill % 4 == 1:
            wait_until(lambda: not on_disk(workdir)[1])  # what an earlier kill left is cleaned away
            wait_until(lambda: on_disk(workdir)[1])
            time.sleep(rng.choice([0, 0.01, 0.03]))
        else:
            wait_until(another)
            time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert killable.wait() == [-signal.SIGKILL]
        found.append(on_disk(workdir))
    return found


def files(workdir):
    """Every file but those of the checkpoints, which hold times."""
    paths = [path.relative_to(workdir) for path in sorted(workdir.rglob("*")) if path.is_file()]
    return {path: (workdir / path).read_bytes() for path in paths if path.parts[0] != "checkpoints"}


def arrays(workdir, step):
    state = training.load(workdir, step).state
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def test_a_run_that_is_killed_anywhere_ends_as_if_nothing_had_happened(killable, tmp_path):
    """Bit by bit: parameters, averages, optimizer, the learned schedule; metrics and pictures."""
    kills = 21
    config = small_config(
        **LEARNED, schedule__kind="polynomial", training__num_steps=48,
        schedule_learning__update_every=2, training__checkpoint_every=2, training__log_every=3,
        training__sample_every=16,
    )  # fmt: skip
    killable.start(config, tmp_path / "whole")
    assert killable.wait() == [0]
    found = kill_often(killable, config, tmp_path / "killed", kills, np.random.default_rng(0))
    # The moments were of many kinds: before the first checkpoint, while one was written, later.
    assert not found[0][0]
    assert sum(bool(begun) for _, begun in found) >= 2
    assert len({max(whole, default=0) for whole, _ in found}) > 5
    killable.start(config, tmp_path / "killed")
    assert killable.wait() == [0]

    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    returned = [(tmp_path / f"{name}.returned").read_text() for name in ("killed", "whole")]
    assert returned[0] == returned[1]
    steps, begun = on_disk(tmp_path / "killed")
    assert (steps, begun) == on_disk(tmp_path / "whole") and not begun
    for step in steps:
        assert_equal(arrays(tmp_path / "killed", step), arrays(tmp_path / "whole", step))


# --- a full disk ----------------------------------------------------------------------------


class Filling:
    """Batches; from the sixth on no file may grow, as on a full disk. Step 4 is saved by then."""

    def __init__(self, iterator, workdir):
        self._iterator, self._workdir, self._count = iterator, workdir, 0

    def __next__(self):
        self._count += 1
        if self._count == 6:
            wait_until(lambda: 4 in on_disk(self._workdir)[0])
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        return next(self._iterator)

    def get_state(self):
        return self._iterator.get_state()


@contextlib.contextmanager
def disk_that_fills(workdir, monkeypatch):
    """By a limit on the size of files, which needs no rights and no disk of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(loop.data, "batches", lambda *a, **k: Filling(batches(*a, **k), workdir))
        hasty = functools.partial(DevicePrefetcher, ahead=0)
        patch.setattr(loop, "DevicePrefetcher", hasty)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"training__log_every": 100},  # step 6's checkpoint, which the one of step 8 waits for
        {"training__log_every": 100, "training__checkpoint_every": 4, "training__num_steps": 7},
        {"training__log_every": 1, "training__checkpoint_every": 4},
        {"training__log_every": 100, "training__sample_every": 7, "training__checkpoint_every": 4},
    ],
    ids=["checkpoint", "last checkpoint", "metrics", "picture"],
)
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    changes, compiled, tmp_path, monkeypatch
):
    config = small_config(**{"training__checkpoint_every": 2} | changes)
    with compiled_quickly(compiled):
        expected, metrics = training.train(config, tmp_path / "whole")
        with disk_that_fills(tmp_path / "run", monkeypatch), pytest.raises(OSError) as caught:
            training.train(config, tmp_path / "run")
        message = str(caught.value)
        assert f"workdir {tmp_path / 'run'} can't be written to" in message
        assert "File too large" in message and "\n" not in message
        assert "the checkpoint of step 4 in" in message and "is kept" in message
        assert int(training.load(tmp_path / "run").state.step) == 4

        state, resumed_metrics = training.train(config, tmp_path / "run")
    assert_equal(state.params, expected.params)
    assert resumed_metrics == metrics
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_another_reason_than_the_disk_is_not_called_one(compiled, tmp_path, monkeypatch):
    """Such as another host that is gone."""
    workdir = tmp_path / "run"

    def times_out(self, step, **kwargs):
        raise RuntimeError("Barrier timed out\nand more")

    with compiled_quickly(compiled), monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", times_out)
        with pytest.raises(OSError) as caught:
            training.train(small_config(), workdir)
    assert str(caught.value).startswith(
        f"the run in {workdir} ends (a checkpoint could not be written: Barrier timed out); "
    )


# --- what a resumption refuses ----------------------------------------------------------------


def test_data_that_are_gone_are_named_and_nothing_is_touched(compiled, tmp_path):
    path = tmp_path / "signals.npz"
    np.savez(path, x=np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32))
    config = small_config(
        data__name="npz", data__path=str(path), evaluation__num_examples=10,
        evaluation__batch_size=10,
    )  # fmt: skip
    workdir = tmp_path / "run"
    with compiled_quickly(compiled):
        training.train(config, workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    path.rename(tmp_path / "elsewhere.npz")
    config.training.num_steps += 4
    with pytest.raises(FileNotFoundError, match=r"data.path='.*signals.npz' is not a file"):
        training.train(config, workdir)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    (tmp_path / "elsewhere.npz").rename(path)
    with compiled_quickly(compiled):
        assert int(training.train(config, workdir)[0].step) == config.training.num_steps
