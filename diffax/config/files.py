"""Config files: Python with a `get_config()`, run with errors that name the line at fault."""

from __future__ import annotations

import json
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict


def read_file(path: str) -> ConfigDict:
    """The config that a file's `get_config()` returns; its keys and values are not checked yet.

    Raises:
      ValueError: no such file, not Python, an error in it, no `get_config`, or one that doesn't
        return a ConfigDict; one sentence, with the line of the file.
    """
    module = run_file(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{path} has no function get_config(), which returns the config")
    config = _guarded(path, get_config)
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config() returned {type(config).__name__}; it must return the ConfigDict"
            " that diffax.config.default_config() made"
        )
    return ConfigDict(config) if isinstance(config, FrozenConfigDict) else config


def run_file(path: str) -> types.ModuleType:
    """The module that a file of Python makes.

    Raises:
      ValueError: no such file, not Python, or an error in it; one sentence, with its line.
    """
    try:
        with open(path, "rb") as file:
            source = file.read()
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; name a file of Python") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: {reason}") from None
    if b"\0" in source:
        raise ValueError(f"{path} is a binary file, not Python")
    if _is_json(source):
        raise ValueError(
            f"{path} is JSON; it must be Python, with a function get_config(), which may return"
            " diffax.config.from_json(text)"
        )
    module = types.ModuleType("diffax_config_file", f"The file {path}.")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look their module up

    def run() -> None:
        exec(compile(source, path, "exec"), vars(module))

    _guarded(path, run)
    return module


def _guarded(path: str, run: Callable[[], Any]) -> Any:
    """What a function gives, with an error in a file of the user's told in one sentence."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        where = f", line {lines[-1]}" if lines and lines[-1] else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        said = " ".join(str(said).split()) or "no message"
        raise ValueError(f"{path}{where}: {type(error).__name__}: {said}") from None


def _is_json(source: bytes) -> bool:
    try:
        return isinstance(json.loads(source), dict | list)
    except (ValueError, RecursionError):
        return False
