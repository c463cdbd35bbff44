"""The command line.

    diffax COMMAND --config=configs/X.py --workdir=DIR [--config.a.b=value ...]

Commands are a table, `COMMANDS`; what they need is imported when they run, so that --help is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags


class Command(NamedTuple):
    """A command: what it says of itself, its flags, and what it does with them."""

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, ConfigDict | None], None]
    takes_config: bool = False


# --- train --------------------------------------------------------------------------------------


def _train_flags(parser: argparse.ArgumentParser) -> None:
    _add_workdir(parser, "of the run; if one was interrupted there, it goes on")


def _train(args: argparse.Namespace, config: ConfigDict) -> None:
    from diffax import training

    _, metrics = training.train(config, args.workdir)
    if training.hosts.is_first():
        print(json.dumps(metrics, indent=1))


# --- sample -------------------------------------------------------------------------------------


def _interval(text: str) -> tuple[float, ...]:
    return tuple(float(end) for end in text.split(","))


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


# flag -> key of config.sampling; the flag's type is that of the key's values
_SAMPLING_FLAGS: dict[str, tuple[str, Callable, str]] = {
    "steps": ("num_steps", int, "noise levels visited"),
    "sampler": (
        "sampler",
        str,
        "ddim, ddpm, euler, heun, plms, dpm_solver, dpmpp_2s, dpmpp_2m, dpmpp_2m_sde or unipc",
    ),
    "grid": ("grid", str, "which times are visited"),
    "sampling-schedule": (
        "schedule",
        str,
        "sample under this schedule, between the ends of the one trained with",
    ),
    "eta": ("eta", float, "of ddim: 0 deterministic, 1 ancestral"),
    "order": ("order", int, "of dpm_solver: 1, 2 or 3"),
    "variance": ("variance", str, "of ddpm: fixed_small, fixed_large or learned"),
    "clip-x0": ("clip_x0", float, "bound on every estimate of x0"),
    "dynamic-threshold": ("dynamic_threshold", float, "quantile of |x0| to clip to, as 0.995"),
    "low-order-finish": (
        "low_order_finish",
        _true_or_false,
        "true: the last step goes to x0, with order 1; false: to the clean end, with full order",
    ),
    "guidance-scale": ("guidance_scale", float, "of a class-conditional network; 1 is off"),
    "guidance-interval": ("guidance_interval", _interval, "LOW,HIGH in log-SNR, guided alone"),
    "guidance-rescale": ("guidance_rescale", float, "share of the deviation brought back"),
}


def _add_sampling_flags(parser: argparse.ArgumentParser, **others: Any) -> None:
    """The flags of `_SAMPLING_FLAGS`; `others`: flag -> what to add it with instead."""
    group = parser.add_argument_group("sampling (default: as in the run's config)")
    for flag, (_, kind, text) in _SAMPLING_FLAGS.items():
        group.add_argument(f"--{flag}", **others.get(flag, dict(type=kind, help=text)))


def _sample_flags(parser: argparse.ArgumentParser) -> None:
    _add_workdir(parser, "of a trained run")
    parser.add_argument("--num", type=int, help="how many (default 64; of an edit 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--label", type=int, help="the class of all (default: in turn)")
    parser.add_argument("--out", help="where to write (default WORKDIR/samples/sample)")
    text = "noise levels visited; several, as 5,10,50, draw a comparison from the same noise"
    _add_sampling_flags(parser, steps=dict(type=_counts, metavar="N[,N...]", help=text))
    group = parser.add_argument_group("editing of given data")
    group.add_argument(
        "--edit",
        choices=("sdedit", "inpaint", "invert", "interpolate"),
        help="noise it and sample from there; draw a part anew; find the noise DDIM turns into it;"
        " pass from one example to another",
    )
    group.add_argument(
        "--input",
        nargs="+",
        metavar="FILE",
        help="images, or .npz with an array of samples (default: from the evaluation split)",
    )
    for flag, (kind, text) in _EDIT_FLAGS.items():
        group.add_argument(f"--{flag}", type=kind, help=text)


_EDIT_FLAGS: dict[str, tuple[Callable, str]] = {
    "strength": (float, "of sdedit: share of the levels gone back, above 0 to 1 (default 0.5)"),
    "mask": (
        str,
        "of inpaint: what is drawn anew, left, right, top, bottom or centre, or an image's light"
        " part (default centre)",
    ),
    "jump-length": (int, "of inpaint: levels in a jump back (default 10)"),
    "num-resamples": (int, "of inpaint: passes through each stretch (default 10)"),
    "frames": (int, "of interpolate: examples from first to last (default 8)"),
}


def _counts(text: str) -> list[int]:
    try:
        return [int(count) for count in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must read N or N,N,...") from None


def _sample(args: argparse.Namespace, _: None) -> None:
    import numpy as np

    from diffax import edits, plots
    from diffax.generator import Generator

    generate = Generator(args.workdir)
    names = [flag.replace("-", "_") for flag in _EDIT_FLAGS]
    flags = {name: vars(args)[name] for name in names if vars(args)[name] is not None}
    options = _given_options(args) | {"seed": args.seed, "label": args.label}
    if args.edit:
        result = edits.edit(generate, args.edit, args.input, args.num, args.steps, flags, options)
    else:
        edits.check_flags(None, flags | {"input": args.input})
        result = edits.draw(generate, args.num, args.steps, options)
    out = Path(args.out or Path(args.workdir) / "samples" / (args.edit or "sample"))
    out = out.with_suffix("")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out.with_suffix(".npz"), **result.arrays)
    if len(result.drawn) == 1:
        plots.save_png(out.with_suffix(".png"), plots.picture(*result.drawn.values()))
    else:
        plots.draw_comparison(result.drawn).savefig(out.with_suffix(".png"))
    print(f"{result.said}{out}.png\n{out}.npz")


# --- evaluate -----------------------------------------------------------------------------------


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    _add_workdir(parser, "of a trained run; results go to WORKDIR/evaluation.json")
    parser.add_argument(
        "--metrics",
        default="bpd,frechet",
        help="comma-separated, of bpd, bpd_ode, frechet, kid, prdc, swd (default bpd,frechet)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and samples (default 0)")
    _add_sampling_flags(parser)


def _evaluate(args: argparse.Namespace, _: None) -> None:
    from diffax import data, evaluation
    from diffax.training.workdir import write_text

    run = _loaded(args)
    dataset = data.load(run.config.data)
    results = evaluation.evaluate(run, dataset, args.metrics.split(","), args.seed)
    text = json.dumps(results, indent=1)
    write_text(Path(args.workdir) / "evaluation.json", text)
    print(text)


# --- ablate -------------------------------------------------------------------------------------


def _ablate_flags(parser: argparse.ArgumentParser) -> None:
    _add_workdir(parser, "of the runs and the report; if interrupted there, it goes on")
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


def _ablate(args: argparse.Namespace, config: ConfigDict) -> None:
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


_READERS: dict[type, Callable[[str], Any]] = {bool: _true_or_false}


# --- schedules ----------------------------------------------------------------------------------


def _schedules_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--names", default="", help="comma-separated (default: every schedule that is registered)"
    )
    parser.add_argument("--out", default="schedules", help="directory (default schedules)")
    parser.add_argument("--data", default="digits", help="data set of the noised image")


def _schedules(args: argparse.Namespace, _: None) -> None:
    from diffax import data, plots, schedules

    names = args.names.split(",") if args.names else schedules.names()
    chosen = {name: schedules.get(name) for name in names}
    dataset = data.load({"name": args.data})
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    drawings = {
        "curves.png": plots.draw_schedules(chosen),
        "noised.png": plots.draw_noised(chosen, dataset.train.array([0])[0]),
    }
    for name, figure in drawings.items():
        figure.savefig(out / name)
        print(out / name)


# --- shared -------------------------------------------------------------------------------------


def _add_workdir(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help=f"directory {text}")


def _given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keys of config.sampling with the values of the flags that were given, all but the steps."""
    found = {
        key: vars(args)[flag.replace("-", "_")] for flag, (key, _, _) in _SAMPLING_FLAGS.items()
    }
    return {k: v for k, v in found.items() if v is not None and k != "num_steps"}


def _loaded(args: argparse.Namespace) -> Any:
    """The run in --workdir, sampled as the flags say."""
    from diffax import config as config_lib
    from diffax import training

    run = training.load(args.workdir)
    run.config.sampling.update(_given_options(args))
    if args.steps is not None:
        run.config.sampling.num_steps = args.steps
    config_lib.validate(run.config)
    return run


COMMANDS: dict[str, Command] = {
    "train": Command("train a network (and a learned schedule)", _train_flags, _train, True),
    "sample": Command("draw samples of a trained run", _sample_flags, _sample),
    "evaluate": Command("measure a trained run", _evaluate_flags, _evaluate),
    "ablate": Command("compare configs with error bars", _ablate_flags, _ablate, True),
    "schedules": Command("draw noise schedules", _schedules_flags, _schedules),
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="diffax", description="The noise-schedule laboratory for JAX.", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.summary.capitalize(), allow_abbrev=False
        )
        if command.takes_config:
            sub.add_argument(
                "--config",
                required=True,
                metavar="FILE",
                help="a file with get_config(), such as configs/digits.py; --config.KEY=VALUE sets"
                " a key of it, as in --config.schedule.name=learned",
            )
        command.add_flags(sub)
    return parser


def read_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    """The config of a file with `--config.KEY=VALUE` applied; its values are not checked yet.

    Raises:
      ValueError: no such file, an unknown key or a wrong type.
    """
    if not os.path.isfile(path):
        raise ValueError(f"--config={path}: no such file")
    values = flags.FlagValues()
    arguments = ["diffax", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        rest = values(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{' '.join(overrides)}: {error}") from None
    if len(rest) > 1:
        raise ValueError(f"not understood: {' '.join(rest[1:])}")
    return values.config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 for a user's error, 130 if interrupted, 143 if
    terminated (SIGTERM) after what was reached is saved."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    command = COMMANDS[args.command]
    if rest and not (command.takes_config and all(r.startswith("--config.") for r in rest)):
        parser.error(f"not understood: {' '.join(rest)}")
    from diffax import runtime

    runtime.start()
    try:
        config = read_config(args.config, rest) if command.takes_config else None
        command.run(args, config)
    except (ValueError, OSError) as error:
        print(f"diffax {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"diffax {args.command}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return getattr(stop, "exit_status", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
