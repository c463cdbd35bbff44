"""An autoencoder: data to latents and back, with a small pull of the latents to a normal law."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffax.data import DatasetInfo
from diffax.distributed.batch import BatchSharding, over_micro_batches
from diffax.methods import base
from diffax.methods.base import Arrays, Batch, Measure, Method, Metrics
from diffax.metric import Metric

PEAK = 2.0  # the range of the data, [-1, 1]


class AutoencoderState(flax.struct.PyTreeNode):
    """All that changes in training."""

    step: jax.Array  # int32 (): updates so far
    params: Any  # of the network
    ema_params: Any  # their exponential moving average, by which one encodes and decodes
    opt_state: Any
    latent_mean: jax.Array  # (Z,): of the latents of the training set, a moving average
    latent_square: jax.Array  # (Z,): likewise the mean of their squares
    key: jax.Array  # PRNG key; constant: the keys of a step are folded from it and the step


def kl_divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(N(mean, variance) || N(0, I)) of each example in nats, (batch,)."""
    each = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return jnp.sum(each, range(1, mean.ndim))


def latent_deviation(state: AutoencoderState) -> jax.Array:
    """The deviation of the training set's latents, per channel, (Z,)."""
    return jnp.sqrt(jnp.maximum(state.latent_square - state.latent_mean**2, 1e-12))


def autoencoder(
    data: DatasetInfo,
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
    grad_accumulation: int,
    *,
    kl_weight: float = 1e-6,
) -> Method:
    """A KL-regularised autoencoder (Rombach 2022, section 3.1, without the adversarial loss).

    The loss of an example x of D numbers is

        |x - decode(z)|_1 / D + kl_weight KL(q(z | x) || N(0, I)) / D,   z ~ q(z | x).

    The mean and the deviation of the training set's latents are kept per channel, as moving
    averages beside those of the parameters. Latent diffusion divides by that deviation.

    The step's metrics: "loss"; "absolute_error", the first term; "rate", the KL divergence in bits
    per dimension of the data; "grad_norm", before clipping; "learning_rate"; "update_size".

    Args:
      data: what is known of the data.
      network: `diffax.models.Autoencoder`, or a module with its `encode` and `decode`.
      optimizer: of the network; `learning_rate`, step -> rate, is only logged.
      ema_decay: of the moving averages.
      grad_accumulation: micro-batches per step.
      kl_weight: weight of the KL divergence, which is divided by D like the error.

    Raises:
      ValueError: the network is no autoencoder, or kl_weight is negative.
    """
    if not hasattr(network, "encode"):
        raise ValueError(
            f"method 'autoencoder' trains a network that encodes and decodes, and"
            f" {type(network).__name__} does not: set model.name='autoencoder'"
        )
    if not 0 <= kl_weight < math.inf:
        raise ValueError(f"method.kl_weight is {kl_weight}; it must be a number of at least 0")
    size = math.prod(data.shape)

    def encode(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return network.apply({"params": params}, x, method="encode")

    def decode(params: Any, z: jax.Array) -> jax.Array:
        return network.apply({"params": params}, z, method="decode")

    def init(key: jax.Array) -> AutoencoderState:
        init_key, run_key = jax.random.split(key)
        x = jnp.zeros((1, *data.shape))
        params = network.init(init_key, x)["params"]
        mean, _ = jax.eval_shape(encode, params, x)
        return AutoencoderState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=params,
            opt_state=optimizer.init(params),
            latent_mean=jnp.zeros(mean.shape[-1:]),
            latent_square=jnp.ones(mean.shape[-1:]),
            key=run_key,
        )

    def loss_and_gradient(
        state: AutoencoderState, x: jax.Array, key: jax.Array, sharding: BatchSharding
    ) -> tuple[dict[str, jax.Array], Any]:
        """The means over the global batch of what a step measures, and the loss's gradient."""
        latent = jax.eval_shape(encode, state.params, x)[0]
        whole = (len(x) * sharding.size, *latent.shape[1:])
        noise = sharding.local(jax.random.normal(key, whole, x.dtype))

        def loss_of(params: Any, rows: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            mean, log_variance = encode(params, rows["x"])
            z = mean + jnp.exp(0.5 * log_variance) * rows["noise"]
            error = jnp.mean(jnp.abs(rows["x"] - decode(params, z)))
            nats = jnp.mean(kl_divergence(mean, log_variance)) / size
            axes = range(z.ndim - 1)
            found = {
                "loss": error + kl_weight * nats,
                "absolute_error": error,
                "rate": nats / math.log(2),
                "latent_mean": jnp.mean(z, axes),
                "latent_square": jnp.mean(z**2, axes),
            }
            return found["loss"], found

        def of_rows(rows: Batch, number: jax.Array | int) -> tuple[Any, dict]:
            del number
            gradient, found = jax.grad(loss_of, has_aux=True)(state.params, rows)
            return (found, gradient), {}

        means, _ = over_micro_batches(of_rows, {"x": x, "noise": noise}, grad_accumulation)
        return sharding.mean(means)

    def gradient(
        state: AutoencoderState, batch: Batch, key: jax.Array, sharding: BatchSharding
    ) -> Any:
        return loss_and_gradient(state, batch["x"], key, sharding)[1]

    required = {"loss": base.LOSS, "grad_norm": base.GRAD_NORM, "update_size": base.UPDATE_SIZE}

    def step(
        state: AutoencoderState, batch: Batch, sharding: BatchSharding
    ) -> tuple[AutoencoderState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        found, grads = loss_and_gradient(state, batch["x"], key, sharding)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = ("latent_mean", "latent_square")
        metrics = {
            **{name: value for name, value in found.items() if name not in averages},
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
            "update_size": base.update_size(updates, state.params),
        }

        def averaged(before: Any, now: Any) -> Any:
            return base.moving_average(before, now, ema_decay, state.step)

        state = base.advance(
            state,
            metrics,
            required,
            params=params,
            ema_params=averaged(state.ema_params, params),
            opt_state=opt_state,
            **{name: averaged(getattr(state, name), found[name]) for name in averages},
        )
        return state, metrics

    # --- what is measured, by the averaged parameters ---

    def squared_error(
        state: AutoencoderState, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        x = batch["x"]
        mean, _ = encode(state.ema_params, x)
        error = jnp.mean((x - decode(state.ema_params, mean)) ** 2, range(1, x.ndim))
        return {"squared_error": error}

    def rate(state: AutoencoderState, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        nats = kl_divergence(*encode(state.ema_params, batch["x"]))
        return {"rate": nats / (size * math.log(2))}

    def preview(state: AutoencoderState, keys: jax.Array, batch: Batch) -> jax.Array:
        """Each example beside its reconstruction from the mean of its latents."""
        x = batch["x"]
        made = decode(state.ema_params, encode(state.ema_params, x)[0])
        return jnp.stack([x, made], axis=1).reshape(-1, *x.shape[1:])

    return Method(
        init=init,
        step=step,
        sample=None,
        measures={
            "psnr": Measure(
                squared_error, psnr_summary, logged=_psnr_logged, metrics=(PSNR, ERROR)
            ),
            "rate": Measure(rate, rate_summary, logged=_rate_logged, metrics=(RATE,)),
        },
        required_finite=required,
        gradient=gradient,
        preview=preview,
        diagnostics=("update_size",),
        batch_factors={"config.training.grad_accumulation": grad_accumulation},
    )


PSNR = Metric(
    "psnr",
    "PSNR",
    "dB",
    lower_is_better=False,
    digits=2,
    meaning="The peak signal-to-noise ratio of reconstructions of held-out examples, from the mean"
    " of their latents: 10 log10(4 / mean squared error) for values in [-1, 1].",
)
ERROR = Metric(
    "squared_error",
    "Squared error",
    digits=4,
    main=False,
    meaning="The mean squared error of those reconstructions.",
)
RATE = Metric(
    "rate",
    "Rate",
    "bits/dim",
    lower_is_better=None,
    digits=4,
    meaning="The KL divergence of the latents’ distribution from a standard normal one, on held-out"
    " examples, in bits for each of an example’s values: how much the latents tell of it at most.",
)


def psnr_summary(found: Arrays) -> dict[str, Any]:
    """10 log10(PEAK^2 / mean squared error): "psnr", of all examples together."""
    errors = found["squared_error"][0]
    return {
        "psnr": _psnr(errors),
        "squared_error": float(errors.mean()),
        "num_examples": len(errors),
        "peak": PEAK,
    }


def rate_summary(found: Arrays) -> dict[str, Any]:
    """The mean KL divergence, bits per dimension of the data: "rate", with its standard error."""
    (bits,) = found["rate"]
    return {
        "rate": float(bits.mean()),
        **base.standard_error(bits),
        "num_examples": len(bits),
    }


def _psnr(errors: np.ndarray) -> float:
    mean = float(errors.mean())
    return 10 * math.log10(PEAK**2 / mean) if mean > 0 else math.inf


def _psnr_logged(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"psnr": _psnr(found["squared_error"])}


def _rate_logged(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"rate": float(found["rate"].mean())}
