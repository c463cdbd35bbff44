"""A split read from records, each with an encoded image: of TFDS and of Hugging Face."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from diffax.data import images
from diffax.data.dataset import DataConfig, Split
from diffax.data.stored import filled


class Record(NamedTuple):
    """One example as it is stored: the file of an image, its class and its caption."""

    image: bytes
    label: int | None
    text: str | None


def read_split(
    config: DataConfig,
    num: int,
    records: Callable[[], Iterator[Record]],
    channels: int,
    key: Callable[[], list[Any]],
    unreadable: str,
) -> Split:
    """The split of `num` records, its images decoded, resized and framed as the config says.

    Args:
      records: () -> them, in order; all have a label or none has one, and so with the text.
      channels: of the images.
      key: () -> JSON that tells these records from others, for the cache of large sets.
      unreadable: the sentence on an image that can't be read, with {} for which it is, and for why.

    Raises:
      ValueError: an image can't be read, or they differ in size; the message says which.
    """

    def decode(i: int, record: Record) -> np.ndarray:
        try:
            return images.decode(record.image, channels, config.image_size)
        except ValueError as error:
            raise ValueError(unreadable.format(f"image {i}", error)) from error

    first = next(records())
    shape = decode(0, first).shape
    framed = images.pad(np.empty((0, *shape), np.uint8), config.pad_to).shape[1:]

    def fill(x: Any) -> dict[str, np.ndarray]:
        label, text = np.zeros(num, np.int32), []
        for i, record in enumerate(images.counted(records(), num, config.name)):
            image = decode(i, record)
            if image.shape != shape:
                raise ValueError(
                    f"the images of {config.path or config.name!r} differ in size ({shape[:2]} and"
                    f" {image.shape[:2]}): set data.image_size to resize them."
                )
            x[i] = images.pad(image[None], config.pad_to)[0]
            label[i] = 0 if record.label is None else record.label
            text.append(record.text or "")
        return {"label": label, "text": np.array(text, np.str_)}

    what = f"data.name={config.name!r}"
    whole = lambda: [*key(), channels, config.image_size, config.pad_to]  # noqa: E731
    x, beside = filled((num, *framed), np.uint8, fill, config.storage, what, whole)
    arrays = {} if first.text is None else {"text": beside["text"]}
    return Split(x, None if first.label is None else beside["label"], arrays)
