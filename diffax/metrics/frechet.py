"""The Fréchet distance between two sets of features (Heusel 2017), in float64 on the host."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy import stats

from diffax.data.archive import read_npz
from diffax.metrics.cache import read_arrays, write_arrays


class HasMoments(Protocol):
    """Of features: the mean, (F,), and the covariance, (F, F), both float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Moments(NamedTuple):
    """A mean, (F,), and a covariance, (F, F), of an unknown number of features."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Sums from which mean and covariance of features follow; additive over batches.

    To keep the covariance's digits, sums are taken about `shift`, a point among the features.
    """

    n: int
    shift: np.ndarray  # (F,)
    total: np.ndarray  # (F,): sum of x - shift
    products: np.ndarray  # (F, F): sum of (x - shift)(x - shift)^T

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureStatistics:
        """Of features (N, F); ValueError for another shape or none."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features must have shape (N, F) with N > 0, got {features.shape}")
        return cls(0, features[0], np.zeros_like(features[0]), 0.0).update(features)

    def update(self, features: np.ndarray) -> FeatureStatistics:
        """With further features (N, F)."""
        centred = np.asarray(features, np.float64) - self.shift
        return dataclasses.replace(
            self,
            n=self.n + len(centred),
            total=self.total + centred.sum(axis=0),
            products=self.products + centred.T @ centred,
        )

    @property
    def mean(self) -> np.ndarray:
        """(F,)."""
        return self.shift + self.total / self.n

    @property
    def covariance(self) -> np.ndarray:
        """(F, F), unbiased; ValueError for fewer than two examples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 examples, got {self.n}")
        offset = self.total / self.n
        return (self.products - self.n * np.outer(offset, offset)) / (self.n - 1)

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz, so that a reader sees all of it or none."""
        write_arrays(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> FeatureStatistics:
        """What `save` wrote; ValueError, naming the file, if it is damaged."""
        return cls.of_arrays(read_arrays(path))

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FeatureStatistics:
        """From its fields by name."""
        return cls(int(arrays["n"]), arrays["shift"], arrays["total"], arrays["products"])


def read_moments(path: str | os.PathLike) -> Moments:
    """Of an .npz with arrays `mu`, (F,), and `sigma`, (F, F): the form in which the statistics of
    public data sets are published for FID.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file, other arrays, or numbers that are not finite; names it.
    """

    def pick(names: Sequence[str]) -> tuple[str, str]:
        if not {"mu", "sigma"} <= set(names):
            held = ", ".join(names) or "no array"
            raise ValueError(f"{path} holds {held}; wanted are arrays mu (F,) and sigma (F, F)")
        return "mu", "sigma"

    arrays = read_npz(path, pick)
    if any(array.dtype.kind not in "fiu" for array in arrays.values()):
        raise ValueError(f"{path}: mu and sigma must be numbers")
    found = Moments(*(arrays[key].astype(np.float64) for key in ("mu", "sigma")))
    if found.mean.ndim != 1 or found.covariance.shape != 2 * found.mean.shape:
        raise ValueError(
            f"{path}: mu has shape {found.mean.shape} and sigma {found.covariance.shape}; wanted"
            " are (F,) and (F, F)"
        )
    if not all(np.isfinite(a).all() for a in found):
        raise ValueError(f"{path}: mu or sigma has numbers that are not finite")
    return found


def frechet_distance(a: HasMoments, b: HasMoments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_b^1/2 C_a C_b^1/2)^1/2), as FID is reported.

    (The square of the distance of Dowson & Landau 1982.) By eigenvalues of symmetric matrices, so a
    singular covariance is no exception. Sampling noise makes it larger, by an amount of order
    F / n: compare numbers of equal sample counts only, or see `frechet_infinity`.

    Raises:
      ValueError: different feature widths, or fewer than two examples on a side.
    """
    return frechet_distance_to(b)(a)


def frechet_distance_to(reference: HasMoments) -> Callable[[HasMoments], float]:
    """a -> `frechet_distance(a, reference)`, the reference's root taken once."""
    mean, covariance = reference.mean, reference.covariance
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    total = np.trace(covariance)

    def distance(a: HasMoments) -> float:
        if a.mean.shape != mean.shape:
            raise ValueError(
                f"features are {a.mean.shape} wide on one side and {mean.shape} on the other"
            )
        ours, gap = a.covariance, a.mean - mean
        cross = np.linalg.eigvalsh(root @ ours @ root)
        spread = np.trace(ours) + total - 2 * np.sqrt(np.maximum(cross, 0.0)).sum()
        return float(gap @ gap + max(spread, 0.0))

    return distance


def frechet_standard_error(features: np.ndarray, reference: HasMoments) -> float:
    """The standard error of the distance of `features` (N, F), by its influence function.

    To first order an example x moves the distance D by psi(x) / N, with d = x - m and T the map
    that takes N(m, C) to the reference's covariance, T = C^-1/2 (C^1/2 C_r C^1/2)^1/2 C^-1/2:

        psi(x) = 2 (m - m_r) . d + d^T (1 - T) d - tr((1 - T) C)

    The error is the deviation of psi over sqrt(N): the infinitesimal jackknife (Efron 1982), which
    is what the bootstrap's tends to, for two eigendecompositions. With few examples per feature
    it is too large, by up to two fifths where measured, and the bootstrap's is larger still. The
    reference counts as known.

    Raises:
      ValueError: other shapes, different widths, or fewer than two examples.
    """
    own = FeatureStatistics.of(features)
    if own.mean.shape != reference.mean.shape:
        raise ValueError(
            f"features are {own.mean.shape} wide on one side and {reference.mean.shape} on the"
            " other"
        )
    values, vectors = np.linalg.eigh(own.covariance)
    # d lies in the span of C: what is zero but for rounding is left out.
    kept = values > max(values[-1], 0.0) * len(values) * 10 * np.finfo(float).eps
    if not kept.any():
        return 0.0
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    outer = vectors * roots
    cross, axes = np.linalg.eigh(outer.T @ reference.covariance @ outer)
    d = np.asarray(features, np.float64) - own.mean
    whitened = d @ (vectors / roots) @ axes
    psi = 2 * d @ (own.mean - reference.mean) + np.sum(d**2, axis=1)
    psi -= whitened**2 @ np.sqrt(np.maximum(cross, 0.0))
    return float(psi.std(ddof=1) / np.sqrt(len(d)))


def normal_interval(
    value: float, standard_error: float, confidence: float = 0.95, lowest: float = 0.0
) -> tuple[float, float]:
    """The (low, high) about an estimate by its standard error.

    `lowest`: cuts off what no distance can be; never the estimate itself, which both ends enclose.
    """
    margin = stats.norm.ppf(0.5 + confidence / 2) * standard_error
    return float(max(value - margin, min(value, lowest))), float(value + margin)
