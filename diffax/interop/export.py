"""A trained run's weights for other programs, with a card that says what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

import diffax
from diffax import config as config_lib
from diffax import schedules
from diffax.config import build
from diffax.files import replacing, write_json
from diffax.interop import diffusers
from diffax.interop.diffusers.unets import save_arrays
from diffax.process import AnySchedule
from diffax.registry import unknown
from diffax.training import Run

CARD = "README.md"
# The weights of a run -> the field of its state.
WEIGHTS = {"average": "ema_params", "raw": "params"}


def export(
    run: Run,
    out: Path,
    to: str = "diffusers",
    weights: str = "average",
    sampler: str = "ddim",
    num_steps: int = 1000,
    license: str = "unknown",
) -> Path:
    """Writes a run's network into the folder `out`, with a card; returns the folder.

    "diffusers" makes a pipeline's folder, which `DiffusionPipeline.from_pretrained(out)` loads; of
    a run on captions it has the network and the scheduler alone. Its schedule is the one that the
    run is sampled under, config.sampling.schedule or the one that it was trained with.
    "safetensors" and "npz" make one file of arrays, each under its path in the parameters
    ("down_0_block_0/conv_0/kernel"), beside config.json.

    Args:
      run: as `diffax.training.load` gives it.
      weights: "average", their moving average, or "raw".
      sampler: of diffusers' pipeline, "ddim" or "ddpm".
      num_steps: T for diffusers, of a schedule in continuous time.
      license: what the card says of it.

    Raises:
      ValueError: an unknown format, weights or sampler, what diffusers has no word for, or
        safetensors is not installed. Nothing is written then.
    """
    for what, value, known in (("to", to, FORMATS), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise ValueError(unknown(what, value, known))
    params = getattr(run.state, WEIGHTS[weights])
    FORMATS[to](run, params, out, sampler, num_steps)
    use = _use(run, sampler) if to == "diffusers" else ""
    with replacing(out / CARD) as partial:
        partial.write_text(card(run, weights, license, use), encoding="utf-8")
    return out


def _schedule(run: Run) -> AnySchedule:
    """What the run is sampled under."""
    named = build.build_sampling_schedule(run.config, run.dataset.shape)
    own = run.state.schedule if named is None else named
    return schedules.effective(own, run.config.schedule.num_steps)


def _to_diffusers(run: Run, params: Any, out: Path, sampler: str, num_steps: int) -> None:
    config = run.config
    if config.method.name != "diffusion" or config.codec.name != "identity":
        raise ValueError(
            f"method.name={config.method.name}, codec.name={config.codec.name}: diffusers is given"
            " runs of method 'diffusion' on the data themselves"
        )
    if config.model.name != "unet":
        raise ValueError(f"model.name={config.model.name}: only a U-Net has a form in diffusers")
    if config.objective.learned_variance:
        raise ValueError(
            "objective.learned_variance=True: diffusers' pipelines take no network with a variance"
        )
    if sampler not in PIPELINES:
        raise ValueError(unknown("sampler", sampler, PIPELINES))
    schedule = _schedule(run)
    scheduler = diffusers.scheduler_config(
        schedule, config.objective.prediction, num_steps, config.sampling.clip_x0, sampler
    )
    diffusers.save_unet(out / "unet", run.model, params, run.dataset.shape, schedule, num_steps)
    (out / "scheduler").mkdir(exist_ok=True)
    write_json(out / "scheduler" / diffusers.SCHEDULER_CONFIG, scheduler)
    if config.condition.text:  # diffusers has no pipeline with such an encoder
        return
    index = {
        "_class_name": PIPELINES[sampler],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json(out / "model_index.json", index)


# Other samplers have none: DDIMPipeline makes a DDIMScheduler of whatever scheduler it is given.
PIPELINES = {"ddim": "DDIMPipeline", "ddpm": "DDPMPipeline"}


def _flat(params: Any) -> dict[str, np.ndarray]:
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    return {path: np.ascontiguousarray(leaf) for path, leaf in flat.items()}


def _write_config(run: Run, out: Path) -> None:
    with replacing(out / "config.json") as partial:
        partial.write_text(config_lib.to_json(run.config), encoding="utf-8")


def _to_safetensors(run: Run, params: Any, out: Path, sampler: str, num_steps: int) -> None:
    save_arrays(out / "model.safetensors", _flat(params), "flax")
    _write_config(run, out)


def _to_npz(run: Run, params: Any, out: Path, sampler: str, num_steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "model.npz") as partial, open(partial, "wb") as file:
        np.savez(file, **_flat(params))
    _write_config(run, out)


FORMATS: Mapping[str, Callable[[Run, Any, Path, str, int], None]] = {
    "diffusers": _to_diffusers,
    "safetensors": _to_safetensors,
    "npz": _to_npz,
}


# --- the card ---------------------------------------------------------------------------------


def card(run: Run, weights: str, license: str, use: str = "") -> str:
    """The model card, Markdown with a head that model hubs read; `use`: how it is called."""
    config, data = run.config, run.dataset
    size = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    shape = " x ".join(map(str, data.shape))
    rows = {
        "data": f"{data.name}, {shape}"
        + (f", {data.num_classes} classes" * bool(data.num_classes)),
        "method": config.method.name,
        "network": f"{config.model.name}, {size:,} parameters",
        "weights": {"average": f"moving average, decay {config.ema.decay:g}", "raw": "raw"}[
            weights
        ],
        "training": f"{int(run.state.step):,} steps of {config.training.batch_size} examples,"
        f" seed {config.seed}",
        "schedule": _schedule_in_words(run),
        "prediction": config.objective.prediction,
        "made by": f"diffax {diffax.__version__}",
    }
    lines = [f"| {name} | {said} |" for name, said in rows.items()]
    tags = ["diffax", "diffusion"] + ["diffusers"] * bool(use)
    head = "\n".join(["---", f"license: {license}", "tags:", *(f"- {tag}" for tag in tags), "---"])
    title = f"# {config.method.name} on {data.name}"
    scores = _scores(run) if weights == "average" else []
    return "\n".join([head, "", title, "", "| | |", "|---|---|", *lines, *scores, use, ""])


def _use(run: Run, sampler: str) -> str:
    """How diffusers draws samples by it."""
    if run.config.condition.text:
        return (
            "\nThe network takes the features of captions by"
            f" {run.config.condition.text}: `unet(x, index, encoder_hidden_states=features,"
            " encoder_attention_mask=mask, class_labels=pooled)`, which"
            " `diffax.models.text.get(...).rows(captions)` gives. diffusers has no pipeline for it."
        )
    if run.config.model.class_conditional:
        return (
            "\nThe network takes a class, `pipeline.unet(x, t, class_labels=...)`, the last one for"
            " no class. The pipeline itself gives it none, and can't be called."
        )
    clips = sampler == "ddim" and run.config.sampling.clip_x0 is not None
    # diffusers' DDIM clips x0 but goes on with the eps of the unclipped one, unless it is told.
    more = ", use_clipped_model_output=True" if clips else ""
    return f"""
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this/folder")
images = pipeline(batch_size=4, num_inference_steps=50{more}).images
```"""


def _schedule_in_words(run: Run) -> str:
    first, last = schedules.ends_of(_schedule(run))
    steps = run.config.schedule.num_steps
    time = f"{steps} steps" if steps else "continuous time"
    return f"{run.config.schedule.name}, log-SNR {first:.3g} to {last:.3g}, {time}"


def _scores(run: Run) -> list[str]:
    """A table of what `diffax evaluate` has measured of the averaged weights at this step."""
    file = run.workdir / "evaluation.json" if run.workdir else None
    if file is None or not file.exists():
        return []
    lines = ["", "| score | value | 95% interval | |", "|---|---|---|---|"]
    for name, found in json.loads(file.read_text(encoding="utf-8")).items():
        if found.get("step") != int(run.state.step) or name not in found:
            continue
        interval = f"{found['low']:.4g} to {found['high']:.4g}" if "low" in found else ""
        of = f"{found['num_samples']:,} samples" if "num_samples" in found else ""
        lines.append(f"| {name} | {found[name]:.4g} | {interval} | {of} |")
    return lines if len(lines) > 3 else []
