"""`folder`: the user's own images."""

import collections
import contextlib
import hashlib
import logging
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffax.data import images, metadata
from diffax.data.dataset import DataConfig, Dataset, Split, cut, make_dataset
from diffax.data.stored import Stored, filled, taken

_LOG = logging.getLogger("diffax")
SUFFIXES = tuple(".bmp .gif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split())
_MOST_NAMED = 10  # of the files that can't be read


def load(config: DataConfig) -> Dataset:
    """Reads every image below the folder `config.path`, decoded.

    If the images lie in sub-folders (at any depth), each first-level sub-folder is a class, in the
    order of their names; if they lie in the folder itself there are no classes. Links to files and
    folders count as what they lead to; a folder that several ways lead to is read once for each
    class. Files with other endings than `SUFFIXES`, and hidden ones, are passed over. Each image is
    resized and centre-cropped to `config.image_size` (see `images.decode`), made grey or RGB by
    `config.channels`, and framed to `config.pad_to`. The tenth of the files whose relative paths
    have the highest SHA-256 is the eval split: the same on every machine.

    With a file metadata.jsonl in the folder the images are those that it names, and the classes are
    its own; see `diffax.data.metadata`. Its captions become the array "text", (N,), its controls
    "control", (N, H, W, C), which are resized as the images are, and grey if every one is.

    Files that can't be read are an error that names them all, the first ten by name; with
    `config.skip_bad` they are left out, and the log says how many.

    Raises:
      FileNotFoundError: if the folder is missing or holds no image.
      ValueError: if images or a folder can't be read, sizes differ without `image_size`, or images
        lie both in the folder and in sub-folders; the message names the files.
    """
    found = read(config)
    x, relative = found.x, found.paths
    if len(x) < 2:
        raise ValueError(
            f"data.path={config.path!r} holds one image, {_named(relative[0])}; at least 2 are "
            "needed, one of them to evaluate on."
        )
    digests = [hashlib.sha256(os.fsencode(path.as_posix())).hexdigest() for path in relative]
    whole = Split(x, found.label, found.arrays)
    train, evaluation = map(whole.take, cut(len(x), np.argsort(digests)))
    return make_dataset(config.name, train, evaluation, found.label_names)


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
      x: (N, H, W, C) uint8.
      paths: of each within the folder.
      label: (N,) int32, or None.
      label_names: the classes' names; () without.
      arrays: as in `Split`.
    """

    x: np.ndarray | Stored
    paths: list[pathlib.Path]
    label: np.ndarray | None
    label_names: tuple[str, ...]
    arrays: dict[str, Any]


def read(config: DataConfig) -> Found:
    """Every image as in `load`; a single one will do here."""
    if config.channels not in (0, 1, 3):
        raise ValueError(
            f"data.channels={config.channels} must be 1 (grey), 3 (colour) or 0 (as the files are)."
        )
    root = pathlib.Path(config.path)
    if not config.path or not os.path.isdir(root):
        raise FileNotFoundError(
            f"data.path={config.path!r} is not a folder: data.name='folder' needs one with images."
        )
    described = metadata.read(root)
    files = [root / name for name in sorted(described)] if described else _files(root, config)
    bad: dict[pathlib.Path, str] = {}
    controls = {
        root / name: root / entry.control for name, entry in described.items() if entry.control
    }
    # An image without its control is of no use, so that is read first.
    control, with_control = _decoded(list(controls.values()), config, 0, bad)
    readable = set(with_control)
    files = [path for path in files if path not in controls or controls[path] in readable]
    x, paths = _decoded(files, config, config.channels, bad)
    _report(bad, len(files) + len(set(controls.values()) - readable), config)
    if not paths:
        raise FileNotFoundError(f"no image below data.path={config.path!r} can be read.")
    relative = [path.relative_to(root) for path in paths]
    if not described:
        return Found(x, relative, *classes(relative), {})
    entries = [described[path.as_posix()] for path in relative]
    arrays = {}
    if entries[0].text is not None:
        arrays["text"] = np.array([entry.text for entry in entries])
    if controls:
        row = {path: i for i, path in enumerate(with_control)}
        arrays["control"] = taken(control, np.array([row[controls[path]] for path in paths]))
    return Found(x, relative, *metadata.classes([entry.label for entry in entries]), arrays)


def _decoded(
    files: Sequence[pathlib.Path], config: DataConfig, channels: int, bad: dict[pathlib.Path, str]
) -> tuple[Any, list[pathlib.Path]]:
    """The images that can be read, (N, H, W, C), and their paths; the others go to `bad`.

    `channels`: 0 for grey if every file is, and else colour.
    """
    headers = dict(_tried(dict.fromkeys(files), images.header, bad))
    sizes = {path: header.size for path, header in headers.items()}
    if not config.image_size:
        for path, size in sizes.items():
            first, other = next(iter(sizes.items()))
            if size != other:
                raise ValueError(
                    f"the images differ in size: {_named(first)} is {other[0]} by {other[1]}, "
                    f"{_named(path)} is {size[0]} by {size[1]} pixels; bring them to one size, "
                    "those of a data set by data.image_size."
                )
    channels = channels or (1 if all(header.grey for header in headers.values()) else 3)
    side = config.image_size
    shape = (side, side) if side else next(iter(sizes.values()), (1, 1))
    framed = images.pad(np.empty((0, *shape, channels), np.uint8), config.pad_to).shape[1:]

    def decode(path: pathlib.Path) -> np.ndarray:
        image = images.decode(path, channels, side)
        if image.shape != (*shape, channels):
            raise ValueError("its size is not the one in its header")
        return image

    order = list(headers)
    number = {path: i for i, path in enumerate(order)}

    def fill(x: Any) -> dict[str, np.ndarray]:
        """Gives the numbers of the files that are in x, and of those that can't be, with why."""
        failed: dict[pathlib.Path, str] = {}
        read = []
        decoded = _tried(order, decode, failed)
        for path, image in images.counted(decoded, len(order), "folder"):
            x[len(read)] = images.pad(image[None], config.pad_to)[0]
            read.append(number[path])
        return {
            "read": np.array(read, np.int64),
            "failed": np.array([number[path] for path in failed], np.int64),
            "why": np.array([*failed.values()], np.str_),
        }

    def key() -> list[Any]:
        stats = [(os.fspath(path.absolute()), path.stat()) for path in order]
        files = [(name, found.st_size, found.st_mtime_ns) for name, found in stats]
        return [files, side, channels, config.pad_to]

    what = f"data.path={config.path!r}"
    x, kept = filled((len(order), *framed), np.uint8, fill, config.storage, what, key)
    bad |= {order[i]: str(why) for i, why in zip(kept["failed"], kept["why"])}
    paths = [order[i] for i in kept["read"]]
    animated = [path for path in paths if headers[path].animated]
    if animated:
        _LOG.warning(
            "%d images have several frames, of which the first is taken (%s)",
            len(animated),
            _named(animated[0]),
        )
    return taken(x, slice(0, len(paths))), paths


def classes(paths: list[pathlib.Path]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels of images with these paths within the folder, as in `load`, (N,) int32, and the
    classes' names; None and () without sub-folders."""
    names = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    if not names:
        return None, ()
    number = {name: i for i, name in enumerate(names)}
    label = np.array([number[path.parts[0]] for path in paths], np.int32)
    return label, tuple(map(_named, names))


def walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """What lies below a folder and is no folder and not hidden: through links, in order of names.

    Within each first-level sub-folder every folder is entered once, and none that it lies in, so
    that links in a circle end. A link that leads nowhere is given as it is.

    Raises:
      ValueError: a folder can't be read; it is named.
    """
    above = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}
    for entry in _entries(root):
        if not os.path.isdir(entry.path):
            yield pathlib.Path(entry.path)
            continue
        seen, waiting = set(above), [pathlib.Path(entry.path)]
        while waiting:
            folder = waiting.pop()
            if _identity(folder) in seen:
                continue
            seen.add(_identity(folder))
            for inner in _entries(folder):
                path = pathlib.Path(inner.path)
                if os.path.isdir(path):
                    waiting.append(path)
                else:
                    yield path


@contextlib.contextmanager
def _naming(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the folder {_named(folder)} can't be read ({error.strerror or error})."
        ) from error


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    with _naming(folder), os.scandir(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: entry.name)


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    with _naming(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


def _files(root: pathlib.Path, config: DataConfig) -> list[pathlib.Path]:
    """Those that are to be images, in the order of their paths."""
    found = list(walk(root))
    files = sorted(p for p in found if p.suffix.lower() in SUFFIXES or _leads_nowhere(p))
    if not files:
        raise FileNotFoundError(
            f"no image found below data.path={config.path!r}; files ending in "
            f"{' '.join(SUFFIXES)} are read."
        )
    there = [path for path in files if not _leads_nowhere(path)]
    in_root = [path for path in there if path.parent == root]
    if in_root and len(in_root) < len(there):
        raise ValueError(
            f"data.path={config.path!r} holds images in sub-folders (classes) and beside them "
            f"({_named(in_root[0].name)}): move these into a sub-folder, or all into the folder "
            "itself."
        )
    others = collections.Counter(p.suffix.lower() for p in set(found) - set(files))
    if others:
        said = ", ".join(
            f"{num} {_named(end) or 'without one'}" for end, num in others.most_common(5)
        )
        _LOG.info("%s: files with other endings are passed over: %s", config.path, said)
    with_images = {path.relative_to(root).parts[0] for path in files}
    empty = [e.name for e in _entries(root) if os.path.isdir(e.path) and e.name not in with_images]
    if empty and not in_root:
        _LOG.warning(
            "%s: %d sub-folders hold no image and are no classes: %s",
            config.path,
            len(empty),
            _listed(map(_named, empty)),
        )
    return files


def _leads_nowhere(path: pathlib.Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _tried(
    paths: Sequence[pathlib.Path] | dict, read: Callable, bad: dict[pathlib.Path, str]
) -> Iterator[tuple[pathlib.Path, Any]]:
    """Each path with what is read of it; those that can't be read go to `bad`, with the reason."""
    for path in paths:
        try:
            # Opening a pipe or a device could wait for ever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError("it is a pipe, a socket or a device")
            result = read(path)
        except OSError as error:
            bad[path] = error.strerror or str(error)
        except ValueError as error:
            bad[path] = str(error)
        else:
            yield path, result


def _report(bad: dict[pathlib.Path, str], num: int, config: DataConfig) -> None:
    """Raises ValueError, or says in the log, that files can't be read."""
    if not bad:
        return
    reasons = [f"{_named(path)} ({bad[path]})" for path in sorted(bad)]
    said = f"{len(bad)} of {num} images below data.path={config.path!r} can't be read"
    if not config.skip_bad:
        raise ValueError(
            f"{said}: {_listed(reasons)}. Repair them, take them out of the folder, or set "
            "data.skip_bad=True to leave them out."
        )
    _LOG.warning("%s and are left out: %s", said, _listed(reasons))


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def _named(path: Any) -> str:
    """A name as it can stand in a sentence: line breaks and bytes that are no text escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]
