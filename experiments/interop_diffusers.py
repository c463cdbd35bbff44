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

from diffax.interop import diffusers as interop  # noqa: E402


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
    cls = json.loads((folder / interop.CONFIG).read_text())["_class_name"]
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
        theirs = np.array(found["written"][name]["samples"])
        apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{name:20s} samples differ by {apart:.0e} of the largest")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
    if args.write:
        text = json.dumps(found, indent=1)
        (args.write / "diffusers_schedulers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
