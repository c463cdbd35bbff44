"""Where metrics go: a JSON Lines file always, log lines, and TensorBoard if asked for."""

import importlib.util
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffax.files import write_text
from diffax.training import hosts
from diffax.training.progress import Pace

_LOG = logging.getLogger("diffax")


class JsonLines:
    """One line per step in a file: {"step": 100, "loss": 0.0312, ...}.

    Numbers that are not finite, which JSON doesn't have, are null. An existing file is continued
    after `last_step`: the lines of later steps, and a last line that was cut off, are removed.
    """

    def __init__(self, path: str | os.PathLike, last_step: int = 0):
        kept = [line for line in read_json_lines(path) if line["step"] <= last_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        values = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        self._file.write(json.dumps({"step": int(step), **values}) + "\n")
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


_WORDS = {"eval": "evaluated", "grad": "gradient", "vlb": "bound"}


def called(name: str) -> str:
    """What a person calls a metric: "gradient norm", of "grad_norm"."""
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def check_tensorboard(wanted: bool) -> None:
    """Raises ValueError if TensorBoard files are wanted, but not TensorFlow, which writes them."""
    if wanted and importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            "config.training.tensorboard is True, but TensorFlow, which writes those files, is not"
            " installed: pip install 'diffax[tensorboard]', or set it to False"
        )


class Writer:
    """Writes to workdir/metrics.jsonl, to the log, each line behind `label`, and, if asked for, to
    workdir/tensorboard. Of several processes only the first writes.

    Raises:
      ValueError: see `check_tensorboard`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        pace: Pace,
        last_step: int = 0,
        tensorboard: bool = False,
        label: str = "",
    ):
        check_tensorboard(tensorboard)
        self._pace, self._label, self._board, self._lines = pace, label, None, None
        if hosts.is_first():
            self._lines = JsonLines(Path(workdir) / "metrics.jsonl", last_step)
            if tensorboard:
                from clu import metric_writers  # imports TensorFlow

                folder = os.fspath(Path(workdir) / "tensorboard")
                self._board = metric_writers.SummaryWriter(folder)

    def _open(self) -> list[Any]:
        return [writer for writer in (self._lines, self._board) if writer is not None]

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of one step; a log line says how far it is, and the time left."""
        for writer in self._open():
            writer.write_scalars(step, scalars)
        if self._lines is not None:
            values = "  ".join(f"{called(name)} {value:.4g}" for name, value in scalars.items())
            _LOG.info("%s%s  %s", self._label, self._pace.at(step), values)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images, (N, H, W, C) uint8, to TensorBoard alone."""
        if self._board is not None:
            self._board.write_images(step, images)

    def close(self) -> None:
        """Flushes and ends."""
        for writer in self._open():
            writer.close()
