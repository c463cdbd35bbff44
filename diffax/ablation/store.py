"""The runs of a grid on disk: where each lies, whether it is done, what it was started with.

workdir/runs/<arm>/seed<k>/configuration.json   what it was started with, and the fingerprint
workdir/runs/<arm>/seed<k>/result.json          what it returned, fingerprint and seconds
workdir/runs/<arm>/seed<k>/traceback.txt        only if its last attempt failed
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffax import config as config_lib
from diffax.files import flatten, jsonable, read_json, write_json

_STARTED_KEYS = ("fingerprint", "configuration")
_RESULT_KEYS = ("arm", "seed", "fingerprint", "seconds", "result")


@dataclass(frozen=True)
class Run:
    """One run of a grid: the arm (a `grid.Arm`), the seed, its directory, what it depends on."""

    arm: Any
    seed: int
    directory: Path
    configuration: Any
    # (arm, seed) of all that is prepared before this run, the first of a group of them
    prepared: tuple[tuple[Any, int], ...] = ()


def make_run(arm: Any, seed: int, workdir: Path, common: Any) -> Run:
    """The run of an arm and a seed; `common` is the configuration besides overrides and seed."""
    directory = workdir / "runs" / directory_name(arm.name) / f"seed{seed}"
    configuration = {"overrides": arm.overrides, "seed": seed, "config": common}
    return Run(arm, seed, directory, plain(configuration))


def plain(configuration: Any) -> Any:
    """A configuration as `fingerprint` takes it; a value inf is not one of None."""
    return jsonable(configuration, "the configuration", not_finite=repr)


def fingerprint(configuration: Any) -> str:
    """The SHA-256 of a plain configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def directory_name(name: str) -> str:
    """A name that is a directory's on every file system; distinct names stay distinct."""
    text = quote(name, safe=" =,+()[]'")
    if text.startswith("."):  # no folder above, nor a hidden one
        text = f"%2E{text[1:]}"
    if len(text) > 120:
        text = f"{text[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return text


def refuse_another(directory: Path, configuration: Any) -> None:
    """Raises ValueError, naming the differences, if what a directory holds was started with another
    configuration (a plain one). Configs of an older form are compared in today's."""
    for name, keys in (("configuration.json", _STARTED_KEYS), ("result.json", _RESULT_KEYS)):
        path, started = directory / name, directory / "configuration.json"
        if not path.exists():
            continue
        found = read_json(path, keys)["fingerprint"]
        if found != fingerprint(configuration):
            old = read_json(started, _STARTED_KEYS)["configuration"] if started.exists() else {}
            of_this = found == fingerprint(old)
            old = _upgraded(old, configuration)
            if of_this and flatten(old) == flatten(configuration):
                continue
            raise ValueError(
                f"{directory} holds a run with another configuration"
                f"{_differences(old, configuration)}; choose another --workdir or delete that "
                "directory."
            )


def _upgraded(old: Any, new: Any) -> Any:
    """A plain configuration as it would be noted today: see `config.completed`."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return old
    if "model" in old:
        return plain(config_lib.completed(old, new))
    return {k: _upgraded(v, new.get(k)) if k == "config" else v for k, v in old.items()}


def note_configuration(directory: Path, configuration: Any) -> None:
    """Leaves in a directory what `refuse_another` reads there."""
    directory.mkdir(parents=True, exist_ok=True)
    started = {"fingerprint": fingerprint(configuration), "configuration": configuration}
    write_json(directory / "configuration.json", started)


def is_done(run: Run) -> bool:
    """Whether the run is finished; raises as `refuse_another` does."""
    refuse_another(run.directory, run.configuration)
    return (run.directory / "result.json").exists()


def _differences(old: Any, new: Any, most: int = 3) -> str:
    old, new = flatten(old), flatten(new)
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)] if old else []
    if not keys:
        return ""
    shown = [f"{k.removeprefix('config.')} was {old.get(k)!r}, is {new.get(k)!r}" for k in keys]
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f" ({'; '.join(shown[:most])}{more})"


def execute(
    run_one: Callable[..., Mapping[str, Any]],
    run: Run,
    prepare: Callable[[Sequence[tuple[Any, int]]], None] | None = None,
) -> tuple[str, float, str]:
    """Runs once, in whichever process, and leaves the result or the traceback on disk."""
    start, failed = time.monotonic(), run.directory / "traceback.txt"
    run.directory.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    try:
        note_configuration(run.directory, run.configuration)
        if prepare is not None and run.prepared:
            prepare(run.prepared)
        result = run_one(run.arm, run.seed, run.directory)
        if not isinstance(result, Mapping):
            raise TypeError(f"run_one must return a mapping, got {type(result).__name__}")
        seconds = float(result.get("seconds", time.monotonic() - start))
        record = {"arm": run.arm.name, "seed": run.seed}
        record |= {"fingerprint": fingerprint(run.configuration), "seconds": seconds}
        record |= {"finished": time.time()}
        record |= {"result": jsonable(result, "the result of run_one")}
        write_json(run.directory / "result.json", record)
        return "finished", seconds, ""
    except Exception as error:  # told and raised by run_grid when the others are through
        failed.write_text(traceback.format_exc(), encoding="utf-8")
        return "failed", time.monotonic() - start, f"{type(error).__name__}: {error}".split("\n")[0]


def read_result(directory: Path) -> dict[str, Any]:
    """What `execute` left: arm, seed, fingerprint, seconds and result."""
    return read_json(directory / "result.json", _RESULT_KEYS)


def record(read: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A result in the form in which `grid.run_grid` returns it."""
    own = {k: read[k] for k in ("arm", "seed", "seconds", "finished") if k in read}
    return {**read["result"], **own, "directory": str(directory)}
