"""What experiments/interop_diffusers.py asks of diffusers, and test_interop.py of diffax."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from exact import in_float64, wrong

import diffax
from diffax import schedules
from diffax.interop import diffusers
from diffax.process import by_log_snr

NUM_STEPS = 10
SHAPE = (4, 3)
KEY = jax.random.key(21)
AT = [0, 1, 10, 100, 500, 900, 998, 999]  # of T = 1000, where alpha_bar is compared

# case -> diffusers' class, and its arguments
READ = {
    "ddim": ("DDIMScheduler", {}),
    "ddim, scaled": (
        "DDIMScheduler",
        dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
             clip_sample=False, set_alpha_to_one=False),
    ),
    "ddim, zero SNR": (
        "DDIMScheduler",
        dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
             prediction_type="v_prediction"),
    ),
    "ddpm, cosine": (
        "DDPMScheduler",
        dict(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace",
             prediction_type="sample", clip_sample_range=2.0),
    ),
    "ddpm, sigmoid": (
        "DDPMScheduler", dict(beta_schedule="sigmoid", variance_type="learned_range")
    ),
    "ddim, own betas": (
        "DDIMScheduler", dict(trained_betas=np.linspace(1e-3, 0.3, 20).tolist(),
                              num_train_timesteps=20),
    ),
    "dpm": ("DPMSolverMultistepScheduler", dict(beta_schedule="scaled_linear")),
    "dpm, leading": (
        "DPMSolverMultistepScheduler", dict(timestep_spacing="leading", steps_offset=1)
    ),
    "unipc, trailing": ("UniPCMultistepScheduler", dict(timestep_spacing="trailing")),
    "flow": ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0)),
}  # fmt: skip
FLOW = "FlowMatchEulerDiscreteScheduler"


def _learned() -> schedules.Schedule:
    return schedules.learned(jax.random.key(3), log_snr_max=9.0, log_snr_min=-8.0, size=8)


# case -> schedule, and the other arguments of `save_scheduler`
WRITTEN = {
    "cosine, ddim": (schedules.cosine, dict(num_steps=50)),
    "learned, ddim": (_learned, dict(num_steps=50, prediction="eps")),
    "zero SNR, ddim": (
        lambda: schedules.zero_terminal_snr(schedules.get("linear").discretize(50)),
        dict(prediction="v"),
    ),
    "linear_logsnr, clipped": (
        lambda: schedules.get("linear_logsnr"),
        dict(num_steps=50, clip_x0=1.0),
    ),
    "cosine, dpmpp_2m": (schedules.cosine, dict(num_steps=50, sampler="dpmpp_2m")),
    "cosine, unipc": (schedules.cosine, dict(num_steps=50, sampler="unipc")),
    "flow": (lambda: schedules.get("rectified_flow"), dict(prediction="flow", num_steps=50)),
    "flow, shifted": (
        lambda: schedules.shifted(schedules.get("rectified_flow"), 2.0, 1.0),
        dict(prediction="flow", num_steps=50),
    ),
}


def predict(x_t: jax.Array, log_snr: jax.Array) -> jax.Array:
    """No denoiser of any data, so that nothing cancels; finite at zero SNR."""
    return wrong(x_t, jnp.clip(log_snr, -20, 20))


@in_float64
def start() -> np.ndarray:
    """Where `sample` starts from under KEY."""
    return np.asarray(jax.random.normal(jax.random.split(KEY)[0], SHAPE))


def written(name: str, folder: Path) -> None:
    """Writes the scheduler of a case of `WRITTEN` into a folder."""
    make, options = WRITTEN[name]
    diffusers.save_scheduler(folder, make(), **options)


@in_float64
def drawn(name: str, folder: Path) -> np.ndarray:
    """The samples of a case from `start` by `predict`, under the scheduler that a folder holds."""
    _, options = WRITTEN[name]
    loaded = diffusers.load_scheduler(folder)
    return np.asarray(
        diffax.sample(
            KEY, by_log_snr(predict), loaded.schedule, SHAPE, options.get("sampler", "ddim"),
            grid=loaded.grid(NUM_STEPS), prediction=loaded.prediction, clip_x0=loaded.clip_x0,
            log_snr_max=np.inf, log_snr_min=-np.inf,
        )
    )  # fmt: skip
