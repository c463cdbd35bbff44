"""Gaussian mixtures whose density, score and denoisers are known exactly.

With x0 ~ sum_k w_k N(mu_k, C_k) and x_t = alpha x0 + sigma eps, everything that a diffusion model
approximates has a closed form; a `GaussianMixture` is therefore the reference against which losses,
samplers and likelihoods are measured.

Each covariance is held as its eigendecomposition C_k = V_k diag(lambda_k) V_k^T. Diffusing the
mixture only changes the eigenvalues, to alpha^2 lambda_k + sigma^2, so no function below inverts or
factorises a matrix, and none subtracts two nearly equal numbers at either end of the log-SNR range.
"""

import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from diffax.data.dataset import DataConfig, Dataset, Split, make_dataset


def _alpha_sigma(log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha = sqrt(sigmoid(log_snr)) and sigma = sqrt(sigmoid(-log_snr)), safe at both ends."""
    alpha = jnp.exp(jax.nn.log_sigmoid(log_snr) / 2)
    sigma = jnp.exp(jax.nn.log_sigmoid(-log_snr) / 2)
    return alpha, sigma


def _einsum(spec: str, *operands: jax.Array) -> jax.Array:
    # Accelerators multiply float32 in lower precision by default; a reference must not.
    return jnp.einsum(spec, *operands, precision=jax.lax.Precision.HIGHEST)


@jax.tree_util.register_pytree_node_class
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions: p(x) = sum_k w_k N(x; mu_k, C_k).

    Args:
      weights: (K,), not negative; normalised to sum to one.
      means: (K, D).
      covariances: (K, D, D), symmetric and positive semi-definite. A singular one (a zero matrix
        is a point mass) has no density, but its diffused density, score and denoisers are exact
        at every finite log-SNR.

    Leaves take the common floating dtype of the arguments (float32 unless JAX's 64-bit mode is on).
    Every method computes in the dtype of its argument `x`, so for float64 work build the mixture in
    float64 too. A mixture is a pytree: it may be an argument of `jit`, `vmap` and `grad`. Its
    leaves are `log_weights` (K,), `means` (K, D), `eigenvalues` (K, D) and `eigenvectors`
    (K, D, D), and gradients with respect to them are finite. (A gradient through this constructor
    to `covariances` is not, where a covariance has equal eigenvalues.)

    Raises:
      ValueError: if shapes do not match, a weight is negative, no weight is positive, or a
        covariance is not symmetric positive semi-definite (values are not checked under a trace).
    """

    log_weights: jax.Array
    means: jax.Array
    eigenvalues: jax.Array
    eigenvectors: jax.Array

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike):
        traced = any(isinstance(a, jax.core.Tracer) for a in (weights, means, covariances))
        xp = jnp if traced else np
        weights, means, covariances = (xp.asarray(a) for a in (weights, means, covariances))
        dtype = jnp.result_type(weights, means, covariances, jnp.float32)
        k, d = means.shape if means.ndim == 2 else (0, 0)
        if k == 0 or weights.shape != (k,) or covariances.shape != (k, d, d):
            raise ValueError(
                "GaussianMixture needs weights (K,), means (K, D) and covariances (K, D, D); "
                f"got {weights.shape}, {means.shape} and {covariances.shape}."
            )
        if not traced:
            # Factorised in float64 on the host whatever the dtype, then rounded once.
            weights, means, covariances = (
                a.astype(np.float64) for a in (weights, means, covariances)
            )
            _check_values(weights, covariances)
        eigenvalues, eigenvectors = xp.linalg.eigh(covariances)
        with np.errstate(divide="ignore"):  # a component of weight zero is allowed
            log_weights = xp.log(weights / weights.sum())
        self.log_weights = jnp.asarray(log_weights, dtype)
        self.means = jnp.asarray(means, dtype)
        self.eigenvalues = jnp.asarray(xp.maximum(eigenvalues, 0.0), dtype)
        self.eigenvectors = jnp.asarray(eigenvectors, dtype)

    @classmethod
    def gaussian(cls, mean: ArrayLike, cov: ArrayLike) -> Self:
        """The single Gaussian N(mean, cov), with mean (D,) and cov (D, D)."""
        mean, cov = jnp.asarray(mean), jnp.asarray(cov)
        return cls(np.ones(1, mean.dtype), mean[None], cov[None])

    # -- parameters ---------------------------------------------------------------------------

    @property
    def num_components(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    @property
    def weights(self) -> jax.Array:
        """(K,), summing to one."""
        return jnp.exp(self.log_weights)

    @property
    def covariances(self) -> jax.Array:
        """(K, D, D)."""
        v = self.eigenvectors
        return _einsum("kij,kj,klj->kil", v, self.eigenvalues, v)

    @property
    def mean(self) -> jax.Array:
        """E[x], (D,)."""
        return _einsum("k,kd->d", self.weights, self.means)

    @property
    def covariance(self) -> jax.Array:
        """Cov[x] of the whole mixture, (D, D)."""
        centred = self.means - self.mean
        between = _einsum("k,ki,kj->ij", self.weights, centred, centred)
        return between + _einsum("k,kij->ij", self.weights, self.covariances)

    # -- the clean distribution ---------------------------------------------------------------

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """n independent draws, (n, D), in the mixture's dtype; `key` is a JAX random key."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, self.log_weights, shape=(n,))
        z = jax.random.normal(key_noise, (n, self.dim), self.means.dtype)
        z = z * jnp.sqrt(self.eigenvalues)[k]
        return self.means[k] + _einsum("nij,nj->ni", self.eigenvectors[k], z)

    # -- the diffused distribution ------------------------------------------------------------

    def diffused(self, alpha: ArrayLike, sigma: ArrayLike) -> Self:
        """The mixture of x_t = alpha x0 + sigma eps, eps ~ N(0, I); alpha and sigma scalars."""
        dtype = self.means.dtype
        alpha, sigma = jnp.asarray(alpha, dtype), jnp.asarray(sigma, dtype)
        means, eigenvalues = alpha * self.means, alpha**2 * self.eigenvalues + sigma**2
        return self.tree_unflatten(None, (self.log_weights, means, eigenvalues, self.eigenvectors))

    def log_density(self, x: jax.Array, log_snr: ArrayLike = jnp.inf) -> jax.Array:
        """log q(x_t) in nats at noise level `log_snr`; the clean log p(x) by default.

        Args:
          x: (..., D), floating.
          log_snr: scalar or x's leading shape; alpha^2 = sigmoid(log_snr), sigma^2 = 1 - alpha^2.

        Returns:
          (...,), x's dtype.
        """
        logits, _, _ = self._posterior(x, log_snr)
        return jax.nn.logsumexp(logits, axis=-1) - self.dim / 2 * math.log(2 * math.pi)

    def denoise(self, x_t: jax.Array, log_snr: ArrayLike) -> jax.Array:
        """E[x0 | x_t], the denoiser of least squared error.

        E[x0 | x_t] = sum_k r_k(x_t) (mu_k + alpha C_k S_k^-1 (x_t - alpha mu_k)), where
        S_k = alpha^2 C_k + sigma^2 I and r_k is the posterior probability of component k.

        Args:
          x_t: (B, D), or (..., D).
          log_snr: (B,), or a scalar; minus infinity (pure noise) included.

        Returns:
          x_t's shape and dtype.
        """
        logits, whitened, (alpha, _) = self._posterior(x_t, log_snr)
        shift = alpha * self.eigenvalues.astype(whitened.dtype) * whitened
        return self._mean(logits, shift) + _einsum(
            "...k,kd->...d", jax.nn.softmax(logits, axis=-1), self.means.astype(logits.dtype)
        )

    def eps(self, x_t: jax.Array, log_snr: ArrayLike) -> jax.Array:
        """E[eps | x_t], the noise prediction of least squared error.

        E[eps | x_t] = sigma sum_k r_k(x_t) S_k^-1 (x_t - alpha mu_k), computed as written and not
        as (x_t - alpha E[x0 | x_t]) / sigma, which loses all digits at high log-SNR. Shapes and
        symbols as in `denoise`.
        """
        logits, whitened, (_, sigma) = self._posterior(x_t, log_snr)
        return self._mean(logits, sigma * whitened)

    def score(self, x_t: jax.Array, log_snr: ArrayLike = jnp.inf) -> jax.Array:
        """grad_x log q(x_t) = -E[eps | x_t] / sigma at `log_snr`; the clean score by default.

        Shapes as in `denoise`.
        """
        logits, whitened, _ = self._posterior(x_t, log_snr)
        return -self._mean(logits, whitened)

    def _posterior(self, x: jax.Array, log_snr: ArrayLike):
        """Per component: log w_k N(x; ...) less its constant (..., K), and the whitened residual.

        The whitened residual is V_k^T (alpha^2 C_k + sigma^2 I)^-1 (x - alpha mu_k), (..., K, D).
        """
        x = jnp.asarray(x)
        dtype = x.dtype
        log_weights, means, eigenvalues, eigenvectors = (
            leaf.astype(dtype) for leaf in self.tree_flatten()[0]
        )
        alpha, sigma = _alpha_sigma(jnp.asarray(log_snr, dtype)[..., None, None])
        residual = x[..., None, :] - alpha * means
        residual = _einsum("kij,...ki->...kj", eigenvectors, residual)
        variance = alpha**2 * eigenvalues + sigma**2
        whitened = residual / variance
        logits = log_weights - 0.5 * jnp.sum(residual * whitened + jnp.log(variance), axis=-1)
        return logits, whitened, (alpha, sigma)

    def _mean(self, logits: jax.Array, vectors: jax.Array) -> jax.Array:
        """sum_k softmax(logits)_k V_k vectors_k: (..., K), (..., K, D) -> (..., D)."""
        weights = jax.nn.softmax(logits, axis=-1)[..., None]
        return _einsum(
            "kij,...kj->...i", self.eigenvectors.astype(vectors.dtype), weights * vectors
        )

    # -- pytree -------------------------------------------------------------------------------

    def tree_flatten(self):
        return (self.log_weights, self.means, self.eigenvalues, self.eigenvectors), None

    @classmethod
    def tree_unflatten(cls, aux, leaves) -> Self:
        del aux
        mixture = object.__new__(cls)
        mixture.log_weights, mixture.means, mixture.eigenvalues, mixture.eigenvectors = leaves
        return mixture

    def __repr__(self) -> str:
        return f"GaussianMixture(K={self.num_components}, D={self.dim}, dtype={self.means.dtype})"


def default_mixture(dtype=None) -> GaussianMixture:
    """Eight elongated modes of unequal weight on two rings; zero mean and identity covariance.

    The mean and covariance of the whole are exact: a ring of modes is whitened. `dtype` is float32
    unless JAX's 64-bit mode is on and float64 is asked for.
    """
    k = np.arange(8)
    angle = 2 * np.pi * k / 8
    radial = np.stack([np.cos(angle), np.sin(angle)], -1)
    tangent = np.stack([-np.sin(angle), np.cos(angle)], -1)
    weights = (1.0 + k) / np.sum(1.0 + k)
    means = np.where(k % 2 == 0, 1.0, 1.7)[:, None] * radial
    along, across = 0.1 + 0.02 * k, 0.28 - 0.02 * k  # standard deviations
    covariances = (
        along[:, None, None] ** 2 * radial[:, :, None] * radial[:, None, :]
        + across[:, None, None] ** 2 * tangent[:, :, None] * tangent[:, None, :]
    )
    means = means - weights @ means
    overall = np.einsum("k,kij->ij", weights, covariances + means[:, :, None] * means[:, None, :])
    whiten = np.linalg.inv(np.linalg.cholesky(overall))
    dtype = jnp.dtype(dtype or jnp.float32)
    return GaussianMixture(
        weights.astype(dtype),
        (means @ whiten.T).astype(dtype),
        (whiten @ covariances @ whiten.T).astype(dtype),
    )


def grid_mixture(modes: int, deviation: float) -> GaussianMixture:
    """Round modes of equal weight on a square grid in the plane; zero mean, identity covariance.

    Args:
      modes: how many, a square number n^2 of at least 4.
      deviation: of each mode in either coordinate, over the distance d of neighbours on the grid.

    With d^2 ((n^2 - 1) / 12 + deviation^2) = 1 each coordinate of the whole has unit variance. The
    customary 25 modes at -4, -2, 0, 2, 4 with deviation 0.05 are `grid_mixture(25, 0.025)`, scaled.

    Raises:
      ValueError: modes isn't the square of a whole number of at least 2, or deviation not above 0.
    """
    n = math.isqrt(max(modes, 0))
    if n < 2 or n * n != modes:
        raise ValueError(f"modes is {modes}; it must be a square number of at least 4, such as 25")
    if not 0 < deviation <= 10:
        raise ValueError(f"mode_deviation is {deviation}; it must be above 0 and at most 10")
    apart = 1 / math.sqrt((modes - 1) / 12 + deviation**2)
    places = (np.arange(n) - (n - 1) / 2) * apart
    means = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    covariances = np.broadcast_to((deviation * apart) ** 2 * np.eye(2), (modes, 2, 2))
    return GaussianMixture(np.full(modes, 1 / modes, np.float32), means, covariances)


NUM_TRAIN, NUM_EVAL = 50_000, 10_000


def load(config: DataConfig) -> Dataset:
    """The data set "mixture2d": 50,000 and 10,000 points of the plane, float32 (2,), drawn from
    `default_mixture`, or where config.modes is set from `grid_mixture`, by a fixed key; without
    labels."""
    if config.modes:
        mixture = grid_mixture(config.modes, config.mode_deviation)
        called = f"grid_mixture({config.modes}, {config.mode_deviation!r})"
    else:
        mixture, called = default_mixture(), "default_mixture()"
    sample = jax.jit(mixture.sample, static_argnums=1)
    points = np.asarray(sample(jax.random.key(0), NUM_TRAIN + NUM_EVAL))
    return make_dataset(
        config.name,
        Split(points[:NUM_TRAIN]),
        Split(points[NUM_TRAIN:]),
        definition=f"mixture2d: {NUM_TRAIN} and {NUM_EVAL} points of {called}, key 0",
        mixture=mixture,
    )


def _check_values(weights: np.ndarray, covariances: np.ndarray) -> None:
    if not (np.all(weights >= 0) and weights.sum() > 0):
        raise ValueError(
            f"GaussianMixture weights must be >= 0 with a positive sum; got {weights}."
        )
    scale = np.abs(covariances).max(axis=(1, 2)) + np.finfo(np.float64).tiny
    skew = np.abs(covariances - np.swapaxes(covariances, 1, 2)).max(axis=(1, 2)) / scale
    lowest = np.linalg.eigvalsh(covariances).min(axis=1) / scale
    if not (np.all(skew < 1e-5) and np.all(lowest > -1e-5)):
        bad = int(np.argmax(~((skew < 1e-5) & (lowest > -1e-5))))
        raise ValueError(
            "GaussianMixture covariances must be symmetric positive semi-definite; "
            f"number {bad} is not: {covariances[bad].tolist()}."
        )
