"""Metrics of samples: distances between two sets of features, or of points."""

from diffax.metrics.classifier import get_classifier, is_classifiable
from diffax.metrics.extractor import (
    Extractor,
    feature_statistics,
    features,
    logits,
    reference_statistics,
)
from diffax.metrics.frechet import FeatureStatistics, bootstrap_frechet, frechet_distance
from diffax.metrics.kernel import KernelDistance, cubic_kernel, kernel_distance
from diffax.metrics.lpips import lpips_distance, lpips_diversity
from diffax.metrics.neighbours import PRDC, prdc
from diffax.metrics.pretrained import EXTRACTORS, convert_inception, get_extractor
from diffax.metrics.sliced import sliced_wasserstein

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "FeatureStatistics",
    "KernelDistance",
    "PRDC",
    "bootstrap_frechet",
    "convert_inception",
    "cubic_kernel",
    "feature_statistics",
    "features",
    "frechet_distance",
    "get_classifier",
    "get_extractor",
    "is_classifiable",
    "kernel_distance",
    "logits",
    "lpips_distance",
    "lpips_diversity",
    "prdc",
    "reference_statistics",
    "sliced_wasserstein",
]
