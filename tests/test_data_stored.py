"""Sets larger than memory: examples in a file, the batches those of the set in memory."""

import logging

import numpy as np
import pytest
from data_files import load, save_npz
from small_runs import PowerCut, assert_equal, cut_after, small_config
from tfds_scans import Scans

from diffax import data, runtime, training
from diffax.data import images
from diffax.data.stored import Stored, blocks, extremes, in_npz
from diffax.evaluation import extractors
from diffax.files import content_hash

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (40, 5, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each source's fields of config.data, for sets of some 40 examples."""
    root = tmp_path_factory.mktemp("sources")
    for i, x in enumerate(PICTURES):
        (root / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "photos" / "ab"[i % 2] / f"{i:02d}.png").write_bytes(images.encode_png(x))
    (root / "photos" / "b" / "bad.png").write_bytes(images.encode_png(PICTURES[0])[:-30])
    Scans(data_dir=str(root / "tfds")).download_and_prepare(file_format="array_record")
    label = np.arange(40) % 3
    np.save(root / "x.npy", PICTURES)
    scans = dict(name="scans", data_dir=str(root / "tfds"), pad_to=9)
    return {
        "folder": dict(name="folder", path=str(root / "photos"), pad_to=7, skip_bad=True),
        "tfds": scans | dict(train_split="train[:40]", eval_split="test[:9]"),
        "npz": dict(name="npz", path=save_npz(root / "x.npz", x=PICTURES, label=label)),
        "npz, converted": dict(
            name="npz", path=save_npz(root / "y.npz", x=PICTURES / 255, label=label), range=(0, 1)
        ),
        "npy": dict(name="npz", path=str(root / "x.npy")),
    }


@pytest.mark.parametrize("name", ["folder", "tfds", "npz", "npz, converted", "npy"])
def test_batches_of_a_file_are_those_of_memory(name, sources, monkeypatch):
    inside = load(**sources[name], storage="memory")
    outside = load(**sources[name], storage="disk")
    assert isinstance(outside.train.x, Stored) and isinstance(outside.eval.x, Stored)
    assert outside.fingerprint == inside.fingerprint
    assert (outside.label_names, outside.levels) == (inside.label_names, inside.levels)
    options = dict(batch_size=16, seed=3, flip=True)
    wanted = data.batches(inside.train, **options)
    found = data.batches(outside.train, **options)
    pieces = [
        data.batches(outside.train, **options, shard_index=i, shard_count=2) for i in range(2)
    ]
    for _ in range(6):
        batch = next(wanted)
        assert_equal(next(found), batch)
        joined = [next(piece)["x"] for piece in pieces]
        np.testing.assert_array_equal(np.concatenate(joined), batch["x"])
    state = found.get_state()
    resumed = data.batches(load(**sources[name], storage="disk").train, **options)
    resumed.set_state(state)
    assert_equal(next(resumed), next(wanted))


@pytest.mark.parametrize("name", ["folder", "tfds"])
def test_a_set_is_decoded_once(name, sources, monkeypatch, caplog):
    first = load(**sources[name], storage="disk")
    decode = images.decode
    tried = []
    monkeypatch.setattr(images, "decode", lambda *args: tried.append(args) or decode(*args))
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    again = load(**sources[name], storage="disk")
    assert again.fingerprint == first.fingerprint
    assert len(tried) <= 2  # a set of TFDS asks the first image of each split for its size
    if name == "folder":
        assert "1 of 41 images" in caplog.text and "are left out" in caplog.text
    (kept, *_) = (runtime.cache_directory() / "data").glob("*.npz")
    kept.write_bytes(b"damaged")
    assert load(**sources[name], storage="disk").fingerprint == first.fingerprint
    assert "it is decoded again" in caplog.text and len(tried) > 8


def test_what_fits_stays_in_memory_and_the_log_says_what_does_not(sources, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    caplog.set_level(logging.INFO, "diffax")
    assert isinstance(load(**sources["folder"]).train.x, np.ndarray)
    assert "decoded once" not in caplog.text
    monkeypatch.setattr(runtime, "available_memory", lambda: 2 * 41 * 7 * 7 * 3 - 1)
    assert isinstance(load(**sources["folder"]).train.x, Stored)
    assert "0.0 GiB are decoded once, into " in caplog.text
    with pytest.raises(ValueError, match="data.storage='disc' .did you mean disk"):
        load(**sources["folder"], storage="disc")


def test_rows_of_a_file_are_indexed_as_those_of_an_array(tmp_path):
    x = RNG.normal(size=(50, 3, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    found = Stored.npy(tmp_path / "x.npy")
    shuffled = RNG.permutation(50)
    for key in (7, -1, slice(3, 20, 2), shuffled, x[:, 0, 0] > 0, np.array([], int), slice(None)):
        np.testing.assert_array_equal(found[key], x[key])
        if not isinstance(key, int):
            np.testing.assert_array_equal(found.taken(key)[:], x[key])
    some = found.taken(shuffled[:20])
    np.testing.assert_array_equal(some[[3, 1]], x[shuffled[[3, 1]]])
    assert content_hash(some) == content_hash(x[shuffled[:20]])
    assert extremes(found) == (x.min(), x.max())
    np.testing.assert_array_equal(np.concatenate([*blocks(found)]), x)
    with pytest.raises(IndexError):
        found[[50]]
    with pytest.raises(ValueError, match="is no .npy file"):
        Stored.npy(tmp_path / "x.npy", 3)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="is cut short"):
        Stored.npy(tmp_path / "x.npy")


def test_an_archive_that_is_compressed_can_not_be_read_row_by_row(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=PICTURES)
    with pytest.raises(ValueError, match="and compressed, .*: write it by numpy.savez"):
        load(name="npz", path=str(tmp_path / "x.npz"), storage="disk")
    path = save_npz(tmp_path / "y.npz", first=np.zeros(3), x=PICTURES)
    np.testing.assert_array_equal(in_npz(path, "x")[[4, 2]], PICTURES[[4, 2]])


def test_a_disk_that_is_too_small_is_named(sources, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="are free there; DIFFAX_CACHE names another place"):
        load(**sources["folder"], storage="disk")


def test_scores_are_those_of_memory(sources):
    inside, outside = (load(**sources["npz"], storage=word) for word in ("memory", "disk"))

    class Sums:
        """A network whose features are a picture's sums."""

        def apply(self, variables, x):
            return x.sum((1, 2)), x.sum((1, 2))

    extractor = extractors.Extractor("sums", Sums(), {}, "sums", {}, 16)
    statistics = [
        extractors.feature_statistics(extractor, split.x) for split in (inside.train, outside.train)
    ]
    np.testing.assert_array_equal(*(found.mean for found in statistics))
    some = extractors._at_most(outside.train, 10 * 60)
    assert len(some) == 10 and isinstance(some.x, Stored)
    assert extractors._at_most(outside.train, 2**20) is outside.train


def test_a_run_on_a_file_is_cut_off_and_goes_on_as_one_in_memory(tmp_path, monkeypatch):
    x = RNG.uniform(-1, 1, (64, 2)).astype(np.float32)
    path = save_npz(tmp_path / "x.npz", x=x)

    def config(storage):
        return small_config(
            data__name="npz", data__path=path, data__storage=storage, training__batch_size=16,
            training__checkpoint_every=4,
        )  # fmt: skip

    state, metrics = training.train(config("memory"), tmp_path / "memory")
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 7)
        training.train(config("disk"), tmp_path / "disk")
    again, also = training.train(config("disk"), tmp_path / "disk")
    assert also == metrics
    assert_equal(again.params, state.params)
    training.train(config("memory"), tmp_path / "disk")  # the place may change
