"""Inception-v3 as the Fréchet Inception distance has it: the graph published on 2015-12-05."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffax.metrics import images

SIZE = 299
CLASSES = 1008
EPSILON = 1e-3  # of the batch norms
Layer = Callable[[jax.Array], jax.Array]


def _like_tensorflow(x: jax.Array) -> jax.Array:
    return (images.resize_from_corner(x, SIZE, SIZE) - 128) / 128


def _like_pytorch_fid(x: jax.Array) -> jax.Array:
    return images.resize(x, SIZE, SIZE, antialias=False) / 127.5 - 1


RESIZES = {"tensorflow": _like_tensorflow, "pytorch_fid": _like_pytorch_fid}


class Inception(nn.Module):
    """Inception-v3 (Szegedy 2016) of the FID (Heusel 2017).

    It differs from the network of the article and of torchvision: average pooling leaves padding
    out of the mean, the last block pools by the maximum, and there are 1008 classes.

    Attributes:
      resize: how images come to 299 x 299, bilinearly and without antialiasing, and to [-1, 1].
        "tensorflow": pixels counted from the corner and (u - 128) / 128 for bytes u, as the
        published graph, and with it the reference code of Heusel 2017, Dhariwal & Nichol's
        evaluator and torch-fidelity do. "pytorch_fid": pixels at the centres of their cells and
        u / 127.5 - 1, as pytorch-fid does. Numbers of the one can't be compared with the other's.
    """

    resize: str = "tensorflow"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The last pooled activations, and logits.

        Args:
          x: (B, H, W, 1 or 3) in [-1, 1], rounded to 8 bits here.

        Returns:
          The features, (B, 2048) float32, and the logits without their bias, (B, 1008) float32: so
          Salimans 2016's code takes them for the Inception score, and so does torch-fidelity.

        Raises:
          ValueError: an unknown `resize`, or another shape.
        """
        if self.resize not in RESIZES:
            raise ValueError(f"resize={self.resize!r}: allowed are {', '.join(RESIZES)}")
        x = _chain(_layers())(RESIZES[self.resize](images.to_bytes(x)))
        features = x.mean(axis=(1, 2))
        logits = nn.Dense(CLASSES, use_bias=False, precision="highest", name="fc")(features)
        return features, logits


def convert(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `Inception` from the state_dict of the public PyTorch checkpoint.

    Raises:
      ValueError: tensors are missing, too many, or of another shape.
    """
    convolutions = images.folded(tensors, EPSILON)
    params = {name.removesuffix(".conv"): conv for name, conv in convolutions.items()}
    params["fc"] = {"kernel": images.dense_kernel(tensors, "fc")}
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    wanted = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    for name in sorted(set(wanted) | set(params)):
        found, needed = (
            {key: value.shape for key, value in tree.get(name, {}).items()}
            for tree in (params, wanted)
        )
        if found != needed:
            raise ValueError(f"it is not the Inception of the FID: {name} is {found}, not {needed}")
    return params


# --- the layers -----------------------------------------------------------------------------


def _conv(name: str, features: int, kernel=1, stride: int = 1, padding: str = "SAME") -> Layer:
    """A convolution with the norm that is folded into it, and ReLU."""
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    conv = nn.Conv(features, size, stride, padding, precision="highest", name=name)
    return lambda x: nn.relu(conv(x))


def _average_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max_pool(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _chain(layers: list[Layer]) -> Layer:
    return lambda x: functools.reduce(lambda x, layer: layer(x), layers, x)


def _join(*branches: list[Layer]) -> Layer:
    """Branches side by side, their channels one after the other."""
    return lambda x: jnp.concatenate([_chain(branch)(x) for branch in branches], axis=-1)


def _layers() -> list[Layer]:
    """All from the image to the last pooling, under the names of torchvision."""
    return [
        _conv("Conv2d_1a_3x3", 32, 3, 2, "VALID"),
        _conv("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
        _conv("Conv2d_2b_3x3", 64, 3),
        _max_pool,
        _conv("Conv2d_3b_1x1", 80),
        _conv("Conv2d_4a_3x3", 192, 3, 1, "VALID"),
        _max_pool,
        _mixed_a("Mixed_5b", 32),
        _mixed_a("Mixed_5c", 64),
        _mixed_a("Mixed_5d", 64),
        _mixed_b("Mixed_6a"),
        _mixed_c("Mixed_6b", 128),
        _mixed_c("Mixed_6c", 160),
        _mixed_c("Mixed_6d", 160),
        _mixed_c("Mixed_6e", 192),
        _mixed_d("Mixed_7a"),
        _mixed_e("Mixed_7b", _average_pool),
        _mixed_e("Mixed_7c", functools.partial(_max_pool, stride=1, padding="SAME")),
    ]


def _in(block: str) -> Callable[..., Layer]:
    return lambda name, *args: _conv(f"{block}.{name}", *args)


def _mixed_a(block: str, pool: int) -> Layer:
    conv = _in(block)
    return _join(
        [conv("branch1x1", 64)],
        [conv("branch5x5_1", 48), conv("branch5x5_2", 64, 5)],
        [conv("branch3x3dbl_1", 64), conv("branch3x3dbl_2", 96, 3), conv("branch3x3dbl_3", 96, 3)],
        [_average_pool, conv("branch_pool", pool)],
    )


def _mixed_b(block: str) -> Layer:
    conv = _in(block)
    return _join(
        [conv("branch3x3", 384, 3, 2, "VALID")],
        [
            conv("branch3x3dbl_1", 64),
            conv("branch3x3dbl_2", 96, 3),
            conv("branch3x3dbl_3", 96, 3, 2, "VALID"),
        ],
        [_max_pool],
    )


def _mixed_c(block: str, wide: int) -> Layer:
    conv, row, column = _in(block), (1, 7), (7, 1)
    return _join(
        [conv("branch1x1", 192)],
        [
            conv("branch7x7_1", wide),
            conv("branch7x7_2", wide, row),
            conv("branch7x7_3", 192, column),
        ],
        [
            conv("branch7x7dbl_1", wide),
            conv("branch7x7dbl_2", wide, column),
            conv("branch7x7dbl_3", wide, row),
            conv("branch7x7dbl_4", wide, column),
            conv("branch7x7dbl_5", 192, row),
        ],
        [_average_pool, conv("branch_pool", 192)],
    )


def _mixed_d(block: str) -> Layer:
    conv = _in(block)
    return _join(
        [conv("branch3x3_1", 192), conv("branch3x3_2", 320, 3, 2, "VALID")],
        [
            conv("branch7x7x3_1", 192),
            conv("branch7x7x3_2", 192, (1, 7)),
            conv("branch7x7x3_3", 192, (7, 1)),
            conv("branch7x7x3_4", 192, 3, 2, "VALID"),
        ],
        [_max_pool],
    )


def _mixed_e(block: str, pool: Layer) -> Layer:
    conv, row, column = _in(block), (1, 3), (3, 1)
    return _join(
        [conv("branch1x1", 320)],
        [
            conv("branch3x3_1", 384),
            _join([conv("branch3x3_2a", 384, row)], [conv("branch3x3_2b", 384, column)]),
        ],
        [
            conv("branch3x3dbl_1", 448),
            conv("branch3x3dbl_2", 384, 3),
            _join([conv("branch3x3dbl_3a", 384, row)], [conv("branch3x3dbl_3b", 384, column)]),
        ],
        [pool, conv("branch_pool", 192)],
    )
