"""Evaluation: of a trained run, and of samples from anywhere.

run = diffax.training.load(workdir)
evaluate(run, diffax.data.load(run.config.data), ["bpd", "frechet"])

reference = Reference.of(diffax.data.load({"name": "digits"}))
score(samples, reference, ["frechet", "kid", "prdc"])

A score is a measure over the features of a network. Over Inception's the Fréchet distance is FID;
over another network's it is not, and has another name. Every number comes with what it depends on.

`distances` compares sets of features, `extractors` and `pretrained` compute features, `measures`
and `scoring` make scores of both, `run` evaluates a trained run.
"""

import importlib
from typing import Any

from diffax.evaluation.distances import (
    PRDC,
    Extrapolation,
    FeatureStatistics,
    HasMoments,
    InceptionScore,
    KernelDistance,
    Moments,
    cubic_kernel,
    fewest_for_infinity,
    frechet_distance,
    frechet_distance_to,
    frechet_infinity,
    frechet_standard_error,
    inception_score,
    kernel_distance,
    normal_interval,
    prdc,
    read_moments,
    sliced_wasserstein,
)
from diffax.evaluation.extractors import (
    Extractor,
    Features,
    feature_statistics,
    features,
    get_classifier,
    is_classifiable,
    logits,
    measured,
    reference_features,
    reference_statistics,
    shuffled,
    width,
)
from diffax.evaluation.measures import (
    MEASURES,
    NUM_PAIRED,
    Measure,
    Metric,
    Reference,
    Samples,
    Seen,
    read_samples,
)
from diffax.evaluation.pretrained import (
    EXTRACTORS,
    LPIPS_NETWORK,
    Diversity,
    convert_inception,
    diversity_within_classes,
    get_extractor,
    lpips_distance,
    lpips_diversity,
    register_extractor,
    require_lpips,
)
from diffax.evaluation.scoring import (
    OTHER_NUMBERS,
    PUBLISHED,
    Planned,
    Score,
    check_names,
    measure,
    numbers,
    pending,
    plan,
    prepare,
    register_measure,
    score,
    scores,
)
from diffax.files import cached, content_hash

__all__ = [
    "Diversity",
    "EXTRACTORS",
    "Extractor",
    "Extrapolation",
    "FeatureStatistics",
    "Features",
    "HasMoments",
    "InceptionScore",
    "KernelDistance",
    "LPIPS_NETWORK",
    "MEASURES",
    "Measure",
    "Metric",
    "Moments",
    "NUM_PAIRED",
    "OTHER_NUMBERS",
    "PRDC",
    "PUBLISHED",
    "Planned",
    "Reference",
    "Samples",
    "Score",
    "Seen",
    "bits_per_dim",
    "bound_along",
    "cached",
    "check_names",
    "classes_told",
    "compare",
    "content_hash",
    "convert_inception",
    "cubic_kernel",
    "diversity_within_classes",
    "draw",
    "evaluate",
    "feature_statistics",
    "features",
    "fewest_for_infinity",
    "frechet_distance",
    "frechet_distance_to",
    "frechet_infinity",
    "frechet_standard_error",
    "get_classifier",
    "get_extractor",
    "gradient_variance",
    "inception_score",
    "is_classifiable",
    "kernel_distance",
    "logits",
    "loss_by_log_snr",
    "lpips_distance",
    "lpips_diversity",
    "measure",
    "measured",
    "measurements",
    "normal_interval",
    "numbers",
    "ode_bits_per_dim",
    "pending",
    "plan",
    "prdc",
    "prepare",
    "profiles",
    "read_moments",
    "read_samples",
    "reference_features",
    "reference_statistics",
    "register_extractor",
    "register_measure",
    "require_lpips",
    "score",
    "scores",
    "shuffled",
    "sliced_wasserstein",
    "width",
]


# What is of a run, imported on first use: `config` checks the names of scores, and a run needs
# `config`.
_OF_RUNS = (
    "bits_per_dim",
    "bound_along",
    "classes_told",
    "compare",
    "draw",
    "evaluate",
    "gradient_variance",
    "loss_by_log_snr",
    "measurements",
    "ode_bits_per_dim",
    "profiles",
)


def __getattr__(name: str) -> Any:
    if name in _OF_RUNS:
        return getattr(importlib.import_module("diffax.evaluation.run"), name)
    raise AttributeError(f"module 'diffax.evaluation' has no attribute {name!r}")
