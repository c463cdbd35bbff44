"""The latents of a data set: encoded once, kept on disk, normalised by their statistics.

    DIFFAX_CACHE/latents/<key>.npz    "train" and "eval", as the codec gives them, float32
    DIFFAX_CACHE/latents/<key>-mirrored.npz    "train" of the images flipped left to right

The key is the hash of the codec's and the data's fingerprints, so that all seeds of a run and all
arms of an ablation read the same file.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from diffax import runtime
from diffax.data import Dataset, DatasetInfo, Split
from diffax.files import cached, check_fits, content_hash
from diffax.methods.codec import Codec
from diffax.training import codecs, progress
from diffax.training.workdir import Run

_LOG = logging.getLogger("diffax")
FOLDER = "latents"
MOST_BYTES = 64 * 2**30  # that the folder holds; the oldest files go first
_VERSION = 1  # of how the files come about
_VALUES = 2**20  # of the data in one call of the encoder
_LARGEST_BATCH = 512


def prepared(
    config: ConfigDict,
    codec: Codec,
    dataset: Dataset,
    info: DatasetInfo,
    known: DatasetInfo | None = None,
) -> tuple[Dataset, DatasetInfo]:
    """The data as the steps of a run take them, and what is known of them with the statistics of
    the latents.

    With config.codec.cache they are normalised latents; without it they are the data themselves,
    which each step encodes.

    Args:
      known: of the run as it was trained so far, or of the one that it starts from: its statistics
        hold.
    """
    kept = encoded(codec, dataset, config.data.flip) if config.codec.cache else None
    if known is not None and known.codec == info.codec:
        values = known.latent_mean, known.latent_deviation
    else:
        values = statistics(kept, codec, dataset)
    info = dataclasses.replace(info, latent_mean=values[0], latent_deviation=values[1])
    return dataset if kept is None else normalised(kept, info), info


def within(run: Run, dataset: Dataset) -> tuple[Run, Dataset]:
    """A run and its data as its method sees them, so that nothing is encoded twice in measuring.

    Of a run that works in latents, with config.codec.cache, they are the method on latents, and the
    latents of the cache; else the run and the data themselves.
    """
    codec = codecs.codec_of(run.config, run.dataset)
    if not codec.fingerprint or not run.config.codec.cache:
        return run, dataset
    method = codecs.build_method(run.config, run.dataset, of_latents=True)
    return run._replace(method=method), normalised(encoded(codec, dataset), run.dataset)


def encoded(codec: Codec, dataset: Dataset, flip: bool = False) -> Dataset:
    """The data set of a codec's latents, as the codec gives them, from the cache or encoded now.

    `flip`: also those of the training split's mirrored images, since a mirrored image's latents
    are not its latents mirrored.

    Raises:
      ValueError: the latents are larger than the memory that is free; names config.codec.cache.
    """
    num = len(dataset.train) * (1 + flip) + len(dataset.eval)
    size = 4 * num * math.prod(codec.shape)
    try:
        check_fits(size, f"the latents of {dataset.name}")
    except ValueError as error:
        raise ValueError(
            f"{error}: with config.codec.cache=False each step encodes its batch instead"
        ) from None
    key = content_hash(_VERSION, codec.fingerprint, dataset.fingerprint)
    found = _cached(key, codec, {"train": dataset.train, "eval": dataset.eval})
    mirrored = None
    if flip:
        mirrored = _cached(f"{key}-mirrored", codec, {"train": dataset.train}, flip)["train"]
    return dataclasses.replace(
        dataset,
        shape=codec.shape,
        levels=None,
        train=dataclasses.replace(dataset.train, x=found["train"], mirrored=mirrored),
        eval=dataclasses.replace(dataset.eval, x=found["eval"]),
    )


def _cached(
    key: str, codec: Codec, splits: Mapping[str, Split], flip: bool = False
) -> dict[str, np.ndarray]:
    path = runtime.cache_directory() / FOLDER / f"{key}.npz"
    was_there, start = path.exists(), time.monotonic()

    def make() -> dict[str, np.ndarray]:
        return {name: _encode(codec, split, name, flip) for name, split in splits.items()}

    found = cached(FOLDER, key, make, MOST_BYTES)
    _LOG.info(
        "%slatents, %s of %s, %.1f MB: %s in %.1f s",
        "mirrored " if flip else "",
        " + ".join(f"{len(z):,}" for z in found.values()),
        "x".join(map(str, codec.shape)),
        sum(z.nbytes for z in found.values()) / 1e6,
        f"read from {path}" if was_there else f"encoded, and kept as {path},",
        time.monotonic() - start,
    )
    return found


def _encode(codec: Codec, split: Split, name: str, flip: bool = False) -> np.ndarray:
    """The latents of a split, batch by batch over all devices of this process."""
    return np.concatenate(list(_batches(codec, split, name, flip)))


def _batches(codec: Codec, split: Split, name: str, flip: bool = False):
    """The latents of a split in order; all batches but the last have one size."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    encode = jax.jit(codec.encode, out_shardings=rows)
    num = len(split)
    size = min(max(1, _VALUES // math.prod(split.x.shape[1:])), _LARGEST_BATCH, num)
    size = -(-size // mesh.size) * mesh.size
    for i in progress.counted(range(0, num, size), f"encoding the {name} split", "batches"):
        x = split.array(np.minimum(np.arange(i, i + size), num - 1))
        x = x[:, :, ::-1] if flip else x
        yield np.asarray(encode(jax.device_put(x, rows)))[: num - i]


def statistics(latents: Dataset | None, codec: Codec, dataset: Dataset) -> tuple[tuple, tuple]:
    """Mean and deviation of the training split's latents, per channel.

    Rounded to four digits, so that machines which differ in the last bits agree. A channel that
    is constant has deviation 1.

    `latents`: of `encoded`; None to encode the training split for this alone.
    """
    if latents is None:
        parts = _batches(codec, dataset.train, "train")
    else:
        parts = iter([latents.train.x])
    num, total, squares = 0, 0.0, 0.0
    for z in parts:
        values = z.reshape(-1, z.shape[-1]).astype(np.float64)
        num, total = num + len(values), total + values.sum(axis=0)
        squares = squares + (values**2).sum(axis=0)
    mean = total / num
    deviation = np.sqrt(np.maximum(squares / num - mean**2, 0))
    deviation = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1), deviation, 1)
    return tuple(tuple(float(f"{v:.4g}") for v in values) for values in (mean, deviation))


def normalised(latents: Dataset, info: DatasetInfo) -> Dataset:
    """Latents of `encoded` as a method sees them, by the statistics in `info`."""
    if not info.latent_mean:
        return latents
    mean, deviation = (
        np.asarray(values, np.float32) for values in (info.latent_mean, info.latent_deviation)
    )

    def of(split: Split) -> Split:
        mirrored = None if split.mirrored is None else (split.mirrored - mean) / deviation
        return dataclasses.replace(split, x=(split.x - mean) / deviation, mirrored=mirrored)

    return dataclasses.replace(latents, train=of(latents.train), eval=of(latents.eval))
