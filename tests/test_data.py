"""load, npz, mixture2d: what they deliver, and what they say when they cannot."""

import io
import logging
import os
import pathlib
import subprocess
import sys
import zipfile

import ml_collections
import numpy as np
import pytest
from data_files import load, save_image, save_npz

from diffax import data, runtime

ROOT = pathlib.Path(__file__).parents[1]


# -- load and its fields -------------------------------------------------------------------------


def test_import_is_light():
    """Nothing heavy, and nothing else of diffax (whose own __init__ is left out here)."""
    heavy = ("tensorflow", "tensorflow_datasets", "sklearn", "PIL", "grain")
    code = (
        "import sys, types; package = types.ModuleType('diffax'); package.__path__ = ['diffax'];"
        "sys.modules['diffax'] = package; import diffax.data; print(*sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = out.stdout.split()
    assert "diffax.data.pipeline" in loaded
    assert not set(heavy) & set(loaded)
    ours = [m for m in loaded if m.startswith("diffax.")]
    below = tuple(f"diffax.{m}." for m in ("data", "files", "places", "registry", "runtime"))
    assert all(f"{m}.".startswith(below) for m in ours)


def test_known_fields_are_the_defaults():
    fields = data.known_fields()
    assert fields["name"] == "digits"
    assert fields["channels"] == 0
    assert {"path", "data_dir", "image_size", "pad_to", "flip", "array"} <= set(fields)


def test_none_means_the_default_and_a_plain_mapping_will_do(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=-np.ones((9, 2)))
    assert data.load({"name": "npz", "path": path, "array": None}).shape == (2,)


def test_what_was_read_last_is_kept_while_its_files_are_as_they_were(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=-np.ones((9, 2)), label=np.arange(9) % 3)
    fields = {"name": "npz", "path": path}
    kept = data.load_cached(fields)
    assert data.load_cached(ml_collections.ConfigDict(fields | {"array": None})) is kept
    for array in (kept.train.x, kept.eval.x, kept.train.label, kept.eval.label):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    own = data.load(fields)  # one's own, to do with as one likes
    own.train.x[0] = 0
    assert own is not kept and np.all(kept.train.x == -1)
    save_npz(tmp_path / "a.npz", x=np.zeros((11, 2)))
    assert len(data.load_cached(fields).train) == 10
    with pytest.raises(ValueError, match=r"data\.nmae is not a field"):
        data.load_cached({"nmae": "digits"})
    for name in "ab":
        save_image(tmp_path / "images" / f"{name}.png")
    fields = {"name": "folder", "path": str(tmp_path / "images")}
    kept = data.load_cached(fields)
    assert data.load_cached(fields) is kept
    save_image(tmp_path / "images" / "c.png")
    assert len(data.load_cached(fields).train) == len(kept.train) + 1


def test_flip_of_what_is_no_image_is_refused(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=-np.ones((9, 2)))
    with pytest.raises(ValueError, match=r"data\.flip=True mirrors images .* \(2,\)"):
        load(name="npz", path=path, flip=True)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"nmae": "digits"},
            r"data\.nmae is not a field .did you mean name.*; the fields are name, path,",
        ),
        ({"image_size": "8"}, r"data\.image_size='8' is str; it must be int"),
        ({"flip": 1}, r"data\.flip=1 is int; it must be bool"),
        ({"pad_to": -1}, r"data\.pad_to=-1 must not be negative"),
        ({"image_size": 2**31}, r"data\.image_size=2147483648 must not be .* above 16384"),
        (
            {"name": "folder", "path": ".", "channels": 2},
            r"data\.channels=2 must be 1 \(grey\), 3 \(colour\) or 0",
        ),
        ({"name": ""}, r"data\.name is empty"),
        ({"name": "digits", "path": "x"}, r"data\.path='x' has no meaning for .*'digits'"),
        ({"name": "mixture2d", "image_size": 8}, r"data\.image_size=8 has no meaning"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        load(**fields)


def test_mixture2d():
    dataset = load(name="mixture2d")
    assert (dataset.levels, dataset.num_classes, dataset.train.label) == (None, 0, None)
    assert (len(dataset.train), len(dataset.eval)) == (50_000, 10_000)
    # Five standard errors of a mean and of a variance (kurtosis below 3) of 50,000 points.
    assert np.all(np.abs(dataset.train.array().mean(0)) < 5 / np.sqrt(50_000))
    assert np.all(np.abs(dataset.train.array().var(0) - 1) < 5 * np.sqrt(2 / 50_000))
    train, evaluation = ({x.tobytes() for x in s.x} for s in (dataset.train, dataset.eval))
    assert train.isdisjoint(evaluation)


def test_what_a_data_set_is_made_of_is_checked():
    points, label = np.zeros((3, 2), np.float32), np.array([0, 1, 1], np.int32)
    good = data.Split(points, label)
    assert data.make_dataset("a", good, good, ("x", "y")).num_classes == 2
    for split, names, said in (
        (data.Split(points, label - 1), ("x", "y"), "go from -1 to 0, and the 2 classes"),
        (good, ("x",), "go from 0 to 1, and the 1 classes"),
        (data.Split(points), ("x", "y"), "has no labels, and there are 2 names"),
        (good, (), "has labels, and there are 0 names"),
        (data.Split(points + np.inf, label), ("x", "y"), "has values that are not finite"),
        (data.Split(points - np.nan, label), ("x", "y"), "has values that are not finite"),
    ):
        with pytest.raises(ValueError, match=f"data.name='a': the .*train split {said}"):
            data.make_dataset("a", split, good, names)


# -- npz -----------------------------------------------------------------------------------------


def test_npz_of_audio(tmp_path):
    audio = np.arange(-32768, 32768, 8, dtype=np.int16).reshape(64, 128, 1)
    label = np.arange(64) % 3
    path = save_npz(tmp_path / "a.npz", audio=audio, label=label, speaker=np.zeros(64))
    dataset = load(name="npz", path=path)
    assert (dataset.shape, dataset.levels, dataset.num_classes) == ((128, 1), None, 3)
    assert (len(dataset.train), len(dataset.eval)) == (58, 6)
    both = np.concatenate([dataset.train.array(), dataset.eval.array()])
    labels = np.concatenate([dataset.train.label, dataset.eval.label])
    order = np.argsort(both[:, 0, 0])
    np.testing.assert_array_equal(both[order] * 32768, audio)
    np.testing.assert_array_equal(labels[order], label)
    assert both.min() == -1
    np.testing.assert_array_equal(load(name="npz", path=path).eval.x, dataset.eval.x)


@pytest.mark.parametrize(
    "shape", [(9, 8, 8), (9, 1, 64), (9, 3, 8, 8), (9, 8), (9, 8, 8, 3)], ids=str
)
def test_npz_of_as_many_channels_as_are_said(shape, tmp_path):
    """Signals of eight channels and length, say, which could be grey images."""
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    path = save_npz(tmp_path / "a.npz", x=x)
    assert load(name="npz", path=path, channels=shape[-1]).shape == shape[1:]


def test_npz_of_bytes_and_floats(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=np.ones((20, 4, 4, 3), np.uint8), y=np.eye(20))
    dataset = load(name="npz", path=path, flip=True)
    assert (dataset.shape, dataset.levels) == ((4, 4, 3), 256)
    floats = load(name="npz", path=path, array="y", range=(-1, 1))
    assert (floats.shape, floats.levels, floats.train.x.dtype) == ((20,), None, np.float32)
    assert floats.train.array().sum() == 18


POINTS = np.linspace(-1, 1, 18).reshape(9, 2)
BYTES = np.linspace(0, 255, 9 * 48).astype(np.uint8).reshape(9, 4, 4, 3)


@pytest.mark.parametrize(
    "arrays, fields, message",
    [
        ({"a": np.ones((9, 2)), "b": np.ones((9, 2))}, {}, r"holds a, b: name .* data\.array"),
        ({"x": np.ones((9, 2))}, {"array": "q"}, r"data\.array='q' is not in .* which holds x"),
        ({"x": np.ones(9)}, {}, r"has shape \(9,\); it must be \(N, \.\.\., channels\)"),
        ({"x": np.ones((9, 2), np.int64)}, {}, r"dtype int64; it must be uint8, int16 or floating"),
        ({"x": np.ones((9, 2), complex)}, {}, r"dtype complex128; it must be uint8"),
        ({"x": np.ones((9, 2), complex)}, {"range": (-1, 1)}, r"dtype complex128; .* numbers"),
        ({"x": np.full((9, 2), "word")}, {}, r"dtype <U4; it must be uint8"),
        ({"x": np.full((9, 2), np.nan)}, {}, r"not finite"),
        ({"x": np.zeros((9, 0))}, {}, r"has shape \(9, 0\)"),
        ({"x": np.zeros((0, 9))}, {}, r"has shape \(0, 9\)"),
        ({"x": np.array(1.0)}, {}, r"has shape \(\)"),
        ({"x": np.array([[None]])}, {}, r"'x' in .*a\.npz can't be read \(Object arrays"),
        ({"label": np.zeros(9, int)}, {}, r"holds label: name the array"),
        ({}, {}, r"holds no array: name"),
        ({"x": POINTS, "label": np.ones(8, int)}, {}, r"'label' in .* 9 integers .* int64 \(8,\)"),
        ({"x": POINTS, "label": np.ones(9)}, {}, r"9 integers .* it is float64 \(9,\)"),
        ({"x": POINTS, "label": -np.ones(9, int)}, {}, r"below 9; it has -1"),
        ({"x": POINTS, "label": np.full(9, 2**32 + 3)}, {}, r"below 9; it has 4294967299"),
        ({"x": POINTS, "label": np.full(9, 2**64 - 1, "u8")}, {}, r"it has 18446744073709551615"),
        ({"x": POINTS, "label": np.full(9, 9, np.int8)}, {}, r"below 9; it has 9"),
        # What another range than [-1, 1] fits better.
        ({"x": BYTES / 1.0}, {}, r"float64 values from 0 to 255, .*\[-1, 1\]: set data\.range"),
        ({"x": BYTES / np.float32(255)}, {}, r"float32 values from 0 to 1, .* data\.range"),
        ({"x": BYTES.astype(np.int16)}, {}, r"int16 values from 0 to 255, .* data\.range"),
        ({"x": BYTES / 1.0}, {"range": (0, 1)}, r"from 0 to 255, .* beyond data\.range=\(0, 1\)"),
        ({"x": 1e3 * POINTS}, {"range": (-1, 1)}, r"beyond what can be trained on"),
        ({"x": POINTS}, {"range": (1, -1)}, r"data\.range=\(1, -1\) must be \(low, high\)"),
        ({"x": POINTS}, {"range": (0, float("inf"))}, r"two finite numbers"),
        ({"x": POINTS}, {"range": (0.0, 1.0, 2.0)}, r"two finite numbers"),
        # Axes that are surely not (N, ..., channels).
        ({"x": np.zeros((9, 3, 8, 8), "u1")}, {}, r"\(9, 3, 8, 8\), and .*transpose\(0, 2, 3, 1\)"),
        ({"x": np.zeros((9, 1, 8, 6))}, {}, r"transpose\(0, 2, 3, 1\)"),
        ({"x": np.zeros((9, 1, 64))}, {}, r"transpose\(0, 2, 1\)"),
        ({"x": np.zeros((9, 8, 8), "u1")}, {}, r"an axis of channels, .* x\[\.\.\., None\]"),
        ({"x": np.zeros((9, 8, 8))}, {}, r"an axis of channels, .*; or set data\.channels=8, if"),
        ({"x": np.zeros((9, 8, 8))}, {"channels": 7}, r"\(9, 8, 8\), and data\.channels=7"),
        ({"x": np.zeros((9, 8, 8))}, {"channels": -8}, r"and data\.channels=-8"),
    ],
)
def test_npz_errors(tmp_path, arrays, fields, message):
    path = save_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(name="npz", path=path, **fields)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i8", "f2", "f4", "f8", ">f4", ">i2"])
def test_npz_of_any_numbers_in_a_range(tmp_path, dtype):
    path = save_npz(tmp_path / "a.npz", x=BYTES.astype(dtype))
    dataset = load(name="npz", path=path, range=[0, 255])
    assert dataset.levels == (256 if dtype == "u1" else None)
    both = np.concatenate([dataset.train.array(), dataset.eval.array()])
    np.testing.assert_allclose(np.unique(both), np.unique(BYTES) / 127.5 - 1, atol=1e-7)


def test_npz_of_points_that_are_meant_as_they_are(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=4.5 * POINTS)
    with pytest.raises(ValueError, match=r"from -4\.5 to 4\.5, .*\(-1, 1\) takes floats as they"):
        load(name="npz", path=path)
    dataset = load(name="npz", path=path, range=(-1.0, 1.0))
    assert dataset.train.x.min() == np.float32(-4.5)
    mask = save_npz(tmp_path / "b.npz", x=BYTES > 99)
    assert set(np.unique(load(name="npz", path=mask, range=(0, 1)).train.x)) == {-1, 1}


def test_npz_of_classes_that_have_names(tmp_path, caplog, monkeypatch):
    words = np.array(["dog", "cat", "bird"])[np.arange(9) % 3]
    dataset = load(name="npz", path=save_npz(tmp_path / "a.npz", x=POINTS, label=words))
    assert (dataset.label_names, dataset.num_classes) == (("bird", "cat", "dog"), 3)
    (place,) = np.flatnonzero(np.isclose(POINTS[:, 0], dataset.eval.x[0, 0]))
    assert dataset.label_names[dataset.eval.label[0]] == words[place]
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    label = np.array([0, 1, 3] * 3, np.uint64)
    dataset = load(name="npz", path=save_npz(tmp_path / "b.npz", x=POINTS, label=label))
    assert dataset.label_names == ("0", "1", "2", "3") and dataset.train.label.dtype == np.int32
    assert "no example is of class 2" in caplog.text


def test_npz_of_odd_members(tmp_path, monkeypatch):
    """Each is refused in a sentence that names the file; what is no array is passed over."""
    good = io.BytesIO()
    np.save(good, POINTS)
    good = good.getvalue()

    def refused(message, **members):
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name.replace("__", "."), content)
        with pytest.raises(ValueError, match=rf"(?=.*{path}).*{message}"):
            load(name="npz", path=str(path))

    refused("holds no array", x__txt=b"text", readme=b"text")
    refused("'x' in .* can't be read", x__npy=b"text")
    refused("'x' in .* can't be read", x__npy=b"")
    refused("'x' in .* can't be read", x__npy=good[:-1])
    refused("bytes follow the array", x__npy=good + b"more")
    refused("'x' in .* can't be read", x__npy=good.replace(b"(9, 2)", b"(9,-2)"))
    refused("'x' in .* can't be read", x__npy=good.replace(b"(9, 2), }  ", b"(99999999,2)}"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "text")
        archive.writestr("x.npy", good)
    assert len(load(name="npz", path=str(tmp_path / "a.npz")).train) == 8
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", good)
        with pytest.warns(match="Duplicate"):
            archive.writestr("x.npy", good)
    with pytest.raises(ValueError, match=r"b\.npz holds 'x' 2 times"):
        load(name="npz", path=str(tmp_path / "b.npz"), array="x")
    content = (tmp_path / "a.npz").read_bytes()
    for name, damaged in {
        "half": content[: len(content) // 2],
        "flip": content.replace(POINTS.tobytes(), (-POINTS).tobytes()),
        "encrypted": content.replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
        ),
        "method": content.replace(
            b"PK\x01\x02\x14\x03\x14\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63"
        ),
        "empty": b"",
        "pickle": b"\x80\x04K\x01.",
    }.items():
        (tmp_path / f"{name}.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}\.npz"):
            load(name="npz", path=str(tmp_path / f"{name}.npz"))
    # A polyglot: an archive behind other bytes is one all the same.
    (tmp_path / "behind.npz").write_bytes(b"#!/bin/sh\n" + content)
    assert len(load(name="npz", path=str(tmp_path / "behind.npz")).train) == 8
    monkeypatch.setattr(runtime, "available_memory", lambda: 100)
    with pytest.raises(ValueError, match=r"'x' in .*a\.npz would take 0\.0 GiB .* are free"):
        load(name="npz", path=str(tmp_path / "a.npz"), storage="memory")


def test_npz_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.path='nothing\.npz' is not a file"):
        load(name="npz", path="nothing.npz")
    path = tmp_path / "a.dat"
    with open(path, "wb") as file:
        np.save(file, np.ones((9, 2)))
    with pytest.raises(ValueError, match=rf"{path} is not an \.npz"):
        load(name="npz", path=str(path))


def test_spoken_digits():
    path = os.path.join(os.environ.get("DIFFAX_TEST_DATA", ""), "spoken_digits_8khz.npz")
    if not os.path.isfile(path):
        pytest.skip("spoken_digits_8khz.npz is not in the folder DIFFAX_TEST_DATA")
    dataset = load(name="npz", path=path)
    assert (dataset.shape, dataset.num_classes, dataset.levels) == ((4096, 1), 10, None)
    assert len(dataset.train) + len(dataset.eval) == 3000
    assert 0.5 < np.abs(dataset.train.x).max() <= 1


@pytest.mark.parametrize(
    "x, label, message",
    [
        (np.zeros((0, 2), np.float32), None, "N > 0"),
        (np.zeros((3, 2)), None, "float64"),
        (np.zeros((3, 2), np.uint8), np.zeros(3), "int32"),
        (np.zeros((3, 2), np.uint8), np.zeros(2, np.int32), r"shape \(3,\)"),
    ],
)
def test_split_checks_its_arrays(x, label, message):
    with pytest.raises(ValueError, match=message):
        data.Split(x, label)


# --- a source of one's own ----------------------------------------------------------------------


def _spirals(turns: float = 2.0, num: int = 40, path: str = ""):
    angle = np.linspace(0, turns * np.pi, num, dtype=np.float32)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * angle[:, None] / angle.max()
    return data.make_dataset(path or "spirals", data.Split(points), data.Split(points[::2]))


@pytest.mark.usefixtures("registering")
def test_a_registered_source_has_fields_of_its_own():
    """Its arguments are fields with their types; one that others have is the same field."""
    data.register("spirals", _spirals)
    assert data.key_types()["turns"] is float and data.known_fields()["turns"] is None
    assert len(data.load({"name": "spirals"}).train) == 40
    given = {"name": "spirals", "turns": 3, "num": 20, "path": "named", "array": ""}
    dataset = data.load(given)
    assert (len(dataset.train), dataset.name, dataset.shape) == (20, "named", (2,))
    assert data.load_cached(given | {"path": ""}) is data.load_cached(given | {"path": ""})
    for fields, words in {
        "turns": ("much", "data.turns='much' is str; it must be float"),
        "array": ("x", "has no meaning for data.name='spirals', which reads turns, num, path"),
        "turnz": (1, "data.turnz is not a field .did you mean turns"),
    }.items():
        with pytest.raises(ValueError, match=words[1]):
            data.load({"name": "spirals", fields: words[0]})
    with pytest.raises(ValueError, match="data.turns=2.0 has no meaning for data.name='mixture2d'"):
        data.load({"name": "mixture2d", "turns": 2.0})
    with pytest.raises(ValueError, match="'path' is of type int, that of 'DataConfig' of type str"):
        data.register("other", lambda path=1: None)
    data.register("wrong", lambda: 3)
    with pytest.raises(ValueError, match="returned int; it must return a diffax.data.Dataset"):
        data.load({"name": "wrong"})
