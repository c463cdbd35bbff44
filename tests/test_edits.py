"""What `diffax sample --edit` reads and refuses; the edits themselves are in test_editing."""

import numpy as np
import pytest
from PIL import Image

from diffax import cli, edits
from diffax.cli import sample


def test_the_command_line_offers_every_edit_and_every_flag_of_one():
    parser = cli.make_parser()
    for name, edit in edits.EDITS.items():
        parsed = vars(parser.parse_args(["sample", "--workdir=w", f"--edit={name}"]))
        assert parsed["edit"] == name and set(edit.flags) <= set(parsed)
    flags = {flag for edit in edits.EDITS.values() for flag in edit.flags}
    assert flags == {flag.replace("-", "_") for flag in sample.EDIT_FLAGS}


def test_step_counts_that_come_twice_are_drawn_once():
    drawn = edits.draw(lambda num, num_steps: np.full(num, num_steps), 3, [5, 5, 2], {})
    assert {name: x[0] for name, x in drawn.arrays.items()} == {"samples_5": 5, "samples_2": 2}
    assert list(drawn.drawn) == ["5 steps", "2 steps"]


@pytest.mark.parametrize(
    ("name", "shape", "anew"),
    [
        ("left", (4, 4, 1), [[1, 1, 0, 0]] * 4),
        ("right", (4, 4, 1), [[0, 0, 1, 1]] * 4),
        ("top", (4, 2, 1), [[1, 1], [1, 1], [0, 0], [0, 0]]),
        ("bottom", (4, 2, 1), [[0, 0], [0, 0], [1, 1], [1, 1]]),
        ("centre", (4, 4, 1), [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]),
        ("centre", (8, 1), [0, 0, 1, 1, 1, 1, 0, 0]),
    ],
)
def test_regions(name, shape, anew):
    np.testing.assert_array_equal(edits.anew(name, shape)[..., 0], anew)


def test_a_mask_is_the_light_part_of_an_image(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 255], [100, 200]], np.uint8)).save(path)
    mask = edits.anew(str(path), (2, 2, 3))
    assert mask.shape == (2, 2, 3)
    np.testing.assert_array_equal(mask[..., 1], [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("mask", "shape", "said"),
    [("middle", (4, 4, 1), "left, right, top, bottom, centre"), ("top", (8, 1), "no such part")],
)
def test_a_mask_that_is_none(mask, shape, said):
    with pytest.raises(ValueError, match=said):
        edits.anew(mask, shape)


def test_images_and_arrays_are_read_alike(tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = pixels[..., None] / np.float32(127.5) - 1
    np.savez(tmp_path / "b.npz", samples=np.stack([x, -x]), other=0)
    np.savez(tmp_path / "c.npz", anything=x[None])
    read = edits.read([str(tmp_path / name) for name in ("a.png", "b.npz", "c.npz")], (4, 4, 1))
    np.testing.assert_allclose(read, np.stack([x, x, -x, x]), atol=1e-6)
    assert edits.read([str(tmp_path / "a.png")], (2, 2, 3)).shape == (1, 2, 2, 3)


def test_what_can_not_be_read_is_named(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((1, 4, 4, 1)), b=0)
    np.savez(tmp_path / "shape.npz", a=np.zeros((1, 3, 3, 1)))
    np.savez(tmp_path / "bytes.npz", a=np.full((1, 4, 4, 1), 255))
    (tmp_path / "text.png").write_text("no image")
    for name, shape, said in (
        ("two.npz", (4, 4, 1), "holds a, b"),
        ("shape.npz", (4, 4, 1), r"\(1, 3, 3, 1\)"),
        ("bytes.npz", (4, 4, 1), r"in \[-1, 1\]"),
        ("text.png", (4, 4, 1), "text.png is not a readable image"),
        ("text.png", (8, 1), "give an .npz"),
    ):
        with pytest.raises(ValueError, match=said):
            edits.read([str(tmp_path / name)], shape)
    with pytest.raises(FileNotFoundError, match="none.png"):
        edits.read([str(tmp_path / "none.png")], (4, 4, 1))
