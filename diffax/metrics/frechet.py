"""The Fréchet distance between two sets of features (Heusel 2017), in float64 on the host."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from scipy import stats


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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        with open(partial, "wb") as file:
            np.savez(file, **dataclasses.asdict(self))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> FeatureStatistics:
        """What `save` wrote."""
        with np.load(path) as file:
            return cls(int(file["n"]), file["shift"], file["total"], file["products"])


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), as FID is reported.

    (The square of the distance of Dowson & Landau 1982.) By eigenvalues of symmetric matrices, so a
    singular covariance is no exception. Sampling noise makes it larger, by an amount of order
    F / n: compare numbers of equal sample counts only.

    Raises:
      ValueError: different feature widths, or fewer than two examples on a side.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features are {a.mean.shape} wide on one side and {b.mean.shape} on the other"
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    gap = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance)
    spread -= 2 * np.sqrt(np.maximum(cross, 0.0)).sum()
    return float(gap @ gap + max(spread, 0.0))


def bootstrap_frechet(
    features: np.ndarray,
    reference: FeatureStatistics,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 200,
) -> tuple[float, float]:
    """A normal interval for the distance of `features` (N, F), by its bootstrap standard error.

    The examples are resampled with replacement `resamples` times. Their quantiles would not do:
    resampling itself raises the distance.
    """
    rng = np.random.default_rng(seed)
    features = np.asarray(features, np.float64)
    distances = [
        frechet_distance(
            FeatureStatistics.of(features[rng.integers(len(features), size=len(features))]),
            reference,
        )
        for _ in range(resamples)
    ]
    distance = frechet_distance(FeatureStatistics.of(features), reference)
    margin = stats.norm.ppf(0.5 + confidence / 2) * np.std(distances, ddof=1)
    return float(max(distance - margin, 0.0)), float(distance + margin)
