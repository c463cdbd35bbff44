"""Evaluation of a trained run; every number comes with what it depends on.

run = diffax.training.load(workdir)
evaluate(run, diffax.data.load(run.config.data), ["bpd", "frechet"])
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax import arguments, likelihood, schedules, training
from diffax import config as config_lib
from diffax.data import Dataset, Split
from diffax.evaluation import scoring
from diffax.evaluation.measures import Reference
from diffax.generator import Generator, in_turn
from diffax.process import AnySchedule
from diffax.schedules import ends_of
from diffax.training import Run, parallel, progress

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
      names: keys of `LIKELIHOODS`, or of `scores()`: of samples against the training split.
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
    """`evaluate`, metric by metric: what is called to have each.

    What can be refused beforehand is refused here; the samples are drawn when the first score of
    them is asked for.
    """
    scoring.check_names(names, *LIKELIHOODS)
    seed = arguments.check_seed(seed)
    of_samples = [name for name in names if name not in LIKELIHOODS]
    about = {
        "step": int(run.state.step),
        "weights": f"moving average, decay {run.config.ema.decay:g}",
        "seed": seed,
    }
    if len(of_samples) < len(names):
        schedule = config_lib.acting_schedule(run.config, run.state.schedule)
        config_lib.require_finite_ends(run.config, schedule, "the likelihood (bpd)")
    by_name: dict[str, Callable[[], dict[str, Any]]] = {
        name: functools.partial(LIKELIHOODS[name], run, dataset, seed)
        for name in names
        if name in LIKELIHOODS
    }
    if of_samples:
        reference = Reference.of(dataset, run.config.data)
        num = run.config.evaluation.num_samples if samples is None else len(samples)
        label = classes_told(run.config, dataset, num)
        planned = scoring.plan(of_samples, reference, dataset.shape, num, label)

        def drawn() -> np.ndarray:
            return draw(run, num, seed) if samples is None else np.asarray(samples)

        by_name |= scoring.pending(planned, drawn, reference, seed, label)

    def said(name: str) -> dict[str, Any]:
        sampling = {"sampling": _sampling(run)} if name in of_samples else {}
        return by_name[name]() | sampling | about

    return {name: functools.partial(said, name) for name in names}


def _sampling(run: Run) -> dict[str, Any]:
    """The keys of config.sampling that are set, but for the size of a picture."""
    given = run.config.sampling.to_dict()
    return {k: v for k, v in given.items() if v is not None and k != "num_samples"}


def bits_per_dim(run: Run, dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """The variational bound on the evaluation split, and the variance of its estimate.

    Each example is seen at config.evaluation.repeats noise levels. "bpd" is the mean bound, in
    bits/dim, "prior", "diffusion" and "reconstruction" its terms, "standard_error" that of "bpd"
    as an estimate for the population of images, left out for a single one. "vlb_variance" is the
    variance of the diffusion term of one example at one time, in (bits/dim)^2: what training sees
    (Kingma 2021, figure 4).

    Raises:
      ValueError: a schedule with an infinite end, or one example at one noise level alone.
    """
    config = run.config.evaluation
    num_steps = config.vlb_num_steps or run.config.schedule.num_steps
    mesh = parallel.make_mesh(1)
    bound = training.make_bound(run.config, run.model, run.dataset, dataset.eval, mesh)
    terms = bound(run.state, seed)
    per_example = terms.total.mean(axis=0)
    num = len(per_example)
    if terms.diffusion.size < 2:
        raise ValueError(
            f"evaluation.repeats={config.repeats} with {num} example: the variance of the bound"
            " needs at least 2 values; raise evaluation.repeats or evaluation.num_examples"
        )
    return {
        "bpd": float(per_example.mean()),
        **_standard_error(per_example),
        **{name: float(np.mean(term)) for name, term in terms._asdict().items()},
        "vlb_variance": float(terms.diffusion.var(ddof=1)),
        "num_examples": num,
        "repeats": config.repeats,
        "time": f"{num_steps} steps" if num_steps else "continuous",
        "levels": dataset.levels,
    }


def _standard_error(values: np.ndarray) -> dict[str, float]:
    """That of their mean; {} for a single value, which tells none."""
    if len(values) < 2:
        return {}
    return {"standard_error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def bound_along(run: Run, dataset: Dataset, schedule: AnySchedule, seed: int = 0) -> dict[str, Any]:
    """`bits_per_dim` of a run's network under another schedule than its own.

    In continuous time the bound of a network told the log-SNR depends on the schedule's ends alone:
    with the same ends the mean agrees with the run's own, and the variance is this schedule's.

    Raises:
      ValueError: a network told the step number, which means nothing under another schedule.
    """
    told = config_lib.conditioning(run.config)
    if told != "log_snr":
        raise ValueError(
            f"config.model.{run.config.model.name}.conditioning is {told!r}; only a network told"
            " the 'log_snr' has a bound along another schedule"
        )
    return bits_per_dim(run._replace(state=run.state.replace(schedule=schedule)), dataset, seed)


def bound_along_line(run: Run, dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """`bound_along` the log-SNR-linear schedule with the ends of the run's own.

    One and the same small variance for all runs compares networks more sharply than each one's own
    schedule does.
    """
    first, last = schedules.concrete_ends(run.state.schedule)
    line = schedules.linear_logsnr(log_snr_max=first, log_snr_min=last)
    return bound_along(run, dataset, line, seed)


def gradient_variance(run: Run, dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """The variance of a training batch's gradient by the network's parameters: what noise in the
    data's order, the times and the noise leaves in a step (`training.make_gradient_variance`).

    It is of the loss as trained, so arms of another weighting or prediction have another scale.

    Raises:
      ValueError: config.evaluation.gradient_batches is below 2.
    """
    mesh = parallel.make_mesh(1)
    variance = training.make_gradient_variance(
        run.config, run.model, run.dataset, dataset.train, mesh
    )
    return {
        "grad_variance": variance(run.state, seed),
        "num_batches": run.config.evaluation.gradient_batches,
        "batch_size": run.config.training.batch_size,
        "seed": seed,
    }


def ode_bits_per_dim(run: Run, dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """Bits/dim by the probability-flow ODE on the evaluation split, and its standard error, as in
    `bits_per_dim`.

    By `likelihood.ode_bits_per_dim`: one random probe of the divergence and one dequantisation per
    example, config.evaluation.ode_num_steps steps.

    Raises:
      ValueError: a schedule with an infinite end.
    """
    mesh = parallel.make_mesh(1)
    ode_bits = training.make_ode_bits(run.config, run.model, run.dataset, dataset.eval, mesh)
    (bits,) = ode_bits(run.state, seed)
    return {
        "bpd": float(bits.mean()),
        **_standard_error(bits),
        "num_examples": len(bits),
        "num_steps": run.config.evaluation.ode_num_steps,
        "divergence": "hutchinson, 1 probe",
        "levels": dataset.levels,
    }


# name -> (run, dataset, seed) -> numbers and what they depend on
LIKELIHOODS: dict[str, Callable[[Run, Dataset, int], dict[str, Any]]] = {
    "bpd": bits_per_dim,
    "bpd_vlb": bits_per_dim,  # the same, beside bpd_ode
    "bpd_ode": ode_bits_per_dim,
}


def draw(run: Run, num_samples: int, seed: int = 0, batch_size: int = 500) -> np.ndarray:
    """Samples of a run by its config.sampling, (num_samples, ..., C); see `Generator`."""
    return Generator(run, batch_size, num_devices=1)(num_samples, seed)


def classes_told(config: ConfigDict, dataset: Dataset, num_samples: int) -> np.ndarray | None:
    """The classes that the network is told of what `draw` gives, (num_samples,); None for none."""
    if not config.model.class_conditional:
        return None
    return in_turn(num_samples, dataset.num_classes)


def loss_by_log_snr(
    run: Run, split: Split, num_levels: int = 33, num_examples: int = 512, seed: int = 0
) -> dict[str, list[float]]:
    """E|eps - eps_hat|^2 per dimension at equally spaced log-SNRs: {"log_snr": [], "loss": []}.

    Between the schedule's ends, infinite ones taken at 20 and -20. It compares networks trained
    under different schedules noise level by noise level. In discrete time the nearest index is
    taken.
    """
    schedule = config_lib.acting_schedule(run.config, run.state.schedule)
    first, last = (np.clip(float(end), -20.0, 20.0) for end in ends_of(schedule))
    times = schedule.inverse_log_snr(jnp.linspace(last, first, num_levels))
    indices = np.arange(min(num_examples, len(split)))
    label = None if split.label is None else split.label[indices]
    batch = {"x": split.array(indices), "label": label}

    @jax.jit
    def error(state, t, key):
        predict = training.predictor(
            run.model,
            state.ema_params,
            batch["label"] if run.config.model.class_conditional else None,
            mean_only=run.config.objective.learned_variance,
        )
        x0 = batch["x"]
        noise = jax.random.normal(key, x0.shape)
        t = jnp.broadcast_to(t, x0.shape[:1])
        log_snr = schedule.log_snr(t)
        prediction = run.config.objective.prediction
        errors = likelihood.eps_error(predict, x0, noise, t, log_snr, prediction)
        return log_snr[0], jnp.mean(errors) / math.prod(x0.shape[1:])

    key = arguments.seeded(seed)
    points = [error(run.state, t, jax.random.fold_in(key, i)) for i, t in enumerate(times)]
    return {
        "log_snr": [float(log_snr) for log_snr, _ in points],
        "loss": [float(loss) for _, loss in points],
    }
