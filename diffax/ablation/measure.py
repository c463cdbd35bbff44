"""What is measured: of a training, once, and of each way to sample from it.

A training has a directory of its own, workdir/trainings/<name>/seed<k>, in the form of
`training.workdir`, with these files beside:

    configuration.json     what it depends on: the config without sampling and evaluation
    measured-<hash>.json   what was measured under the evaluation settings of that hash
    together.json          of one that shared a program with other seeds: those, and its share of
                           the seconds
"""

import dataclasses
import functools
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, evaluation, training
from diffax.ablation import store
from diffax.files import jsonable, read_json, replacing, write_json, write_text
from diffax.methods import diffusion_measures
from diffax.metric import Metric
from diffax.training import teachers
from diffax.training.progress import doing
from diffax.training.workdir import read_dataset

_LOG = logging.getLogger("diffax")
NOTE = "together.json"

# Measured on a core, experiments/results/seeds_vectorised.md: several seeds of an MLP take 0.47 to
# 0.96 of the time of each by itself as long as a layer's output, of all seeds, is at most so many
# numbers (512 KiB, about a core's own cache), and up to 1.34 beyond. A U-Net's take 1.7: its
# convolutions, of which each seed has kernels of its own, become grouped ones.
GAINING = {"mlp": 2**17}  # name in config.model -> numbers

# Why trainings may not go together that each by itself may: a form that is refused, a number that
# isn't finite in one of them, a disk or a memory that is full.
_FAILURES = (ValueError, FloatingPointError, OSError, jax.errors.JaxRuntimeError)

GRADIENT_VARIANCE = Metric(
    "grad_variance",
    "Var(gradient)",
    lower_is_better=None,
    scale="log",
    main=False,
    meaning="The variance of a training batch’s gradient by the network’s parameters. It is of"
    " the loss as trained: another weighting or prediction has another scale.",
)
# Of a diffusion model's training; metrics of samples are chosen by config.evaluation.metrics.
METRICS = (*diffusion_measures.METRICS, GRADIENT_VARIANCE)
# Samples kept for the report, from the same starting noise in every arm; points are small.
_SHOWN, _POINTS_SHOWN = 32, 2000
# Held-out examples of the bound along training, where it's the ablation that asks for it: three
# times the whole of a large split would take longer than a short training.
ALONG_TRAINING = 128

# Sections of a config on which no training depends.
AFTER_TRAINING = ("sampling", "evaluation")
_MEASURED = ("metrics", "evaluation", "curves", "seconds")

# curve, its key in metrics.jsonl, its column
LOGGED = (
    ("training_loss", "loss", "loss"),
    ("loss_variance", "loss_variance", "variance"),
    ("gradient_norm", "grad_norm", "norm"),
    ("gradient_variance", "eval_grad_variance", "variance"),
    ("schedule_gradient_variance", "schedule_grad_variance", "variance"),
    ("bound_in_training", "eval_vlb", "bits/dim"),
    ("bound_variance_in_training", "eval_vlb_variance", "variance"),
)


def score_names(config: ConfigDict, dataset: data.Dataset) -> list[str]:
    """The scores of samples that runs of a config have, keys of `evaluation.scores()`."""
    if not config_lib.method_before_data(config).makes_examples:
        return []
    default = "frechet" if evaluation.is_classifiable(dataset) else "swd"
    return list(dict.fromkeys(config.evaluation.metrics or (default,)))


def score_metrics(names: Iterable[str], configs: Sequence[ConfigDict] = ()) -> list[Metric]:
    """A metric for each number of the scores of those names. Its basis is the number of samples in
    `configs`, those of the runs."""
    counts = sorted({config.evaluation.num_samples for config in configs})
    basis = f"{' or '.join(f'{count:,}' for count in counts)} samples" if counts else ""
    numbers = [number for name in names for number in evaluation.numbers(name)]
    return [dataclasses.replace(number, basis=basis) for number in numbers]


def measured_metrics(
    given: Sequence[Metric], configs: Sequence[ConfigDict], dataset: data.Dataset
) -> list[Metric]:
    """The metrics that runs of these configs have, main ones before others.

    Those given come first, then the scores that evaluation.metrics names, then those of `METRICS`
    that the runs have, then the score that is measured if none is named.

    Raises:
      ValueError: a metric is given that the runs don't have.
    """
    named = dict.fromkeys(name for config in configs for name in config.evaluation.metrics)
    names = dict.fromkeys(name for config in configs for name in score_names(config, dataset))
    own = {m.key: m for config in configs for m in metrics_of(config)}.values()
    found = [*score_metrics(named, configs), *own, *score_metrics(names, configs)]
    known = {m.key: m for m in found}
    for metric in given:
        if metric.key not in known and metric not in METRICS:
            raise ValueError(
                f"metric {metric.key!r} is not measured: the runs have {', '.join(known)}; those of"
                " samples are chosen by evaluation.metrics"
            )
    first = {m.key: m for m in given if m.key in known}
    return sorted((first | known | first).values(), key=lambda m: not m.main)


def metrics_of(config: ConfigDict) -> list[Metric]:
    """The metrics of a training with a config, but for those of samples."""
    method = config_lib.method_before_data(config)
    compared = [m for m in method.compared.values() if not m.impossible()]
    own = [metric for measure in compared for metric in measure.metrics]
    if config.evaluation.gradient_batches and method.gradient is not None:
        own.append(GRADIENT_VARIANCE)
    return own


def require_measure(config: ConfigDict) -> None:
    """Raises ValueError, with the reason, if nothing of a training can be measured without samples:
    such as the bound in bits/dim, where the schedule's ends are infinite."""
    reasons = [m.impossible() for m in config_lib.method_before_data(config).compared.values()]
    if reasons and all(reasons):
        raise ValueError(
            f"{reasons[0]}; or name a score of samples, by evaluation.metrics, to judge by"
        )


def plan_scores(configs: Sequence[ConfigDict], dataset: data.Dataset) -> None:
    """Refuses scores that can't be measured, and caches what they need, once for all runs.

    `configs`: those of the runs on that data.

    Raises:
      ValueError: see `evaluation.plan`.
    """
    reference = evaluation.Reference.of(dataset, configs[0].data)
    needs = {}
    for config in configs:
        names = tuple(score_names(config, dataset))
        num = evaluation.number_made(config_lib.method_before_data(config), config, dataset)
        label = evaluation.classes_of_samples(config, dataset, num)
        text = evaluation.captions_of_samples(config, dataset, num)
        key = (names, num, label is None, text is None)
        rows = evaluation.rows_of_samples(dataset, num)
        needs[key] = names, reference, dataset.shape, num, label, text, rows
    for planned in [evaluation.plan(*need) for need in needs.values()]:
        evaluation.prepare(planned, reference)


def training_configuration(config: ConfigDict) -> dict[str, Any]:
    """All that a training depends on, as `store.fingerprint` takes it."""
    whole = run_configuration(config)
    return store.plain({k: v for k, v in whole.items() if k not in AFTER_TRAINING})


def run_configuration(config: ConfigDict) -> dict[str, Any]:
    """All that a run depends on: its config, and what lies in the other runs that it names, if it
    names any, as "content"."""
    content = teachers.contents(config)
    return config_lib.relevant(config) | ({"content": content} if content else {})


def refuse_other_data(config: ConfigDict, directory: Path) -> None:
    """Raises ValueError, naming the differences, if the training in a directory was made on other
    data than the config's data are now. An old training without a fingerprint is not checked."""
    if not (directory / "dataset.json").exists():
        return
    dataset = training.DatasetInfo.of(config_lib.load_data(config))
    changes = read_dataset(directory).changes(dataset)
    if changes:
        raise ValueError(
            f"{directory} holds a training on other data: {'; '.join(changes)}; put back what they"
            " were, choose another --workdir or delete that directory."
        )


def train_and_evaluate(config: ConfigDict, directory: Path) -> tuple[training.Run, dict[str, Any]]:
    """Trains in a directory, if that is not done yet, and measures what no sampling changes.

    Both are done once, and read afterwards. Other evaluation settings measure again.

    Returns:
      The run, with this config, and a dict of
      "metrics": {key: float}, "evaluation": what these depend on, "curves": see
      `analysis.analyse`, "seconds": what training and measuring took, the last attempt alone.

    Raises:
      ValueError: the directory holds a training of another configuration.
    """
    chosen = config.evaluation.to_dict()
    del chosen["metrics"]  # of samples
    settings = store.fingerprint(store.plain(chosen))
    path = directory / f"measured-{settings[:32]}.json"
    store.check_fingerprint(directory, training_configuration(config))
    if path.exists():
        return training.load(directory).under(config), read_json(path, _MEASURED)
    start = time.monotonic()
    store.note_configuration(directory, training_configuration(config))
    training.train(training_config(config), directory)
    # Who evaluates the run again does so by the config, not as was looked at on the way.
    write_text(directory / "config.json", config_lib.to_json(config))
    run = training.load(directory).under(config)
    dataset = config_lib.load_data(config)
    # The seed decides the noise of the evaluation too: shared by all seeds, it would be missing
    # from their spread.
    evaluated = evaluation.compare(run, dataset, config.seed)
    values = {
        metric.key: _number(evaluated[name], name, metric)
        for name in evaluated
        for metric in run.method.compared[name].metrics
    }
    if config.evaluation.gradient_batches and run.method.gradient is not None:
        evaluated["grad_variance"] = evaluation.gradient_variance(run, dataset, config.seed)
        values["grad_variance"] = evaluated["grad_variance"]["grad_variance"]
    with doing("measuring profiles"):
        profiles = evaluation.profiles(run, dataset.eval)
    measured = {
        "metrics": values,
        "evaluation": evaluated,
        "curves": {
            **{name: _curve(directory / name) for name in run.method.curves(run.state)},
            **profiles,
            **_logged_curves(directory),
        },
        "seconds": time.monotonic() - start,
    }
    measured = jsonable(measured, "what was measured")
    write_json(path, measured)
    return run, measured


def _number(entry: dict[str, Any], name: str, metric: Metric) -> Any:
    key = metric.entry or metric.key
    if key not in entry:
        raise ValueError(f"measure {name!r} gives {', '.join(entry)}, and not {key!r}")
    return entry[key]


def training_config(config: ConfigDict) -> ConfigDict:
    """The config of a run's training: the run's own, changed so that its curves have points.

    An eval_every between 0 and num_steps is kept. With any other, what the method logs and the
    variance of the gradient are measured after each third of the training, the former on the first
    `ALONG_TRAINING` examples; if the method logs nothing, neither is measured. log_every is at most
    a third of the training. A sample_every of num_steps or more becomes 0, since samples are drawn
    afterwards.
    """
    config = config_lib.from_json(config_lib.to_json(config))
    settings, evaluated = config.training, config.evaluation
    third = -(-settings.num_steps // 3)
    settings.log_every = min(settings.log_every, third)
    measures = config_lib.method_before_data(config).measures.values()
    logs = any(m.logged and not m.impossible() for m in measures)
    if logs and not 0 < settings.eval_every < settings.num_steps:
        settings.eval_every = third
        evaluated.num_examples = min(evaluated.num_examples or ALONG_TRAINING, ALONG_TRAINING)
    if settings.sample_every >= settings.num_steps:
        settings.sample_every = 0
    return config


def sample_and_score(run: training.Run, directory: Path) -> dict[str, Any]:
    """Draws samples of a run by its config's sampling, measures them and keeps the first.

    Returns:
      "metrics", "evaluation": as `train_and_evaluate`; "samples": the name of a file in
      `directory`, None of a method that draws none; "grid": what is kept of the grid that was
      found for this run, with its cost, None on a fixed one; "parameters": how many the network
      has.
    """
    config = run.config
    dataset = config_lib.load_data(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    found = {"metrics": {}, "evaluation": {}, "samples": None, "grid": None, "parameters": count}
    if not run.method.makes_examples:
        return found
    names = score_names(config, dataset)
    found["grid"] = training.grids.ensure(run)
    num = evaluation.number_made(run.method, config, dataset)
    samples = evaluation.made(run, dataset, num, config.seed)
    evaluated = evaluation.evaluate(run, dataset, names, config.seed, samples)
    values = {n.key: evaluated[name][n.entry] for name in names for n in evaluation.numbers(name)}
    with replacing(directory / "samples.npz") as partial, open(partial, "wb") as file:
        np.savez(file, samples=samples[: num_shown(dataset)])
    return found | {"metrics": values, "evaluation": evaluated, "samples": "samples.npz"}


def operations(config: ConfigDict) -> float | None:
    """`training.operations`, counted once for all seeds; None where XLA counts none."""
    alike = config_lib.changed(config, {"seed": 0})
    return _operations(config_lib.to_json(alike))


@functools.lru_cache(maxsize=64)
def _operations(text: str) -> float | None:
    config = config_lib.from_json(text)
    with doing("counting the operations of a step"):
        counted = training.operations(config, config_lib.load_data(config))
    return counted if math.isfinite(counted) else None


def num_shown(dataset: data.Dataset) -> int:
    """How many samples a report shows."""
    return _SHOWN if len(dataset.shape) > 1 else _POINTS_SHOWN


def _curve(folder: Path) -> dict[str, list]:
    """A method's curve at the end of training, as a run's folder holds it; where it changed, its
    last column also as it was at first, as "<column>_before"."""
    files = sorted(folder.glob("*.json"))
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (files[0], files[-1]))
    *_, column = after
    changed = before[column] != after[column]
    return after | ({f"{column}_before": before[column]} if changed else {})


def _logged_curves(directory: Path) -> dict[str, dict[str, list]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    curves = {}
    for name, key, column in LOGGED:
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            steps, values = zip(*points)
            curves[name] = {"step": list(steps), column: list(values)}
    return curves


# --- seeds of an arm in one program -----------------------------------------------------------


def seeds_at_once(config: ConfigDict, vectorise: bool | None = None) -> int:
    """How many seeds of a config are trained in one program at most; 1: each by itself.

    `vectorise`: None for as many as are faster together, True for all, False for one.
    """
    if vectorise is not None:
        return sys.maxsize if vectorise else 1
    if config.model.name not in GAINING:
        return 1
    width = config.model[config.model.name].width
    return max(1, GAINING[config.model.name] // (width * config.training.batch_size))


def train_together(configs: Sequence[ConfigDict], directories: Sequence[Path]) -> None:
    """Trains in one program the trainings of one arm that are not complete.

    If that is impossible or fails in one of them, all keep their checkpoints, and each is trained
    by itself later.
    """
    left = [
        (c, d)
        for c, d in zip(configs, directories)
        if training.steps_done(d) < c.training.num_steps
    ]
    if len(left) < 2:
        return
    start = time.monotonic()
    for config, directory in left:
        store.note_configuration(directory, training_configuration(config))
    try:
        training.train_together([training_config(c) for c, _ in left], [d for _, d in left])
    except _FAILURES as error:
        _LOG.warning("each seed is trained by itself, since together they can't be: %s", error)
        return
    note = {
        "seeds": [config.seed for config, _ in left],
        "seconds": (time.monotonic() - start) / len(left),
    }
    for _, directory in left:
        write_json(directory / NOTE, note)


def together_note(directory: Path, seed: int) -> dict[str, Any]:
    """{"seeds": those with which a training shared a program, "seconds": its share of that}."""
    path = directory / NOTE
    alone = {"seeds": [seed], "seconds": 0.0}
    return read_json(path, tuple(alone)) if path.exists() else alone
