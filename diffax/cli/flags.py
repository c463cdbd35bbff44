"""The parser of the command line, and the types of its flags: every error is one sentence."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from diffax.registry import suggestion


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with what is near where a word is misspelt."""

    def __init__(self, **settings: Any):
        super().__init__(**settings, allow_abbrev=False)
        self.commands: dict[str, Parser] = {}

    def add_subparsers(self, **settings: Any) -> Any:
        """As any parser does; what is added is in `commands` too."""
        action = super().add_subparsers(**settings)
        self.commands = action.choices
        return action

    def error(self, message: str) -> NoReturn:
        """Ends with status 2 and the message in one line."""
        self.exit(2, f"{self.prog}: {one_line(message)}; {self.prog} --help tells more\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As any parser does, but for a value "--", of which argparse makes an empty list."""
        for word in args or ():
            if word.startswith("--") and word.endswith("=--"):
                self.error(f"{word}: -- is no value")
        return super().parse_known_args(args, namespace)

    def flags(self) -> list[str]:
        """All flags, those of `commands` too."""
        found = dict.fromkeys(self._option_string_actions)
        for command in self.commands.values():
            found |= dict.fromkeys(command.flags())
        return list(found)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Ends as `error` does if one of the words is a flag that there isn't."""
        known = self.flags()
        for word in words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in ("--", *known):
                hint = suggestion(flag, known) or f": the flags are {', '.join(known)}"
                self.error(f"no flag {flag}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint, allowed = suggestion(value, action.choices), ", ".join(action.choices)
            raise argparse.ArgumentError(action, f"{value!r}{hint}: allowed are {allowed}")


def one_line(text: str) -> str:
    """A text with what would break its line, or can't be shown, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of a flag that is a whole number from `least` to `most`."""
    return _ranged(int, lambda value: least <= value, f"at least {least}", most)


def number(above: float, most: float) -> Callable[[str], float]:
    """The type of a flag that is a number above `above`, up to `most`."""
    return _ranged(float, lambda value: above < value, f"above {above:g}", most)


def _ranged(kind: type, holds: Callable[[Any], bool], words: str, most: float) -> Callable:
    def read(text: str) -> Any:
        from diffax.config.kinds import Kind

        def value() -> Any:
            found = Kind(kind).read(text)
            for fits, limit in ((holds(found), words), (found <= most, f"at most {most:g}")):
                if not fits:
                    raise ValueError(f"must be {limit}")
            return found

        return _refusing(text, value)

    return read


def words(text: str) -> list[str]:
    """The type of a flag that is a list of names, each once: A,B,..."""
    found = [word.strip() for word in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: must read A,B,..., each once")
    return found


def of_key(key: str) -> Callable[[str], Any]:
    """The type of a flag that sets a key of the config: one of its values."""

    def read(text: str) -> Any:
        from diffax.config import checks, reading

        def value() -> Any:
            found = reading.read(key, text)
            checks.check_value(key, found)
            return found

        return _refusing(text, value)

    return read


def _refusing(text: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
