"""Evaluation of a trained run; every number comes with what it depends on.

run = diffax.training.load(workdir)
evaluate(run, diffax.data.load(run.config.data), ["bpd", "frechet"])
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax import arguments, distributed, training
from diffax.config import conditions
from diffax.data import Dataset, Split
from diffax.evaluation import scoring
from diffax.evaluation.measures import Reference
from diffax.generator import Generator
from diffax.methods import Method
from diffax.training import Run, latents, measuring, progress

_LOG = logging.getLogger("diffax")


def evaluate(
    run: Run,
    dataset: Dataset,
    names: Sequence[str] = ("bpd", "frechet"),
    seed: int = 0,
    samples: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """The metrics of that name, each a dict of numbers and of what they depend on; JSON-able.

    Args:
      run: see `diffax.training.load`; its config.evaluation holds the sizes.
      dataset: the data that the run was trained on; if they have changed since, the log says so.
      names: measures of the run's method, such as "bpd", or keys of `scores()`: of samples against
        the training split.
      seed: of the noise and the samples.
      samples: of this run, by its config.sampling and that seed; drawn if needed and left out.

    Raises:
      ValueError: an unknown name, or what the metric itself refuses.
    """
    if changes := run.dataset.changes(training.DatasetInfo.of(dataset)):
        _LOG.warning("the run was trained on other data: %s", "; ".join(changes))
    found = {}
    for name, measure in measurements(run, dataset, names, seed, samples).items():
        with progress.doing(f"measuring {name}"):
            found[name] = measure()
    return found


def measurements(
    run: Run,
    dataset: Dataset,
    names: Sequence[str],
    seed: int = 0,
    samples: np.ndarray | None = None,
) -> dict[str, Callable[[], dict[str, Any]]]:
    """`evaluate`, one function for each metric, which measures when it is called.

    What can be refused beforehand is refused here; the samples are drawn when the first score of
    them is asked for.
    """
    scoring.check_names(names, *run.method.measures)
    seed = arguments.check_seed(seed)
    of_samples = [name for name in names if name not in run.method.measures]
    about, by_name = _about(run, seed), {}
    if own := [name for name in names if name not in of_samples]:
        within, seen = latents.within(run, dataset)
        by_name = {name: measure_of(within, name, seen.eval, seed) for name in own}
    if of_samples:
        if not run.method.makes_examples:
            raise ValueError(
                f"{of_samples[0]!r} is a score of samples, and method {run.config.method.name!r}"
                f" draws none: it has {', '.join(run.method.measures)}"
            )
        reference = Reference.of(dataset, run.config.data)
        num = number_made(run.method, run.config, dataset) if samples is None else len(samples)
        label = classes_of_samples(run.config, dataset, num)
        text = captions_of_samples(run.config, dataset, num)
        rows = rows_of_samples(dataset, num)
        planned = scoring.plan(of_samples, reference, dataset.shape, num, label, text, rows)

        def drawn() -> np.ndarray:
            return made(run, dataset, num, seed) if samples is None else np.asarray(samples)

        by_name |= scoring.pending(planned, drawn, reference, seed, label, text, rows)

    def said(name: str) -> dict[str, Any]:
        sampling = {}
        if name in of_samples:
            draws = run.method.sample is not None
            sampling = {"sampling": _sampling(run)} if draws else {"of": "reconstructions"}
        return by_name[name]() | sampling | about

    return {name: functools.partial(said, name) for name in names}


def _sampling(run: Run) -> dict[str, Any]:
    """The keys of config.sampling that are set, but for the size of a picture."""
    given = run.config.sampling.to_dict()
    return {k: v for k, v in given.items() if v is not None and k != "num_samples"}


def measure_of(run: Run, name: str, split: Split, seed: int = 0) -> Callable[[], dict[str, Any]]:
    """A function that returns a measure of the run's method on a split: numbers and what they
    depend on. See `methods.diffusion_measures.Measures` for those of a diffusion model.

    Raises:
      ValueError: the method has no such measure, or it is impossible of this run.
    """
    arrays = measuring.measure_on(run.method, name, run.config, split, distributed.make_mesh(1))
    return lambda: run.method.measures[name].summary(arrays(run.state, seed))


def compare(
    run: Run, dataset: Dataset, seed: int = 0, names: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """The measures by which an ablation compares runs, on the evaluation split, as `evaluate`.

    Those that are impossible of this run are left out. `names`: of some of them.
    """
    found, mesh = {}, distributed.make_mesh(1)
    within, seen = latents.within(run, dataset)
    for name in within.method.compared if names is None else names:
        measure = within.method.compared[name]
        if not measure.impossible():
            with progress.doing(f"measuring {name}"):
                arrays = measuring.over_split(run.config, measure, seen.eval, mesh)
                found[name] = measure.summary(arrays(run.state, seed)) | _about(run, seed)
    return found


def _about(run: Run, seed: int) -> dict[str, Any]:
    return {
        "step": int(run.state.step),
        "weights": f"moving average, decay {run.config.ema.decay:g}",
        "seed": seed,
    }


def bits_per_dim(run: Run, dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """`measure_of` "bpd", the variational bound on the evaluation split."""
    return measure_of(run, "bpd", dataset.eval, seed)()


def gradient_variance(run: Run, dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """The variance of a training batch's gradient by the network's parameters: what noise in the
    data's order, the times and the noise leaves in a step (`training.make_gradient_variance`).

    It is of the loss as trained, so arms of another weighting or prediction have another scale.

    Raises:
      ValueError: config.evaluation.gradient_batches is below 2.
    """
    size, num = run.config.training.batch_size, run.config.evaluation.gradient_batches
    mesh = distributed.make_mesh(1)
    within, seen = latents.within(run, dataset)
    split = conditions.encoded(run.config, seen.train)
    variance = training.make_gradient_variance(within.method, split, mesh, size, num)
    value = variance(run.state, seed)
    return {"grad_variance": value, "num_batches": num, "batch_size": size, "seed": seed}


def draw(
    run: Run,
    num_samples: int,
    seed: int = 0,
    dataset: Dataset | None = None,
    batch_size: int = 500,
) -> np.ndarray:
    """Samples of a run by its config.sampling, (num_samples, ..., C); see `Generator`.

    `dataset`: that the run was trained on, whose evaluation split gives the captions of a network
    that takes them, and the classes of the same examples; see `captions_of_samples` and
    `classes_of_samples`. Controls are those of its examples in turn.
    """
    asked = {}
    if dataset is not None:
        asked["label"] = classes_of_samples(run.config, dataset, num_samples)
        asked["text"] = captions_of_samples(run.config, dataset, num_samples)
    return Generator(run, batch_size, num_devices=1)(num_samples, seed, **asked)


def number_made(method: Method, config: ConfigDict, dataset: Dataset) -> int:
    """How many examples `made` gives for the scores of a run."""
    num = config.evaluation.num_samples
    return num if method.sample is not None else min(num, len(dataset.eval))


def made(run: Run, dataset: Dataset, num: int, seed: int = 0) -> np.ndarray:
    """`num` samples of a run, as `draw`; of a method that draws none but reconstructs, its
    reconstructions of the first examples of the evaluation split, whatever the seed.

    The distance of reconstructions to the training split is to be read beside its "floor", that of
    the examples themselves.
    """
    if run.method.sample is not None:
        return draw(run, num, seed, dataset)
    size, mesh = run.config.evaluation.batch_size, distributed.make_mesh(1)
    return measuring.reconstructions(run.method, dataset.eval, num, size, mesh)(run.state)


def rows_of_samples(dataset: Dataset, num_samples: int) -> np.ndarray:
    """The numbers of the held-out examples whose controls the samples of `draw` follow, or are held
    against where the network follows none."""
    return conditions.example_rows(dataset.eval, num_samples)


def classes_of_samples(config: ConfigDict, dataset: Dataset, num_samples: int) -> np.ndarray | None:
    """The classes that condition the samples of `draw`, (num_samples,); None if there are none.

    Samples with the captions or the controls of held-out examples have the classes of the same
    examples.
    """
    if not config.model.class_conditional:
        return None
    followed = dataset.eval if conditions.follow_examples(config) else None
    return conditions.sample_labels(num_samples, dataset.num_classes, followed)


def captions_of_samples(config: ConfigDict, dataset: Dataset, num_samples: int) -> list[str] | None:
    """The captions that condition the samples of `draw`, a list: those of the evaluation split in
    turn; None if there are none."""
    if not config.condition.text:
        return None
    return conditions.captions_in_turn(dataset.eval, num_samples)


def profiles(
    run: Run, split: Split, num_examples: int = 512, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """The method's profiles on the first examples of a split: name -> {column: numbers}."""
    split = conditions.encoded(run.config, split)
    batch = split.batch(np.arange(min(num_examples, len(split))))
    return {name: profile(run.state, batch, seed) for name, profile in run.method.profiles.items()}
