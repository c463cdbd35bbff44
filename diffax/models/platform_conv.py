"""Convolutions and matrix products of the networks, in forms of fewer operations for a CPU.

XLA's convolution runs near a core's peak there, so a faster one must multiply less: by minimal
filtering (Winograd), and by not convolving what upsampling repeats. The plain forms, which other
platforms get, agree with them in value and in derivatives of any order and mode. flax's own layers
call `conv`, `upsampled_conv` and `product`: names and shapes of parameters are theirs.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from diffax.models import platform

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]

# Minimal filtering F(4, 3) (Winograd 1980; Lavin & Gray 2016, section 4.3), along the width: four
# outputs of a filter of three from six inputs, y = OUTPUT [(FILTER k) * (INPUT x)], by 6
# multiplications instead of 12.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
TILE = len(OUTPUT)

# Below this many multiply-adds what is saved is lost on the transforms, and not worth compiling.
LEAST_WORK = 1e8
LEAST_CHANNELS = 16
# The weight gradient gains from so many input channels on, or where there are more than outputs.
LEAST_CHANNELS_OF_GRADIENT = 96
# What goes through at once: entries of the input, and tiles in the weight gradient.
ENTRIES_OF_CHUNK = 2**18
TILES_OF_CHUNK = 128


def alone() -> bool:
    """Whether JAX has one device, a CPU, and is not inside a `jax.shard_map` or under a mesh.

    Chunks of a batch that devices share would cost transfers; and the primitives below know nothing
    of mesh axes, along which their arguments may vary.
    """
    one = platform.on_cpu() and jax.device_count() == 1
    return one and jax.sharding.get_abstract_mesh().empty


def combine(matrix: Sequence[Sequence[float]], parts: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, written out: most entries are 0, 1 or -1."""

    def row_sum(row: Sequence[float]) -> jax.Array:
        terms = [a if c == 1 else c * a for c, a in zip(row, parts) if c != 0]
        return sum(terms[1:], start=terms[0])

    return [row_sum(row) for row in matrix]


def _input_tiles(x: jax.Array) -> list[jax.Array]:
    """INPUT applied to the tiles along the width: (B, H, W, C) -> six of (B, H, W / 4, C)."""
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height, width // TILE, TILE, channels)
    before = jnp.pad(tiles[:, :, :-1, TILE - 1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    after = jnp.pad(tiles[:, :, 1:, 0], ((0, 0), (0, 0), (0, 1), (0, 0)))
    return combine(INPUT, [before, *(tiles[:, :, :, i] for i in range(TILE)), after])


def _from_tiles(products: Sequence[jax.Array]) -> jax.Array:
    """OUTPUT applied to six of (B, H, W / 4, C), side by side: (B, H, W, C)."""
    batch, height, tiles, channels = products[0].shape
    outputs = jnp.stack(combine(OUTPUT, products), axis=3)
    return outputs.reshape(batch, height, TILE * tiles, channels)


def _convolve(x: jax.Array, kernel: jax.Array, padding="SAME") -> jax.Array:
    """(B, ..., C) with (..., C, D): a convolution of stride 1, in XLA's own form."""
    axes = "".join(chr(ord("a") + i) for i in range(x.ndim - 2))
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    strides = (1,) * (x.ndim - 2)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def _chunks(per_image: int, least: int, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays with the batch axis split into chunks, of at least `least` if the batch has it."""
    batch, chunk = arrays[0].shape[0], 1
    while chunk * per_image < least and batch % (2 * chunk) == 0:
        chunk *= 2
    return [a.reshape(batch // chunk, chunk, *a.shape[1:]) for a in arrays]


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution as six 3x1 convolutions of a quarter of the width.

    Chunks of the batch go through one by one. What is at work stays in the cache then, and XLA
    can't fuse what computes x into all six transforms, to be repeated in each.
    """
    kernels = combine(FILTER, [kernel[:, i : i + 1] for i in range(3)])

    def convolve_chunk(_, x):
        return None, _from_tiles([_convolve(tile, k) for tile, k in zip(_input_tiles(x), kernels)])

    (chunks,) = _chunks(math.prod(x.shape[1:]), ENTRIES_OF_CHUNK, x)
    _, out = jax.lax.scan(convolve_chunk, None, chunks)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def _input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    return _winograd(g, kernel[::-1, ::-1].swapaxes(2, 3))


def _output_tiles(g: jax.Array) -> list[jax.Array]:
    """The transpose of `_from_tiles`: (B, H, W, D) -> six of (B, H, W / 4, D)."""
    batch, height, width, features = g.shape
    tiles = g.reshape(batch, height, width // TILE, TILE, features)
    return combine(tuple(zip(*OUTPUT)), [tiles[:, :, :, i] for i in range(TILE)])


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
        inputs = jnp.stack(_input_tiles(x)).reshape(len(INPUT), -1, channels)
        outputs = jnp.stack([_with_neighbours(tile) for tile in _output_tiles(g)])
        outputs = outputs.reshape(len(INPUT), -1, 3 * features)
        return total + jnp.einsum("qnm,qnc->qmc", outputs, inputs), None

    total = jnp.zeros((len(INPUT), 3 * features, channels), x.dtype)
    chunks = _chunks(x.shape[1] * x.shape[2] // TILE, TILES_OF_CHUNK, x, g)
    total, _ = jax.lax.scan(add_chunk, total, chunks)
    total = total.reshape(len(INPUT), 3, features, channels)
    return jnp.einsum("qj,qidc->ijcd", jnp.asarray(FILTER, x.dtype), total)


def _plain_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)(g)[0]


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


_conv_narrow = bilinear(
    "conv_3x3_narrow", _convolve, _winograd, _input_gradient, _plain_kernel_gradient
)
_conv_wide = bilinear("conv_3x3_wide", _convolve, _winograd, _input_gradient, _kernel_gradient)


def conv_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A padded 3x3 convolution of float32 images, (B, H, W, C) with (3, 3, C, D), W divisible by 4.

    Half the multiplications of the plain form; rounding errors are about three times as large.
    """
    channels, features = kernel.shape[2:]
    wide = channels > features or channels >= LEAST_CHANNELS_OF_GRADIENT
    return (_conv_wide if wide else _conv_narrow)(x, kernel)


DILATIONS = ("lhs_dilation", "rhs_dilation")


def _suits(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding) -> bool:
    """Whether `conv_3x3` computes this convolution, and faster."""
    if not (x.ndim == 4 and kernel.shape[:2] == (3, 3) and padding == "SAME"):
        return False
    work = math.prod(x.shape) * math.prod(kernel.shape[:2]) * kernel.shape[-1]
    return (
        tuple(strides) == (1, 1)
        and x.shape[2] % TILE == 0
        and x.shape[2] >= 2 * TILE
        and x.dtype == kernel.dtype == jnp.float32  # too little precision to spare in bfloat16
        and min(kernel.shape[2:]) >= LEAST_CHANNELS
        and work >= LEAST_WORK
    )


def conv(x: jax.Array, kernel: jax.Array, strides, padding, **kwargs) -> jax.Array:
    """`jax.lax.conv_general_dilated`, as flax calls it, for (B, ..., C) with (..., C, D)."""
    undilated = all(factor == 1 for name in DILATIONS for factor in kwargs.get(name) or ())
    ungrouped = kwargs.get("feature_group_count", 1) == 1
    if alone() and undilated and ungrouped and _suits(x, kernel, strides, padding):
        return conv_3x3(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def upsample(x: jax.Array) -> jax.Array:
    """Doubles every spatial axis of (B, ..., C) by repeating each entry (nearest neighbour)."""
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis=axis)  # by a number, this is a broadcast and a reshape
    return x


def _halves(kernel: jax.Array, axis: int) -> list[jax.Array]:
    """What a kernel of 3 is to entries repeated along an axis: a kernel of 2 before, one behind."""
    first, middle, last = jnp.split(kernel, 3, axis)
    pairs = (first, middle + last), (first + middle, last)
    return [jnp.concatenate(pair, axis) for pair in pairs]


def upsampled_conv_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A padded convolution of `upsample`d x with a kernel of 3: 2^d convolutions with kernels of 2.

    x is (B, ..., C) with d spatial axes, the result (B, ..., D) with each of them doubled. For
    images that takes 4/9 of the multiplications.
    """
    spatial = range(x.ndim - 2)
    kernels = {(): kernel}
    for axis in spatial:
        kernels = {
            (*place, side): half
            for place, whole in kernels.items()
            for side, half in enumerate(_halves(whole, axis))
        }
    out = {
        place: _convolve(x, half, [(1 - side, side) for side in place])
        for place, half in kernels.items()
    }
    # The last axis is interleaved first: an index leaves the places, an axis joins the array.
    for axis in reversed(spatial):
        out = {
            place: jnp.stack([out[(*place, side)] for side in (0, 1)], axis + 2)
            for place in itertools.product((0, 1), repeat=axis)
        }
    return out[()].reshape(x.shape[0], *(2 * size for size in x.shape[1:-1]), kernel.shape[-1])


def upsampled_conv_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A padded convolution of `upsample`d x with a kernel of 3."""
    return _convolve(upsample(x), kernel)


_upsampled_conv = platform.by_platform(upsampled_conv_cpu, upsampled_conv_plain)


def upsampled_conv(x: jax.Array, kernel: jax.Array, *_, **__) -> jax.Array:
    """`upsampled_conv_plain`, in the platform's form, as flax calls a convolution."""
    return _upsampled_conv(x, kernel)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("...c,cd->...d", x, kernel)


def _product_input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("...d,cd->...c", g, kernel)


def _product_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    # One product per example: for one contraction over all, XLA would transpose both arrays.
    x, g = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (x, g))
    return jnp.einsum("bnd,bnc->bdc", g, x).sum(axis=0).T


product_cpu = bilinear(
    "product", _product, _product, _product_input_gradient, _product_kernel_gradient
)


def product(x: jax.Array, kernel: jax.Array, dimension_numbers, **kwargs) -> jax.Array:
    """`jax.lax.dot_general`, as flax calls it for a dense layer: (..., C) with (C, D)."""
    if alone() and x.ndim > 2:
        return product_cpu(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **kwargs)
