"""Colour and shape from the pixels, and how many samples are what their captions say."""

import numpy as np
import pytest

from diffax import data, evaluation
from diffax.data import Split
from diffax.evaluation import attributes, retrieval
from diffax.evaluation.attributes import COLOURS, SHAPES, Attributes


def drawn(colour, shape, side=64):
    """A thing that fills most of the picture, with a highlight as bright as the ground."""
    along = (np.arange(side) + 0.5) / side * 2.3 - 1.15
    y, x = np.meshgrid(along, along, indexing="ij")
    up = 0.12 - 1.12 * y
    inside = {
        "heart": ((1.14 * x) ** 2 + up**2 - 1) ** 3 < (1.14 * x) ** 2 * up**3,
        "circle": x**2 + y**2 < 1,
        "square": (abs(x) < 1) & (abs(y) < 1),
        "": (abs(x) < 0.9) & (abs(x) > 0.8) | (abs(y) < 0.1),
    }[shape]
    image = np.full((side, side, 3), 255, np.uint8)
    image[inside] = COLOURS[colour]
    image[side // 3 : side // 3 + 3, side // 3 : side // 3 + 3] = 255
    return image


@pytest.mark.parametrize("shape", SHAPES)
def test_every_colour_and_shape_is_seen(shape):
    for colour in COLOURS:
        assert attributes.seen(drawn(colour, shape)) == Attributes(colour, shape)
        noisy = drawn(colour, shape, 32).astype(int) + np.random.default_rng(0).integers(-8, 9)
        assert attributes.seen(np.clip(noisy, 0, 255)) == Attributes(colour, shape)


def test_a_tinted_ground_is_no_part_of_the_thing():
    for colour in ("red", "green", "black"):
        tinted = np.minimum(drawn(colour, "heart"), (255, 236, 228)).astype(np.uint8)
        assert attributes.seen(tinted) == Attributes(colour, "heart")


def test_colours_are_compared_as_the_eye_does():
    lab = attributes._lab(np.array([255, 0, 0]))
    np.testing.assert_allclose(lab, [53.24, 80.09, 67.20], atol=0.05)  # of sRGB's red
    np.testing.assert_allclose(attributes._lab(np.full(3, 255)), [100, 0, 0], atol=0.05)
    pale = drawn("purple", "circle")
    pale[(pale == COLOURS["purple"]).all(-1)] = (214, 160, 222)
    assert attributes.seen(pale) == Attributes("purple", "circle")


def test_what_is_none_of_them():
    assert attributes.seen(np.full((64, 64, 3), 255, np.uint8)) == Attributes("", "")
    assert attributes.seen(drawn("red", "")) == Attributes("red", "")


def test_what_captions_name():
    assert attributes.named("A Red heart!") == Attributes("red", "heart")
    assert attributes.named("two hearts") == Attributes("", "")
    assert attributes.named("red and blue circle") == Attributes("", "circle")
    assert attributes.named("light blue heart") == Attributes("", "heart")


def test_shares_and_chance():
    pairs = [("red", "heart"), ("red", "circle"), ("blue", "heart"), ("blue", "square")]
    images = np.stack([drawn(*pair) for pair in pairs] + [drawn("green", "")])
    said = ["red heart", "red heart", "blue circle", "blue square", "tree"]
    found = attributes.agreement(images, said)
    # Of 16 pairs of a caption and a picture these agree: 2 hearts in red with 1, 1 square with 1.
    assert found == (0.5, 1.0, 0.5, 3 / 16, 4)
    assert attributes.agreement(images, ["tree"] * 5) is None


def test_the_score_of_samples_with_captions():
    captions = np.array([f"{colour} {shape}" for colour in COLOURS for shape in SHAPES])
    images = np.stack([drawn(*caption.split(), 32) for caption in captions])
    split = Split(images, arrays={"text": captions})
    dataset = data.make_dataset("drawn", split, split)
    reference = evaluation.Reference.of(dataset, {"name": "digits"})
    shuffled = np.roll(captions, 1).tolist()
    for text, value in ((captions.tolist(), 1.0), (shuffled, 0.0)):
        found = evaluation.score(images, reference, ["text_attributes"], text=text)
        assert found["text_attributes"]["text_attributes"] == value
        assert found["text_attributes"]["reference_value"] == 1.0
        assert found["text_attributes"]["chance"] == pytest.approx(1 / 27)
    with pytest.raises(ValueError, match="needs the caption of each sample, and none is known"):
        evaluation.score(images, reference, ["text_attributes"])
    with pytest.raises(ValueError, match="no caption names one of red, orange"):
        evaluation.score(images, reference, ["text_attributes"], text=["tree"] * 27)


def test_captions_are_found_by_a_judge_of_the_data(monkeypatch):
    monkeypatch.setitem(retrieval.SETTINGS, "steps", 60)
    words = [f"{colour} {shape}" for colour in ("red", "blue", "black") for shape in SHAPES]
    captions = np.array(words * 20)
    images = np.stack([drawn(*caption.split(), 16) for caption in captions])
    rows = np.random.default_rng(0).permutation(len(captions))
    whole = Split(images, arrays={"text": captions})
    dataset = data.make_dataset("drawn", whole.take(rows[:150]), whole.take(rows[150:]))
    reference = evaluation.Reference.of(dataset, {"name": "digits"})
    for text, low, high in ((words, 0.8, 1.0), (np.roll(words, 4).tolist(), 0.0, 0.2)):
        found = evaluation.score(images[:9], reference, ["text_retrieval"], text=text)
        found = found["text_retrieval"]
        assert low <= found["text_retrieval"] <= high
        assert found["judge_accuracy"] > 0.8 and found["chance"] == 1 / 9
    plain = data.make_dataset("plain", Split(images), Split(images))
    with pytest.raises(ValueError, match="trained on captions, and the reference has none"):
        reference = evaluation.Reference.of(plain, {"name": "digits"})
        evaluation.score(images[:9], reference, ["text_retrieval"], text=words)
