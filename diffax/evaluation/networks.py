"""Networks trained on photographs: Inception-v3, MobileNetV2 and EfficientNet-Lite0.

Each takes images in [-1, 1], resizes and normalises them itself, and converts the weights of its
PyTorch file. `pretrained` finds those files.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# --- images and weights as they come --------------------------------------------------------------


def to_bytes(x: jax.Array) -> jax.Array:
    """Images x, (B, H, W, 1 or 3) float in [-1, 1], as (B, H, W, 3) float32 of whole 0, ..., 255.

    Grey is repeated; what lies outside is clipped. Rounded, because published numbers are of 8-bit
    images: the rounding is part of them.

    Raises:
      ValueError: another shape.
    """
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"a network for images takes (B, H, W, 1 or 3), got {x.shape}")
    x = jnp.round(jnp.clip(127.5 * x.astype(jnp.float32) + 127.5, 0, 255))
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def resize(x: jax.Array, height: int, width: int, antialias: bool = True) -> jax.Array:
    """Bilinear, pixels at the centres of their cells: what PyTorch calls align_corners=False.

    x: (B, H, W, C). With `antialias`, the kernel is as wide as the larger cell when it shrinks.
    """
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=antialias)


def resize_from_corner(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear as TensorFlow 1 does it: output pixel i lies at i * H / height of the input.

    x: (B, H, W, C). Never antialiased; the last row and column go on beyond the edge.
    """
    scale = jnp.array([height / x.shape[1], width / x.shape[2]], jnp.float32)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    return jax.image.scale_and_translate(
        padded,
        (x.shape[0], height, width, x.shape[3]),
        spatial_dims=(1, 2),
        scale=scale,
        translation=0.5 - 0.5 * scale,  # undoes the half pixels of that function
        method="bilinear",
        antialias=False,
    )


def fold_batch_norms(
    tensors: Mapping[str, np.ndarray], epsilon: float
) -> dict[str, dict[str, np.ndarray]]:
    """The convolutions of a PyTorch state_dict with the batch norm that follows each folded in.

    norm(W x) = (gamma / sqrt(var + epsilon)) W x + beta - gamma mean / sqrt(var + epsilon),
    computed in float64.

    Args:
      tensors: those of a network without other layers of four axes; the n-th convolution is
        followed by the n-th batch norm, and both belong to one module.

    Returns:
      The convolution's name -> {"kernel": (H, W, in, out), "bias": (out,)}, float32, in order.

    Raises:
      ValueError: the tensors are not of that kind.
    """
    kernels = [key for key, value in tensors.items() if key.endswith(".weight") and value.ndim == 4]
    norms = [key.removesuffix("running_var") for key in tensors if key.endswith(".running_var")]
    found: dict[str, Any] = {}
    for key, norm in zip(kernels, norms):
        name = key.removesuffix(".weight")
        if name.rpartition(".")[0] != norm[:-1].rpartition(".")[0]:
            raise ValueError(f"{name} is not followed by a batch norm, but by {norm[:-1]}")
        gamma, beta, mean, variance = (
            _tensor(tensors, norm + part).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + epsilon)
        kernel = tensors[key].transpose(2, 3, 1, 0) * scale
        bias = beta - mean * scale
        found[name] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    if not found or len(kernels) != len(norms):
        raise ValueError(f"{len(kernels)} convolutions and {len(norms)} batch norms")
    return found


def dense_kernel(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The weights of a dense layer, (in, out) float32."""
    return _tensor(tensors, f"{name}.weight").T.astype(np.float32)


def _tensor(tensors: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    if key not in tensors:
        raise ValueError(f"no tensor {key}")
    return tensors[key]


# --- Inception-v3 ---------------------------------------------------------------------------------


INCEPTION_SIZE = 299
INCEPTION_CLASSES = 1008
_INCEPTION_EPSILON = 1e-3  # of the batch norms
_Layer = Callable[[jax.Array], jax.Array]


def _like_tensorflow(x: jax.Array) -> jax.Array:
    return (resize_from_corner(x, INCEPTION_SIZE, INCEPTION_SIZE) - 128) / 128


def _like_pytorch_fid(x: jax.Array) -> jax.Array:
    return resize(x, INCEPTION_SIZE, INCEPTION_SIZE, antialias=False) / 127.5 - 1


RESIZINGS = {"tensorflow": _like_tensorflow, "pytorch_fid": _like_pytorch_fid}


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
        if self.resize not in RESIZINGS:
            raise ValueError(f"resize={self.resize!r}: allowed are {', '.join(RESIZINGS)}")
        x = _chain(_layers())(RESIZINGS[self.resize](to_bytes(x)))
        features = x.mean(axis=(1, 2))
        dense = nn.Dense(INCEPTION_CLASSES, use_bias=False, precision="highest", name="fc")
        return features, dense(features)


def convert_inception(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `Inception` from the state_dict of the public PyTorch checkpoint.

    Raises:
      ValueError: tensors are missing, too many, or of another shape.
    """
    convolutions = fold_batch_norms(tensors, _INCEPTION_EPSILON)
    params = {name.removesuffix(".conv"): conv for name, conv in convolutions.items()}
    params["fc"] = {"kernel": dense_kernel(tensors, "fc")}
    image = jax.ShapeDtypeStruct((1, INCEPTION_SIZE, INCEPTION_SIZE, 3), jnp.float32)
    wanted = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    for name in sorted(set(wanted) | set(params)):
        found, needed = (
            {key: value.shape for key, value in tree.get(name, {}).items()}
            for tree in (params, wanted)
        )
        if found != needed:
            raise ValueError(f"it is not the Inception of the FID: {name} is {found}, not {needed}")
    return params


def _conv(name: str, features: int, kernel=1, stride: int = 1, padding: str = "SAME") -> _Layer:
    """A convolution with the norm that is folded into it, and ReLU."""
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    conv = nn.Conv(features, size, stride, padding, precision="highest", name=name)
    return lambda x: nn.relu(conv(x))


def _average_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max_pool(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _chain(layers: list[_Layer]) -> _Layer:
    return lambda x: functools.reduce(lambda x, layer: layer(x), layers, x)


def _join(*branches: list[_Layer]) -> _Layer:
    """Branches side by side, their channels one after the other."""
    return lambda x: jnp.concatenate([_chain(branch)(x) for branch in branches], axis=-1)


def _layers() -> list[_Layer]:
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


def _in(block: str) -> Callable[..., _Layer]:
    return lambda name, *args: _conv(f"{block}.{name}", *args)


def _mixed_a(block: str, pool: int) -> _Layer:
    conv = _in(block)
    return _join(
        [conv("branch1x1", 64)],
        [conv("branch5x5_1", 48), conv("branch5x5_2", 64, 5)],
        [conv("branch3x3dbl_1", 64), conv("branch3x3dbl_2", 96, 3), conv("branch3x3dbl_3", 96, 3)],
        [_average_pool, conv("branch_pool", pool)],
    )


def _mixed_b(block: str) -> _Layer:
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


def _mixed_c(block: str, wide: int) -> _Layer:
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


def _mixed_d(block: str) -> _Layer:
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


def _mixed_e(block: str, pool: _Layer) -> _Layer:
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


# --- inverted residuals ---------------------------------------------------------------------------


MOBILE_SIZE = 224
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

        x = resize(to_bytes(x), MOBILE_SIZE, MOBILE_SIZE)
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


def convert_mobile(tensors: Mapping[str, np.ndarray], epsilon: float, dense: str) -> dict[str, Any]:
    """The parameters of `InvertedResiduals` from a PyTorch state_dict in the order of execution.

    Args:
      epsilon: of the batch norms.
      dense: name of the last layer.
    """
    convolutions = fold_batch_norms(tensors, epsilon).values()
    params: dict[str, Any] = {f"convolution_{i:02}": conv for i, conv in enumerate(convolutions)}
    kernel = dense_kernel(tensors, dense)
    params["logits"] = {"kernel": kernel, "bias": tensors[f"{dense}.bias"]}
    return params
