"""Configs as JSON text and as files of Python, and the differences between two of them."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, FrozenConfigDict

from diffax import models, plugins
from diffax.config import defaults, reading
from diffax.config.defaults import default_config


def flat(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, tuples for sequences; sections without keys are left out."""
    nested = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    leaves = flatten_dict(nested, sep=".")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in leaves.items()}


def to_json(config: ConfigDict) -> str:
    """The config as JSON; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=1)


def from_json(text: str, kept: str | os.PathLike | None = None) -> ConfigDict:
    """The config that `to_json` wrote, in today's form; see `upgraded`.

    Its plugins are loaded, which runs their code.

    Args:
      kept: the folder that holds copies of them; see `diffax.plugins`.

    Raises:
      ValueError: the text isn't JSON, or has a key or a value that a config doesn't take; or a
        plugin can't be loaded.
    """
    written = _written(text)
    names = [plugins.load(name, kept, check=defaults.keys).name for name in written["plugins"]]
    written = upgraded(written)
    _check_kinds(written)
    config = default_config()
    try:
        config.update(written | {"plugins": tuple(names)})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a saved config ({type(error).__name__}: {error})") from None
    return config


def saved(text: str) -> dict[str, Any]:
    """What `to_json` wrote, as `differences` takes it; nothing is loaded, and no plugin is run.

    Raises:
      ValueError: the text isn't JSON, or no config.
    """
    return {**flat(default_config()), **flat(upgraded(_written(text)))}


def upgraded(written: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config as it was saved, or some sections of one, in today's form.

    Fields of networks lay side by side in "model" once: those of the chosen network go to its own
    section. None stood for the network's default. Fields of other networks are left out there, and
    so are sections of networks that are neither chosen nor registered.
    """
    model = written.get("model")
    if not (isinstance(model, Mapping) and "name" in model):
        return dict(written)
    name, known = model["name"], defaults.keys()
    fields = {network: defaults.model_fields(network) for network in models.names()}
    common, own = {}, {}
    for key, value in model.items():
        if isinstance(value, Mapping):
            if key == name or key in fields:
                common[key] = value
        elif key in fields.get(name, ()):
            own |= {} if value is None else {key: value}
        elif f"model.{key}" in known or not any(key in of for of in fields.values()):
            common[key] = value
    return {**written, "model": common | ({name: own | common.get(name, {})} if own else {})}


def relevant(config: ConfigDict, networks: Iterable[str] = ()) -> dict[str, Any]:
    """What the runs of a config depend on: the config as nested dicts, without the fields of other
    networks than its own and those named `networks`."""
    nested = config.to_dict()
    kept = {config.model.name, *networks}
    model = {k: v for k, v in nested["model"].items() if not isinstance(v, dict) or k in kept}
    return {**nested, "model": model}


def completed(old: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what `relevant` gave, or of sections of it, in today's form.

    `like`: the same of another config; keys that `old` lacks and this has are at their defaults.
    """
    own, default = flat(upgraded(old)), flat(default_config())
    own = {k: v for k, v in own.items() if defaults.is_relevant(k, own.get("model.name"))}
    return {k: default[k] for k in flat(like) if k in default} | own


def unknown_keys(saved: Mapping[str, Any]) -> list[str]:
    """The keys of `saved` that no config has, with what is registered now."""
    return [key for key in saved if key not in defaults.keys()]


def _check_kinds(written: Mapping[str, Any]) -> None:
    known = defaults.keys()
    sections = {key.rpartition(".")[0] for key in known}
    for key, value in flat(written).items():
        is_of_type = f"not a saved config: {key} is {value!r}, of type {type(value).__name__}; it"
        if key in sections - {""}:
            raise ValueError(f"{is_of_type} is a section of keys")
        if key in known and not known[key].kind.holds(value):
            raise ValueError(f"{is_of_type} must be of type {known[key].kind}")


def _written(text: str) -> dict[str, Any]:
    try:
        written = json.loads(text)
        if not isinstance(written, dict):
            raise TypeError(f"it holds {written!r:.60}, and no keys with values")
        names = written.setdefault("plugins", [])
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError(f"plugins is {names!r}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"not a saved config: {error}") from None
    return written


def load_plugins(config: ConfigDict) -> None:
    """Loads `config.plugins`, in place: each is then named by its code, and a key that it brings,
    and that the config doesn't have yet, has its default.

    Raises:
      ValueError: see `plugins.load`.
    """
    given = config.get("plugins", ())
    if not all(isinstance(name, str) for name in given):  # the check of types says so
        return
    loaded = (plugins.load(name, check=defaults.keys).name for name in given)
    names = tuple(dict.fromkeys(loaded))
    if names != tuple(given):
        config.plugins = names
    known = {*flat(config), *defaults.AT_IMPORT}
    missing = [key for key in defaults.keys() if key not in known and key.split(".")[0] in config]
    reference = default_config() if missing else None
    for name in missing:
        *sections, key = name.split(".")
        node, known = config, reference
        with config.unlocked():
            for section in sections:
                if section not in node:  # of a network
                    node[section] = ConfigDict()
                node, known = node[section], known[section]
            node[key] = known.get_ref(key)


def differences(
    old: ConfigDict | Mapping[str, Any], new: ConfigDict | Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value), for every key in which the two differ.

    Fields of networks count only where both have chosen that network.

    `old`, `new`: a config, or what `saved` gives.
    """
    before, after = flat(old), flat(new)
    name = before.get("model.name")
    network = name if after.get("model.name") == name else None
    keys = (k for k in sorted(before.keys() | after.keys()) if defaults.is_relevant(k, network))
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with some dotted keys set.

    Raises:
      ValueError: a key that does not exist, or a value of a wrong type.
    """
    config = from_json(to_json(config))
    for key, value in values.items():
        reading.check_kind(key, value)
    config.update_from_flattened_dict(dict(values))
    load_plugins(config)
    return config


# --- config files: Python with a get_config() -----------------------------------------------------


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
