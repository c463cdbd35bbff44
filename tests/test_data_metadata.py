"""What data hold beside their examples: captions and controls of folders, .npz files and TFDS."""

import itertools
import json
import re

import numpy as np
import pytest
from data_files import load, save_image, save_npz

from diffax import data
from diffax.data import DatasetInfo, Split

LINES = [
    {
        "file_name": f"images/{k:02}.png",
        "text": f"number {k}",
        "label": "odd" if k % 2 else "even",
        "conditioning_file_name": f"masks/{k:02}.png",
    }
    for k in range(20)
]


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return load(name="folder", path=str(folder))


@pytest.fixture
def captioned(tmp_path):
    """Of each image the value, the mask's, the caption and the class are known from its number."""
    for k in range(20):
        save_image(tmp_path / "images" / f"{k:02}.png", mode="RGB", value=(k, k, 9))
        save_image(tmp_path / "masks" / f"{k:02}.png", value=100 + k)
    return tmp_path


def test_folder_with_metadata(captioned):
    save_image(captioned / "images" / "unnamed.png", value=99)
    dataset = write(captioned, LINES)
    assert (dataset.shape, dataset.label_names) == ((4, 6, 3), ("even", "odd"))
    assert (len(dataset.train), len(dataset.eval)) == (18, 2)
    seen = []
    for split in (dataset.train, dataset.eval):
        numbers = split.x[:, 0, 0, 0].tolist()
        assert split.arrays["text"].tolist() == [f"number {k}" for k in numbers]
        assert split.arrays["control"].shape == (len(split), 4, 6, 1)
        assert split.arrays["control"][:, 0, 0, 0].tolist() == [100 + k for k in numbers]
        assert split.label.tolist() == [k % 2 for k in numbers]
        seen += numbers
    assert sorted(seen) == list(range(20))
    info = DatasetInfo.of(dataset)
    assert info.arrays == (("control", (4, 6, 1)), ("text", ()))
    assert DatasetInfo.from_json(info.to_json()) == info
    without = {k: v for k, v in json.loads(info.to_json()).items() if k != "arrays"}
    assert DatasetInfo.from_json(json.dumps(without)).arrays == ()  # of a run from before


def test_captions_and_controls_are_part_of_the_fingerprint(captioned):
    first = write(captioned, LINES).fingerprint
    assert write(captioned, [*LINES[:3], LINES[3] | {"text": "other"}, *LINES[4:]]).fingerprint != (
        first
    )
    save_image(captioned / "masks" / "05.png", value=0)
    assert write(captioned, LINES).fingerprint != first
    plain = write(captioned, [{"file_name": line["file_name"]} for line in LINES])
    parts = [part for split in (plain.train, plain.eval) for part in (split.x, split.label)]
    assert plain.fingerprint == data.dataset.content_hash(*parts)  # as before there were any


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"file_name": "images/77.png"}, "line 2: there is no file 'images/77.png'"),
        ({"file_name": "images/00.png"}, "line 2: 'images/00.png' is named a second time"),
        ({"file_name": "../00.png"}, "line 2: 'file_name' is '../00.png'; it must lie in the fold"),
        ({"file_name": 3}, "line 2: it must be an object with 'file_name'"),
        ({"text": 3}, "line 2: 'text' is 3; it must be text"),
        ({"text": None}, "line 2: the first line has 'text', and this one does not"),
        ({"label": 1}, "'label' in metadata.jsonl must be words, or whole numbers"),
        ({"label": True}, "line 2: 'label' is True; it must be a word or a whole number"),
    ],
)
def test_metadata_that_cannot_be_used(captioned, changed, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        write(captioned, [LINES[0], LINES[1] | changed, *LINES[2:]])


def test_metadata_that_is_no_json(captioned):
    (captioned / "metadata.jsonl").write_text("number 0")
    with pytest.raises(ValueError, match="metadata.jsonl, line 1: it is no JSON"):
        load(name="folder", path=str(captioned))


def test_a_caption_may_hold_any_character(captioned):
    caption = "two\u2028lines, \x85 and \u00e9"
    lines = [LINES[0] | {"text": caption}, *LINES[1:]]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (captioned / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = load(name="folder", path=str(captioned))
    assert caption in {*dataset.train.arrays["text"], *dataset.eval.arrays["text"]}


def test_masks_that_hold_numbers_of_classes_are_remarked_on(captioned, caplog):
    write(captioned, LINES)
    assert "of 255" not in caplog.text
    for k in range(20):
        save_image(captioned / "masks" / f"{k:02}.png", value=k % 3)
    write(captioned, LINES)
    assert "have values from 0 to 2 of 255, which the network sees as nearly" in caplog.text


def test_an_image_without_its_control_is_left_out(captioned):
    (captioned / "masks" / "04.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 of 20 images .* can't be read: .*04.png"):
        write(captioned, LINES)
    dataset = load(name="folder", path=str(captioned), skip_bad=True)
    numbers = [k for split in (dataset.train, dataset.eval) for k in split.x[:, 0, 0, 0]]
    assert sorted(numbers) == [k for k in range(20) if k != 4]


def test_npz_with_captions_and_controls(tmp_path):
    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(20, 1, 1)
    text = np.array([f"number {k}" for k in range(20)])
    path = save_npz(tmp_path / "a.npz", signals=x, text=text, control=x[:, :, [0, 0]] / 2)
    dataset = load(name="npz", path=path)
    for split in (dataset.train, dataset.eval):
        numbers = np.rint((split.x[:, 0, 0] + 1) * 9.5).astype(int)
        assert split.arrays["text"].tolist() == text[numbers].tolist()
        np.testing.assert_array_equal(split.arrays["control"], split.x[:, :, [0, 0]] / 2)
    for bad, said in (
        ({"text": np.arange(20)}, "'text' in .* must hold 20 captions"),
        ({"text": text[:3]}, "'text' in .* must hold 20 captions"),
        ({"control": 2 * x}, "'control' in .* must be an array"),
    ):
        with pytest.raises(ValueError, match=said):
            load(name="npz", path=save_npz(tmp_path / "b.npz", x=x, **bad))


def test_batches_deliver_what_is_no_text_and_mirror_controls_with_their_images():
    x = np.random.default_rng(0).integers(0, 256, (30, 2, 6, 3), np.uint8)
    number = np.arange(30, dtype=np.int32)
    arrays = {"control": x[..., :1], "text": number.astype(str), "tokens": number[:, None]}
    split = Split(x, number, arrays)
    for batch in itertools.islice(data.batches(split, 10, seed=3, flip=True), 6):
        assert set(batch) == {"x", "label", "control", "tokens"}
        np.testing.assert_array_equal(batch["control"], batch["x"][..., :1])
        np.testing.assert_array_equal(batch["tokens"][:, 0], batch["label"])
        flipped = batch["x"] != split.array(batch["label"])
        assert 0 < flipped.any(axis=(1, 2, 3)).sum() < 10
    assert (split.x == x).all()


def test_arrays_of_another_length_are_refused():
    x = np.zeros((4, 1), np.float32)
    with pytest.raises(ValueError, match=r"Split.arrays\['text'\] has 3 rows; it must have 4"):
        Split(x, arrays={"text": np.array(["a", "b", "c"])})
    captions = Split(x, arrays={"text": np.array(list("abcd"))})
    with pytest.raises(ValueError, match="the train split has beside its examples"):
        data.make_dataset("own", captions, Split(x))
