"""The command line.

    diffax COMMAND --config=configs/X.py --workdir=DIR [--config.a.b=value ...]

Commands are a table, `COMMANDS`; what they need is imported when they run, so that --help is quick.
"""

import importlib
import io
import itertools
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from diffax import runtime

# As a program, not as a module of another one, this takes a second to be imported.
if Path(sys.argv[0]).name in ("diffax", "diffax.exe") or "diffax" in {
    word.partition(".")[0] for flag, word in itertools.pairwise(sys.orig_argv) if flag == "-m"
}:
    for number in runtime.SIGNALS:
        signal.signal(number, runtime.quit_at_once)

import diffax
from diffax.cli import (
    ablate,
    config,
    evaluate,
    export,
    grid,
    import_run,
    metrics,
    report,
    sample,
    schedules,
    shared,
    train,
    tune,
)
from diffax.cli.flags import Parser, one_line
from diffax.cli.shared import Command, read_config

__all__ = ["COMMANDS", "Command", "main", "make_parser", "read_config"]

COMMANDS: dict[str, Command] = {
    "train": Command("train a network (and a learned schedule)", train.add_flags, train.run, True),
    "sample": Command("draw samples of a trained run", sample.add_flags, sample.run),
    "evaluate": Command(
        "measure a trained run, or samples from anywhere",
        evaluate.add_flags,
        evaluate.run,
    ),
    "ablate": Command("compare configs with error bars", ablate.add_flags, ablate.run, True),
    "report": Command("report on an ablation's results", report.add_flags, report.run),
    "grid": Command("find the levels that suit a run and a solver", grid.add_flags, grid.run),
    "export": Command("write a run's weights for other programs", export.add_flags, export.run),
    "import": Command(
        "make a run of another library's network",
        import_run.add_flags,
        import_run.run,
    ),
    "metrics": Command("weights of feature extractors", metrics.add_flags, metrics.run),
    "tune": Command("search a schedule's parameters", tune.add_flags, tune.run, True),
    "schedules": Command("draw noise schedules", schedules.add_flags, schedules.run),
    "config": Command("list the keys of a config", config.add_flags, config.run),
}


def _version() -> str:
    from importlib import metadata  # brings much along, and signals are to be heard before

    jax = metadata.version("jax")
    return f"diffax {diffax.__version__} (jax {jax}, Python {platform.python_version()})"


def make_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(prog="diffax", description="The noise-schedule laboratory for JAX.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.summary.capitalize()
        )
        if command.takes_config:
            sub.add_argument(
                "--config",
                required=True,
                metavar="FILE",
                help="a file with get_config(), such as configs/digits.py; --config.KEY=VALUE sets"
                " a key of it, as in --config.schedule.name=learned; diffax config lists the keys",
            )
        command.add_flags(sub)
        shared.add_plugin(sub)
    return parser


# What a command imports when it runs; before that a signal may end the program at once.
_NEEDS = {
    "train": "diffax.training",
    "sample": "diffax.edits",
    "evaluate": "diffax.evaluation.run",
    "ablate": "diffax.ablation.runner",
    "report": "diffax.ablation",
    "grid": "diffax.training",
    "export": "diffax.training",
    "import": "diffax.interop.imports",
    "tune": "diffax.tuning",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 for a user's error or a run that failed, 130
    if interrupted, 143 if terminated (SIGTERM), after what was reached is saved."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal can't write stops nothing
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else list(argv)
    words, overrides = _apart(argv)
    name = words[0] if words else ""
    if name in COMMANDS and any(word.startswith(("--plugin", "--workdir")) for word in words):
        try:
            shared.load_plugins(words[1:], COMMANDS[name])
        except (ValueError, OSError) as error:
            return _failed(name, error)
        except KeyboardInterrupt as stop:
            return _stopped(name, stop)
    parser = make_parser()
    if words and words[0] in COMMANDS:
        others = () if COMMANDS[words[0]].takes_config else overrides
        parser.commands[words[0]].refuse_unknown([*words, *others])
    args, rest = parser.parse_known_args(words)
    args.words = argv  # as they were given
    command = COMMANDS[args.command]
    if rest:
        parser.commands[args.command].error(f"not understood: {' '.join(rest)}")
    runtime.start(trains=command.takes_config)
    importlib.import_module(_NEEDS.get(args.command, "diffax"))
    with runtime.as_command(), runtime.stoppable() as signals:
        try:
            shared.check_places(args)
            config = None
            if command.takes_config:
                config = read_config(args.config, overrides, args.plugin)
            command.run(args, config)
        except KeyboardInterrupt as stop:
            return _stopped(args.command, stop)
        except Exception as error:
            if signals:  # it came in the midst of an import, which made it another error
                return _stopped(args.command, runtime.Interrupted("", signals[-1]))
            if not isinstance(error, ValueError | OSError | MemoryError | runtime.Failed):
                raise
            return _failed(args.command, error)
    return 0


def _stopped(name: str, stop: KeyboardInterrupt) -> int:
    status = getattr(stop, "exit_status", 128 + signal.SIGINT)
    said = str(stop) or runtime.WORDS[status - 128]
    if not str(stop) and COMMANDS[name].takes_config:
        said += ": the same command goes on from what was saved, if anything was"
    print(f"diffax {name}: {said}", file=sys.stderr)
    return status


def _failed(command: str, error: Exception) -> int:
    print(f"diffax {command}: {one_line(str(error))}", file=sys.stderr)
    return 1


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words but --config.KEY=VALUE, and those; --config.KEY VALUE is one too."""
    others, overrides = [], []
    rest = iter(words)
    word = next(rest, None)
    while word is not None:
        following = next(rest, None)
        if not word.startswith("--config."):
            others.append(word)
        elif "=" in word or following is None or following.startswith("--"):
            overrides.append(word)
        else:
            overrides.append(f"{word}={following}")
            following = next(rest, None)
        word = following
    return others, overrides
