"""Decoding, resizing and framing of 8-bit images (Pillow)."""

from __future__ import annotations

import io
import os

import numpy as np

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY_MODES = ("1", "L", "LA", "La")


def decode(source: bytes | os.PathLike, channels: int, image_size: int = 0) -> np.ndarray:
    """One image as uint8 (H, W, channels), resized and cropped if `image_size` is not 0.

    Turned upright as its EXIF orientation says; transparent pixels become black, unless four
    channels are wanted. With `image_size` the shorter side is scaled to that many pixels
    (Lanczos, antialiased) and the longer one cropped at its centre.

    Raises:
      OSError: (also its subclass PIL.UnidentifiedImageError) if the bytes are no readable image.
      ValueError: if the image has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        _check_depth(image.mode)
        upright = ImageOps.exif_transpose(image)
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


def header(path: os.PathLike) -> tuple[bool, tuple[int, int]]:
    """(is it grey, its upright (height, width)), read without decoding; raises as `decode`."""
    from PIL import ExifTags, Image

    with Image.open(path) as image:
        _check_depth(image.mode)
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return image.mode in _GREY_MODES, (width, height) if turned else (height, width)


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
    frame = ((0, 0), (top, pad_to - height - top), (left, pad_to - width - left), (0, 0))
    return np.pad(x, frame)


def _check_depth(mode: str) -> None:
    if mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits a channel (mode {mode}); convert it to 8 bits")


def _has_alpha(image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info
