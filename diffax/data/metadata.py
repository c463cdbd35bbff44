"""metadata.jsonl: what is known of each image of a folder beside its pixels.

One line for each image, a JSON object, as image folders of Hugging Face have it:

    {"file_name": "a.png", "text": "a red heart"}

`file_name` is the image's path from the folder on. `text` is its caption, `label` its class, a word
or a whole number from 0, and `conditioning_file_name` the path of an image that controls it, such
as a mask. A key that one line has every line has. Other keys are passed over.
"""

import json
import pathlib
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

NAME = "metadata.jsonl"


class Entry(NamedTuple):
    """What a line says of an image."""

    text: str | None = None
    label: int | str | None = None
    control: str | None = None  # its path


# key of a line -> the field of `Entry`, what it may be, and the words for that
_KEYS = {
    "text": ("text", str, "text"),
    "label": ("label", (int, str), "a word or a whole number"),
    "conditioning_file_name": ("control", str, "a path"),
}


def read(root: pathlib.Path) -> dict[str, Entry]:
    """Path of an image within the folder -> what its line says; {} without a metadata.jsonl.

    Raises:
      ValueError: a line that isn't of this form, names a file twice or one that isn't there, or
        lacks a key that the first line has; names the file and the line.
    """
    path = root / NAME
    if not path.is_file():
        return {}
    try:
        # A caption may hold what `splitlines` takes for the end of a line. Windows' mark may begin.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read ({error}).") from None
    found: dict[str, Entry] = {}
    first: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        name, values = _parsed(line, where)
        for file in filter(None, (name, values.get("conditioning_file_name"))):
            if not (root / file).is_file():
                raise ValueError(f"{where}: there is no file {file!r} in the folder.")
        if name in found:
            raise ValueError(f"{where}: {name!r} is named a second time.")
        if not found:
            first = set(values)
        if differing := sorted(first ^ set(values)):
            has, lacks = ("the first line", "this one")
            if differing[0] in values:
                has, lacks = lacks, has
            raise ValueError(f"{where}: {has} has {differing[0]!r}, and {lacks} does not.")
        found[name] = Entry(**{_KEYS[key][0]: value for key, value in values.items()})
    if not found:
        raise ValueError(f"{path} names no image: it must hold a line for each.")
    return found


def _parsed(line: str, where: str) -> tuple[str, dict[str, Any]]:
    """The path of a line's image, and the keys of `_KEYS` that it has."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: it is no JSON ({error}).") from None
    name = values.get("file_name") if isinstance(values, dict) else None
    if not (isinstance(name, str) and name):
        raise ValueError(f"{where}: it must be an object with 'file_name', the path of an image.")
    known = {key: values[key] for key in _KEYS if values.get(key) is not None}
    for key, value in known.items():
        _, kinds, words = _KEYS[key]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{where}: {key!r} is {value!r}; it must be {words}.")
    paths = {"file_name": name, "conditioning_file_name": known.get("conditioning_file_name")}
    plain = {key: posixpath.normpath(path) for key, path in paths.items() if path}
    for key, path in plain.items():
        if path.startswith(("/", "../")):
            raise ValueError(f"{where}: {key!r} is {paths[key]!r}; it must lie in the folder.")
    return plain.pop("file_name"), known | plain


def classes(labels: Sequence[int | str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels as (N,) int32, and the classes' names; None and () where there are none.

    Words are numbered in the order of the alphabet.

    Raises:
      ValueError: some are words and others numbers, or a number is negative or at least N.
    """
    if labels[0] is None:
        return None, ()
    words = [isinstance(label, str) for label in labels]
    if all(words):
        names, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int32), tuple(names.tolist())
    if any(words) or min(labels) < 0 or max(labels) >= len(labels):
        raise ValueError(
            f"'label' in {NAME} must be words, or whole numbers from 0 on and below the number of"
            f" images, {len(labels)}."
        )
    return np.array(labels, np.int32), tuple(map(str, range(max(labels) + 1)))
