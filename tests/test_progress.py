"""What a run says while it is at work."""

import logging
import re
import time

import jax.numpy as jnp
import pytest
from small_runs import a_method, compiled_quickly, small_config

from diffax import runtime, training
from diffax.training import progress
from diffax.training.metric_buffer import MetricBuffer
from diffax.training.progress import ProgressDisplay, counted


@pytest.fixture(autouse=True)
def _said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)  # so that caplog sees it
    monkeypatch.setattr(logging.getLogger("diffax.details"), "level", logging.NOTSET)
    caplog.set_level("INFO", logger="diffax")


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.2)
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_long_work_says_how_long_it_has_taken(hasty, caplog):
    with ProgressDisplay() as said:
        with said.doing("compiling"):
            until(lambda: len(caplog.messages) == 3)
        for i in counted(range(3), "evaluating", "batches"):
            if i == 2:
                until(lambda: len(caplog.messages) == 5)
        with said.doing("quick"):
            pass
    first, *later = caplog.messages
    assert first == "compiling"
    assert all(re.fullmatch(r"compiling: \d+ s so far", line) for line in later[:2])
    assert later[2] == "evaluating: 3 batches"
    assert re.fullmatch(r"evaluating: 2 of 3 batches, \d+ s so far", later[3])
    assert later[4:] == ["quick"]
    assert list(counted([1, 2], "nothing", "said")) == [1, 2]  # outside of a run


def test_it_speaks_only_where_there_is_silence(hasty, caplog):
    """And not at all in all but the first of several processes."""
    with ProgressDisplay() as said, said.doing("", lambda seconds: "still there"):
        for _ in range(20):
            logging.getLogger("diffax").info("a line of the log")
            time.sleep(0.02)
    with ProgressDisplay(speaks=False) as said, said.doing("compiling"):
        time.sleep(0.3)
    assert set(caplog.messages) == {"a line of the log"}


def test_the_window_knows_what_is_done_without_waiting():
    class Pending:
        def __init__(self, steps, ready):
            self.steps, self.ready = steps, ready

        def __len__(self):
            return self.steps

        def is_ready(self):
            return self.ready

    window = MetricBuffer(a_method())
    assert window.completed() == 0
    for first, ready in (1, True), (5, True), (9, False), (13, False):
        window.add(first, {"loss": Pending(4, ready)})
    assert window.completed() == 8
    window = MetricBuffer(a_method())
    window.add(1, {"loss": jnp.ones(3), "grad_norm": jnp.ones(3)})
    window.memory()
    window.take_mean()
    assert window.completed() == 3


def said(caplog):
    """Lines of the log but warnings and what only a slow machine says."""
    lines = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    return [line for line in lines if "so far" not in line and "none more" not in line]


def test_a_run_says_each_thing_that_it_does(tmp_path, caplog):
    """What it reads, that it compiles, the first step, what it measures, draws and writes."""
    config = small_config(
        training__num_steps=4, training__eval_every=4, training__sample_every=4,
        evaluation__gradient_batches=2,
    )  # fmt: skip
    with compiled_quickly(tmp_path / "compiled"):
        training.train(config, tmp_path / "run")
        found = said(caplog)
        caplog.clear()
        with runtime.brief():
            training.train(config, tmp_path / "again")
    expected = [
        "reading mixture2d",
        r"mixture2d: [\d,]+ examples of 2 to train on, [\d,]+ to evaluate by",
        "initialising the network",
        r"[\d,]+ parameters",
        "compiling the training step",
        r"compiled in \d+\.\d s; step 1 of 4 is under way",
        "evaluating: 2 batches",
        "measuring the variance of the gradient: 2 batches",
        r"step 4/4  .* steps/s  0:00:00 left  .*loss .*evaluated bound .*",
        "drawing samples",
        "writing the last checkpoint",
    ]
    assert len(found) == len(expected)
    assert all(re.fullmatch(words, line) for words, line in zip(expected, found))
    found = said(caplog)
    assert [line.split("  ")[0] for line in found] == ["step 4/4"]  # of one of many


def test_the_pace_is_that_of_training_alone(monkeypatch):
    """What is looked at and written on the way takes no time of it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress.Pace(30)
    assert pace.silent_at(0) == ""  # nothing was waited for yet
    now[0] += 5
    with pace.paused():
        now[0] += 600
        assert pace.at(10) == "step 10/30  2 steps/s  0:00:10 left"
        now[0] += 600
    assert pace.silent_at(10) == ""
    now[0] += 8
    assert pace.silent_at(10) == "step 10/30, and none more for 8 s"
    now[0] += 12
    assert pace.at(30) == "step 30/30  1 steps/s  0:00:00 left"
