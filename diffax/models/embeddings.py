"""What a network is conditioned on: noise levels as sines and cosines, a class, a latent."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

LOG_SNR_LIMIT = 20.0
LOG_SNR_POSITIONS = 100.0


def sinusoidal(position: jax.Array, width: int, n: float = 10000.0) -> jax.Array:
    """[sin(p w_0), ..., sin(p w_{h-1}), cos(p w_0), ..., cos(p w_{h-1})] of a position p.

    The frequencies are w_i = n^(-i / h), h = width / 2 (Vaswani 2017, section 3.5; the sines and
    cosines stand in two halves, as in Ho 2020).

    Args:
      position: (...,) real; positions about 1 apart are told apart by the fastest wave.
      width: even number of features.
      n: the ratio that the frequencies would span if there were one more of them.

    Returns:
      (..., width), in position's dtype, float32 at least.
    """
    half = width // 2
    position = position.astype(jnp.promote_types(position.dtype, jnp.float32))
    angle = position[..., None] * n ** (-jnp.arange(half, dtype=position.dtype) / half)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def log_snr_position(log_snr: jax.Array) -> jax.Array:
    """100 (20 - clip(log_snr, -20, 20)) / 40: 0 for clean data, 100 for pure noise.

    Beyond ±20 either alpha or sigma is below 5e-5 and x_t hardly changes, so the clipping loses
    nothing and keeps an infinite log-SNR (zero terminal SNR) finite. The gradient is -2.5 within
    the range and 0 outside it.

    The range is not the customary 0 .. 1000 of step numbers: waves so fast make the network's
    derivative with respect to the level, which a learned schedule follows, mostly noise. On a
    Gaussian mixture with a known exact denoiser the squared error of that derivative, over its
    square, was 1.4 at 1000, 0.11 at 200, 0.08 at 100 and 0.09 at 10; the prediction itself was
    best at 100.
    """
    clipped = jnp.clip(log_snr, -LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    return LOG_SNR_POSITIONS * (LOG_SNR_LIMIT - clipped) / (2 * LOG_SNR_LIMIT)


def step_position(step: jax.Array) -> jax.Array:
    """The step number itself, of order 0 .. 1000 (multiply a time in [0, 1] by 1000)."""
    return step


CONDITIONINGS = {"log_snr": log_snr_position, "step": step_position}


def step_at(log_snr: jax.Array, log_snrs: Sequence[float]) -> jax.Array:
    """The step number at which a falling table, (T,), has a log-SNR, any shape: linear between two
    steps, exact at each, and 0 or T - 1 beyond the ends."""
    falls = -jnp.asarray(log_snrs, jnp.float32)
    return jnp.interp(-log_snr, falls, jnp.arange(len(falls), dtype=jnp.float32))


def noise_position(
    noise_level: jax.Array, conditioning: str, step_log_snrs: Sequence[float] = ()
) -> jax.Array:
    """Where a noise level stands among the waves of `sinusoidal`.

    Args:
      noise_level: as `conditioning`, a key of `CONDITIONINGS`, says.
      step_log_snrs: of a network that was trained by step numbers, the log-SNR of each: it is then
        told the step number that has its log-SNR.
    """
    if len(step_log_snrs) and conditioning == "log_snr":
        return step_at(noise_level, step_log_snrs)
    return CONDITIONINGS[conditioning](noise_level)


def rows_at(table: jax.Array, position: jax.Array) -> jax.Array:
    """Rows of a table, (T, width), at positions, (...,): (..., width). Linear between two rows, and
    the first or the last one beyond the ends."""
    last = len(table) - 1
    position = jnp.clip(position, 0, last)
    low = jnp.minimum(position.astype(jnp.int32), last - 1)
    part = (position - low)[..., None]
    return (1 - part) * table[low] + part * table[low + 1]


class Mapping(nn.Module):
    """A latent z, (B, Z) -> (B, features): z / rms(z), then two dense layers (Karras 2019)."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        z = z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-8)
        h = nn.Dense(self.features, dtype=self.dtype, name="dense_0")(z)
        return nn.Dense(self.features, dtype=self.dtype, name="dense_1")(nn.silu(h))


def class_rows(
    label: jax.Array | None, num: int, num_classes: int, features: int, dtype: jnp.dtype
) -> jax.Array:
    """A row of a table of K + 1 for each label, (num,) -> (num, features); None is the null, K.

    For use in a module, whose parameters "classes" the table is. A label outside 0 .. K can't be
    refused under `jit`: it gives NaN, not a wrong class.
    """
    if label is None:
        label = jnp.full((num,), num_classes)
    table = nn.Embed(num_classes + 1, features, dtype=dtype, name="classes")
    # A negative index would count from the end; past the end is NaN.
    return table(jnp.where(label < 0, num_classes + 1, label))


class Conditioning(nn.Module):
    """Noise level and label -> (B, features): sines, two dense layers, plus a row for the label,
    plus what a `Mapping` makes of the latent, if there is one.

    Attributes:
      width: width of the sinusoidal embedding, even.
      features: width of the dense layers and of the result.
      conditioning: "log_snr" or "step", the meaning of `noise_level`.
      num_classes: K > 0 adds a table of K + 1 rows, the last of which is the null class.
      dtype: of the dense layers; the sines are taken in float32.
      max_period: the slowest wave's, in positions, over 2 pi; n of `sinusoidal`.
      step_log_snrs: see `noise_position`.
      num_steps: T > 0 has a table of T rows, one for each step, in place of the sines. It is
        trained along, and starts at the sines.

    A noise level of shape (B, 2) is two of them: that of x, and another one which tells what is
    asked of the network, such as the level to which a step goes. The second has sines and dense
    layers of its own, whose last starts at zero: a network that is given two levels begins as one
    that is given the first.
    """

    width: int
    features: int
    conditioning: str
    num_classes: int
    dtype: jnp.dtype
    max_period: float = 10_000.0
    step_log_snrs: Sequence[float] = ()
    num_steps: int = 0

    def _waves(self, position: jax.Array) -> jax.Array:
        if not self.num_steps:
            return sinusoidal(position, self.width, self.max_period)
        first = sinusoidal(jnp.arange(self.num_steps), self.width, self.max_period)
        return rows_at(self.param("steps", lambda key: first), position)

    @nn.compact
    def __call__(
        self, noise_level: jax.Array, label: jax.Array | None, latent: jax.Array | None = None
    ) -> jax.Array:
        position = noise_position(noise_level, self.conditioning, self.step_log_snrs)
        waves = self._waves(position)
        first, *others = [waves] if noise_level.ndim == 1 else [waves[:, 0], waves[:, 1]]
        emb = nn.Dense(self.features, dtype=self.dtype, name="dense_0")(first)
        emb = nn.Dense(self.features, dtype=self.dtype, name="dense_1")(nn.silu(emb))
        for second in others:
            zero = nn.initializers.zeros
            asked = nn.Dense(self.features, dtype=self.dtype, name="second_0")(second)
            last = nn.Dense(self.features, dtype=self.dtype, kernel_init=zero, name="second_1")
            emb = emb + last(nn.silu(asked))
        if self.num_classes:
            of_classes = (self.num_classes, self.features, self.dtype)
            emb = emb + class_rows(label, len(noise_level), *of_classes)
        if latent is not None:
            emb = emb + Mapping(self.features, self.dtype, name="latent")(latent)
        return emb
