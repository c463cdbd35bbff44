"""`diffax train`."""

import argparse
import json
import shlex
import sys

from ml_collections import ConfigDict

from diffax.cli import shared


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of the run; if one was interrupted there, it goes on")
    parser.add_argument(
        "--json", action="store_true", help="print the last metrics as JSON, not as a table"
    )


def run(args: argparse.Namespace, config: ConfigDict) -> None:
    from diffax import config as config_lib
    from diffax import training
    from diffax.training.writers import called

    _, metrics = training.train(config, args.workdir)
    if training.hosts.is_first():
        if args.json:
            print(json.dumps(metrics, indent=1))
        for name, value in {} if args.json else metrics.items():
            print(f"{called(name) + ':':<30}{value:.4g}")
        for what, path in training.outcome(args.workdir).items():
            print(f"{what + ':':<12}{path}", file=sys.stderr)
        draws = config_lib.method_before_data(config).sample is not None
        command = ["diffax", "sample" if draws else "evaluate", f"--workdir={args.workdir}"]
        if draws and config.condition.text:
            command.append(f"--text={config_lib.load_data(config).eval.arrays['text'][0]}")
        print(f"{'next:':<12}{shlex.join(command)}", file=sys.stderr)
