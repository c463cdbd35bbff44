"""The learned schedule: log_snr(t) = max + (min - max) g(t), g increasing from 0 to 1, with
parameters.

Its shape g and, if asked for, its endpoints are array leaves; everything else about it is like a
fixed schedule. How it is trained is in `diffax.objectives.schedule_gradient`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import arguments
from diffax.registry import unknown
from diffax.schedules.base import (
    LOG_SNR_MAX,
    LOG_SNR_MIN,
    Schedule,
    as_float,
    check_endpoints,
    hold_ends,
)
from diffax.schedules.fields import pytree, static


class Shape(NamedTuple):
    """A parametrised increasing function g on [0, 1] with g(0) = 0 and g(1) = 1."""

    init: Callable[[jax.Array, int], Any]  # (key, size) -> parameters
    rise: Callable[[Any, jax.Array], jax.Array]  # increasing, not yet normalised; shape of t
    size: int  # the default size


def _init_monotone(key: jax.Array, size: int) -> dict[str, jax.Array]:
    # Sigmoids of every steepness, with centres spread over [0, 1] and a little beyond: near linear
    # at first, and able to steepen or to flatten anywhere. They carry most of the rise, so that
    # they can take it from where it is not wanted. Positive numbers are held as logarithms.
    steepness = jax.random.uniform(key, (size,), minval=math.log(4.0), maxval=math.log(100.0))
    return {
        "slope": jnp.zeros(()),
        "height": jnp.full((size,), math.log(5.0), steepness.dtype),
        "steepness": steepness,
        "centre": jnp.linspace(-0.1, 1.1, size),
    }


def _rise_monotone(p: dict[str, jax.Array], t: jax.Array) -> jax.Array:
    # Sum exp(slope) t + mean(exp(height) sigmoid(s (t - c))), up to a constant and a factor: the
    # mean of the share that each term has risen by, weighted by how far it rises from 0 to 1. The
    # weights are a softmax, so that parameters of any size give neither infinity nor 0 / 0.
    s, c, log_sigmoid = jnp.exp(jnp.clip(p["steepness"], -16, 16)), p["centre"], jax.nn.log_sigmoid
    # sigmoid(s (t - c)) - sigmoid(-s c) = (1 - exp(-s t)) sigmoid(s (t - c)) sigmoid(s c)
    at_one = log_sigmoid(s * (1 - c))
    rises = p["height"] - math.log(c.size) + jnp.log(-jnp.expm1(-s)) + at_one + log_sigmoid(s * c)
    weights = jax.nn.softmax(jnp.append(p["slope"], rises))
    t = t[..., None]
    shares = jnp.expm1(-s * t) / jnp.expm1(-s) * jnp.exp(log_sigmoid(s * (t - c)) - at_one)
    return jnp.sum(weights * jnp.concatenate([t, shares], axis=-1), axis=-1)


def _init_piecewise(key: jax.Array, size: int) -> dict[str, jax.Array]:
    del key  # starts linear
    return {"logits": jnp.zeros((size,))}


def _rise_piecewise(p: dict[str, jax.Array], t: jax.Array) -> jax.Array:
    increments = jax.nn.softmax(p["logits"])
    size = increments.shape[-1]
    before = jnp.cumsum(increments) - increments
    piece = jnp.clip(jnp.floor(t * size), 0, size - 1).astype(jnp.int32)
    return before[piece] + increments[piece] * (t * size - piece)


def _init_polynomial(key: jax.Array, size: int) -> dict[str, jax.Array]:
    del key, size  # starts linear: derivative 1
    return {"a": jnp.zeros(()), "b": jnp.zeros(()), "c": jnp.ones(())}


def _rise_polynomial(p: dict[str, jax.Array], t: jax.Array) -> jax.Array:
    # The integral of (a s^2 + b s + c)^2 from 0 to t by Gauss's three points, which is exact. No
    # term is negative, so that large parameters cancel nothing. A common factor of a, b and c makes
    # no difference, and is divided out: else rounding alone would be the gradient along it, which
    # optimisers such as Adam turn into steps of full length.
    factor = jnp.max(jnp.abs(jnp.stack([p["a"], p["b"], p["c"]])))
    a, b, c = p["a"] / factor, p["b"] / factor, p["c"] / factor
    total = jnp.zeros_like(t)
    for node, weight in zip(*np.polynomial.legendre.leggauss(3)):
        s = t * (0.5 + 0.5 * float(node))
        total = total + float(weight) * ((a * s + b) * s + c) ** 2
    return 0.5 * t * total


SHAPES: dict[str, Shape] = {
    "monotone": Shape(_init_monotone, _rise_monotone, 128),
    "piecewise_linear": Shape(_init_piecewise, _rise_piecewise, 64),
    "polynomial": Shape(_init_polynomial, _rise_polynomial, 3),
}


@pytree
class Learned(Schedule):
    """A schedule with parameters; made by `learned`."""

    shape: Any  # the parameters of g
    ends: jax.Array | None  # (2,): log_snr_max and log of the range, if they are learned
    kind: str = static()
    log_snr_max: float = static()  # used where `ends` is None
    log_snr_min: float = static()

    def endpoints(self) -> tuple[Any, Any]:
        """(log_snr(0), log_snr(1))."""
        if self.ends is None:
            return self.log_snr_max, self.log_snr_min
        return self.ends[0], self.ends[0] - jnp.exp(self.ends[1])

    def log_snr(self, t):
        """max (1 - g(t)) + min g(t)."""
        t = as_float(t)
        rise = SHAPES[self.kind].rise
        low = rise(self.shape, jnp.zeros((), t.dtype))
        high = rise(self.shape, jnp.ones((), t.dtype))
        g = (rise(self.shape, t) - low) / (high - low)
        first, last = self.endpoints()
        return hold_ends(first * (1 - g) + last * g, t, first, last)

    def endpoint_mask(self):
        """True for `ends`, False for `shape`."""
        mask = jax.tree.map(lambda _: False, self)
        return mask if self.ends is None else dataclasses.replace(mask, ends=True)


def learned(
    key: jax.Array | None = None,
    kind: str = "monotone",
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    learn_endpoints: bool = False,
    size: int | None = None,
) -> Schedule:
    """A learned schedule, near log-SNR-linear at first.

    Args:
      key: PRNG key, for kind="monotone"; None is jax.random.key(0).
      kind: "monotone", a positive-weight network of one hidden layer (Kingma 2021, supplement);
        "piecewise_linear", softmax increments; "polynomial", of degree 5 with derivative
        (a t^2 + b t + c)^2 (Sahoo 2024).
      log_snr_max, log_snr_min: the endpoints, or where they start from if they are learned.
      learn_endpoints: whether the endpoints are parameters too.
      size: hidden units (monotone, 128 by default) or pieces (piecewise_linear, 64).

    Raises:
      ValueError: an unknown kind, endpoints out of order, or a size that is not from 1 to 65536.
    """
    if kind not in SHAPES:
        raise ValueError(unknown("kind", kind, sorted(SHAPES)))
    log_snr_max, log_snr_min = check_endpoints(log_snr_max, log_snr_min)
    size = SHAPES[kind].size if size is None else arguments.whole("size", size, 1, 65_536)
    parameters = SHAPES[kind].init(jax.random.key(0) if key is None else key, size)
    ends = jnp.array([log_snr_max, jnp.log(log_snr_max - log_snr_min)]) if learn_endpoints else None
    return Learned(parameters, ends, kind, log_snr_max, log_snr_min)
