"""What is a learned noise schedule worth against the fixed ones, on real images?

    python experiments/learned_vs_cosine.py                    # digits, 3 seeds, 2 CPU cores
    python experiments/learned_vs_cosine.py --seeds 5 --steps 4000
    python experiments/learned_vs_cosine.py --endpoints papers
    python experiments/learned_vs_cosine.py --weighting elbo   # one expected loss for all arms

Four arms share the network, the data, their order, the times and the noise, and differ only in the
shape of the schedule between equal endpoints: linear, cosine, log-SNR-linear and learned. The
report says with 95% intervals what the learned schedule changes: the variance of the likelihood
bound's estimate (its objective), the bound itself in bits/dim, and the Fréchet distance of samples.
The same command resumes if interrupted; what is done is not done again. What was found is in
results/learned_vs_cosine.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from ml_collections import ConfigDict

from diffax import objectives, runtime, schedules
from diffax.ablation import Arm, Spec, runner

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("cosine", "linear", "linear_logsnr", "learned")
LABELS = {"linear_logsnr": "log-SNR-linear"}


def equal_endpoints(name: str) -> tuple[float, float]:
    """(log_snr_max, log_snr_min) = (10, -10) for every arm."""
    del name
    return schedules.LOG_SNR_MAX, schedules.LOG_SNR_MIN


def papers_endpoints(name: str) -> tuple[float, float]:
    """Each paper's: of its T = 1000 betas, or 13.3 and -5 in log-SNR (Kingma 2021).

    Of linear as far as its continuous form goes, which ends 0.07 before its betas do.
    """
    if name in ("linear", "cosine"):
        schedule = schedules.get(name)
        first, last = schedules.concrete_ends(schedule.discretize(1000))
        most, least = schedules.concrete_ends(schedule)
        return min(first, most), max(last, least)
    return 13.3, -5.0


_AT = {"equal": "at equal endpoints", "papers": "each at its paper's endpoints"}
ENDPOINTS = {"equal": equal_endpoints, "papers": papers_endpoints}


def make_arms(endpoints: str) -> list[Arm]:
    """One arm per schedule."""
    arms = []
    for name in ARMS:
        log_snr_max, log_snr_min = ENDPOINTS[endpoints](name)
        arms.append(
            Arm(
                name,
                {
                    "schedule.name": name,
                    "schedule.log_snr_max": log_snr_max,
                    "schedule.log_snr_min": log_snr_min,
                },
            )
        )
    return arms


def make_spec(command: str, endpoints: str, config: ConfigDict) -> Spec:
    """The question."""
    return Spec(
        title="Learned against fixed noise schedules",
        question=(
            "What is a learned noise schedule worth against the cosine, linear and log-SNR-linear"
            f" ones, {_AT[endpoints]}, trained on the {config.objective.weighting} loss?"
        ),
        baseline="cosine",
        focus="learned",
        # Its own question first; the others follow.
        metrics=[m for m in runner.METRICS if m.key == "vlb_variance"],
        labels=LABELS,
        command=command,
        method=(
            f"Each arm trains the same network for {config.training.num_steps} steps. A seed fixes"
            " the initial weights, the order of the data, the times and the noise, the same in all"
            " arms. The learned schedule starts near log-SNR-linear; its shape follows the gradient"
            " of the variance of the bound's estimate (Kingma 2021), with an optimiser of its own."
            " All numbers are of the moving average of the weights, on images held out from"
            " training. Var(VLB) is the variance of the bound's estimate along an arm's own"
            " schedule. The bound itself, in continuous time, does not depend on the shape between"
            " the ends: of every network it is estimated along the log-SNR-linear schedule, more"
            " sharply than along most arms' own, so that a difference in bits/dim is one of the"
            " networks. The Fréchet distance is to the training images, over the features of a"
            " small classifier: it can't be compared with distances over others."
        ),
    )


def load_config(path: str):
    """The get_config() of a file."""
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "configs" / "ablation_digits.py"))
    parser.add_argument("--workdir", default=str(ROOT / "runs" / "learned_vs_cosine"))
    parser.add_argument("--seeds", type=int, default=3, help="how many, at least 2 (default 3)")
    parser.add_argument("--steps", type=int, help="training steps of a run (default: the config's)")
    parser.add_argument("--endpoints", choices=sorted(ENDPOINTS), default="equal")
    parser.add_argument(
        "--weighting",
        choices=sorted(objectives.WEIGHTINGS),
        help="of the network's loss (default: the config's, simple); elbo has the same mean under"
        " every schedule",
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds={args.seeds}: an interval needs at least 2")
    runtime.start(trains=True)
    config = load_config(args.config)
    if args.weighting is not None:
        config.objective.weighting = args.weighting
    if args.steps is not None:
        config.training.num_steps = args.steps
    command = " ".join(["python", "experiments/learned_vs_cosine.py", *sys.argv[1:]])
    report = runner.run_ablation(
        make_spec(command, args.endpoints, config),
        config,
        make_arms(args.endpoints),
        range(args.seeds),
        args.workdir,
        args.workers,
    )
    print(report.table)
    print(f"\nreport: {report.html}\nnumbers: {report.json}")


if __name__ == "__main__":
    main()
