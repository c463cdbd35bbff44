"""A trained run's weights for other programs, with a card that says what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import diffax
from diffax import config as config_lib
from diffax import methods, schedules
from diffax.config import build
from diffax.files import replacing, write_json
from diffax.interop import diffusers
from diffax.interop.diffusers.unets import save_arrays
from diffax.methods.autoencoder import AutoencoderState, latent_deviation
from diffax.models.control import BASE
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
    "safetensors" and "npz" make a file "model" of arrays, each under its path in the parameters
    ("down_0_block_0/conv_0/kernel"), beside config.json. A ControlNet's base is among them, under
    "base". What else a run learned and its network is used with lies in a file "beside": the
    schedule as a table (betas, log_snrs), and the mean and deviation of latents.

    Args:
      run: as `diffax.training.load` gives it.
      weights: "average", their moving average, or "raw".
      sampler: of diffusers' pipeline, "ddim" or "ddpm".
      num_steps: T for diffusers and for the table, of a schedule in continuous time.
      license: what the card says of it.

    Raises:
      ValueError: an unknown format, weights or sampler, an average that the method doesn't keep,
        what diffusers has no word for, or safetensors is not installed. Nothing is written then.
    """
    for what, value, known in (("to", to, FORMATS), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise ValueError(unknown(what, value, known))
    if not hasattr(run.state, WEIGHTS[weights]):
        raise ValueError(
            f"weights={weights!r}: method {run.config.method.name!r} keeps no moving average; set"
            " weights='raw'"
        )
    params = _weights(run, weights)
    if to == "diffusers":
        text = card(run, weights, license, _use(run, sampler))
    else:
        text = card(run, weights, license, beside=_beside_in_words(run, to, num_steps))
    FORMATS[to](run, params, out, sampler, num_steps)
    with replacing(out / CARD) as partial:
        partial.write_text(text, encoding="utf-8")
    return out


def _weights(run: Run, weights: str) -> Any:
    """All parameters of the network, those of a ControlNet's base too."""
    params = getattr(run.state, WEIGHTS[weights])
    base = getattr(run.state, "base", None) if run.config.condition.base else None
    return params if base is None else {**params, BASE: base}


def _schedule(run: Run) -> AnySchedule | None:
    """What the run is sampled under; None of a method that keeps no schedule."""
    if not hasattr(run.state, "schedule"):
        return None
    named = build.build_sampling_schedule(run.config, run.dataset.shape)
    own = run.state.schedule if named is None else named
    return schedules.effective(own, run.config.schedule.num_steps)


def _latent_statistics(run: Run) -> tuple[Any, Any] | None:
    """The mean and deviation by which latents are normalised, per channel; None if none are."""
    if isinstance(run.state, AutoencoderState):
        return run.state.latent_mean, latent_deviation(run.state)
    if run.dataset.latent_mean:
        return run.dataset.latent_mean, run.dataset.latent_deviation
    return None


def _beside(run: Run, num_steps: int) -> dict[str, np.ndarray]:
    """What a run learned or measured besides its parameters, and its network is used with."""
    found = {}
    if hasattr(run.state, "schedule"):
        own = schedules.effective(run.state.schedule, run.config.schedule.num_steps)
        table = own if own.num_steps else own.discretize(num_steps)
        found |= {"schedule/betas": table.betas, "schedule/log_snrs": table.log_snrs}
    if statistics := _latent_statistics(run):
        found |= dict(zip(("latents/mean", "latents/deviation"), statistics))
    return {name: np.asarray(jax.device_get(leaf), np.float32) for name, leaf in found.items()}


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
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(params))[0]
    named = (
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves
    )
    return {name: np.ascontiguousarray(leaf) for name, leaf in named}


def _write_arrays(
    run: Run,
    params: Any,
    out: Path,
    num_steps: int,
    save: Callable[[Path, Mapping[str, np.ndarray]], None],
    suffix: str,
) -> None:
    save(out / f"model.{suffix}", _flat(params))
    if beside := _beside(run, num_steps):
        save(out / f"beside.{suffix}", beside)
    with replacing(out / "config.json") as partial:
        partial.write_text(config_lib.to_json(run.config), encoding="utf-8")


def _to_safetensors(run: Run, params: Any, out: Path, sampler: str, num_steps: int) -> None:
    def save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        save_arrays(file, arrays, "flax")

    _write_arrays(run, params, out, num_steps, save, "safetensors")


def _to_npz(run: Run, params: Any, out: Path, sampler: str, num_steps: int) -> None:
    def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)

    out.mkdir(parents=True, exist_ok=True)
    _write_arrays(run, params, out, num_steps, save, "npz")


FORMATS: Mapping[str, Callable[[Run, Any, Path, str, int], None]] = {
    "diffusers": _to_diffusers,
    "safetensors": _to_safetensors,
    "npz": _to_npz,
}


# --- the card ---------------------------------------------------------------------------------


def card(run: Run, weights: str, license: str, use: str = "", beside: str = "") -> str:
    """The model card, Markdown with a head that model hubs read; `use`: how diffusers calls it;
    `beside`: what else it needs."""
    config, data = run.config, run.dataset
    schedule = _schedule(run)
    size = sum(leaf.size for leaf in jax.tree.leaves(_weights(run, weights)))
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
    }
    if schedule is not None:
        rows["schedule"] = _schedule_in_words(run, schedule)
    if {"objective", "prediction"} & {*methods.arguments_of(config.method.name)}:
        rows["prediction"] = config.objective.prediction
    rows["made by"] = f"diffax {diffax.__version__}"
    lines = [f"| {name} | {said} |" for name, said in rows.items()]
    tags = ["diffax"] + ["diffusion"] * (schedule is not None) + ["diffusers"] * bool(use)
    head = "\n".join(["---", f"license: {license}", "tags:", *(f"- {tag}" for tag in tags), "---"])
    title = f"# {config.method.name} on {data.name}"
    scores = _scores(run) if weights == "average" else []
    return "\n".join([head, "", title, "", "| | |", "|---|---|", *lines, *scores, beside, use, ""])


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


def _beside_in_words(run: Run, suffix: str, num_steps: int) -> str:
    """What the file of arrays `beside` holds and how it is used, and what lies elsewhere."""
    config, file, said = run.config, f"`beside.{suffix}`", []
    if hasattr(run.state, "schedule"):
        num = config.schedule.num_steps or num_steps
        said.append(
            f"The schedule that it was trained with is in {file}: `schedule/betas` and"
            f" `schedule/log_snrs`, of {num} steps, where index i stands for t = (i + 1) / {num};"
            " `diffax.schedules.from_log_snr_table(log_snrs)` makes a schedule of it."
        )
    if isinstance(run.state, AutoencoderState):
        said.append(
            f"The mean and deviation of its latents, per channel, are in {file}: `latents/mean` and"
            " `latents/deviation`. A run on latents is given (encode(x) - mean) / deviation."
        )
    if config.codec.name != "identity":
        said.append(
            f"The network works in the latents of codec.name={config.codec.name!r}, which lies in"
            f" codec.path={config.codec.path!r}, is not part of this export, and is needed too."
            + f" The network's data are (encode(x) - mean) / deviation, per channel, where"
            f" `diffax.codecs` gives encode, and `latents/mean` and `latents/deviation` are in"
            f" {file}." * bool(run.dataset.latent_mean)
        )
    if config.condition.base:
        said.append(
            f"It is a ControlNet: `{BASE}/...` are the parameters of the U-Net that stays, of the"
            f" run in condition.base={config.condition.base!r}; `control_0/...` those of the branch"
            " beside it."
        )
    return "".join(f"\n{sentence}\n" for sentence in said)


def _schedule_in_words(run: Run, schedule: AnySchedule) -> str:
    first, last = schedules.ends_of(schedule)
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
