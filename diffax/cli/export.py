"""`diffax export`: a run's weights for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffax.cli import shared
from diffax.cli.flags import whole


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of a trained run")
    parser.add_argument(
        "--to",
        default="diffusers",
        help="diffusers (default): the folder of a pipeline; safetensors, npz: files of arrays",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder that is written")
    parser.add_argument(
        "--weights", default="average", help="average (default), their moving average, or raw"
    )
    parser.add_argument(
        "--sampler",
        default="ddim",
        help="of diffusers' pipeline: ddim (default) or ddpm",
    )
    parser.add_argument(
        "--num-steps",
        type=whole(1),
        default=1000,
        help="T for diffusers and for the table, of a schedule in continuous time (default 1000)",
    )
    parser.add_argument("--license", default="unknown", help="what the model card says of it")


def run(args: argparse.Namespace, _: None) -> None:
    from diffax import training
    from diffax.interop import export

    out = Path(args.out)
    shared.check_output(out / export.CARD)
    export.export(
        training.load(args.workdir),
        out,
        to=args.to,
        weights=args.weights,
        sampler=args.sampler,
        num_steps=args.num_steps,
        license=args.license,
    )
    print(f"{args.to}: {out}\ncard:      {out / export.CARD}")
