"""What diffusers makes of diffax's files, and what its own files hold.

    pip install ".[bench,interop]"
    python experiments/interop_diffusers.py                      # prints the differences
    python experiments/interop_diffusers.py --write tests        # writes diffusers' numbers there

The tests compare diffax with these numbers, where diffusers is not installed. The predictor is no
denoiser of any data, so that nothing cancels: sin(2 x + 0.3 l) + 0.2 x sigmoid(l) at log-SNR l.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import interop_cases as cases  # noqa: E402

import diffax  # noqa: E402
from diffax.interop import diffusers as interop  # noqa: E402
from diffax.interop.diffusers import schedulers  # noqa: E402
from diffax.interop.export import export  # noqa: E402
from diffax.interop.imports import import_run  # noqa: E402


def predict(x: np.ndarray, log_snr: float) -> np.ndarray:
    """The predictor of `cases`, in numpy."""
    log_snr = np.clip(log_snr, -20, 20)
    return np.sin(2 * x + 0.3 * log_snr) + 0.2 * x / (1 + np.exp(-log_snr))


def read(name: str) -> dict[str, Any]:
    """A scheduler of diffusers: its config, and its numbers."""
    cls, options = cases.READ[name]
    scheduler = getattr(diffusers, cls)(**options)
    scheduler.set_timesteps(cases.NUM_STEPS)
    found = {"config": json.loads(scheduler.to_json_string())}
    if cls == cases.FLOW:
        return found | {"sigmas": scheduler.sigmas[:-1].tolist()}
    alpha_bar = scheduler.alphas_cumprod.double().numpy()
    kept = [i for i in cases.AT if i < len(alpha_bar)]
    return found | {
        "alphas_cumprod": alpha_bar[kept].tolist(),
        "timesteps": scheduler.timesteps.tolist(),
    }


def of_written(name: str, folder: Path) -> dict[str, Any]:
    """What diffusers draws by the scheduler that diffax wrote into a folder."""
    cls = json.loads((folder / schedulers.CONFIG).read_text())["_class_name"]
    scheduler = getattr(diffusers, cls).from_pretrained(folder)
    clips = {"use_clipped_model_output": True} if scheduler.config.get("clip_sample") else {}
    scheduler.set_timesteps(cases.NUM_STEPS)
    x = torch.tensor(cases.start())
    if cls == cases.FLOW:
        return {"samples": by_flow(scheduler, x).tolist()}
    alpha_bar = scheduler.alphas_cumprod.double().numpy()
    for t in scheduler.timesteps:
        with np.errstate(divide="ignore"):
            log_snr = np.log(alpha_bar[t]) - np.log1p(-alpha_bar[t])
        x = scheduler.step(torch.tensor(predict(x.numpy(), log_snr)), t, x, **clips).prev_sample
    return {"samples": x.numpy().tolist()}


def by_flow(scheduler: Any, z: torch.Tensor) -> np.ndarray:
    """By a predictor of the variance-preserving state, x_t = z / sqrt((1 - t)^2 + t^2)."""
    scheduler.sigmas = scheduler.sigmas.double()
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].item()
        with np.errstate(divide="ignore"):
            log_snr = 2 * np.log((1 - sigma) / sigma)
        u = predict(z.numpy() / np.hypot(1 - sigma, sigma), log_snr)
        z = scheduler.step(torch.tensor(u), t, z).prev_sample.double()
    return z.numpy()


def forward(unet: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """The output for `cases.inputs`, of classes 0, 1, 2 and `cases.captions` if it knows any."""
    x, index = cases.inputs(shape)
    given = {"class_labels": torch.arange(3)} if unet.config.num_class_embeds else {}
    if width := unet.config.get("cross_attention_dim"):
        features, mask, pooled = map(torch.tensor, cases.captions(width).values())
        given |= {"encoder_hidden_states": features, "encoder_attention_mask": mask}
        given |= {"class_labels": pooled}
    with torch.no_grad():
        out = unet(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(index), **given)
    return out.sample.permute(0, 2, 3, 1).numpy()


def unets() -> dict[str, Any]:
    """diffusers' answers of networks that diffax wrote, and of its own; prints the differences."""
    found = {"unets": {}, "own_unets": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, shape) in cases.UNETS.items():
            model, params = cases.unet(name)
            interop.save_unet(folder, model, params, shape, cases.LEVELS)
            theirs = forward(diffusers.UNet2DModel.from_pretrained(folder), shape)
            compare(f"unet, {name}", cases.answer(model, params, shape), theirs)
            found["unets"][name] = theirs.tolist()
        for name, config in cases.OWN_UNETS.items():
            options = {key: value for key, value in config.items() if key != "_class_name"}
            unet = getattr(diffusers, config.get("_class_name", "UNet2DModel"))(**options)
            shapes = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
            made = {key: torch.tensor(value) for key, value in cases.weights(shapes).items()}
            unet.load_state_dict(made)
            unet.save_pretrained(folder)
            size, channels = config["sample_size"], config["in_channels"]
            shape = (size, size, channels)
            theirs = forward(unet, shape)
            compare(f"own unet, {name}", cases.answer(*interop.load_unet(folder), shape), theirs)
            found["own_unets"][name] = {"shapes": shapes, "answer": theirs.tolist()}
    return found


def drawn(folder: Path, start: np.ndarray) -> np.ndarray:
    """What diffusers' DDIM makes of a start in 50 steps, by the pipeline in a folder."""
    return cases.drawn_by_diffusers(diffusers.DiffusionPipeline.from_pretrained(folder), start)


def pipelines(shapes: dict[str, Any]) -> np.ndarray:
    """50 steps of a run that goes out, of a pipeline that comes in, and of the run made of that,
    fine-tuned under a learned schedule and written again; prints the differences, and gives
    diffusers' samples of the pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        run, start = cases.run_with_learned_schedule()
        export(run, Path(folder))
        schedule = run.state.schedule.discretize(1000)
        predict = diffax.training.predictor(run.model, run.state.ema_params)
        ours = cases.ddim(predict, schedule, start, prediction="eps", clip_x0=1.0)
        compare("50 steps, a run out", ours, drawn(Path(folder), start))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pipeline"
        cases.pipeline(folder, shapes)
        theirs, start = drawn(folder, cases.starts()), cases.starts()
        read = interop.load_scheduler(folder)
        predict = diffax.training.predictor(*interop.load_unet(folder))
        options = dict(grid=read.grid(50), prediction=read.prediction, clip_x0=read.clip_x0)
        compare("50 steps, one in", cases.ddim(predict, read.schedule, start, **options), theirs)
        imported = import_run(folder, Path(name) / "imported", data_config={"name": "digits"})
        compare("50 steps, imported", cases.drawn_by(diffax.training.load(imported)), theirs)
        config = cases.fine_tuning(imported)
        config.training.update(num_steps=200, batch_size=64)
        diffax.training.train(config, Path(name) / "tuned")
        tuned = diffax.training.load(Path(name) / "tuned")
        export(tuned, Path(name) / "out")
        ours = cases.drawn_by(tuned, "trailing")
        compare("50 steps, fine-tuned", ours, drawn(Path(name) / "out", start))
        again = diffax.training.load(import_run(Path(name) / "out", Path(name) / "again"))
        compare("50 steps, imported again", cases.drawn_by(again, "trailing"), ours)
    return theirs


def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name:24s} differs by {apart:.0e} of the largest")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="the folder for diffusers' numbers")
    args = parser.parse_args()
    found = {"read": {name: read(name) for name in cases.READ}, "written": {}}
    for name in cases.WRITTEN:
        with tempfile.TemporaryDirectory() as folder:
            cases.written(name, folder)
            found["written"][name] = of_written(name, Path(folder))
            ours = cases.drawn(name, folder)
        compare(name, ours, np.array(found["written"][name]["samples"]))
    networks = unets()
    networks["pipeline"] = pipelines(networks["own_unets"]["ddpm"]["shapes"]).tolist()
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
    for file, numbers in (("schedulers", found), ("unets", networks)):
        if args.write:
            text = json.dumps(numbers, indent=None if file == "unets" else 1)
            (args.write / f"diffusers_{file}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
