"""`diffax ablate`."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from diffax.cli import shared
from diffax.cli.flags import whole, words
from diffax.registry import suggestion

_VECTORISE = {"auto": None, "always": True, "never": False}


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of the runs and the report; if interrupted there, it goes on")
    parser.add_argument(
        "--axis",
        action="append",
        required=True,
        metavar="KEY=A,B,...",
        help="a key of the config and the values to compare, as schedule.name=linear,cosine or"
        " model.unet.channel_mults=(1,2),(1,2,2); repeated, all combinations; arms that differ in"
        " sampling.* or evaluation.* alone share one training",
    )
    parser.add_argument("--seeds", type=whole(1, 10_000), default=3, help="how many (default 3)")
    parser.add_argument(
        "--metrics",
        type=words,
        metavar="A,B,...",
        help="of samples, as those of diffax evaluate; a ranking is settled where two networks"
        " agree: fd_lite0,fd_mobilenet,prdc_lite0,... (default: config.evaluation.metrics, else"
        " frechet, or swd for data without a classifier)",
    )
    parser.add_argument("--baseline", help="arm to compare with (default: the first)")
    parser.add_argument("--question", help="what the report answers, at its top")
    parser.add_argument(
        "--workers", type=whole(1, 1024), help="processes (default: one per core, or per GPU)"
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="do the I-th of N parts alone, I from 1; diffax report makes a report of them all",
    )
    parser.add_argument(
        "--seeds-together",
        choices=list(_VECTORISE),
        default="auto",
        help="train several seeds of an arm in one program: where that is faster (auto, the"
        " default: small MLPs), always, or never; the numbers agree to rounding",
    )


def run(args: argparse.Namespace, config: ConfigDict) -> None:
    # Before any device is touched: this process needs little of a GPU, and workers the rest.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from diffax import config as config_lib
    from diffax.ablation import Spec, runner

    if args.metrics is not None:
        config.evaluation.metrics = tuple(args.metrics)
    config_lib.validate(config)
    axes: dict[str, list[Any]] = {}
    for text in args.axis:
        key, values = _axis(text)
        if key in axes:
            raise ValueError(
                f"--axis={text}: {key} is an axis already; give all its values at once"
            )
        axes[key] = values
    arms, left_out = runner.possible_arms(config, axes)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    names = [arm.name for arm in arms]
    if args.baseline not in (None, *names):
        hint = suggestion(args.baseline, names)
        raise ValueError(f"--baseline={args.baseline}{hint}: the arms are {'; '.join(names)}")
    print(
        f"{len(arms)} arms x {args.seeds} seed{'s' * (args.seeds > 1)} ="
        f" {len(arms) * args.seeds} runs; results in {args.workdir}",
        file=sys.stderr,
    )
    do = "does" if len(axes) == 1 else "do"
    spec = Spec(
        title=args.question or f"What difference {do} {' and '.join(axes)} make?",
        question=" × ".join(f"{key}: {', '.join(map(str, vs))}" for key, vs in axes.items()),
        baseline=args.baseline or names[0],
        metrics=(),  # those of the runs, as `measure.measured_metrics` orders them
        command=_command(args.words),
        method="\n\n".join(f"Left out: {name}: {why}." for name, why in left_out.items()),
    )
    report = runner.run_ablation(
        spec,
        config,
        arms,
        range(args.seeds),
        args.workdir,
        workers=args.workers,
        shard=args.shard,
        vectorise=_VECTORISE[args.seeds_together],
        validated=True,
    )
    if report is None:
        part, parts = args.shard
        print(f"part {part} of {parts} is done; with the others: diffax report --workdir=DIR ...")
        return
    print(report.table)
    print(f"\nreport: {report.html}, {report.markdown}\nnumbers: {report.json}")


def _command(words: Sequence[str]) -> str:
    """The command as it was given, for the whole of the grid."""
    words = [word for word in words if not word.startswith("--shard=")]
    if "--shard" in words:
        i = words.index("--shard")
        del words[i : i + 2]
    return shlex.join(["diffax", *words])


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must read I/N, I from 1 to N")
    return int(found[1]), int(found[2])


def _axis(text: str) -> tuple[str, list[Any]]:
    """KEY=A,B,... with the values read as the key's type."""
    from diffax.config import kinds, reading

    key, equals, values = text.partition("=")
    try:
        if not (key and equals and values):
            raise ValueError("must read KEY=A,B,...")
        return key, [reading.read(key, word) for word in kinds.split(values)]
    except ValueError as error:
        raise ValueError(f"--axis={text}: {error}") from None
