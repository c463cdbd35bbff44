"""What of a learned noise schedule costs the samples, and which configuration does without it?

    python experiments/learned_for_samples.py                     # digits, five seeds, one CPU core
    python experiments/learned_for_samples.py --unet --seeds 3    # the same arms on a U-Net

A schedule decides three things unless they are chosen apart: at which log-SNRs the network trains
(the density), how much each counts in its loss (the weighting), and which levels a sampler visits
(the grid). Here a learned schedule is trained with the density of cosine alone, with cosine's
density and weighting, and with half of either; every network is sampled along its own schedule and
along cosine. Network, data and judge are those of the claims ledger (claims/laboratory.py), log-SNR
from 10 to -10. The raw numbers go to results/learned_for_samples.json, from which the tables are
made (--page). With --unet the arms are those of an ablation on configs/ablation_digits.py, which
writes a report of its own into the workdir; the file is results/learned_for_samples_unet.json. The
same command resumes if interrupted.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffax import evaluation, runtime
from diffax.ablation import Arm, Spec, runner
from diffax.files import read_json, write_json
from diffax.report import statistics
from diffax.report.formatting import ratio, signed, significant, span

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments" / "claims"))

from laboratory import SCALES, Laboratory, Network, between_equal_ends  # noqa: E402

NAME = "learned_for_samples"
LIKE = {"objective__time_sampling": "rate", "objective__like": "cosine"}
FEW, HALF, THREE_QUARTERS = ({"objective__floor": share} for share in (0.01, 0.5, 0.75))
PLAIN = {"objective__importance_weights": False}
NETWORKS: dict[str, Network] = {
    "cosine": between_equal_ends("cosine"),
    "learned": between_equal_ends("learned"),
    "cosine's density": between_equal_ends("learned", **LIKE, **FEW),
    "cosine's density and weighting": between_equal_ends("learned", **LIKE, **FEW, **PLAIN),
    "half and half": between_equal_ends("learned", **LIKE, **HALF, **PLAIN),
    "a quarter cosine's": between_equal_ends("learned", **LIKE, **THREE_QUARTERS, **PLAIN),
}
COLUMNS = ("bpd", "variance", "own", "cosine")


def measure(lab: Laboratory, name: str, seed: int) -> dict[str, float]:
    """Bits/dim along log-SNR-linear, Var(VLB) and distances along its own schedule and cosine."""
    trained = lab.trained(NETWORKS[name], seed)
    found = evaluation.compare(trained.run, trained.dataset, seed)
    draws = dict(sampler="dpmpp_2m", num_steps=20, grid="uniform")
    return {
        "bpd": found["bpd"]["bpd"],
        "variance": found["bpd_own"]["vlb_variance"],
        "own": lab.distance(trained, seed, **draws),
        "cosine": lab.distance(trained, seed, schedule="cosine", **draws),
    }


def on_unet(workdir: Path, seeds: int) -> dict[str, list[dict[str, float]]]:
    """What `measure` finds of every arm and seed, on the U-Net of configs/ablation_digits.py."""
    config = runpy.run_path(str(ROOT / "configs" / "ablation_digits.py"))["get_config"]()
    draws = {
        "sampling.sampler": "dpmpp_2m",
        "sampling.num_steps": 20,
        "sampling.grid": "uniform",
    }
    arms = [
        Arm(f"{name}, {along}", {**network.overrides, **draws, **own})
        for name, network in NETWORKS.items()
        for along, own in (("own levels", {}), ("cosine's levels", {"sampling.schedule": "cosine"}))
        if name != "cosine" or not own
    ]
    spec = Spec(
        title="A learned schedule without the harm",
        question="What of a learned schedule costs a U-Net's samples?",
        baseline="cosine, own levels",
        metrics=(),
        command=f"python experiments/learned_for_samples.py --unet --seeds {seeds}",
    )
    report = runner.run_ablation(spec, config, arms, range(seeds), workdir)
    return of_runs(read_json(report.json)["runs"])


def of_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """The numbers of an ablation's results as `measure` gives them."""
    of = {(run["arm"], run["seed"]): run["metrics"] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    found: dict[str, list] = {}
    for name in NETWORKS:
        own = [of[f"{name}, own levels", seed] for seed in seeds]
        # Cosine's own levels are cosine's.
        along = own if name == "cosine" else [of[f"{name}, cosine's levels", s] for s in seeds]
        found[name] = [
            {
                "bpd": one["bpd"],
                "variance": one["vlb_variance"],
                "own": one["frechet"],
                "cosine": other["frechet"],
            }
            for one, other in zip(own, along)
        ]
    return found


def column(raw: Mapping[str, Any], name: str, key: str) -> np.ndarray:
    return np.array([one[key] for one in raw[name]])


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def tables(raw: Mapping[str, Any]) -> str:
    three = lambda x: significant(x, 3)  # noqa: E731
    names = [name for name in NETWORKS if name in raw]
    means = [["trained", "bits/dim", "Var(VLB)", "distance, own grid", "distance, cosine's grid"]]
    over = [["over cosine, paired", "bits/dim, less", "Var(VLB)", "own grid", "cosine's grid"]]
    of_cosine = {key: column(raw, "cosine", key) for key in COLUMNS}
    found = {}
    for name in names:
        row = [name]
        for key in COLUMNS:
            values = column(raw, name, key)
            interval = statistics.mean_interval if key == "bpd" else statistics.geometric_interval
            row.append(f"{three(interval(values).mean)} ({span(three, interval(values))})")
            if name != "cosine":
                compared = statistics.paired_difference if key == "bpd" else statistics.paired_ratio
                found[name, key] = compared(values, of_cosine[key])
        means.append(row)
    corrected = dict(zip(found, statistics.holm([one.p_value for one in found.values()])))

    def cell(name: str, key: str) -> str:
        text = (lambda x: signed(x, 2)) if key == "bpd" else ratio
        one, mark = found[name, key], "*" * bool(corrected[name, key] < 0.05)
        return f"{text(one.mean)} ({span(text, one)}){mark}"

    over += [[name, *(cell(name, key) for key in COLUMNS)] for name in names if name != "cosine"]
    return f"{table(means)}\n\n{table(over)}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "claims")
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results")
    parser.add_argument("--seeds", type=int, default=5, help="how many, at least 2 (default 5)")
    parser.add_argument("--page", action="store_true", help="measure nothing, show the tables")
    parser.add_argument("--unet", action="store_true", help="on the U-Net of make ablation")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error(f"--seeds={args.seeds}: an interval needs at least 2")
    raw = args.results / f"{NAME}{'_unet' if args.unet else ''}.json"
    if args.unet and not args.page:
        runtime.start(trains=True)
        write_json(raw, on_unet(args.workdir / "unet", args.seeds))
    elif not args.page:
        runtime.start(trains=True)
        lab = Laboratory(SCALES["digits"], args.workdir / "digits")
        found: dict[str, list] = {name: [] for name in NETWORKS}
        for seed in range(args.seeds):
            for name in NETWORKS:
                kept = lab.workdir / NAME / f"{name} {seed}.json"
                if not kept.exists():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    write_json(kept, measure(lab, name, seed))
                found[name].append(read_json(kept))
                print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
        write_json(raw, found)
    print(tables(read_json(raw)))


if __name__ == "__main__":
    main()
