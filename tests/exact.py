"""Data whose best predictor is known exactly, for the tests of everything that uses a predictor."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffax import process
from diffax.data.mixture import GaussianMixture
from diffax.schedules import alpha_of, sigma_of

PREDICTIONS = process.PREDICTIONS

MEAN = np.array([0.8, -0.5])
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.3]])


def gaussian(mean=MEAN, covariance=COVARIANCE, dtype=np.float32) -> GaussianMixture:
    """A Gaussian as a mixture of one."""
    return GaussianMixture.gaussian(np.asarray(mean, dtype), np.asarray(covariance, dtype))


def three_modes(dtype=np.float32) -> GaussianMixture:
    """Three well-parted modes of unequal weight and width in the plane."""
    means = np.array([[-1.2, -0.6], [1.0, -0.8], [0.3, 1.2]], dtype)
    deviations = np.array([0.1, 0.15, 0.2])
    covariances = (deviations[:, None, None] ** 2 * np.eye(2)).astype(dtype)
    return GaussianMixture(np.array([0.5, 0.3, 0.2], dtype), means, covariances)


def predicts(mixture: GaussianMixture, prediction: str = "eps") -> Callable:
    """f(x_t, log_snr): the conditional mean of the prediction, which no predictor can better."""

    def mean(x_t, log_snr):
        estimates = mixture.denoise(x_t, log_snr), mixture.eps(x_t, log_snr)
        return process.target_of(prediction, *estimates, log_snr)

    return {"eps": mixture.eps, "x0": mixture.denoise}.get(prediction, mean)


def predictor(mixture: GaussianMixture, prediction: str = "eps") -> Callable:
    """The same, as `sample`, `vlb` and `training_loss` take it."""
    return process.by_log_snr(predicts(mixture, prediction))


def independent(mean: float, variance: float) -> Callable:
    """The best predictor of eps for data of any shape whose numbers are all N(mean, variance)."""

    def eps(x_t, log_snr):
        alpha = process.expand_to(alpha_of(log_snr), x_t)
        sigma = process.expand_to(sigma_of(log_snr), x_t)
        return sigma * (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)

    return process.by_log_snr(eps)


def wrong(x_t: jax.Array, log_snr: jax.Array) -> jax.Array:
    """A predictor of eps that is right for no data, and depends on both arguments."""
    level = process.expand_to(log_snr, x_t)
    return jnp.sin(2 * x_t + 0.3 * level) + 0.2 * x_t * jax.nn.sigmoid(level)


def in_float64(function: Callable) -> Callable:
    """Runs a test with JAX's 64-bit mode on."""

    def run(*args, **kwargs):
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__wrapped__ = function  # pytest reads the arguments from it
    return run


def entropy(mixture: GaussianMixture, tolerance: float = 1e-9) -> float:
    """Differential entropy -E[log p(x)] in nats.

    A single Gaussian has the closed form (log det C + D log 2 pi e) / 2, in any dimension. A
    mixture in one or two dimensions is integrated by the trapezoidal rule, component by component
    in the coordinates in which that component is a standard normal. The step is halved until the
    result moves by less than `tolerance`.
    """
    weights, means, covariances = (
        np.asarray(a, np.float64) for a in (mixture.weights, mixture.means, mixture.covariances)
    )
    weights, means, covariances = (a[weights > 0] for a in (weights, means, covariances))
    weights = weights / weights.sum()
    eigenvalues, eigenvectors = np.linalg.eigh(covariances)
    k, d = means.shape
    if np.any(eigenvalues <= 0):
        raise ValueError("entropy needs covariances of full rank: a singular one has none.")
    log_det = np.log(eigenvalues).sum(-1)
    if k == 1:
        return float(log_det[0] + d * math.log(2 * math.pi * math.e)) / 2
    if d > 2:
        raise ValueError(
            f"entropy integrates mixtures in 1 or 2 dimensions; this one has {k} components in {d}."
        )
    log_norm = np.log(weights) - 0.5 * (log_det + d * math.log(2 * math.pi))

    def cross_entropy(j: int, z: np.ndarray) -> np.ndarray:
        """-log p at the images of z (N, d) under component j's whitening."""
        x = means[j] + (z * np.sqrt(eigenvalues[j])) @ eigenvectors[j].T
        logs = [
            log_norm[i] - 0.5 * (((x - means[i]) @ eigenvectors[i]) ** 2 / eigenvalues[i]).sum(-1)
            for i in range(k)
        ]
        return -np.logaddexp.reduce(logs, axis=0)

    def integral(num: int) -> float:
        # exp(-9^2 / 2) is 3e-18: nothing of a standard normal lies outside.
        axis = np.linspace(-9.0, 9.0, num)
        z = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
        normal = np.exp(-0.5 * (z**2).sum(-1))
        normal /= normal.sum()  # the rule's own normaliser: exact to rounding
        return sum(float(w * (normal @ cross_entropy(j, z))) for j, w in enumerate(weights))

    previous, num = integral(73), 145
    while num <= 1200:
        value = integral(num)
        if abs(value - previous) < tolerance:
            return value
        previous, num = value, 2 * num - 1
    raise ValueError(
        f"entropy did not reach tolerance={tolerance}: the components' widths differ by too much."
    )
