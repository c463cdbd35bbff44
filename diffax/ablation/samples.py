"""Samples of an ablation, drawn as PNG: images, signals or points in the plane."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from diffax.files import read_npz

_MOST = 36  # images or points × 100 that one drawing shows
_GREY = "#80868e"  # reads on a light and on a dark page


def pictures(samples: Sequence[tuple[Any, str | Path]]) -> list[bytes]:
    """One PNG for each set of samples, points and signals on axes that all share.

    Args:
      samples: pairs of samples and the directory in which a relative path starts. Samples are an
        array (or nested lists), the path of an .npz file that holds one as "samples" (or as its
        only array), or the path of a .png file, which is taken as it is. An array holds uint8
        images (n, H, W), (n, H, W, 1) or (n, H, W, 3); or real data: images (n, H, W, 1 or 3) in
        [-1, 1], signals (n, L, C) or points in the plane (n, 2). What is not finite shows as 0.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an array of another type or shape.
    """
    return draw([load(*pair) for pair in samples])


def draw(loaded: Sequence[np.ndarray | bytes]) -> list[bytes]:
    """`pictures` of what `load` gives.

    Raises:
      ValueError: see `objection`.
    """
    for reason in filter(None, map(objection, loaded)):
        raise ValueError(reason)
    loaded = [
        a if isinstance(a, bytes) else np.where(np.isfinite(a), a, a.dtype.type(0)) for a in loaded
    ]
    real = [a for a in loaded if not isinstance(a, bytes) and a.ndim < 4 and a.dtype != np.uint8]
    limits = (min(a.min() for a in real), max(a.max() for a in real)) if real else (0, 1)
    return [a if isinstance(a, bytes) else _DRAWINGS[_form(a)](a, limits) for a in loaded]


def load(samples: Any, directory: str | Path) -> np.ndarray | bytes:
    """One pair of those that `pictures` takes: an array, or the content of a PNG file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that can't be read; it is named.
    """
    if isinstance(samples, (str, Path)):
        path = Path(directory) / samples
        if not path.exists():
            raise FileNotFoundError(f"samples: no file {path}")
        if path.suffix == ".png":
            return path.read_bytes()

        def pick(names: Sequence[str]) -> Sequence[str]:
            if not names:
                raise ValueError(f"samples: {path} holds no array")
            return ["samples"] if "samples" in names else names[:1]

        (samples,) = read_npz(path, pick).values()
    array = np.asarray(samples)
    if isinstance(samples, list) and array.dtype.kind in "iu":  # JSON does not know uint8
        array = array.astype(np.uint8)
    return array


def objection(loaded: np.ndarray | bytes) -> str | None:
    """Why what `load` gives can't be drawn, in a sentence; None if it can."""
    if isinstance(loaded, bytes):
        return None
    shape = loaded.shape
    if _form(loaded) in _DRAWINGS and (len(shape) < 4 or shape[-1] in (1, 3)):
        return None
    return (
        "samples must be uint8 images (n, H, W[, 1 or 3]), or real images (n, H, W, 1 or 3), "
        f"signals (n, L, C) or points (n, 2), got {loaded.dtype} {shape}"
    )


def _form(array: np.ndarray) -> tuple[str, int]:
    return "uint8" if array.dtype == np.uint8 else array.dtype.kind, array.ndim


def _images(images: np.ndarray, limits: tuple[float, float]) -> bytes:
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    grid = _tile(images[:_MOST])
    # Magnified by whole pixels, so that small images stay sharp and even.
    scale = max(1, -(-480 // grid.shape[1]))
    buffer = io.BytesIO()
    magnified = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(magnified).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _real_images(images: np.ndarray, limits: tuple[float, float]) -> bytes:
    return _images(np.clip(np.rint(127.5 * (images + 1)), 0, 255).astype(np.uint8), limits)


def _signals(signals: np.ndarray, limits: tuple[float, float]) -> bytes:
    figure = Figure((4, 4), dpi=120)
    for i, axes in enumerate(np.ravel(figure.subplots(min(6, len(signals)), 1))):
        axes.plot(signals[i], color=_GREY, lw=0.7)
        axes.set(ylim=limits)
        axes.axis("off")
    return _saved(figure)


def _points(points: np.ndarray, limits: tuple[float, float]) -> bytes:
    figure = Figure((4, 4), dpi=120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot(*points[: 100 * _MOST].T[:2], ".", color=_GREY, ms=6, mew=0, alpha=0.7)
    axes.set(xlim=limits, ylim=limits)
    axes.axis("off")
    return _saved(figure)


_DRAWINGS = {
    ("uint8", 3): _images,
    ("uint8", 4): _images,
    ("f", 4): _real_images,
    ("f", 3): _signals,
    ("f", 2): _points,
}


def _saved(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def _tile(images: np.ndarray, gap: int = 1) -> np.ndarray:
    n, height, width = images.shape[:3]
    side = int(np.ceil(np.sqrt(n)))
    # About square, with as few empty places as can be: 32 images as 8 x 4.
    columns = min(range(side, side + side // 2 + 1), key=lambda c: (-n % c, c))
    rows = -(-n // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:])
    grid = np.full(shape, 127, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        grid[y : y + height, x : x + width] = image
    return grid
