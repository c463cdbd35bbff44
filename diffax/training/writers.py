"""Where metrics go: a JSON Lines file always, log lines, and TensorBoard or Weights & Biases."""

import importlib.util
import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffax.files import write_text
from diffax.places import in_bucket, path_of
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
        self._path, self._text = path, "".join(json.dumps(line) + "\n" for line in kept)
        write_text(path, self._text)
        self._file = None if in_bucket(path) else open(path, "a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        values = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        line = json.dumps({"step": int(step), **values}) + "\n"
        if self._file is None:  # an object of a bucket can't be appended to
            self._text += line
            write_text(self._path, self._text)
        else:
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_json_lines(path: str | os.PathLike) -> list[dict[str, float | None]]:
    """The lines that `JsonLines` wrote, without a last one that was cut off; [] without a file.

    Raises:
      ValueError: another line is not JSON.
    """
    path = path_of(path)
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


class WeightsAndBiases:
    """A run of Weights & Biases, by its own library: metrics by step, and pictures of samples.

    The library's own variables apply: WANDB_PROJECT ("diffax" if it isn't set), WANDB_MODE=offline
    and others. A workdir keeps the identifier of its run, so that a run that resumes goes on there
    under the same name.
    """

    def __init__(self, workdir: Path, config: ConfigDict | None):
        import wandb

        self._image = wandb.Image
        identifier = workdir / "wandb_id.txt"
        if not identifier.exists():
            write_text(identifier, secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "diffax"),
            id=identifier.read_text(encoding="utf-8").strip(),
            name=workdir.name,
            dir=None if in_bucket(workdir) else os.fspath(workdir),
            config=config.to_dict() if config is not None else None,
            resume="allow",
            reinit="create_new",  # several runs may be trained in one program
        )
        # After a restart some steps come again, which the library's own counter would refuse.
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": int(step), **{name: float(v) for name, v in scalars.items()}})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        shown = {name: [self._image(_pixels(x)) for x in batch] for name, batch in images.items()}
        self._run.log({"step": int(step), **shown})

    def close(self) -> None:
        self._run.finish()


def _pixels(x: np.ndarray) -> np.ndarray:
    return x[..., 0] if x.shape[-1] == 1 else x


def _tensorboard(workdir: Path, config: ConfigDict | None) -> Any:
    from clu import metric_writers  # imports TensorFlow

    return metric_writers.SummaryWriter(os.fspath(workdir / "tensorboard"))


class Board(NamedTuple):
    """A place besides the workdir's files where metrics can be seen.

    Attributes:
      title: what a person calls it.
      package: what must be installed, and is imported when the board is opened.
      open: (workdir, config) -> a writer with write_scalars, write_images and close.
    """

    title: str
    package: str
    open: Callable[[Path, ConfigDict | None], Any]


# By the key of `config.training` that asks for it, and the extra of diffax that installs it.
BOARDS = {
    "tensorboard": Board("TensorFlow, which writes those files,", "tensorflow", _tensorboard),
    "wandb": Board("the library of Weights & Biases", "wandb", WeightsAndBiases),
}


def boards_of(settings: ConfigDict) -> tuple[str, ...]:
    """The names in `BOARDS` that `config.training` asks for."""
    return tuple(name for name in BOARDS if settings[name])


def check_boards(settings: ConfigDict) -> None:
    """Raises ValueError if a board is asked for, but what writes it isn't installed."""
    for name in boards_of(settings):
        if importlib.util.find_spec(BOARDS[name].package) is None:
            raise ValueError(
                f"config.training.{name} is True, but {BOARDS[name].title} is not installed:"
                f" pip install 'diffax[{name}]', or set it to False"
            )


class Writer:
    """Writes to workdir/metrics.jsonl, to the log, each line behind `label`, and to the boards that
    are named. Of several processes only the first writes."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        pace: Pace,
        last_step: int = 0,
        boards: Sequence[str] = (),
        label: str = "",
        config: ConfigDict | None = None,
    ):
        self._pace, self._label, self._boards, self._lines = pace, label, [], None
        if hosts.is_first():
            workdir = path_of(workdir)
            self._lines = JsonLines(workdir / "metrics.jsonl", last_step)
            self._boards = [BOARDS[name].open(workdir, config) for name in boards]

    def _open(self) -> list[Any]:
        return self._boards if self._lines is None else [self._lines, *self._boards]

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of one step; a log line says how far it is, and the time left."""
        for writer in self._open():
            writer.write_scalars(step, scalars)
        if self._lines is not None:
            values = "  ".join(f"{called(name)} {value:.4g}" for name, value in scalars.items())
            _LOG.info("%s%s  %s", self._label, self._pace.at(step), values)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images, (N, H, W, C) uint8, to the boards alone."""
        for board in self._boards:
            board.write_images(step, images)

    def close(self) -> None:
        """Flushes and ends."""
        for writer in self._open():
            writer.close()
