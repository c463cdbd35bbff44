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

# module -> its public names. They are imported on first use: `config` checks the names of scores,
# and `run` needs `config`.
_PUBLIC = {
    "distances": "PRDC Extrapolation FeatureStatistics InceptionScore KernelDistance Moments"
    " cubic_kernel fewest_for_infinity frechet_distance frechet_distance_to"
    " frechet_infinity frechet_standard_error inception_score kernel_distance normal_interval prdc"
    " read_moments sliced_wasserstein",
    "extractors": "Extractor Features feature_statistics features get_classifier is_classifiable"
    " logits measured reference_features reference_statistics shuffled width",
    "measures": "MEASURES NUM_PAIRED Measure Metric Reference Samples Seen read_samples",
    "pretrained": "EXTRACTORS LPIPS_NETWORK Diversity convert_inception diversity_within_classes"
    " get_extractor lpips_distance lpips_of register_extractor require_lpips",
    "run": "bits_per_dim captions_of_samples classes_of_samples compare draw evaluate"
    " gradient_variance made measurements number_made profiles rows_of_samples",
    "scoring": "OTHER_NUMBERS PUBLISHED Planned Score check_names numbers pending plan"
    " prepare register_measure score scores",
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'diffax.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffax.evaluation.{_MODULES[name]}"), name)
