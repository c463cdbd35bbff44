"""Files that are cached from one process to the next."""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffax import evaluation, files
from diffax.files import content_hash


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path))
    return tmp_path / "features"


def test_arrays_are_made_once(folder):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "n": np.int64(3)}
    first = files.cached("features", "one", lambda: arrays)
    second = files.cached("features", "one", pytest.fail)
    for found in (first, second):
        assert found.keys() == arrays.keys()
        for key, value in arrays.items():
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == value.dtype
    assert [path.name for path in folder.iterdir()] == ["one.npz"]


def test_a_damaged_file_is_noticed_and_made_again(folder, caplog, monkeypatch):
    """Any bit of it that is flipped, and wherever it is cut: what is read is right, or refused."""
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    arrays = {"a": np.arange(3.0), "n": np.int64(3), "empty": np.zeros((0, 2))}
    files.cached("features", "one", lambda: arrays)
    path = folder / "one.npz"
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 97)]
    for place in range(len(whole)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = files.read_arrays(path)
        except ValueError as error:
            refused += str(path) in str(error)
            continue
        assert found.keys() == arrays.keys()
        for key, value in arrays.items():
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == value.dtype
    assert refused > len(damaged) / 2
    np.savez(path, **arrays)  # of another program
    for content in (whole[:-30], path.read_bytes(), b"", b"no archive"):
        path.write_bytes(content)
        caplog.clear()
        found = files.cached("features", "one", lambda: arrays)
        np.testing.assert_array_equal(found["a"], arrays["a"])
        assert [record.message.endswith("it is made again") for record in caplog.records] == [True]
        assert str(path) in caplog.text
        files.cached("features", "one", pytest.fail)
    assert [found.name for found in folder.iterdir()] == ["one.npz"]


def test_where_nothing_can_be_kept_all_goes_on(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    folder.write_text("no folder")
    np.testing.assert_array_equal(files.cached("features", "one", lambda: {"a": 3})["a"], 3)
    assert "one.npz can't be cached" in caplog.text


def test_two_writers_at_once_do_not_meet(folder):
    def make():
        files.write_arrays(folder / "one.npz", {"a": np.zeros(3)})  # another machine, meanwhile
        return {"a": np.ones(3)}

    np.testing.assert_array_equal(files.cached("features", "one", make)["a"], np.ones(3))
    np.testing.assert_array_equal(files.cached("features", "one", pytest.fail)["a"], np.ones(3))


def test_who_asks_at_once_waits_for_the_one_who_makes_them(folder):
    begun, made = threading.Event(), []

    def make():
        begun.set()
        time.sleep(0.2)  # for the others to come
        made.append(1)
        return {"a": np.ones(3)}

    with ThreadPoolExecutor() as pool:
        first = pool.submit(files.cached, "features", "one", make)
        assert begun.wait(10)
        others = [pool.submit(files.cached, "features", "one", make) for _ in range(3)]
    for found in (first, *others):
        np.testing.assert_array_equal(found.result()["a"], np.ones(3))
    assert len(made) == 1 and [path.name for path in folder.iterdir()] == ["one.npz"]


def test_damaged_weights_are_converted_anew_by_hand(tmp_path):
    path = tmp_path / "weights" / "inception-2015-12-05.npz"
    files.write_arrays(path, {"sha256": "0" * 64, "a/kernel": np.ones(3, np.float32)})
    content = path.read_bytes()
    path.write_bytes(content.replace(np.ones(3, np.float32).tobytes(), bytes(12)))
    with pytest.raises(ValueError, match=rf"{path}.* can't be read .*convert-inception .* again"):
        evaluation.get_extractor("inception")


def test_different_contents_have_different_hashes():
    hashes = [
        content_hash(*parts)
        for parts in (
            (1, 23),
            (12, 3),
            ("1", 23),
            (123,),
            ([1, 23],),
            (np.array([1, 23]),),
            (np.array([1, 23], np.uint8),),
            (np.array([[1, 23]]),),
            (np.array([1]), np.array([23])),
            (np.array([1, 23]), None),
            (np.array([23, 1]),),
            (np.zeros((0, 2)),),
            (np.zeros((2, 0)),),
        )
    ]
    assert len(set(hashes)) == len(hashes) and {len(found) for found in hashes} == {32}
    assert content_hash(np.arange(6)[::2]) == content_hash(np.array([0, 2, 4]))


def test_a_folder_loses_the_oldest_beyond_its_bound(folder):
    """Files of 8,000 bytes and a header where 20,000 are allowed: the latest two stay."""
    for age, name in enumerate(("new", "middle", "old")):
        files.cached("features", name, lambda: {"x": np.zeros(1000)}, most_bytes=20_000_000)
        os.utime(folder / f"{name}.npz", (1e9 - age, 1e9 - age))
    found = files.cached("features", "newest", lambda: {"x": np.ones(1000)}, most_bytes=20_000)
    np.testing.assert_array_equal(found["x"], np.ones(1000))
    assert {path.stem for path in folder.iterdir()} == {"newest", "new"}


def test_what_is_larger_than_the_bound_is_given_all_the_same(folder):
    found = files.cached("features", "large", lambda: {"x": np.ones(1000)}, most_bytes=100)
    np.testing.assert_array_equal(found["x"], np.ones(1000))
    assert not list(folder.iterdir())
