"""A denoising diffusion GAN: a few large steps, each made by a generator with a latent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffax import process, samplers, schedules
from diffax.data import DatasetInfo
from diffax.methods import adversarial, base
from diffax.methods.adversarial import AdversarialState, Game, Turn
from diffax.methods.base import Batch, Method
from diffax.models import conditioning
from diffax.models.conditioning import Cond, Condition
from diffax.process import AnySchedule, expand_to


def denoising_gan(
    data: DatasetInfo,
    network: nn.Module,
    discriminator: nn.Module,
    conditions: Mapping[str, Condition],
    schedule: Callable[[jax.Array], AnySchedule],
    schedule_steps: int,
    optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
    grad_accumulation: int,
    sampling: Mapping[str, Any],
    *,
    denoising_steps: int = 4,
    adversarial_loss: str = "relativistic",
    r1_weight: float = 1.0,
    r2_weight: float = 1.0,
    latent_size: int = 64,
) -> Method:
    """A generator that denoises in T large steps (Xiao 2022, "Denoising Diffusion GAN").

    x_0 is clean, and x_1 .. x_T lie at equally spaced times of the schedule, the last at its noisy
    end (the grid "trailing"). Over a large step q(x_s | x_t), with s the level before t, is no
    Gaussian. It is modelled by

        x0_hat = G(x_t, log-SNR_t, z),   z ~ N(0, I),      x_s ~ q(x_s | x_t, x0_hat),

    where q is the posterior of the forward process, `process.posterior_between`, a Gaussian. At
    the last step x_s is x0_hat itself. The discriminator D(x_s, x_t, log-SNR_t) compares that x_s
    with one drawn from the data, x_s ~ q(x_s | x0) and x_t ~ q(x_t | x_s). The step is drawn
    uniformly of the T for each example. The losses are those of `diffax.methods.gan`, with the
    penalties of x_s. Xiao 2022 has the non-saturating one with r2_weight = 0; the relativistic one,
    which compares a real and a generated x_s of one x_t, kept more modes of a grid of 25 here.

    Where this differs from the authors' code (NVlabs/denoising-diffusion-gan). The times: theirs
    begin at 0.001, ours at 0, with x_0 clean in both. The network is the config's, told z by two
    dense layers whose result is added to its embedding (theirs has four, and scales and shifts
    each normalisation by them), and has no tanh at its end. R1 is taken in every step, where theirs
    takes it in every 10th or 15th. The discriminator has no feature of the batch's deviation. An
    update of the generator is judged by a discriminator that has seen other noise, in both.

    The step's metrics are those of `diffax.methods.gan`, of x_s in place of x.

    Args:
      data: what is known of the data.
      network: one that denoises and takes a latent: unet, dit or mlp; it gives x0.
      discriminator: `diffax.models.Discriminator`, or a module that is called like it.
      conditions: those that both are conditioned on.
      schedule: key -> the noise schedule.
      schedule_steps: where the schedule acts in discrete time, its number of steps; else 0.
      optimizer: of the generator; `learning_rate`, step -> rate, is only logged.
      discriminator_optimizer: of the discriminator.
      ema_decay: of the moving average of the generator's parameters.
      grad_accumulation: micro-batches per step.
      sampling: default options of samples, of which this method knows clip_x0.
      denoising_steps: T, the number of large steps.
      adversarial_loss: relativistic or non_saturating.
      r1_weight: of the penalty on real examples; 0 for none.
      r2_weight: of the penalty on fake examples; 0 for none.
      latent_size: numbers of a latent z.

    Raises:
      ValueError: a network that takes no latent or isn't conditioned on the log-SNR alone, an
        impossible option, a learned schedule, guidance, or a number of sampling steps other than T.
    """
    name = "denoising_gan"
    base.require_denoiser(name, network)
    kind = type(network).__name__
    if "latent" not in inspect.signature(type(network).__call__).parameters:
        raise ValueError(
            f"method {name!r} trains a network that takes a latent, and {kind} does not: set"
            " model.name to 'unet', 'dit' or 'mlp'"
        )
    for field, value in {
        "conditioning": "log_snr",
        "learned_variance": False,
        "dropout": 0,
    }.items():
        if getattr(network, field, value) != value:
            raise ValueError(
                f"method {name!r} needs a network with {field}={value!r}, and that of {kind} is"
                f" {getattr(network, field)!r}"
            )
    if denoising_steps < 1:
        raise ValueError(f"method.denoising_steps is {denoising_steps}; it must be at least 1")
    weights = dict(r1_weight=r1_weight, r2_weight=r2_weight)
    adversarial.check_options(adversarial_loss, latent_size, **weights)
    adversarial.refuse_options(name, sampling, num_steps=denoising_steps)
    adversarial.refuse_learned_schedule(name, schedule)
    adversarial.refuse_conditions(name, conditions)

    def levels() -> tuple[jax.Array, jax.Array]:
        """The log-SNRs before and after each step, (T,), the noisiest first."""
        along = schedules.effective(schedule(jax.random.key(0)), schedule_steps)
        from_ = samplers.visited_levels(along, denoising_steps, "trailing", "x0").log_snr
        return from_, jnp.append(from_[1:], jnp.inf)

    def denoised(
        params: Any, x_t: jax.Array, log_snr: jax.Array, z: jax.Array, cond: Cond, train: bool
    ) -> jax.Array:
        told = {**cond, "latent": z}
        return conditioning.apply(network, params, x_t, log_snr, told, train=train)

    def init(key: jax.Array, x: jax.Array, cond: Cond) -> tuple[Any, Any]:
        keys, level = jax.random.split(key), jnp.zeros(1)
        label, latent = cond.get("label"), jnp.zeros((1, latent_size))
        params = network.init(keys[0], x, level, label, latent=latent)["params"]
        return params, discriminator.init(keys[1], x, level, label, x)["params"]

    def draw(key: jax.Array, num: int, state: AdversarialState) -> dict[str, jax.Array]:
        del state
        keys = jax.random.split(key, 5)
        step = jax.random.randint(keys[0], (num,), 0, denoising_steps)
        names = ("noise", "step_noise", "posterior_noise")
        shape = (num, *data.shape)
        return {
            **{name: jax.random.normal(key, shape) for name, key in zip(names, keys[1:])},
            "z": jax.random.normal(keys[4], (num, latent_size)),
            **dict(zip(("log_snr_t", "log_snr_s"), (level[step] for level in levels()))),
        }

    def play(params: Any, rows: Batch) -> Turn:
        log_snr_t, log_snr_s, cond = rows["log_snr_t"], rows["log_snr_s"], rows["cond"]
        real = process.q_sample_at(rows["x"], log_snr_s, rows["noise"])
        beta = expand_to(process.transition_variance(log_snr_t, log_snr_s), real)
        x_t = jnp.sqrt(1 - beta) * real + jnp.sqrt(beta) * rows["step_noise"]
        x0 = denoised(params, x_t, log_snr_t, rows["z"], cond, train=True)
        mean, variance = process.posterior_between(x0, x_t, log_snr_t, log_snr_s)
        fake = mean + jnp.sqrt(variance) * rows["posterior_noise"]

        def judge(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return discriminator.apply({"params": params}, x, log_snr_t, cond.get("label"), x_t)

        return Turn(real, fake, judge, judge)

    game = Game(
        init=init,
        draw=draw,
        play=play,
        loss=adversarial.LOSSES[adversarial_loss],
        r1_weight=r1_weight,
        r2_weight=r2_weight,
        conditions=conditions,
        optimizer=optimizer,
        discriminator_optimizer=discriminator_optimizer,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        grad_accumulation=grad_accumulation,
    )

    def sample(state: AdversarialState, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        bound, normal = {**sampling, **options}["clip_x0"], jax.random.normal
        num, shape = len(keys), (len(keys), *data.shape)

        def step(x_t: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            number, log_snr_t, log_snr_s = at
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
            latent_key, noise_key = process.split_key(own)
            z = process.drawn(normal, latent_key, (num, latent_size))
            level = jnp.broadcast_to(log_snr_t, (num,))
            x0 = denoised(state.ema_params, x_t, level, z, cond, train=False)
            x0 = x0 if bound is None else jnp.clip(x0, -bound, bound)
            mean, variance = process.posterior_between(x0, x_t, log_snr_t, log_snr_s)
            return mean + jnp.sqrt(variance) * process.drawn(normal, noise_key, shape), None

        numbers = jnp.arange(1, denoising_steps + 1)
        start = process.drawn(normal, keys, shape)
        return jax.lax.scan(step, start, (numbers, *levels()))[0]

    return game.method(sample, data.shape)
