"""`diffax ablate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from diffax.cli import shared


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of the runs and the report; if interrupted there, it goes on")
    parser.add_argument(
        "--axis",
        action="append",
        required=True,
        metavar="KEY=A,B,...",
        help="a key and the values to compare, as schedule.name=linear,cosine; may be repeated",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--baseline", help="arm to compare with (default: the first)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")


def run(args: argparse.Namespace, config: ConfigDict) -> None:
    from diffax import config as config_lib
    from diffax.ablation import Spec, grid, runner

    config_lib.validate(config)
    axes = dict(_axis(text, config) for text in args.axis)
    arms = grid(axes)
    spec = Spec(
        title=" × ".join(axes),
        question=f"What difference does {' and '.join(axes)} make?",
        baseline=args.baseline or arms[0].name,
        metrics=runner.METRICS,
        parts=runner.PARTS,
        command=" ".join(["diffax", *sys.argv[1:]]),
    )
    report = runner.run_ablation(spec, config, arms, range(args.seeds), args.workdir, args.workers)
    print(report.table)
    print(f"\nreport: {report.html}\nnumbers: {report.json}")


def _axis(text: str, config: ConfigDict) -> tuple[str, list[Any]]:
    """KEY=A,B,... with the values read as the key's type."""
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise ValueError(f"--axis={text}: must read KEY=A,B,...")
    try:
        kind = (
            config.get_type(key)
            if "." not in key
            else _section(config, key).get_type(key.rpartition(".")[2])
        )
    except (KeyError, AttributeError):
        raise ValueError(f"--axis={text}: the config has no key {key!r}") from None
    try:
        return key, [_READERS.get(kind, kind)(value) for value in values.split(",")]
    except ValueError:
        raise ValueError(f"--axis={text}: {key} takes values of type {kind.__name__}") from None


def _section(config: ConfigDict, key: str) -> ConfigDict:
    for part in key.split(".")[:-1]:
        config = config[part]
    return config


_READERS: dict[type, Callable[[str], Any]] = {bool: shared.true_or_false}
