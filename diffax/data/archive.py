"""Reading .npz files, whoever wrote them and whatever is in them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from diffax import runtime


def read_npz(
    path: str | os.PathLike, pick: Callable[[Sequence[str]], Iterable[str]]
) -> dict[str, np.ndarray]:
    """Some arrays of an .npz file, whole and as they are; nothing in the file is run.

    Members that are no .npy file are passed over.

    Args:
      path: the file.
      pick: the names of its arrays -> those that are wanted; it may raise ValueError.

    Raises:
      FileNotFoundError: there is no such file, or it is no regular one.
      PermissionError: and others of its kind, where it can't be opened.
      ValueError: it is no .npz, or an array can't be read (objects, a damaged or encrypted member,
        more than the memory that is free); names the file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    # zipfile and NumPy have no one kind of error for what they can't read, here and below.
    try:
        archive = zipfile.ZipFile(path)
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
