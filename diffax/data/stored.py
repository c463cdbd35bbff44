"""Examples in a file, for sets that are larger than memory: rows are read when they are asked for.

A set is decoded once into a .npy file of the cache, `$DIFFAX_CACHE/data`. Rows are read, and not
mapped: the pages of a mapped file count as memory of the process, in the end the whole file's.
"""

import logging
import math
import os
import shutil
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from diffax import runtime
from diffax.files import check_fits, content_hash, read_arrays, replacing, write_arrays

_LOG = logging.getLogger("diffax")
STORAGES = ("auto", "memory", "disk")
_BLOCK_BYTES = 2**26  # read at a time, where all rows are
_MOST_READ = 2**30  # bytes of one call of the system


class Stored:
    """Rows of an array in a file. Indexed as an array is by integers, slices, masks and arrays of
    integers in its first axis, it reads those rows and gives them as an array.

    Attributes:
      path: the file.
      dtype, shape: as of an array.
    """

    def __init__(
        self, path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, rows: np.ndarray
    ):
        self.path, self.dtype, self.shape = path, dtype, (len(rows), *shape[1:])
        self._offset, self._rows = offset, rows
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def npy(cls, path: Path, offset: int = 0) -> Self:
        """The array of a .npy file, or of one that begins at `offset` of another file.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no .npy, holds objects, or is in the order of Fortran.
        """
        with open(path, "rb") as file:
            file.seek(offset)
            try:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, fortran, dtype = read(file)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path} is no .npy file ({error})") from None
            start = file.tell()
        if fortran or dtype.hasobject or not shape:
            raise ValueError(
                f"{path}: rows can't be read from a {dtype} array of shape {shape}, in the order of"
                f" {'Fortran' if fortran else 'C'}; save numpy.ascontiguousarray of it"
            )
        if os.path.getsize(path) < start + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path} is cut short")
        return cls(path, dtype, shape, start, np.arange(shape[0]))

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def taken(self, key: Any) -> Self:
        """The rows at a slice, a mask or an array of integers, still in the file."""
        whole = (self._offset, self._rows[key])
        return type(self)(self.path, self.dtype, self.shape, *whole)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.asarray(self._rows[key])
        flat = rows.reshape(-1)
        found = np.empty((len(flat), *self.shape[1:]), self.dtype)
        if self._row_bytes and len(flat):
            body = memoryview(found.reshape(-1).view(np.uint8))
            # Rows that follow one another are read at once.
            breaks = np.flatnonzero(np.diff(flat) != 1) + 1
            for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(flat)]):
                part = body[first * self._row_bytes : last * self._row_bytes]
                self._read(part, self._offset + int(flat[first]) * self._row_bytes)
        return found.reshape(rows.shape + self.shape[1:])

    def _read(self, into: memoryview, place: int) -> None:
        while into:
            count = os.preadv(self._file, [into[:_MOST_READ]], place)
            if not count:
                raise OSError(f"{self.path} was cut short while it was in use")
            into, place = into[count:], place + count

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, some at a time."""
        return blocks(self)


def taken(rows: Any, key: Any) -> Any:
    """The rows at a key: of an array themselves, of `Stored` ones still in their file."""
    return rows.taken(key) if isinstance(rows, Stored) else rows[key]


def blocks(rows: Any) -> Iterator[np.ndarray]:
    """All rows of an array, or of `Stored` ones, some at a time, in order."""
    each = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    size = max(1, _BLOCK_BYTES // max(each, 1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def extremes(rows: Any) -> tuple[Any, Any]:
    """The least and the largest number; NaN if there is one among them."""
    pairs = [(part.min(), part.max()) for part in blocks(rows)]
    return np.min([low for low, _ in pairs]), np.max([high for _, high in pairs])


def is_large(num_bytes: int, storage: str) -> bool:
    """Whether so many bytes go to a file: as `storage` says, or if they are more than half of the
    memory that is free."""
    return storage == "disk" or (storage == "auto" and 2 * num_bytes > runtime.available_memory())


def in_npz(path: str | os.PathLike, name: str) -> Stored:
    """An array of an .npz, where it lies.

    Raises:
      ValueError: it is compressed, or as `Stored.npy`.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"{name!r} in {path} is larger than half of the free memory and compressed, so that its"
            " rows can't be read one by one: write it by numpy.savez"
        )
    with open(path, "rb") as file:  # behind the member's own header, of 30 bytes, name and extra
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    return Stored.npy(Path(path), member.header_offset + 30 + int(lengths.sum()))


class _Writer:
    """A .npy file that is filled: `writer[i] = row`, or a slice of rows."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype):
        self.shape, self.dtype = shape, dtype
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._file = open(path, "wb")
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        self._file.truncate(self._start + shape[0] * self._row_bytes)

    def __len__(self) -> int:
        return self.shape[0]

    def __setitem__(self, key: int | slice, rows: np.ndarray) -> None:
        first = key.indices(len(self))[0] if isinstance(key, slice) else key
        self._file.seek(self._start + first * self._row_bytes)
        self._file.write(np.ascontiguousarray(rows, self.dtype))

    def close(self) -> None:
        self._file.close()


def filled(
    shape: tuple[int, ...],
    dtype: Any,
    fill: Callable[[Any], Mapping[str, np.ndarray]],
    storage: str,
    what: str,
    key: Callable[[], Any],
) -> tuple[Any, dict[str, np.ndarray]]:
    """An array of a shape (N, ...) that `fill` fills, in memory or in a file of the cache, as
    `is_large` says; and what `fill` returns.

    Args:
      fill: takes something whose rows can be set, and returns small arrays that belong to it.
      storage: a word of `STORAGES`.
      what: what an error and the log call it.
      key: () -> JSON that says all that the numbers depend on; a file of that key is read again.

    Raises:
      ValueError: memory or disk doesn't have the room; or what `fill` raises.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not is_large(size, storage):
        check_fits(size, what)
        out = np.empty(shape, dtype)
        return out, dict(fill(out))
    folder = runtime.cache_directory() / "data"
    path = folder / f"{content_hash(key(), list(shape), dtype.str)}.npy"
    beside = path.with_suffix(".npz")
    try:
        found = Stored.npy(path), read_arrays(beside)
        _LOG.info("%s: read from %s", what, path)
        return found
    except FileNotFoundError:
        _LOG.info("%s: %.1f GiB are decoded once, into %s", what, size / 2**30, path)
    except ValueError as error:
        _LOG.warning("%s: it is decoded again", error)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{what} would take {size / 2**30:,.1f} GiB in {folder}, and {free / 2**30:,.1f} GiB"
            " are free there; DIFFAX_CACHE names another place"
        )
    with replacing(path) as partial:
        writer = _Writer(partial, shape, dtype)
        try:
            arrays = dict(fill(writer))
        finally:
            writer.close()
        write_arrays(beside, arrays)
    return Stored.npy(path), read_arrays(beside)
