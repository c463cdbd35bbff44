"""MobileNetV2 and EfficientNet-Lite0: small networks whose ImageNet weights come by pip."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffax.metrics import images

SIZE = 224
# Blocks, kernel, stride of the first of them, expansion, features
MOBILENET_V2 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (3, 3, 2, 6, 32),
    (4, 3, 2, 6, 64),
    (3, 3, 1, 6, 96),
    (3, 3, 2, 6, 160),
    (1, 3, 1, 6, 320),
)
EFFICIENTNET_LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class InvertedResiduals(nn.Module):
    """Stages of inverted residual blocks (Sandler 2018, figure 3; Tan & Le 2019, table 1).

    Images are resized to 224 x 224, bilinearly (antialiased where it shrinks them).

    Attributes:
      stages: as in `MOBILENET_V2`.
      mean: of bytes, by channel; what is subtracted.
      deviation: of bytes, by channel; what is divided by.
      symmetric: whether equally many zeros pad both sides, as in PyTorch; or else, where the stride
        is two, fewer pad the upper and left side, as in TensorFlow.
    """

    stages: tuple[tuple[int, int, int, int, int], ...]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    symmetric: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: (B, H, W, 1 or 3) in [-1, 1]. Returns the features, (B, 1280), and the logits."""
        numbers = itertools.count()

        def conv(x, features, kernel=1, stride=1, groups=1):
            return nn.Conv(
                features,
                (kernel, kernel),
                stride,
                padding=kernel // 2 if self.symmetric else "SAME",
                feature_group_count=groups,
                precision="highest",
                name=f"convolution_{next(numbers):02}",
            )(x)

        x = images.resize(images.to_bytes(x), SIZE, SIZE)
        x = (x - jnp.array(self.mean)) / jnp.array(self.deviation)
        x = nn.relu6(conv(x, 32, 3, 2))
        for blocks, kernel, stride, expansion, features in self.stages:
            for block in range(blocks):
                y, wide = x, expansion * x.shape[-1]
                if expansion > 1:
                    y = nn.relu6(conv(y, wide))
                y = nn.relu6(conv(y, wide, kernel, 1 if block else stride, groups=wide))
                y = conv(y, features)
                x = x + y if x.shape == y.shape else y
        features = nn.relu6(conv(x, 1280)).mean(axis=(1, 2))
        return features, nn.Dense(1000, precision="highest", name="logits")(features)


def convert(tensors: Mapping[str, np.ndarray], epsilon: float, dense: str) -> dict[str, Any]:
    """The parameters of `InvertedResiduals` from a PyTorch state_dict in the order of execution.

    Args:
      epsilon: of the batch norms.
      dense: name of the last layer.
    """
    convolutions = images.folded(tensors, epsilon).values()
    params: dict[str, Any] = {f"convolution_{i:02}": conv for i, conv in enumerate(convolutions)}
    kernel = images.dense_kernel(tensors, dense)
    params["logits"] = {"kernel": kernel, "bias": tensors[f"{dense}.bias"]}
    return params
