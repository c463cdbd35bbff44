"""What the loop keeps of one run: its batches, its metrics, and what it writes to the workdir."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import plugins
from diffax.data import DatasetInfo
from diffax.distributed import SINGLE, RunLayout, hosts
from diffax.files import write_text
from diffax.methods import Method
from diffax.methods.base import State
from diffax.training import pictures, progress, writers
from diffax.training.checkpoint import Checkpoints, kept, latest_step
from diffax.training.metric_buffer import MetricBuffer, NonFiniteError
from diffax.training.progress import Pace
from diffax.training.trust import Trust
from diffax.training.workdir import (
    CHECKPOINTS,
    PLUGINS,
    as_remembered,
    check_same_run,
)

_LOG = logging.getLogger("diffax")


class RunLogger:
    """One run without its arrays: the loop asks it to begin, to log a state and to save it.

    Args:
      config: of the run.
      root: its workdir, which exists.
      method: what is trained.
      dataset: what is known of its data.
      batches: of `diffax.data.batches`.
      evaluate: state -> what is logged of the measures.
      draw_samples: state -> a picture; None of a method that has none.
      layout: of the runs of the program; beside others its log lines name its seed, and until the
        end it keeps one more checkpoint than the config says.
    """

    def __init__(
        self,
        config: ConfigDict,
        root: Path,
        method: Method,
        dataset: DatasetInfo,
        batches: Any,
        evaluate: Callable[[State], dict[str, float]],
        draw_samples: Callable[[State], np.ndarray] | None,
        layout: RunLayout = SINGLE,
    ):
        self.config, self.root, self.method = config, root, method
        self.dataset, self.batches = dataset, batches
        self._evaluate, self._draw_samples = evaluate, draw_samples
        self._among_others = layout.count > 1
        self._label = f"seed {config.seed}: " if self._among_others else ""
        self._writer: writers.Writer | None = None  # until the run begins
        # When one run has saved a step, another may have only the one before.
        keep = config.training.keep_checkpoints + self._among_others
        self.checkpoints = Checkpoints(root / CHECKPOINTS, keep)
        self._memory: dict[str, Any] = {"window": [], "metrics": {}}
        self._saved: int | None = None  # the last step that was, by this process

    def restore(self, like: State, sharding: Any, step: int | None = None) -> State:
        """The state at a checkpoint, the latest if left out, and the data as they were then."""
        rates = {bound.section for bound in self.method.required_finite.values()}
        loop = self.checkpoints.remembered(step)
        check_same_run(self.root, self.config, self.dataset, rates, loop)
        state, self._memory = self.checkpoints.restore(like, sharding, step)
        self.batches.set_state(self._memory["data"])
        num = self.config.training.num_steps
        if state.step > num:
            raise ValueError(
                f"training.num_steps is {num}, but the run in {self.root} is at step {state.step}"
                " already: set it to that or more, or take another workdir"
            )
        _LOG.info("%sresuming at step %d of %d", self._label, state.step, num)
        return state

    def begin(self, state: State) -> None:
        """Opens the files of the run, which goes on from `state`."""
        if hosts.is_first():
            plugins.keep(self.config.plugins, self.root / PLUGINS)
        self._texts = {
            "config.json": config_lib.to_json(self.config),
            "dataset.json": self.dataset.to_json(),
        }
        for name, text in self._texts.items():
            if hosts.is_first():
                write_text(self.root / name, text)
        settings, step = self.config.training, int(state.step)
        self._begun = step
        self.metrics = MetricBuffer(self.method, self._memory["window"], settings.max_skipped)
        steps, trusted = self.checkpoints.steps(), self._memory.get("trusted")
        trusted = trusted if trusted in steps else None
        # Of a run without this memory all are in doubt until a step was good.
        doubted = [s for s in steps if trusted is None or s > trusted]
        self._trust = Trust(self.method.required_finite, trusted, doubted)
        self.latest = dict(self._memory["metrics"])
        self.pace = Pace(settings.num_steps, step)
        self._writer = writers.Writer(self.root, self.pace, step, settings.tensorboard, self._label)
        if step == 0:
            count = parameter_overview.count_parameters(state.params)
            progress.detail(f"{self._label}{count:,} parameters")
            for remark in config_lib.remarks(self.config, self.dataset):
                _LOG.warning("%s%s", self._label, remark)
            pictures.write_curves(self.root, self.method, state)

    def log(self, step: int, state: State, train: bool, evaluate: bool, sample: bool) -> None:
        """Writes what is due at a step: training metrics, measures, a picture and curves."""
        scalars = {}
        if train:
            self.latest.pop("skipped_steps", None)  # is there only if there were any
            scalars.update(self.metrics.take_mean())
        if evaluate:
            scalars.update(self._evaluate(state))
        if scalars:
            self._writer.write_scalars(step, scalars)
            self.latest.update(scalars)
        if sample:
            if self._draw_samples is not None:
                with progress.doing("drawing samples"):
                    self._writer.write_images(step, {"samples": self._draw_samples(state)})
            pictures.write_curves(self.root, self.method, state)

    def check_finite(self, last: bool) -> None:
        """Raises NonFiniteError, saying which run it is and what is kept, if too many steps in a
        row were not finite."""
        self._trust.see(self.metrics.memory())
        try:
            self.metrics.check(last)
        except NonFiniteError as error:
            self.checkpoints.wait()
            where = f" in the run in {self.root}" if self._among_others else ""
            raise error.of_run(f"{where}; {self._keep_good()}", self.config) from None

    def _keep_good(self) -> str:
        """Puts aside what this process has saved since the run was known to train; words on what is
        kept. Where it has gone on from a checkpoint in doubt, another config may be at fault, so
        that one stays too."""
        trusted, directory = self._trust.step, self.checkpoints.directory
        if trusted is None:
            return kept(directory)
        here = [step for step in self._trust.doubted if step > self._begun]
        self.checkpoints.put_aside(here, "diverged")
        latest = latest_step(directory)
        if latest == trusted:
            return kept(directory)
        return (
            f"{kept(directory)}, and that of step {trusted}, the last that is known to train: with"
            f" {directory / str(latest)} moved away the run goes on from an earlier one"
        )

    def save(self, step: int, state: State, data: Any) -> None:
        """Begins to write a checkpoint; `data`: the state of the batches. After `check_finite`."""
        self.checkpoints.trusted = self._trust.step
        self._restore_files()
        memory = {
            "data": data,
            "window": self.metrics.memory(),
            "metrics": self.latest,
            "trusted": self._trust.step,
            **as_remembered(self.config, self.dataset),
        }
        self.checkpoints.save(step, state, memory)
        self._trust.saved(step)
        self._saved = step

    def _restore_files(self) -> None:
        """Writes again what was deleted or changed while the run goes on, and says so."""
        self._writer.flush()
        for name, text in self._texts.items():
            path = self.root / name
            if hosts.is_first() and (not path.exists() or path.read_text(encoding="utf-8") != text):
                _LOG.warning(
                    "%s was deleted or changed while its run goes on; it is written again", path
                )
                write_text(path, text)

    def end(self, state: State) -> None:
        """Writes the last curves, and removes the checkpoints that were kept for the others, and
        until the last was made."""
        self.checkpoints.wait()
        directory = self.checkpoints.directory
        if self._saved is not None and latest_step(directory) != self._saved:
            raise OSError(
                f"the checkpoint of step {self._saved} in {directory} was deleted after it was made"
            )
        self._restore_files()
        steps = self.checkpoints.steps()
        self.checkpoints.remove(steps[: -self.config.training.keep_checkpoints])
        pictures.write_curves(self.root, self.method, state)

    def close(self) -> None:
        """Waits until all is written."""
        with contextlib.closing(self.checkpoints):
            if self._writer is not None:
                self._writer.close()
