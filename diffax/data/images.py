"""Decoding, resizing and framing of 8-bit images (Pillow)."""

import contextlib
import io
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from diffax.files import check_fits

_LOG = logging.getLogger("diffax")
_LOG_SECONDS = 5.0
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY_MODES = ("1", "L", "LA", "La")
# What is read, whatever a file's name says; of others Pillow has some read by other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Header(NamedTuple):
    """What is known of an image before its pixels are decoded."""

    grey: bool
    size: tuple[int, int]  # upright, (height, width)
    animated: bool  # it has more frames than the first, which alone is read


def decode(source: bytes | os.PathLike, channels: int, image_size: int = 0) -> np.ndarray:
    """One image as uint8 (H, W, channels), resized and cropped if `image_size` is not 0.

    Turned upright as its EXIF orientation says; transparent pixels become black, unless four
    channels are wanted. With `image_size` the shorter side is scaled to that many pixels
    (Lanczos, antialiased) and the longer one cropped at its centre.

    Raises:
      ValueError: if the source is no readable image of 8 bits a channel; it says why, but not
        which file.
      OSError: if the file can't be opened.
    """
    from PIL import Image, ImageOps

    with _opened(source) as image:
        upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        mode = MODES[channels]
        if upright.mode != mode:
            if channels < 4 and _has_alpha(upright):
                upright = upright.convert("RGBA")
                black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
                upright = Image.alpha_composite(black, upright)
            upright = upright.convert(mode)
        if image_size and upright.size != (image_size, image_size):
            upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.LANCZOS)
        return np.asarray(upright, np.uint8).reshape(upright.height, upright.width, channels)


def header(path: os.PathLike) -> Header:
    """The header of an image file, read without decoding; raises as `decode`."""
    with _opened(path) as image:
        width, height = image.size
        size = (width, height) if _orientation(image) >= 5 else (height, width)
        several = image.format != "MPO" and getattr(image, "is_animated", False)
        return Header(image.mode in _GREY_MODES, size, several)


@contextlib.contextmanager
def _opened(source: bytes | os.PathLike) -> Iterator[Any]:
    """The open image. Whatever goes wrong while it is open is a ValueError: Pillow's decoders have
    no one kind of error for what they can't read."""
    from PIL import Image, UnidentifiedImageError

    # A file goes to Pillow open: by its name it would map some TIFF files, and turn them wrongly.
    file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
    try:
        with (
            file,
            warnings.catch_warnings(action="ignore"),
            Image.open(file, formats=_FORMATS) as image,
        ):
            if 0 in image.size:
                raise ValueError("it has no pixels")
            _check_depth(image)
            yield image
    except UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS[:-1])
        raise ValueError(f"it is no {kinds} or {_FORMATS[-1]} image") from error
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(lines[0]) from error


def _orientation(image) -> int:
    """1 to 8, as EXIF numbers them; 1, upright, where there is none or it can't be read."""
    from PIL import ExifTags

    if image.format == "TIFF":  # which Pillow turns upright itself
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow has no one kind for broken EXIF data; the picture may be sound
        return 1
    return found if type(found) is int and 1 <= found <= 8 else 1


def counted(items: Iterable[Any], num: int, name: str) -> Iterator[Any]:
    """The items, with a log line now and then on how many of `num` images are decoded."""
    last = time.monotonic()
    for i, item in enumerate(items):
        if time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            _LOG.info("%s: %d of %d images decoded", name, i, num)
        yield item


def encode_png(x: np.ndarray) -> bytes:
    """A uint8 image (H, W, C) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x).save(buffer, format="PNG")
    return buffer.getvalue()


def pad(x: np.ndarray, pad_to: int) -> np.ndarray:
    """Images (N, H, W, C) framed in black (pixel 0) to (N, pad_to, pad_to, C); 0 leaves them.

    The image stands in the centre; an odd pixel goes below and to the right.

    Raises:
      ValueError: if the images are larger than `pad_to`, naming data.pad_to.
    """
    if not pad_to:
        return x
    height, width = x.shape[1:3]
    if max(height, width) > pad_to:
        raise ValueError(
            f"data.pad_to={pad_to} is smaller than the images ({height} by {width}): give at least "
            f"{max(height, width)}, or make them smaller by data.image_size."
        )
    top, left = (pad_to - height) // 2, (pad_to - width) // 2
    if len(x) > 1:
        check_fits(len(x) * pad_to**2 * x.shape[-1], f"data.pad_to={pad_to}")
    frame = ((0, 0), (top, pad_to - height - top), (left, pad_to - width - left), (0, 0))
    return np.pad(x, frame)


def _check_depth(image) -> None:
    """Refuses more than 8 bits a channel, of some of which Pillow would drop the lower ones."""
    stored = [tile.args for tile in image.tile]  # what the decoders are given
    highest = max(
        (args[-1] for args in stored if image.format == "PPM" and len(args) == 2), default=0
    )
    if image.mode.startswith(("I", "F")) or ";16" in str(stored) or highest > 255:
        raise ValueError(
            f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits"
        )


def _has_alpha(image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info
