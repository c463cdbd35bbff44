"""Prepares `digits` on first use, and loads it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from diffax import runtime
from diffax.data import tfds_images
from diffax.data.dataset import DataConfig, Dataset

_LOG = logging.getLogger("diffax")
_CHECKSUMS = "checksums.json"
_VERSION_DIR = os.path.join("digits", "1.0.0")


def load(config: DataConfig) -> Dataset:
    """Loads `digits` (see its builder), preparing it first where it is not yet there."""
    import tensorflow_datasets as tfds

    builder = tfds_images.opened(config, tfds.builder_from_directory, find_or_prepare(config))
    return tfds_images.from_builder(config, builder)


def find_or_prepare(config: DataConfig) -> str:
    """The folder of the prepared set.

    The rule: with data.data_dir given, that folder and no other. Otherwise TFDS's folder
    (TFDS_DATA_DIR, or ~/tensorflow_datasets) or, where the set is not in it and it cannot be
    written, tfds in the user's cache (`runtime.cache_directory`); that is logged.

    Raises:
      PermissionError: if no folder can be written; names the folders and data.data_dir.
    """
    places = [tfds_images.data_dir(config)]
    if not config.data_dir:
        places.append(os.path.join(runtime.cache_directory(), "tfds"))
    failures = []
    for place in places:
        try:
            folder = prepare(place)
        except OSError as error:
            failures.append((place, error))
            continue
        for failed, error in failures:
            _LOG.warning("digits: %s cannot be written (%s), using %s", failed, error, place)
        return folder
    tried = " or in ".join(f"{place} ({error})" for place, error in failures)
    remedy = ", or leave it empty to use the user's cache" if config.data_dir else ""
    raise PermissionError(
        f"digits cannot be prepared in {tried}: "
        f"set data.data_dir to a folder that can be written{remedy}."
    ) from failures[0][1]


def prepare(root: str) -> str:
    """Prepares the set below `root` unless it is there and sound; returns its folder.

    It is sound if its files have the checksums that were written with them. A damaged one is made
    again, which the log says. Safe when several processes do it at once: each builds in a temporary
    folder of its own, and the first to move its result into place by an atomic rename wins.

    Raises:
      OSError: if `root` cannot be created or written, or is marked read-only.
    """
    target = os.path.join(root, _VERSION_DIR)
    flaw = _flaw(target) if os.path.isdir(target) else ""
    if flaw is None:
        return target
    if flaw:
        _LOG.warning("%s is damaged (%s): it is made again", target, flaw)
    if "://" in root:
        raise OSError("it is not on a local disk")
    tfds_images.respect_read_only(root)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".digits-", dir=root)
    try:
        _build(scratch)
        _write_checksums(Path(scratch, _VERSION_DIR))
        if flaw:
            with contextlib.suppress(FileNotFoundError):  # another process does the same
                os.rename(target, os.path.join(scratch, "damaged"))
        try:
            os.rename(os.path.join(scratch, _VERSION_DIR), target)
        except OSError:
            if not os.path.isdir(target):  # another process was not first: a real failure
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != _CHECKSUMS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _write_checksums(folder: Path) -> None:
    (folder / _CHECKSUMS).write_text(json.dumps(_checksums(folder), indent=1), encoding="utf-8")


def _flaw(folder: str) -> str | None:
    """What is wrong with a prepared set; None if nothing. One that was made before there were
    checksums is taken as it is."""
    path = Path(folder, _CHECKSUMS)
    if not path.exists():
        info = Path(folder, "dataset_info.json")
        return None if info.exists() else f"there is no {info.name}"
    found = _checksums(Path(folder))
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name, digest in expected.items() if found.get(name) != digest]
    except (ValueError, AttributeError):
        return f"{path.name} can't be read"
    return f"{wrong[0]} is another or absent" if wrong else None


def _build(root: str) -> None:
    import tensorflow_datasets as tfds

    from diffax.data.digits import digits_dataset_builder

    logging.info("digits: preparing in %s", os.path.dirname(root))
    builder = digits_dataset_builder.Builder(data_dir=root)
    # TFDS announces a download and draws progress bars; this is over in a second.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
