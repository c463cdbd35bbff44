"""Padded 3x3 convolutions of few multiplications, by minimal filtering.

F(4, 3) (Winograd 1980; Lavin & Gray 2016) gives four outputs of a filter of three from six inputs,

    y = output [(filter k) * (input x)],

by 6 multiplications instead of 12; along both axes of an image by 36 instead of 144. float32 only:
rounding errors are a few times those of the plain form.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from diffax.models.operations import convolve

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]


def bilinear(
    name: str, plain: Bilinear, fast: Bilinear, input_gradient: Bilinear, kernel_gradient: Bilinear
) -> Bilinear:
    """plain(x, kernel), computed by `fast`, with gradients of its own: a primitive.

    A `jax.custom_vjp` would do, but forbids forward mode. Here the derivative along (dx, dkernel)
    is f(dx, kernel) + f(x, dkernel), and the two gradients are the transposes of these.

    Args:
      name: what the primitive is called in a jaxpr.
      plain: a function of ordinary JAX operations; also what `jax.vmap` maps.
      fast: the same function, as it shall be computed.
      input_gradient: of (g, kernel), g of the output's shape.
      kernel_gradient: of (x, g).
    """
    primitive = Primitive(name)

    def abstract(x, kernel):
        return jax.make_jaxpr(plain)(x, kernel).out_avals[0]

    def mapped(args, axes):
        return jax.vmap(plain, in_axes=axes)(*args), 0

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(fast))
    mlir.register_lowering(primitive, mlir.lower_fun(fast, multiple_results=False))
    ad.defbilinear(
        primitive,
        lambda g, x, kernel: input_gradient(g, kernel),
        lambda g, x, kernel: kernel_gradient(x, g),
    )
    batching.primitive_batchers[primitive] = mapped
    return primitive.bind


TILE = 4
POINTS = 6


class Filtering(NamedTuple):
    """The three matrices of F(4, 3), float64."""

    input: np.ndarray  # (6, 6)
    filter: np.ndarray  # (6, 3)
    output: np.ndarray  # (4, 6)


def filtering(*points: Fraction | int) -> Filtering:
    """F(4, 3) from five distinct points (Toom-Cook; infinity is the sixth).

    The product of two polynomials follows from their values at the points: `output` and `filter`
    evaluate one of 4 and one of 3 coefficients, the latter over the Lagrange denominators, and the
    rows of `input` are the Lagrange numerators. Filtering is the transpose of that product.
    """
    points = [Fraction(point) for point in points]
    others = [points[:i] + points[i + 1 :] for i in range(5)]
    denominators = [math.prod(p - q for q in rest) for p, rest in zip(points, others)]
    powers = [[p**k for k in range(4)] for p in points] + [[0, 0, 0, 1]]
    filters = [[p**k / d for k in range(3)] for p, d in zip(points, denominators)] + [[0, 0, 1]]
    numerators = [np.poly(np.array(roots, float))[::-1] for roots in (*others, points)]
    inputs = [np.pad(row, (0, 6 - len(row))) for row in numerators]
    return Filtering(np.array(inputs), np.array(filters, float), np.array(powers, float).T)


# Along one axis, where it is additions that count: most entries are 0, 1 or -1.
ROWS = filtering(0, 1, -1, 2, -2)
# Along both, by matrix products, where any number will do: the rounding errors are a third.
IMAGES = filtering(0, Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))

# The weight gradient gains from so many input channels on, or where there are more than outputs.
LEAST_CHANNELS_OF_GRADIENT = 96
# What goes through at once: entries of input or output, and tiles in the weight gradient.
ENTRIES_OF_CHUNK = 2**18
TILES_OF_CHUNK = 128
# Of 4x4, from which on a batch goes through in halves.
LEAST_IMAGES_IN_HALVES = 64


def combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, written out: most entries are 0, 1 or -1."""

    def row_sum(row: Sequence[float]) -> jax.Array:
        terms = [a if c == 1 else c * a for c, a in zip(row, parts) if c != 0]
        return sum(terms[1:], start=terms[0])

    return [row_sum(row) for row in matrix.tolist()]


def _input_tiles(x: jax.Array) -> list[jax.Array]:
    """ROWS.input applied to the tiles along the width: (B, H, W, C) -> six of (B, H, W / 4, C)."""
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height, width // TILE, TILE, channels)
    before = jnp.pad(tiles[:, :, :-1, TILE - 1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    after = jnp.pad(tiles[:, :, 1:, 0], ((0, 0), (0, 0), (0, 1), (0, 0)))
    return combine(ROWS.input, [before, *(tiles[:, :, :, i] for i in range(TILE)), after])


def _from_tiles(products: Sequence[jax.Array]) -> jax.Array:
    """ROWS.output applied to six of (B, H, W / 4, C), side by side: (B, H, W, C)."""
    batch, height, tiles, channels = products[0].shape
    outputs = jnp.stack(combine(ROWS.output, products), axis=3)
    return outputs.reshape(batch, height, TILE * tiles, channels)


def _chunks(per_image: int, least: int, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays with the batch axis split into chunks, of at least `least` if the batch has it."""
    batch, chunk = arrays[0].shape[0], 1
    while chunk * per_image < least and batch % (2 * chunk) == 0:
        chunk *= 2
    return [a.reshape(batch // chunk, chunk, *a.shape[1:]) for a in arrays]


def _by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution as six 3x1 convolutions of a quarter of the width.

    Chunks of the batch go through one by one. What is at work stays in the cache then, and XLA
    can't fuse what computes x into all six transforms, to be repeated in each.
    """
    kernels = combine(ROWS.filter, [kernel[:, i : i + 1] for i in range(3)])

    def convolve_chunk(_, x):
        return None, _from_tiles([convolve(tile, k) for tile, k in zip(_input_tiles(x), kernels)])

    entries = math.prod(x.shape[1:-1]) * max(kernel.shape[2:])
    (chunks,) = _chunks(entries, ENTRIES_OF_CHUNK, x)
    _, out = jax.lax.scan(convolve_chunk, None, chunks)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def _input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    return _by_rows(g, kernel[::-1, ::-1].swapaxes(2, 3))


def _output_tiles(g: jax.Array) -> list[jax.Array]:
    """The transpose of `_from_tiles`: (B, H, W, D) -> six of (B, H, W / 4, D)."""
    batch, height, width, features = g.shape
    tiles = g.reshape(batch, height, width // TILE, TILE, features)
    return combine(ROWS.output.T, [tiles[:, :, :, i] for i in range(TILE)])


def _with_neighbours(g: jax.Array) -> jax.Array:
    """(B, H, W, D) -> (B, H, W, 3 D): at each row those below, itself and above."""
    padded = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return jnp.concatenate([padded[:, i : i + g.shape[1]] for i in (2, 1, 0)], axis=-1)


def _kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The weight gradient by the transposed algorithm, for x (B, H, W, C) and g (B, H, W, D).

    The images go through in chunks that stay in the cache, one batched matrix product each.
    """
    channels, features = x.shape[-1], g.shape[-1]

    def add_chunk(total, images):
        x, g = images
        inputs = jnp.stack(_input_tiles(x)).reshape(POINTS, -1, channels)
        outputs = jnp.stack([_with_neighbours(tile) for tile in _output_tiles(g)])
        outputs = outputs.reshape(POINTS, -1, 3 * features)
        return total + jnp.einsum("qnm,qnc->qmc", outputs, inputs), None

    total = jnp.zeros((POINTS, 3 * features, channels), x.dtype)
    chunks = _chunks(x.shape[1] * x.shape[2] // TILE, TILES_OF_CHUNK, x, g)
    total, _ = jax.lax.scan(add_chunk, total, chunks)
    total = total.reshape(POINTS, 3, features, channels)
    return jnp.einsum("qj,qidc->ijcd", jnp.asarray(ROWS.filter, x.dtype), total)


def _plain_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: convolve(x, kernel), kernel)(g)[0]


_conv_narrow = bilinear(
    "conv_3x3_narrow", convolve, _by_rows, _input_gradient, _plain_kernel_gradient
)
_conv_wide = bilinear("conv_3x3_wide", convolve, _by_rows, _input_gradient, _kernel_gradient)


def conv_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A padded 3x3 convolution of float32 images, (B, H, W, C) with (3, 3, C, D), W divisible by 4.

    Half the multiplications of the plain form; rounding errors are about three times as large.
    """
    channels, features = kernel.shape[2:]
    wide = channels > features or channels >= LEAST_CHANNELS_OF_GRADIENT
    return (_conv_wide if wide else _conv_narrow)(x, kernel)


def conv_of_4x4(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A padded 3x3 convolution of 4x4 float32 images, (B, 4, 4, C) with (3, 3, C, D).

    A quarter of the multiplications: one product a point for many images. An image is one tile, so
    that constant matrices take its 16 positions, and the kernel's 9, to the 36 points.

    The batch goes through in halves: both read what computes x, so that XLA doesn't fuse that into
    the change of axes, where it would run entry by entry.
    """
    channels, features = kernel.shape[2:]

    def apply(matrix: np.ndarray, a: jax.Array) -> jax.Array:
        """Along both axes of an image at once: (positions, ...) -> (positions, ...)."""
        product = jnp.asarray(np.kron(matrix, matrix), a.dtype) @ a.reshape(len(a), -1)
        return product.reshape(-1, *a.shape[1:])

    kernels = apply(IMAGES.filter, kernel.reshape(9, channels, features))

    def convolve_half(x: jax.Array) -> jax.Array:
        positions = x.reshape(len(x), TILE * TILE, channels).swapaxes(0, 1)
        inputs = apply(IMAGES.input[:, 1:-1], positions)  # beside the image all is zero
        outputs = apply(IMAGES.output, jnp.einsum("qbc,qcd->qbd", inputs, kernels))
        return outputs.swapaxes(0, 1).reshape(-1, TILE, TILE, features)

    if len(x) < LEAST_IMAGES_IN_HALVES:
        return convolve_half(x)
    return jnp.concatenate([convolve_half(half) for half in jnp.array_split(x, 2)])
