"""A data set of TFDS that is prepared without a download and without TensorFlow: the digits."""

import io

import numpy as np
import tensorflow_datasets as tfds

from diffax import data
from diffax.data.images import encode_png


class Scans(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's digits, in the splits of diffax."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(i) for i in range(10)]),
                    "index": np.int64,
                    "caption": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        dataset = data.load({"name": "digits"})
        return {
            "train": self._generate_examples(dataset.train),
            "test": self._generate_examples(dataset.eval),
        }

    def _generate_examples(self, split):
        for row, (x, label) in enumerate(zip(split.x, split.label)):
            # Encoded here: TFDS would need TensorFlow to encode an array.
            image, caption = io.BytesIO(encode_png(x)), f"the digit {label}"
            yield row, {"image": image, "label": int(label), "index": row, "caption": caption}
