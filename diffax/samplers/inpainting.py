"""Inpainting: a part of the data is given, the rest is sampled to fit it (RePaint)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffax import arguments, process
from diffax.process import AnySchedule, Predict, split_key
from diffax.samplers.base import Level, Step, fold_in, standard_normal
from diffax.samplers.ddpm import ddpm
from diffax.samplers.loop import make_denoiser, visited_levels


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
    grid: str | Sequence[float] | jax.Array = "uniform",
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
    levels = visited_levels(schedule, num_steps, grid, prediction)
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
            given = process.q_sample_at(
                known, after.log_snr, standard_normal(known_key, x.shape, x.dtype)
            )
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
