"""What experiments/against_diffusers.py and test_solvers.py compare with diffusers, and how.

diffusers' calls come one by one; a case says which of them begin a step of ours, and after which of
them its state is that of the step's end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from exact import in_float64, wrong

import diffax
from diffax import schedules
from diffax.process import by_log_snr, expand_to

NUM_STEPS = 8
SHAPE = (4, 3)
KEY = jax.random.key(20)

# case -> (sampler, its options, calls of diffusers per step, after the first so many)
CASES = {
    "ddim": ("ddim", {}, 1, 0),
    "ddim, eta 0.6": ("ddim", dict(eta=0.6), 1, 0),
    "plms": ("plms", {}, 1, 1),
    "euler": ("euler", {}, 1, 0),
    "heun": ("heun", {}, 2, 0),
    "dpm_solver, order 2": ("dpm_solver", dict(order=2), 2, 0),
    "dpmpp_2s": ("dpmpp_2s", {}, 2, 0),
    "dpmpp_2m": ("dpmpp_2m", {}, 1, 0),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, 1, 0),
    "unipc": ("unipc", {}, 1, 0),
    "flow matching": ("ddim", dict(prediction="flow"), 1, 0),
    "flow matching, shift 3": ("ddim", dict(prediction="flow"), 1, 0),
}
# Those that diffusers computes in float32, or with float32 levels in between.
IN_FLOAT32 = (
    *("euler", "dpm_solver, order 2", "dpmpp_2s", "dpmpp_2m", "dpmpp_2m_sde"),
    *("flow matching", "flow matching, shift 3"),
)
# diffusers' single-step solvers take two first-order steps at the end, ours takes one.
LAST_STEPS_APART = ("dpm_solver, order 2", "dpmpp_2s")


def velocity(z, t):
    """A predictor of flow matching, as `exact.wrong` is one of eps: z = (1 - t) x0 + t eps."""
    return jnp.sin(2 * z + 0.3 * t) + 0.2 * z * (1 - t)


def as_flow(x_t: jax.Array, log_snr: jax.Array) -> jax.Array:
    """`velocity` of a variance-preserving x_t at a log-SNR."""
    t = jax.nn.sigmoid(-0.5 * expand_to(log_snr, x_t))
    return velocity(x_t * jnp.hypot(1 - t, t), t)


@in_float64
def start_and_noise() -> tuple[np.ndarray, np.ndarray]:
    """The start, and the noise of each step, as `sample` draws them from KEY."""
    start_key, step_key = jax.random.split(KEY)
    keys = [jax.random.fold_in(step_key, i) for i in range(NUM_STEPS)]
    start, *noise = (np.asarray(jax.random.normal(key, SHAPE)) for key in (start_key, *keys))
    return start, np.array(noise)


@in_float64
def ours(name: str, log_snrs: np.ndarray) -> np.ndarray:
    """The states after each step of the case at these levels: (steps, *SHAPE), float64."""
    sampler, options, *_ = CASES[name]
    levels = jnp.asarray(log_snrs[::-1], jnp.float64)
    table = schedules.from_log_snr_table(levels, zero_terminal=bool(np.isneginf(log_snrs[0])))
    _, states = diffax.sample(
        KEY,
        by_log_snr(as_flow if "prediction" in options else wrong),
        table,
        SHAPE,
        sampler,
        table.num_steps,
        return_trajectory=True,
        log_snr_max=np.inf,
        **options,
    )
    return np.asarray(states[1:])


def difference(name: str, log_snrs: np.ndarray, states: np.ndarray) -> float:
    """The largest difference between diffusers' states and ours, in units of the largest state."""
    _, _, per_step, extra = CASES[name]
    # the calls that begin a step of ours, and those that end one
    begins = np.arange(0, len(log_snrs) - extra, per_step)
    begins[1:] += extra
    ends = np.append(begins[1:] - 1, len(states) - 1)
    found = ours(name, log_snrs[begins])
    compared = slice(None, -1) if name in LAST_STEPS_APART else slice(None)
    return float(np.abs(found - states[ends])[compared].max() / np.abs(states).max())
