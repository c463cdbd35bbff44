"""Small networks that judge samples: trained once on a data set, and kept in the cache."""

import functools
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import jax
import optax
from flax import traverse_util

from diffax.data import Dataset
from diffax.files import cached


def kept(
    folder: str,
    dataset: Dataset,
    fingerprint: str,
    number: str,
    make: Callable[[], tuple[Any, float]],
) -> tuple[Any, float]:
    """The parameters of a network for a data set, and its own score on held-out data, from the
    cache or made now.

    Args:
      folder: of the cache.
      fingerprint: of all that the parameters depend on.
      number: what the score is called in the file.
      make: () -> parameters and score.
    """

    def arrays() -> dict[str, Any]:
        params, score = make()
        return {number: score, **traverse_util.flatten_dict({"params": params}, sep="/")}

    found = cached(folder, f"{quote(dataset.name, safe='')}-{fingerprint}", arrays)
    score = float(found.pop(number))
    return traverse_util.unflatten_dict(found, sep="/")["params"], score


def fitted(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Any],
) -> Any:
    """The parameters after a step of the optimiser on loss(params, batch) of each batch.

    A program per step, not one scan over all: inside a loop XLA's CPU backend runs a convolution's
    gradient several times slower (25 s against 6 s for the classifier of digits on two cores).
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for batch in batches:
        params, opt_state = step(params, opt_state, batch)
    return jax.device_get(params)
