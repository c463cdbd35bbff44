"""Editing: noise data and sample anew (SDEdit), fill in a part of them (RePaint), find their noise
(DDIM backwards), pass between two of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import arguments, process
from diffax.process import AnySchedule, Predict, split_key
from diffax.samplers.base import Level, Step, fold_in, standard_normal
from diffax.samplers.ddpm import ddpm
from diffax.samplers.loop import make_denoiser, sample, visited_levels


def sdedit(
    key: jax.Array,
    predict: Predict,
    schedule: AnySchedule,
    x: jax.Array,
    strength: float,
    num_steps: int = 50,
    prediction: str = "eps",
    grid: str | Sequence[float] | jax.Array | None = None,
    log_snr_max: float = 20.0,
    log_snr_min: float = -20.0,
    sampler: str = "ddim",
    **options: object,
) -> jax.Array:
    """SDEdit (Meng 2022, algorithm 1): noise x up to a level, then sample from there.

    Of the `num_steps` levels of the grid the last `strength` share is visited, one at least, so 1
    forgets x but for its trace at the noisiest level, and a small share keeps all but details.

    Args:
      key: PRNG key, or one for each example; x: (batch, ..., C), what is edited.
      strength: above 0 and at most 1.
      The others are as in `sample`.

    Raises:
      ValueError: a strength outside its range, or what `sample` refuses.
    """
    arguments.check_order("sdedit", key=key, predict=predict, schedule=schedule, x=x)
    x = arguments.data("x", x)
    ends = log_snr_max, log_snr_min
    levels = visited_levels(schedule, num_steps, grid, prediction, *ends, sampler)
    kept = kept_levels(strength, len(levels.t))
    levels = Level(levels.t[-kept:], levels.log_snr[-kept:])
    noise_key, sample_key = split_key(key)
    wide = process.widened(x)
    noise = standard_normal(noise_key, x.shape, wide.dtype)
    drawn = sample(
        sample_key, predict, schedule, x.shape, sampler, kept, prediction,
        grid=levels, x_init=Level(levels.t[0], levels.log_snr[0]).of(wide, noise),
        log_snr_max=log_snr_max, log_snr_min=log_snr_min, **options,
    )  # fmt: skip
    return jax.tree.map(lambda a: a.astype(x.dtype), drawn)


def kept_levels(strength: float, num: int) -> int:
    """How many of `num` levels `sdedit` visits; ValueError for a strength outside (0, 1]."""
    words = "must be above 0 and at most 1"
    share = arguments.number("strength", strength, lambda share: 0 < share <= 1, words)
    return max(1, round(share * num))


def inpaint(
    key: jax.Array,
    predict: Predict,
    schedule: AnySchedule,
    known: jax.Array,
    mask: jax.Array,
    num_steps: int = 50,
    jump_length: int | None = None,
    num_resamples: int = 10,
    prediction: str = "eps",
    grid: str | Sequence[float] | jax.Array | None = None,
    clip_x0: float | None = None,
    dynamic_threshold: float | None = None,
) -> jax.Array:
    """RePaint (Lugmayr 2022, algorithm 1): ancestral sampling whose known part is put in anew.

    After each step what is known, noised to its level, replaces what was sampled there. Every
    `jump_length` steps the chain goes back as many levels by adding noise, `num_resamples` - 1
    times, so that the two parts come to agree. One call per step down: about num_steps *
    num_resamples in all; stochastic.

    Args:
      key: PRNG key, or one for each example, as in `sample`.
      known: (batch, ..., C).
      mask: broadcasts to it; True or 1 where it is known, False or 0 where it is sampled, whatever
        `known` holds there. A share between mixes the two.
      jump_length: below the number of levels; None for 10, or one level less than there are.
      num_resamples: how often each stretch is gone through; 1: no jumps.
      The others are as in `sample`.

    Raises:
      ValueError: a mask outside [0, 1] or of another shape, a jump or a count below 1, a jump over
        all levels, or what `sample` refuses.
    """
    arguments.check_order("inpaint", key=key, predict=predict, schedule=schedule, known=known)
    known = arguments.data("known", known)
    dtype, known = known.dtype, process.widened(known)
    mask = arguments.mask(mask, known.shape).astype(known.dtype)
    known = jnp.where(mask > 0, known, 0)
    levels = visited_levels(schedule, num_steps, grid, prediction, sampler="ddpm")
    num = levels.t.shape[0]
    num_resamples = arguments.whole("num_resamples", num_resamples, 1, arguments.MOST_STEPS)
    if jump_length is None:
        jump_length = max(1, min(10, num - 1))
    most = num - 1 if min(num, num_resamples) > 1 else arguments.MOST_STEPS
    jump_length = arguments.whole("jump_length", jump_length, 1, most)
    count = num + (num_resamples - 1) * 2 * jump_length * ((num - 1) // jump_length)
    if count > arguments.MOST_STEPS:
        raise ValueError(
            f"num_resamples={num_resamples} and num_steps={num_steps} make {count:,} steps: at most"
            f" {arguments.MOST_STEPS:,} are allowed"
        )
    whole = Level(
        jnp.append(levels.t, jnp.zeros((), levels.t.dtype)), jnp.append(levels.log_snr, jnp.inf)
    ).astype(known.dtype)
    denoise = make_denoiser(predict, prediction, clip_x0, dynamic_threshold)
    down = ddpm().step
    start_key, step_key = split_key(key)
    x = standard_normal(start_key, known.shape, known.dtype)

    def body(x: jax.Array, move: tuple[jax.Array, jax.Array, jax.Array]):
        i, source, target = move
        own_key, known_key = split_key(fold_in(step_key, i))
        now, after = (jax.tree.map(lambda a, k=k: a[k], whole) for k in (source, target))

        def denoised() -> jax.Array:
            given = after.of(known, standard_normal(known_key, x.shape, x.dtype))
            sampled, _ = down(x, (), Step(own_key, now, after, denoise, None))
            return mask * given + (1 - mask) * sampled

        def noised() -> jax.Array:
            beta = process.transition_variance(after.log_snr, now.log_snr)
            noise = standard_normal(own_key, x.shape, x.dtype)
            return jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * noise

        return jax.lax.cond(target > source, denoised, noised), None

    moves = _moves(num, jump_length, num_resamples)
    inputs = (jnp.arange(len(moves)), moves[:, 0], moves[:, 1])
    return jax.lax.scan(body, x, inputs)[0].astype(dtype)


def _moves(num: int, jump_length: int, num_resamples: int) -> np.ndarray:
    """(from, to) for every move between levels 0, the noisiest, to `num`, x0: (moves, 2)."""
    moves, at = [], 0
    left = dict.fromkeys(range(jump_length, num, jump_length), num_resamples - 1)
    while at < num:
        moves.append((at, at + 1))
        at += 1
        if left.get(at, 0) > 0:
            left[at] -= 1
            moves += [(i, i - 1) for i in range(at, at - jump_length, -1)]
            at -= jump_length
    return np.array(moves)


def invert(
    predict: Predict,
    schedule: AnySchedule,
    x0: jax.Array,
    num_steps: int = 50,
    prediction: str = "eps",
    grid: str | Sequence[float] | jax.Array | None = None,
) -> jax.Array:
    """DDIM run backwards (Song 2021, section 4.3): the start from which `sample` gives x0 again.

    x' = alpha' x0_hat + sigma' eps_hat from each level of the grid to the next noisier one, the
    network called at the cleaner. `sample` with sampler="ddim", the same grid and `x_init` the
    result then gives x0 back but for an error of order 1 / num_steps.

    Args:
      x0: (batch, ..., C); the others as in `sample`.

    Raises:
      ValueError: what `sample` refuses; a schedule that starts at zero SNR, where x_t says nothing.
    """
    arguments.check_order("invert", predict=predict, schedule=schedule, x0=x0)
    x0 = arguments.data("x0", x0)
    levels = visited_levels(schedule, num_steps, grid, prediction)
    if schedule.zero_terminal:
        raise ValueError("at zero SNR x_t holds nothing of x0: invert under a finite end")
    dtype, x0 = x0.dtype, process.widened(x0)
    levels = Level(levels.t[::-1], levels.log_snr[::-1]).astype(x0.dtype)

    denoise = make_denoiser(predict, prediction)

    def body(x: jax.Array, pair: tuple[Level, Level]) -> tuple[jax.Array, None]:
        now, noisier = pair
        out = denoise(x, now)
        return noisier.of(out.x0, out.eps), None

    first = Level(levels.t[0], levels.log_snr[0])
    start = first.of(x0, denoise(x0, first).eps)
    pairs = (jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels))
    return jax.lax.scan(body, start, pairs)[0].astype(dtype)


def reconstruct(
    predict: Predict,
    schedule: AnySchedule,
    start: jax.Array,
    x0: jax.Array,
    num_steps: int = 50,
    prediction: str = "eps",
    grid: str | Sequence[float] | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """DDIM from a result of `invert`, and how far it ends from x0.

    No estimate is clipped: what is clipped can't be undone.

    Args:
      start, x0: (batch, ..., C), the result and the argument of `invert`; the others as there.

    Returns:
      What is sampled, and sqrt(mean((sampled - x0)^2)) of each example, (batch,).

    Raises:
      ValueError: what `sample` refuses; starts and x0 of different shapes.
    """
    x0 = arguments.data("x0", x0)
    key = jax.random.key(0)  # DDIM draws nothing
    again = sample(
        key, predict, schedule, x0.shape, num_steps=num_steps, prediction=prediction,
        grid=grid, x_init=start,
    )  # fmt: skip
    apart = process.widened(again) - process.widened(x0)
    return again, jnp.sqrt(jnp.mean(apart**2, axis=tuple(range(1, x0.ndim))))


def interpolate(a: jax.Array, b: jax.Array, shares: Sequence[float] | jax.Array) -> jax.Array:
    """Between two starts, along the great circle (Song 2021, section 5.3; Shoemake 1985).

        sin((1 - s) w) / sin w a + sin(s w) / sin w b,  w the angle between them

    Args:
      a, b: (...), starts of `sample` or results of `invert`; shares: (n,), 0 is a and 1 is b.

    Returns:
      (n, ...).

    Raises:
      ValueError: a and b of different shapes, or a share outside [0, 1].
    """
    a = arguments.data("a", a)
    b = arguments.data("b", b, a.shape)
    arguments.check_within("shares", shares, 1, "each lies between 0 and 1")
    dtype, a, b = jnp.result_type(a, b), process.widened(a), process.widened(b)
    flat_a, flat_b = jnp.ravel(a), jnp.ravel(b)
    cosine = jnp.vdot(flat_a, flat_b) / (jnp.linalg.norm(flat_a) * jnp.linalg.norm(flat_b))
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))  # keeps sin w away from 0
    shares = process.expand_to(jnp.asarray(shares, a.dtype), a[None])
    between = (jnp.sin((1 - shares) * angle) * a + jnp.sin(shares * angle) * b) / jnp.sin(angle)
    return between.astype(dtype)


# --- the edits as one program each, which `Generator` compiles -----------------------------------


class Operation(NamedTuple):
    """(keys, predict, schedule, shape, *given, **options of `sample` or of the edit) -> a result.

    Attributes:
      run: does it.
      reads: the function whose keywords are the options that count; the others are left out.
      given: what each array is that it takes: "data"; "start", where sampling begins; "mask", 1
        where data are known.
      made: what each array of its result is: "data"; "start"; "error", (batch,), the root mean
        square between the data made and those given.
    """

    run: Callable
    reads: Callable
    given: tuple[str, ...] = ("data",)
    made: tuple[str, ...] = ("data",)

    def unread(self, options: Iterable[str]) -> tuple[str, ...]:
        """Those of some options that it does not read."""
        parameters = inspect.signature(self.reads).parameters
        if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
            return ()
        return tuple(option for option in options if option not in parameters)

    def under(self, **settings: Any) -> Operation:
        """The operation with some of its keywords given."""
        return self._replace(run=functools.partial(self.run, **settings))

    def __call__(self, *args: Any, **options: Any) -> Any:
        for option in self.unread(options):
            del options[option]
        return self.run(*args, **options)


def _from_start(keys, predict, schedule, shape, start, **options):
    return sample(keys, predict, schedule, shape, x_init=start, **options)


def _from_inversion(keys, predict, schedule, shape, start, **options):
    return sample(keys, predict, schedule, shape, "ddim", x_init=start, **options)


def _sdedit(keys, predict, schedule, shape, x, **options):
    return sdedit(keys, predict, schedule, x, **options)


def _inpaint(keys, predict, schedule, shape, x, mask, **options):
    return inpaint(keys, predict, schedule, x, mask, **options)


def _invert(keys, predict, schedule, shape, x, **options):
    start = invert(predict, schedule, x, **options)
    return start, *reconstruct(predict, schedule, start, x, **options)


OPERATIONS: dict[str, Operation] = {
    "from_start": Operation(_from_start, sample, ("start",)),
    "from_inversion": Operation(_from_inversion, invert, ("start",)),
    "sdedit": Operation(_sdedit, sdedit),
    "inpaint": Operation(_inpaint, inpaint, ("data", "mask")),
    "invert": Operation(_invert, invert, made=("start", "data", "error")),
}
