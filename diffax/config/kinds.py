"""The types of a config's values: which Python values are of one, and how a word is read as one."""

import contextlib
import inspect
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """The type of a key's values.

    Attributes:
      type: int, float, bool, str or tuple.
      element: of a tuple, the type of its entries; None: any of the others.
      optional: None is a value too.
    """

    type: type
    element: type | None = None
    optional: bool = False

    def __str__(self) -> str:
        """As in "int", "float or None" and "tuple of int"."""
        of = f" of {self.element.__name__}" if self.element else ""
        return f"{self.type.__name__}{of}{' or None' if self.optional else ''}"

    def words(self) -> str:
        """What must be written, as "a whole number"."""
        if self.type is tuple:
            what = f"{_MANY[self.element]} in brackets, as {_EXAMPLES[self.element]}"
        else:
            what = _ONE[self.type]
        return what + (", or None" if self.optional else "")

    def holds(self, value: Any) -> bool:
        """Whether a Python value is of this kind: a whole number is a float too, a bool no number,
        and a list a tuple."""
        if value is None:
            return self.optional
        if self.type is not tuple:
            return _is(value, self.type)
        kinds = [self.element] if self.element else list(_ONE)
        return isinstance(value, tuple | list) and all(
            any(_is(entry, kind) for kind in kinds) for entry in value
        )

    def read(self, word: str) -> Any:
        """The value that a word stands for; None of "None", if that is one.

        Raises:
          ValueError: it stands for none; the message says what is taken.
        """
        if word.strip() == "None" and self.optional:
            return None
        try:
            if word.strip() == "None":
                raise ValueError(word)
            return self._sequence(word.strip()) if self.type is tuple else _READERS[self.type](word)
        except ValueError:
            raise ValueError(f"takes {self.words()}") from None

    def _sequence(self, word: str) -> tuple[Any, ...]:
        bracketed = word[:1] + word[-1:] in ("()", "[]")
        inner = split(word[1:-1] if bracketed else word)
        if not bracketed and len(inner) < 2:
            raise ValueError(word)  # one value alone
        if bracketed and inner[-1] == "":
            inner.pop()  # (), or the comma of (1,)
        return tuple(_entry(entry, self.element) for entry in inner)


def kind_of(annotation: Any, default: Any = None) -> Kind | None:
    """The kind of an annotation as `int`, `float | None` or `Sequence[int]`, or else of a default;
    None if that is no type of a config's values."""
    optional = default is None
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        given = typing.get_args(annotation)
        optional = optional or types.NoneType in given
        annotation, *others = [a for a in given if a is not types.NoneType]
        annotation = None if others else annotation
    element, *others = [a for a in typing.get_args(annotation) if a is not ...] or [None]
    annotation = typing.get_origin(annotation) or annotation
    if annotation in (None, inspect.Parameter.empty, Any):
        annotation = type(default)
    if annotation in _ONE:
        return Kind(annotation, None, optional)
    if annotation in (tuple, list, Sequence):
        if element is None and default:
            element = type(default[0])
        return Kind(
            tuple, element if element in _ONE and {*others} <= {element} else None, optional
        )
    return None


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


_ONE = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_MANY = {bool: _ONE[bool], int: "whole numbers", float: "numbers", str: "words", None: "values"}
_EXAMPLES = {bool: "(true,false)", int: "(1,2)", float: "(-5,5)", str: "(a,b)", None: "(1,2)"}


def _is(value: Any, kind: type) -> bool:
    accepted = (float, int) if kind is float else kind
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def _whole(word: str) -> int:
    # Python's own reader takes the digits of every script too.
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,400}\s*", word):
        raise ValueError(word)
    return int(word)


def _number(word: str) -> float:
    value = float(word) if re.fullmatch(r"\s*[-+.0-9a-zA-Z]+\s*", word) else math.nan
    if math.isnan(value):
        raise ValueError(word)
    return value


def _true_or_false(word: str) -> bool:
    if word.strip().lower() not in ("true", "false"):
        raise ValueError(word)
    return word.strip().lower() == "true"


_READERS = {bool: _true_or_false, int: _whole, float: _number, str: str}


def _entry(word: str, kind: type | None) -> Any:
    """An entry of a tuple, of which text may stand in quotes."""
    if kind is None:
        return _of_any_kind(word)
    if kind is not str:
        return _READERS[kind](word)
    word = word[1:-1] if len(word) > 1 and word[0] == word[-1] in ("'", '"') else word
    if not word or re.search(r"[()\[\]'\"]", word):
        raise ValueError(word)
    return word


def _of_any_kind(word: str) -> Any:
    for kind in (bool, int, float):
        with contextlib.suppress(ValueError):
            return _READERS[kind](word)
    return _entry(word, str)
