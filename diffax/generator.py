"""A trained run as a function that draws samples, for programs.

generate = diffax.Generator("runs/digits")
x = generate(100, seed=1, sampler="dpmpp_2m", num_steps=20)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffax import config as config_lib
from diffax import training
from diffax.training import Run, parallel


class Generator:
    """Draws samples of a run, with the sampling that each call asks for.

    A sample depends on the run, the seed, its own number and the options, not on how many are drawn
    with it, how they are cut into batches, nor on how many devices draw them (to rounding).
    Compiled functions are kept: a call with options that were used before compiles nothing, and
    the guidance scale is free.

    Args:
      run: of `diffax.training.load`, or the workdir itself, read once.
      batch_size: samples drawn at a time over all devices, rounded up to fill them.
      num_devices: the first so many; 0 for all.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint.
      ValueError: there are fewer devices.
    """

    def __init__(
        self, run: Run | str | os.PathLike, batch_size: int = 256, num_devices: int = 0
    ) -> None:
        self.run = run if isinstance(run, Run) else training.load(run)
        self._mesh = parallel.make_mesh(num_devices)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1")
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._state = jax.device_put(self.run.state, parallel.replicated(self._mesh))
        self._compiled: dict[str, Callable] = {}

    def __call__(
        self, num: int, seed: int = 0, label: int | Sequence[int] | None = None, **options: Any
    ) -> np.ndarray:
        """`num` samples, (num, ..., C).

        Args:
          num: at least 1; seed: of the noise.
          label: the class of all, or of each, of a class-conditional network; by default the
            classes come in turn.
          options: keys of `config.sampling`, such as sampler, num_steps, grid, schedule, eta,
            clip_x0 and guidance_scale; the rest is as in the run's config.

        Raises:
          ValueError: an unknown option or one that can't be, a label that doesn't fit.
        """
        if num < 1:
            raise ValueError(f"num={num}: at least 1 sample")
        config = self._config(options)
        draw, scale = self._drawer(config), config.sampling.guidance_scale
        labels = self._labels(num, label)
        size = min(self._batch_size, -(-num // self._mesh.size) * self._mesh.size)
        key, parts = jax.random.key(seed), []
        for i in range(0, num, size):
            # the last batch is filled up with numbers that are not asked for, and cut afterwards
            numbers = np.arange(i, i + size)
            batch = {"number": numbers, "label": labels[np.minimum(numbers, num - 1)]}
            parts.append(draw(self._state, key, parallel.place_batch(batch, self._mesh), scale))
        return np.concatenate(jax.device_get(parts))[:num]

    def _config(self, options: dict[str, Any]) -> Any:
        config = config_lib.from_json(config_lib.to_json(self.run.config))
        for name, value in options.items():
            if name not in config.sampling:
                raise ValueError(f"no option {name!r}; allowed are {', '.join(config.sampling)}")
            try:
                config.sampling[name] = value
            except TypeError as error:
                raise ValueError(f"{name}={value!r}: {error}") from None
        config_lib.validate(config)
        return config

    def _labels(self, num: int, label: int | Sequence[int] | None) -> np.ndarray:
        classes = self.run.dataset.num_classes
        if label is None:
            return np.arange(num) % max(classes, 1)
        if not self.run.config.model.class_conditional:
            raise ValueError(f"label={label}: this network is not told classes")
        labels = np.broadcast_to(np.asarray(label), (num,)) if np.ndim(label) == 0 else label
        labels = np.asarray(labels)
        if labels.shape != (num,) or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"label={label}: a class, 0 to {classes - 1}, or one for each of {num}"
            )
        return labels

    def _drawer(self, config: Any) -> Callable:
        """The compiled function of these options; the scale is an argument of it."""
        guided = config.sampling.guidance_scale != 1
        known = config_lib.from_json(config_lib.to_json(config))
        known.sampling.guidance_scale = 2.0 if guided else 1.0
        name = config_lib.to_json(known)
        if name not in self._compiled:
            sampler = training.make_sampler(config, self.run.model, self.run.dataset)

            def draw(state, key, batch, scale):
                fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
                keys = fold_in(key, batch["number"])
                return sampler(state, keys, batch["label"], scale)

            self._compiled[name] = jax.jit(draw, out_shardings=parallel.split(self._mesh))
        return self._compiled[name]
