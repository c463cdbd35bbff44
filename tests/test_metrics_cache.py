"""What metrics keep from one process to the next."""

import os

import numpy as np
import pytest

from diffax.metrics import cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path))
    return tmp_path / "features"


def test_arrays_are_made_once(folder):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "n": np.int64(3)}
    first = cache.kept("features", "one", lambda: arrays)
    second = cache.kept("features", "one", pytest.fail)
    for found in (first, second):
        assert found.keys() == arrays.keys()
        for key, value in arrays.items():
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == value.dtype
    assert [path.name for path in folder.iterdir()] == ["one.npz"]


def test_a_folder_loses_the_oldest_beyond_its_bound(folder):
    """Files of 8,000 bytes and a header where 20,000 are allowed: the latest two stay."""
    for age, name in enumerate(("new", "middle", "old")):
        cache.kept("features", name, lambda: {"x": np.zeros(1000)}, most_bytes=20_000_000)
        os.utime(folder / f"{name}.npz", (1e9 - age, 1e9 - age))
    found = cache.kept("features", "newest", lambda: {"x": np.ones(1000)}, most_bytes=20_000)
    np.testing.assert_array_equal(found["x"], np.ones(1000))
    assert {path.stem for path in folder.iterdir()} == {"newest", "new"}


def test_what_is_larger_than_the_bound_is_given_all_the_same(folder):
    found = cache.kept("features", "large", lambda: {"x": np.ones(1000)}, most_bytes=100)
    np.testing.assert_array_equal(found["x"], np.ones(1000))
    assert not list(folder.iterdir())
