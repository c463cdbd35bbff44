"""Files: replaced whole, hashed, checked when read, cached from one process to the next."""

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffax import places, runtime

_LOG = logging.getLogger("diffax")
_CHECKSUM = "checksum"  # the array of a file that holds the hash of the others
MOST_BYTES = 4 * 2**30  # that a folder of `cached` holds; 80 networks' features of 10,000 images


# --- writing --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Another path to write to, which replaces `path` at the end.

    A reader sees the whole new file or what was there before, also if the process is killed, or if
    several processes write the same file. The folder is made if it is missing. Of a bucket it is
    uploaded at the end.
    """
    path = places.path_of(path)
    if places.in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            yield local
            with places.as_os_error(path):
                path.write_bytes(local.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer: a thread, a process, another machine. It is no longer for a
    # long name.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8, as `replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


# --- JSON ------------------------------------------------------------------------------------


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


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON as `replacing` does, and to the disk itself, in case the machine stops."""
    # Half a character, as of a command line that is no UTF-8, is what JSON writes as \udc80.
    with (
        replacing(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        json.dump(value, file, indent=1, allow_nan=False, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


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


# --- arrays ----------------------------------------------------------------------------------


def content_hash(*parts: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of arrays, with shape and dtype, and of what can be
    written as JSON. Each part is told apart from the next."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head, bodies = f"array {part.dtype.str} {part.shape}", [_bytes_of(part)]
            size = part.nbytes
        elif hasattr(part, "blocks"):  # rows in a file: as the array of them
            head, bodies = f"array {part.dtype.str} {part.shape}", map(_bytes_of, part.blocks())
            size = part.nbytes
        else:
            text = json.dumps(part, sort_keys=True).encode()
            head, bodies, size = "json", [text], len(text)
        digest.update(f"{head} {size}\n".encode())
        for body in bodies:
            digest.update(body)
    return digest.hexdigest()[:32]


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_npz(
    path: str | os.PathLike, pick: Callable[[Sequence[str]], Iterable[str]]
) -> dict[str, np.ndarray]:
    """Some arrays of an .npz file, whoever wrote it; nothing in the file is run.

    Members that are no .npy file are passed over.

    Args:
      path: the file, which may lie in a bucket.
      pick: the names of its arrays -> those that are wanted; it may raise ValueError.

    Raises:
      FileNotFoundError: there is no such file, or it is no regular one.
      PermissionError: and others of its kind, where it can't be opened.
      ValueError: it is no .npz, or an array can't be read (objects, a damaged or encrypted member,
        more than the memory that is free); names the file.
    """
    source: Any = path
    if places.in_bucket(path):
        content = places.read_bytes(places.path_of(path))
        source = None if content is None else io.BytesIO(content)
    if source is None or source is path and not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    # zipfile and NumPy have no one kind of error for what they can't read, here and below.
    try:
        archive = zipfile.ZipFile(source)
    except PermissionError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not an .npz ({error}); numpy.savez writes one") from error
    with archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        names = [info.filename.removesuffix(".npy") for info in members]
        wanted = list(pick(names))
        for name in wanted:
            if names.count(name) > 1:
                raise ValueError(f"{path} holds {name!r} {names.count(name)} times")
        found = {}
        for name in wanted:
            member = members[names.index(name)]
            check_fits(member.file_size, f"{name!r} in {path}")
            try:
                with archive.open(member) as file:
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
                    rest = len(file.read(1))  # its end is where its checksum is compared
            except Exception as error:
                raise ValueError(f"{name!r} in {path} can't be read ({error})") from error
            if rest:
                raise ValueError(f"{name!r} in {path} can't be read (bytes follow the array)")
    return found


def check_fits(num_bytes: int, what: str) -> None:
    """Raises ValueError if so many bytes are more than the memory that is free."""
    free = runtime.available_memory()
    if num_bytes > free:
        raise ValueError(
            f"{what} would take {num_bytes / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB"
            " are free"
        )


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz with a checksum, so that a reader sees all of it or none."""
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays, **{_CHECKSUM: _checksum(arrays)})


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it was altered, cut short, or has no checksum; it is named.
    """
    arrays = read_npz(path, lambda names: names)
    checksum = arrays.pop(_CHECKSUM, None)
    if checksum is None or str(checksum) != _checksum(arrays):
        how = "absent" if checksum is None else "another"
        raise ValueError(f"{path} is damaged: its checksum is {how}")
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    return content_hash(*(part for name in sorted(arrays) for part in (name, arrays[name])))


# --- the cache -------------------------------------------------------------------------------


def cached(
    folder: str | os.PathLike,
    name: str,
    make: Callable[[], Mapping[str, Any]],
    most_bytes: int = MOST_BYTES,
) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, from the cache if they are there and intact.

    The cache is the file `name`.npz in a folder of `runtime.cache_directory()`, or in an absolute
    folder. `name` must identify all that the arrays depend on. A damaged file is made again, as is
    one without a checksum; the log says so. If the folder can't be written to, nothing is cached.
    If several processes of a machine ask at once, one makes the arrays, and the others wait for
    them. When the folder exceeds `most_bytes`, its oldest files are deleted.
    """
    path = runtime.cache_directory() / folder / f"{name}.npz"
    if (found := _intact(path, _LOG.debug)) is not None:
        return found
    with _one_at_a_time(path.with_name(f".{name}.lock")):
        if (found := _intact(path, _LOG.warning)) is not None:  # made meanwhile
            return found
        arrays = {key: np.asarray(value) for key, value in make().items()}
        try:
            write_arrays(path, arrays)
            with contextlib.suppress(FileNotFoundError):  # another process tidies up
                _keep_latest(path.parent, most_bytes)
        except OSError as error:
            _LOG.warning("%s can't be cached (%s)", path, error)
    return arrays


def _intact(path: Path, log: Callable[..., None]) -> dict[str, np.ndarray] | None:
    """The arrays of a file, None if there is none or it can't be read, which is logged."""
    try:
        return read_arrays(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log("%s: it is made again", error)
        return None


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Waits for other processes within it; does nothing where a file can't be made or locked. The
    lock ends with its process."""
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("waiting for another process, which makes %s", path.name[1:-5])
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        _LOG.debug("%s can't be locked (%s)", path, error)
    try:
        yield
    finally:
        if file is not None:
            # Whoever waits for it finds the arrays; whoever comes later makes a new one.
            path.unlink(missing_ok=True)
            file.close()


def _keep_latest(folder: Path, most_bytes: int) -> None:
    """Removes files, those with the oldest time first, until the others' sizes sum to no more."""
    total = 0
    for path in sorted(folder.glob("*.npz"), key=os.path.getmtime, reverse=True):
        total += path.stat().st_size
        if total > most_bytes:
            path.unlink(missing_ok=True)
