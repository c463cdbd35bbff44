"""Metrics of samples: distances between two sets of features, or of points."""

from diffax.metrics.classifier import (
    Classifier,
    feature_statistics,
    features,
    get_classifier,
    is_classifiable,
    reference_statistics,
)
from diffax.metrics.frechet import FeatureStatistics, bootstrap_frechet, frechet_distance
from diffax.metrics.kernel import KernelDistance, cubic_kernel, kernel_distance
from diffax.metrics.neighbours import PRDC, prdc
from diffax.metrics.sliced import sliced_wasserstein

__all__ = [
    "Classifier",
    "FeatureStatistics",
    "KernelDistance",
    "PRDC",
    "bootstrap_frechet",
    "cubic_kernel",
    "feature_statistics",
    "features",
    "frechet_distance",
    "get_classifier",
    "is_classifiable",
    "kernel_distance",
    "prdc",
    "reference_statistics",
    "sliced_wasserstein",
]
