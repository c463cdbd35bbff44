"""What methods with a discriminator share: the losses, the penalties, the two updates of a step.

A generator makes fake examples. A discriminator gives each example a logit, which is to be high for
real ones. In each step the discriminator is updated first, then the generator against the updated
discriminator; each by its own optimiser, with the parameters of the other held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffax import likelihood, schedules
from diffax.distributed.batch import BatchSharding, over_micro_batches
from diffax.methods import base
from diffax.methods.base import Arrays, Batch, Bounded, Measure, Method, Metrics
from diffax.metric import Metric
from diffax.models import conditioning
from diffax.models.conditioning import Cond, Condition
from diffax.process import AnySchedule
from diffax.registry import Registry


class AdversarialState(flax.struct.PyTreeNode):
    """All that changes in training."""

    step: jax.Array  # int32 (): updates so far
    params: Any  # of the generator
    ema_params: Any  # their exponential moving average, by which one samples
    opt_state: Any
    discriminator: Any  # its parameters
    discriminator_opt_state: Any
    adapted: Any  # what a method adapts by the signs of the logits; () for nothing
    key: jax.Array  # PRNG key; constant: the keys of a step are folded from it and the step


class Loss(NamedTuple):
    """The two losses, functions of the logits of real and of fake examples, (batch,) each.

    Attributes:
      discriminator, generator: -> the loss of each example, or pair of examples, (batch,).
      margin: -> what is positive where the discriminator is right about the real example.
    """

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array, jax.Array], jax.Array]
    margin: Callable[[jax.Array, jax.Array], jax.Array]


_softplus = jax.nn.softplus
LOSSES: Registry[Loss] = Registry(
    "adversarial loss",
    {
        # Goodfellow 2014, section 3.
        "non_saturating": Loss(
            lambda real, fake: _softplus(-real) + _softplus(fake),
            lambda real, fake: _softplus(-fake),
            lambda real, fake: real,
        ),
        # Jolicoeur-Martineau 2019, of pairs; Huang 2024, equation 2.
        "relativistic": Loss(
            lambda real, fake: _softplus(fake - real),
            lambda real, fake: _softplus(real - fake),
            lambda real, fake: real - fake,
        ),
    },
)

# (parameters, x) -> the logits, (batch,), and the features, (batch, F).
Judge = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]


class Turn(NamedTuple):
    """Real and fake examples, (batch, ...), and how the discriminator judges each."""

    real: jax.Array
    fake: jax.Array
    judge_real: Judge
    judge_fake: Judge


def judged(judge: Judge, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, (batch,), features, and |d logit / dx|^2 of each example, (batch,).

    The penalty's weight is half of an "R1" of real or an "R2" of fake examples (Mescheder 2018,
    equations 9 and 10). The logit of an example must depend on no other.
    """
    logits, pull, features = jax.vjp(lambda x: judge(params, x), x, has_aux=True)
    (gradient,) = pull(jnp.ones_like(logits))
    return logits, features, jnp.sum(gradient**2, range(1, x.ndim))


REQUIRED = {
    "loss": base.LOSS,
    "grad_norm": base.GRAD_NORM,
    "update_size": base.UPDATE_SIZE,
    "discriminator_loss": Bounded("discriminator's loss", "discriminator"),
    "discriminator_grad_norm": Bounded("norm of the discriminator's gradient", "discriminator"),
    "discriminator_update_size": Bounded(
        "norm of the discriminator's update over that of its parameters",
        "discriminator",
        base.LARGEST_UPDATE,
    ),
}
DIAGNOSTICS = ("update_size", "discriminator_update_size")


class Game(NamedTuple):
    """What a method with a discriminator is made of.

    Attributes:
      init: (key, x, cond) -> the parameters of the generator and of the discriminator; x and cond
        have a batch axis of 1.
      draw: (key, number, state) -> what is random in a turn: a tree of arrays with one row for each
        of so many examples.
      play: (the generator's parameters, rows) -> `Turn`. `rows`: "x", "cond" and what was drawn.
      loss: of `LOSSES`.
      r1_weight, r2_weight: of the penalties, halved, on real and on fake examples.
      conditions: those that the networks are conditioned on.
      optimizer, discriminator_optimizer: of each.
      learning_rate: of the generator, as a function of the step; only logged.
      ema_decay: of the moving average of the generator's parameters.
      grad_accumulation: micro-batches per step.
      adapted: the first value of what `adapt` changes.
      adapt: (state, the mean sign of the margin, batch size) -> its next value, and its metrics.
    """

    init: Callable[[jax.Array, jax.Array, Cond], tuple[Any, Any]]
    draw: Callable[[jax.Array, int, AdversarialState], dict[str, jax.Array]]
    play: Callable[[Any, Batch], Turn]
    loss: Loss
    r1_weight: float
    r2_weight: float
    conditions: Mapping[str, Condition]
    optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    ema_decay: float
    grad_accumulation: int
    adapted: Any = ()
    adapt: Callable[[AdversarialState, jax.Array, int], tuple[Any, Metrics]] = (
        lambda state, sign_rate, num: ((), {})
    )

    def first_state(self, key: jax.Array, shape: tuple[int, ...]) -> AdversarialState:
        """The state before the first step, for examples of a shape, (..., C)."""
        init_key, run_key = jax.random.split(key)
        cond = {name: jnp.asarray(c.null)[None] for name, c in self.conditions.items()}
        params, discriminator = self.init(init_key, jnp.zeros((1, *shape)), cond)
        return AdversarialState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=params,
            opt_state=self.optimizer.init(params),
            discriminator=discriminator,
            discriminator_opt_state=self.discriminator_optimizer.init(discriminator),
            adapted=jax.tree.map(jnp.float32, self.adapted),
            key=run_key,
        )

    def rows(
        self, state: AdversarialState, batch: Batch, key: jax.Array, sharding: BatchSharding
    ) -> Batch:
        """This device's examples with their conditions and all that is random."""
        draw_key, drop_key = jax.random.split(key)
        num = len(batch["x"]) * sharding.size
        cond = conditioning.conditions_of(self.conditions, batch)
        masks = conditioning.dropped(self.conditions, drop_key, num)
        drawn, masks = sharding.local((self.draw(draw_key, num, state), masks))
        return {"x": batch["x"], "cond": conditioning.drop(self.conditions, cond, masks), **drawn}

    # --- the two losses ---

    def discriminator_loss(
        self, discriminator: Any, params: Any, rows: Batch
    ) -> tuple[jax.Array, Metrics]:
        """The discriminator's loss with its penalties, and means of what is seen meanwhile."""
        turn = self.play(params, rows)
        fake_x = jax.lax.stop_gradient(turn.fake)
        real, real_features, r1 = judged(turn.judge_real, discriminator, turn.real)
        fake, fake_features, r2 = judged(turn.judge_fake, discriminator, fake_x)
        loss = jnp.mean(self.loss.discriminator(real, fake))
        found = {
            "discriminator_loss": loss,
            "sign_rate": jnp.mean(jnp.sign(self.loss.margin(real, fake))),
            "features": tuple(jnp.mean(f, axis=0) for f in (real_features, fake_features)),
            "squares": tuple(
                jnp.mean(jnp.sum(f**2, axis=-1)) for f in (real_features, fake_features)
            ),
        }
        for name, weight, penalty in (("r1", self.r1_weight, r1), ("r2", self.r2_weight, r2)):
            if weight:
                found[name] = jnp.mean(penalty)
                loss = loss + 0.5 * weight * found[name]
        return loss, found

    def generator_loss(self, params: Any, discriminator: Any, rows: Batch) -> jax.Array:
        """The generator's loss against a discriminator."""
        turn = self.play(params, rows)
        real, _ = turn.judge_real(discriminator, turn.real)
        fake, _ = turn.judge_fake(discriminator, turn.fake)
        return jnp.mean(self.loss.generator(real, fake))

    # --- their gradients over the whole batch, and a step ---

    def discriminator_gradient(
        self, state: AdversarialState, rows: Batch, sharding: BatchSharding
    ) -> tuple[Metrics, Any]:
        """What `discriminator_loss` finds, and its gradient by the discriminator's parameters."""

        def of_rows(rows: Batch, number: jax.Array | int) -> tuple[Any, dict]:
            del number
            value = jax.grad(self.discriminator_loss, has_aux=True)
            gradient, found = value(state.discriminator, state.params, rows)
            return (found, gradient), {}

        return sharding.mean(over_micro_batches(of_rows, rows, self.grad_accumulation)[0])

    def generator_gradient(
        self, state: AdversarialState, rows: Batch, sharding: BatchSharding
    ) -> tuple[jax.Array, Any]:
        """The generator's loss and its gradient by the generator's parameters."""

        def of_rows(rows: Batch, number: jax.Array | int) -> tuple[Any, dict]:
            del number
            value = jax.value_and_grad(self.generator_loss)
            return value(state.params, state.discriminator, rows), {}

        return sharding.mean(over_micro_batches(of_rows, rows, self.grad_accumulation)[0])

    def gradient(
        self, state: AdversarialState, batch: Batch, key: jax.Array, sharding: BatchSharding
    ) -> Any:
        """That of the generator's loss: `Method.gradient`."""
        return self.generator_gradient(state, self.rows(state, batch, key, sharding), sharding)[1]

    def step(
        self, state: AdversarialState, batch: Batch, sharding: BatchSharding
    ) -> tuple[AdversarialState, Metrics]:
        """`Method.step`: an update of the discriminator, then one of the generator."""
        keys = jax.random.split(jax.random.fold_in(state.key, state.step))
        first, second = (self.rows(state, batch, key, sharding) for key in keys)

        found, grads = self.discriminator_gradient(state, first, sharding)
        updates, discriminator_opt_state = self.discriminator_optimizer.update(
            grads, state.discriminator_opt_state, state.discriminator
        )
        discriminator = optax.apply_updates(state.discriminator, updates)
        penalties = {name: found[name] for name in ("r1", "r2") if name in found}
        metrics = {
            "discriminator_loss": found["discriminator_loss"],
            **penalties,
            "sign_rate": found["sign_rate"],
            "feature_variance": variance_ratio(found["features"], found["squares"]),
            "discriminator_grad_norm": optax.tree.norm(grads),
            "discriminator_update_size": base.update_size(updates, state.discriminator),
        }

        against = state.replace(discriminator=discriminator)
        loss, grads = self.generator_gradient(against, second, sharding)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        num = len(batch["x"]) * sharding.size
        adapted, adapting = self.adapt(state, found["sign_rate"], num)
        metrics = {
            "loss": loss,
            **metrics,
            **adapting,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": self.learning_rate(state.step),
            "update_size": base.update_size(updates, state.params),
        }
        state = base.advance(
            state,
            metrics,
            REQUIRED,
            params=params,
            ema_params=base.moving_average(state.ema_params, params, self.ema_decay, state.step),
            opt_state=opt_state,
            discriminator=discriminator,
            discriminator_opt_state=discriminator_opt_state,
            adapted=adapted,
        )
        return state, metrics

    def method(self, sample: Callable[..., jax.Array], shape: tuple[int, ...]) -> Method:
        """The method of this game for examples of a shape, whose samples are those of `sample`."""

        def preview(state: AdversarialState, keys: jax.Array, batch: Batch) -> jax.Array:
            return sample(state, keys, conditioning.conditions_of(self.conditions, batch))

        return Method(
            init=lambda key: self.first_state(key, shape),
            step=self.step,
            sample=sample,
            measures=diversity(sample, self.conditions, shape),
            required_finite=REQUIRED,
            gradient=self.gradient,
            preview=preview,
            notice=notice_collapse,
            diagnostics=DIAGNOSTICS,
            batch_factors={"config.training.grad_accumulation": self.grad_accumulation},
        )


# --- what shows a collapse ------------------------------------------------------------------------

# Of samples that vary by less than this share of what the data do, most are alike.
COLLAPSED = 0.1


def variance_ratio(means: tuple, squares: tuple) -> jax.Array:
    """The total variance of fake features over that of real ones.

    `means`: those of the real and of the fake features, (F,) each; `squares`: the means of their
    squared norms.
    """
    real, fake = (s - jnp.sum(mean**2) for mean, s in zip(means, squares))
    return jnp.maximum(fake, 0) / jnp.maximum(real, 1e-12)


def notice_collapse(metrics: Mapping[str, float]) -> str:
    """`Method.notice`: a sentence, if the samples of the latest steps were nearly all alike."""
    ratio = metrics.get("feature_variance", math.inf)
    if ratio >= COLLAPSED:
        return ""
    return (
        "the samples are nearly all alike: in the discriminator's features they vary by"
        f" {ratio:.2g} of what the data do, in their mean over the latest steps; a generator that"
        f" stays below {COLLAPSED:g} has collapsed"
    )


VARIANCE = Metric(
    "sample_variance",
    "Variance of samples over that of data",
    lower_is_better=None,
    digits=3,
    meaning="The variance of as many samples as held-out examples over that of these examples, both"
    " along the same 32 random directions: 1 for samples as diverse as the data, near 0 for a"
    " generator that has collapsed to few samples.",
)
_DIRECTIONS = 32


def diversity(
    sample: Callable[..., jax.Array], conditions: Mapping[str, Condition], shape: tuple[int, ...]
) -> dict[str, Measure]:
    """The measure "sample_variance" of a method whose samples are `sample`'s."""
    directions = np.random.default_rng(0).standard_normal((math.prod(shape), _DIRECTIONS))
    directions = np.asarray(directions, np.float32)

    def per_example(state: Any, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        keys = likelihood.keys_of(key, batch["number"])
        made = sample(state, keys, conditioning.conditions_of(conditions, batch))
        sides = {"real": batch["x"], "fake": made}
        along = {name: x.reshape(len(x), -1) @ directions for name, x in sides.items()}
        return {f"{n}_{i}": v[:, i] for n, v in along.items() for i in range(_DIRECTIONS)}

    def ratio(found: Arrays) -> float:
        real, fake = (
            sum(found[f"{name}_{i}"].var() for i in range(_DIRECTIONS)) for name in ("real", "fake")
        )
        return float(fake / max(real, 1e-12))

    def summary(found: Arrays) -> dict[str, Any]:
        return {VARIANCE.key: ratio(found), "num_examples": found["real_0"].size}

    def logged(found: Arrays) -> dict[str, float]:
        return {VARIANCE.key: ratio(found)}

    return {VARIANCE.key: Measure(per_example, summary, logged=logged, metrics=(VARIANCE,))}


# --- refusals -------------------------------------------------------------------------------------


def refuse_options(method: str, sampling: Mapping[str, Any], num_steps: int) -> None:
    """Raises ValueError where config.sampling asks for what such a method can't do.

    `num_steps`: the calls of the network that make a sample.
    """
    if sampling["num_steps"] != num_steps:
        calls = f"{num_steps} call{'s' * (num_steps > 1)}"
        raise ValueError(
            f"sampling.num_steps is {sampling['num_steps']}, and method {method!r} makes a sample"
            f" in {calls} of its network, as it was trained: set it to {num_steps}"
        )
    if sampling["guidance_scale"] is not None:
        raise ValueError(
            f"sampling.guidance_scale is {sampling['guidance_scale']:g}, and method {method!r} has"
            " no guidance: set it to 1"
        )
    if sampling["schedule"] is not None:
        raise ValueError(
            f"sampling.schedule is set, and method {method!r} samples under no other schedule than"
            " that of its training: leave it out"
        )


def refuse_learned_schedule(method: str, schedule: Callable[[jax.Array], AnySchedule]) -> None:
    """Raises ValueError for a schedule with parameters, which nothing would train."""
    if schedules.is_learned(jax.eval_shape(schedule, jax.random.key(0))):
        raise ValueError(
            f"method {method!r} learns no schedule: set schedule.name to one without parameters"
        )


def refuse_conditions(method: str, conditions: Mapping[str, Condition]) -> None:
    """Raises ValueError for conditions other than the label, which discriminators don't see."""
    for name in conditions:
        if name != "label":
            raise ValueError(
                f"method {method!r} is conditioned on the class label alone, since its"
                f" discriminator sees no {name}: leave condition.{name} empty"
            )


def check_options(loss: str, latent_size: int, **weights: float) -> None:
    """Raises ValueError for impossible options that these methods have in common."""
    LOSSES.lookup(loss)
    if latent_size < 1:
        raise ValueError(f"method.latent_size is {latent_size}; it must be at least 1")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"method.{name} is {weight}; it must be a number of at least 0")
