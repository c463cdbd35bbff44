"""Folders of images: what is read, what is made of it, and what is said of what can't be read."""

import io
import logging
import os
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
from data_files import load, save_image
from PIL import Image

from diffax import data, runtime
from diffax.data import folder, images


@pytest.fixture
def photos(tmp_path):
    for k in range(20):
        save_image(tmp_path / "photos" / ("cat" if k % 2 else "dog") / f"{k:02}.png", value=k)
    return tmp_path / "photos"


def test_folder_of_classes(photos):
    save_image(photos / "dog" / ".hidden.png", value=99)
    (photos / "notes.txt").write_text("not an image")
    dataset = load(name="folder", path=str(photos))
    assert dataset.shape == (4, 6, 1)
    assert dataset.label_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.eval)) == (18, 2)
    values = np.concatenate([dataset.train.x, dataset.eval.x])[:, 0, 0, 0]
    labels = np.concatenate([dataset.train.label, dataset.eval.label])
    assert sorted(values) == list(range(20))
    np.testing.assert_array_equal(labels, 1 - values % 2)  # odd ones are cats
    again = load(name="folder", path=str(photos))
    np.testing.assert_array_equal(again.eval.x, dataset.eval.x)


def test_folder_split_does_not_depend_on_where_the_folder_is(photos, tmp_path):
    first = load(name="folder", path=str(photos))
    photos.rename(tmp_path / "moved")
    second = load(name="folder", path=str(tmp_path / "moved"))
    np.testing.assert_array_equal(first.eval.x, second.eval.x)


def test_folder_without_classes_is_resized_and_cropped(tmp_path):
    # Twice as wide as high: black, with a white square in the middle that alone shall remain.
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = 255
    for name in ("a.png", "b.JPEG"):
        Image.fromarray(wide).save(tmp_path / name, quality=100)
    tall = Image.fromarray(wide.T)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: to be turned by a quarter
    tall.save(tmp_path / "c.jpg", quality=100, exif=exif)
    dataset = load(name="folder", path=str(tmp_path), image_size=8, channels=3, pad_to=10)
    assert dataset.shape == (10, 10, 3)
    assert (dataset.num_classes, dataset.train.label) == (0, None)
    both = np.concatenate([dataset.train.x, dataset.eval.x])
    assert both.shape[0] == 3
    assert both[:, 1:9, 2:8].min() > 250
    assert both[:, 0].max() == 0


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # finer than the small image can show: must become even grey
    Image.fromarray(stripes).save(tmp_path / "a.png")
    small = images.decode(tmp_path / "a.png", 1, 16)
    assert np.abs(small[:, 2:-2].astype(int) - 128).max() <= 2


def test_folder_grey_and_colour(tmp_path):
    save_image(tmp_path / "a.png", value=100)
    save_image(tmp_path / "b.png", mode="RGB", value=(200, 0, 0))
    assert load(name="folder", path=str(tmp_path)).shape == (4, 6, 3)
    assert load(name="folder", path=str(tmp_path), channels=1).shape == (4, 6, 1)


def test_transparent_pixels_become_black(tmp_path):
    save_image(tmp_path / "a.png", mode="RGBA", value=(255, 255, 255, 0))
    assert images.decode(tmp_path / "a.png", 3).max() == 0


def test_folder_errors(tmp_path, photos):
    def refused(error, message, **fields):
        with pytest.raises(error, match=message):
            load(name="folder", **fields)

    refused(FileNotFoundError, r"data\.path='' is not a folder")
    refused(FileNotFoundError, r"data\.path='/no/such' is not a folder", path="/no/such")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(FileNotFoundError, rf"no image found below data\.path='{empty}'", path=str(empty))
    save_image(empty / "one.png")
    refused(ValueError, r"holds one image, one\.png; at least 2", path=str(empty))

    save_image(photos / "dog" / "large.png", size=(8, 8))
    message = r"differ in size: .*(00|01)\.png is 4 by 6, .*large\.png is 8 by 8 .*data\.image_size"
    refused(ValueError, message, path=str(photos))
    assert load(name="folder", path=str(photos), image_size=4).shape == (4, 4, 1)
    (photos / "dog" / "large.png").unlink()

    save_image(photos / "stray.png")
    refused(ValueError, r"in sub-folders .* \(stray\.png\)", path=str(photos))
    (photos / "stray.png").unlink()


def write_fifo(path):
    os.mkfifo(path)


def png_of(depth, color, pixel, side=1):
    """A PNG of one pixel, of a depth and a kind of colour that Pillow doesn't write.

    With another `side` it only says that it has more."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    start = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    rows = zlib.compress(b"\0" + pixel)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each) for each in ((b"IHDR", start), (b"IDAT", rows), (b"IEND", b""))
    )


def encoded(form, size=(6, 4), mode="L", **options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def cut_short(content):
    return content[: len(content) * 2 // 3]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\nshowpage\n%%EOF\n"
# name -> what is in the file, and what is said of it
BAD = {
    "text.png": (b"no image", "it is no BMP, .* or WEBP image"),
    "empty.png": (b"", "it is no BMP"),
    "eps.png": (EPS, "it is no BMP"),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no BMP"),
    "icon.bmp": (encoded("ICO", (16, 16)), "it is no BMP"),
    "header.png": (encoded("PNG")[:20], "."),
    "short.png": (cut_short(encoded("PNG")), "."),
    "short.jpg": (cut_short(encoded("JPEG")), "Truncated File Read"),
    "short.gif": (cut_short(encoded("GIF", (60, 40))), "."),
    "short.webp": (cut_short(encoded("WEBP")), "."),
    "short.bmp": (cut_short(encoded("BMP")), "."),
    "short.tif": (cut_short(encoded("TIFF", (60, 40))), "."),
    "short.ppm": (cut_short(encoded("PPM", mode="RGB")), "."),
    "bomb.png": (png_of(8, 0, b"0", side=16_000), "Image size .256000000 pixels. exceeds limit"),
    "grey.png": (png_of(16, 0, bytes(2)), "it has more than 8 bits"),
    "rgb.png": (png_of(16, 2, bytes(6)), "it has more than 8 bits"),
    "alpha.png": (png_of(16, 6, bytes(8)), "it has more than 8 bits"),
    "deep.ppm": (b"P6 1 1 65535\n" + bytes(6), "it has more than 8 bits"),
    "deep.tif": (encoded("TIFF", mode="F"), "it has more than 8 bits"),
    "pipe.png": (None, "it is a pipe"),
}


def test_all_bad_images_are_named_at_once_or_left_out(photos, caplog, monkeypatch):
    for name, (content, _) in BAD.items():
        path = photos / "cat" / name
        write_fifo(path) if content is None else path.write_bytes(content)
    (photos / "cat" / "link.png").symlink_to("nowhere.png")
    (photos / "gone").symlink_to("nowhere")
    bad = len(BAD) + 2
    with pytest.raises(
        ValueError, match=rf"^{bad} of {bad + 20} images below .* and {bad - 10} more\."
    ):
        load(name="folder", path=str(photos), image_size=4)
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    monkeypatch.setattr(folder, "_MOST_NAMED", 100)
    with pytest.raises(ValueError, match=r"Repair them, .* or set data\.skip_bad=True") as caught:
        load(name="folder", path=str(photos), image_size=4)
    for name, (_, reason) in BAD.items():
        assert re.search(rf"/cat/{name} \({reason}[^)]*", str(caught.value)), name
    for name in ("cat/link.png", "gone"):
        assert f"{name} (No such file or directory)" in str(caught.value)
    assert "\n" not in str(caught.value)
    dataset = load(name="folder", path=str(photos), image_size=4, skip_bad=True)
    assert len(dataset.train) + len(dataset.eval) == 20
    assert dataset.label_names == ("cat", "dog")
    assert f"{bad} of {bad + 20} images below" in caplog.text and "are left out" in caplog.text
    for path in photos.rglob("*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image below .* can be read"):
        load(name="folder", path=str(photos), image_size=4, skip_bad=True)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_made_upright(tmp_path, orientation, compression):
    """The same picture, kept in eight ways, is read alike from PNG and TIFF files."""
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6)
    # How each way keeps it: the turn that reading undoes.
    kept = [
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[::-1, ::-1],
        lambda x: x[::-1],
        lambda x: x.T,
        lambda x: np.rot90(x),
        lambda x: x[::-1, ::-1].T,
        lambda x: np.rot90(x, -1),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "TIFF"):
        image = Image.fromarray(np.ascontiguousarray(kept(upright)))
        image.save(tmp_path / "a", form, exif=exif, compression=compression)
        assert images.header(tmp_path / "a").size == (4, 6)
        np.testing.assert_array_equal(images.decode(tmp_path / "a", 1)[..., 0], upright)


TEXT = struct.pack("<4sIHHHI4sI", b"II*\0", 8, 1, 0x0112, 2, 4, b"abc\0", 0)  # where numbers stand


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", [6, 0, 99, "text"])
def test_orientation_that_is_none_counts_as_upright(tmp_path, form, value):
    exif = Image.Exif()
    exif[0x0112] = value
    if value == "text":
        exif = b"Exif\0\0" + TEXT if form != "TIFF" else Image.Exif()
    path = tmp_path / f"a.{form.lower()}"
    Image.new("L", (6, 4)).save(path, form, exif=exif)
    turned = (6, 4) if value == 6 else (4, 6)
    assert images.header(path).size == images.decode(path, 1).shape[:2] == turned


def test_exif_data_that_can_not_be_read_count_as_none(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert images.header(tmp_path / "a.jpg").size == images.decode(tmp_path / "a.jpg", 1).shape[:2]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_images_of_any_mode_are_read(tmp_path, form, mode):
    path = tmp_path / f"a.{form.lower()}"
    try:
        path.write_bytes(encoded(form, mode=mode))
    except (OSError, ValueError):
        pytest.skip(f"Pillow writes no {form} of mode {mode}")
    for channels in (1, 3):
        assert images.decode(path, channels).shape == (4, 6, channels)
    assert images.header(path).size == (4, 6)


def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    frames = [Image.new("L", (6, 4), 50 * k) for k in range(1, 4)]
    for name in ("a.gif", "b.png", "c.webp", "d.tif"):
        options = {"lossless": True} if name == "c.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    dataset = load(name="folder", path=str(tmp_path))
    assert np.all(dataset.train.x == 50) and np.all(dataset.eval.x == 50)
    assert "4 images have several frames, of which the first is taken" in caplog.text


def test_links_are_followed_and_circles_end(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    store = tmp_path / "store"
    for k in range(12):
        save_image(store / ("a" if k % 2 else "b") / "deep" / f"{k:02}.png", value=k)
    root = tmp_path / "classes"
    root.mkdir()
    (root / "cat").symlink_to(store / "a")
    (root / "dog").mkdir()
    for path in (store / "b" / "deep").iterdir():
        (root / "dog" / path.name).symlink_to(path)
    for place, to in {
        "dog/again": root / "dog",
        "dog/up": root,
        "dog/everything": "/",
        "dog/self": "self",
        "dog/cat": store / "b",
        "whole": root,
    }.items():
        (root / place).symlink_to(to)
    (store / "a" / "deep" / "back").symlink_to(store / "a")
    (root / "empty").mkdir()
    (root / "dog" / "self").unlink()
    dataset = load(name="folder", path=str(root))
    assert dataset.label_names == ("cat", "dog")
    x, label = (
        np.concatenate([getattr(split, key) for split in (dataset.train, dataset.eval)])
        for key in ("x", "label")
    )
    assert sorted(x[label == 0, 0, 0, 0]) == [1, 3, 5, 7, 9, 11]
    assert set(x[label == 1, 0, 0, 0]) == {0, 2, 4, 6, 8, 10}
    assert "2 sub-folders hold no image and are no classes: empty, whole" in caplog.text
    fields = {"name": "folder", "path": str(root)}
    kept = data.load_cached(fields)
    assert data.load_cached(fields) is kept
    save_image(store / "a" / "deep" / "new.png")  # behind a link
    assert data.load_cached(fields) is not kept


def test_a_folder_that_can_not_be_read_is_named(photos, monkeypatch):
    """Permissions don't bind the superuser, as whom tests may run."""
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        ValueError, match=rf"the folder {photos}/cat can't be read \(Permission den"
    ):
        load(name="folder", path=str(photos), skip_bad=True)


def test_names_of_any_bytes(tmp_path):
    for k, name in enumerate([b"a\nb", b"\xff\xfe", "\u00e9 \u2603".encode(), b" "]):
        for i in range(5):
            save_image(
                pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) / f"{i}.png", value=k
            )
    dataset = load(name="folder", path=str(tmp_path))
    assert dataset.label_names == (" ", "a\\nb", "\u00e9 \u2603", "\\udcff\\udcfe")
    (pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")) / "x\n.png").write_text("")
    with pytest.raises(ValueError, match=r"\\udcff\\udcfe/x\\n\.png \(it is no"):
        load(name="folder", path=str(tmp_path))


def test_an_image_set_that_does_not_fit_into_memory(photos, monkeypatch):
    monkeypatch.setattr(runtime, "available_memory", lambda: 1000)
    for size in (dict(image_size=64), dict(pad_to=64)):
        with pytest.raises(ValueError, match=r"data\.path=.* would take .* GiB of memory"):
            load(name="folder", path=str(photos), storage="memory", **size)
