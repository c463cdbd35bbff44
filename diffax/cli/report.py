"""`diffax report`."""

import argparse
from pathlib import Path

from ml_collections import ConfigDict

from diffax.cli import shared


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        action="append",
        required=True,
        metavar="DIR",
        help="directory of an ablation, or of a part of one; repeated for parts made on several"
        " machines, which are merged",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where the report goes (default: the first workdir)"
    )


def run(args: argparse.Namespace, _: ConfigDict | None) -> None:
    from diffax.ablation import report_on

    if args.out:
        shared.check_output(
            *(Path(args.out) / name for name in ("report.html", "report.md", "results.json"))
        )
    report = report_on(args.workdir, args.out)
    print(report.table)
    print(f"\nreport: {report.html}, {report.markdown}\nnumbers: {report.json}")
