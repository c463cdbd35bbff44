"""What is trained: a `Method`, a handful of pure functions of a state.

The training loop, checkpoints, evaluation, `Generator`, ablation and tuning know a method and
nothing else of what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffax.distributed.batch import BatchSharding
from diffax.metric import Metric

# A pytree with the fields `step`, int32 (), and `params`, what the main optimiser trains, and with
# a method `replace`: a `flax.struct.PyTreeNode`, for instance.
State = Any
Batch = dict[str, Any]  # "x", (batch, ..., C) float32, and the conditions, such as "label"
Metrics = dict[str, jax.Array]
Arrays = dict[str, np.ndarray]


class Bounded(NamedTuple):
    """A metric of a training step that must be finite, and at most `largest`, for its update to be
    made.

    Attributes:
      words: what an error calls it.
      section: of the config, whose learning rate is at fault where it doesn't hold.
      largest: how large it may be.
    """

    words: str
    section: str = "optimizer"
    largest: float = math.inf

    def holds(self, value: Any) -> Any:
        """Whether a value, or each of an array, is finite and small enough."""
        return (abs(value) < math.inf) & (value <= self.largest)


# An update that moves the parameters by this many times their norm leaves nothing of what was
# learned. At a usual learning rate the ratio is far below 1.
LARGEST_UPDATE = 10.0

# What every method with one network requires of its steps.
LOSS = Bounded("loss")
GRAD_NORM = Bounded("gradient norm")
UPDATE_SIZE = Bounded(
    "norm of the network's update over that of its parameters", largest=LARGEST_UPDATE
)


class Measure(NamedTuple):
    """Something that can be measured of a state on a split of the data, example by example.

    Attributes:
      per_example: (state, key, batch) -> {name: (batch,)}; traceable. The batch has a "number",
        (batch,) int32, for each example, by which its random numbers are keyed.
      summary: {name: (repeats, examples) float64} -> numbers and what they depend on; JSON-able.
      repeats: how often each example is measured, each time under another key.
      logged: the same arrays -> {name: number}, what the loop logs at `training.eval_every` as
        "eval_<name>"; None if it logs nothing.
      impossible: () -> a sentence that says why it can't be measured of this run; empty if it can.
      metrics: what an ablation takes of the summary, by their `entry` or `key`.
      of_state: state -> the state that is measured.
    """

    per_example: Callable[[State, jax.Array, Batch], dict[str, jax.Array]]
    summary: Callable[[Arrays], dict[str, Any]]
    repeats: int = 1
    logged: Callable[[Arrays], dict[str, float]] | None = None
    impossible: Callable[[], str] = str
    metrics: tuple[Metric, ...] = ()
    of_state: Callable[[State], State] = lambda state: state


def no_curves(state: State) -> dict[str, dict[str, list]]:
    """The `curves` of a method that has none."""
    return {}


def no_fault(state: State) -> str:
    """The `sampling_fault` of a method whose states can all be sampled."""
    return ""


def no_words(metrics: Mapping[str, float]) -> tuple[str, str | None]:
    """The `diagnose` of a method that has nothing to add."""
    return "", None


def no_notice(metrics: Mapping[str, float]) -> str:
    """The `notice` of a method that has none."""
    return ""


class Method(NamedTuple):
    """What is trained, as pure functions.

    Attributes:
      init: key -> the state before the first step; traceable.
      step: (state, batch, sharding) -> state, metrics: one training step; traceable. Metrics are
        scalars, "loss" is one of them. A step whose metrics break `required_finite` is counted
        but changes nothing else.
      required_finite: metric -> what it must be.
      measures: name -> what can be measured of a state on a split.
      compared: the measures by which an ablation compares runs; {} for all of `measures`.
      gradient: (state, batch, key, sharding) -> the loss's gradient by `state.params`, whose
        variance between batches is then a measure; None if there is none.
      sample: (state, keys, cond, **options) -> (n, ..., C): samples by the averaged parameters, one
        for each of `keys`, (n,); `cond` maps conditions to arrays of n rows; None if the method
        draws nothing. The options are those of `config.sampling`.
      sampling_fault: state -> a sentence that says why it can't be sampled with the options that
        the method was built with, such as more steps than it has learned; empty if it can.
      reconstruct: (state, batch) -> what the method makes of a batch's examples, (n, ..., C), which
        is scored as samples are; None if it makes nothing of them.
      edit: (state, keys, cond, operation, given, **options) -> what an operation of
        `samplers.editing` makes of the arrays `given`; None if data can't be edited.
      preview: (state, keys, batch) -> (m, ..., C): what a picture shows while training; `keys` and
        the batch have equally many rows.
      curves: state -> {name: {column: list of numbers}}, written to the workdir's folder of that
        name; a null stands for a value that isn't finite.
      profiles: name -> (state, batch, seed) -> {column: list of numbers}: functions of something,
        such as the loss by log-SNR, measured on some examples for the ablation's figures.
      diagnose: the metrics of a step that can't be made -> words for the error, and the config's
        section that is at fault, None for that of `required_finite`.
      notice: the metrics as they are logged, averages over the latest steps -> a sentence that the
        log says too; "" for none.
      diagnostics: metrics that are for errors and are not logged.
      flags: prefix -> metric. Metrics of that prefix count in the steps where the flag is 1 only.
      batch_factors: what -> number. The batch size is a multiple of their product.
    """

    init: Callable[[jax.Array], State]
    step: Callable[[State, Batch, BatchSharding], tuple[State, Metrics]]
    sample: Callable[..., jax.Array] | None
    measures: Mapping[str, Measure]
    required_finite: Mapping[str, Bounded]
    compared: Mapping[str, Measure] = {}
    gradient: Callable[[State, Batch, jax.Array, BatchSharding], Any] | None = None
    preview: Callable[[State, jax.Array, Batch], jax.Array] | None = None
    sampling_fault: Callable[[State], str] = no_fault
    reconstruct: Callable[[State, Batch], jax.Array] | None = None
    edit: Callable[..., Any] | None = None
    curves: Callable[[State], dict[str, dict[str, list]]] = no_curves
    profiles: Mapping[str, Callable[[State, Batch, int], dict[str, list]]] = {}
    diagnose: Callable[[Mapping[str, float]], tuple[str, str | None]] = no_words
    notice: Callable[[Mapping[str, float]], str] = no_notice
    diagnostics: tuple[str, ...] = ()
    flags: Mapping[str, str] = {}
    batch_factors: Mapping[str, int] = {}

    @property
    def makes_examples(self) -> bool:
        """Whether there is something that scores of samples can be of."""
        return self.sample is not None or self.reconstruct is not None


# --- what the steps of methods share --------------------------------------------------------------


def require_denoiser(method: str, network: nn.Module) -> None:
    """Raises ValueError unless a network denoises: see `diffax.models.register`."""
    if not getattr(network, "denoises", True):
        raise ValueError(
            f"method {method!r} trains a network that denoises, and {type(network).__name__} does"
            " not: set model.name to another network, or method.name to a method that trains it"
        )


def update_size(updates: Any, params: Any) -> jax.Array:
    """The norm of an update over that of what it is added to (at least 1)."""
    return optax.tree.norm(updates) / jnp.maximum(optax.tree.norm(params), 1.0)


def moving_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """d average + (1 - d) params, with d = min(decay, (1 + step) / (10 + step)).

    The warm-up of d makes the average follow quickly while it still holds the initial values.
    """
    d = _decay_at(step, decay)
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def _decay_at(step: jax.Array, decay: float) -> jax.Array:
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def fraction_of_start(decay: float, num_steps: int) -> float:
    """The weight of the initial parameters in their moving average after `num_steps` steps."""
    # After a thousand steps of a rising decay less than 1e-20 of it is left.
    return float(jnp.prod(_decay_at(jnp.arange(min(num_steps, 1000)), decay)))


def advance(
    state: State, metrics: Metrics, required: Mapping[str, Bounded], **updated: Any
) -> State:
    """The state after a step: with the fields `updated`, if all that is required of the metrics
    holds; else only the step is counted."""
    holds = [bound.holds(metrics[name]) for name, bound in required.items() if name in metrics]
    good = jnp.all(jnp.stack(holds))
    before = {name: getattr(state, name) for name in updated}
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, before)
    return state.replace(step=state.step + 1, **kept)


def standard_error(values: np.ndarray) -> dict[str, float]:
    """That of their mean, as "standard_error"; {} for a single value, which tells none."""
    if len(values) < 2:
        return {}
    return {"standard_error": float(values.std(ddof=1) / math.sqrt(len(values)))}
