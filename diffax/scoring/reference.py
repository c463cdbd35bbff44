"""What samples are held against, and samples from files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffax import data, metrics
from diffax.data import Dataset, folder, npz
from diffax.data.content import content_hash
from diffax.data.dataset import DataConfig


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are held against: a data set's training split, or published moments.

    Attributes:
      about: says which; JSON-able.
      dataset: None if only the moments are known.
      moments: of features, by the network that they were published for; None for a data set's own.
    """

    about: Mapping[str, Any]
    dataset: Dataset | None = None
    moments: metrics.Moments | None = None

    @classmethod
    def of(cls, dataset: Dataset, config: Mapping[str, Any] = {}) -> Reference:
        """The training split; `config`: how the data were read, fields of `data.DataConfig`."""
        defaults = data.known_fields()
        said = {k: v for k, v in dict(config).items() if v != defaults[k] and k != "data_dir"}
        split = said.get("train_split", defaults["train_split"])
        about = {"reference": f"{dataset.name}, {split}", "data": {"name": dataset.name} | said}
        return cls(about | {"reference_hash": content_hash(dataset.train.x)}, dataset)

    @classmethod
    def read(cls, path: str | Path) -> Reference:
        """Of an .npz with `mu` and `sigma`: see `metrics.read_moments`, also for what it raises."""
        moments = metrics.read_moments(path)
        about = {"reference": f"mu and sigma of {path}", "reference_hash": content_hash(*moments)}
        return cls(about, moments=moments)


class Samples(NamedTuple):
    """Samples of a file or a folder.

    Attributes:
      x: (N, ..., C) uint8 or float32.
      label: their classes as they stand there; None without.
      about: which; JSON-able.
    """

    x: np.ndarray
    label: np.ndarray | None
    about: dict[str, Any]


def read_samples(path: str | Path, dataset: Dataset | None = None, array: str = "") -> Samples:
    """The samples of a folder of images or an .npz.

    Images are read in their own size, grey or in colour as the data set is; see `data.folder` and
    `data.npz`. Floats of images must be in [-1, 1]. The classes are the sub-folders of a folder,
    and the array `label` of an .npz.

    Args:
      array: the name of the array in an .npz with several.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: what can't be read; names the file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"samples={str(path)!r}: no such file or folder")
    channels = dataset.shape[-1] if dataset is not None and len(dataset.shape) == 3 else 0
    config = DataConfig(path=str(path), channels=channels, array=array)
    try:
        if Path(path).is_dir():
            x, files = folder.read(config)
            label, _ = folder.classes(files)
        else:
            x, label = npz.read(config)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"samples={str(path)!r}: {error}") from None
    if x.dtype == np.float32 and x.ndim == 4 and (dataset is None or dataset.levels):
        low, high = x.min(), x.max()
        if low >= 0 or max(-low, high) > 2:
            raise ValueError(
                f"samples={str(path)!r}: values from {low:g} to {high:g}; floats must be in"
                " [-1, 1], and 8-bit values uint8"
            )
    return Samples(x, label, {"samples": str(path), "samples_hash": content_hash(x)})
