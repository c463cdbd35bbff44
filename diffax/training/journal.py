"""What the loop keeps of one run: its data, its metrics, and what it writes to the workdir."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import plugins
from diffax.training import hosts, outputs, writers
from diffax.training.checkpoint import Checkpoints, kept
from diffax.training.state import DatasetInfo, TrainState
from diffax.training.vectorised import ALONE, Form
from diffax.training.window import NonFiniteError, Window
from diffax.training.workdir import (
    CHECKPOINTS,
    PLUGINS,
    as_remembered,
    check_same_run,
    write_text,
)

_LOG = logging.getLogger("diffax")


class Journal:
    """One run, but for its arrays: the loop asks it to begin, to look at a state and to save it.

    Args:
      config: of the run.
      root: its workdir, which exists.
      dataset: what is known of its data.
      batches: of `diffax.data.batches`.
      evaluate: state -> what is logged of the bound.
      draw_samples: state -> a picture.
      form: how it lies with other runs; beside others its log lines say its seed, and until the end
        it keeps one more checkpoint than the config says.
    """

    def __init__(
        self,
        config: ConfigDict,
        root: Path,
        dataset: DatasetInfo,
        batches: Any,
        evaluate: Callable[[TrainState], dict[str, float]],
        draw_samples: Callable[[TrainState], np.ndarray],
        form: Form = ALONE,
    ):
        self.config, self.root, self.dataset, self.batches = config, root, dataset, batches
        self._evaluate, self._draw_samples = evaluate, draw_samples
        self._among_others = form.count > 1
        self._label = f"seed {config.seed}: " if self._among_others else ""
        self._open = ExitStack()
        # When one run has saved a step, another may have only the one before.
        keep = config.training.keep_checkpoints + self._among_others
        self.checkpoints = self._open.enter_context(closing(Checkpoints(root / CHECKPOINTS, keep)))
        self._memory: dict[str, Any] = {"window": [], "metrics": {}}

    def restore(self, like: TrainState, sharding: Any, step: int | None = None) -> TrainState:
        """The state at a checkpoint, the latest if left out, and the data as they were then."""
        learned, loop = config_lib.is_learned(like.schedule), self.checkpoints.remembered(step)
        check_same_run(self.root, self.config, self.dataset, learned, loop)
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

    def begin(self, state: TrainState) -> None:
        """Opens the files of the run, which goes on from `state`."""
        if hosts.is_first():
            plugins.keep(self.config.plugins, self.root / PLUGINS)
            write_text(self.root / "config.json", config_lib.to_json(self.config))
            write_text(self.root / "dataset.json", self.dataset.to_json())
        settings, step = self.config.training, int(state.step)
        self.window = Window(self._memory["window"], settings.max_skipped)
        self.latest = dict(self._memory["metrics"])
        writer = writers.create(
            self.root, settings.num_steps, step, settings.tensorboard, self._label
        )
        self._writer = self._open.enter_context(closing(writer))
        if step == 0:
            count = parameter_overview.count_parameters(state.params)
            _LOG.info("%s%s parameters", self._label, f"{count:,}")
            outputs.write_schedule(self.root, state)

    def look(self, step: int, state: TrainState, log: bool, evaluate: bool, sample: bool) -> None:
        """Writes what is due at a step: metrics, the bound, a picture and the schedule."""
        scalars = {}
        if log:
            self.latest.pop("skipped_steps", None)  # is there only if there were any
            scalars.update(self.window.take_mean())
        if evaluate:
            scalars.update(self._evaluate(state))
        if scalars:
            self._writer.write_scalars(step, scalars)
            self.latest.update(scalars)
        if sample:
            self._writer.write_images(step, {"samples": self._draw_samples(state)})
            outputs.write_schedule(self.root, state)

    def check_finite(self, last: bool) -> None:
        """Raises NonFiniteError, saying which run it is and what is kept, if too many steps in a
        row were not finite."""
        try:
            self.window.check(last)
        except NonFiniteError as error:
            self.checkpoints.wait()
            where = f" in the run in {self.root}" if self._among_others else ""
            raise NonFiniteError(
                error.step,
                error.quantity,
                error.value,
                error.log_snr,
                error.skipped,
                f"{where}; {kept(self.checkpoints.directory)}. A lower"
                " optimizer.learning_rate or clip_norm, or more warmup_steps, usually helps",
            ) from None

    def save(self, step: int, state: TrainState, data: Any) -> None:
        """Begins to write a checkpoint; `data`: the state of the batches."""
        memory = {"data": data, "window": self.window.memory(), "metrics": self.latest}
        memory |= as_remembered(self.config, self.dataset)
        self.checkpoints.save(step, state, memory)

    def end(self, state: TrainState) -> None:
        """Writes the last schedule, and removes the checkpoint that was kept for the others."""
        if self._among_others:
            self.checkpoints.wait()
            steps = self.checkpoints.steps()
            self.checkpoints.remove(steps[: -self.config.training.keep_checkpoints])
        outputs.write_schedule(self.root, state)

    def close(self) -> None:
        """Waits until all is written."""
        self._open.close()
