"""Damaged checkpoints: found whatever the damage, named, and the one before is used."""

import gc
import logging
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.training.checkpoint import Checkpoints, DamagedError

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


DAMAGES = {
    "no loop": lambda step: (step / "loop" / "metadata").unlink(),
    "half a loop": lambda step: cut(step / "loop" / "metadata"),
    "no arrays' names": lambda step: (step / "state" / "_METADATA").unlink(),
    "half the names": lambda step: cut(step / "state" / "_METADATA"),
    "no arrays": lambda step: shutil.rmtree(step / "state" / "ocdbt.process_0"),
    "half the arrays": lambda step: [cut(p) for p in (step / "state").rglob("d/*")],
    "emptied arrays": lambda step: [p.write_bytes(b"") for p in (step / "state").rglob("d/*")],
    "a bit of the arrays": lambda step: flip(max((step / "state").rglob("d/*"), key=size)),
    "a bit of the loop": lambda step: flip(step / "loop" / "metadata", after=b'"at": '),
    "a bit of the checksums": lambda step: flip(step / "checksums" / "metadata"),
    "a bit of an array's name": lambda step: flip(step / "state" / "_METADATA", after=b'"key": "'),
}


def size(path):
    return path.stat().st_size


def flip(path, after=None):
    """One bit, in the middle or right after some bytes."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if after is None else data.index(after) + len(after)] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_is_used(damage, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)  # so that caplog sees it
    like = {"a": jnp.zeros(1000)}
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": jnp.arange(1000.0) * step}, {"at": step})
    checkpoints.close()
    DAMAGES[damage](tmp_path / "3")
    with pytest.raises(ValueError, match="step 3 in .* can't be read") as caught:
        Checkpoints(tmp_path, read_only=True).restore(like, ONE, 3)
    said = str(caught.value)
    assert "\n" not in said and "<" not in said and "TensorStore details" not in said
    for read_only in (True, False):
        caplog.clear()
        checkpoints = Checkpoints(tmp_path, keep=3, read_only=read_only)
        state, loop = checkpoints.restore(like, ONE)
        np.testing.assert_array_equal(state["a"], jnp.arange(1000.0) * 2)
        assert loop == {"at": 2}
        assert "read_only" not in caplog.text and "read only" not in caplog.text
        assert "step 3 is damaged" in caplog.text and "step 2 is used" in caplog.text
    # put aside, so that the step can be saved again
    assert (tmp_path / "damaged-3").is_dir() and checkpoints.steps() == [1, 2]
    checkpoints.save(3, {"a": jnp.arange(1000.0)}, {"at": 3})
    checkpoints.wait()
    assert checkpoints.restore(like, ONE)[1] == {"at": 3}
    # and be damaged again
    DAMAGES[damage](tmp_path / "3")
    assert checkpoints.restore(like, ONE)[1] == {"at": 2}
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


@pytest.mark.parametrize("damage", [name for name in DAMAGES if "arrays" in name])
def test_of_the_arrays_that_are_no_longer_read_nothing_is_printed(damage, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).normal(size=(100, 1000))
    like = {f"a{i}": jnp.asarray(row) for i, row in enumerate(noise)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, like, {})
    checkpoints.close()
    DAMAGES[damage](tmp_path / "1")
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with pytest.raises(ValueError, match="can't be read"):
        Checkpoints(tmp_path, read_only=True).restore(like, ONE)
    time.sleep(0.2)  # callbacks from other threads come after the error
    gc.collect()
    assert not printed


def test_one_without_checksums_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.arange(10)}, {"at": 1})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "1" / "checksums")
    with pytest.raises(DamagedError, match="step 1 .* can't be read"):
        checkpoints.restore({"a": jnp.arange(10)}, ONE)
    checkpoints.close()


def test_where_none_can_be_read_all_stay(tmp_path):
    like = {"a": jnp.zeros(10)}
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, like, {})
        checkpoints.wait()
        (tmp_path / str(step) / "loop" / "metadata").unlink()
    with pytest.raises(ValueError, match="step 2 in .* can't be read, nor is there another"):
        checkpoints.restore(like, ONE)
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_the_details_that_a_library_adds_to_an_error_are_left_out(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.arange(10)}, {})
    checkpoints.wait()

    def read(*_):
        raise ValueError("no chunk. See full TensorStore details: <bound method f>\nand more")

    monkeypatch.setattr(Checkpoints, "_read", read)
    with pytest.raises(ValueError, match=r"nor is there another that can: no chunk\.$"):
        checkpoints.restore({"a": jnp.arange(10)}, ONE)
    checkpoints.close()
