"""`diffax metrics`."""

import argparse
from pathlib import Path

from diffax.cli import shared


def add_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", dest="action", required=True)
    text = "convert the PyTorch checkpoint of the FID's Inception, once, before FID is measured"
    convert = actions.add_parser(
        "convert-inception", help=text, description=text[:1].upper() + text[1:] + "."
    )
    convert.add_argument("path", metavar="PATH", help="pt_inception-2015-12-05-6726825d.pth")
    convert.add_argument(
        "--out", metavar="FILE", help="the .npz to write (default: in the cache, where it is found)"
    )


def run(args: argparse.Namespace, _: None) -> None:
    from diffax import evaluation

    if args.out:
        shared.check_output(Path(args.out))
    print(evaluation.convert_inception(args.path, args.out))
