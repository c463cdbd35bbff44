"""`diffax evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from diffax.cli import shared


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of a trained run; results go to WORKDIR/evaluation.json")
    parser.add_argument(
        "--metrics",
        default="bpd,frechet",
        help="comma-separated, of bpd, bpd_ode, frechet, kid, prdc, swd (default bpd,frechet)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and samples (default 0)")
    shared.add_sampling_flags(parser)


def run(args: argparse.Namespace, _: None) -> None:
    from diffax import data, evaluation
    from diffax.training.workdir import write_text

    trained = shared.loaded(args)
    dataset = data.load(trained.config.data)
    results = evaluation.evaluate(trained, dataset, args.metrics.split(","), args.seed)
    text = json.dumps(results, indent=1)
    write_text(Path(args.workdir) / "evaluation.json", text)
    print(text)
