"""Evaluation of a trained run; every number comes with what it depends on.

run = diffax.training.load(workdir)
evaluate(run, diffax.data.load(run.config.data), ["bpd", "frechet"])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax import likelihood, metrics, training
from diffax.data import Dataset, Split
from diffax.generator import Generator
from diffax.process import AnySchedule
from diffax.schedules import ends_of
from diffax.training import Run, parallel


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
      dataset: the data that the run was trained on.
      names: keys of `METRICS`.
      seed: of the noise and the samples.
      samples: of this run, by its config.sampling and that seed; drawn if needed and left out.

    Raises:
      ValueError: an unknown name, or what the metric itself refuses.
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metrics={name!r}: allowed are {', '.join(METRICS)}")
    if samples is None and OF_SAMPLES.intersection(names):
        if OF_FEATURES.intersection(names):
            metrics.get_classifier(dataset, seed=0)  # refuses, if it does, before they are drawn
        samples = draw(run, run.config.evaluation.num_samples, seed)
    about = {
        "step": int(run.state.step),
        "weights": f"moving average, decay {run.config.ema.decay:g}",
        "seed": seed,
    }
    return {name: METRICS[name](run, dataset, seed, samples) | about for name in names}


def bits_per_dim(
    run: Run, dataset: Dataset, seed: int = 0, samples: np.ndarray | None = None
) -> dict[str, Any]:
    """The variational bound on the evaluation split, and the variance of its estimate.

    Each example is seen at config.evaluation.repeats noise levels. "bpd" is the mean bound, in
    bits/dim, "prior", "diffusion" and "reconstruction" its terms, "standard_error" that of "bpd"
    as an estimate for the population of images. "vlb_variance" is the variance of the diffusion
    term of one example at one time, in (bits/dim)^2: what training sees (Kingma 2021, figure 4).
    Samples play no part.

    Raises:
      ValueError: a schedule with an infinite end.
    """
    config = run.config.evaluation
    mesh = parallel.make_mesh(1)
    bound = training.make_bound(run.config, run.model, run.dataset, dataset.eval, mesh)
    terms = bound(run.state, seed)
    per_example = terms.total.mean(axis=0)
    num = len(per_example)
    return {
        "bpd": float(per_example.mean()),
        "standard_error": float(per_example.std(ddof=1) / math.sqrt(num)),
        **{name: float(np.mean(term)) for name, term in terms._asdict().items()},
        "vlb_variance": float(terms.diffusion.var(ddof=1)),
        "num_examples": num,
        "repeats": config.repeats,
        "time": f"{config.vlb_num_steps} steps" if config.vlb_num_steps else "continuous",
        "levels": dataset.levels,
    }


def bound_along(run: Run, dataset: Dataset, schedule: AnySchedule, seed: int = 0) -> dict[str, Any]:
    """`bits_per_dim` of a run's network under another schedule than its own.

    In continuous time the bound of a network told the log-SNR depends on the schedule's ends alone:
    with the same ends the mean agrees with the run's own, and the variance is this schedule's.

    Raises:
      ValueError: a network told the step number, which means nothing under another schedule.
    """
    if run.config.model.conditioning != "log_snr":
        raise ValueError(
            f"config.model.conditioning is {run.config.model.conditioning!r}; only a network told"
            " the 'log_snr' has a bound along another schedule"
        )
    return bits_per_dim(run._replace(state=run.state.replace(schedule=schedule)), dataset, seed)


def ode_bits_per_dim(
    run: Run, dataset: Dataset, seed: int = 0, samples: np.ndarray | None = None
) -> dict[str, Any]:
    """Bits/dim by the probability-flow ODE on the evaluation split, and its standard error.

    By `likelihood.ode_bits_per_dim`: one random probe of the divergence and one dequantisation per
    example, config.evaluation.ode_num_steps steps. Samples play no part.

    Raises:
      ValueError: a schedule with an infinite end.
    """
    mesh = parallel.make_mesh(1)
    ode_bits = training.make_ode_bits(run.config, run.model, run.dataset, dataset.eval, mesh)
    (bits,) = ode_bits(run.state, seed)
    return {
        "bpd": float(bits.mean()),
        "standard_error": float(bits.std(ddof=1) / math.sqrt(len(bits))),
        "num_examples": len(bits),
        "num_steps": run.config.evaluation.ode_num_steps,
        "divergence": "hutchinson, 1 probe",
        "levels": dataset.levels,
    }


def frechet(
    run: Run, dataset: Dataset, seed: int = 0, samples: np.ndarray | None = None
) -> dict[str, Any]:
    """Fréchet distance of samples to the training split, over a classifier's features.

    The classifier is trained once on the data set and cached (see `diffax.metrics.get_classifier`);
    its accuracy on the evaluation split is "classifier_accuracy". "low" and "high" are a bootstrap
    interval over the samples, "floor" the distance of the evaluation split to the training split.

    Raises:
      ValueError: data without labels, or data that are no images.
    """
    classifier, features, samples = _features(run, dataset, seed, samples)
    reference = metrics.reference_statistics(classifier, dataset.train)
    low, high = metrics.bootstrap_frechet(features, reference, seed=seed)
    floor = metrics.feature_statistics(classifier, dataset.eval.array())
    return {
        "frechet": metrics.frechet_distance(metrics.FeatureStatistics.of(features), reference),
        "low": low,
        "high": high,
        "floor": metrics.frechet_distance(floor, reference),
        **_about_features(classifier),
        **_about_samples(run, dataset, samples),
    }


def kernel_distance(
    run: Run, dataset: Dataset, seed: int = 0, samples: np.ndarray | None = None
) -> dict[str, Any]:
    """KID of samples to the training split, over a classifier's features.

    By `metrics.kernel_distance`, of the samples and as many training examples; "floor" is that of
    the evaluation split to these.

    Raises:
      ValueError: data without labels, or data that are no images.
    """
    classifier, features, samples = _features(run, dataset, seed, samples)
    reference = _as_many(classifier, dataset.train, samples)
    floor = _as_many(classifier, dataset.eval, samples)
    blocks = min(20, len(features) // 2, len(reference) // 2, len(floor) // 2)
    found = metrics.kernel_distance(features, reference, blocks=blocks)
    return {
        "kid": found.value,
        "standard_error": found.standard_error,
        "floor": metrics.kernel_distance(floor, reference, blocks=blocks).value,
        **_about_features(classifier),
        **_about_samples(run, dataset, samples, len(reference)),
    }


def prdc(
    run: Run, dataset: Dataset, seed: int = 0, samples: np.ndarray | None = None, k: int = 5
) -> dict[str, Any]:
    """Precision, recall, density and coverage over a classifier's features: `metrics.prdc`.

    Of the samples and as many training examples, since the four depend on the numbers.

    Raises:
      ValueError: data without labels, or data that are no images.
    """
    classifier, features, samples = _features(run, dataset, seed, samples)
    reference = _as_many(classifier, dataset.train, samples)
    num = len(reference)
    return {
        **metrics.prdc(features[:num], reference, k)._asdict(),
        "neighbours": k,
        **_about_features(classifier),
        **_about_samples(run, dataset, samples[:num], num),
    }


def sliced_wasserstein(
    run: Run, dataset: Dataset, seed: int = 0, samples: np.ndarray | None = None
) -> dict[str, Any]:
    """Of samples to the training split, on the data's own values: `metrics.sliced_wasserstein`.

    "floor" is that of the evaluation split to the training split. Any data will do.
    """
    samples = _samples(run, seed, samples)
    train = dataset.train.array()
    return {
        "swd": metrics.sliced_wasserstein(samples, train, seed=seed),
        "floor": metrics.sliced_wasserstein(dataset.eval.array(), train, seed=seed),
        **_about_samples(run, dataset, samples),
    }


def _samples(run: Run, seed: int, samples: np.ndarray | None) -> np.ndarray:
    if samples is None:
        samples = draw(run, run.config.evaluation.num_samples, seed)
    return np.asarray(samples)


def _features(
    run: Run, dataset: Dataset, seed: int, samples: np.ndarray | None
) -> tuple[metrics.Extractor, np.ndarray, np.ndarray]:
    """The classifier, and its features of the samples, which are drawn if not given."""
    classifier = metrics.get_classifier(dataset, seed=0)
    samples = _samples(run, seed, samples)
    return classifier, metrics.features(classifier, samples), samples


def _as_many(classifier: metrics.Extractor, split: Split, samples: np.ndarray) -> np.ndarray:
    """The features of a split's first examples, as many as there are samples if it has them."""
    indices = np.arange(min(len(samples), len(split)))
    return metrics.features(classifier, split.array(indices))


def _about_features(extractor: metrics.Extractor) -> dict[str, Any]:
    return {
        "features": extractor.name,
        "features_fingerprint": extractor.fingerprint,
        **extractor.about,
    }


def _about_samples(
    run: Run, dataset: Dataset, samples: np.ndarray, num_reference: int | None = None
) -> dict[str, Any]:
    num, sampling = num_reference or len(dataset.train), run.config.sampling
    return {
        "num_samples": len(samples),
        "reference": f"{dataset.name}, {run.config.data.train_split}, {num} examples",
        "sampler": sampling.sampler,
        "num_steps": sampling.num_steps,
        "grid": sampling.grid,
    }


# name -> (run, dataset, seed, samples) -> numbers and what they depend on
METRICS: dict[str, Callable[[Run, Dataset, int, np.ndarray | None], dict[str, Any]]] = {
    "bpd": bits_per_dim,
    "bpd_vlb": bits_per_dim,  # the same, beside bpd_ode
    "bpd_ode": ode_bits_per_dim,
    "frechet": frechet,
    "kid": kernel_distance,
    "prdc": prdc,
    "swd": sliced_wasserstein,
}
OF_FEATURES = frozenset(("frechet", "kid", "prdc"))
OF_SAMPLES = OF_FEATURES | {"swd"}


def draw(run: Run, num_samples: int, seed: int = 0, batch_size: int = 500) -> np.ndarray:
    """Samples of a run by its config.sampling, (num_samples, ..., C); see `Generator`."""
    return Generator(run, batch_size, num_devices=1)(num_samples, seed)


def loss_by_log_snr(
    run: Run, split: Split, num_levels: int = 33, num_examples: int = 512, seed: int = 0
) -> dict[str, list[float]]:
    """E|eps - eps_hat|^2 per dimension at equally spaced log-SNRs: {"log_snr": [], "loss": []}.

    Between the schedule's ends, infinite ones taken at 20 and -20. It compares networks trained
    under different schedules noise level by noise level. In discrete time the nearest index is
    taken.
    """
    schedule = run.state.schedule
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
        log_snr = state.schedule.log_snr(t)
        prediction = run.config.objective.prediction
        errors = likelihood.eps_error(predict, x0, noise, t, log_snr, prediction)
        return log_snr[0], jnp.mean(errors) / math.prod(x0.shape[1:])

    key = jax.random.key(seed)
    points = [error(run.state, t, jax.random.fold_in(key, i)) for i, t in enumerate(times)]
    return {
        "log_snr": [float(log_snr) for log_snr, _ in points],
        "loss": [float(loss) for _, loss in points],
    }
