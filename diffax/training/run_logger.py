"""What the loop keeps of one run: its batches, its metrics, and what it writes to the workdir."""

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import distributed, plots, plugins
from diffax.config import conditions
from diffax.data import Dataset, DatasetInfo
from diffax.data.images import encode_png
from diffax.distributed import SINGLE, RunLayout, hosts
from diffax.files import replacing, write_text
from diffax.methods import Method
from diffax.methods.base import State
from diffax.runtime import the_same
from diffax.training import codecs, progress, writers
from diffax.training.checkpoint import Checkpoints, kept, latest_step
from diffax.training.metric_buffer import MetricBuffer, Trust
from diffax.training.progress import Pace
from diffax.training.workdir import CHECKPOINTS, PLUGINS, as_remembered, check_same_run

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
        if self._memory["data"] is not None:  # as of a run that was imported
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
            write_text(self.root / "config.json", config_lib.to_json(self.config))
            write_text(self.root / "dataset.json", self.dataset.to_json())
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
        boards = writers.boards_of(settings)
        self._writer = writers.Writer(self.root, self.pace, step, boards, self._label, self.config)
        if step == 0:
            count = parameter_overview.count_parameters(state.params)
            progress.detail(f"{self._label}{count:,} parameters")
            seen = codecs.inside(self.config, self.dataset)
            for remark in config_lib.remarks(self.config, seen):
                _LOG.warning("%s%s", self._label, remark)
            write_curves(self.root, self.method, state)

    def log(self, step: int, state: State, train: bool, evaluate: bool, sample: bool) -> None:
        """Writes what is due at a step: training metrics, measures, a picture and curves."""
        scalars = {}
        if train:
            self.latest.pop("skipped_steps", None)  # is there only if there were any
            scalars.update(self.metrics.take_mean())
            if sentence := self.method.notice(scalars):
                _LOG.warning("%sstep %d: %s", self._label, step, sentence)
        if evaluate:
            scalars.update(self._evaluate(state))
        if scalars:
            self._writer.write_scalars(step, scalars)
            self.latest.update(scalars)
        if sample:
            if self._draw_samples is not None:
                with progress.doing("drawing samples"):
                    self._writer.write_images(step, {"samples": self._draw_samples(state)})
            write_curves(self.root, self.method, state)

    def check_finite(self, last: bool) -> None:
        """Raises NonFiniteError, saying which run it is and what is kept, if too many steps in a
        row were not finite."""
        self._trust.see(self.metrics.memory())
        self.metrics.check(last, self._advice)

    def _advice(self, section: str) -> str:
        """Which run it is, what of it is kept and what to change, for the end of a sentence."""
        self.checkpoints.wait()
        where = f" in the run in {self.root}" if self._among_others else ""
        lower = f"{section}.learning_rate={self.config[section].learning_rate:g}"
        return (
            f"{where}; {self._keep_good()}. A lower {lower} usually helps, or a lower"
            f" {section}.clip_norm; with it and config.training.allow_config_change=True"
            f" {the_same()} goes on"
        )

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

    def end(self, state: State) -> None:
        """Writes the last curves, and removes the checkpoints that were kept for the others, and
        until the last was made."""
        self.checkpoints.wait()
        directory = self.checkpoints.directory
        if self._saved is not None and latest_step(directory) != self._saved:
            raise OSError(
                f"the checkpoint of step {self._saved} in {directory} was deleted after it was made"
            )
        steps = self.checkpoints.steps()
        self.checkpoints.remove(steps[: -self.config.training.keep_checkpoints])
        write_curves(self.root, self.method, state)

    def close(self) -> None:
        """Waits until all is written."""
        with contextlib.closing(self.checkpoints):
            if self._writer is not None:
                self._writer.close()


# --- pictures of samples, and a method's curves --------------------------------------------------


def make_drawing(
    config: ConfigDict, method: Method, dataset: Dataset, root: Path, mesh: Mesh
) -> Callable[[State], np.ndarray]:
    """state -> the method's preview, (1, height, width, 1 or 3) uint8, also put in root/samples.

    Of `config.sampling.num_samples` keys and as many examples of the evaluation split. Samples that
    follow their captions or controls have their classes too; else the classes come in turn. The
    noise is the same every time.
    """
    num, split = config.sampling.num_samples, dataset.eval
    batch = split.batch(conditions.example_rows(split, num))
    if not conditions.follow_examples(config):
        batch["label"] = conditions.sample_labels(num, dataset.num_classes)
    keys = jax.random.split(jax.random.key(config.seed), num)
    draw = distributed.jit_over_numbers(method.preview, out_shardings=distributed.replicated(mesh))

    def drawing(state: State) -> np.ndarray:
        pixels = plots.picture(np.asarray(draw(state, keys, batch)))
        if hosts.is_first():
            with replacing(root / "samples" / f"step_{int(state.step):06d}.png") as partial:
                partial.write_bytes(encode_png(pixels))
        return pixels[None]

    return drawing


def write_curves(root: Path, method: Method, state: State) -> None:
    """Writes each of the method's curves to root/<its name>/step_<step>.json."""
    for name, columns in method.curves(state).items():
        path = root / name / f"step_{int(state.step):06d}.json"
        if hosts.is_first():
            write_text(path, json.dumps(columns))
