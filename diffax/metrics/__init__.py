"""Metrics of samples: distances between two sets of features, or of points."""

from diffax.metrics.cache import kept
from diffax.metrics.classifier import get_classifier, is_classifiable
from diffax.metrics.extractor import (
    Extractor,
    Features,
    content_hash,
    feature_statistics,
    features,
    logits,
    measured,
    reference_features,
    reference_statistics,
    shuffled,
    width,
)
from diffax.metrics.extrapolation import Extrapolation, fewest_for_infinity, frechet_infinity
from diffax.metrics.frechet import (
    FeatureStatistics,
    HasMoments,
    Moments,
    frechet_distance,
    frechet_distance_to,
    frechet_standard_error,
    normal_interval,
    read_moments,
)
from diffax.metrics.inception_score import InceptionScore, inception_score
from diffax.metrics.kernel import KernelDistance, cubic_kernel, kernel_distance
from diffax.metrics.lpips import (
    LPIPS_NETWORK,
    Diversity,
    diversity_within_classes,
    lpips_distance,
    lpips_diversity,
    require_lpips,
)
from diffax.metrics.neighbours import PRDC, prdc
from diffax.metrics.pretrained import EXTRACTORS, convert_inception, get_extractor, register
from diffax.metrics.sliced import sliced_wasserstein

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
    "Moments",
    "PRDC",
    "content_hash",
    "convert_inception",
    "cubic_kernel",
    "diversity_within_classes",
    "feature_statistics",
    "features",
    "fewest_for_infinity",
    "frechet_distance",
    "frechet_distance_to",
    "frechet_infinity",
    "frechet_standard_error",
    "get_classifier",
    "get_extractor",
    "inception_score",
    "is_classifiable",
    "kept",
    "kernel_distance",
    "logits",
    "lpips_distance",
    "lpips_diversity",
    "measured",
    "normal_interval",
    "prdc",
    "read_moments",
    "reference_features",
    "reference_statistics",
    "register",
    "require_lpips",
    "shuffled",
    "sliced_wasserstein",
    "width",
]
