"""What several commands share: how a command is described, the config, the sampling flags."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags


class Command(NamedTuple):
    """A command: what it says of itself, its flags, and what it does with them."""

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, ConfigDict | None], None]
    takes_config: bool = False


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


def add_workdir(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help=f"directory {text}")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keys of config.sampling with the values of the flags that were given, all but the steps."""
    found = {
        key: vars(args)[flag.replace("-", "_")] for flag, (key, _, _) in SAMPLING_FLAGS.items()
    }
    return {k: v for k, v in found.items() if v is not None and k != "num_steps"}


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


def _interval(text: str) -> tuple[float, ...]:
    return tuple(float(end) for end in text.split(","))


def true_or_false(text: str) -> bool:
    from diffax.config import reading

    return reading.read(text, bool)


# flag -> key of config.sampling; the flag's type is that of the key's values
SAMPLING_FLAGS: dict[str, tuple[str, Callable, str]] = {
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
        true_or_false,
        "true: the last step goes to x0, with order 1; false: to the clean end, with full order",
    ),
    "guidance-scale": ("guidance_scale", float, "of a class-conditional network; 1 is off"),
    "guidance-interval": ("guidance_interval", _interval, "LOW,HIGH in log-SNR, guided alone"),
    "guidance-rescale": ("guidance_rescale", float, "share of the deviation brought back"),
}


def add_sampling_flags(parser: argparse.ArgumentParser, **others: Any) -> None:
    """The flags of `SAMPLING_FLAGS`; `others`: flag -> what to add it with instead."""
    group = parser.add_argument_group("sampling (default: as in the run's config)")
    for flag, (_, kind, text) in SAMPLING_FLAGS.items():
        group.add_argument(f"--{flag}", **others.get(flag, dict(type=kind, help=text)))
