"""Colour and shape of one thing on a white ground, from the pixels: whether a picture is of what
its caption says.

For pictures such as emoji: "red heart", "blue circle", "green square". Nothing is learned, so that
the answer for a clean picture is exact.
"""

import functools
import re
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Red, green and blue of each colour; a picture's colour is the nearest one, as the eye sees it.
COLOURS = {
    "red": (244, 67, 54),
    "orange": (255, 152, 0),
    "yellow": (255, 204, 50),
    "green": (124, 179, 66),
    "blue": (25, 118, 210),
    "purple": (171, 71, 188),
    "brown": (183, 109, 84),
    "black": (66, 66, 66),
    "white": (224, 224, 224),
}
SHAPES = ("heart", "circle", "square")
_DARKER = 15  # than white, in one of the channels, is the least that stands out from the ground
_SHARE = 0.4  # of how much darker the thing is than white; what is less dark is ground
_SMALLEST = 0.05  # of the picture, that a thing fills
_OVERLAP = 0.85  # with its shape, over the union of both
_SIDE = 64  # of the box to which a thing is brought


class Attributes(NamedTuple):
    """What is seen, or said; "" for none of `COLOURS` and `SHAPES`."""

    colour: str
    shape: str


def named(caption: str) -> Attributes:
    """The colour and the shape that a caption names, each if it names just one; a light or dark
    colour is none of these."""
    words = set(re.findall(r"[a-z]+", caption.lower()))
    known = ((), SHAPES) if words & {"light", "dark"} else (COLOURS, SHAPES)
    found = [[name for name in names if name in words] for names in known]
    return Attributes(*(names[0] if len(names) == 1 else "" for names in found))


def seen(image: np.ndarray) -> Attributes:
    """The colour and the shape of the largest thing in a picture, (H, W, 3) uint8.

    How dark a pixel is, is how far its lowest channel lies below white. What is less dark than 0.4
    of the darkest quarter of the picture is ground, so that a tinted one, as of strong guidance, is
    no part of the thing. The thing is the largest connected part that is darker, holes filled. Its
    colour is the nearest in CIELAB to the median of its pixels. Its shape is the one that its
    outline, scaled to a square, overlaps most, if intersection over union is at least 0.85.
    """
    darkness = 255 - image.min(axis=-1).astype(int)
    parts, num = ndimage.label(darkness > max(_DARKER, _SHARE * np.quantile(darkness, 0.75)))
    if num == 0:
        return Attributes("", "")
    sizes = np.bincount(parts.ravel())[1:]
    mask = ndimage.binary_fill_holes(parts == 1 + np.argmax(sizes))
    if mask.mean() < _SMALLEST:
        return Attributes("", "")
    median = _lab(np.median(image[mask].astype(float), axis=0))
    distances = {name: np.sum((median - _lab(np.array(c))) ** 2) for name, c in COLOURS.items()}
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    places = [(np.arange(_SIDE) + 0.5) * size / _SIDE for size in box.shape]
    box = box[np.ix_(*(place.astype(int) for place in places))]
    overlaps = {name: (box & full).sum() / (box | full).sum() for name, full in _filled().items()}
    shape = max(overlaps, key=overlaps.get)
    return Attributes(
        min(distances, key=distances.get), shape if overlaps[shape] >= _OVERLAP else ""
    )


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Lightness, green to red and blue to yellow of an sRGB colour of 0 to 255 (CIE 1976, D65)."""
    values = rgb / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = np.array(to_xyz) @ linear / (0.9505, 1.0, 1.089)
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (ratio * 24389 / 27 + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@functools.cache
def _filled() -> dict[str, np.ndarray]:
    """Each shape in a box of its own size."""
    along = (np.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
    y, x = np.meshgrid(along, along, indexing="ij")
    # (x^2 + y^2 - 1)^3 < x^2 y^3, whose box is 2.28 wide and 2.24 high, from -1 to 1.24.
    a, b = 1.139 * x, 0.119 - 1.118 * y
    heart = (a**2 + b**2 - 1) ** 3 < a**2 * b**3
    return {"heart": heart, "circle": x**2 + y**2 < 1, "square": np.ones_like(heart)}


class Agreement(NamedTuple):
    """Shares of pictures of which what is seen is what is said.

    Attributes:
      both, colour, shape: of the pictures whose captions name a colour and a shape.
      chance: what `both` would be if captions were handed out at random, whatever the pictures.
      num: how many pictures these are.
    """

    both: float
    colour: float
    shape: float
    chance: float
    num: int


def agreement(images: np.ndarray, captions: list[str]) -> Agreement | None:
    """How well pictures, (N, H, W, 3) uint8, follow captions; None if no caption names a colour and
    a shape."""
    said = [named(caption) for caption in captions]
    rows = [i for i, attributes in enumerate(said) if all(attributes)]
    if not rows:
        return None
    said, found = [said[i] for i in rows], [seen(images[i]) for i in rows]
    colour = np.array([a.colour == b.colour for a, b in zip(said, found)])
    shape = np.array([a.shape == b.shape for a, b in zip(said, found)])
    chance = np.mean([a == b for a in said for b in found])
    both = np.mean(colour & shape)
    return Agreement(*map(float, (both, colour.mean(), shape.mean(), chance)), len(rows))
