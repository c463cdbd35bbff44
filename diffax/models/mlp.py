"""A residual network for points: (B, D) in, (B, D) out."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.models import layers
from diffax.models.embeddings import Conditioning
from diffax.models.layers import check, is_whole


class MLP(nn.Module):
    """A residual multi-layer perceptron, conditioned by a scale and a shift in every block.

    Each block is h + dense(silu(h (1 + s) + b)) with (s, b) linear in the embedding. The last layer
    starts at zero: the output is exactly zero at initialisation.

    Attributes:
      width: features of the hidden layers, even.
      depth: number of residual blocks.
      num_classes: K > 0 makes the network take labels 0 .. K - 1 and the null class, K.
      conditioning: what the noise level is: "log_snr" or "step" (of order 0 .. 1000).
      learned_variance: give 2 D features, the second half of which is for the reverse variance.
      dtype: "float32" or "bfloat16", of the computation; parameters and output are float32.

    Raises:
      ValueError: a field or an argument is not allowed; the sentence names it.
    """

    width: int = 128
    depth: int = 3
    num_classes: int = 0
    conditioning: str = "log_snr"
    learned_variance: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        layers.check_shared_fields(self, "width")
        check(is_whole(self.depth, 1), "depth", self.depth, "a positive integer")
        super().__post_init__()

    def least_parameters(self) -> int:
        """A lower bound of the number of parameters, by the blocks' kernels alone."""
        return 3 * self.depth * self.width**2

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise_level: jax.Array,
        label: jax.Array | None = None,
        train: bool = False,
        latent: jax.Array | None = None,
    ) -> jax.Array:
        """The network's prediction for the noised points x.

        Args:
          x: (B, D), real.
          noise_level: (B,), the log-SNR (plus and minus infinity allowed) or the step number.
          label: (B,) integer in 0 .. num_classes, or None: the null class for all.
          train: without effect; every network is called alike.
          latent: (B, Z), noise that the prediction also depends on, if it is there at init; None
            otherwise.

        Returns:
          float32 (B, D), or (B, 2 D) if `learned_variance`.
        """
        if x.ndim != 2:
            raise ValueError(f"x has shape {x.shape}; an MLP takes points, (B, D)")
        layers.check_conditions(x, noise_level, label, self.num_classes)
        dtype = layers.DTYPES[self.dtype]
        widths = (self.width, self.width)
        condition = (self.conditioning, self.num_classes, dtype)
        embed = Conditioning(*widths, *condition, name="noise_embedding")
        emb = embed(noise_level, label, latent)
        emb = nn.silu(emb)

        h = nn.Dense(self.width, dtype=dtype, name="first")(x)
        for i in range(self.depth):
            signal = nn.Dense(2 * self.width, dtype=dtype, name=f"embed_{i}")(emb)
            scale, shift = jnp.split(signal, 2, axis=-1)
            dense = nn.Dense(self.width, dtype=dtype, name=f"dense_{i}")
            h = h + dense(nn.silu(h * (1 + scale) + shift))
        features = x.shape[-1] * (2 if self.learned_variance else 1)
        last = nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros, name="last")
        return last(h).astype(jnp.float32)
