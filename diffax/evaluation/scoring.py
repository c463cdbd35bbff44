"""Scores of samples: every measure over the features of every extractor, by name."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffax.data.dataset import to_8_bits
from diffax.evaluation import extractors, pretrained
from diffax.evaluation.measures import INCEPTION, LPIPS, MEASURES, Measure, Metric, Reference, Seen
from diffax.registry import unknown

CLASSIFIER = "classifier"
# Names in the literature for measures over Inception's features; others are named by the network.
PUBLISHED = {"fd_inception": "fid", "fd_infinity_inception": "fid_infinity", "is_inception": "is"}
_LABELS = {"fid": "FID", "fid_infinity": "FID∞", "is": "Inception score"}
# Labels of networks; others go by their name in `EXTRACTORS`.
_NETWORKS = {
    "inception": "Inception",
    "inception_half_pixel": "Inception, half-pixel",
    "lite0": "EfficientNet-Lite0",
    "mobilenet": "MobileNetV2",
}
# Networks with the weights of another: they don't count as a second feature extractor.
_SAME_WEIGHTS = {"inception_half_pixel": "inception"}
# Measure.over -> the networks whose features it takes; None: what `_ITSELF` says.
NETWORKS: dict[str, Callable[[], tuple[str | None, ...]]] = {
    "any": lambda: (CLASSIFIER, *pretrained.EXTRACTORS),
    INCEPTION: lambda: tuple({INCEPTION} & pretrained.EXTRACTORS.keys()),
    "values": lambda: (None,),
    LPIPS: lambda: (None,),
}
_ITSELF = {"values": "the values themselves", LPIPS: pretrained.LPIPS_NETWORK}


# What is measured of a run beside its samples: the measures of the methods, and the keys of an
# ablation's other metrics.
OTHER_NUMBERS = (
    *("bpd", "bpd_vlb", "bpd_ode", "bpd_own", "vlb_variance", "grad_variance", "latent_bound"),
    *("prior", "diffusion", "reconstruction"),
)


class Score(NamedTuple):
    """A measure, and the network whose features it takes; None if it needs none of `NETWORKS`."""

    measure: Measure
    extractor: str | None


class Planned(NamedTuple):
    """A score whose network is loaded."""

    measure: Measure
    extractor: extractors.Extractor | None


def scores() -> dict[str, Score]:
    """Every score by its name: each measure over the features of each network.

    Over the classifier of the data a measure has its plain name. Over a network of `EXTRACTORS` it
    has that network's too: fd_lite0, kid_lite0, prdc_lite0, and for Inception those in `PUBLISHED`.
    A network that is registered has scores at once.
    """
    return {
        _called(name, network): Score(chosen, network)
        for name, chosen in MEASURES.items()
        for network in NETWORKS[chosen.over]()
    }


def register_measure(name: str, measure: Measure) -> None:
    """Makes a measure of samples reachable by name, wherever scores are named: config.evaluation
    .metrics, `diffax evaluate --metrics`, ablations and searches.

    Args:
      measure: with over="any" it is a score over the features of the classifier, under its plain
        name, and over those of each network of `EXTRACTORS`; with over="values" over the values
        themselves.

    Raises:
      ValueError: the name is taken, or one of the names that the measure would have over a network.
    """
    if not isinstance(measure, Measure) or measure.over not in NETWORKS:
        raise ValueError(f"measure {name!r} must be a Measure, over one of {', '.join(NETWORKS)}")
    taken = {*OTHER_NUMBERS, *scores(), *(n.key for other in scores() for n in numbers(other))}
    for network in NETWORKS[measure.over]() if name not in MEASURES else ():
        own = _called(name, network)
        keys = [own if entry == "value" else _called(entry, network) for entry in measure.numbers]
        for key in {own, *keys} & taken:
            raise ValueError(f"a measure can't be named {name!r}: {key!r} is another score")
    MEASURES.register(name, measure)


def _called(name: str, network: str | None) -> str:
    if network in (None, CLASSIFIER):
        return name
    own = f"{name.replace('frechet', 'fd')}_{network}"
    return PUBLISHED.get(own, own)


def numbers(name: str) -> list[Metric]:
    """The numbers of a score: one under its name, or several.

    Raises:
      ValueError: an unknown name.
    """
    check_names([name])
    chosen, network = scores()[name]
    found = []
    for entry, metric in chosen.numbers.items():
        key, entry = (name, name) if entry == "value" else (_called(entry, network), entry)
        label, unit, whose = metric.label, "", ""
        if network == CLASSIFIER:
            unit = "classifier features"
        elif network is not None:
            named = f"{metric.short or label} ({_NETWORKS.get(network, network)})"
            label = _LABELS.get(name, named)
            judge = _SAME_WEIGHTS.get(network, network)
            whose = _NETWORKS.get(judge, judge)
        own = dict(key=key, entry=entry, label=label, unit=unit, network=whose)
        found.append(dataclasses.replace(metric, **own, measure=metric.label))
    return found


def check_names(names: Sequence[str], *others: str) -> None:
    """Raises ValueError, with all names, for a name that is neither a score's nor of `others`."""
    known = [*others, *scores()]
    for name in names:
        if name not in known:
            raise ValueError(unknown("metrics", name, known))


def plan(
    names: Sequence[str],
    reference: Reference,
    shape: tuple[int, ...],
    num: int,
    label: np.ndarray | None = None,
    text: Sequence[str] | None = None,
    rows: np.ndarray | None = None,
) -> dict[str, Planned]:
    """The scores of those names with their networks, for `num` samples of `shape`, (..., C).

    `label`: the classes of the samples, (num,), `text`: their captions, `rows`: the numbers of the
    held-out examples whose controls they were to follow; None if they aren't known.

    Raises:
      ValueError: what can't be measured, before anything is computed: an unknown name, samples
        of another shape than the reference's, too few of either, no classes, or a reference or a
        network that doesn't fit. If a network's weights are missing, it says how to get them.
    """
    check_names(names)
    dataset = reference.dataset
    if dataset is not None and tuple(shape) != dataset.shape:
        raise ValueError(
            f"the samples have shape {tuple(shape)} and {dataset.name!r} has {dataset.shape}: bring"
            " both to one size (data.image_size resizes the reference)"
        )
    known = scores()
    for name in names:
        chosen = known[name].measure
        _check_reference(name, chosen, reference)
        _check_number(name, chosen, 0, num)  # of which no network is needed to know
        if chosen.within_classes:
            _check_classes(name, num, label)
        if chosen.of_captions:
            _check_captions(name, num, text)
        if chosen.of_controls and rows is None:
            raise ValueError(
                f"metrics={name!r}: it needs the control that each sample was to follow, which is"
                " known of samples of a run alone"
            )
        if chosen.over == LPIPS:
            _check_images(name, "LPIPS", shape)
            pretrained.require_lpips()
    at_hand = {None: None}
    planned = {}
    for name in names:
        score = known[name]
        if score.extractor not in at_hand:
            at_hand[score.extractor] = _extractor(score.extractor, name, reference, shape)
        planned[name] = Planned(score.measure, at_hand[score.extractor])
        _check_width(name, *planned[name], reference.moments, shape, num)
    return planned


def prepare(planned: Mapping[str, Planned], reference: Reference) -> None:
    """Caches statistics of the reference, for processes that measure later.

    `reference`: of a data set.
    """
    for chosen, extractor in planned.values():
        if chosen.of == "moments":
            for split in (reference.dataset.train, reference.dataset.eval):
                extractors.reference_statistics(extractor, split)


def pending(
    planned: Mapping[str, Planned],
    samples: Callable[[], np.ndarray],
    reference: Reference,
    seed: int = 0,
    label: np.ndarray | None = None,
    text: Sequence[str] | None = None,
    rows: np.ndarray | None = None,
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Each score of `planned`, as a function that measures it when it is called: a dict of numbers
    and of what they depend on, JSON-able.

    "value" is the score (prdc has four instead). Samples of 8-bit data are clipped and rounded to
    8 bits first, as an image file would, so that a run and its files have the same score. What
    scores share is computed once; `samples` is called once, by the first of them.

    Args:
      samples: () -> (N, ..., C), uint8, or float in [-1, 1] where the data are 8-bit. If values are
        not finite, the first score raises ValueError.
      seed: fixes the order of the samples, and which reference examples are taken.
      label, text, rows: the same as for `plan`.
    """

    @functools.cache
    def seen(network: str | None) -> Seen:
        return Seen(values(), reference, loaded[network], seed, label, text, rows)

    @functools.cache
    def values() -> np.ndarray:
        given = samples()
        _check_finite(given)
        dataset = reference.dataset
        eight_bits = given.ndim == 4 if dataset is None else dataset.levels == 256
        return to_8_bits(given) if eight_bits else np.asarray(given, np.float32)

    def one(name: str, chosen: Measure, extractor: extractors.Extractor | None) -> dict[str, Any]:
        network = extractor.name if extractor else None
        if extractor:
            features = {"features": network, "features_fingerprint": extractor.fingerprint}
            features |= extractor.about
        else:
            features = {"features": _ITSELF[chosen.over]}
        numbers = chosen.function(seen(network))
        for entry in chosen.numbers:
            if not isinstance(numbers, Mapping) or entry not in numbers:
                raise ValueError(f"metrics={name!r}: its function must give a dict with {entry!r}")
        numbers = {name if key == "value" else key: value for key, value in numbers.items()}
        return {**numbers, **features, "sample_values": str(values().dtype), "seed": seed}

    loaded = {e.name if e else None: e for _, e in planned.values()}
    return {name: functools.partial(one, name, *chosen) for name, chosen in planned.items()}


def score(
    samples: np.ndarray,
    reference: Reference,
    names: Sequence[str],
    seed: int = 0,
    label: np.ndarray | None = None,
    text: Sequence[str] | None = None,
    rows: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """The scores of those names, measured; see `plan` and `pending` for arguments and errors."""
    planned = plan(names, reference, samples.shape[1:], len(samples), label, text, rows)
    by_name = pending(planned, lambda: samples, reference, seed, label, text, rows)
    return {name: measure() for name, measure in by_name.items()}


def _extractor(
    network: str, name: str, reference: Reference, shape: tuple[int, ...]
) -> extractors.Extractor:
    if network != CLASSIFIER:
        _check_images(name, network, shape)
        return pretrained.get_extractor(network)
    if reference.dataset is None:
        raise ValueError(
            f"metrics={name!r}: the classifier is trained on the data, and the reference is mean"
            " and covariance alone; choose a score over another network, or give the data"
        )
    return extractors.get_classifier(reference.dataset, seed=0)


def _check_images(name: str, network: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(
            f"metrics={name!r}: {network} takes images (H, W, 1 or 3), and the samples have shape"
            f" {tuple(shape)}"
        )


def _check_classes(name: str, num: int, label: np.ndarray | None) -> None:
    if label is None:
        raise ValueError(
            f"metrics={name!r}: it needs the class of each sample, and none is known; samples of a"
            " class-conditional run, a folder with a sub-folder per class and an .npz with an array"
            " 'label' have them"
        )
    if np.shape(label) != (num,):
        raise ValueError(
            f"metrics={name!r}: the samples' label has shape {np.shape(label)}; it must be ({num},)"
        )
    if len(np.unique(label)) == num:
        raise ValueError(f"metrics={name!r}: no class has two samples of the {num}")


def _check_captions(name: str, num: int, text: Sequence[str] | None) -> None:
    if text is None or len(text) != num:
        had = "none is known" if text is None else f"there are {len(text)} for {num}"
        raise ValueError(
            f"metrics={name!r}: it needs the caption of each sample, and {had}; samples of a run"
            " that is conditioned on captions (condition.text), a folder with metadata.jsonl and an"
            " .npz with an array 'text' have them"
        )


def _check_reference(name: str, chosen: Measure, reference: Reference) -> None:
    if sentence := chosen.impossible(reference):
        raise ValueError(f"metrics={name!r}: {sentence}")
    dataset, fewest = reference.dataset, chosen.fewest_of_reference
    if chosen.of == "examples" and dataset is None:
        raise ValueError(
            f"metrics={name!r}: it needs reference examples, and the reference is mean and"
            " covariance alone; give the data"
        )
    if dataset is not None and len(dataset.train) < fewest:
        raise ValueError(
            f"metrics={name!r}: it needs at least {fewest} reference examples, and the training"
            f" split of {dataset.name!r} has {len(dataset.train)}"
        )


def _check_number(name: str, chosen: Measure, width: int, num: int) -> None:
    if num < chosen.fewest(width):
        raise ValueError(
            f"metrics={name!r}: it needs at least {chosen.fewest(width)} samples, and there are"
            f" {num}"
        )


def _check_finite(samples: np.ndarray) -> None:
    if np.issubdtype(samples.dtype, np.integer):  # which all are; the check would take a copy
        return
    finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{np.sum(~finite)} of {len(samples)} samples have values that are not finite: they"
            " have no score"
        )


def _check_width(name, chosen: Measure, extractor, moments, shape, num: int) -> None:
    """Whether there are samples enough for so many features, as many as moments are of."""
    width = extractors.width(extractor, shape) if extractor else 0
    _check_number(name, chosen, width, num)
    if moments is not None and chosen.of != "nothing" and len(moments.mean) != width:
        raise ValueError(
            f"metrics={name!r}: the reference has {len(moments.mean)} features and"
            f" {extractor.name} {width}; it is that of another network"
        )
