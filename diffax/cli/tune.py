"""`diffax tune`."""

import argparse
import shlex

from ml_collections import ConfigDict

from diffax.cli import shared
from diffax.cli.flags import number, whole

_TRIALS = 20


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of all that is written; if interrupted there, it goes on")
    parser.add_argument(
        "--search",
        action="append",
        required=True,
        metavar="KEY=LOW:HIGH[:log]|A,B,...",
        help="a key and its range or values, as schedule.s=0.001:0.1:log or"
        " schedule.name=cosine,sigmoid; may be repeated; a keyword that the trial's schedule does"
        " not take is left out of that trial",
    )
    parser.add_argument(
        "--trials",
        type=whole(1, 1_000_000),
        help=f"how many (default {_TRIALS}, or as many as --budget allows)",
    )
    parser.add_argument(
        "--budget", type=number(0, 1e6), metavar="MINUTES", help="no trial is begun after so long"
    )
    parser.add_argument(
        "--metric",
        default="bpd",
        help="bpd, the bound along a common schedule, or a score of samples as diffax evaluate has"
        " them, lower is better: frechet, kid, swd, fd_lite0, ... (default bpd)",
    )
    parser.add_argument(
        "--pruner",
        default="halving",
        help="what stops a trial early: halving, median or none (default halving)",
    )
    parser.add_argument(
        "--rungs", type=whole(1), default=3, help="times that a trial is measured (default 3)"
    )
    parser.add_argument(
        "--confirm",
        type=whole(0, 10_000),
        default=3,
        metavar="SEEDS",
        help="fresh seeds with which the winner and the config as it was are trained again and"
        " compared; on top of the budget; 0: none (default 3)",
    )
    parser.add_argument(
        "--workers", type=whole(1, 1024), help="processes of that (default: one per core)"
    )


def run(args: argparse.Namespace, config: ConfigDict) -> None:
    from diffax.tuning import tune

    trials = _TRIALS if args.trials is None and args.budget is None else args.trials
    found = tune(
        config,
        args.search,
        args.workdir,
        num_trials=trials,
        budget=None if args.budget is None else 60 * args.budget,
        metric=args.metric,
        pruner=args.pruner,
        num_rungs=args.rungs,
        confirm=args.confirm,
        workers=args.workers,
        command=shlex.join(["diffax", *args.words]),
    )
    print(found.table)
    print(f"\nbest of {len(found.trials)}, by one seed and so optimistic: * {found.best.number}")
    if found.report is not None:
        print(f"\n{found.report.table}\n\nreport: {found.report.html}")
    print("\n".join(map(str, found.files)))
    print(f"\n{found.verdict}")
