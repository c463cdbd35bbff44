"""What a run writes while it trains: pictures of samples, and a method's curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffax import distributed, plots
from diffax.data import Dataset
from diffax.data.images import encode_png
from diffax.distributed import hosts
from diffax.files import replacing, write_text
from diffax.methods import Method
from diffax.methods.base import State
from diffax.training.measuring import examples


def make_drawing(
    config: ConfigDict, method: Method, dataset: Dataset, root: Path, mesh: Mesh
) -> Callable[[State], np.ndarray]:
    """state -> the method's preview, (1, height, width, 1 or 3) uint8, also put in root/samples.

    Of `config.sampling.num_samples` keys and as many examples of the evaluation split, whose
    classes come in turn where there are classes. The noise is the same every time.
    """
    num, split = config.sampling.num_samples, dataset.eval
    batch = examples(split, np.arange(num) % len(split))
    batch["label"] = np.arange(num) % max(dataset.num_classes, 1)

    def preview(state: State) -> jax.Array:
        keys = jax.random.split(jax.random.key(config.seed), num)
        return method.preview(state, keys, batch)

    draw = distributed.jit_over_numbers(preview, out_shardings=distributed.replicated(mesh))

    def drawing(state: State) -> np.ndarray:
        pixels = plots.picture(np.asarray(draw(state)))
        if hosts.is_first():
            with replacing(root / "samples" / f"step_{int(state.step):06d}.png") as partial:
                partial.write_bytes(encode_png(pixels))
        return pixels[None]

    return drawing


def write_curves(root: Path, method: Method, state: State) -> None:
    """Writes each of the method's curves to root/<its name>/step_<step>.json."""
    for name, columns in method.curves(state).items():
        path = root / name / f"step_{int(state.step):06d}.json"
        if hosts.is_first():
            write_text(path, json.dumps(columns))
