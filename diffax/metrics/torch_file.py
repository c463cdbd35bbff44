"""Reads the tensors of a file that torch.save wrote, without PyTorch and without running it.

Such a file holds a pickle, which is a program: as it is loaded, it may call any function of any
module. Here it may call what is in `_ALLOWED` alone, and all of that only notes down what is asked.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_MAGIC = 0x1950A86A20F9469CFC6C  # what a file of the format before PyTorch 1.6 begins with
_LEGACY_VERSION = 1001


def read_torch_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state_dict that torch.save wrote: name -> array, in the file's order.

    Both formats are read: the zip archive of PyTorch 1.6 and later, and the stream before it.
    bfloat16, sparse and quantised tensors are not.

    Raises:
      ValueError: the file asks for something that isn't needed for tensors (which is not done), is
        damaged, or holds something else than a mapping of names to tensors.
      OSError: it can't be opened.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            content, storages = (_read_archive if zipped else _read_stream)(file)
        return {_name(k): _array(k, v, storages) for k, v in content.items()}
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} can't be read as a file of torch.save: {reason}") from error


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, as is the offset


# (module, name) -> what stands for it. A function is made anew each time, and a storage's type is a
# string: a pickle may set attributes of what it is given.
_ALLOWED: dict[tuple[str, str], Callable[[], Any]] = {
    ("collections", "OrderedDict"): lambda: OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): lambda: lambda *args: _Tensor(*args[:4]),
    **{("torch", name): lambda dtype=dtype: dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, which is refused")
        return _ALLOWED[module, name]()

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or any(view):
            raise ValueError(f"it refers to a {kind!r} in a way that isn't known")
        return _Storage(str(key), dtype, int(length))


def _read_archive(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """The zip archive: NAME/data.pkl, and a member NAME/data/KEY for each storage."""
    archive = zipfile.ZipFile(file)
    (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = program.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        _check_byte_order(archive.read(f"{folder}byteorder") == b"little")
    with archive.open(program) as stream:
        content = _Unpickler(stream).load()
    used = {tensor.storage for tensor in _tensors(content)}
    read = {s: np.frombuffer(archive.read(f"{folder}data/{s.key}"), s.dtype) for s in used}
    return content, read.__getitem__


def _read_stream(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """Pickles one after another (magic number, version, system, content, keys), then the storages
    in the order of the keys: the length in eight bytes, the elements."""
    magic, version, system, content = (_Unpickler(file).load() for _ in range(4))
    if (magic, version) != (_MAGIC, _LEGACY_VERSION):
        raise ValueError("its first bytes are of no known format")
    _check_byte_order(system["little_endian"])
    storages = {tensor.storage.key: tensor.storage for tensor in _tensors(content)}
    read = {}
    for key in _Unpickler(file).load():
        storage = storages[str(key)]
        (length,) = np.frombuffer(file.read(8), "<i8")
        data = file.read(int(length) * np.dtype(storage.dtype).itemsize)
        read[storage] = np.frombuffer(data, storage.dtype)
    return content, read.__getitem__


def _check_byte_order(little: bool) -> None:
    if not little:
        raise ValueError("it was written on a big-endian machine")


def _tensors(content: Any) -> list[_Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not names with tensors")
    return [value for value in content.values() if isinstance(value, _Tensor)]


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{key!r} is no name of a tensor")
    return key


def _array(name: str, tensor: Any, storages: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, not a tensor")
    data, step = storages(tensor.storage), np.dtype(tensor.storage.dtype).itemsize
    # Beyond its storage lies memory of others.
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides))
    counts = (tensor.offset, *tensor.shape, *tensor.strides)
    inside = min(counts) >= 0 and (0 in tensor.shape or last < len(data) == tensor.storage.length)
    if not inside or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"{name} does not lie within its storage of {len(data)} elements")
    strides = tuple(step * s for s in tensor.strides)
    return np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides).copy()
