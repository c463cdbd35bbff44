"""A run made of another library's network: sampled, evaluated and fine-tuned as one's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data
from diffax.config.build import build_schedule
from diffax.config.defaults import default_config, model_fields
from diffax.data import DatasetInfo
from diffax.files import write_text
from diffax.interop import diffusers
from diffax.interop.diffusers.unets import sample_shape
from diffax.models import UNet
from diffax.models.embeddings import log_snr_position, sinusoidal
from diffax.places import workdir_of
from diffax.registry import unknown
from diffax.training import codecs, teachers
from diffax.training.checkpoint import Checkpoints
from diffax.training.lock import held
from diffax.training.workdir import CHECKPOINTS, as_remembered, check_writable

# The log-SNR that stands for zero SNR in the table of a network's steps.
_ZERO_SNR = -87.0
# Of the rows of a time embedding, which a log-SNR makes that went by betas of a file.
_ROUNDING = 1e-4


class Found(NamedTuple):
    """What another library's files say: the config of a run, whose section "data" is yet to be
    set, the network's parameters, the shape of an example, and the number of classes."""

    config: ConfigDict
    params: Any
    shape: tuple[int, ...]
    num_classes: int


def import_run(
    path: str | os.PathLike,
    workdir: str | os.PathLike,
    source: str = "diffusers",
    data_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a run, at step 0, whose network is another library's; returns its workdir.

    "diffusers": the folder of a `DDPMPipeline` or `DDIMPipeline`, with `unet` and `scheduler`. The
    run's schedule is the scheduler's, by its betas; prediction, clipping and the steps that are
    visited are the scheduler's too. The network is given the step number that has the log-SNR, so
    that it predicts what it does in diffusers under its own schedule, and can be sampled, or
    trained from (`training.init_from`), under any other. A learned time embedding whose rows are
    what diffax wrote for these steps is a network conditioned on the log-SNR again, the one that
    was exported. A scheduler of flow matching is refused.

    Args:
      path: what is read.
      workdir: of the run; it holds no run yet.
      data_config: fields of `config.data`, on which the run is evaluated and fine-tuned. None: it
        can only be sampled and trained from.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a source, or an option of a network or scheduler, that is not known; data of
        another shape or with another number of classes; or the workdir holds a run. Nothing is
        written then.
    """
    if source not in SOURCES:
        raise ValueError(unknown("from", source, SOURCES))
    found = SOURCES[source](Path(path).expanduser())
    config = found.config
    info = _described(found, data_config)
    config_lib.validate(config)
    root = workdir_of(workdir)
    check_writable(root)
    with held([root]):
        if (root / "config.json").exists():
            raise ValueError(f"workdir {root} holds a run already: take another workdir")
        method = codecs.build_method(config, info)
        state = jax.jit(method.init)(jax.random.key(config.seed))
        state = teachers.started_from(state, found.params)
        nothing = {"data": None, "window": [], "metrics": {}, "trusted": None}
        checkpoints = Checkpoints(root / CHECKPOINTS)
        checkpoints.save(0, state, nothing | as_remembered(config, info))
        checkpoints.close()
        write_text(root / "dataset.json", info.to_json())
        write_text(root / "config.json", config_lib.to_json(config))
    return root


def _described(found: Found, data_config: Mapping[str, Any] | None) -> DatasetInfo:
    """What is known of the data; the config's section "data" is set to them."""
    section, num_classes = found.config.data, found.num_classes
    if data_config is None:
        section.name = ""
        names = tuple(map(str, range(num_classes)))
        return DatasetInfo("unknown", found.shape, num_classes, 256, names)
    section.update(data_config)
    info = DatasetInfo.of(data.load_cached(section))
    if info.shape != found.shape:
        raise ValueError(
            f"data.name={section.name!r}: its examples have shape {info.shape}, and the network"
            f" takes {found.shape}; data.image_size, pad_to and channels change that of images"
        )
    if num_classes not in (0, info.num_classes):
        raise ValueError(
            f"data.name={section.name!r} has {info.num_classes} classes, and the network"
            f" {num_classes}"
        )
    return info


def _of_diffusers(path: Path) -> Found:
    read = diffusers.load_scheduler(path)
    if read.schedule.num_steps is None:
        raise ValueError(f"{path} has a scheduler of flow matching; one with betas is needed")
    model, params = diffusers.load_unet(path)
    if model.text is not None:
        raise ValueError(
            f"{path} has a network of captions, whose text encoder diffax has not: read it in a"
            " program, by diffax.interop.diffusers.load_unet"
        )
    config = default_config()
    config.objective.prediction = read.prediction
    config.objective.learned_variance = model.learned_variance
    # From the log-SNR in float64: 1 - beta is the ratio of two neighbours' alpha_bar.
    log_alpha_bar = -np.logaddexp(0, -read.schedule.exact)
    config.schedule.betas = tuple((-np.expm1(np.diff(log_alpha_bar, prepend=0.0))).tolist())
    config.schedule.num_steps = len(config.schedule.betas)
    # As the run's own schedule has them, to the last bit: each step is given its own number.
    log_snrs = np.maximum(build_schedule(config).log_snrs, _ZERO_SNR)
    config.model.unet.update({field: getattr(model, field) for field in model_fields("unet")})
    config.model.unet.conditioning = "log_snr"
    rows = params["noise_embedding"].get("steps")
    if rows is not None and len(rows) != len(log_snrs):
        raise ValueError(
            f"{path} has a time embedding of {len(rows)} rows, and its scheduler"
            f" {len(log_snrs)} steps; they must be as many"
        )
    if rows is not None and _are_of(rows, log_snrs, model):
        del params["noise_embedding"]["steps"]
        config.model.unet.step_rows = 0
    else:
        config.model.unet.step_log_snrs = tuple(log_snrs.tolist())
    config.model.class_conditional = model.num_classes > 0
    section = config.sampling
    section.sampler, section.grid, section.clip_x0 = read.sampler, read.spacing, read.clip_x0
    section.num_steps = len(log_snrs) if read.sampler == "ddpm" else 50
    return Found(config, params, sample_shape(path), model.num_classes)


def _are_of(rows: np.ndarray, log_snrs: np.ndarray, model: UNet) -> bool:
    """Whether the rows of a time embedding are those that diffax writes for these levels."""
    waves = sinusoidal(log_snr_position(log_snrs), model.channels, model.max_period)
    return bool(np.abs(rows - waves).max() < _ROUNDING)


SOURCES: Mapping[str, Callable[[Path], Found]] = {"diffusers": _of_diffusers}
