"""`diffax evaluate`: a trained run, or samples from anywhere."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffax.cli import shared

DEFAULTS = {"run": "bpd,frechet", "data": "frechet,kid,prdc", "moments": "fid"}


def _range(text: str) -> tuple[float, ...]:
    return tuple(float(end) for end in text.split(","))


# flag -> type and help; each is the field of diffax.data.DataConfig with that name
DATA_FLAGS: dict[str, tuple[Callable, str]] = {
    "path": (str, "folder or file, of --data=folder and --data=npz"),
    "data-dir": (str, "where TFDS sets are prepared"),
    "image-size": (int, "resize and crop the reference to so many pixels a side"),
    "pad-to": (int, "frame the reference to so many pixels a side"),
    "channels": (int, "of --data=folder: 1 grey, 3 colour (default: as the files are)"),
    "range": (_range, "of --data=npz: the LOW,HIGH that become -1 and 1 (default: by the type)"),
    "skip-bad": (bool, "of --data=folder: leave out the files that can't be read"),
    "train-split": (str, "the TFDS split that is the reference (default train)"),
    "eval-split": (str, "the TFDS split that gives the floor (default test)"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--workdir",
        metavar="DIR",
        help="directory of a trained run, whose samples are drawn and held against its data",
    )
    what.add_argument(
        "--samples",
        metavar="PATH",
        help="a folder of images of one size, or an .npz, from anywhere",
    )
    parser.add_argument(
        "--metrics",
        help="comma-separated: bpd, bpd_ode (of a run); frechet, frechet_infinity, kid, prdc (over"
        " the features of a classifier of the data); swd; lpips_diversity (within classes); fid,"
        " fid_infinity, kid_inception, prdc_inception, is; fd_lite0, kid_lite0, fd_mobilenet, ..."
        " (default for a run bpd and its config.evaluation.metrics or frechet, frechet,kid,prdc for"
        " --data, fid for --reference)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        metavar="N",
        help="how many samples of the run are drawn (default: its config.evaluation.num_samples)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and samples (default 0)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="JSON of the results (default WORKDIR/evaluation.json or PATH.evaluation.json)",
    )
    group = parser.add_argument_group("reference of --samples")
    against = group.add_mutually_exclusive_group()
    against.add_argument(
        "--data", metavar="NAME", help="a data set: digits, folder, npz, or a name of TFDS"
    )
    against.add_argument(
        "--reference", metavar="FILE", help="published statistics: an .npz with mu and sigma"
    )
    group.add_argument("--array", help="which array of the .npz holds the samples")
    for flag, (kind, text) in DATA_FLAGS.items():
        how = dict(action="store_const", const=True) if kind is bool else dict(type=kind)
        group.add_argument(f"--{flag}", **how, help=text)
    shared.add_sampling_flags(parser)


def run(args: argparse.Namespace, _: None) -> None:
    from diffax.ablation.jsonable import jsonable
    from diffax.training.workdir import check_writable, write_text

    if args.workdir and (flags := _given(args, ["data", "reference", "array", *DATA_FLAGS])):
        raise ValueError(f"{_shown(flags)}: only with --samples")
    if args.samples and (flags := _given(args, ["num-samples", *shared.SAMPLING_FLAGS])):
        raise ValueError(f"{_shown(flags)}: only with --workdir")
    if args.reference and (flags := _given(args, DATA_FLAGS)):
        raise ValueError(f"{_shown(flags)}: only with --data")
    if args.out:
        out = Path(args.out)
    elif args.workdir:
        out = Path(args.workdir) / "evaluation.json"
    else:
        path = Path(args.samples)
        out = path.parent / f"{path.name}.evaluation.json"
    if args.out:  # before the work: a place that can't be written loses nothing
        check_writable(out.parent)
    results = _of_run(args) if args.workdir else _of_samples(args)
    # What isn't finite, as the bound of a diverged run, is null: JSON has no NaN.
    text = json.dumps(jsonable(results), indent=1, allow_nan=False)
    write_text(out, text)
    print(text)


def _of_run(args: argparse.Namespace) -> dict[str, Any]:
    from diffax import config, data, evaluation

    trained = shared.loaded(args)
    if args.num_samples is not None:
        trained.config.evaluation.num_samples = args.num_samples
        config.validate(trained.config)
    dataset = data.load(trained.config.data)
    chosen = trained.config.evaluation.metrics
    names = ["bpd", *chosen] if chosen and not args.metrics else _names(args, "run")
    return evaluation.evaluate(trained, dataset, names, args.seed)


def _of_samples(args: argparse.Namespace) -> dict[str, Any]:
    from diffax import data, scoring

    if args.data:
        fields = {"name": args.data, **_given(args, DATA_FLAGS)}
        reference = scoring.Reference.of(data.load(fields), fields)
        names = _names(args, "data")
    elif args.reference:
        reference, names = scoring.Reference.read(args.reference), _names(args, "moments")
    else:
        raise ValueError("--samples needs a reference: --data=NAME, or --reference=FILE")
    scoring.check_names(names)
    samples = scoring.read_samples(args.samples, reference.dataset, args.array or "")
    found = scoring.score(samples.x, reference, names, args.seed, samples.label)
    return {name: score | samples.about for name, score in found.items()}


def _names(args: argparse.Namespace, kind: str) -> list[str]:
    return (args.metrics or DEFAULTS[kind]).split(",")


def _given(args: argparse.Namespace, flags: Any) -> dict[str, Any]:
    """Field -> value, of the flags that were given."""
    values = {flag.replace("-", "_"): vars(args)[flag.replace("-", "_")] for flag in flags}
    return {field: value for field, value in values.items() if value is not None}


def _shown(given: dict[str, Any]) -> str:
    return " ".join(f"--{field.replace('_', '-')}={value}" for field, value in given.items())
