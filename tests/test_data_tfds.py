"""digits and the other TFDS sets: contents, preparation, and what is said when it fails."""

import os
import pathlib
import shutil
import subprocess
import sys
import urllib.error

import ml_collections
import numpy as np
import pytest

from diffax import data
from diffax.data import images, tfds_images
from diffax.data.digits import prepare as digits

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    digits.prepare(str(folder))
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


def test_digits_are_scikit_learns(digits_dir):
    from sklearn.datasets import load_digits

    scans, label = load_digits(return_X_y=True)
    dataset = load(name="digits", data_dir=digits_dir)
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


def test_digits_split_is_disjoint(digits_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(os.path.join(digits_dir, "digits", "1.0.0"))
    rows = [{r["index"] for r in builder.as_data_source(s)} for s in ("train", "test")]
    assert rows[0].isdisjoint(rows[1])
    assert rows[0] | rows[1] == set(range(1797))


def test_digits_split_slices_and_frames(digits_dir):
    dataset = load(
        name="digits", data_dir=digits_dir, train_split="train[:50%]", image_size=4, pad_to=7
    )
    assert dataset.shape == (7, 7, 1)
    assert len(dataset.train) == 721
    inside = np.zeros((7, 7), bool)
    inside[1:5, 1:5] = True
    assert np.all(dataset.train.x[:, ~inside] == 0)  # black
    assert dataset.train.x[:, inside].mean() > 50


def test_values_become_floats(digits_dir):
    split = load(name="digits", data_dir=digits_dir).train
    out = split.array(np.array([3, 1]))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, split.x[[3, 1]] / 127.5 - 1, atol=6e-8)
    every_level = data.Split(np.arange(256, dtype=np.uint8)[:, None])
    exact = np.arange(256)[:, None] / 127.5 - 1
    np.testing.assert_array_equal(every_level.array(), exact.astype(np.float32))
    np.testing.assert_array_equal(np.rint(every_level.array() * 127.5 + 127.5), every_level.x)


def test_two_processes_prepare_digits_at_once(tmp_path):
    code = "import sys; from diffax.data.digits import prepare; print(prepare.prepare(sys.argv[1]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == [str(tmp_path / "digits" / "1.0.0")] * 2
    assert os.listdir(tmp_path) == ["digits"]
    assert os.listdir(tmp_path / "digits") == ["1.0.0"]
    assert len(load(name="digits", data_dir=str(tmp_path)).train) == 1442


def test_the_slower_process_uses_what_the_faster_prepared(tmp_path, digits_dir, monkeypatch):
    target = tmp_path / "digits" / "1.0.0"

    def build_while_another_finishes(scratch):
        for folder, content in ((target, "faster"), (f"{scratch}/digits/1.0.0", "slower")):
            os.makedirs(folder)
            pathlib.Path(folder, "file").write_text(content)

    monkeypatch.setattr(digits, "_build", build_while_another_finishes)
    assert digits.prepare(str(tmp_path)) == str(target)
    assert (target / "file").read_text() == "faster"
    assert os.listdir(tmp_path) == ["digits"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


SPOILT = {
    "cut": lambda folder: os.truncate(next(folder.glob("*train*")), 1000),
    "empty": lambda folder: os.truncate(next(folder.glob("*test*")), 0),
    "a bit": lambda folder: flip_a_bit(next(folder.glob("*train*"))),
    "a bit of the description": lambda folder: flip_a_bit(folder / "dataset_info.json"),
    "a bit of the checksums": lambda folder: flip_a_bit(folder / "checksums.json"),
    "a file less": lambda folder: (folder / "features.json").unlink(),
    "no file": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("how", SPOILT)
def test_damaged_digits_are_made_again(tmp_path, digits_dir, how, caplog, monkeypatch):
    monkeypatch.setattr(digits._LOG, "propagate", True)
    folder = tmp_path / "digits" / "1.0.0"
    shutil.copytree(os.path.join(digits_dir, "digits", "1.0.0"), folder)
    SPOILT[how](folder)

    def build(scratch):
        shutil.copytree(os.path.join(digits_dir, "digits"), os.path.join(scratch, "digits"))

    monkeypatch.setattr(digits, "_build", build)
    assert digits.find_or_prepare(data.DataConfig(data_dir=str(tmp_path))) == str(folder)
    assert [f"{folder} is damaged" in record.getMessage() for record in caplog.records] == [True]
    assert os.listdir(tmp_path) == ["digits"] and os.listdir(tmp_path / "digits") == ["1.0.0"]
    for path in pathlib.Path(digits_dir, "digits", "1.0.0").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("how", ["cut", "empty", "a bit", "a file less"])
def test_damaged_files_of_a_set_are_an_error_in_a_sentence(tmp_path, digits_dir, how):
    """Of a set that others have prepared, which has no checksums."""
    folder = tmp_path / "digits" / "1.0.0"
    shutil.copytree(os.path.join(digits_dir, "digits", "1.0.0"), folder)
    (folder / "checksums.json").unlink()
    SPOILT[how](folder)
    words = r"'digits.*can't be read .*delete its folder"
    # By a name with a version TFDS finds no set that lacks its features.
    for name in ("digits",) if how == "a file less" else ("digits", "digits:1.0.0"):
        with pytest.raises(ValueError, match=words) as caught:
            load(name=name, data_dir=str(tmp_path))
        assert "\n" not in str(caught.value)


def test_a_failed_preparation_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def fail(scratch):
        raise OSError("disk full")

    monkeypatch.setattr(digits, "_build", fail)
    with pytest.raises(PermissionError, match=r"disk full.*set data\.data_dir"):
        load(name="digits", data_dir=str(tmp_path))
    assert list(tmp_path.glob("**/*.*")) == []


@pytest.mark.parametrize("obstacle", ["read-only", "file"])
def test_digits_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch, digits_dir, obstacle):
    folder = tmp_path / "shared"
    if obstacle == "read-only":
        folder.mkdir(mode=0o555)
    else:
        folder.write_text("")
    # Asked for by name: an error that names it and the field.
    with pytest.raises(PermissionError, match=rf"{folder}.*data\.data_dir.*user's cache"):
        load(name="digits", data_dir=str(folder))
    # Merely the environment's folder: the user's cache, and the log says so.
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    prepared = []
    real = digits.prepare

    def prepare(root):
        if root == str(folder):
            return real(root)
        prepared.append(root)
        return os.path.join(digits_dir, "digits", "1.0.0")

    monkeypatch.setattr(digits, "prepare", prepare)
    warnings = []
    monkeypatch.setattr(digits._LOG, "warning", lambda form, *a: warnings.append(form % a))
    assert len(load(name="digits").eval) == 355
    assert prepared == [str(tmp_path / "home" / ".cache" / "diffax" / "tfds")]
    assert len(warnings) == 1
    assert str(folder) in warnings[0]
    assert prepared[0] in warnings[0]


def test_digits_without_any_folder_to_write(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(blocked))
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(PermissionError, match=rf"{blocked} .* or in {blocked}/diffax/tfds"):
        load(name="digits")


def test_digits_prepared_in_a_read_only_folder_are_read(tmp_path, digits_dir, monkeypatch):
    folder = tmp_path / "shared"
    folder.mkdir()
    os.symlink(os.path.join(digits_dir, "digits"), folder / "digits")
    folder.chmod(0o555)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert len(load(name="digits").eval) == 355
    folder.chmod(0o755)


# -- TFDS sets -----------------------------------------------------------------------------------


def test_any_prepared_set_is_found_by_name(digits_dir, monkeypatch):
    """The same files under a name that has no code: only the prepared folder counts."""
    monkeypatch.setattr(tfds_images, "_download", lambda *a: pytest.fail("it is there"))
    config = data.DataConfig(name="digits:1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
    assert len(tfds_images.load(config).eval) == 355


def test_unknown_split_is_refused_before_decoding(digits_dir, monkeypatch):
    monkeypatch.setattr(images, "decode", lambda *a: pytest.fail("decoded before the check"))
    for split in ("validation", "test[:x]", "test[50%:10%]", ""):
        with pytest.raises(ValueError, match=r"data\.eval_split=.* which has train, test"):
            load(name="digits", data_dir=digits_dir, eval_split=split)


def test_pad_to_below_the_size_is_refused(digits_dir):
    with pytest.raises(ValueError, match=r"data\.pad_to=6 is smaller than the images \(8 by 8\)"):
        load(name="digits", data_dir=digits_dir, pad_to=6)


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


def test_prepared_without_random_access(tmp_path, digits_dir):
    target = tmp_path / "digits" / "1.0.0"
    shutil.copytree(os.path.join(digits_dir, "digits", "1.0.0"), target)
    (target / "checksums.json").unlink()
    info = target / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"stored as tfrecord, .* prepare it in another data\.dat"):
        load(name="digits", data_dir=str(tmp_path))


def test_sets_without_images_and_of_many_sizes(digits_dir, monkeypatch):
    import tensorflow_datasets as tfds

    text = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    with pytest.raises(
        ValueError, match=r"data\.name='letters' is not a set of 8-bit images.*text"
    ):
        tfds_images._feature_keys("letters", text)
    sizes = iter(range(4, 10_000))
    monkeypatch.setattr(images, "decode", lambda *a: np.zeros((4, next(sizes), 1), np.uint8))
    with pytest.raises(ValueError, match=r"'digits' differ in size .*set data\.image_size"):
        load(name="digits", data_dir=digits_dir)


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
