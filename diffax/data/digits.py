"""`digits`: scikit-learn's 1,797 handwritten digits, 8 by 8 pixels."""

from collections.abc import Mapping

import numpy as np

from diffax.data import images, tfds_images
from diffax.data.dataset import DataConfig, Dataset, Split, make_dataset


def load(config: DataConfig) -> Dataset:
    """scikit-learn's copy of the optical recognition of handwritten digits, its test part.

    The 17 grey levels k = 0 .. 16 become 8-bit values round(255 k / 16). Within each class every
    fifth scan, in scikit-learn's order, is in "test", the others in "train": 355 and 1,442
    examples, each class split 20 to 80. Slices are named as those of TFDS: "train[:50%]".

    Raises:
      ValueError: data.train_split or data.eval_split is no part of these, or is empty.

    Source: Alpaydin & Kaynak 1998, UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    scans, label = load_digits(return_X_y=True)
    x = np.round(scans * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    if config.image_size:
        x = np.stack([images.decode(images.encode_png(scan), 1, config.image_size) for scan in x])
    x = images.pad(x, config.pad_to)
    test = np.zeros(len(label), bool)
    for digit in range(10):
        test[np.flatnonzero(label == digit)[4::5]] = True
    rows = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    chosen = [_part(config, field, rows) for field in ("train_split", "eval_split")]
    train, evaluation = (Split(x[own], label[own].astype(np.int32)) for own in chosen)
    return make_dataset(config.name, train, evaluation, tuple("0123456789"))


def _part(config: DataConfig, field: str, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """The rows of a split or of a slice of one."""
    split = getattr(config, field)
    if split in rows:
        return rows[split]
    from tensorflow_datasets.core import ReadInstruction, SplitInfo

    infos = {name: SplitInfo(name, [len(own)], num_bytes=0) for name, own in rows.items()}
    with tfds_images.naming_split(config, field, rows):
        parts = ReadInstruction.from_spec(split).to_absolute(infos)
        found = np.concatenate([rows[part.splitname][part.from_ : part.to] for part in parts])
        if not len(found):
            raise ValueError("it is empty")
    return found
