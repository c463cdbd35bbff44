"""`diffax schedules`."""

import argparse
import sys
from pathlib import Path

from diffax.cli import shared
from diffax.cli.flags import words


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--names",
        type=words,
        metavar="A,B,...",
        help="of schedules (default: every one that is registered)",
    )
    parser.add_argument("--out", default="schedules", help="directory (default schedules)")
    parser.add_argument("--data", default="digits", help="data set of the noised image")


def run(args: argparse.Namespace, _: None) -> None:
    from diffax import data, plots, schedules

    names = args.names or schedules.names()
    chosen = {name: schedules.get(name) for name in names}
    out = Path(args.out)
    shared.check_output(*(out / name for name in ("curves.png", "noised.png")))
    print(f"drawing {len(chosen)} schedules, and {args.data} noised by them", file=sys.stderr)
    print(f"into {out.absolute()}", file=sys.stderr)
    dataset = data.load({"name": args.data})
    drawings = {
        "curves.png": plots.draw_schedules(chosen),
        "noised.png": plots.draw_noised(chosen, dataset.train.array([0])[0]),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawings.items():
        figure.savefig(out / name)
        print(out / name)
