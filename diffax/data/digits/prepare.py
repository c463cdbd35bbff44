"""Prepares `digits` on first use, and loads it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile

from diffax import runtime
from diffax.data import tfds_images
from diffax.data.dataset import DataConfig, Dataset

_LOG = logging.getLogger("diffax")
_VERSION_DIR = os.path.join("digits", "1.0.0")


def load(config: DataConfig) -> Dataset:
    """Loads `digits` (see its builder), preparing it first where it is not yet there."""
    import tensorflow_datasets as tfds

    return tfds_images.from_builder(config, tfds.builder_from_directory(find_or_prepare(config)))


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
    """Prepares the set below `root` unless it is there; returns its folder.

    Safe when several processes do it at once: each builds in a temporary folder of its own, and
    the first to move its result into place by an atomic rename wins.

    Raises:
      OSError: if `root` cannot be created or written, or is marked read-only.
    """
    target = os.path.join(root, _VERSION_DIR)
    if os.path.isdir(target):
        return target
    if "://" in root:
        raise OSError("it is not on a local disk")
    tfds_images.respect_read_only(root)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".digits-", dir=root)
    try:
        _build(scratch)
        try:
            os.rename(os.path.join(scratch, _VERSION_DIR), target)
        except OSError:
            if not os.path.isdir(target):  # another process was not first: a real failure
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


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
