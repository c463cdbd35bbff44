"""`diffax grid`: levels found for a run, a solver and some numbers of steps."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from diffax.cli import shared
from diffax.cli.flags import of_key, whole
from diffax.places import path_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of a trained run")
    parser.add_argument(
        "--method",
        default="dp",
        help="dp (default): dynamic programming; gradient: through the solver; ays: a bound on the"
        " KL divergence; entropy, second_moment, constant_change or transport: equal rate per step,"
        " of the network's own rate; learned: with the coefficients of a solver, --sampler=learned",
    )
    text = "numbers of steps, as 5,10,20 (default: the run's)"
    parser.add_argument("--num", type=whole(8), default=32, help="starts it uses (default 32)")
    parser.add_argument(
        "--iterations",
        type=whole(1),
        default=60,
        help="of gradient and learned (default 60). On a CPU one takes as long as 10 to 15 calls of"
        " the network for each start and step; learned takes as many again",
    )
    parser.add_argument("--seed", type=of_key("seed"), default=0, help="of their noise (default 0)")
    shared.add_sampling_flags(parser, steps=dict(type=shared.counts, metavar="N[,N...]", help=text))


def run(args: argparse.Namespace, _: None) -> None:
    from diffax import config as config_lib
    from diffax import plots, runtime, training
    from diffax.files import replacing
    from diffax.samplers import grid_search
    from diffax.training import grids
    from diffax.training.progress import ProgressDisplay

    if args.method not in grid_search.METHODS:
        raise ValueError(f"--method={args.method}: one of {', '.join(grid_search.METHODS)}")
    if args.grid is not None:
        raise ValueError(f"--grid={args.grid}: that is what is found, by --method")
    options = shared.given_options(args)
    if args.method == "learned":
        options.setdefault("sampler", "learned")
    picture = path_of(args.workdir) / f"{grids.FOLDER}.png"
    shared.check_output(picture)
    with ProgressDisplay() as progress:
        with progress.doing("", shared.reading(args.workdir)):
            loaded = training.load(args.workdir)
        names = {f"sampling.{key}": value for key, value in options.items()}
        config = config_lib.changed(loaded.config, {**names, "sampling.grid": None})
        config_lib.validate(config)
        steps = args.steps or [config.sampling.num_steps]
        sampler = config.sampling.sampler
        doing = progress.doing(f"finding the levels of {sampler}")
        stopped = (
            f"stopped; the grids found so far are kept in {picture.with_suffix('')}: give the other"
            " numbers of steps by --steps"
        )
        with runtime.Interruption() as signals, signals.at_once(stopped), doing:
            found = grids.find(
                loaded.under(config), args.method, steps, args.num, args.seed, args.iterations
            )
    print(f"{'steps':>5} {'error':>9} {'held out':>9}  best fixed, held out{'':9} calls  seconds")
    for num, entry in zip(steps, found):
        print(_line(num, entry))
    shared_cost = found[0]["shared"]
    print(
        f"besides, for all: {shared_cost['calls']:,} network calls for each of {args.num} starts,"
        f" {shared_cost['seconds']:.0f} s"
    )
    rows = {f"{args.method}, {n} steps": entry["log_snrs"] for n, entry in zip(steps, found)}
    with replacing(picture) as partial:
        plots.draw_levels(rows).savefig(partial, format="png")
    print(f"picture: {picture}\ngrids:   {picture.with_suffix('')}")
    grid = "" if args.method == "learned" else f" --grid={args.method}"
    print(
        f"next:    diffax sample --workdir={shlex.quote(args.workdir)} --sampler={sampler}{grid}"
        f" --steps={steps[0]}{_flags(options)}"
    )


def _flags(options: dict[str, Any]) -> str:
    """The flags of sampling options, without the sampler; a grid is of use under these alone."""
    flags = {key: flag for flag, (key, _) in shared.sampling_flags().items()}
    words = {k: ",".join(map(str, v if isinstance(v, tuple) else [v])) for k, v in options.items()}
    return "".join(f" {shlex.quote(f'--{flags[k]}={words[k]}')}" for k in words if k != "sampler")


def _line(num: int, entry: dict[str, Any]) -> str:
    name, (_, held_out) = min(entry["fixed"].items(), key=lambda pair: pair[1][1])
    return (
        f"{num:>5} {entry['error']:9.4g} {entry['held_out']:9.4g}  {name:<12} {held_out:9.4g}"
        f" {entry['calls']:>12,} {entry['seconds']:8.0f}"
    )
