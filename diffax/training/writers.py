"""Where metrics go: a JSON Lines file always, log lines, and TensorBoard if asked for.

All have the interface of `clu.metric_writers.MetricWriter`, as far as it is used here. (That class
itself can't be imported without TensorFlow.)
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from diffax.training import hosts
from diffax.training.workdir import write_text

_LOG = logging.getLogger("diffax")


class MetricWriter(Protocol):
    """What the loop needs of a writer."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of one step."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images, (N, H, W, C) uint8."""

    def flush(self) -> None:
        """Makes sure that all of it can be read."""

    def close(self) -> None:
        """Flushes and ends."""


class JsonLines:
    """One line per step in a file: {"step": 100, "loss": 0.0312, ...}; images are not written.

    Numbers that are not finite, which JSON doesn't have, are null. An existing file is continued
    after `last_step`: the lines of later steps, and a last line that was cut off, are removed.
    """

    def __init__(self, path: str | os.PathLike, last_step: int = 0):
        self._path = Path(path)
        kept = [line for line in read_json_lines(self._path) if line["step"] <= last_step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self._path, "a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        values = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        self._file.write(json.dumps({"step": int(step), **values}) + "\n")
        self._file.flush()

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        del step, images

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: str | os.PathLike) -> list[dict[str, float | None]]:
    """The lines that `JsonLines` wrote, without a last one that was cut off; [] without a file.

    Raises:
      ValueError: another line is not JSON.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start it anew") from None


class LogLines:
    """Log lines: how far it is, steps per second, the time that is left, and the metrics.

    The speed is that since the line before, or since the writer was made, so the first line counts
    compilation too.
    """

    def __init__(self, num_steps: int, last_step: int = 0, label: str = ""):
        self._num_steps, self._label = num_steps, label
        self._before = last_step, time.monotonic()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        (step_before, time_before), self._before = self._before, (step, time.monotonic())
        seconds = (self._before[1] - time_before) / max(step - step_before, 1)
        left = datetime.timedelta(seconds=round(seconds * (self._num_steps - step)))
        values = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        _LOG.info(
            "%sstep %d/%d  %.3g steps/s  %s left  %s",
            *(self._label, step, self._num_steps, 1 / max(seconds, 1e-9), left, values),
        )

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        del step, images

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Several:
    """Hands everything to each of several writers."""

    def __init__(self, writers: Sequence[MetricWriter]):
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for writer in self._writers:
            writer.write_images(step, images)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def check_tensorboard(wanted: bool) -> None:
    """Raises ValueError if TensorBoard files are wanted, but not TensorFlow, which writes them."""
    if wanted and importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            "config.training.tensorboard is True, but TensorFlow, which writes those files, is not"
            " installed: pip install 'diffax[tensorboard]', or set it to False"
        )


def create(
    workdir: str | os.PathLike,
    num_steps: int,
    last_step: int = 0,
    tensorboard: bool = False,
    label: str = "",
) -> MetricWriter:
    """Writers to workdir/metrics.jsonl, to the log, each line behind `label`, and, if asked for, to
    workdir/tensorboard.

    Of several processes only the first writes.
    """
    check_tensorboard(tensorboard)
    if not hosts.is_first():
        return Several(())
    writers = [
        JsonLines(Path(workdir) / "metrics.jsonl", last_step),
        LogLines(num_steps, last_step, label),
    ]
    if tensorboard:
        from clu import metric_writers  # imports TensorFlow

        writers.append(metric_writers.SummaryWriter(os.fspath(Path(workdir) / "tensorboard")))
    return Several(writers)
