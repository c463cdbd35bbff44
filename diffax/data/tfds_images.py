"""Image sets of TensorFlow Datasets, read without TensorFlow."""

import contextlib
import difflib
import functools
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from diffax.data.dataset import DataConfig, Dataset, make_dataset
from diffax.data.records import Record, read_split

_LOG = logging.getLogger("diffax")
_AGAIN = "delete its folder and prepare the set again"
_CHUNK = 512  # records per read
_CAPTIONS = ("text", "caption")


def data_dir(given: str) -> str:
    """The folder of prepared sets: data.data_dir, or TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return os.path.expanduser(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def load(config: DataConfig, also_known: tuple[str, ...] = ()) -> Dataset:
    """Loads the TFDS image set `config.name` from its `data_dir`, downloading it if need be.

    Its captions, the array "text", are those of a feature "text" or "caption".
    A set that is prepared there (in a format with random access, such as array_record) is read.
    Any other set that TFDS knows is downloaded and prepared there; that needs internet, once,
    and for most sets TensorFlow as well, once.

    Args:
      config: `name` may carry a config and a version, "name/config:version".
      also_known: further names, for the suggestion when `name` is unknown.

    Raises:
      ValueError: for an unknown name, set or split, or a set without 8-bit images.
      FileNotFoundError: if the set is neither prepared nor can be had.
    """
    from tensorflow_datasets.core import read_only_builder, registered

    root = data_dir(config.data_dir)
    try:
        builder = read_only_builder.builder_from_files(config.name, data_dir=root)
    except registered.DatasetNotFoundError:
        builder = _download(config.name, root, also_known)
    except Exception as error:  # TFDS has no one kind for a description that it can't read
        raise ValueError(
            f"the description of {config.name!r} in {root} can't be read "
            f"({_first_line(error)}): {_AGAIN}."
        ) from error
    image_key, label_key, text_key = _feature_keys(config.name, builder.info.features)
    # Both are opened before the first is decoded, so that an error comes at once.
    train, evaluation = [
        _open(config, builder, field, image_key) for field in ("train_split", "eval_split")
    ]
    channels = builder.info.features[image_key].shape[-1] or 3

    def records_of(source: Any) -> Iterator[Record]:
        for record in _records(source, config.name):
            text = record[text_key].decode("utf-8", "replace") if text_key else None
            yield Record(record[image_key], record[label_key] if label_key else None, text)

    def key(split: str) -> list[Any]:
        stats = [(entry.name, entry.stat()) for entry in os.scandir(builder.data_dir)]
        files = sorted((name, found.st_size, found.st_mtime_ns) for name, found in stats)
        return [os.fspath(builder.data_dir), files, split]

    train, evaluation = (
        read_split(
            config,
            len(source),
            functools.partial(records_of, source),
            channels,
            functools.partial(key, split),
            f"{{}} of {config.name!r} can't be read ({{}}): {_AGAIN}.",
        )
        for source, split in ((train, config.train_split), (evaluation, config.eval_split))
    )
    names = tuple(builder.info.features[label_key].names) if label_key else ()
    return make_dataset(config.name, train, evaluation, names)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _feature_keys(name: str, features) -> tuple[str, str | None, str | None]:
    """The keys of the image and (or None) of the class label and of the caption."""
    import tensorflow_datasets as tfds

    keys = list(features.keys()) if isinstance(features, tfds.features.FeaturesDict) else []

    def pick(kind: type, preferred: str) -> str | None:
        found = [key for key in keys if type(features[key]) is kind]
        return preferred if preferred in found else found[0] if len(found) == 1 else None

    image = pick(tfds.features.Image, "image")
    if image is None or features[image].np_dtype != np.uint8:
        raise ValueError(
            f"data.name={name!r} is not a set of 8-bit images: its features are {keys or features}."
        )
    # By name alone: many sets keep a file's name as text.
    texts = [key for key in _CAPTIONS if isinstance(dict(features).get(key), tfds.features.Text)]
    return image, pick(tfds.features.ClassLabel, "label"), next(iter(texts), None)


def _open(config: DataConfig, builder, field: str, image_key: str):
    """The random-access source of one split, its images still encoded."""
    import tensorflow_datasets as tfds

    split = getattr(config, field)
    try:
        with naming_split(config, field, builder.info.splits):
            # The PNG or JPEG bytes come as stored: decoding them here takes half of TFDS's time.
            source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
            empty = len(source) == 0
    except NotImplementedError as error:  # a file format without random access
        raise ValueError(
            f"data.name={config.name!r} in {builder.data_dir} is stored as "
            f"{builder.info.file_format.value}, which has no random access: prepare it in another "
            f"data.data_dir by {_recipe(config.name, 'FOLDER')}."
        ) from error
    if empty:
        raise ValueError(f"data.{field}={split!r} of {config.name!r} is empty.")
    return source


@contextlib.contextmanager
def naming_split(config: DataConfig, field: str, splits: Iterable[str]) -> Iterator[None]:
    """What TFDS raises of a split that there isn't becomes a sentence."""
    try:
        yield
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"data.{field}={getattr(config, field)!r} is not a split of {config.name!r}, which has"
            f" {', '.join(splits)} (and slices as in 'train[:90%]')."
        ) from error


def _records(source, name: str) -> Iterator[Any]:
    """The records of a split, one after the other."""
    for start in range(0, len(source), _CHUNK):
        chunk = list(range(start, min(start + _CHUNK, len(source))))
        try:
            records = source.__getitems__(chunk)
        except Exception as error:  # the readers of TFDS have no one kind for a damaged file
            raise ValueError(
                f"the files of {name!r} can't be read ({_first_line(error)}): {_AGAIN}."
            ) from error
        yield from records


def _download(name: str, root: str, also_known: tuple[str, ...]):
    """Downloads and prepares a set that is not in `root`; returns its builder."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    if base not in known:
        names = sorted({*also_known, *known})
        close = difflib.get_close_matches(base, names, n=3)
        close += [n for n in names if n.startswith(base) and n not in close][:3]
        raise ValueError(
            f"data.name={name!r} is neither {', '.join(also_known)} nor an image set of TFDS or in "
            f"{root}" + (f"; did you mean {' or '.join(close)}?" if close else ".")
        )
    try:
        if os.path.isdir(root) and not os.stat(root).st_mode & 0o222:  # a superuser could write
            raise PermissionError("it is marked read-only")
        builder = tfds.builder(name, data_dir=root)
        for url in list(builder.url_infos)[:1]:
            _probe(url)
        _LOG.info("%s is not in %s: downloading and preparing it there", name, root)
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except ImportError as error:
        raise FileNotFoundError(
            f"data.name={name!r} is not prepared in {root}, and preparing it needs a package that "
            f"is missing ({error}): install it (pip install tensorflow-cpu, if that is the one; "
            "only preparing needs it), or set data.data_dir to a folder where the set is prepared."
        ) from error
    except Exception as error:  # whatever TFDS, the network or the disk raise
        raise FileNotFoundError(
            f"data.name={name!r} is not prepared in {root} and could not be downloaded ({error}): "
            f"prepare it on a machine with internet by {_recipe(name, 'FOLDER')} and set "
            "data.data_dir (or TFDS_DATA_DIR) to that folder."
        ) from error
    return builder


def _probe(url: str) -> None:
    """Raises OSError at once if the server is out of reach; TFDS itself retries for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it answered


def _recipe(name: str, folder: str) -> str:
    return (
        f"tfds.builder({name!r}, data_dir={folder!r})"
        ".download_and_prepare(file_format='array_record')"
    )
