"""The one loop that drives every solver: a `lax.scan` over the levels of a grid."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from diffax import arguments, process
from diffax.process import AnySchedule, Predict, split_key
from diffax.registry import Constructors, require
from diffax.samplers import grids
from diffax.samplers.base import (
    Denoised,
    Level,
    Sampler,
    Step,
    fold_in,
    standard_normal,
)
from diffax.samplers.consistency import consistency
from diffax.samplers.ddim import ddim
from diffax.samplers.ddpm import ddpm
from diffax.samplers.dpm_solver import dpm_solver
from diffax.samplers.dpmpp_2m import dpmpp_2m, dpmpp_2m_sde
from diffax.samplers.dpmpp_2s import dpmpp_2s
from diffax.samplers.euler import euler
from diffax.samplers.heun import heun
from diffax.samplers.learned import learned
from diffax.samplers.plms import plms
from diffax.samplers.unipc import unipc
from diffax.schedules import concrete_ends, ends_of
from diffax.schedules.from_rate import Rate

SAMPLERS: Constructors[Sampler] = Constructors(
    "sampler",
    {
        solver.__name__: solver
        for solver in (
            ddim,
            ddpm,
            euler,
            heun,
            plms,
            dpm_solver,
            dpmpp_2s,
            dpmpp_2m,
            dpmpp_2m_sde,
            unipc,
            learned,
            consistency,
        )
    },
)
# The options that may be traced, so that a program takes any value of them.
TRACED: dict[str, tuple[str, ...]] = {"ddim": ("eta",)}


def register(name: str, constructor: Callable[..., Sampler]) -> None:
    """Makes a solver reachable as `sample(..., sampler=name)`, in configs and on the command line.

    Args:
      constructor: constructor(**options) -> `Sampler`; its options, numbers, words or tuples,
        become keys of config.sampling.

    Raises:
      ValueError: the name is taken, or the type of an option isn't known or is another one than
        that of another solver's option of the same name.
    """
    SAMPLERS.register(name, constructor)


def get(name: str, **options: object) -> Sampler:
    """The solver of that name, built with its options.

    Raises:
      ValueError: an unknown name, or an option that it does not take; lists the allowed ones.
    """
    made = SAMPLERS.build(name, **options)
    return require(f"sampler {name!r}", made, "Sampler", "init", "step")


def options_of(name: str) -> tuple[str, ...]:
    """The keyword options of the sampler `name`."""
    return tuple(inspect.signature(SAMPLERS.lookup(name)).parameters)


def sample(
    key: jax.Array,
    predict: Predict,
    schedule: AnySchedule,
    shape: Sequence[int],
    sampler: str = "ddim",
    num_steps: int = 50,
    prediction: str = "eps",
    grid: str | Rate | Sequence[float] | jax.Array | None = None,
    x_init: jax.Array | None = None,
    clip_x0: float | None = None,
    return_trajectory: bool = False,
    dynamic_threshold: float | None = None,
    log_snr_max: float = 20.0,
    log_snr_min: float = -20.0,
    low_order_finish: bool = True,
    **options: object,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Draws x0 by integrating the reverse process over `num_steps` noise levels, the last to x0.

    Pure and traceable; wrap it in `jax.jit` (with `predict` closed over) to compile it once.

    Args:
      key: PRNG key, for the start and for every stochastic step; or one for each example, (batch,):
        then what is drawn for an example does not depend on the others.
      predict: predict(x_t, t) -> prediction of x_t's shape and any floating dtype, x_t of float32
        or wider, t of shape (batch,), float in [0, 1] or the integer index; or `by_log_snr(f)`,
        which is conditioned on the log-SNR instead.
      schedule: any schedule, continuous or discrete, fixed or learned.
      shape: (batch, ..., C) of what is drawn.
      sampler: a name in `SAMPLERS`; its docstring tells the calls per step. `options` go to it.
      num_steps: levels visited, at least 1, which is one call from the noisy end to x0; in a
        discrete schedule at most T.
      prediction: "eps", "x0", "v", "score" or "flow". At the noisy end eps and score say little of
        x0, whose error is theirs over alpha: one call is for v, x0 and flow.
      grid: a name in `grids.GRIDS`; or a `Rate`, or a file of one, FILE.json, of which equal parts
        lie between the levels; or the times themselves, strictly decreasing, or the levels, as
        `visited_levels` gives them; None for the grid that suits the solver, which its docstring
        names.
      x_init: the start, at the first level; standard normal if left out. Of any floating dtype,
        which is that of the result; the steps between are made in float32 at least.
      clip_x0: a bound on |x0|, from 0.001 to 1e6, applied to every x0 estimate before it is used;
        like `dynamic_threshold` it may be traced.
      return_trajectory: also return the states, (steps + 1, *shape), the start first.
      dynamic_threshold: a share such as 0.995: every x0 estimate is clipped to that quantile of its
        own |x0| and scaled back to `clip_x0` (1 if left out), where the quantile is above it
        (Saharia 2022, section 2.3).
      log_snr_max, log_snr_min: the range visited. Beyond it levels are clipped, so that schedules
        with infinite ends start and end at finite ones. A zero-terminal-SNR schedule is started at
        zero SNR exactly, by v, x0 and flow prediction.
      low_order_finish: the last step goes to x0, which every solver does with order 1, as is
        advised at few steps (Lu 2022b). If False it goes to the clean end of the range with the
        solver's own order, and the noise of that level stays in.

    Returns:
      x0 of `shape`, or (x0, trajectory).

    Raises:
      ValueError: an unknown name or option, a step count or grid that does not fit the schedule,
        eps-prediction where zero SNR is visited, or arguments in another order.

    Examples:
      >>> import jax
      >>> import diffax
      >>> from diffax import schedules
      >>> predict = diffax.by_log_snr(lambda x, l: schedules.sigma_of(l)[:, None] * x)
      >>> cosine = schedules.get("cosine")
      >>> x = diffax.sample(jax.random.key(0), predict, cosine, (4, 2), num_steps=5)
      >>> x.shape
      (4, 2)
    """
    arguments.check_order("sample", key=key, predict=predict, schedule=schedule)
    shape = arguments.sizes("shape", shape)
    solver = get(sampler, **options)
    over = range_of(schedule, prediction, log_snr_max, log_snr_min)
    levels = grids.levels(over, solver.grid if grid is None else grid, num_steps)
    if solver.num_steps not in (None, len(levels.t)):
        raise ValueError(
            f"sampler={sampler!r} has coefficients for {solver.num_steps} steps, not for"
            f" the {len(levels.t)} that are visited"
        )
    end = Level(jnp.zeros_like(levels.t[:1]), jnp.full_like(levels.log_snr[:1], jnp.inf))
    if not low_order_finish:
        end = over.at(jnp.reshape(over.clean, (1,)).astype(levels.t.dtype))
    start_key, step_key = split_key(key)
    arguments.check_per_example("key", start_key, shape)
    if x_init is None:
        start = standard_normal(start_key, shape)
    else:
        start = arguments.data("x_init", x_init)
        arguments.check_finite("x_init", start)
    x = process.widened(start)
    levels, end = levels.astype(x.dtype), end.astype(x.dtype)
    if x.shape != shape:
        raise ValueError(f"x_init has shape {x.shape}, and shape={shape} was asked for")
    denoise = make_denoiser(
        predict, prediction, clip_x0, dynamic_threshold, solver.learned_variance
    )
    if solver.visits_between and schedule.num_steps and not process.takes_log_snr(predict):
        raise ValueError(
            f"sampler={sampler!r} visits levels between the indices of a discrete schedule, which a"
            " predictor conditioned on the index does not know: give one conditioned on the log-SNR"
            " (by_log_snr), or take a multistep sampler such as 'dpmpp_2m'"
        )

    def level_at(log_snr):
        by_time = schedule.num_steps is None and not process.takes_log_snr(predict)
        t = schedule.inverse_log_snr(log_snr) if by_time else jnp.zeros((), levels.t.dtype)
        return Level(t, log_snr)

    def body(state, inputs):
        x, carry = state
        i, now, after = inputs
        at = Step(fold_in(step_key, i), now, after, denoise, level_at)
        x_next, carry = solver.step(x, carry, at)
        # No step between equal levels: a grid may have reached the clean end before, and where a
        # schedule is flat float32 may not tell levels apart.
        made = x_next.astype(x.dtype), carry
        moves = now.log_snr < after.log_snr
        state = jax.tree.map(lambda new, old: jnp.where(moves, new, old), made, state)
        return state, state[0] if return_trajectory else None

    n = levels.t.shape[0]
    if return_trajectory:
        arguments.sizes("trajectory", (n + 1, *shape))
    after = jax.tree.map(lambda a, last: jnp.concatenate([a[1:], last]), levels, end)
    (result, _), states = jax.lax.scan(body, (x, solver.init(x)), (jnp.arange(n), levels, after))
    result = result.astype(start.dtype)
    if not return_trajectory:
        return result
    return result, jnp.concatenate([x[None], states]).astype(start.dtype)


def visited_levels(
    schedule: AnySchedule,
    num_steps: int,
    grid: str | Rate | Sequence[float] | jax.Array | None = None,
    prediction: str = "eps",
    log_snr_max: float = 20.0,
    log_snr_min: float = -20.0,
    sampler: str = "ddim",
) -> Level:
    """The levels that `sample` visits, noisiest first; fields of shape (steps,). See `sample`."""
    over = range_of(schedule, prediction, log_snr_max, log_snr_min)
    return grids.levels(over, get(sampler).grid if grid is None else grid, num_steps)


def range_of(
    schedule: AnySchedule, prediction: str, log_snr_max: float, log_snr_min: float
) -> grids.Range:
    """What a grid is laid over; refuses what can't be sampled."""
    process.refuse_eps_at_zero_snr(schedule, prediction)
    is_no_nan, words = (lambda bound: bound == bound), "must be a number, infinite for no bound"
    log_snr_max = arguments.number("log_snr_max", log_snr_max, is_no_nan, words)
    log_snr_min = arguments.number("log_snr_min", log_snr_min, is_no_nan, words)
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"log_snr_max={log_snr_max}, log_snr_min={log_snr_min}: log_snr_min is the lower one"
        )
    ends = concrete_ends(schedule)
    endless = log_snr_min == -jnp.inf and ends is not None and ends[1] == -jnp.inf
    if prediction in process.BLIND_AT_ZERO_SNR and endless:
        raise ValueError(
            f"log_snr_min=-inf with prediction={prediction!r}: {prediction} can't give x0 at zero"
            " SNR; use a finite log_snr_min, or v, x0 or flow prediction"
        )
    lowest = -jnp.inf if schedule.zero_terminal else log_snr_min
    first, last = (jnp.asarray(end, jnp.result_type(float)) for end in ends_of(schedule))
    return grids.Range(
        schedule,
        noisy=jnp.where(last >= lowest, 1.0, _time_of(schedule, max(lowest, -1e30))),
        clean=jnp.where(first <= log_snr_max, 0.0, _time_of(schedule, min(log_snr_max, 1e30))),
        log_snr_noisy=jnp.maximum(last, log_snr_min if log_snr_min > -jnp.inf else -20.0),
        log_snr_clean=jnp.minimum(first, log_snr_max if log_snr_max < jnp.inf else 20.0),
        lowest=lowest,
        highest=log_snr_max,
    )


def _time_of(schedule: AnySchedule, log_snr: float) -> jax.Array:
    # The visited range is laid over t in continuous time only; indices are visited as they are.
    if schedule.num_steps is not None:
        return jnp.zeros(())
    return schedule.inverse_log_snr(jnp.asarray(log_snr, jnp.result_type(float)))


def _limiter(
    clip_x0: float | None, dynamic_threshold: float | None
) -> Callable[[jax.Array], jax.Array] | None:
    """x0 -> x0 within bounds; None where none were asked for."""
    clip_x0 = arguments.clip(clip_x0)
    if dynamic_threshold is None:
        return None if clip_x0 is None else lambda x0: jnp.clip(x0, -clip_x0, clip_x0)
    words = "a share of the data's numbers, above 0 and at most 1"
    dynamic_threshold = arguments.number(
        "dynamic_threshold", dynamic_threshold, lambda share: 0 < share <= 1, words, traced=True
    )
    bound = 1.0 if clip_x0 is None else clip_x0

    def limit(x0: jax.Array) -> jax.Array:
        size = jnp.abs(x0).reshape(x0.shape[0], -1)
        reach = jnp.maximum(jnp.quantile(size, dynamic_threshold, axis=1), bound)
        reach = process.expand_to(reach, x0)
        return jnp.clip(x0, -reach, reach) * (bound / reach)

    return limit


def make_denoiser(
    predict: Predict,
    prediction: str,
    clip_x0: float | None = None,
    dynamic_threshold: float | None = None,
    learned_variance: bool = False,
) -> Callable[[jax.Array, Level], Denoised]:
    """x_t, level -> Denoised: one network call, converted and limited; arguments as in `sample`."""
    limit = _limiter(clip_x0, dynamic_threshold)

    def denoise(x: jax.Array, level: Level) -> Denoised:
        x0, eps, variance = process.denoise(
            predict, x, level.t, level.log_snr, prediction, learned_variance
        )
        if limit is None:
            return Denoised(x0, eps, variance)
        x0 = limit(x0)
        # eps that belongs to the limited x0, so that x_t = alpha x0 + sigma eps still holds
        return Denoised(x0, process.convert(x0, x, level.alpha, level.sigma, "x0", "eps"), variance)

    return denoise
