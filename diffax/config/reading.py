"""Keys and values of a config as they are written in the flags of a command."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def kind_of(config: ConfigDict, key: str) -> type:
    """The type of the values of a dotted key.

    Raises:
      ValueError: the config has no such key, or it is a section.
    """
    *sections, last = key.split(".")
    try:
        for name in sections:
            config = config[name]
        kind, value = config.get_type(last), config[last]
    except (KeyError, AttributeError, TypeError):
        raise ValueError(f"the config has no key {key!r}") from None
    if issubclass(kind, ConfigDict):
        raise ValueError(f"{key} is a section; name one of {', '.join(value)}")
    return kind


def split(text: str) -> list[str]:
    """What stands between the commas that are not within brackets."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words]


def read(word: str, kind: type) -> Any:
    """The value of that type that a word stands for; None of "None", whatever the type.

    Raises:
      ValueError: it stands for none.
    """
    # Whether the key may be None is for the config's own check to say.
    return None if word == "None" else _READERS.get(kind, kind)(word)


def true_or_false(word: str) -> bool:
    """A bool, in small or capital letters.

    Raises:
      ValueError: another word.
    """
    if word.lower() not in ("true", "false"):
        raise ValueError(f"{word!r} must be true or false")
    return word.lower() == "true"


def _sequence(word: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(word)
    except SyntaxError as error:
        raise ValueError(f"{word!r}: {error}") from None
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"{word!r} must be a sequence")
    return tuple(value)


_READERS: dict[type, Callable[[str], Any]] = {
    bool: true_or_false,
    tuple: _sequence,
    list: _sequence,
}
