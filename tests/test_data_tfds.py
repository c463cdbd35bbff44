"""digits and TFDS sets: contents, and what is said when a set can't be read or had."""

import os
import shutil
import urllib.error

import ml_collections
import numpy as np
import pytest
from sklearn.datasets import load_digits
from tfds_scans import Scans

from diffax import data
from diffax.data import images, tfds_images


@pytest.fixture(scope="module")
def scans_dir(tmp_path_factory):
    """A folder in which a set of TFDS is prepared: the digits, as "scans"."""
    folder = tmp_path_factory.mktemp("tfds")
    Scans(data_dir=str(folder)).download_and_prepare(file_format="array_record")
    return str(folder)


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """No test reads or writes the user's folders."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DIFFAX_CACHE", raising=False)


def load(**fields):
    return data.load(ml_collections.ConfigDict(fields))


# -- digits --------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    scans, label = load_digits(return_X_y=True)
    dataset = load(name="digits")
    assert dataset.shape == (8, 8, 1)
    assert (dataset.levels, dataset.num_classes) == (256, 10)
    assert dataset.label_names == tuple("0123456789")
    # The stated split: every fifth of each class, in scikit-learn's order, is in test.
    rank = np.array([np.sum(label[:i] == label[i]) for i in range(len(label))])
    for split, rows in ((dataset.train, rank % 5 != 4), (dataset.eval, rank % 5 == 4)):
        assert len(split) == rows.sum()
        np.testing.assert_array_equal(split.label, label[rows])
        expected = np.array([round(k * 255 / 16) for k in range(17)])[scans[rows].astype(int)]
        np.testing.assert_array_equal(split.x.reshape(len(split), 64), expected)
        share = np.bincount(split.label) / np.bincount(label)
        np.testing.assert_allclose(share, len(split) / len(label), atol=0.006)
    assert len(dataset.train) + len(dataset.eval) == 1797


def test_captions_of_a_set_of_tfds(scans_dir):
    split = load(name="scans", data_dir=scans_dir, train_split="train[:10]").train
    assert split.arrays["text"].tolist() == [f"the digit {label}" for label in split.label]


@pytest.mark.parametrize("name", ["digits", "scans"])
def test_splits_slices_and_frames(scans_dir, name):
    """The same of the data set that comes with scikit-learn and of one that TFDS has prepared."""
    dataset = load(name=name, data_dir=scans_dir, train_split="train[:50%]", image_size=4, pad_to=7)
    assert dataset.shape == (7, 7, 1)
    assert len(dataset.train) == 721
    inside = np.zeros((7, 7), bool)
    inside[1:5, 1:5] = True
    assert np.all(dataset.train.x[:, ~inside] == 0)  # black
    assert dataset.train.x[:, inside].mean() > 50
    assert len(load(name=name, data_dir=scans_dir, eval_split="test[-10:]+train[:3]").eval) == 13


def test_a_set_of_tfds_has_the_examples_that_were_prepared(scans_dir):
    ours, theirs = load(name="digits"), load(name="scans", data_dir=scans_dir)
    for own, read in ((ours.train, theirs.train), (ours.eval, theirs.eval)):
        np.testing.assert_array_equal(own.x, read.x)
        np.testing.assert_array_equal(own.label, read.label)


def test_values_become_floats():
    split = load(name="digits").train
    out = split.array(np.array([3, 1]))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, split.x[[3, 1]] / 127.5 - 1, atol=6e-8)
    every_level = data.Split(np.arange(256, dtype=np.uint8)[:, None])
    exact = np.arange(256)[:, None] / 127.5 - 1
    np.testing.assert_array_equal(every_level.array(), exact.astype(np.float32))
    np.testing.assert_array_equal(np.rint(every_level.array() * 127.5 + 127.5), every_level.x)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


SPOILT = {
    "cut": lambda folder: os.truncate(next(folder.glob("*train*")), 1000),
    "empty": lambda folder: os.truncate(next(folder.glob("*test*")), 0),
    "a bit": lambda folder: flip_a_bit(next(folder.glob("*train*"))),
}


@pytest.mark.parametrize("how", SPOILT)
def test_damaged_files_of_a_set_are_an_error_in_a_sentence(tmp_path, scans_dir, how):
    folder = tmp_path / "scans" / "1.0.0"
    shutil.copytree(os.path.join(scans_dir, "scans", "1.0.0"), folder)
    SPOILT[how](folder)
    words = r"'scans.*can't be read .*delete its folder"
    for name in ("scans", "scans:1.0.0"):
        with pytest.raises(ValueError, match=words) as caught:
            load(name=name, data_dir=str(tmp_path))
        assert "\n" not in str(caught.value)


# -- TFDS sets -----------------------------------------------------------------------------------


def test_any_prepared_set_is_found_by_name(scans_dir, monkeypatch):
    """The same files under a name that has no code: only the prepared folder counts."""
    monkeypatch.setattr(tfds_images, "_download", lambda *a: pytest.fail("it is there"))
    config = data.DataConfig(name="scans:1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", scans_dir)
    assert len(tfds_images.load(config).eval) == 355


@pytest.mark.parametrize("name", ["digits", "scans"])
def test_unknown_split_is_refused_before_decoding(scans_dir, monkeypatch, name):
    monkeypatch.setattr(images, "decode", lambda *a: pytest.fail("decoded before the check"))
    for split in ("validation", "test[:x]", "test[50%:10%]", ""):
        with pytest.raises(ValueError, match=r"data\.eval_split=.* which has train, test"):
            load(name=name, data_dir=scans_dir, eval_split=split)


def test_pad_to_below_the_size_is_refused():
    with pytest.raises(ValueError, match=r"data\.pad_to=6 is smaller than the images \(8 by 8\)"):
        load(name="digits", pad_to=6)


@pytest.mark.parametrize("typo, meant", [("fashon_mnist", "fashion_mnist"), ("digit", "digits")])
def test_typo_in_the_name_gets_the_near_names(tmp_path, typo, meant):
    with pytest.raises(ValueError, match=rf"data\.name='{typo}' .*did you mean .*{meant}"):
        load(name=typo, data_dir=str(tmp_path))


def test_missing_set_without_internet(tmp_path, monkeypatch):
    def offline(url):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(tfds_images, "_probe", offline)
    pattern = rf"'fashion_mnist' is not prepared in {tmp_path}.*no network.*data\.data_dir"
    with pytest.raises(FileNotFoundError, match=pattern):
        load(name="fashion_mnist", data_dir=str(tmp_path))


def test_missing_set_without_tensorflow(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def no_tensorflow(self, **kwargs):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds_images, "_probe", lambda url: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_tensorflow)
    with pytest.raises(FileNotFoundError, match=r"'mnist' .*pip install tensorflow-cpu"):
        load(name="mnist", data_dir=str(tmp_path))


def test_download_respects_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_images, "_probe", lambda url: pytest.fail("too late"))
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o555)
    with pytest.raises(FileNotFoundError, match=rf"{folder}.*marked read-only"):
        load(name="mnist", data_dir=str(folder))


def test_prepared_without_random_access(tmp_path, scans_dir):
    target = tmp_path / "scans" / "1.0.0"
    shutil.copytree(os.path.join(scans_dir, "scans", "1.0.0"), target)
    info = target / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"stored as tfrecord, .* prepare it in another data\.dat"):
        load(name="scans", data_dir=str(tmp_path))


def test_sets_without_images_and_of_many_sizes(scans_dir, monkeypatch):
    import tensorflow_datasets as tfds

    text = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    with pytest.raises(
        ValueError, match=r"data\.name='letters' is not a set of 8-bit images.*text"
    ):
        tfds_images._feature_keys("letters", text)
    sizes = iter(range(4, 10_000))
    monkeypatch.setattr(images, "decode", lambda *a: np.zeros((4, next(sizes), 1), np.uint8))
    with pytest.raises(ValueError, match=r"'scans' differ in size .*set data\.image_size"):
        load(name="scans", data_dir=scans_dir)


def test_fashion_mnist():
    folder = os.environ.get("TFDS_DATA_DIR", "")
    if not os.path.isdir(os.path.join(folder, "fashion_mnist")):
        pytest.skip("fashion_mnist is not prepared in TFDS_DATA_DIR")
    dataset = load(
        name="fashion_mnist", train_split="train[:2000]", eval_split="test[:500]", pad_to=32
    )
    assert dataset.shape == (32, 32, 1)
    assert (dataset.num_classes, dataset.levels) == (10, 256)
    assert dataset.label_names[0] == "T-shirt/top"
    # Published: the mean of the training set is 0.2860, its deviation 0.3530.
    inner = dataset.train.x[:, 2:30, 2:30] / 255
    assert abs(inner.mean() - 0.2860) < 0.01
    assert abs(inner.std() - 0.3530) < 0.01
