"""`diffax evaluate`: a trained run, or samples from anywhere."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffax.cli import shared
from diffax.cli.flags import of_key, words

DEFAULTS = {"run": "bpd,frechet", "data": "frechet,kid,prdc", "moments": "fid"}

# flag -> help; each is the field of diffax.data.DataConfig with that name
DATA_FLAGS: dict[str, str] = {
    "path": "folder or file, of --data=folder and --data=npz",
    "data-dir": "where TFDS sets are prepared",
    "image-size": "resize and crop the reference to so many pixels a side",
    "pad-to": "frame the reference to so many pixels a side",
    "channels": "of --data=folder: 1 grey, 3 colour (default: as the files are)",
    "range": "of --data=npz: the LOW,HIGH that become -1 and 1 (default: by the type)",
    "skip-bad": "of --data=folder: leave out the files that can't be read",
    "train-split": "the TFDS split that is the reference (default train)",
    "eval-split": "the TFDS split that gives the floor (default test)",
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
        type=words,
        metavar="A,B,...",
        help="comma-separated: bpd, bpd_ode (of a run); frechet, frechet_infinity, kid, prdc (over"
        " the features of a classifier of the data); swd; lpips_diversity (within classes); fid,"
        " fid_infinity, kid_inception, prdc_inception, is; fd_lite0, kid_lite0, fd_mobilenet, ..."
        " (default for a run bpd and its config.evaluation.metrics or frechet, frechet,kid,prdc for"
        " --data, fid for --reference)",
    )
    parser.add_argument(
        "--num-samples",
        type=of_key("evaluation.num_samples"),
        metavar="N",
        help="how many samples of the run are drawn (default: its config.evaluation.num_samples)",
    )
    parser.add_argument(
        "--seed", type=of_key("seed"), default=0, help="of noise and samples (default 0)"
    )
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
    for flag, text in DATA_FLAGS.items():
        alone = dict(nargs="?", const=True) if flag == "skip-bad" else {}  # a flag without a value
        kind = of_key(f"data.{flag.replace('-', '_')}")
        group.add_argument(f"--{flag}", type=kind, help=text, **alone)
    shared.add_sampling_flags(parser)


def run(args: argparse.Namespace, _: None) -> None:
    from diffax.ablation.jsonable import jsonable
    from diffax.training.workdir import check_writable, write_text

    if args.workdir and (flags := _given(args, ["data", "reference", "array", *DATA_FLAGS])):
        raise ValueError(f"{_shown(flags)}: only with --samples")
    if args.samples and (flags := _given(args, ["num-samples", *shared.sampling_flags()])):
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
    return args.metrics or DEFAULTS[kind].split(",")


def _given(args: argparse.Namespace, flags: Any) -> dict[str, Any]:
    """Field -> value, of the flags that were given."""
    values = {flag.replace("-", "_"): vars(args)[flag.replace("-", "_")] for flag in flags}
    return {field: value for field, value in values.items() if value is not None}


def _shown(given: dict[str, Any]) -> str:
    return " ".join(f"--{field.replace('_', '-')}={value}" for field, value in given.items())
