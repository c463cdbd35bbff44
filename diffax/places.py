"""Where files lie: on this machine's file system, or in a bucket, gs://BUCKET/....

What is written into a bucket is seen whole or not at all, as an object is when its upload ends. A
bucket has no folders, no locks and no appending: `files.replacing`, `training.lock` and
`training.writers` have a form for it each. It needs `pip install 'diffax[gcs]'`, and credentials
where Google's libraries look for them.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from diffax.runtime import local_path

_SCHEME = "gs://"


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is one of a bucket."""
    return os.fspath(path).startswith(_SCHEME)


@functools.cache
def _ready() -> None:
    """Has etils reach buckets by gcsfs alone, which asks the bucket itself each time.

    Raises:
      ValueError: it isn't installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError("paths of a bucket, gs://..., need gcsfs: pip install 'diffax[gcs]'")
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Else each process asks for the kind of the bucket first, by another service.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec
    from etils.epath import gpath

    # What was asked before, of a local path, is remembered.
    remembered = getattr(gpath, "_is_tf_installed", None)
    if remembered is not None:
        remembered.cache_clear()
    settings = fsspec.config.conf.setdefault("gcs", {})
    # Other processes, and tensorstore in this one, write there too.
    settings.setdefault("use_listings_cache", False)
    if "STORAGE_EMULATOR_HOST" in os.environ:  # which knows no accounts
        settings.setdefault("token", "anon")


def path_of(path: str | os.PathLike) -> Any:
    """A `pathlib.Path`; of a bucket an `etils.epath.Path`, which has the same methods."""
    if not in_bucket(path):
        return Path(path)
    _ready()
    from etils import epath

    return epath.Path(path)


def workdir_of(path: str | os.PathLike, what: str = "workdir") -> Any:
    """The absolute path of a workdir, as a user wrote it; `what` is what an error calls it.

    Raises:
      ValueError: it is empty, of another server than a bucket's, or of a bucket where gcsfs isn't
        installed.
    """
    return path_of(path) if in_bucket(path) else local_path(path, what).absolute()


def relative_to_what(path: str, key: str) -> str:
    """Words for an error about what a config's `key` names and isn't there: from where a relative
    path is looked for; "" of an absolute one."""
    if in_bucket(path) or local_path(path, key).is_absolute():
        return ""
    return (
        f"; a relative path starts in the folder where the command runs, here {os.getcwd()}: run it"
        f" in the folder where the run was trained, or give {key} an absolute path (a trained run"
        " has it in its config.json)"
    )


def absolute(path: Any) -> Any:
    """An absolute path; of a bucket every path is one."""
    return path if in_bucket(path) else path.absolute()


def make_folder(folder: Any) -> None:
    """Makes a folder and those above it; a bucket has none."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def try_to_write(folder: Any) -> None:
    """Writes a file in a folder and removes it; an OSError where that can't be."""
    probe = folder / f".{uuid.uuid4().hex}.partial"
    with as_os_error(folder):
        probe.write_bytes(b"probe")
        probe.unlink()


@contextlib.contextmanager
def as_os_error(path: Any):
    """What goes wrong with a bucket is an OSError: its libraries have no one kind for it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not in_bucket(path):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"{os.fspath(path)}: {line}") from error


def create(path: Any, content: bytes) -> bool:
    """Makes an object of a bucket; False if there is one of that name. One of several that try it
    at once succeeds."""
    import fsspec

    _ready()
    with as_os_error(path):
        try:
            fsspec.filesystem("gcs").pipe_file(os.fspath(path), content, mode="create")
        except FileExistsError:
            return False
    return True


def read_bytes(path: Any) -> bytes | None:
    """What an object of a bucket holds; None if there is none."""
    with as_os_error(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def remove_folder(folder: Any) -> None:
    """Removes a folder with all in it, if it is there."""
    if in_bucket(folder):
        with as_os_error(folder):
            folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def rename_folder(folder: Any, new: Any) -> None:
    """Gives a folder another name. In a bucket its objects are copied, one after the other."""
    if not in_bucket(folder):
        folder.rename(new)
        return
    import fsspec

    with as_os_error(folder):
        filesystem = fsspec.filesystem("gcs")
        source, target = os.fspath(folder), os.fspath(new)
        objects = filesystem.find(source)
        start = source.removeprefix(_SCHEME)
        for name in objects:
            filesystem.cp_file(name, target + name.removeprefix(start))
        filesystem.rm(objects)
