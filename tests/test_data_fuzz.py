"""Files of data with bytes changed at random: each is read, or refused in a line that names it."""

import io

import numpy as np
import pytest
from data_files import load
from PIL import Image

PER_FORM = 30


def mutated(content, rng):
    """Cut short, or with some bytes or bits of its beginning or of anywhere changed."""
    kind, end = rng.integers(5), len(content)
    if kind == 0:
        return content[: rng.integers(end)]
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = rng.integers(min(end, 64) if kind < 3 else end)
        content[place] = rng.integers(256) if kind % 2 else content[place] ^ 1 << rng.integers(8)
    return bytes(content)


def load_or_refusal(**fields):
    """What is said of a file that is refused; None if it is read."""
    try:
        dataset = load(**fields)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    assert dataset.train.x.dtype in (np.uint8, np.float32) and len(dataset.train) > 0
    return None


def tried(changed, sound, rng, **fields):
    read = 0
    for _ in range(PER_FORM):
        changed.write_bytes(mutated(sound, rng))
        said = load_or_refusal(**fields)
        read += said is None
        assert said is None or (changed.name in said and "\n" not in said), said
    return read


@pytest.mark.parametrize("form", ["bmp", "gif", "jpeg", "png", "ppm", "tiff", "webp"])
def test_images(form, tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    for name in "ab":
        image.save(tmp_path / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"changed.{form}"
    image.save(path, exif=exif)
    read = tried(path, path.read_bytes(), rng, name="folder", path=str(tmp_path), image_size=8)
    assert read < PER_FORM


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(save, tmp_path):
    rng = np.random.default_rng(0)
    sound = io.BytesIO()
    save(sound, x=rng.integers(0, 256, (9, 4, 4, 3), np.uint8), label=np.arange(9) % 3)
    path = tmp_path / "changed.npz"
    assert tried(path, sound.getvalue(), rng, name="npz", path=str(path)) < PER_FORM
