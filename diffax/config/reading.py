"""Keys and values of a config as they are written in the flags of a command."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from diffax.config.defaults import Key, keys
from diffax.registry import nearest


def find(key: str) -> Key:
    """The key of that dotted name.

    Raises:
      ValueError: there is none, or it is a section.
    """
    known = keys()
    if key in known:
        return known[key]
    if key and (members := members_of(key, known)):
        raise ValueError(f"{key} is a section; name one of its keys, {', '.join(members)}")
    raise ValueError(unknown(key, known))


def under(name: str, known: Iterable[str]) -> list[str]:
    """The dotted keys that a name stands for: itself, or all of a section, of "" all.

    Raises:
      ValueError: no key or section has that name.
    """
    known = list(known)
    found = [key for key in known if not name or key == name or key.startswith(f"{name}.")]
    if not found:
        raise ValueError(unknown(name, known))
    return found


def unknown(key: str, known: Iterable[str]) -> str:
    """The sentence on a key that isn't among those known: what is near, what its section has."""
    known = list(known)
    if key and (members := members_of(key, known)):
        return f"config.{key} is a section of keys, and no value: {', '.join(members)}"
    section, _, last = key.rpartition(".")
    if section in known:
        return f"config has no key {key!r}: {section} is a key, not a section"
    members = members_of(section, known)
    if not members:
        return unknown(section, known)
    prefix = f"{section}." if section else ""
    # Of what lies deeper in the section too, as model.unet.channels of model.channels.
    inside = {k: k.rpartition(".")[2] for k in known if section and k.startswith(prefix)}
    near = nearest(last, [*members, *inside.values()], cutoff=0.7) or last
    meant = (
        [prefix + near] if near in members else [k for k, name in inside.items() if name == near]
    )
    meant = meant or [k for k in known if k.rpartition(".")[2] == last]
    hint = f" (did you mean {' or '.join(meant)}?)" if meant else ""
    return f"config has no key {key!r}{hint}; {section or 'the top level'} has {', '.join(members)}"


def members_of(section: str, known: Iterable[str]) -> list[str]:
    """The names of the keys and sections right under a section; of "", those at the top."""
    prefix = f"{section}." if section else ""
    found = (key.removeprefix(prefix) for key in known if key.startswith(prefix))
    return list(dict.fromkeys(name.partition(".")[0] for name in found))


def check_kind(key: str, value: Any) -> None:
    """Raises ValueError, in a sentence, unless there is that key, for values of that type."""
    known = keys()
    if key not in known:
        raise ValueError(unknown(key, known))
    kind = known[key].kind
    if not kind.holds(value):
        raise ValueError(
            f"config.{key} is {value!r}, of type {type(value).__name__}; it must be of type {kind}"
        )


def read(key: str, word: str) -> Any:
    """The value of a key that a word stands for.

    Raises:
      ValueError: no such key, or the word stands for none of its values.
    """
    kind = find(key).kind
    try:
        return kind.read(word)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
    """Sets keys of a config in place, as KEY=VALUE says, in this order: the last one holds.

    Raises:
      ValueError: another form, no such key, or no value of its type.
    """
    for text in assignments:
        key, equals, word = text.partition("=")
        try:
            if not equals and find(key).kind.type is not bool:
                raise ValueError("must read KEY=VALUE")
            _set(config, key, read(key, word if equals else "true"))
        except ValueError as error:
            raise ValueError(f"--config.{text}: {error}") from None


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    node = config
    for section in sections:
        node = node.get(section)
        if not isinstance(node, ConfigDict):
            path = ".".join(sections)
            raise ValueError(f"config.{path} is missing: start from diffax.config.default_config()")
    with node.unlocked(), node.ignore_type():
        node[last] = value
