"""Config files: Python with a `get_config()`, run with errors that name the line at fault."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

import ml_collections
from ml_collections import ConfigDict, FrozenConfigDict

from diffax import plugins
from diffax.config import defaults, reading


def read_file(path: str) -> ConfigDict:
    """The config that a file's `get_config()` returns; its keys and values are not checked yet.

    A file that registers something is one of the config's plugins.

    Raises:
      ValueError: no such file, not Python, an error in it, no `get_config`, or one that doesn't
        return a ConfigDict; one sentence, with the line of the file.
    """
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if _is_json(file.read()):
                raise ValueError(
                    f"{path} is JSON; it must be Python, with a function get_config(), which may"
                    " return diffax.config.from_json(text)"
                )
    plugin = plugins.run_config(path)
    get_config = getattr(plugin.module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{path} has no function get_config(), which returns the config")
    config = plugins.guarded(os.fspath(plugin.path), lambda: _called(get_config))
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config() returned {type(config).__name__}; it must return the ConfigDict"
            " that diffax.config.default_config() made"
        )
    config = ConfigDict(config) if isinstance(config, FrozenConfigDict) else config
    if plugin.registers:
        add_plugins(config, plugin.name)
    return config


def _called(get_config: Callable[[], Any]) -> Any:
    """What it gives; a value that a key can't have is named with its key.

    Raises:
      ValueError: such a value; else what the function raises.
    """
    try:
        return get_config()
    except (TypeError, AttributeError) as error:
        said = _wrong_value(error)
        if not said:
            raise
        raise ValueError(said).with_traceback(error.__traceback__) from None


def _wrong_value(error: Exception) -> str:
    """The sentence on the value that a ConfigDict has refused; "" if the error is another one.

    ml_collections names neither the section nor the type that is needed, but they are to be seen in
    the innermost call of it that sets a key.
    """
    theirs = os.path.dirname(ml_collections.__file__)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        node, key = frame.f_locals.get("self"), frame.f_locals.get("key")
        inside = frame.f_code.co_filename.startswith(theirs)
        if inside and isinstance(node, ConfigDict) and key in node:
            return _refusal(node, key, frame.f_locals.get("value"))
    return ""


def _refusal(node: ConfigDict, key: str, value: Any) -> str:
    """Why a section's key can't have a value; "" where it is no section of a config."""
    known = defaults.keys()
    members = {s: reading.members_of(s, known) for s in {k.rpartition(".")[0] for k in known}}
    fitting = [section for section, names in members.items() if {*names} <= {*node}]
    section = max(fitting, key=lambda section: len(members[section]), default="")
    try:
        reading.check_kind(f"{section}.{key}".lstrip("."), value)
    except ValueError as refused:
        return str(refused)
    return ""


def add_plugins(config: ConfigDict, *names: str) -> None:
    """Puts plugins before those that a config has."""
    config.plugins = tuple(dict.fromkeys([*names, *config.get("plugins", ())]))


def _is_json(source: bytes) -> bool:
    try:
        return isinstance(json.loads(source), dict | list)
    except (ValueError, RecursionError):
        return False
