"""Measures: functions of samples and a reference, as a feature extractor sees both."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import scipy.stats

from diffax import data
from diffax.data import Dataset, Split, folder, npz
from diffax.data.dataset import DataConfig, to_8_bits
from diffax.evaluation import attributes, distances, extractors, pretrained, retrieval, segmentation
from diffax.files import cached, content_hash
from diffax.metric import Metric
from diffax.registry import Registry

# Fields of config.data that say where the data are, not what they are.
_PLACES = ("data_dir", "storage")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are compared with: a data set's training split, or published moments.

    Attributes:
      about: describes it; JSON-able.
      dataset: None if only the moments are known.
      moments: mean and covariance of features of the network that they were published for; None
        for a data set.
    """

    about: Mapping[str, Any]
    dataset: Dataset | None = None
    moments: distances.Moments | None = None

    @classmethod
    def of(cls, dataset: Dataset, config: Mapping[str, Any] = {}) -> Self:
        """The training split; `config`: how the data were read, fields of `data.DataConfig`."""
        defaults = data.known_fields()
        said = {k: v for k, v in dict(config).items() if v != defaults[k] and k not in _PLACES}
        split = said.get("train_split", defaults["train_split"])
        about = {"reference": f"{dataset.name}, {split}", "data": {"name": dataset.name} | said}
        return cls(about | {"reference_hash": content_hash(dataset.train.x)}, dataset)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """From an .npz with `mu` and `sigma`; raises as `distances.read_moments` does."""
        moments = distances.read_moments(path)
        about = {"reference": f"mu and sigma of {path}", "reference_hash": content_hash(*moments)}
        return cls(about, moments=moments)


class Samples(NamedTuple):
    """Samples of a file or a folder.

    Attributes:
      x: (N, ..., C) uint8 or float32.
      label: their classes as the file has them; None if it has none.
      about: describes them; JSON-able.
      text: their captions, (N,); None if there are none.
    """

    x: np.ndarray
    label: np.ndarray | None
    about: dict[str, Any]
    text: np.ndarray | None = None


def read_samples(path: str | Path, dataset: Dataset | None = None, array: str = "") -> Samples:
    """The samples of a folder of images or an .npz.

    Images are read in their own size, grey or in colour as the data set is; see `data.folder` and
    `data.npz`. Floats of images must be in [-1, 1]. The classes are the sub-folders of a folder,
    and the array `label` of an .npz; captions are those of a metadata.jsonl and the array `text`.

    Args:
      array: the name of the array in an .npz with several.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: what can't be read; names the file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"samples={str(path)!r}: no such file or folder")
    channels = dataset.shape[-1] if dataset is not None and len(dataset.shape) == 3 else 0
    config = DataConfig(path=str(path), channels=channels, array=array)
    try:
        if Path(path).is_dir():
            found = folder.read(config)
            x, label, text = found.x, found.label, found.arrays.get("text")
        else:
            x, beside = npz.read(config)
            label, text = beside.get("label"), beside.get("text")
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"samples={str(path)!r}: {error}") from None
    if x.dtype == np.float32 and x.ndim == 4 and (dataset is None or dataset.levels):
        low, high = x.min(), x.max()
        if low >= 0 or max(-low, high) > 2:
            raise ValueError(
                f"samples={str(path)!r}: values from {low:g} to {high:g}; floats must be in"
                " [-1, 1], and 8-bit values uint8"
            )
    return Samples(x, label, {"samples": str(path), "samples_hash": content_hash(x)}, text)


# Measures that compare all pairs take this many examples a side at most, drawn by the seed.
NUM_PAIRED = 10_000
CONFIDENCE = 0.95
NUM_PAIRS = 1000  # of images of one class, whose distances are averaged
NEIGHBOURS = 5  # of PRDC; each example needs as many others
# The fewest examples on either side.
FEWEST_FOR_MOMENTS = 2
FEWEST_FOR_KID = 4  # two blocks of two
INCEPTION = "inception"
LPIPS = "lpips"


@dataclasses.dataclass(frozen=True)
class Seen:
    """Samples and reference, and their features: the argument of a measure.

    Attributes:
      x: the samples, (N, ..., C) uint8 or float32.
      extractor: None if the measure takes the values themselves.
      seed: fixes the order of the samples, and which reference examples are taken.
      label: (N,), the classes of the samples; None if not known.
      text: their captions; None if not known.
      rows: (N,), the numbers of the held-out examples whose controls they were to follow; None if
        not known.
    """

    x: np.ndarray
    reference: Reference
    extractor: extractors.Extractor | None
    seed: int
    label: np.ndarray | None = None
    text: Sequence[str] | None = None
    rows: np.ndarray | None = None

    @functools.cached_property
    def samples(self) -> extractors.Features:
        """The features of the samples."""
        return extractors.measured(self.extractor, self.x, self.seed)

    @functools.cached_property
    def moments(self) -> distances.HasMoments:
        """Mean and covariance of the whole reference."""
        if self.reference.dataset is None:
            return self.reference.moments
        return extractors.reference_statistics(self.extractor, self.reference.dataset.train)

    @functools.cached_property
    def distance(self) -> Callable[[distances.HasMoments], float]:
        """Moments -> the Fréchet distance to the whole reference."""
        return distances.frechet_distance_to(self.moments)

    @functools.cached_property
    def standard_error(self) -> float:
        """That of the Fréchet distance, from the samples whose features are held."""
        kept, num = self.samples.kept, self.samples.statistics.n
        error = distances.frechet_standard_error(kept, self.moments)
        return float(error * np.sqrt(len(kept) / num))

    @functools.cached_property
    def floor(self) -> dict[str, Any]:
        """The Fréchet distance of the held-out examples and their number; {} for too few."""
        dataset = self.reference.dataset
        if dataset is None or len(dataset.eval) < FEWEST_FOR_MOMENTS:
            return {}
        held_out = extractors.reference_statistics(self.extractor, dataset.eval)
        return {"floor": self.distance(held_out), "num_floor": held_out.n}

    @functools.cached_property
    def paired(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of samples, and of as many training examples, or all there are."""
        own = self.samples.kept[:NUM_PAIRED]
        some = _some(self.reference.dataset.train.x, len(own), self.seed)
        return own, extractors.reference_features(self.extractor, some)

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """As many examples of the evaluation split as of the training split."""
        return _some(self.reference.dataset.eval.x, len(self.paired[1]), self.seed)

    def of_reference(self, what: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Numbers of the reference alone, cached, since they are the same for all samples.

        `what` identifies all that they depend on besides network, reference and seed.
        """
        network = self.extractor.fingerprint if self.extractor else "values"
        dataset = self.reference.dataset
        parts = [part for split in (dataset.train, dataset.eval) for part in (split.x, split.label)]
        name = f"{what}-{network}-seed{self.seed}-{content_hash(*parts)}"
        return {k: float(v) for k, v in cached("floors", name, make).items()}

    def about_reference(self, num: int) -> dict[str, Any]:
        """What the reference is, with the number of examples that stand for it."""
        said = self.reference.about
        return {**said, "reference": f"{said['reference']}, {num} examples"}

    def about_moments(self) -> dict[str, Any]:
        """What a Fréchet distance depends on, and the floor."""
        said = {"num_samples": self.samples.statistics.n, **self.floor}
        if self.reference.dataset is None:
            return {**said, **self.reference.about}
        return {**said, **self.about_reference(len(self.reference.dataset.train))}

    def about_interval(self, ends: tuple[float, float], also: str = "") -> dict[str, Any]:
        """The interval of a Fréchet distance, and how it was made."""
        said = f"{CONFIDENCE:.0%}, over the samples, by the influence function{also}"
        error = self.standard_error
        return {"low": ends[0], "high": ends[1], "standard_error": error, "interval": said}


class Measure(NamedTuple):
    """A measure: what it needs and what it returns.

    Attributes:
      function: Seen -> numbers, and what they depend on besides what every score does.
      fewest: F, the number of features -> the number of samples that it needs.
      numbers: which entries of what the function returns are scores; "value" if there is one.
        What depends on the network (label, unit, measure, network) is filled in for each.
      of: what it needs of the reference: "nothing", "moments" or "examples".
      over: which networks' features it takes, a key of `scoring.NETWORKS`.
      within_classes: whether it needs the classes of the samples, with two samples of some class.
      of_captions: whether it needs the captions of the samples.
      of_controls: whether it needs to know which held-out examples' controls they were to follow.
      fewest_of_reference: the number of training examples that it needs, if they are the reference.
      impossible: reference -> a sentence that says why it can't be measured against that; "" if it
        can.
    """

    function: Callable[[Seen], dict[str, Any]]
    fewest: Callable[[int], int]
    numbers: Mapping[str, Metric]
    of: str = "examples"
    over: str = "any"
    within_classes: bool = False
    of_captions: bool = False
    of_controls: bool = False
    fewest_of_reference: int = 1
    impossible: Callable[[Reference], str] = lambda reference: ""


def frechet(seen: Seen) -> dict[str, Any]:
    """The Fréchet distance, and its interval by `distances.frechet_standard_error`.

    "floor" is the distance of the evaluation split to the training split. Like that of every
    measure, it is left out if too few examples are held out.
    """
    value = seen.distance(seen.samples.statistics)
    ends = distances.normal_interval(value, seen.standard_error, CONFIDENCE)
    return {"value": value, **seen.about_interval(ends), **seen.about_moments()}


def frechet_infinity(seen: Seen) -> dict[str, Any]:
    """The Fréchet distance extrapolated to infinitely many samples: `distances.frechet_infinity`.

    "sizes" and "distances" are the points of the line, "bend" is what a parabola through them
    differs by, which the interval includes beside the noise (`distances.Extrapolation.interval`).
    Reference and floor are not extrapolated.
    """
    found = distances.frechet_infinity(seen.samples.kept, seen.moments)
    points = {"sizes": list(found.sizes), "distances": list(found.distances), "bend": found.bend}
    ends = found.interval(seen.standard_error, CONFIDENCE)
    return {
        "value": found.value,
        **seen.about_interval(ends, ", and of the line, by a parabola"),
        "method": "line through 1 / n (Chong & Forsyth 2020), over equal parts",
        **points,
        **seen.about_moments(),
        "num_samples": len(seen.samples.kept),
    }


def kid(seen: Seen) -> dict[str, Any]:
    """KID: `distances.kernel_distance` to as many training examples.

    "floor" is that of as many held-out examples, or all there are.
    """
    own, train = seen.paired
    found = _in_blocks(own, train)

    def of_held_out() -> dict[str, float]:
        held_out = extractors.features(seen.extractor, seen.held_out)
        return {"floor": _in_blocks(held_out, train).value}

    floor = {}
    if len(seen.held_out) >= FEWEST_FOR_KID:
        floor = seen.of_reference(f"kid-{len(train)}", of_held_out)
        floor |= {"num_floor": len(seen.held_out)}
    return {
        "value": found.value,
        "standard_error": found.standard_error,
        **floor,
        "num_samples": len(own),
        **seen.about_reference(len(train)),
    }


def _in_blocks(x: np.ndarray, y: np.ndarray) -> distances.KernelDistance:
    return distances.kernel_distance(x, y, blocks=min(20, len(x) // 2, len(y) // 2))


def prdc(seen: Seen, k: int = NEIGHBOURS) -> dict[str, Any]:
    """Precision, recall, density and coverage, against as many training examples."""
    own, train = seen.paired
    own = own[: len(train)]
    return {
        **distances.prdc(own, train, k)._asdict(),
        "neighbours": k,
        "num_samples": len(own),
        **seen.about_reference(len(train)),
    }


def inception_score(seen: Seen) -> dict[str, Any]:
    """The Inception score and its deviation over parts: `distances.inception_score`."""
    splits = 10
    found = distances.inception_score(seen.samples.logits, splits)
    return {
        "value": found.mean,
        "standard_deviation": found.standard_deviation,
        "splits": splits,
        "num_samples": len(seen.samples.logits),
    }


def sliced_wasserstein(seen: Seen) -> dict[str, Any]:
    """`distances.sliced_wasserstein` on the values themselves, so of any data.

    "floor" is that of as many held-out examples as samples, since fewer examples lie farther away.
    """
    dataset, seed = seen.reference.dataset, seen.seed
    num = min(len(seen.x), NUM_PAIRED)

    def some(x: np.ndarray, num: int) -> np.ndarray:
        return Split(_some(x, num, seed)).array()

    train, floor = some(dataset.train.x, NUM_PAIRED), {}
    if len(dataset.eval) >= num:
        held_out = some(dataset.eval.x, num)
        floor["floor"] = distances.sliced_wasserstein(held_out, train, seed=seed)
        floor["num_floor"] = num
    return {
        "value": distances.sliced_wasserstein(some(seen.x, num), train, seed=seed),
        **floor,
        "num_samples": num,
        **seen.about_reference(len(train)),
    }


MODE_RADIUS = 3.0  # deviations


def modes(seen: Seen) -> dict[str, Any]:
    """How many modes of a known mixture the samples keep, and how many samples lie off all of them.

    A sample is on the nearest mode (by Mahalanobis distance) if it is within 3 of that mode's
    deviations, and off every mode otherwise. "modes_kept" is the number of modes with a sample on
    them; "off_modes" the share of samples off every mode; "modes_kl" the divergence, in nats, of
    the shares of the modes among the samples on one from the mixture's weights. (Srivastava 2017,
    VEEGAN, section 4.1, with "high-quality" samples within 3 deviations.)

    "expected_off" is the share off every mode of the mixture itself where its modes lie apart:
    exp(-9 / 2) in the plane.
    """
    mixture = seen.reference.dataset.mixture
    means, values, vectors, weights = (
        np.asarray(a, np.float64)
        for a in (mixture.means, mixture.eigenvalues, mixture.eigenvectors, mixture.weights)
    )
    away = np.asarray(seen.x, np.float64)[:, None, :] - means
    along = np.einsum("kij,nki->nkj", vectors, away) / np.sqrt(values)
    distance = np.linalg.norm(along, axis=-1)
    nearest, on = np.argmin(distance, axis=1), np.min(distance, axis=1) <= MODE_RADIUS
    counts = np.bincount(nearest[on], minlength=len(means))
    shares = counts / max(counts.sum(), 1)
    some = shares > 0
    return {
        "modes_kept": int(some.sum()),
        "off_modes": float(np.mean(~on)),
        "modes_kl": float(np.sum(shares[some] * np.log(shares[some] / weights[some]))),
        "num_modes": len(means),
        "radius": MODE_RADIUS,
        "expected_off": float(scipy.stats.chi2.sf(MODE_RADIUS**2, means.shape[1])),
        "num_samples": len(seen.x),
        **seen.reference.about,
    }


def _has_no_mixture(reference: Reference) -> str:
    if reference.dataset is not None and reference.dataset.mixture is not None:
        return ""
    return (
        "it needs a reference drawn from a known mixture, data.name='mixture2d', with data.modes=25"
        " for a grid of 25 modes, say"
    )


def lpips_diversity(seen: Seen) -> dict[str, Any]:
    """How far apart images of one class lie: `pretrained.diversity_within_classes`.

    "reference_value" is that of the training split by its own labels, over as many pairs. It is
    left out if there are no labels, or no class has two examples.
    """
    found = pretrained.diversity_within_classes(seen.x, seen.label, NUM_PAIRS, seen.seed)
    said = {
        **found._asdict(),
        "pairs": NUM_PAIRS,
        "num_samples": len(seen.x),
        "num_classes": len(np.unique(seen.label)),
    }
    train = seen.reference.dataset and seen.reference.dataset.train
    if train is None or train.label is None or len(np.unique(train.label)) == len(train):
        return said

    def of_train() -> dict[str, float]:
        real = pretrained.diversity_within_classes(train.x, train.label, NUM_PAIRS, seen.seed)
        return {f"reference_{key}": number for key, number in real._asdict().items()}

    kept = seen.of_reference(f"lpips-{NUM_PAIRS}", of_train)
    return {**said, **kept, **seen.about_reference(len(train))}


def text_attributes(seen: Seen) -> dict[str, Any]:
    """How many samples have the colour and the shape that their captions name; see `attributes`.

    "chance" is what captions handed out at random would give. "reference_value" is that of the
    training examples by their own captions.

    Raises:
      ValueError: no caption names a colour and a shape, or the samples are no colour images.
    """
    if seen.x.ndim != 4 or seen.x.shape[-1] != 3:
        raise ValueError(
            "metrics='text_attributes': colours are those of images (H, W, 3), and the samples"
            f" have shape {seen.x.shape[1:]}"
        )
    found = attributes.agreement(to_8_bits(seen.x), seen.text)
    if found is None:
        raise ValueError(
            "metrics='text_attributes': no caption names one of"
            f" {', '.join(attributes.COLOURS)} and one of {', '.join(attributes.SHAPES)}"
        )
    said = {
        "value": found.both,
        "colour": found.colour,
        "shape": found.shape,
        "chance": found.chance,
        "num_samples": found.num,
    }
    train = seen.reference.dataset and seen.reference.dataset.train
    if train is None or "text" not in train.arrays:
        return said
    captions = train.arrays["text"]
    rows = np.array([i for i, caption in enumerate(captions) if all(attributes.named(caption))])
    if len(rows) == 0:
        return said
    real = attributes.agreement(to_8_bits(train.x[rows]), captions[rows].tolist())
    return {**said, "reference_value": real.both}


def text_retrieval(seen: Seen) -> dict[str, Any]:
    """The share of samples whose own caption fits them best among 16, by the judge of the data.

    "judge_accuracy" is that of held-out examples, "chance" that of guessing. See `retrieval`.
    """
    judge = retrieval.get_judge(seen.reference.dataset)
    share = float(retrieval.found(judge, seen.x, seen.text, seen.seed).mean())
    return {
        "value": share,
        "standard_error": float(np.sqrt(share * (1 - share) / len(seen.x))),
        "judge_accuracy": judge.accuracy,
        "judge_fingerprint": judge.fingerprint,
        "chance": 1 / min(retrieval.CANDIDATES, len(judge.captions)),
        **seen.about_reference(len(seen.reference.dataset.train)),
        "num_samples": len(seen.x),
    }


def _has_no_captions(reference: Reference) -> str:
    if reference.dataset is None or "text" in reference.dataset.train.arrays:
        return ""
    return "its judge is trained on captions, and the reference has none"


def edge_f1(seen: Seen) -> dict[str, Any]:
    """F1 between the edges of a sample and those of the held-out example that it was to follow.

    "chance" is that of the held-out example that comes next. See `segmentation.edge_f1`.
    """
    like = seen.reference.dataset.eval.x[seen.rows]
    return {
        **_mean(segmentation.edge_f1(seen.x, like)),
        "chance": float(segmentation.edge_f1(_next(like), like).mean()),
        "num_samples": len(seen.x),
    }


def mask_iou(seen: Seen) -> dict[str, Any]:
    """Intersection over union of the mask that is read in a sample and the one it was to follow.

    Of each sample the mean over the mask's classes. "segmenter_iou" is that of real held-out
    examples, "chance" that of the mask of the held-out example that comes next. See `segmentation`.
    """
    dataset = seen.reference.dataset
    segmenter = segmentation.get_segmenter(dataset)
    masks = segmentation.numbered(dataset.eval.arrays["control"][seen.rows], segmenter.values)
    num = len(segmenter.values)
    read = segmentation.read_masks(segmenter, seen.x)
    return {
        **_mean(segmentation.iou(read, masks, num)),
        "segmenter_iou": segmenter.iou,
        "segmenter_fingerprint": segmenter.fingerprint,
        "chance": float(segmentation.iou(_next(masks), masks, num).mean()),
        "num_samples": len(seen.x),
    }


def _mean(values: np.ndarray) -> dict[str, float]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return {"value": float(values.mean()), "standard_error": error}


def _next(rows: np.ndarray) -> np.ndarray:
    return np.roll(rows, -1, axis=0)


def _has_no_extent(reference: Reference) -> str:
    if reference.dataset is not None and len(reference.dataset.shape) > 1:
        return ""
    return "edges are those of data with an extent, and the reference has none"


def _has_no_masks(reference: Reference) -> str:
    dataset = reference.dataset
    if dataset is not None and "control" in dataset.train.arrays:
        return ""
    return "masks are controls from files (conditioning_file_name), and the reference has none"


def _value(label: str, meaning: str, **about: Any) -> dict[str, Metric]:
    """The one number of a measure."""
    return {"value": Metric("value", label, meaning=meaning, **about)}


_FRECHET = _value(
    "Fréchet distance",
    "How far the Gaussian fitted to the features of samples is from that of training examples. It"
    " can be compared only over the same features and the same number of samples, of which few make"
    " it larger.",
    short="FD",
    scale="log",
)
# The extrapolated distance and KID may be negative.
_INFINITY = _value(
    "Fréchet distance, extrapolated",
    "The Fréchet distance extrapolated to infinitely many samples.",
    short="FD∞",
)
_KID = _value(
    "KID",
    "The squared distance between samples and training examples by a polynomial kernel of their"
    " features (MMD²), without bias: about 0 where they are alike, also below.",
    digits=5,
)
_SHARES = {
    "precision": "The share of samples that lie in the neighbourhood of a training example.",
    "recall": "The share of training examples that lie in the neighbourhood of a sample.",
    "density": "In how many neighbourhoods of training examples a sample lies, of the number"
    " expected.",
    "coverage": "The share of training examples with a sample in their neighbourhood.",
}
_PRDC = {
    name: Metric(name, name.capitalize(), lower_is_better=False, meaning=meaning)
    for name, meaning in _SHARES.items()
}
_INCEPTION_SCORE = _value(
    "Inception score",
    "How sure the classes that Inception gives to samples are, and how varied.",
    lower_is_better=False,
)
_SLICED = _value(
    "Sliced Wasserstein distance",
    "How far the values themselves of samples and training examples are from one another:"
    " Wasserstein distances along random directions.",
    scale="log",
)
_MODES = {
    "modes_kept": Metric(
        "modes_kept",
        "Modes kept",
        lower_is_better=False,
        digits=1,
        meaning="How many modes of the mixture have a sample within 3 of their deviations.",
    ),
    "off_modes": Metric(
        "off_modes",
        "Samples off every mode",
        digits=4,
        meaning="The share of samples farther than 3 deviations from every mode of the mixture; of"
        " the mixture itself exp(-9 / 2) = 0.011 where its modes lie apart.",
    ),
    "modes_kl": Metric(
        "modes_kl",
        "Imbalance of modes",
        "nats",
        digits=4,
        main=False,
        meaning="The Kullback-Leibler divergence of the modes’ shares among the samples on one from"
        " the mixture’s weights: 0 where all have their share.",
    ),
}
# Neither is better of diversity alone: noise is diverse.
_DIVERSITY = _value(
    "LPIPS diversity within classes",
    "How far apart two samples of a class lie on average, by LPIPS; beside that of data.",
    lower_is_better=None,
)
_ATTRIBUTES = _value(
    "Colour and shape as captions say",
    "The share of samples whose colour and shape are those that their captions name, of the"
    " captions that name both; read from the pixels.",
    lower_is_better=False,
)
_RETRIEVAL = _value(
    "Captions found",
    "The share of samples whose own caption fits them best among 16, by a small network that was"
    " trained on the data’s own pairs; beside its share on held-out pairs.",
    lower_is_better=False,
)
_EDGES = _value(
    "F1 of edges",
    "How well the edges of samples are those of the held-out examples that they were to follow.",
    lower_is_better=False,
)
_MASKS = _value(
    "IoU of masks",
    "Intersection over union of the masks that a small network, trained on the data’s own pairs,"
    " reads in samples and those that they were to follow; beside its own on held-out pairs.",
    lower_is_better=False,
)
_BY_MOMENTS = {"of": "moments", "fewest_of_reference": FEWEST_FOR_MOMENTS}

MEASURES: Registry[Measure] = Registry(
    "measure",
    {
        "frechet": Measure(frechet, lambda width: FEWEST_FOR_MOMENTS, _FRECHET, **_BY_MOMENTS),
        "frechet_infinity": Measure(
            frechet_infinity, distances.fewest_for_infinity, _INFINITY, **_BY_MOMENTS
        ),
        "kid": Measure(kid, lambda width: FEWEST_FOR_KID, _KID, fewest_of_reference=FEWEST_FOR_KID),
        "prdc": Measure(
            prdc, lambda width: NEIGHBOURS + 1, _PRDC, fewest_of_reference=NEIGHBOURS + 1
        ),
        "is": Measure(inception_score, lambda width: 10, _INCEPTION_SCORE, "nothing", INCEPTION),
        "swd": Measure(sliced_wasserstein, lambda width: 1, _SLICED, over="values"),
        "modes": Measure(modes, lambda width: 1, _MODES, over="values", impossible=_has_no_mixture),
        "lpips_diversity": Measure(
            lpips_diversity, lambda width: 2, _DIVERSITY, "nothing", LPIPS, within_classes=True
        ),
        "text_attributes": Measure(
            text_attributes, lambda width: 1, _ATTRIBUTES, "nothing", "values", of_captions=True
        ),
        "text_retrieval": Measure(
            text_retrieval,
            lambda width: 1,
            _RETRIEVAL,
            over="values",
            of_captions=True,
            impossible=_has_no_captions,
        ),
        "edge_f1": Measure(
            edge_f1,
            lambda width: 1,
            _EDGES,
            over="values",
            of_controls=True,
            impossible=_has_no_extent,
        ),
        "mask_iou": Measure(
            mask_iou,
            lambda width: 1,
            _MASKS,
            over="values",
            of_controls=True,
            impossible=_has_no_masks,
        ),
    },
)


def _some(x: np.ndarray, num: int, seed: int) -> np.ndarray:
    """`num` random examples, or all there are, fixed by the seed."""
    return x[extractors.shuffled(len(x), seed)[:num]]
