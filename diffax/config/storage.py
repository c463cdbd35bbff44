"""Configs as JSON text, and the differences between two of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from diffax.config.defaults import default_config


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> value, tuples for sequences; sections without keys are left out."""
    leaves = flatten_dict(config.to_dict(), sep=".")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in leaves.items()}


def to_json(config: ConfigDict) -> str:
    """The config as JSON; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=1)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote; keys that are new since then have their defaults.

    Raises:
      ValueError: the text isn't JSON, or has a key or a value that a config doesn't take.
    """
    config = default_config()
    try:
        written = json.loads(text)
        config.update(written)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a saved config ({type(error).__name__}: {error})") from None
    return config


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value), for every key in which the two differ."""
    before, after = flat(old), flat(new)
    keys = sorted(before.keys() | after.keys())
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with some dotted keys set.

    Raises:
      ValueError: a key that does not exist, or a value of a wrong type.
    """
    config = from_json(to_json(config))
    try:
        config.update_from_flattened_dict(dict(values))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(str(error)) from None
    return config
