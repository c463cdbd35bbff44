"""A bilinear function computed in a form of one's own, with gradients of its own: a primitive."""

from collections.abc import Callable

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

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
