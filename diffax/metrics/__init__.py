"""Metrics of samples: the Fréchet distance over a classifier's features."""

from diffax.metrics.classifier import (
    Classifier,
    feature_statistics,
    features,
    get_classifier,
    is_classifiable,
    reference_statistics,
)
from diffax.metrics.frechet import FeatureStatistics, bootstrap_frechet, frechet_distance

__all__ = [
    "Classifier",
    "FeatureStatistics",
    "bootstrap_frechet",
    "feature_statistics",
    "features",
    "frechet_distance",
    "get_classifier",
    "is_classifiable",
    "reference_statistics",
]
