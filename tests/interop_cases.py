"""What experiments/interop_diffusers.py asks of diffusers, and test_interop.py of diffax."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
from exact import in_float64, wrong
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from small_runs import first_state, run_of, small_config

import diffax
from diffax import models, schedules, training
from diffax.config import storage
from diffax.interop import diffusers
from diffax.interop.diffusers import schedulers, unets
from diffax.process import by_log_snr
from diffax.training import codecs

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


# case -> fields of a U-Net, shape of an example; each goes out, and what diffusers has comes in
UNETS = {
    "log-SNR": (
        dict(channels=8, channel_mults=(1, 2), num_blocks=1, attention_resolutions=(4,),
             head_width=8, num_groups=4),
        (8, 8, 1),
    ),
    "step": (
        dict(channels=8, channel_mults=(1, 1), num_blocks=2, attention_resolutions=(8,),
             head_width=8, num_groups=2, norm_epsilon=1e-6, conditioning="step", embedding="add",
             num_classes=3, learned_variance=True),
        (8, 8, 3),
    ),
    "step, by log-SNR": (
        dict(channels=8, channel_mults=(1,), num_blocks=1, attention_resolutions=(), head_width=8,
             num_groups=4, step_log_snrs=tuple(np.linspace(9.0, -5.0, 200).tolist())),
        (8, 8, 1),
    ),
}  # fmt: skip
# case -> the config of a UNet2DModel, or of the class that it names
OWN_UNETS = {
    "ddpm": dict(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=[8, 16],
        layers_per_block=1, down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "UpBlock2D"], norm_num_groups=4, norm_eps=1e-6,
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None,
    ),
    "default": dict(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=[8, 8],
        layers_per_block=2, down_block_types=["AttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "AttnUpBlock2D"], norm_num_groups=8, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift", attn_norm_num_groups=8, num_class_embeds=5,
    ),
    "learned": dict(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=[8],
        layers_per_block=1, down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"],
        norm_num_groups=4, attention_head_dim=None, time_embedding_type="learned",
        num_train_timesteps=50,
    ),
    "of text": dict(
        _class_name="UNet2DConditionModel", sample_size=8, in_channels=1, out_channels=1,
        block_out_channels=[8, 16], layers_per_block=1,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], norm_num_groups=4,
        attention_head_dim=[1, 2], cross_attention_dim=6, use_linear_projection=True,
        class_embed_type="simple_projection", projection_class_embeddings_input_dim=6,
        flip_sin_to_cos=False, mid_block_type="UNetMidBlock2DCrossAttn",
    ),
}  # fmt: skip


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of these names and shapes: numbers that depend on nothing else."""
    rng = np.random.default_rng(7)
    made = {name: 0.3 * rng.normal(size=shapes[name]) for name in sorted(shapes)}
    return {name: value.astype(np.float32) for name, value in made.items()}


def own_unet(folder: Path, config: dict, shapes: dict, rename=str, scale: float = 1.0) -> None:
    """Writes a UNet2DModel of `weights` times `scale`."""
    folder.mkdir(exist_ok=True)
    (folder / unets.CONFIG).write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    made = weights({name: tuple(shape) for name, shape in shapes.items()})
    arrays = {rename(name): np.float32(scale) * array for name, array in made.items()}
    save_file(arrays, folder / unets.WEIGHTS, {"format": "pt"})


def pipeline(folder: Path, shapes: dict) -> None:
    """Writes the DDIMPipeline whose samples diffusers_unets.json has."""
    folder.mkdir(exist_ok=True)
    own_unet(folder / "unet", OWN_UNETS["ddpm"], shapes, scale=0.3)
    (folder / "scheduler").mkdir(exist_ok=True)
    # Of "eps" without a denoiser, every sample would end at the bound of x0, or be huge.
    options = {"prediction_type": "v_prediction", "clip_sample": False, "beta_end": 0.015}
    scheduler = {"_class_name": "DDIMScheduler", **options}
    (folder / "scheduler" / schedulers.CONFIG).write_text(json.dumps(scheduler))
    index = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def starts() -> np.ndarray:
    """Where its samples, and those of a run made of it, start."""
    return np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("f")


def fine_tuning(imported: Path) -> ConfigDict:
    """The config of docs/coming_from.md that goes on from an imported run."""
    text = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# finetune.py\n(.*?)```", text, re.DOTALL)
    path = imported.parent / "finetune.py"
    path.write_text(code.replace("runs/ddpm", str(imported)))
    config = storage.read_file(str(path))
    config.schedule.size = 8
    return config


def inputs(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Three examples, and the index of each."""
    x = np.random.default_rng(8).normal(size=(3, *shape)).astype(np.float32)
    return x, np.array([0, 13, 49])


def captions(width: int) -> dict[str, np.ndarray]:
    """The features of three captions, of five tokens, of three, and of none."""
    rng, mask = np.random.default_rng(9), np.arange(5) < np.array([[5], [3], [0]])
    features = rng.normal(size=(3, 5, width)) * mask[..., None]
    pooled = rng.normal(size=(3, width)) * mask[:, :1]
    return {"features": features.astype("f"), "mask": mask, "pooled": pooled.astype("f")}


def unet(name: str) -> tuple[models.UNet, dict]:
    """The network of a case of `UNETS`, and its parameters."""
    fields, shape = UNETS[name]
    model = models.UNet(**fields)
    x = jnp.zeros((1, *shape))
    wanted = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1))["params"]
    flat = flax.traverse_util.flatten_dict(wanted, sep="/")
    made = weights({path: leaf.shape for path, leaf in flat.items()})
    return model, flax.traverse_util.unflatten_dict(made, sep="/")


# Under which a network that is conditioned on the log-SNR goes out.
LEVELS = schedules.cosine().discretize(50)


def answer(model: models.UNet, params: dict, shape: tuple[int, int, int]) -> np.ndarray:
    """The network's output for `inputs`, of classes 0, 1, 2 and `captions` if it knows any."""
    x, index = inputs(shape)
    text = None if model.text is None else captions(model.text.width)
    level = LEVELS.log_snr(index) if model.conditioning == "log_snr" else index
    label = np.arange(3) if model.num_classes else None
    apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(apply({"params": params}, x, level, label, text=text))


def run_with_learned_schedule() -> tuple[training.Run, np.ndarray]:
    """A run of a U-Net that isn't zero, conditioned on the log-SNR; and starts."""
    config = small_config(
        data__name="digits", model__name="unet", schedule__name="learned", schedule__size=8,
        sampling__clip_x0=1.0,
        **{f"model__unet__{field}": value for field, value in UNETS["log-SNR"][0].items()},
    )  # fmt: skip
    info = training.DatasetInfo("digits", (8, 8, 1), 10, None, ())
    state = first_state(config, codecs.build_method(config, info))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype("f"), state.ema_params)
    run = run_of(config, state.replace(ema_params=moved), info)
    return run, rng.normal(size=(4, 8, 8, 1)).astype("f")


def ddim(predict, schedule, start: np.ndarray, grid="trailing", **options) -> np.ndarray:
    """50 steps of DDIM."""
    draw = functools.partial(
        diffax.sample, jax.random.key(0), predict, schedule, start.shape, "ddim", 50, grid=grid
    )
    return np.asarray(jax.jit(lambda start: draw(x_init=start, **options))(start))


def drawn_by(run: training.Run, grid="leading") -> np.ndarray:
    """50 steps of DDIM from `starts`, under the run's schedule in 1000 steps."""
    schedule = run.state.schedule
    schedule = schedule if schedule.num_steps else schedule.discretize(1000)
    predict = training.predictor(run.model, run.state.ema_params)
    options = dict(prediction=run.config.objective.prediction, clip_x0=run.config.sampling.clip_x0)
    return ddim(predict, schedule, starts(), grid, **options)


def drawn_by_diffusers(pipeline, start: np.ndarray) -> np.ndarray:
    """What diffusers' DDIM makes of a start in 50 steps, where it is installed."""
    import torch

    pipeline.scheduler.set_timesteps(50)
    x = torch.tensor(start).permute(0, 3, 1, 2)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            out = pipeline.unet(x, t).sample
            step = pipeline.scheduler.step(out, t, x, use_clipped_model_output=True)
            x = step.prev_sample
    return x.permute(0, 2, 3, 1).numpy()


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
