"""What a run remembers of its config and its data: other data, and damaged files, are noticed."""

import dataclasses
import json

import numpy as np
import pytest
from data_files import save_image, save_npz
from small_runs import compiled_quickly, small_config

from diffax import training
from diffax.training import workdir as workdir_lib


@pytest.fixture(scope="module", autouse=True)
def _quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("programs")):
        yield


POINTS = np.linspace(-1, 1, 80, dtype=np.float32).reshape(40, 2)
LABEL = np.arange(40) % 3


def config_of(path, **changes):
    return small_config(
        data__name="npz",
        data__path=str(path),
        training__batch_size=16,
        evaluation__num_examples=4,
        **dict(training__num_steps=2, training__log_every=2) | changes,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on points with classes, and the file that it was trained on."""
    root = tmp_path_factory.mktemp("run")
    save_npz(root / "data.npz", x=POINTS, label=LABEL)
    training.train(config_of(root / "data.npz"), root / "run")
    return root


@pytest.fixture
def run(trained):
    """The same; what a test writes to its files is undone."""
    files = [trained / "data.npz", *(trained / "run").glob("*.json")]
    before = {path: path.read_bytes() for path in files}
    yield trained
    for path, content in before.items():
        path.write_bytes(content)


def resume(root, **changes):
    return training.train(config_of(root / "data.npz", **changes), root / "run")


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


CHANGES = {
    "more examples": (
        dict(x=np.append(POINTS, POINTS[:5], axis=0), label=np.append(LABEL, LABEL[:5])),
        "num train was 36 and is 41",
    ),
    "a class more": (dict(x=POINTS, label=with_value(LABEL, 7, 3)), "num classes was 3 and is 4"),
    "no classes": (dict(x=POINTS), "num classes was 3 and is 0"),
    "another name": (
        dict(x=POINTS, label=np.array(["a", "b", "c"])[LABEL]),
        r"label names was \('0', '1', '2'\) and is \('a', 'b', 'c'\)",
    ),
    "a value": (
        dict(x=with_value(POINTS, (3, 1), 0.25), label=LABEL),
        "as many examples have another content",
    ),
    "a label": (dict(x=POINTS, label=with_value(LABEL, 4, 2)), "another content"),
    "the order": (dict(x=POINTS[::-1], label=LABEL), "another content"),
    "the shape": (dict(x=POINTS[:, [0, 1, 1]], label=LABEL), r"shape was \(2,\) and is \(3,\)"),
    "the kind": (
        dict(x=(POINTS * 100 + 100).astype(np.uint8), label=LABEL),
        "levels was None and is 256",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_data(run, change):
    arrays, said = CHANGES[change]
    save_npz(run / "data.npz", **arrays)
    words = rf"the data have changed since the run in {run}/run was .*: .*{said}.*allow_config"
    with pytest.raises(ValueError, match=words):
        resume(run)


def test_files_written_anew_with_the_same_content_are_the_same_data(run):
    np.savez_compressed(run / "data.npz", label=LABEL.astype(np.uint8), x=POINTS, note=np.zeros(3))
    resume(run)


def test_data_that_were_moved_are_the_same_data(tmp_path):
    """By their fingerprint."""
    save_npz(tmp_path / "data.npz", x=POINTS, label=LABEL)
    resume(tmp_path)
    moved = (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    training.train(config_of(moved), tmp_path / "run")  # complete
    assert training.load(tmp_path / "run").config.data.path == str(moved)
    training.train(config_of(moved, training__num_steps=3), tmp_path / "run")
    save_npz(tmp_path / "other.npz", x=-POINTS, label=LABEL)
    with pytest.raises(ValueError, match="another config: data.path was .*moved.npz' and is .*oth"):
        training.train(config_of(tmp_path / "other.npz"), tmp_path / "run")


def test_other_data_may_be_allowed(run, tmp_path):
    save_npz(tmp_path / "data.npz", x=POINTS, label=LABEL)
    resume(tmp_path)
    save_npz(tmp_path / "data.npz", x=-POINTS, label=LABEL)
    config = dict(training__allow_config_change=True, training__num_steps=3)
    resume(tmp_path, **config)
    resume(tmp_path, training__num_steps=3)  # these are its data now
    assert training.load(tmp_path / "run").dataset.num_train == 36


def test_a_run_from_before_there_were_fingerprints_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("diffax.training.run_logger.as_remembered", lambda *_: {})
    save_npz(tmp_path / "data.npz", x=POINTS, label=LABEL)
    resume(tmp_path)
    path = tmp_path / "run" / "dataset.json"
    old = json.loads(path.read_text())
    for name in ("num_train", "num_eval", "fingerprint"):
        del old[name]
    path.write_text(json.dumps(old))
    assert training.load(tmp_path / "run").dataset.fingerprint == ""
    with pytest.raises(ValueError, match="optimizer.learning_rate was 0.01 and is 0.02"):
        resume(tmp_path, optimizer__learning_rate=0.02)
    resume(tmp_path)
    assert training.load(tmp_path / "run").dataset.num_train == 36


def test_a_folder_of_images_has_a_fingerprint_of_what_is_decoded(tmp_path):
    from diffax import data

    def info():
        dataset = data.load({"name": "folder", "path": str(tmp_path)})
        return training.DatasetInfo.of(dataset)

    for k in range(12):
        save_image(tmp_path / "ab"[k % 2] / f"{k}.png", value=k)
    first = info()
    assert first.label_names == ("a", "b")
    save_image(tmp_path / "a" / "0.png", value=0)  # written again
    assert first.changes(info()) == []
    save_image(tmp_path / "a" / "0.png", value=99)
    assert first.changes(info()) == ["as many examples have another content"]


# --- damaged files ------------------------------------------------------------------------------


def altered(name, key, value):
    """Has one key of a file another value."""

    def alter(path):
        content = json.loads(path.read_text())
        *sections, last = key.split(".")
        section = content
        for each in sections:
            section = section[each]
        section[last] = value
        path.write_text(json.dumps(content))

    return name, alter


def without(name, key):
    def alter(path):
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return name, alter


def written(name, text):
    return name, lambda path: path.write_bytes(text)


DAMAGES = {
    "half a config": ("config.json", lambda path: path.write_bytes(path.read_bytes()[:100])),
    "an empty config": written("config.json", b""),
    "zeros": written("config.json", bytes(1000)),
    "no text": written("config.json", b"\xff\xfe{}"),
    "a list": written("config.json", b"[1, 2]"),
    "null": written("config.json", b"null"),
    "no keys": written("config.json", b"{}"),
    "a wrong type": altered("config.json", "training.batch_size", "sixteen"),
    "a wrong section": altered("config.json", "training", 3),
    "an unknown key": altered("config.json", "training.nope", 3),
    "another seed": altered("config.json", "seed", 1),
    "another rate": altered("config.json", "optimizer.learning_rate", 0.5),
    "another width": altered("config.json", "model.mlp.width", 32),
    "another data set": altered("config.json", "data.name", "digits"),
    "half a data set": ("dataset.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "an empty data set": written("dataset.json", b""),
    "a list of data": written("dataset.json", b"[]"),
    "no shape": without("dataset.json", "shape"),
    "an unknown field": altered("dataset.json", "nope", 3),
    "a shape of text": altered("dataset.json", "shape", "2"),
    "a shape of zero": altered("dataset.json", "shape", [0]),
    "a shape below": altered("dataset.json", "shape", [-2]),
    "another shape": altered("dataset.json", "shape", [3]),
    "true classes": altered("dataset.json", "num_classes", True),
    "more classes": altered("dataset.json", "num_classes", 4),
    "names of numbers": altered("dataset.json", "label_names", [1, 2, 3]),
    "other names": altered("dataset.json", "label_names", ["a", "b", "c"]),
    "levels": altered("dataset.json", "levels", 256),
    "a fingerprint": altered("dataset.json", "fingerprint", "0" * 32),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_named_and_can_be_written_anew(run, damage):
    name, spoil = DAMAGES[damage]
    path = run / "run" / name
    before = path.read_bytes()
    spoil(path)
    words = rf"^{path} (is damaged \(|was altered: |has keys that)"
    with pytest.raises(ValueError, match=words) as caught:
        training.load(run / "run")
    assert "\n" not in str(caught.value)
    if damage in ("zeros", "another seed", "no shape", "more classes"):
        resume(run)
        assert path.read_bytes() == before


def test_a_missing_file_is_named(run):
    for name in ("config.json", "dataset.json"):
        path = run / "run" / name
        before = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"holds no run: there is no {name}"):
            training.load(run / "run")
        path.write_bytes(before)


def test_keys_that_a_run_does_not_depend_on_may_be_edited(run):
    altered("config.json", "sampling.num_steps", 7)[1](run / "run" / "config.json")
    assert training.load(run / "run").config.sampling.num_steps == 7


def test_changes_are_told_of_what_is_known():
    old = training.DatasetInfo("points", (2,), 0, None, ())
    new = dataclasses.replace(old, num_train=3, num_eval=1, fingerprint="f")
    assert old.changes(new) == [] and new.changes(new) == []
    assert workdir_lib.DatasetInfo.from_json(new.to_json()) == new
