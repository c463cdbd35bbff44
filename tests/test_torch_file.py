"""Files of torch.save: both formats as PyTorch wrote them, and files that ask for more."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch_metrics_cases as cases

from diffax.evaluation.pretrained import read_torch_file

HERE = Path(__file__).parent
FILES = ("torch_zip.pth", "torch_stream.pth")


@pytest.mark.parametrize("name", FILES)
def test_what_pytorch_wrote_is_read(name):
    """All types, names in order, and tensors that are views into the storage of another."""
    found, wanted = read_torch_file(HERE / name), cases.tensors()
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Imported:
    """Pickles as the name of a function or class, of a module that need not be there."""

    def __init__(self, module, name):
        self.name = f"{module}\n{name}\n"


class Pickler(pickle._Pickler):
    """One that writes references to storages, as torch.save does, and names by themselves."""

    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value):
        return value[1:] if isinstance(value, tuple) and value[:1] == ("reference",) else None

    def save_imported(self, value):
        self.write(pickle.GLOBAL + value.name.encode())

    dispatch[Imported] = save_imported


def write(path, content, storages=(b"\0" * 16,), byteorder=b"little"):
    """A file in the format of today; returns its path."""
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", stream.getvalue())
        archive.writestr("x/byteorder", byteorder)
        for i, data in enumerate(storages):
            archive.writestr(f"x/data/{i}", data)
    return path


class Rebuild:
    """Pickles as a tensor of four floats' storage, described as given."""

    def __init__(self, offset, shape, strides, length=4, storage="FloatStorage"):
        kind = Imported("torch", storage)
        reference = ("reference", "storage", kind, "0", "cpu", length)
        self.args = (reference, offset, shape, strides, False, OrderedDict())


def save_rebuild(pickler, value):
    pickler.write(pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n")
    pickler.save(value.args)
    pickler.write(pickle.REDUCE)


Pickler.dispatch[Rebuild] = save_rebuild


def test_the_files_made_here_are_like_those_of_pytorch(tmp_path):
    """Or else the refusals below would show nothing."""
    data = np.arange(4, dtype=np.float32)
    path = write(tmp_path / "f", {"a": Rebuild(1, (3,), (1,))}, [data.tobytes()])
    np.testing.assert_array_equal(read_torch_file(path)["a"], data[1:])


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_pickle_asks_for_is_not_done(tmp_path, stream):
    """A file that would make a folder as it is loaded: the folder isn't made, the call is named."""
    path, folder = tmp_path / "weights.pth", tmp_path / "folder"
    content = {"a": Call(os.mkdir, str(folder))}
    if stream:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        write(path, content)
    with pytest.raises(ValueError, match=rf"{os.mkdir.__module__}.mkdir, which is refused"):
        read_torch_file(path)
    assert not folder.exists()
    pickle.loads(pickle.dumps(content))  # elsewhere it is made
    assert folder.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Imported("builtins", "eval")}, "builtins.eval, which is refused"),
        ({"a": Imported("torch", "BFloat16Storage")}, "torch.BFloat16Storage, which is refused"),
        ({"a": Imported("collections", "OrderedDict.fromkeys")}, "fromkeys, which is refused"),
        ({"a": Rebuild(0, (5,), (1,))}, "a does not lie within its storage of 4"),
        ({"a": Rebuild(1, (2, 2), (2, 1))}, "a does not lie within"),
        ({"a": Rebuild(-1, (2,), (1,))}, "a does not lie within"),
        ({"a": Rebuild(3, (3,), (-1,))}, "a does not lie within"),
        ({"a": Rebuild(0, (2, 2), (1,))}, "a does not lie within"),
        ({"a": Rebuild(0, (8,), (1,), length=8)}, "a does not lie within"),
        ({"a": {"b": Rebuild(0, (4,), (1,))}}, "a is a dict, not a tensor"),
        ({3: Rebuild(0, (4,), (1,))}, "3 is no name"),
        ([1, 2], "holds a list"),
    ],
)
def test_refusals(tmp_path, content, message):
    path = write(tmp_path / "weights.pth", content)
    with pytest.raises(ValueError, match=f"weights.pth can't be read.*{message}"):
        read_torch_file(path)


def test_another_byte_order_is_refused(tmp_path):
    path = write(tmp_path / "weights.pth", {}, byteorder=b"big")
    with pytest.raises(ValueError, match="big-endian"):
        read_torch_file(path)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(tmp_path, name):
    """Cut anywhere it is an error that names the file, and never tensors that are wrong."""
    whole, path = (HERE / name).read_bytes(), tmp_path / "weights.pth"
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="weights.pth can't be read"):
            read_torch_file(path)
    with pytest.raises(OSError, match="absent"):
        read_torch_file(tmp_path / "absent.pth")
