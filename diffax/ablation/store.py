"""An ablation on disk: its question, and its runs, with what each was started with.

workdir/ablation.json                           the question

workdir/runs/<arm>/seed<k>/configuration.json   what it was started with, and the fingerprint
workdir/runs/<arm>/seed<k>/result.json          what it returned, fingerprint and seconds
workdir/runs/<arm>/seed<k>/traceback.txt        only if its last attempt failed
"""

import dataclasses
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diffax import config as config_lib
from diffax import places
from diffax.evaluation import Metric
from diffax.files import flatten, jsonable, read_json, replacing, write_json
from diffax.report.analysis import shortened
from diffax.report.build import Report, build_report
from diffax.report.spec import Spec

SPEC_FILE, REAL_SAMPLES = "ablation.json", "real_samples.npz"
_STARTED_KEYS = ("fingerprint", "configuration")
_RESULT_KEYS = ("arm", "seed", "fingerprint", "seconds", "result")


@dataclass(frozen=True)
class GridRun:
    """One run of a grid: the arm (a `grid.Arm`), the seed, its directory, what it depends on."""

    arm: Any
    seed: int
    directory: Path
    configuration: Any
    # (arm, seed) of all that is prepared before this run, the first of a group of them
    prepared: tuple[tuple[Any, int], ...] = ()


def make_run(arm: Any, seed: int, workdir: Path, common: Any) -> GridRun:
    """The run of an arm and a seed; `common` is the configuration besides overrides and seed."""
    directory = workdir / "runs" / directory_name(arm.name) / f"seed{seed}"
    configuration = {"overrides": arm.overrides, "seed": seed, "config": common}
    return GridRun(arm, seed, directory, plain(configuration))


def plain(configuration: Any) -> Any:
    """A configuration as `fingerprint` takes it; inf and None stay distinct."""
    return jsonable(configuration, "the configuration", not_finite=repr)


def fingerprint(configuration: Any) -> str:
    """The SHA-256 of a plain configuration; the order of its keys has no effect."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def directory_name(name: str) -> str:
    """A directory name that every file system allows; distinct names stay distinct."""
    text = quote(name, safe=" =,+()[]'")
    if text.startswith("."):  # no folder above, nor a hidden one
        text = f"%2E{text[1:]}"
    if len(text) > 120:
        text = f"{text[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return text


def check_fingerprint(directory: Path, configuration: Any) -> None:
    """Raises ValueError, naming the differences, if a directory holds a run of another (plain)
    configuration. Configs of an older form are compared in today's form."""
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
    """A plain configuration in today's form; see `config.completed`."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return old
    if "model" in old:
        return plain(config_lib.completed(old, new))
    return {k: _upgraded(v, new.get(k)) if k == "config" else v for k, v in old.items()}


def note_configuration(directory: Path, configuration: Any) -> None:
    """Writes into a directory what `check_fingerprint` reads."""
    places.make_folder(directory)
    started = {"fingerprint": fingerprint(configuration), "configuration": configuration}
    write_json(directory / "configuration.json", started)


def finished(run: GridRun) -> dict[str, Any] | None:
    """The result of a finished run, None for another; raises as `check_fingerprint` does."""
    check_fingerprint(run.directory, run.configuration)
    done = (run.directory / "result.json").exists()
    return read_result(run.directory) if done else None


def _differences(old: Any, new: Any) -> str:
    old, new = flatten(old), flatten(new)
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)] if old else []
    shown = [_difference(k.removeprefix("config."), old.get(k), new.get(k)) for k in keys]
    return f" ({shortened(shown, 3)})" if shown else ""


def _difference(key: str, old: Any, new: Any) -> str:
    named = key.removeprefix("content.")
    if named == key:
        return f"{key} was {old!r}, is {new!r}"
    if old is None:
        return f"which run lay in {named} was not noted when it was made"
    return f"another run lies in {named} than did"


def execute(
    run_one: Callable[..., Mapping[str, Any]],
    run: GridRun,
    prepare: Callable[[Sequence[tuple[Any, int]]], None] | None = None,
) -> tuple[str, float, str]:
    """Makes a run in this process, and writes its result or its traceback."""
    # In a process of its own a bucket has to be made ready first.
    run = dataclasses.replace(run, directory=places.path_of(run.directory))
    start, failed = time.monotonic(), run.directory / "traceback.txt"
    places.make_folder(run.directory)
    failed.unlink(missing_ok=True)
    try:
        note_configuration(run.directory, run.configuration)
        if prepare is not None and run.prepared:
            prepare(run.prepared)
        result = run_one(run.arm, run.seed, run.directory)
        if not isinstance(result, Mapping):
            raise TypeError(f"run_one must return a mapping, got {type(result).__name__}")
        seconds = float(result.get("seconds", time.monotonic() - start))
        record = {
            "arm": run.arm.name,
            "seed": run.seed,
            "fingerprint": fingerprint(run.configuration),
            "seconds": seconds,
            "finished": time.time(),
            "result": jsonable(result, "the result of run_one"),
        }
        write_json(run.directory / "result.json", record)
        return "finished", seconds, ""
    except Exception as error:  # reported and raised by run_grid when the others are done
        failed.write_text(traceback.format_exc(), encoding="utf-8")
        return "failed", time.monotonic() - start, f"{type(error).__name__}: {error}".split("\n")[0]


def read_result(directory: Path) -> dict[str, Any]:
    """What `execute` left: arm, seed, fingerprint, seconds and result."""
    return read_json(directory / "result.json", _RESULT_KEYS)


def record(read: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A result in the form in which `grid.run_grid` returns it."""
    own = {k: read[k] for k in ("arm", "seed", "seconds", "finished") if k in read}
    return {**read["result"], **own, "directory": os.fspath(directory)}


def load_results(
    workdir: str | os.PathLike, arms: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """The results that are there, finished runs only, in the form that `run_grid` returns.

    Args:
      workdir: as given to `run_grid`.
      arms: names of the arms wanted, in their order; None for all that are found, by name.

    Raises:
      FileNotFoundError: no finished run is there.
      ValueError: a result file that cannot be read; the message names it.
    """
    root = places.path_of(workdir) / "runs"
    found = {path.parent: read_result(path.parent) for path in root.glob("*/seed*/result.json")}
    names = sorted({r["arm"] for r in found.values()}) if arms is None else list(arms)
    records = [record(r, directory) for directory, r in found.items() if r["arm"] in names]
    if not records:
        raise FileNotFoundError(f"no finished run under {root}")
    return sorted(records, key=lambda r: (r["seed"], names.index(r["arm"])))


# --- the question ---------------------------------------------------------------------------


def save_spec(spec: Spec, workdir: Path) -> None:
    """Saves the question in the workdir, so that a report can be made from the workdir alone.

    Its real samples, if any, go to an .npz file beside it.
    """
    places.make_folder(workdir)
    real = spec.real_samples
    if real is not None and not isinstance(real, (str, Path)):
        with replacing(workdir / REAL_SAMPLES) as partial, open(partial, "wb") as file:
            np.savez(file, samples=np.asarray(real))
        real = REAL_SAMPLES
    plain = dataclasses.asdict(dataclasses.replace(spec, real_samples=real))
    write_json(workdir / SPEC_FILE, jsonable(plain, "the spec"))


def load_spec(workdir: Path) -> Spec:
    """The question that `save_spec` saved.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is damaged.
    """
    path = workdir / SPEC_FILE
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no ablation: there is no {SPEC_FILE}")
    read = read_json(path, ("title", "question", "baseline", "metrics"))
    read.pop("parts", None)  # of figures that are drawn no more
    read["config"] = config_lib.upgraded(read.get("config", {}))
    read["metrics"] = [Metric(**metric) for metric in read["metrics"]]
    if read.get("real_samples") is not None:
        read["real_samples"] = os.fspath(places.absolute(workdir / read["real_samples"]))
    return Spec(**read)


def merge_specs(specs: Sequence[Spec]) -> Spec:
    """One question from several that differ in arms and seeds alone, with those of all.

    Raises:
      ValueError: they differ in something else; the message says in what.
    """
    first, united = specs[0], {}
    whole = [jsonable(dataclasses.asdict(dataclasses.replace(s, real_samples=None))) for s in specs]
    for other in whole[1:]:
        for name in ("config", "metrics", "baseline", "focus", "confidence"):
            one, two = (flatten({name: spec[name]}) for spec in (whole[0], other))
            keys = [key for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
            if keys:
                raise ValueError(
                    f"not one ablation: {keys[0]} is {one.get(keys[0])!r} in one workdir and"
                    f" {two.get(keys[0])!r} in another"
                )
    for name in ("arms", "seeds"):
        united[name] = list(dict.fromkeys(x for spec in specs for x in getattr(spec, name)))
    united["design"] = {arm: own for spec in specs for arm, own in spec.design.items()}
    return dataclasses.replace(first, **united)


def report_on(
    workdirs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None
) -> Report:
    """The report of an ablation from one or more workdirs of `runner.run_ablation`.

    Several workdirs are the parts of an ablation on several machines. A run that two of them hold
    must be the same in both. The report lists what is missing.

    Args:
      workdirs: one or more.
      out: the folder of the report; None for the first workdir.

    Raises:
      FileNotFoundError: a workdir holds no ablation, or none holds a finished run.
      ValueError: they are parts of different ablations, or differ in a run that both hold.
    """
    paths = [places.workdir_of(workdir) for workdir in workdirs]
    spec = merge_specs([load_spec(path) for path in paths])
    begun = [path for path in paths if any(path.glob("runs/*/*/result.json"))]
    if not begun:
        raise FileNotFoundError(f"no finished run under {', '.join(map(str, paths))}")
    runs = {}
    for path in begun:
        for result in load_results(path, spec.arms):
            key = result["arm"], result["seed"]
            if runs.setdefault(key, result)["metrics"] != result["metrics"]:
                raise ValueError(
                    f"two workdirs hold arm {key[0]!r}, seed {key[1]}, with other numbers:"
                    f" {runs[key]['directory']} and {result['directory']}; leave one of them out"
                )
    order = sorted(runs, key=lambda k: (k[1], list(spec.arms).index(k[0])))
    results = [runs[key] for key in order if key[1] in spec.seeds]
    return build_report(spec, results, out or paths[0], partial=True)
