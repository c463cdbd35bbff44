"""What several commands share: how a command is described, the config, the sampling flags."""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffax import places, registry
from diffax.cli.flags import Parser, of_key
from diffax.runtime import local_path


class Command(NamedTuple):
    """A command: what it says of itself, its flags, and what it does with them."""

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, ConfigDict | None], None]
    takes_config: bool = False


def read_config(
    path: str, overrides: Sequence[str], given_plugins: Sequence[str] = ()
) -> ConfigDict:
    """The config of a file with `--config.KEY=VALUE` applied; its values are not checked yet.

    Args:
      given_plugins: those of --plugin, which the config has beside its own.

    Raises:
      ValueError: no such file, an error in it or in a plugin, an unknown key or a wrong type.
    """
    from diffax import plugins
    from diffax.config import load_plugins, reading, storage

    names = [plugins.load(given).name for given in given_plugins]
    try:
        config = storage.read_file(path)
    except ValueError as error:
        raise ValueError(f"--config={error}") from None
    names += config.get("plugins", ())
    words = [word.removeprefix("--config.") for word in overrides]
    # Plugins first: they bring keys, which the others may set.
    words.sort(key=lambda word: not word.startswith("plugins="))
    first = sum(word.startswith("plugins=") for word in words)
    reading.override(config, words[:first])
    storage.add_plugins(config, *names)
    load_plugins(config)
    reading.override(config, words[first:])
    return config


def add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python that registers schedules, samplers, networks, data sources, ... of one's own;"
        " repeated for several; a run keeps copies of its plugins",
    )


def load_plugins(words: Sequence[str], command: Command) -> None:
    """Runs the plugins of a command line, and those of the run in its workdir if the command takes
    no config: before the line is read, since flags take what plugins register."""
    from diffax import plugins, runtime

    parser = Parser(prog="diffax", add_help=False)
    add_plugin(parser)
    parser.add_argument("--workdir")
    args, _ = parser.parse_known_args(words)
    kept = args.workdir and not command.takes_config and _has_plugins(args.workdir)
    if args.plugin or kept:
        runtime.start(trains=command.takes_config)  # before any of their code
    for given in args.plugin:
        plugins.load(given)
    if kept:
        from diffax.training import workdir

        workdir.read_config(places.workdir_of(args.workdir))


def _has_plugins(workdir: str) -> bool:
    """Whether a run with plugins lies in a workdir."""
    place = places.path_of(workdir)
    with places.as_os_error(place):
        return (place / "plugins").is_dir() and (place / "config.json").is_file()


def add_workdir(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help=f"directory {text}")


def output(given: str | None, default: Path, *suffixes: str) -> Path:
    """Where a command writes: --out, or else the default; one of `suffixes` at its end is left out.

    What comes after a dot is otherwise part of the name, so that a.v1 and a.v2 are two.

    Raises:
      ValueError: --out names no file.
    """
    path = default if given is None else local_path(given, "--out")
    if given is not None and (given.endswith(("/", os.sep)) or path.name in ("", "..")):
        raise ValueError(f"--out={given}: name a file, not a directory")
    return path.with_suffix("") if path.suffix in suffixes else path


def check_output(*paths: Path) -> None:
    """Before the work: raises ValueError for a file that could not be written at the end.

    It is tried, in directories made for it, and nothing of that is left.
    """
    for path in paths:
        if places.in_bucket(path):
            places.try_to_write(path.parent)
            continue
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} can't be written: it is there already, and is no plain file")
        partial = path.with_name(f".{path.name}.partial")
        missing = [folder for folder in path.parents if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(bytes(4096))
            partial.unlink()
        except OSError as error:
            raise ValueError(f"{path} can't be written ({error.strerror})") from None
        finally:
            for folder in filter(Path.is_dir, missing):
                folder.rmdir()


def check_places(args: argparse.Namespace) -> None:
    """Reads --workdir, which may be of a bucket, and --out, in place.

    Raises:
      ValueError: a place that can't be written to, before any work.
    """
    for name in ("workdir", "out"):
        given = getattr(args, name, None)
        several = given if isinstance(given, list) else [given]
        for path in several:
            if path is not None and name == "workdir":
                places.workdir_of(path, "--workdir")
            elif path is not None:
                local_path(path, f"--{name}")
        found = [path and os.path.expanduser(path) for path in several]
        setattr(args, name, found if isinstance(given, list) else found[0])


def given(args: argparse.Namespace, flags: Iterable[str]) -> dict[str, Any]:
    """Name -> value, of those of the flags that were given."""
    values = {flag.replace("-", "_"): vars(args)[flag.replace("-", "_")] for flag in flags}
    return {name: value for name, value in values.items() if value is not None}


def counts(text: str) -> list[int]:
    """A type for argparse: numbers of steps, N or N,N,..., each once."""
    try:
        found = [of_key("sampling.num_steps")(count) for count in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; it must read N or N,N,...") from None
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: must read N or N,N,..., each once")
    return found


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keys of config.sampling with the values of the flags that were given, all but the steps."""
    found = {key: vars(args)[flag.replace("-", "_")] for flag, (key, _) in sampling_flags().items()}
    return {k: v for k, v in found.items() if v is not None and k != "num_steps"}


def reading(workdir: str) -> Callable[[float], str]:
    """What is said of reading a run that takes long; nothing before, as there may be none."""
    return lambda seconds: f"reading the run in {workdir}: {seconds:.0f} s so far"


def loaded(args: argparse.Namespace) -> Any:
    """The run in --workdir, sampled as the flags say."""
    from diffax import config as config_lib
    from diffax import training

    run = training.load(args.workdir)
    run.config.sampling.update(given_options(args))
    if args.steps is not None:
        run.config.sampling.num_steps = args.steps
    config_lib.validate(run.config)
    return run


# flag -> key of config.sampling, whose values it takes, and what help says
SAMPLING_FLAGS: dict[str, tuple[str, str]] = {
    "steps": ("num_steps", "noise levels visited"),
    "sampler": (
        "sampler",
        "ddim, ddpm, euler, heun, plms, dpm_solver, dpmpp_2s, dpmpp_2m, dpmpp_2m_sde, unipc,"
        " learned or consistency",
    ),
    "grid": ("grid", "which levels are visited (default: those that suit the sampler)"),
    "sampling-schedule": (
        "schedule",
        "sample under this schedule, between the ends of the one trained with",
    ),
    "eta": ("eta", "of ddim: 0 deterministic, 1 ancestral"),
    "order": ("order", "of dpm_solver: 1, 2 or 3"),
    "variance": ("variance", "of ddpm: fixed_small, fixed_large or learned"),
    "clip-x0": ("clip_x0", "bound on every estimate of x0"),
    "dynamic-threshold": ("dynamic_threshold", "quantile of |x0| to clip to, as 0.995"),
    "low-order-finish": (
        "low_order_finish",
        "true: the last step goes to x0, with order 1; false: to the clean end, with full order",
    ),
    "guidance-scale": ("guidance_scale", "of a class-conditional network; 1 is off"),
    "guidance-interval": ("guidance_interval", "LOW,HIGH in log-SNR, guided alone"),
    "guidance-rescale": ("guidance_rescale", "share of the deviation brought back"),
}


def sampling_flags() -> dict[str, tuple[str, str]]:
    """`SAMPLING_FLAGS`, and --sampling.KEY for each option of a sampler that is registered."""
    if not registry.added():
        return SAMPLING_FLAGS
    from diffax.config.defaults import sampler_keywords

    known = {key for key, _ in SAMPLING_FLAGS.values()}
    own = {key: found for key, found in sampler_keywords().items() if key not in known}
    return SAMPLING_FLAGS | {
        f"sampling.{key}": (key, own[key].meaning or "its option") for key in own
    }


def add_sampling_flags(parser: argparse.ArgumentParser, **others: Any) -> None:
    """Those of `sampling_flags`; `others`: flag -> what to add it with instead."""
    group = parser.add_argument_group("sampling (default: as in the run's config)")
    for flag, (key, text) in sampling_flags().items():
        own = dict(type=of_key(f"sampling.{key}"), help=text)
        group.add_argument(f"--{flag}", **others.get(flag, own))
