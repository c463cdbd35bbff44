"""Files of data that tests write, and how they load them."""

import ml_collections
import numpy as np
from PIL import Image

from diffax import data


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def save_image(path, size=(6, 4), value=0, mode="L"):
    """size: (width, height), as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def load(**fields):
    return data.load(ml_collections.ConfigDict(fields))
