"""The forward process, and the only place where eps, x0, v, score and flow convert into each other.

Everything is variance preserving: x_t = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1.
Per-example quantities (t, log-SNR, alpha, sigma) have shape (batch,), or () for all examples
alike, and are broadcast over the data's other axes. Data may be of any floating dtype: it is
computed in float32 at least, and what comes out has the dtype of what came in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffax import arguments
from diffax.registry import unknown
from diffax.schedules import DiscreteSchedule, Schedule, alpha_of, sigma_of
from diffax.schedules.base import as_float

AnySchedule = Schedule | DiscreteSchedule
Predict = Callable[[jax.Array, jax.Array], jax.Array]


def widened(x: jax.Array) -> jax.Array:
    """`x` as a floating array of float32 or wider: the dtypes that are computed in."""
    x = as_float(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def expand_to(per_example: jax.Array, like: jax.Array) -> jax.Array:
    """`per_example`, (batch,) or (), with axes appended until it broadcasts against `like`."""
    per_example = jnp.asarray(per_example)
    return per_example.reshape(per_example.shape + (1,) * (jnp.ndim(like) - per_example.ndim))


# --- keys ---------------------------------------------------------------------------------------


def typed(key: jax.Array) -> jax.Array:
    """A PRNG key, or an array of them; untyped ones (uint32) become typed.

    Raises:
      ValueError: None.
    """
    if key is None:
        raise ValueError("key is None, and random numbers are drawn: pass jax.random.key(seed)")
    is_typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if is_typed else jax.random.wrap_key_data(key)


def split_key(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two typed keys of one, or of each of (batch,)."""
    key = typed(key)
    pairs = jax.random.split(key) if key.ndim == 0 else jax.vmap(jax.random.split)(key).T
    return pairs[0], pairs[1]


def drawn(draw: Callable, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`draw`(key, shape) of one typed key, or of a key for each entry of the first axis."""
    return draw(key, shape) if key.ndim == 0 else jax.vmap(lambda k: draw(k, shape[1:]))(key)


# --- the forward process ------------------------------------------------------------------------


def q_sample(schedule: AnySchedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """x_t = alpha(t) x0 + sigma(t) noise, in closed form (Ho 2020, eq. 4).

    Args:
      schedule: continuous (t float in [0, 1]) or discrete (t integer, 0 .. T - 1).
      x0: (batch, ..., C), any floating dtype, of about unit variance.
      t: (batch,) or ().
      noise: standard normal, of x0's shape.

    Raises:
      ValueError: a time outside the schedule (unless it is traced), bytes for x0, or shapes that
        don't agree.

    Examples:
      >>> import jax.numpy as jnp
      >>> import diffax
      >>> cosine = diffax.schedules.get("cosine")
      >>> x0, noise = jnp.ones((2, 3)), jnp.zeros((2, 3))
      >>> x_t = diffax.q_sample(cosine, x0, jnp.array([0.1, 0.9]), noise)
      >>> [round(float(a), 2) for a in x_t[:, 0]]
      [0.99, 0.16]
    """
    arguments.check_order("q_sample", schedule=schedule, x0=x0)
    x0 = arguments.data("x0", x0)
    arguments.check_per_example("t", t, x0.shape)
    return q_sample_at(x0, schedule.log_snr(t), arguments.data("noise", noise, x0.shape))


def q_sample_at(x0: jax.Array, log_snr: jax.Array, noise: jax.Array) -> jax.Array:
    """`q_sample` at a given log-SNR, (batch,) or (), instead of at a time."""
    alpha, sigma = expand_to(alpha_of(log_snr), x0), expand_to(sigma_of(log_snr), x0)
    return (alpha * widened(x0) + sigma * widened(noise)).astype(jnp.result_type(x0, noise))


def q_step(
    schedule: AnySchedule,
    x_prev: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    s: jax.Array | None = None,
) -> jax.Array:
    """One Markov step q(x_t | x_s): sqrt(1 - beta) x_s + sqrt(beta) noise (Ho 2020, eq. 2).

    Args:
      schedule: discrete, with s = t - 1 if left out; or continuous, where `s` is required.
      x_prev: x_s, (batch, ..., C); at discrete t = 0 it is x0.
      t: (batch,) or (), after `s`.
      noise: standard normal, of x_prev's shape.
      s: the time of x_prev, like `t`.

    Raises:
      ValueError: a continuous schedule without `s`, an `s` after `t`, or as in `q_sample`.
    """
    arguments.check_order("q_step", schedule=schedule, x_prev=x_prev)
    x_prev = arguments.data("x_prev", x_prev)
    arguments.check_per_example("t", t, x_prev.shape)
    noise = arguments.data("noise", noise, x_prev.shape)
    log_snr_t, log_snr_s = schedule.log_snr(t), _earlier(schedule, t, s)
    beta = _own_beta(schedule, t, s)
    beta = transition_variance(log_snr_t, log_snr_s) if beta is None else beta
    beta = expand_to(beta, x_prev)
    x_t = jnp.sqrt(1 - beta) * widened(x_prev) + jnp.sqrt(beta) * widened(noise)
    return x_t.astype(jnp.result_type(x_prev, noise))


def q_posterior(
    schedule: AnySchedule,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    s: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of q(x_s | x_t, x0) (Ho 2020, eqs. 6-7), s = t - 1 in a discrete schedule.

    Returns:
      mean, of x0's shape; variance, per example with axes to broadcast. At discrete t = 0 they are
      x0 and 0.

    Raises:
      ValueError: a continuous schedule without `s`, an `s` after `t`, or as in `q_sample`.
    """
    arguments.check_order("q_posterior", schedule=schedule, x0=x0)
    x0 = arguments.data("x0", x0)
    arguments.check_per_example("t", t, x0.shape)
    x_t = arguments.data("x_t", x_t, x0.shape)
    levels = schedule.log_snr(t), _earlier(schedule, t, s)
    return posterior_between(x0, x_t, *levels, beta=_own_beta(schedule, t, s))


def posterior_between(
    x0: jax.Array,
    x_t: jax.Array,
    log_snr_t: jax.Array,
    log_snr_s: jax.Array,
    beta: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`q_posterior` between two noise levels, log_snr_s >= log_snr_t (Kingma 2021, supplement A).

    With c = 1 - exp(log_snr_t - log_snr_s): mean = alpha_s c x0 + (alpha_t / alpha_s)
    (sigma_s / sigma_t)^2 x_t and variance = sigma_s^2 c. Right at log_snr_s = inf (mean x0,
    variance 0) and at log_snr_t = -inf. `beta`, the variance of the step, gives c = beta /
    sigma_t^2 where it is known better than the difference of the levels.
    """
    c = -jnp.expm1(log_snr_t - log_snr_s)
    if beta is not None:
        c = jnp.where(jnp.isposinf(log_snr_s), 1.0, beta * (1 + jnp.exp(log_snr_t)))
    log_alpha = 0.5 * (jax.nn.log_sigmoid(log_snr_t) - jax.nn.log_sigmoid(log_snr_s))
    log_sigma = 0.5 * (jax.nn.log_sigmoid(-log_snr_s) - jax.nn.log_sigmoid(-log_snr_t))
    mean = expand_to(alpha_of(log_snr_s) * c, x0) * widened(x0)
    mean = mean + expand_to(jnp.exp(log_alpha + 2 * log_sigma), x0) * widened(x_t)
    return mean.astype(jnp.result_type(x0, x_t)), expand_to(sigma_of(log_snr_s) ** 2 * c, x0)


def transition_variance(log_snr_t: jax.Array, log_snr_s: jax.Array) -> jax.Array:
    """Variance of q(x_t | x_s) = 1 - alpha_t^2 / alpha_s^2, "beta" of the step; per example."""
    return -jnp.expm1(jax.nn.log_sigmoid(log_snr_t) - jax.nn.log_sigmoid(log_snr_s))


def learned_log_variance(
    fraction: jax.Array, log_large: jax.Array, log_small: jax.Array
) -> jax.Array:
    """v log_large + (1 - v) log_small, v = (fraction + 1) / 2 (Nichol & Dhariwal 2021, eq. 15).

    `log_large` and `log_small` are the logs of the step's variance and of its posterior's.
    `fraction` is the network's second half, (batch, ..., C), in [-1, 1] by training but not
    bounded.
    """
    share = 0.5 * (fraction + 1)
    return share * log_large + (1 - share) * log_small


def _own_beta(schedule: AnySchedule, t: jax.Array, s: jax.Array | None) -> jax.Array | None:
    """The table's beta of the step to t, if that is the step."""
    return None if s is not None or schedule.num_steps is None else schedule.beta(t)


def _earlier(schedule: AnySchedule, t: jax.Array, s: jax.Array | None) -> jax.Array:
    if s is not None:
        log_snr = schedule.log_snr(s)
        arguments.check_before(s, t)
        return log_snr
    if schedule.num_steps is None:
        raise ValueError("a continuous schedule has no previous step: give the earlier time s")
    t = jnp.asarray(t)
    return jnp.where(t > 0, schedule.log_snr(jnp.maximum(t - 1, 0)), jnp.inf)


# --- prediction types ---------------------------------------------------------------------------

# source -> (pred, x_t, alpha, sigma) -> (x0, eps)
_READ: dict[str, Callable] = {
    "eps": lambda p, x_t, alpha, sigma: ((x_t - sigma * p) / alpha, p),
    "x0": lambda p, x_t, alpha, sigma: (p, (x_t - alpha * p) / sigma),
    "v": lambda p, x_t, alpha, sigma: (alpha * x_t - sigma * p, sigma * x_t + alpha * p),
    "score": lambda p, x_t, alpha, sigma: ((x_t + sigma**2 * p) / alpha, -sigma * p),
    "flow": lambda p, x_t, alpha, sigma: (
        (x_t - sigma * p) / (alpha + sigma),
        (x_t + alpha * p) / (alpha + sigma),
    ),
}
# target -> (x0, eps, alpha, sigma) -> prediction
_WRITE: dict[str, Callable] = {
    "eps": lambda x0, eps, alpha, sigma: eps,
    "x0": lambda x0, eps, alpha, sigma: x0,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "score": lambda x0, eps, alpha, sigma: -eps / sigma,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
}
# prediction -> log_snr -> |eps - eps_hat|^2 / |target - pred|^2, for a network's own prediction
_EPS_SCALE: dict[str, Callable] = {
    "eps": jnp.ones_like,
    "x0": jnp.exp,
    "v": jax.nn.sigmoid,
    "score": lambda log_snr: jax.nn.sigmoid(-log_snr),
    "flow": lambda log_snr: jax.nn.sigmoid(0.5 * log_snr) ** 2,
}
PREDICTIONS = tuple(_READ)
BLIND_AT_ZERO_SNR = ("eps", "score")  # say nothing of x0 there


def target_of(prediction: str, x0: jax.Array, eps: jax.Array, log_snr: jax.Array) -> jax.Array:
    """What a network that predicts `prediction` is trained towards; log_snr (batch,) or ()."""
    check_prediction(prediction)
    alpha, sigma = expand_to(alpha_of(log_snr), x0), expand_to(sigma_of(log_snr), x0)
    return _WRITE[prediction](x0, eps, alpha, sigma)


def eps_scale(prediction: str, log_snr: jax.Array) -> jax.Array:
    """The factor from a squared error of the prediction to that of eps.

    1 for eps, the SNR for x0, alpha^2 for v, sigma^2 for the score, (alpha / (alpha + sigma))^2 for
    flow.
    """
    check_prediction(prediction)
    return _EPS_SCALE[prediction](jnp.asarray(log_snr))


def convert(
    pred: jax.Array,
    x_t: jax.Array,
    alpha: jax.Array,
    sigma: jax.Array,
    source: str,
    target: str,
) -> jax.Array:
    """Turns a prediction of one kind into another, given x_t = alpha x0 + sigma eps.

    The kinds are "eps"; "x0"; "v" = alpha eps - sigma x0 (Salimans & Ho 2022, sec. 4); "score" =
    -eps / sigma; "flow" = eps - x0, flow matching's velocity (Liu 2022; see
    `schedules.rectified_flow`).

    At zero SNR (alpha = 0) x_t holds nothing of x0, so eps and score do not determine x0 or v: the
    result is not finite (NaN where x_t = sigma eps, else infinite), never a plausible number. v,
    x0 and flow convert to everything there. At sigma = 0 the same holds for eps and score from x0.

    Args:
      pred, x_t: (batch, ..., C).
      alpha, sigma: (batch,), () or any shape that broadcasts once trailing axes are appended.
      source, target: "eps", "x0", "v", "score" or "flow".

    Raises:
      ValueError: an unknown source or target, bytes for numbers, or shapes that don't fit.

    Examples:
      >>> import diffax
      >>> x0, eps, alpha, sigma = 2.0, 1.0, 0.8, 0.6
      >>> v = diffax.convert(eps, alpha * x0 + sigma * eps, alpha, sigma, "eps", "v")
      >>> print(f"{v:.2f}")  # 0.8 * 1 - 0.6 * 2
      -0.40
    """
    check_prediction(source, "source")
    check_prediction(target, "target")
    pred, x_t = arguments.data("pred", pred), arguments.data("x_t", x_t)
    if source == target:
        return pred
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        arguments.check_fits(name, expand_to(value, x_t), x_t.shape)
    alpha, sigma = expand_to(alpha, x_t), expand_to(sigma, x_t)
    x0, eps = _READ[source](widened(pred), widened(x_t), alpha, sigma)
    return _WRITE[target](x0, eps, alpha, sigma).astype(jnp.result_type(pred, x_t))


def check_prediction(prediction: str, name: str = "prediction") -> None:
    """Raises ValueError unless `prediction` is one of `PREDICTIONS`."""
    if not isinstance(prediction, str) or prediction not in _READ:
        raise ValueError(unknown(name, prediction, _READ))


def refuse_eps_at_zero_snr(schedule: AnySchedule, prediction: str) -> None:
    """Raises ValueError for a prediction of eps or of the score with a schedule that is used at
    zero SNR exactly."""
    check_prediction(prediction)
    if prediction in BLIND_AT_ZERO_SNR and schedule.zero_terminal:
        raise ValueError(
            f"prediction={prediction!r} can't give x0 at zero SNR, where this schedule ends: use"
            " prediction='v' or prediction='x0' or prediction='flow', or a finite end, by"
            " with_endpoints"
        )


# --- asking the network -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _ByLogSnr:
    function: Predict
    takes_log_snr = True

    def __call__(self, x_t: jax.Array, log_snr: jax.Array) -> jax.Array:
        return self.function(x_t, log_snr)


def by_log_snr(function: Predict) -> Predict:
    """Marks `function`(x_t, log_snr) as a predictor conditioned on the log-SNR instead of t.

    x_t: (batch, ..., C); log_snr: (batch,). Networks of `diffax.models` are such predictors; with
    one, any schedule and any number of steps can be sampled.
    """
    return _ByLogSnr(function)


def takes_log_snr(predict: Predict) -> bool:
    """Whether `predict` was marked by `by_log_snr`."""
    return getattr(predict, "takes_log_snr", False)


def denoise(
    predict: Predict,
    x_t: jax.Array,
    t: jax.Array,
    log_snr: jax.Array,
    prediction: str,
    learned_variance: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """One call of the network: its estimates of x0 and eps, of x_t's shape and dtype.

    Args:
      x_t: (batch, ..., C); t, log_snr: (batch,) or ().
      prediction: what `predict` gives.
      learned_variance: whether it has 2 C channels.

    Returns:
      x0, eps, and the second half of the channels (None without `learned_variance`).
    """
    t, log_snr = (jnp.broadcast_to(value, x_t.shape[:1]) for value in (t, log_snr))
    halves = 2 if learned_variance else 1
    out = call_predictor(predict, x_t, t, log_snr, halves).astype(x_t.dtype)
    out, variance = jnp.split(out, 2, axis=-1) if learned_variance else (out, None)
    scales = alpha_of(log_snr), sigma_of(log_snr)
    x0, eps = (convert(out, x_t, *scales, prediction, target) for target in ("x0", "eps"))
    return x0, eps, variance


def call_predictor(
    predict: Predict, x_t: jax.Array, t: jax.Array, log_snr: jax.Array, halves: int = 1
) -> jax.Array:
    """predict(x_t, log_snr) if it is conditioned on the log-SNR, else predict(x_t, t); both
    (batch,).

    Raises:
      ValueError: the prediction is no array of real numbers, or has not x_t's shape with `halves`
        times its channels, which broadcasting would hide.
    """
    out = predict(x_t, log_snr if takes_log_snr(predict) else t)
    needed = (*x_t.shape[:-1], halves * x_t.shape[-1])
    if not hasattr(out, "shape"):
        raise ValueError(
            f"the predictor gave what is of type {type(out).__name__}: must be an array of shape"
            f" {needed}"
        )
    arguments.check_real("what the predictor gave", out)
    if out.shape != needed:
        raise ValueError(
            f"the predictor gave shape {out.shape}, and {needed} is needed"
            + (" (mean and variance)" if halves == 2 else "")
        )
    return out
