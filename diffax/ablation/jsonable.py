"""Plain data in and out of JSON files: one conversion, one atomic write, one checked read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def jsonable(
    value: Any, name: str = "value", not_finite: Callable[[float], Any] = lambda x: None
) -> Any:
    """`value` as nested dicts, lists, strings, numbers, booleans and None.

    Mappings and ml_collections' ConfigDicts become dicts, sequences lists, arrays (numpy's or
    JAX's) nested lists, paths strings.

    Args:
      value: the data.
      name: what an error calls it.
      not_finite: what becomes of nan and ±inf, which JSON does not have; None (null) by default.

    Raises:
      ValueError: something inside is none of these; the message says where.
    """
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    elif hasattr(value, "to_dict"):
        value = value.to_dict()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else not_finite(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v, f"{name}[{k!r}]", not_finite) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [jsonable(v, f"{name}[{i}]", not_finite) for i, v in enumerate(value)]
    raise ValueError(f"{name} is of type {type(value).__name__}, which JSON cannot hold")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    items = (flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items())
    return {key: leaf for part in items for key, leaf in part.items()}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the whole file or none, even if the machine stops."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # Half a character, as of a command line that is no UTF-8, is what JSON writes as \udc80.
    with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(value, file, indent=1, allow_nan=False, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a JSON object that has the given keys.

    Raises:
      ValueError: no JSON, no object, or a key is missing; the message names the file and the
        remedy.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to run this again.") from error
    missing = [k for k in keys if not isinstance(value, dict) or k not in value]
    if missing:
        raise ValueError(f"{path} is damaged (no {missing[0]!r}); delete it to run this again.")
    return value
