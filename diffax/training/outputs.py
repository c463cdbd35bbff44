"""What a run draws while it trains: sample grids, and the schedule's curve."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import plots, samplers
from diffax.process import AnySchedule
from diffax.training.state import DatasetInfo, TrainState, predictor
from diffax.training.workdir import write_text

CURVE_POINTS = 1025


def make_sampler(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, num_samples: int
) -> Callable[[TrainState, jax.Array], jax.Array]:
    """(state, key) -> samples, (num_samples, ..., C), by `config.sampling`, averaged parameters.

    The classes of a class-conditional network come in turn: sample i is of class i modulo their
    number.
    """
    options = config_lib.sampling_options(config)
    reads_variance = config_lib.build_sampler(config).learned_variance
    conditional = config.model.class_conditional
    label = jnp.arange(num_samples) % dataset.num_classes if conditional else None
    other = config_lib.build_sampling_schedule(config, dataset.shape)

    def draw(state: TrainState, key: jax.Array) -> jax.Array:
        predict = predictor(
            model,
            state.ema_params,
            label,
            mean_only=config.objective.learned_variance and not reads_variance,
        )
        shape = (num_samples, *dataset.shape)
        schedule = state.schedule if other is None else other
        return samplers.sample(key, predict, schedule, shape, **options)

    return draw


def make_drawing(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, root: Path
) -> Callable[[TrainState], np.ndarray]:
    """state -> a picture of samples, (1, height, width, 1 or 3) uint8, also put in root/samples.

    The noise is the same every time.
    """
    draw = jax.jit(make_sampler(config, model, dataset, config.sampling.num_samples))

    def drawing(state: TrainState) -> np.ndarray:
        pixels = plots.picture(np.asarray(draw(state, jax.random.key(config.seed))))
        folder = root / "samples"
        folder.mkdir(exist_ok=True)
        plots.save_png(folder / f"step_{int(state.step):06d}.png", pixels)
        return pixels[None]

    return drawing


@jax.jit
def _log_snr(schedule: AnySchedule, t: jax.Array) -> jax.Array:
    return schedule.log_snr(t)


def write_schedule(root: Path, state: TrainState) -> None:
    """Writes {"t": [...], "log_snr": [...]} to root/schedule.

    Continuous time is seen at 1025 points from 0 to 1, and `diffax.schedules.from_json` reads the
    file if both ends are finite; T steps are seen at t = (i + 1) / T. Infinite values, which JSON
    doesn't have, are null.
    """
    schedule = state.schedule
    if schedule.num_steps is None:
        t = np.linspace(0.0, 1.0, CURVE_POINTS)
        log_snr = _log_snr(schedule, t.astype(np.float32))
    else:
        t = (np.arange(schedule.num_steps) + 1) / schedule.num_steps
        log_snr = schedule.log_snrs
    values = [value if math.isfinite(value) else None for value in np.asarray(log_snr).tolist()]
    path = root / "schedule" / f"step_{int(state.step):06d}.json"
    write_text(path, json.dumps({"t": t.tolist(), "log_snr": values}))
