"""What writes the metrics: JSON lines, log lines, TensorBoard."""

import json

import numpy as np
import pytest
from small_runs import small_config

from diffax import training
from diffax.training import progress, writers


def test_json_lines_hold_one_object_per_step(tmp_path):
    writer = writers.JsonLines(tmp_path / "m.jsonl")
    writer.write_scalars(10, {"loss": 0.1, "bad": float("nan"), "worse": float("inf")})
    writer.write_scalars(20, {"loss": np.float32(0.5)})
    writer.close()
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 0.1, "bad": None, "worse": None},
        {"step": 20, "loss": 0.5},
    ]


def test_json_lines_go_on_after_the_last_step(tmp_path):
    """Later lines and a line that was cut off are removed; the rest stays byte by byte."""
    path = tmp_path / "m.jsonl"
    kept = '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.1}\n'
    path.write_text(kept + '{"step": 3, "loss": 0.2}\n{"step": 4, "lo')
    writer = writers.JsonLines(path, last_step=2)
    writer.write_scalars(3, {"loss": 0.25})
    writer.close()
    assert path.read_text() == kept + '{"step": 3, "loss": 0.25}\n'


def test_damaged_json_lines_are_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"m.jsonl is damaged .*delete it"):
        writers.JsonLines(path)


def test_log_lines_tell_speed_and_time_left(caplog, monkeypatch, tmp_path):
    clock = iter([0.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    writer = writers.Writer(tmp_path, progress.Pace(300))
    with caplog.at_level("INFO", logger="diffax"):
        writer.write_scalars(100, {"loss": 0.12345, "eval_vlb": 3})
    writer.close()
    assert caplog.messages == [
        "step 100/300  2 steps/s  0:01:40 left  loss 0.1235  evaluated bound 3"
    ]


def test_tensorboard_without_tensorflow_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="TensorFlow, which writes those files, is not installed"):
        training.train(small_config(training__tensorboard=True), tmp_path)
    writers.check_boards(small_config().training)


def test_weights_and_biases_gets_the_metrics_and_the_samples(tmp_path, monkeypatch):
    """In offline mode, by its own library; what resumes goes on as the same run."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in ((4, 8), (8, 12)):
        pace, config = progress.Pace(12), small_config(training__wandb=True)
        boards = writers.boards_of(config.training)
        writer = writers.Writer(tmp_path, pace, steps[0] - 4, boards, config=config)
        for step in steps:
            writer.write_scalars(step, {"loss": 0.5, "grad_norm": 1.0})
        writer.write_images(steps[-1], {"samples": np.full((1, 8, 8, 1), step, np.uint8)})
        writer.close()
    identifier = (tmp_path / "wandb_id.txt").read_text()
    logs = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in logs] == [f"run-{identifier}.wandb"] * 2
    for path in logs:
        content = path.read_bytes()
        for word in (b"loss", b"grad_norm", b"samples", b"schedule_learning"):
            assert word in content
        (picture,) = path.parent.glob("files/media/images/samples_*.png")
        assert picture.stat().st_size > 0


def test_weights_and_biases_without_its_library_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is True, but the library of Weights & Biases is"):
        training.train(small_config(training__wandb=True), tmp_path)
