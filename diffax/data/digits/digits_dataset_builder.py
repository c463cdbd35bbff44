"""The TFDS builder of `digits`. Needs no download and no TensorFlow."""

from __future__ import annotations

import inspect
import io

import numpy as np
import tensorflow_datasets as tfds

from diffax.data.images import encode_png


class Builder(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's copy of the optical recognition of handwritten digits (test part).

    The 17 grey levels k = 0 .. 16 are stored as 8-bit values round(255 k / 16). Within each class
    every fifth scan, in scikit-learn's order, is in `test`, the others in `train`: 1,442 and 355
    examples, each class split 80 to 20. `index` is the row in `sklearn.datasets.load_digits`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.cleandoc(type(self).__doc__),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(i) for i in range(10)]),
                    "index": np.int64,
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=(
                "E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. "
                "UCI Machine Learning Repository, 1998."
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # the data ship with scikit-learn
        from sklearn.datasets import load_digits

        scans, label = load_digits(return_X_y=True)
        pixels = np.round(scans * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
        test = np.zeros(len(label), bool)
        for digit in range(10):
            test[np.flatnonzero(label == digit)[4::5]] = True
        return {
            "train": self._generate_examples(pixels, label, np.flatnonzero(~test)),
            "test": self._generate_examples(pixels, label, np.flatnonzero(test)),
        }

    def _generate_examples(self, pixels, label, rows):
        for row in rows.tolist():
            # Encoded here: TFDS would need TensorFlow to encode an array.
            png = io.BytesIO(encode_png(pixels[row]))
            yield row, {"image": png, "label": int(label[row]), "index": row}
