"""What a run draws while it trains: sample grids, and the schedule's curve."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import plots, samplers
from diffax.files import replacing, write_text
from diffax.process import AnySchedule, Predict
from diffax.training import hosts, parallel
from diffax.training.state import DatasetInfo, TrainState, predictor

CURVE_POINTS = 1025


def make_sampler(
    config: ConfigDict,
    model: nn.Module,
    dataset: DatasetInfo,
    operation: Callable = samplers.sample,
) -> Callable[..., Any]:
    """(state, keys, label, scale, *given) -> samples, (n, ..., C), by `config.sampling`.

    By the averaged weights. `keys`: (n,), one for each sample. `label`: (n,) classes, of which an
    unconditional network is told nothing. `scale`: of the guidance, where
    `config.sampling.guidance_scale` is not 1. `operation`: (keys, predict, schedule, shape, *given,
    **options) -> what is drawn; the options are those of `samplers.sample`.
    """
    options = config_lib.sampling_options(config)
    reads_variance = config_lib.build_sampler(config).learned_variance
    conditional, sampling = config.model.class_conditional, config.sampling
    other = config_lib.build_sampling_schedule(config, dataset.shape)

    def draw(
        state: TrainState,
        keys: jax.Array,
        label: jax.Array,
        scale: jax.Array | float,
        *given: jax.Array,
    ) -> Any:
        def network(label: jax.Array | None) -> Predict:
            mean_only = config.objective.learned_variance and not reads_variance
            return predictor(model, state.ema_params, label, mean_only=mean_only)

        predict = network(label if conditional else None)
        if sampling.guidance_scale != 1:
            predict = samplers.guidance.classifier_free(
                lambda x, log_snr, label: network(label)(x, log_snr),
                label,
                dataset.num_classes,
                scale,
                sampling.guidance_interval,
                sampling.guidance_rescale,
            )
        schedule = config_lib.acting_schedule(config, state.schedule) if other is None else other
        return operation(keys, predict, schedule, (len(keys), *dataset.shape), *given, **options)

    return draw


def make_drawing(
    config: ConfigDict, model: nn.Module, dataset: DatasetInfo, root: Path, mesh: Mesh
) -> Callable[[TrainState], np.ndarray]:
    """state -> a picture of samples, (1, height, width, 1 or 3) uint8, also put in root/samples.

    The noise is the same every time.
    """
    sampler, num = make_sampler(config, model, dataset), config.sampling.num_samples
    label = np.arange(num) % max(dataset.num_classes, 1)

    def sample(state: TrainState) -> jax.Array:
        keys = jax.random.split(jax.random.key(config.seed), num)
        return sampler(state, keys, label, config.sampling.guidance_scale)

    draw = jax.jit(sample, out_shardings=parallel.replicated(mesh))

    def drawing(state: TrainState) -> np.ndarray:
        pixels = plots.picture(np.asarray(draw(state)))
        if hosts.is_first():
            with replacing(root / "samples" / f"step_{int(state.step):06d}.png") as partial:
                plots.save_png(partial, pixels)
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
    if hosts.is_first():
        write_text(path, json.dumps({"t": t.tolist(), "log_snr": values}))
