"""`diffax import`: a run made of another library's network."""

from __future__ import annotations

import argparse
import shlex

from diffax.cli import shared
from diffax.cli.evaluate import DATA_FLAGS
from diffax.cli.flags import of_key

# flag -> the flag of `diffax evaluate` of the same meaning, whose --path is another one here
_FIELDS = {"data-path" if field == "path" else field: field for field in DATA_FLAGS}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        default="diffusers",
        help="diffusers (default): the folder of a DDPMPipeline or DDIMPipeline",
    )
    parser.add_argument("--path", required=True, metavar="DIR", help="what is read")
    shared.add_workdir(parser, "of the run that is written")
    group = parser.add_argument_group("data that the run is evaluated on and fine-tuned with")
    group.add_argument(
        "--data",
        metavar="NAME",
        help="digits, folder, npz, or a name of TFDS (default: none; it can then be sampled)",
    )
    for flag, field in _FIELDS.items():
        alone = dict(nargs="?", const=True) if flag == "skip-bad" else {}
        kind, text = of_key(f"data.{field.replace('-', '_')}"), DATA_FLAGS[field]
        group.add_argument(f"--{flag}", type=kind, help=text, **alone)


def run(args: argparse.Namespace, _: None) -> None:
    from diffax.interop.imports import import_run

    data = {"name": args.data} if args.data else {}
    for flag, field in _FIELDS.items():
        if (value := vars(args)[flag.replace("-", "_")]) is not None:
            if not data:
                raise ValueError(f"--{flag}={value}: only with --data")
            data[field.replace("-", "_")] = value
    workdir = import_run(args.path, args.workdir, args.source, data or None)
    print(f"{args.source}: {args.path}\nrun:       {workdir}")
    print(f"next:      {shlex.join(['diffax', 'sample', f'--workdir={args.workdir}'])}")
