"""A plugin with a method of its own: linear regression of a point's last coordinate on the others.

What a user might write; one file and one line.
"""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from diffax import methods
from diffax.metric import Metric


class LineState(flax.struct.PyTreeNode):
    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    key: jax.Array


def line(data, optimizer, ema_decay, *, ridge: float = 0.0, noise: float = 0.0):
    """y = w x + b by least squares.

    Args:
      ridge: weight of w squared.
      noise: deviation of the noise that is added to x in training.
    """
    required = {"loss": methods.LOSS, "grad_norm": methods.GRAD_NORM}

    def init(key):
        params = {"w": jnp.zeros(data.shape[0] - 1), "b": jnp.zeros(())}
        return LineState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params), key)

    def error(params, x):
        return (x[..., -1] - x[..., :-1] @ params["w"] - params["b"]) ** 2

    def gradient(state, batch, key, sharding):
        num = len(batch["x"]) * sharding.size
        added = sharding.local(jax.random.normal(key, (num, data.shape[0] - 1)))
        x = batch["x"].at[..., :-1].add(noise * added)

        def loss(params):
            return jnp.mean(error(params, x)) + ridge * jnp.sum(params["w"] ** 2)

        return sharding.mean(jax.value_and_grad(loss)(state.params))

    def step(state, batch, sharding):
        loss, grads = gradient(state, batch, jax.random.fold_in(state.key, state.step), sharding)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = methods.moving_average(state.ema_params, params, ema_decay, state.step)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        updated = dict(params=params, ema_params=average, opt_state=opt_state)
        return methods.advance(state, metrics, required, **updated), metrics

    def squared_error(state, key, batch):
        return {"error": error(state.ema_params, batch["x"])}

    mse = methods.Measure(
        squared_error,
        summary=lambda found: {"mse": float(found["error"].mean())},
        logged=lambda found: {"mse": float(found["error"].mean())},
        metrics=(Metric("mse", "Squared error"),),
    )
    return methods.Method(
        init=init,
        step=step,
        sample=None,
        measures={"mse": mse},
        required_finite=required,
        gradient=lambda *given: gradient(*given)[1],
    )


methods.register("line", line)
