"""Tables of names: what a config, a flag or a call may name, and what one registers oneself.

SAMPLERS = Registry("sampler", {"ddim": ddim, "ddpm": ddpm})
SAMPLERS.register("mine", mine)
SAMPLERS.lookup("dim")  # ValueError: sampler='dim' (did you mean ddim?): allowed are ddim, ...
"""

import ast
import difflib
import hashlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

# Of a name: what can be written in a list on the command line, and is no value by itself.
_NAME = re.compile(r"(?!None$|True$|False$)[A-Za-z_][\w.+-]*")
# The types of the arguments that become keys of a config.
KEY_TYPES = (bool, int, float, str, tuple)


class _Added(NamedTuple):
    """What `Registry.register` added: to which table, and the module and the file that asked."""

    table: "Registry"
    name: str
    module: str
    file: str | None


_ADDED: list[_Added] = []
_CHANGES: list[int] = [0]  # how often any table has changed


class Taken(ValueError):
    """A name is registered already, for something else."""


class Registry(dict[str, T]):
    """A table from names to entries, read as any mapping; `register` adds to it.

    Args:
      kind: what an entry is, as messages call it: "sampler".
      entries: those of diffax itself.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]):
        super().__init__(entries)
        self.kind = kind

    def __setitem__(self, name: str, entry: T) -> None:
        super().__setitem__(name, entry)
        _CHANGES[0] += 1

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        _CHANGES[0] += 1

    def register(self, name: str, entry: T) -> None:
        """Adds an entry. What a copy of the same file has registered stays as it is; a notebook may
        register anew what it has registered.

        Raises:
          ValueError: the name is taken by another entry, or is none: letters, digits and _.+- that
            begin with a letter or _.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"a {self.kind} can't be named {name!r}: a name is of letters, digits and _.+-, and"
                " begins with a letter or _"
            )
        if name in self:
            if self[name] == entry:
                return
            owner = next((a for a in _ADDED if a.table is self and a.name == name), None)
            if owner and _is_copy(owner.file, _asking()[1]):
                return
            if owner and (owner.module, owner.file) == _asking() == ("__main__", None):
                self[name] = entry  # a cell of a notebook that is run again
                return
            by = f", by {owner.file or owner.module}" if owner else ""
            raise Taken(f"a {self.kind} named {name!r} is registered already{by}")
        self[name] = entry
        _ADDED.append(_Added(self, name, *_asking()))

    def names(self) -> tuple[str, ...]:
        """The names, in the order in which they came."""
        return tuple(self)

    def lookup(self, name: str) -> T:
        """The entry of that name.

        Raises:
          ValueError: there is none; the sentence has the nearest name and all that there are.
        """
        if not isinstance(name, str) or name not in self:
            raise ValueError(unknown(self.kind, name, self))
        return self[name]


class Constructors(Registry[Callable[..., T]]):
    """A table of functions whose arguments are keys of a config, those of one name one key.

    Args:
      kind, entries: as of any table.
      no_keys: arguments that are no keys of a config.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, Callable[..., T]], no_keys: Iterable[str] = ()
    ):
        super().__init__(kind, entries)
        self.no_keys = tuple(no_keys)

    def register(self, name: str, entry: Callable[..., T]) -> None:
        """As of any table; ValueError too if the type of an argument isn't known, or is another one
        than that of another entry's argument of the same name."""
        shared_arguments(self.kind, {**self, name: entry}, self.no_keys)
        super().register(name, entry)

    def key_types(self) -> dict[str, type]:
        """The arguments of all entries that are keys of a config, with their types."""
        return shared_arguments(self.kind, self, self.no_keys)

    def build(self, name: str, **arguments: Any) -> T:
        """What the entry of that name makes of arguments.

        Raises:
          ValueError: an unknown name or argument, of which the message lists the allowed ones; or
            an argument without a default that isn't given.
        """
        entry = self.lookup(name)
        check_arguments(f"{self.kind} {name!r}", entry, arguments)
        return entry(**arguments)


def unknown(what: str, given: Any, choices: Iterable[str]) -> str:
    """The sentence on a name that isn't among the choices."""
    choices = list(choices)
    return f"{what}={given!r}{suggestion(given, choices)}: allowed are {', '.join(choices)}"


def suggestion(word: Any, choices: Iterable[str]) -> str:
    """As " (did you mean cosine?)", of what a misspelt word is nearest to; "" if there is none."""
    near = nearest(word, choices)
    return f" (did you mean {near}?)" if near else ""


def nearest(word: Any, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that a word is nearest to, if any is; `cutoff`: of `difflib.get_close_matches`.

    Capital letters, and - for _, make no difference.
    """
    plain = {_plain(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def _plain(word: Any) -> str:
    return str(word).lower().replace("-", "_")


def code_digest(source: bytes) -> str:
    """128 bits of a plugin's code, in 32 digits, without the lines of its get_config()."""
    lines = source.splitlines(keepends=True)
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):  # it says so when it is run
        body = []
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "get_config":
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            lines[first - 1 : node.end_lineno] = [b""] * (node.end_lineno - first + 1)
    return hashlib.sha256(b"".join(lines)).hexdigest()[:32]


def version() -> int:
    """A number that changes whenever a table does: what was made of the tables is out of date."""
    return _CHANGES[0]


def added() -> tuple[tuple[str, str], ...]:
    """(kind, name) of all that was registered beyond diffax's own, in this order."""
    return tuple((entry.table.kind, entry.name) for entry in _ADDED)


def added_by(module: str) -> tuple[tuple[str, str], ...]:
    """Those of `added` that the module of that name registered."""
    return tuple((entry.table.kind, entry.name) for entry in _ADDED if entry.module == module)


def forget(entries: Iterable[tuple[str, str]]) -> None:
    """Takes some of `added` out of their tables."""
    gone = set(entries)
    for entry in list(_ADDED):
        if (entry.table.kind, entry.name) in gone:
            if entry.name in entry.table:
                del entry.table[entry.name]
            _ADDED.remove(entry)


def _is_copy(one: str | None, other: str | None) -> bool:
    """Whether two files are different ones with the same code."""
    if not (one and other) or one == other or not all(map(os.path.isfile, (one, other))):
        return False
    return code_digest(Path(one).read_bytes()) == code_digest(Path(other).read_bytes())


def _asking() -> tuple[str, str | None]:
    """The name and the file of the module outside diffax that is registering something."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "diffax":
        frame = frame.f_back
    return frame.f_globals.get("__name__", ""), frame.f_globals.get("__file__")


def arguments(what: str, function: Callable, leave_out: Iterable[str] = ()) -> dict[str, type]:
    """The arguments of a function that can be keys of a config: name -> type.

    The type is that of the annotation (`int | None` counts as int), or else of the default. An
    argument of a type that no key has (an array, a function) is left out where it has a default.

    Args:
      what: how messages call the function: "schedule 'power'".
      leave_out: names of arguments that are no keys.

    Raises:
      ValueError: it can't be called by keywords alone, or the type of an argument isn't known.
    """
    if not callable(function):
        raise ValueError(f"{what} must be a function or a class, and is {function!r}")
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in leave_out:
            continue
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise ValueError(f"{what} takes {parameter}: each of its arguments needs a name")
        kind = _type_of(what, function, parameter)
        if kind in KEY_TYPES:
            found[name] = kind
        elif parameter.default is parameter.empty or parameter.default is None:
            raise ValueError(
                f"{what}: the type of its argument {name!r} isn't known; give it a default, or"
                f" annotate it with one of {', '.join(key.__name__ for key in KEY_TYPES)}"
            )
    return found


def check_arguments(what: str, function: Callable, given: Mapping[str, Any]) -> None:
    """Raises ValueError, in a sentence, for an argument that a function doesn't take, or one that
    it needs and isn't given."""
    parameters = inspect.signature(function).parameters
    for name in given:
        if name not in parameters:
            raise ValueError(
                f"{what} has no argument {name!r}{suggestion(name, parameters)}; allowed are"
                f" {', '.join(parameters) or 'none'}"
            )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise ValueError(f"{what} needs a value for its argument {name!r}")


def require(what: str, made: Any, kind: str, *attributes: str) -> Any:
    """`made`, which a function that is registered gave; ValueError if it isn't of that kind, and so
    lacks one of the attributes."""
    for name in attributes:
        if not hasattr(made, name):
            raise ValueError(
                f"{what}: its function gave {type(made).__name__}, which is no {kind} and has no"
                f" {name!r}"
            )
    return made


def shared_arguments(
    kind: str, table: Mapping[str, Callable], leave_out: Iterable[str] = ()
) -> dict[str, type]:
    """`arguments` of all functions of a table, whose arguments of one name are one key.

    Raises:
      ValueError: as `arguments`; or two functions have arguments of one name and different types.
    """
    found: dict[str, tuple[str, type]] = {}
    for name, function in table.items():
        for argument, type_ in arguments(f"{kind} {name!r}", function, leave_out).items():
            owner, before = found.setdefault(argument, (name, type_))
            if before is not type_:
                raise ValueError(
                    f"{kind} {name!r}: its argument {argument!r} is of type {type_.__name__}, that"
                    f" of {owner!r} of type {before.__name__}, and the two are one key of a config:"
                    " call it otherwise"
                )
    return {argument: type_ for argument, (_, type_) in found.items()}


def annotation_of(what: str, function: Callable, parameter: inspect.Parameter) -> Any:
    """The annotation of a function's (or a class's) parameter, of which a text is evaluated.

    Raises:
      ValueError: it can't be.
    """
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    inner = inspect.unwrap(function)  # of a module with `from __future__ import annotations`
    scope = getattr(inner, "__globals__", None) or vars(inspect.getmodule(inner) or typing)
    try:
        return eval(annotation, dict(scope))
    except Exception as error:
        raise ValueError(
            f"{what}: the annotation of its argument {parameter.name!r} can't be read ({error})"
        ) from None


def _type_of(what: str, function: Callable, parameter: inspect.Parameter) -> Any:
    annotation = annotation_of(what, function, parameter)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = set(typing.get_args(annotation)) - {types.NoneType}
        annotation = others.pop() if len(others) == 1 else parameter.empty
    annotation = typing.get_origin(annotation) or annotation
    unknown_default = parameter.default is parameter.empty or parameter.default is None
    return annotation if annotation in KEY_TYPES or unknown_default else type(parameter.default)
