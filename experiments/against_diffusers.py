"""The samplers against those of diffusers: same predictor, levels, start and noise, step by step.

    pip install ".[bench]"
    python experiments/against_diffusers.py                     # prints the differences
    python experiments/against_diffusers.py --write tests/diffusers_reference.npz

What diffusers gives is written to a file, against which the tests compare without it. The predictor
is no denoiser of any data, so that nothing cancels: eps = sin(2 x + 0.3 l) + 0.2 x sigmoid(l) at
log-SNR l, and of flow matching u = sin(2 z + 0.3 t) + 0.2 z (1 - t). In float64, but for what
diffusers rounds to float32 itself (1e-7).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import diffusers_cases as cases  # noqa: E402

T = 1000
VP = dict(num_train_timesteps=T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
LAST = dict(final_sigmas_type="zero", timestep_spacing="trailing")


def predict(x: np.ndarray, log_snr: float) -> np.ndarray:
    """The predictor of `cases`, in numpy."""
    return np.sin(2 * x + 0.3 * log_snr) + 0.2 * x / (1 + np.exp(-log_snr))


def by_alphas(scheduler, num_steps, start, noise, **options):
    """Of schedulers that count in alphas_cumprod: (log-SNRs of the calls, states after each)."""
    scheduler.set_timesteps(num_steps)
    alpha_bar = scheduler.alphas_cumprod.double().numpy()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    x, log_snrs, states = torch.tensor(start), [], []
    for i, t in enumerate(scheduler.timesteps):
        log_snrs.append(np.log(alpha_bar[t] / (1 - alpha_bar[t])))
        eps = torch.tensor(predict(x.numpy(), log_snrs[-1]))
        given = {key: make(noise, i) for key, make in options.items()}
        x = scheduler.step(eps, t, x, **given).prev_sample
        states.append(x.numpy())
    return np.array(log_snrs), np.array(states)


def by_sigmas(scheduler, num_steps, start, noise, scaled=False, **options):
    """Of those that count in sigma / alpha; `scaled` if their state is x / alpha."""
    scheduler.set_timesteps(num_steps)
    scheduler.sigmas = scheduler.sigmas.double()
    sigmas = scheduler.sigmas.numpy()
    scale = np.sqrt(1 + sigmas**2) if scaled else np.ones_like(sigmas)
    x, log_snrs, states = torch.tensor(start * scale[0]), [], []
    for i, t in enumerate(scheduler.timesteps):
        log_snrs.append(-2 * np.log(sigmas[i]))
        eps = torch.tensor(predict(x.numpy() / scale[i], log_snrs[-1]))
        given = {key: make(noise, i) for key, make in options.items()}
        x = scheduler.step(eps, t, x, **given).prev_sample.double()
        states.append(x.numpy() / scale[i + 1])
    return np.array(log_snrs), np.array(states)


def flow_matching(num_steps, start, noise, **options):
    """Of the scheduler that counts in t, whose state is z = (1 - t) x0 + t eps."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(T, **options)
    scheduler.set_timesteps(num_steps)
    scheduler.sigmas = scheduler.sigmas.double()
    times = scheduler.sigmas.numpy()
    with np.errstate(divide="ignore"):
        log_snrs = 2 * np.log((1 - times) / times)
    z, states = torch.tensor(start), []
    for i, t in enumerate(scheduler.timesteps):
        u = torch.tensor(np.asarray(cases.velocity(z.numpy(), times[i])))
        z = scheduler.step(u, t, z).prev_sample.double()
        states.append(z.numpy() / np.hypot(1 - times[i + 1], times[i + 1]))
    return log_snrs[:-1], np.array(states)


def nth_noise(noise, i):
    return torch.tensor(noise[i])


# case of `diffusers_cases` -> how diffusers runs it
RUNS = {
    "ddim": lambda *a: by_alphas(
        diffusers.DDIMScheduler(**VP, clip_sample=False, timestep_spacing="trailing"), *a
    ),
    "ddim, eta 0.6": lambda *a: by_alphas(
        diffusers.DDIMScheduler(**VP, clip_sample=False, timestep_spacing="trailing"),
        *a,
        eta=lambda noise, i: 0.6,
        variance_noise=nth_noise,
    ),
    "plms": lambda *a: by_alphas(
        diffusers.PNDMScheduler(**VP, skip_prk_steps=True, timestep_spacing="trailing"), *a
    ),
    "euler": lambda *a: by_sigmas(
        diffusers.EulerDiscreteScheduler(**VP, timestep_spacing="trailing"), *a, scaled=True
    ),
    "heun": lambda *a: by_sigmas(
        diffusers.HeunDiscreteScheduler(**VP, timestep_spacing="trailing"), *a, scaled=True
    ),
    "dpm_solver, order 2": lambda *a: by_sigmas(
        diffusers.DPMSolverSinglestepScheduler(
            **VP,
            algorithm_type="dpmsolver",
            solver_order=2,
            use_exponential_sigmas=True,
            final_sigmas_type="sigma_min",
        ),
        *a,
    ),
    "dpmpp_2s": lambda *a: by_sigmas(
        diffusers.DPMSolverSinglestepScheduler(
            **VP, algorithm_type="dpmsolver++", solver_order=2, use_exponential_sigmas=True
        ),
        *a,
    ),
    "dpmpp_2m": lambda *a: by_sigmas(
        diffusers.DPMSolverMultistepScheduler(**VP, **LAST, algorithm_type="dpmsolver++"), *a
    ),
    "dpmpp_2m_sde": lambda *a: by_sigmas(
        diffusers.DPMSolverMultistepScheduler(**VP, **LAST, algorithm_type="sde-dpmsolver++"),
        *a,
        variance_noise=nth_noise,
    ),
    "unipc": lambda *a: by_sigmas(
        diffusers.UniPCMultistepScheduler(**VP, **LAST, solver_order=2, solver_type="bh2"), *a
    ),
    "flow matching": flow_matching,
    "flow matching, shift 3": lambda *a: flow_matching(*a, shift=3.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", help="where to put diffusers' numbers (.npz)")
    args = parser.parse_args()
    start, noise = cases.start_and_noise()
    kept = {}
    for name, run in RUNS.items():
        log_snrs, states = run(cases.NUM_STEPS, start, noise)
        kept[f"{name}: log_snr"], kept[f"{name}: states"] = log_snrs, states
        apart = cases.difference(name, log_snrs, states)
        print(f"{name:22s} largest difference {apart:.0e} of the largest state")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
    if args.write:
        np.savez_compressed(args.write, **kept)


if __name__ == "__main__":
    main()
