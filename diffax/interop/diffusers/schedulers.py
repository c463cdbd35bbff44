"""Schedulers of diffusers, in and out.

A scheduler is a folder with a `scheduler_config.json`. `save_scheduler` writes any schedule as one,
by its betas; `load_scheduler` reads one as a schedule, with what else its config says.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffax import schedules
from diffax.files import write_json
from diffax.process import AnySchedule
from diffax.registry import unknown

CONFIG = "scheduler_config.json"
# diffax's name of a prediction -> diffusers'.
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_FLOW = "FlowMatchEulerDiscreteScheduler"
# Shifts of a log-SNR below this are rounding.
_TOLERANCE = 1e-4


class Scheduler(NamedTuple):
    """What the config of a diffusers scheduler says.

    Attributes:
      schedule: the T steps of its betas; of flow matching, in continuous time.
      prediction: what its network predicts: "eps", "x0", "v" or "flow".
      clip_x0: the bound to which the predicted x0 is clipped, None for none.
      learned_variance: whether the network gives the reverse variance too.
      grid: num_steps -> the indices, or of flow matching the times, that it visits, the noisiest
        first, as `diffax.sample(grid=...)` takes them. diffax's last step goes to x0, as that of
        `set_alpha_to_one` and of `final_sigmas_type="zero"` there; other ends are not read.
      sampler: diffax's solver that takes its steps.
      spacing: the name of diffax's grid that is `grid` where `steps_offset` is 0, or near it.
    """

    schedule: AnySchedule
    prediction: str
    clip_x0: float | None
    learned_variance: bool
    grid: Callable[[int], list]
    sampler: str
    spacing: str


# --- in ---------------------------------------------------------------------------------------


def _squaredcos(config: dict[str, Any], total: int) -> np.ndarray:
    """1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), at most 0.999 (Nichol & Dhariwal 2021)."""
    alpha_bar = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def _spread(power: float) -> Callable[[dict[str, Any], int], np.ndarray]:
    """The power of what lies linearly between the roots of the first and of the last beta."""

    def betas(config: dict[str, Any], total: int) -> np.ndarray:
        first, last = (config[key] ** (1 / power) for key in ("beta_start", "beta_end"))
        return np.linspace(first, last, total) ** power

    return betas


def _sigmoid(config: dict[str, Any], total: int) -> np.ndarray:
    rise = 1 / (1 + np.exp(-np.linspace(-6, 6, total)))
    return config["beta_start"] + (config["beta_end"] - config["beta_start"]) * rise


# beta_schedule -> the betas of a config, (T,) float64.
BETAS: dict[str, Callable[[dict[str, Any], int], np.ndarray]] = {
    "linear": _spread(1),
    "scaled_linear": _spread(2),
    "squaredcos_cap_v2": _squaredcos,
    "sigmoid": _sigmoid,
}


def _of_single_steps(spacing: str, total: int, offset: int, num: int) -> np.ndarray:
    """The indices of DDPM and DDIM (Lin 2023, table 2)."""
    return {
        "leading": lambda: np.arange(num)[::-1] * (total // num) + offset,
        "linspace": lambda: np.round(np.linspace(0, total - 1, num))[::-1],
        "trailing": lambda: np.round(np.arange(total, 0, -total / num)) - 1,
    }[spacing]()


def _of_multistep(spacing: str, total: int, offset: int, num: int) -> np.ndarray:
    """The indices of DPM-Solver and UniPC, whose last step goes to a level of its own."""
    return {
        "leading": lambda: np.arange(num, 0, -1) * (total // (num + 1)) + offset,
        "linspace": lambda: np.round(np.linspace(0, total - 1, num + 1))[:0:-1],
        "trailing": lambda: np.round(np.arange(total, 0, -total / num)) - 1,
    }[spacing]()


_Indices = Callable[[str, int, int, int], np.ndarray]


class _Kind(NamedTuple):
    """A class of schedulers: its indices, and the spacing and clipping that it has by default."""

    indices: _Indices
    spacing: str
    clips: bool


KINDS = {
    "DDIMScheduler": _Kind(_of_single_steps, "leading", clips=True),
    "DDPMScheduler": _Kind(_of_single_steps, "leading", clips=True),
    "DPMSolverMultistepScheduler": _Kind(_of_multistep, "linspace", clips=False),
    "UniPCMultistepScheduler": _Kind(_of_multistep, "linspace", clips=False),
}
_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "epsilon", "clip_sample_range": 1.0, "steps_offset": 0,
}  # fmt: skip
# Keys that change what a scheduler visits or does, in ways that `Scheduler` has no word for.
_NOT_KNOWN = (
    "thresholding", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting", "invert_sigmas", "shift_terminal",
)  # fmt: skip


def _config_in(path: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    path = Path(path)
    for file in (path, path / CONFIG, path / "scheduler" / CONFIG):
        if file.is_file():
            try:
                return file, json.loads(file.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{file} is no JSON: {error}") from None
    raise FileNotFoundError(f"{path} holds no {CONFIG}")


def load_scheduler(path: str | os.PathLike) -> Scheduler:
    """The schedule of a diffusers scheduler, and what else its config says.

    Betas are those of `trained_betas`, or of `beta_schedule`; `rescale_betas_zero_snr` is applied,
    in float64. Of flow matching, the schedule is `rectified_flow` shifted by `shift`.

    Args:
      path: a `scheduler_config.json`, its folder, or the folder of a pipeline.

    Raises:
      FileNotFoundError: there is no config.
      ValueError: a class, a beta schedule or an option that diffax doesn't know; the message names
        it.
    """
    file, given = _config_in(path)
    name = given.get("_class_name")
    for key in _NOT_KNOWN:
        if given.get(key):
            raise ValueError(f"{file}: {key}={given[key]!r} is not known; only false is")
    if name == _FLOW:
        return _flow_matching(given)
    if name not in KINDS:
        raise ValueError(f"{file}: {unknown('_class_name', name, [*KINDS, _FLOW])}")
    kind, config = KINDS[name], {**_DEFAULTS, **given}
    total = config["num_train_timesteps"]
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    elif config["beta_schedule"] in BETAS:
        betas = BETAS[config["beta_schedule"]](config, total)
    else:
        raise ValueError(f"{file}: {unknown('beta_schedule', config['beta_schedule'], BETAS)}")
    schedule = schedules.from_betas(betas)
    if config.get("rescale_betas_zero_snr"):
        schedule = schedules.zero_terminal_snr(schedule)
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    if config["prediction_type"] not in predictions:
        said = unknown("prediction_type", config["prediction_type"], predictions)
        raise ValueError(f"{file}: {said}")
    spacing = config.get("timestep_spacing", kind.spacing)
    if spacing not in ("leading", "linspace", "trailing"):
        allowed = ("leading", "linspace", "trailing")
        raise ValueError(f"{file}: {unknown('timestep_spacing', spacing, allowed)}")

    def grid(num_steps: int) -> list[int]:
        indices = kind.indices(spacing, len(betas), config["steps_offset"], num_steps)
        return indices.astype(int).tolist()

    return Scheduler(
        schedule=schedule,
        prediction=predictions[config["prediction_type"]],
        clip_x0=config["clip_sample_range"] if config.get("clip_sample", kind.clips) else None,
        learned_variance=config.get("variance_type") == "learned_range",
        grid=grid,
        sampler=next(ours for ours, (theirs, _) in SAMPLERS.items() if theirs == name),
        spacing=spacing,
    )


def _flow_matching(config: dict[str, Any]) -> Scheduler:
    shift, total = config.get("shift", 1.0), config.get("num_train_timesteps", 1000)

    def shifted(t: np.ndarray) -> np.ndarray:
        return shift * t / (1 + (shift - 1) * t)

    def grid(num_steps: int) -> list[float]:
        # Their linspace ends at the least of the shifted times, and is shifted once more; the
        # times of the shifted schedule are those before that shift.
        return np.linspace(1.0, shifted(1 / total), num_steps).tolist()

    schedule = schedules.get("rectified_flow")
    if shift != 1:
        schedule = schedules.shifted(schedule, shift, 1)
    return Scheduler(schedule, "flow", None, False, grid, "ddim", "linspace")


# --- out --------------------------------------------------------------------------------------

# diffax's sampler -> the scheduler that takes the same steps, and its options.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": True}),
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small"}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}),
}


def save_scheduler(
    path: str | os.PathLike,
    schedule: AnySchedule,
    prediction: str = "eps",
    num_steps: int = 1000,
    clip_x0: float | None = None,
    sampler: str = "ddim",
) -> Path:
    """Writes a schedule as a diffusers scheduler, `path`/scheduler_config.json; returns the file.

    Args and errors as `scheduler_config`, which is what is written.
    """
    config = scheduler_config(schedule, prediction, num_steps, clip_x0, sampler)
    file = Path(path) / CONFIG
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, config)
    return file


def scheduler_config(
    schedule: AnySchedule,
    prediction: str = "eps",
    num_steps: int = 1000,
    clip_x0: float | None = None,
    sampler: str = "ddim",
) -> dict[str, Any]:
    """The config of the diffusers scheduler that a schedule is.

    The schedule goes as `trained_betas`: those of `discretize(num_steps)`, or its own if it is
    discrete. The spacing is "trailing", as diffax's uniform grid. A network of
    `prediction="flow"` goes with `rectified_flow`, shifted or not, as FlowMatchEuler.

    Args:
      schedule: any schedule, a learned one too; concrete.
      prediction: what the network predicts: "eps", "x0", "v", or "flow".
      num_steps: T, of a continuous schedule.
      clip_x0: the bound to which the predicted x0 is clipped, None for none (which diffusers' DDIM
        and DDPM must be told).
      sampler: "ddim", "ddpm", "dpmpp_2m" or "unipc".

    Raises:
      ValueError: a prediction or sampler that diffusers has no scheduler for; eps-prediction at
        zero SNR; flow prediction under another schedule than `rectified_flow`.
    """
    if prediction != "flow":
        return _beta_config(schedule, prediction, num_steps, clip_x0, sampler)
    return {
        "_class_name": _FLOW,
        "num_train_timesteps": schedule.num_steps or num_steps,
        "shift": _flow_shift(schedule),
    }


def _beta_config(
    schedule: AnySchedule, prediction: str, num_steps: int, clip_x0: float | None, sampler: str
) -> dict[str, Any]:
    if prediction not in PREDICTIONS:
        raise ValueError(unknown("prediction", prediction, [*PREDICTIONS, "flow"]))
    if sampler not in SAMPLERS:
        raise ValueError(unknown("sampler", sampler, SAMPLERS))
    name, options = SAMPLERS[sampler]
    discrete = schedule if schedule.num_steps else schedule.discretize(num_steps)
    betas = np.asarray(discrete.betas, np.float64)
    if prediction == "eps" and betas[-1] == 1:
        raise ValueError(
            "prediction='eps' is undefined at zero SNR, where the schedule ends: a network of 'v'"
            " or 'x0' can be sampled there"
        )
    clips = {"clip_sample": clip_x0 is not None, "clip_sample_range": clip_x0 or 1.0}
    if not KINDS[name].clips and clip_x0 is not None:
        raise ValueError(f"clip_x0={clip_x0:g}: diffusers' {name} clips nothing; it must be None")
    return {
        "_class_name": name,
        "num_train_timesteps": discrete.num_steps,
        "trained_betas": betas.tolist(),
        "prediction_type": PREDICTIONS[prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,  # the betas hold it
        **(clips if KINDS[name].clips else {}),
        **options,
    }


def _flow_shift(schedule: AnySchedule) -> float:
    """s of the schedule whose log-SNR is that of `rectified_flow` less 2 log s."""
    straight = schedules.get("rectified_flow")
    t = jnp.array([0.1, 0.5, 0.9])
    if schedule.num_steps is None:
        gaps = np.asarray(straight.log_snr(t) - schedule.log_snr(t))
        if np.ptp(gaps) < _TOLERANCE:
            shift = math.exp(gaps[1] / 2)
            return 1.0 if abs(shift - 1) < _TOLERANCE else shift
    raise ValueError(
        "prediction='flow' goes with schedule 'rectified_flow', shifted or not: diffusers has no"
        " scheduler for it under another one"
    )
