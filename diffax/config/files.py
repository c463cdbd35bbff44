"""Config files: Python with a `get_config()`, run with errors that name the line at fault."""

from __future__ import annotations

import json
import os

from ml_collections import ConfigDict, FrozenConfigDict

from diffax import plugins


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
    config = plugins.guarded(os.fspath(plugin.path), get_config)
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config() returned {type(config).__name__}; it must return the ConfigDict"
            " that diffax.config.default_config() made"
        )
    config = ConfigDict(config) if isinstance(config, FrozenConfigDict) else config
    if plugin.registers:
        add_plugins(config, plugin.name)
    return config


def add_plugins(config: ConfigDict, *names: str) -> None:
    """Puts plugins before those that a config has."""
    config.plugins = tuple(dict.fromkeys([*names, *config.get("plugins", ())]))


def _is_json(source: bytes) -> bool:
    try:
        return isinstance(json.loads(source), dict | list)
    except (ValueError, RecursionError):
        return False
