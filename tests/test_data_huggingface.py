"""Image sets of Hugging Face that were saved on this machine; nothing is downloaded."""

import builtins

import numpy as np
import pytest
from data_files import load

from diffax import data
from diffax.data import images
from diffax.data.stored import Stored

datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def pictures(num, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 6, 5, channels), np.uint8)


def table(x, **columns):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    rows = {
        "image": [{"bytes": images.encode_png(each), "path": None} for each in x],
        "label": [i % 3 for i in range(len(x))],
        **columns,
    }
    features |= {name: datasets.Value("string") for name in columns if name not in features}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_a_saved_set_with_captions(tmp_path):
    train, test = pictures(20), pictures(6, seed=1)
    captions = [f"number {i}" for i in range(20)]
    whole = {"train": table(train, text=captions), "test": table(test, text=captions[:6])}
    datasets.DatasetDict(whole).save_to_disk(tmp_path / "set")
    found = load(name="huggingface", path=str(tmp_path / "set"))
    np.testing.assert_array_equal(found.train.x, train)
    np.testing.assert_array_equal(found.eval.x, test)
    np.testing.assert_array_equal(found.train.label, np.arange(20) % 3)
    assert found.label_names == tuple(NAMES)
    assert found.train.arrays["text"].tolist() == captions
    batch = next(data.batches(found.train, 4, seed=0))
    assert batch["x"].shape == (4, 6, 5, 3)
    on_disk = load(name="huggingface", path=str(tmp_path / "set"), storage="disk")
    assert isinstance(on_disk.train.x, Stored) and on_disk.fingerprint == found.fingerprint


def test_one_table_of_grey_images_is_cut_and_framed(tmp_path):
    x = pictures(20, channels=1)
    table(x).save_to_disk(tmp_path / "set")
    found = load(name="huggingface", path=str(tmp_path / "set"), pad_to=8)
    assert found.shape == (8, 8, 1) and (len(found.train), len(found.eval)) == (18, 2)
    again = np.concatenate([found.train.x, found.eval.x])[:, 1:7, 1:6]
    assert sorted(map(bytes, again)) == sorted(map(bytes, x))


def test_what_is_null(tmp_path):
    """A caption becomes the empty one, whichever row it is of; an image or a class is refused."""

    def saved(name, **columns):
        table(pictures(9), **columns).save_to_disk(tmp_path / name)
        return dict(name="huggingface", path=str(tmp_path / name))

    captions = [None, "b", None, *"defghi"]
    found = load(**saved("captions", text=captions))
    texts = [*found.train.arrays["text"], *found.eval.arrays["text"]]
    assert sorted(texts) == sorted(text or "" for text in captions)
    for i in (0, 4):
        label = [None if row == i else row % 3 for row in range(9)]
        with pytest.raises(ValueError, match=f"'label' of row {i} of .*'train' is null"):
            load(**saved(f"label{i}", label=label))
        image = [{"bytes": images.encode_png(each), "path": None} for each in pictures(9)]
        image[i] = None
        with pytest.raises(ValueError, match=f"'image' of row {i} of .* can't be read .it is null"):
            load(**saved(f"image{i}", image=image))


def test_errors_are_one_sentence(tmp_path, monkeypatch):
    path = str(tmp_path / "set")
    datasets.DatasetDict({"train": table(pictures(9)), "test": table(pictures(3))}).save_to_disk(
        path
    )

    def refused(error, said, **fields):
        with pytest.raises(error, match=said) as caught:
            load(**{"name": "huggingface", "path": path} | fields)
        assert "\n" not in str(caught.value)

    refused(ValueError, "data.train_split='trian' .* .did you mean train", train_split="trian")
    refused(ValueError, "data.eval_split='valid' is no split of .*, which has", eval_split="valid")
    refused(ValueError, "data.path is empty", path="")
    refused(FileNotFoundError, "data.path='nobody/nothing' can't be loaded", path="nobody/nothing")
    numbers = str(tmp_path / "numbers")
    datasets.Dataset.from_dict({"a": [1, 2]}).save_to_disk(numbers)
    refused(ValueError, "no column of images that is meant: its columns are a", path=numbers)
    broken = table(pictures(9)).map(
        lambda row, i: {"image": {"bytes": b"none", "path": None}} if i == 4 else row,
        with_indices=True,
    )
    broken.save_to_disk(tmp_path / "broken")
    refused(ValueError, "image 4 of .*broken' can't be read", path=str(tmp_path / "broken"))
    found = builtins.__import__

    def without(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(ValueError, "needs the library datasets: pip install 'diffax.huggingface.'")
