"""The Inception score: whether a classifier is sure of each sample, and of different things."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp


class InceptionScore(NamedTuple):
    """Over the splits; from 1 to the number of classes."""

    mean: float
    standard_deviation: float


def inception_score(logits: np.ndarray, splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y | x) || p(y))), p(y) = E_x p(y | x), in each of the splits (Salimans 2016).

    It never sees real data, and it depends on the size of a split: published numbers are of 50,000
    samples in 10 splits, their mean and standard deviation.

    Args:
      logits: (N, K), in random order.
      splits: equal parts in that order.

    Raises:
      ValueError: another shape, or splits not from 1 to N.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(
            f"splits is {splits} and logits have shape {logits.shape}; wanted are (N, K), and 1 to"
            " N splits"
        )
    scores = [_score(np.asarray(part, np.float64)) for part in np.array_split(logits, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: np.ndarray) -> float:
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1))))
