"""GaussianMixture against brute-force integration, closed forms and statistics."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from exact import entropy
from hypothesis import given
from hypothesis import strategies as st

from diffax import data
from diffax.data import GaussianMixture, default_mixture


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def mixture():
    with jax.enable_x64(True):
        return default_mixture(jnp.float64)


def alpha_sigma(log_snr):
    return np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))


def reference_density(mixture, x):
    """The textbook formula, by SciPy."""
    return sum(
        w * scipy.stats.multivariate_normal(m, c).pdf(x)
        for w, m, c in zip(*map(np.asarray, (mixture.weights, mixture.means, mixture.covariances)))
    )


def grid2d(half_width=4.5, num=601):
    axis = np.linspace(-half_width, half_width, num)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return points, (axis[1] - axis[0]) ** 2


def random_mixture(seed, k, d, dtype=np.float64, width=0.3):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(k, d, d)) * width
    covariances = root @ root.swapaxes(1, 2) + 0.02 * np.eye(d)
    arrays = rng.uniform(0.1, 1, k), rng.normal(size=(k, d)), covariances
    return GaussianMixture(*(a.astype(dtype) for a in arrays))


NUM = 20  # points in most tests: one shape, one compilation


@functools.partial(jax.jit, static_argnums=2)
def draw(mixture, key, n):
    return mixture.sample(jax.random.key(key), n)


@jax.jit
def log_density(mixture, x):
    return mixture.log_density(x)


@jax.jit
def everything(mixture, x_t, levels):
    """All functions at once: one compilation for each shape."""
    alpha = jnp.sqrt(jax.nn.sigmoid(levels[0]))
    sigma = jnp.sqrt(jax.nn.sigmoid(-levels[0]))
    noisy = mixture.diffused(alpha, sigma)
    return {
        "x0": mixture.denoise(x_t, levels),
        "eps": mixture.eps(x_t, levels),
        "score": mixture.score(x_t, levels),
        "log_density": mixture.log_density(x_t, levels),
        "diffused score": noisy.score(x_t),
        "diffused log_density": noisy.log_density(x_t),
        "autodiff score": jax.grad(lambda x: noisy.log_density(x).sum())(x_t),
    }


def test_default_mixture_is_standardised_and_uneven(mixture):
    assert (mixture.num_components, mixture.dim) == (8, 2)
    np.testing.assert_allclose(mixture.mean, 0, atol=1e-14)
    np.testing.assert_allclose(mixture.covariance, np.eye(2), atol=1e-13)
    np.testing.assert_allclose(mixture.weights, np.arange(1, 9) / 36, rtol=1e-14)
    assert np.all(mixture.eigenvalues[:, 1] > 1.5 * mixture.eigenvalues[:, 0])  # elongated


def test_parameters_are_those_given():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 4, 4))
    covariances = root @ root.swapaxes(1, 2)
    mixture = GaussianMixture([2.0, 1.0, 1.0], rng.normal(size=(3, 4)), covariances)
    np.testing.assert_allclose(mixture.weights, [0.5, 0.25, 0.25], rtol=1e-15)
    np.testing.assert_allclose(mixture.covariances, covariances, rtol=1e-12, atol=1e-13)


def test_density_is_the_textbook_formula_and_integrates_to_one(mixture):
    points, area = grid2d()
    density = np.exp(log_density(mixture, points))
    np.testing.assert_allclose(density, reference_density(mixture, points), rtol=1e-10, atol=1e-300)
    # The trapezoidal rule converges geometrically here: rounding is all that remains.
    assert abs(density.sum() * area - 1) < 1e-12


def test_entropy_against_another_quadrature(mixture):
    points, area = grid2d()
    density = reference_density(mixture, points)
    expected = -area * np.sum(scipy.special.xlogy(density, density))
    # The default run states 1e-9; the grid above is good to 1e-10.
    assert abs(entropy(mixture) - expected) < 2e-9
    assert abs(entropy(default_mixture(jnp.float32)) - expected) < 1e-6


def test_entropy_of_one_dimensional_mixtures():
    for seed in range(3):
        mixture = random_mixture(seed, 3, 1)

        def integrand(x, mixture=mixture):
            density = reference_density(mixture, x)
            return -scipy.special.xlogy(density, density)

        expected, error = scipy.integrate.quad(integrand, -12, 12, limit=500, epsabs=1e-11)
        assert abs(entropy(mixture) - expected) < 1e-9 + error


def test_entropy_closed_forms():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 5))
    cov = root @ root.T + np.eye(5)
    gaussian = GaussianMixture.gaussian(rng.normal(size=5), cov)
    expected = scipy.stats.multivariate_normal(np.zeros(5), cov).entropy()
    np.testing.assert_allclose(entropy(gaussian), expected, rtol=1e-13)
    # Two equal modes: far apart they add log 2 nats, on top of each other nothing.
    one = np.diag([0.3, 2.0])
    h = entropy(GaussianMixture.gaussian(np.zeros(2), one))
    for distance, extra in ((200.0, np.log(2)), (0.0, 0.0)):
        two = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [distance, 0.0]], np.stack([one, one]))
        assert abs(entropy(two) - h - extra) < 1e-9


@pytest.mark.parametrize("log_snr", [-8.0, -2.0, 0.0, 2.0, 5.0])
def test_posterior_means_against_brute_force_integration(mixture, log_snr):
    alpha, sigma = alpha_sigma(log_snr)
    x0, _ = grid2d(num=401)
    prior = reference_density(mixture, x0)
    x_t = alpha * np.asarray(draw(mixture, 3, NUM)) + sigma * np.random.default_rng(4).normal(
        size=(NUM, 2)
    )
    noise = (x_t[:5, None] - alpha * x0) / sigma  # (5, grid, 2)
    posterior = prior * np.exp(-0.5 * np.sum(noise**2, -1))
    evidence = posterior.sum(-1, keepdims=True)
    out = everything(mixture, x_t, np.full(NUM, log_snr))
    expected_x0 = posterior @ x0 / evidence
    expected_eps = np.einsum("bg,bgd->bd", posterior, noise) / evidence
    np.testing.assert_allclose(out["x0"][:5], expected_x0, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(out["eps"][:5], expected_eps, rtol=1e-9, atol=1e-10)


@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1), (3, 2), (4, 5)]),
    log_snr=st.floats(-40, 40),
)
def test_denoisers_agree_with_each_other_and_with_the_density(seed, shape, log_snr):
    mixture = random_mixture(seed, *shape)
    alpha, sigma = alpha_sigma(log_snr)
    rng = np.random.default_rng(seed)
    x_t = alpha * rng.normal(size=(NUM, shape[1])) + sigma * rng.normal(size=(NUM, shape[1]))
    out = everything(mixture, x_t, np.full(NUM, log_snr))
    close = {"rtol": 1e-8, "atol": 1e-9}
    np.testing.assert_allclose(alpha * out["x0"] + sigma * out["eps"], x_t, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out["autodiff score"], out["score"], **close)
    np.testing.assert_allclose(out["diffused score"], out["score"], **close)
    np.testing.assert_allclose(-sigma * out["score"], out["eps"], **close)
    np.testing.assert_allclose(out["diffused log_density"], out["log_density"], rtol=1e-10)


@given(seed=st.integers(0, 10**6), log_snr=st.floats(-40, 40))
def test_float32_is_accurate_at_every_level(seed, log_snr):
    """Against float64 from the same float32 numbers.

    x0 to 1e-5 of the data's unit scale; eps to 1e-4 of its own size, however small it
    is (at a log-SNR of 40 the form (x_t - alpha x0) / sigma has no correct digit).
    """
    mixture = default_mixture(jnp.float32)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), mixture)
    alpha, sigma = alpha_sigma(log_snr)
    rng = np.random.default_rng(seed)
    x_t = (alpha * rng.normal(size=(NUM, 2)) + sigma * rng.normal(size=(NUM, 2))).astype(np.float32)
    levels = np.full(NUM, log_snr, np.float32)
    ours = everything(mixture, x_t, levels)
    theirs = everything(exact, x_t.astype(np.float64), levels.astype(np.float64))
    assert ours["x0"].dtype == ours["eps"].dtype == jnp.float32
    np.testing.assert_allclose(ours["x0"], theirs["x0"], atol=1e-5)
    np.testing.assert_allclose(ours["eps"], theirs["eps"], atol=1e-4 * np.abs(theirs["eps"]).max())


def test_limits_of_no_noise_and_of_pure_noise(mixture):
    x = draw(mixture, 0, NUM)
    pure = everything(mixture, x, np.full(NUM, -np.inf))
    np.testing.assert_allclose(pure["eps"], x, rtol=1e-12, atol=1e-14)
    mean = np.broadcast_to(mixture.mean, x.shape)
    np.testing.assert_allclose(pure["x0"], mean, atol=1e-14)
    standard = scipy.stats.multivariate_normal(np.zeros(2)).logpdf(np.asarray(x))
    np.testing.assert_allclose(pure["log_density"], standard, rtol=1e-12)
    # eps -> -sigma grad log p(x) where the noise vanishes.
    clear = everything(mixture, x, np.full(NUM, 40.0))
    np.testing.assert_allclose(
        clear["eps"] / alpha_sigma(40.0)[1], -mixture.score(x), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(clear["x0"], x, rtol=1e-12)


@jax.jit
def value_and_gradients(mixture, x, levels):
    def total(mixture, x, levels):
        parts = (mixture.denoise, mixture.eps, mixture.score, mixture.log_density)
        return sum(f(x, levels).sum() for f in parts)

    return jax.value_and_grad(total, (0, 1, 2))(mixture, x, levels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("log_snr", [-np.inf, -120.0, -40.0, -1.0, 40.0])
def test_values_and_gradients_are_finite(dtype, log_snr):
    mixture = default_mixture(dtype)
    x = np.random.default_rng(1).normal(size=(NUM, 2)).astype(dtype)
    x[-1] = 1e3  # far outside the modes, where every density underflows
    for leaf in jax.tree.leaves(value_and_gradients(mixture, x, np.full(NUM, log_snr, dtype))):
        assert leaf.dtype == dtype
        assert np.isfinite(leaf).all()


def test_gradient_to_the_log_snr_is_the_derivative(mixture):
    x = draw(mixture, 2, NUM)
    slopes = jax.jit(lambda x, levels: jax.jvp(mixture.eps, (x, levels), (0 * x, 1 + 0 * levels)))
    for level in (-6.0, 0.0, 6.0):
        slope = slopes(x, np.full(NUM, level))[1]
        h = 1e-5
        up, down = (everything(mixture, x, np.full(NUM, level + s))["eps"] for s in (h, -h))
        np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6, atol=1e-9)


def test_point_masses_are_the_denoiser_of_a_finite_data_set():
    rng = np.random.default_rng(5)
    data = rng.normal(size=(6, 3))
    mixture = GaussianMixture(np.ones(6), data, np.zeros((6, 3, 3)))
    alpha, sigma = alpha_sigma(1.0)
    x_t = rng.normal(size=(4, 3))
    logits = -0.5 * np.sum((x_t[:, None] - alpha * data) ** 2, -1) / sigma**2
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = weights @ data / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(mixture.denoise(x_t, jnp.full(4, 1.0)), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="full rank"):
        entropy(mixture)


def test_sampler_moments(mixture):
    """Fixed key; five standard errors (a false alarm in 2e6 for each of the eight numbers)."""
    n = 200_000
    x = np.asarray(draw(mixture, 0, n))
    assert x.shape == (n, 2)
    np.testing.assert_allclose(x.mean(0), 0, atol=5 / np.sqrt(n))
    products = x[:, :, None] * x[:, None, :]
    error = products.std(0) / np.sqrt(n)
    assert np.all(np.abs(products.mean(0) - np.eye(2)) < 5 * error)
    # Sampler, density and entropy together: E[-log p(x)] is the entropy.
    surprise = -np.asarray(log_density(mixture, x))
    assert abs(surprise.mean() - entropy(mixture)) < 5 * surprise.std() / np.sqrt(n)


def test_diffused_is_the_distribution_of_noised_samples(mixture):
    n, (alpha, sigma) = 200_000, alpha_sigma(0.7)
    x0 = draw(mixture, 0, n)
    x_t = alpha * x0 + sigma * np.random.default_rng(1).normal(size=(n, 2))
    noisy = mixture.diffused(alpha, sigma)
    surprise = -np.asarray(log_density(noisy, x_t))
    assert abs(surprise.mean() - entropy(noisy)) < 5 * surprise.std() / np.sqrt(n)
    np.testing.assert_allclose(noisy.covariance, np.eye(2), atol=1e-13)  # variance preserving


def test_is_a_pytree_under_jit_and_vmap(mixture):
    x = draw(mixture, 0, NUM)
    levels = np.linspace(-5, 5, NUM)
    eager = mixture.denoise(x, levels)
    close = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(everything(mixture, x, levels)["x0"], eager, **close)
    single = jax.jit(jax.vmap(lambda x, level: mixture.denoise(x[None], level[None])[0]))
    np.testing.assert_allclose(single(x, levels), eager, **close)
    assert len(jax.tree.leaves(mixture)) == 4
    built = jax.jit(lambda m, c: GaussianMixture([1.0], m[None], c[None]).log_density(x))
    standard = everything(mixture, x, np.full(NUM, -np.inf))["log_density"]
    np.testing.assert_allclose(built(np.zeros(2), np.eye(2)), standard, rtol=1e-12)


def test_dtype_follows_the_input(mixture):
    x = np.zeros((NUM, 2), np.float32)
    out = everything(mixture, x, np.zeros(NUM))
    assert {key: value.dtype for key, value in out.items()} == dict.fromkeys(out, jnp.float32)
    assert default_mixture().means.dtype == jnp.float32
    assert GaussianMixture.gaussian([0, 0], [[1, 0], [0, 1]]).means.dtype == jnp.float32


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1.0], np.zeros((2, 2)), np.zeros((2, 2, 2))), r"weights \(K,\)"),
        (([1.0], np.zeros(2), np.eye(2)[None]), r"means \(K, D\)"),
        (([1.0, -0.5], np.zeros((2, 2)), np.stack([np.eye(2)] * 2)), "weights must be >= 0"),
        (([1.0], np.zeros((1, 2)), np.array([[[1.0, 2.0], [2.0, 1.0]]])), "semi-definite"),
        (([1.0], np.zeros((1, 2)), np.array([[[1.0, 0.5], [0.0, 1.0]]])), "symmetric"),
    ],
)
def test_impossible_parameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_entropy_refuses_what_it_cannot_integrate():
    with pytest.raises(ValueError, match="1 or 2 dimensions; this one has 2 components in 3"):
        entropy(random_mixture(0, 2, 3))
    needle = np.array([1.0, 1e-10]).reshape(2, 1, 1)
    with pytest.raises(ValueError, match="tolerance"):
        entropy(GaussianMixture([0.5, 0.5], np.zeros((2, 1)), needle))


def test_computed_data_are_known_again_by_their_definition():
    """Their last digits depend on the machine and on the compiler's flags."""
    points = data.load({"name": "mixture2d"})
    nudged = data.Split(np.nextafter(points.train.x, np.float32(9)))
    other = dataclasses.replace(points, train=nudged)
    assert other.fingerprint == points.fingerprint
    plain = dataclasses.replace(points, definition="")
    assert dataclasses.replace(other, definition="").fingerprint != plain.fingerprint
