"""Small networks and what compares their results, shared by the tests of models and layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffax import models

TINY = dict(channels=8, channel_mults=(1, 2), num_blocks=1, attention_resolutions=(4,))
BATCH = 2

# Most of the time here is compilation, and what runs is tiny.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def unet(**fields):
    return models.get("unet", **{**TINY, **fields})


def inputs(shape=(8, 8, 1), seed=0):
    """x of BATCH examples and two distinct log-SNRs."""
    x = jax.random.normal(jax.random.key(seed), (BATCH, *shape))
    return x, jnp.array([-3.0, 2.0])


def random_variables(module, x, noise_level, seed=1):
    """Variables of the module with no zeros among them: what a trained network is like."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, noise_level)
    rng = np.random.default_rng(seed)
    fill = {True: lambda s: 1 + 0.1 * rng.normal(size=s), False: lambda s: 0.2 * rng.normal(size=s)}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(fill[path[-1].key == "scale"](leaf.shape), leaf.dtype),
        shapes,
    )


def assert_trees_close(a, b, rtol):
    """Leaf by leaf, within rtol of the leaf's largest entry."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(
            one, other, rtol=0, atol=rtol * float(jnp.abs(one).max()) + 1e-30
        )


def equations(jaxpr):
    """All equations of a jaxpr, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def values_and_derivatives(function, args, weight):
    """f, a weighted sum's gradient, f's change along a direction, the sum's change's gradient."""

    def total(*args):
        return (function(*args) * weight).sum()

    def change(*args):
        return jax.jvp(total, args, tuple(jnp.cos(3 * arg) for arg in args))[1]

    gradient = functools.partial(jax.grad, argnums=tuple(range(len(args))))
    along = jax.jvp(function, args, tuple(jnp.cos(3 * arg) for arg in args))[1]
    return function(*args), gradient(total)(*args), along, gradient(change)(*args)


def compare_forms(forms, args, weight, rtol):
    derive = [quick_jit(functools.partial(values_and_derivatives, form)) for form in forms]
    assert_trees_close(*(f(args, weight) for f in derive), rtol)
