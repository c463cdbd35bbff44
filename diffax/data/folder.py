"""`folder`: the user's own images."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np

from diffax.data import images
from diffax.data.dataset import DataConfig, Dataset, Split, cut, make_dataset

SUFFIXES = tuple(".bmp .gif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split())


def load(config: DataConfig) -> Dataset:
    """Reads every image below the folder `config.path`, decoded into memory.

    If the images lie in sub-folders (at any depth), each first-level sub-folder is a class, in the
    order of their names; if they lie in the folder itself there are no classes. Files with other
    endings than `SUFFIXES`, and hidden ones, are passed over. Each image is resized and
    centre-cropped to `config.image_size` (see `images.decode`), made grey or RGB by
    `config.channels`, and framed to `config.pad_to`. The tenth of the files whose relative paths
    have the highest SHA-256 is the eval split: the same on every machine.

    Raises:
      FileNotFoundError: if the folder is missing or holds no image.
      ValueError: if an image cannot be read, sizes differ without `image_size`, or images lie both
        in the folder and in sub-folders; the message names the file.
    """
    x, relative = read(config)
    if len(x) < 2:
        raise ValueError(
            f"data.path={config.path!r} holds one image, {relative[0]}; at least 2 are needed, "
            "one of them to evaluate on."
        )
    label, names = classes(relative)
    digests = [hashlib.sha256(path.as_posix().encode()).hexdigest() for path in relative]
    train, evaluation = (
        Split(x[i], None if label is None else label[i]) for i in cut(len(x), np.argsort(digests))
    )
    return make_dataset(config.name, train, evaluation, names)


def read(config: DataConfig) -> tuple[np.ndarray, list[pathlib.Path]]:
    """Every image as in `load`, (N, H, W, C) uint8, and their paths within the folder.

    A single image will do here.
    """
    root = pathlib.Path(config.path)
    files = _files(root, config)
    grey, sizes = zip(*(_reading(path, images.header) for path in files), strict=True)
    if not config.image_size:
        for path, size in zip(files, sizes, strict=True):
            if size != sizes[0]:
                raise ValueError(
                    f"the images differ in size: {files[0]} is {sizes[0][0]} by {sizes[0][1]}, "
                    f"{path} is {size[0]} by {size[1]} pixels; bring them to one size, those of "
                    "a data set by data.image_size."
                )
    channels = config.channels or (1 if all(grey) else 3)
    height, width = (config.image_size,) * 2 if config.image_size else sizes[0]
    x = np.empty((len(files), height, width, channels), np.uint8)
    for i, path in enumerate(files):
        x[i] = _reading(path, lambda p: images.decode(p, channels, config.image_size))
    return images.pad(x, config.pad_to), [path.relative_to(root) for path in files]


def classes(paths: list[pathlib.Path]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels of images with these paths within the folder, as in `load`, (N,) int32, and the
    classes' names; None and () without sub-folders."""
    names = tuple(sorted({path.parts[0] for path in paths if len(path.parts) > 1}))
    if not names:
        return None, ()
    return np.array([names.index(path.parts[0]) for path in paths], np.int32), names


def _files(root: pathlib.Path, config: DataConfig) -> list[pathlib.Path]:
    if not config.path or not root.is_dir():
        raise FileNotFoundError(
            f"data.path={config.path!r} is not a folder: data.name='folder' needs one with images."
        )
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not files:
        raise FileNotFoundError(
            f"no image found below data.path={config.path!r}; files ending in "
            f"{' '.join(SUFFIXES)} are read."
        )
    in_root = [path for path in files if path.parent == root]
    if in_root and len(in_root) < len(files):
        raise ValueError(
            f"data.path={config.path!r} holds images in sub-folders (classes) and beside them "
            f"({in_root[0].name}): move these into a sub-folder, or all into the folder itself."
        )
    return files


def _reading(path: pathlib.Path, read):
    from PIL import Image

    try:
        return read(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} is not a readable image ({error}): repair it or take it out of the folder."
        ) from error
