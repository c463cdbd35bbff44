"""A GAN: samples in one call of a generator, which learns to make what a discriminator takes for
data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffax import process, schedules
from diffax.data import DatasetInfo
from diffax.methods import adversarial
from diffax.methods.adversarial import AdversarialState, Game, Turn
from diffax.methods.base import Batch, Method, Metrics
from diffax.models.conditioning import Cond, Condition
from diffax.process import AnySchedule
from diffax.time_sampling import times_of

LEAST_TIME = 0.01  # of noise at strength 0: 10 of 1000 steps in Wang 2022
ADAPT_EVERY = 4  # steps


def noised_time(u: jax.Array, strength: jax.Array) -> jax.Array:
    """t in [0, 1] of a uniform u: density proportional to t up to T, T = 0.01 + 0.99 strength."""
    return (LEAST_TIME + (1 - LEAST_TIME) * strength) * jnp.sqrt(u)


def gan(
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
    adversarial_loss: str = "relativistic",
    r1_weight: float = 1.0,
    r2_weight: float = 1.0,
    latent_size: int = 64,
    noised: bool = False,
    noise_target: float = 0.6,
    noise_examples: int = 100_000,
) -> Method:
    """A generator G and a discriminator D, of latents z ~ N(0, I) and data x.

    With s = softplus, the discriminator and the generator descend the means of

        non_saturating:  s(-D(x)) + s(D(G(z)))   and   s(-D(G(z)))     (Goodfellow 2014)
        relativistic:    s(D(G(z)) - D(x))       and   s(D(x) - D(G(z)))     (Huang 2024, "R3GAN")

    and the discriminator also that of r1_weight / 2 |dD/dx(x)|^2 and r2_weight / 2 |dD/dx(G(z))|^2
    (Mescheder 2018). Mescheder 2018 has the first with r2_weight = 0, Huang 2024 the second with
    equal weights. Samples are those of the moving average of the generator's parameters; the
    discriminator has no average.

    With `noised` the discriminator sees x_t = alpha x + sigma eps of real and of fake examples
    under the config's schedule, and the log-SNR (Wang 2022, "Diffusion-GAN"). Half of the
    pairs are clean. Of the others t has a density that rises in proportion to t up to
    T = 0.01 + 0.99 strength. Every 4 steps the strength rises by their number of examples over
    `noise_examples` if the mean sign of the discriminator's margin was above `noise_target`, and
    falls by as much if it was below. The penalties are those of x, before the noise.

    Where this differs from the authors' code. Huang's (brownvc/R3GAN) has grouped convolutions, an
    augmentation, and weights that fall in training; the generator is updated first. Wang's
    (Zhendong-Wang/Diffusion-GAN) multiplies the noise by 0.05, draws the times of the real and of
    the fake example apart (here a pair has one), draws 32 times for all the examples of 4 steps,
    and lays betas anew between fixed ends for each T (here T cuts one schedule off). Both have R1
    in every step or, in Wang's, in every 16th.

    The step's metrics: "loss", the generator's; "discriminator_loss", without the penalties; "r1"
    and "r2", the mean squared norms of the gradients, where their weights aren't 0; "sign_rate",
    the mean sign of D(x), or of D(x) - D(G(z)) if relativistic; "feature_variance", the variance of
    fake examples in the discriminator's features over that of real ones; "grad_norm" and
    "discriminator_grad_norm", before clipping; "learning_rate"; "update_size" and
    "discriminator_update_size"; "noise_strength" with `noised`. Where the feature variance is below
    0.1, the log says that the samples are nearly all alike.

    Args:
      data: what is known of the data.
      network: `diffax.models.Generator`, or a module that is called like it.
      discriminator: `diffax.models.Discriminator`, or a module that is called like it.
      conditions: those that both are conditioned on.
      schedule: key -> the noise schedule, used where `noised`.
      schedule_steps: T, where the schedule acts in discrete time; 0 for its own time.
      optimizer: of the generator; `learning_rate`, step -> rate, is only logged.
      discriminator_optimizer: of the discriminator.
      ema_decay: of the moving average of the generator's parameters.
      grad_accumulation: micro-batches per step.
      sampling: default options of samples, of which a GAN knows clip_x0.
      adversarial_loss: relativistic or non_saturating.
      r1_weight: of the penalty on real examples; 0 for none.
      r2_weight: of the penalty on fake examples; 0 for none.
      latent_size: numbers of a latent z.
      noised: whether the discriminator sees noised data.
      noise_target: the mean sign towards which the noise's strength is adapted, from -1 to 1.
      noise_examples: over how many examples the strength may go from 0 to 1.

    Raises:
      ValueError: a network that is no generator, an impossible option, a learned schedule, guidance
        or a number of sampling steps other than 1.
    """
    if not getattr(network, "generates", False):
        raise ValueError(
            f"method 'gan' trains a network that makes data of a latent, and"
            f" {type(network).__name__} does not: set model.name='generator'"
        )
    weights = dict(r1_weight=r1_weight, r2_weight=r2_weight)
    adversarial.check_options(adversarial_loss, latent_size, **weights)
    adversarial.refuse_options("gan", sampling, num_steps=1)
    adversarial.refuse_conditions("gan", conditions)
    if not -1 <= noise_target <= 1:
        raise ValueError(f"method.noise_target is {noise_target}; it must be between -1 and 1")
    if noise_examples < 1:
        raise ValueError(f"method.noise_examples is {noise_examples}; it must be at least 1")
    if noised:
        adversarial.refuse_learned_schedule("gan", schedule)

    def acting() -> AnySchedule:
        return schedules.effective(schedule(jax.random.key(0)), schedule_steps)

    def generate(params: Any, z: jax.Array, cond: Cond) -> jax.Array:
        return network.apply({"params": params}, z, cond.get("label"))

    def init(key: jax.Array, x: jax.Array, cond: Cond) -> tuple[Any, Any]:
        keys, label = jax.random.split(key), cond.get("label")
        params = network.init(keys[0], jnp.zeros((1, latent_size)), label)["params"]
        level = jnp.zeros(1) if noised else None
        return params, discriminator.init(keys[1], x, level, label)["params"]

    def draw(key: jax.Array, num: int, state: AdversarialState) -> dict[str, jax.Array]:
        latent_key, *keys = jax.random.split(key, 5)
        drawn = {"z": jax.random.normal(latent_key, (num, latent_size))}
        if not noised:
            return drawn
        u = jax.random.uniform(keys[0], (num,))
        clean = jax.random.bernoulli(keys[1], 0.5, (num,))
        along = acting()
        t = times_of(along, noised_time(u, state.adapted["strength"]))
        shape = (num, *data.shape)
        return drawn | {
            "log_snr": jnp.where(clean, jnp.inf, along.log_snr(t)),
            "noise": jax.random.normal(keys[2], shape),
            "noise_of_fake": jax.random.normal(keys[3], shape),
        }

    def play(params: Any, rows: Batch) -> Turn:
        level, label = rows.get("log_snr"), rows["cond"].get("label")

        def judge_under(noise: jax.Array | None) -> adversarial.Judge:
            def judge(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
                seen = x if noise is None else process.q_sample_at(x, level, noise)
                return discriminator.apply({"params": params}, seen, level, label)

            return judge

        fake = generate(params, rows["z"], rows["cond"])
        judges = (judge_under(rows.get(name)) for name in ("noise", "noise_of_fake"))
        return Turn(rows["x"], fake, *judges)

    def adapt(state: AdversarialState, sign_rate: jax.Array, num: int) -> tuple[Any, Metrics]:
        if not noised:
            return (), {}
        strength, signs = state.adapted["strength"], state.adapted["signs"] + sign_rate
        due = (state.step + 1) % ADAPT_EVERY == 0
        change = jnp.sign(signs / ADAPT_EVERY - noise_target) * ADAPT_EVERY * num / noise_examples
        moved = jnp.clip(strength + change, 0, 1)
        adapted = {
            "strength": jnp.where(due, moved, strength),
            "signs": jnp.where(due, 0.0, signs),
        }
        return adapted, {"noise_strength": strength}

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
        adapted={"strength": 0.0, "signs": 0.0} if noised else (),
        adapt=adapt,
    )

    def sample(state: AdversarialState, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        z = process.drawn(jax.random.normal, keys, (len(keys), latent_size))
        made = generate(state.ema_params, z, cond)
        bound = {**sampling, **options}["clip_x0"]
        return made if bound is None else jnp.clip(made, -bound, bound)

    return game.method(sample, data.shape)
