"""The codec that a config names, and the method that works through it."""

import functools
import os
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import registry
from diffax.config.storage import flat
from diffax.data import DatasetInfo
from diffax.evaluation.pretrained import read_torch_file
from diffax.files import content_hash
from diffax.methods import Method
from diffax.methods.codec import Codec, normalised, of_autoencoder, seen_through, through
from diffax.methods.teacher import Teacher
from diffax.models import taef2 as taef2_network
from diffax.places import as_os_error, relative_to_what, workdir_of
from diffax.runtime import local_path
from diffax.training import workdir


@functools.lru_cache(maxsize=4)
def _load(path: str, step: int, identity: str) -> Codec:
    del identity  # of what lies there
    run = workdir.load(path, step)
    if not hasattr(run.model, "encode"):
        raise ValueError(
            f"codec.path is {path}, which holds a run of method {run.config.method.name!r}; it must"
            " hold one of method 'autoencoder'"
        )
    used = (run.state.ema_params, run.state.latent_mean, run.state.latent_square)
    fingerprint = content_hash(*jax.tree.leaves(jax.device_get(used)))
    return of_autoencoder(run.model, run.state, run.dataset.shape, fingerprint)


def load(path: str | os.PathLike) -> Codec:
    """The codec of the autoencoder that was trained in a workdir, at its latest checkpoint.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint.
      ValueError: it holds a run of another method.
    """
    path = os.fspath(workdir_of(path, "codec.path"))
    return _load(path, workdir.steps_done(path), workdir.identity(path))


def _of_run(config: ConfigDict, data: DatasetInfo) -> Codec:
    path = workdir_of(config.codec.path, "codec.path")
    with as_os_error(path):
        there = (path / "config.json").exists()
    if not there:
        raise ValueError(
            f"codec.path is {config.codec.path!r}, which holds no run: there is no config.json"
            + relative_to_what(config.codec.path, "codec.path")
        )
    codec = load(path)
    try:
        made = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct((1, *data.shape), "float32"))
    except ValueError as error:
        raise ValueError(
            f"codec.path is {config.codec.path}, whose autoencoder can't take these data: {error}"
        ) from None
    return codec._replace(shape=made.shape[1:])


# --- TAEF2 ---------------------------------------------------------------------------------------

TAEF2_FILES = ("taef2_encoder.pth", "taef2_decoder.pth")
TAEF2_URL = "https://github.com/madebyollin/taesd"


def taef2(path: str | os.PathLike, shape: tuple[int, ...]) -> Codec:
    """TAEF2, a tiny autoencoder of colour images with latents of (H / 8, W / 8, 32).

    Its two files, taef2_encoder.pth and taef2_decoder.pth (2.7 MB each, MIT), are published at
    https://github.com/madebyollin/taesd. They are read without PyTorch, and nothing that their
    pickles ask for is done. The latents have a deviation of about 0.8 in all; a run normalises each
    channel by those of its own training data.

    Args:
      path: the folder with the two files.
      shape: of an image, (H, W, 3), both sides multiples of 8.

    Raises:
      ValueError: a file is absent (it says where it is to be had), damaged, or not TAEF2's; or
        another shape.
    """
    latent_shape = taef2_network.latent_shape(tuple(shape))
    files = [local_path(path, "codec.path").absolute() / name for name in TAEF2_FILES]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"codec.path is {str(path)!r}, where there is no {file.name}: download"
                f" {' and '.join(TAEF2_FILES)} from {TAEF2_URL} into a folder, and name that"
                + relative_to_what(os.fspath(path), "codec.path")
            )
    codec = _load_taef2(*((str(file), file.stat().st_mtime_ns) for file in files))
    return codec._replace(shape=latent_shape)


@functools.lru_cache(maxsize=2)
def _load_taef2(encoder: tuple[str, int], decoder: tuple[str, int]) -> Codec:
    """Of two files, each a path and when it was written; of no shape yet."""
    tensors = [read_torch_file(path) for path, _ in (encoder, decoder)]
    try:
        params = taef2_network.convert(*tensors)
    except ValueError as error:
        raise ValueError(f"{encoder[0]} and {decoder[0]}: {error}") from None
    network, variables = taef2_network.TAEF2(), {"params": params}
    return Codec(
        shape=(),
        encode=functools.partial(network.apply, variables, method="encode"),
        decode=functools.partial(network.apply, variables, method="decode"),
        fingerprint=content_hash(*jax.tree.leaves(params)),
    )


def _of_taef2(config: ConfigDict, data: DatasetInfo) -> Codec:
    try:
        return taef2(config.codec.path, data.shape)
    except ValueError as error:
        raise ValueError(f"codec.name='taef2': {error}") from None


# name in config.codec -> the codec for some data
CODECS: dict[str, Callable[[ConfigDict, DatasetInfo], Codec]] = {
    "identity": lambda config, data: Codec(data.shape),
    "run": _of_run,
    "taef2": _of_taef2,
}


def codec_of(config: ConfigDict, data: DatasetInfo) -> Codec:
    """The codec of `config.codec` for data, with latents as it gives them, not yet normalised.

    Raises:
      FileNotFoundError, ValueError: as `load`; or the data don't fit it.
    """
    return CODECS[config.codec.name](config, data)


def inside(config: ConfigDict, data: DatasetInfo) -> DatasetInfo:
    """What the method of a config knows of data, which it sees through the codec of the config."""
    return seen_through(codec_of(config, data), data)


def method_inside(config: ConfigDict, data: DatasetInfo) -> Method:
    """The method of a config in the space of its codec; its states are those of `build_method`."""
    return config_lib.build_method(config, inside(config, data))


def build_method(
    config: ConfigDict,
    data: DatasetInfo,
    teacher: Teacher | None = None,
    of_latents: bool = False,
) -> Method:
    """The method of a config for data, through the codec of the config.

    `teacher`: as `training.teachers.teacher_of` gives it. Left out, as of a run that is only read,
    all of a method but its `init` works. `of_latents`: its batches are of `latents.encoded`.

    Raises:
      ValueError: what `config.build_method` refuses; or the codec is another one than that which
        the run was trained with, `data.codec`.
    """
    codec = codec_of(config, data)
    if data.codec and data.codec != codec.fingerprint:
        raise ValueError(
            f"the autoencoder in codec.path={config.codec.path} has changed since this run was"
            " trained with it, as by training it further: put it back as it was, or name a copy of"
            " it that was kept aside, by codec.path in the run's config.json"
        )
    of_method = config_lib.for_method(config)
    text, versions = config_lib.to_json(of_method), (registry.version(), *_written(of_method))
    return _method(text, seen_through(codec, data), codec, teacher, versions, of_latents)


def _written(config: ConfigDict) -> list[int]:
    """When the files that a config names were written."""
    values = flat(config).values()
    names = [os.path.expanduser(value) for value in values if isinstance(value, str)]
    return [os.stat(name).st_mtime_ns for name in names if os.path.isfile(name)]


@functools.lru_cache(maxsize=16)
def _method(
    text: str,
    data: DatasetInfo,
    codec: Codec,
    teacher: Teacher | None,
    versions: tuple[int, ...],
    of_latents: bool,
) -> Method:
    """One object for all configs of that text, so that what is compiled of it is compiled once."""
    del versions  # of the tables and files that the names in the config stand for
    method = config_lib.build_method(config_lib.from_json(text), data, teacher)
    codec = normalised(codec, data.latent_mean, data.latent_deviation)
    return through(method, codec, of_latents)
