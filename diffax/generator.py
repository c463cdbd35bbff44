"""A trained run as a function that draws samples, for programs.

generate = diffax.Generator("runs/digits")
x = generate(100, seed=1, sampler="dpmpp_2m", num_steps=20)
x = generate.inpaint(images, mask)
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax import config as config_lib
from diffax import samplers, training
from diffax.config.defaults import sampler_keywords
from diffax.samplers import interpolate
from diffax.training import Run, parallel


class Inversion(NamedTuple):
    """What `Generator.invert` finds."""

    start: np.ndarray  # (n, ..., C), the noise that DDIM turns into the data
    reconstruction: np.ndarray  # (n, ..., C), what DDIM makes of it
    error: np.ndarray  # (n,), the root mean square of reconstruction - data


class Generator:
    """Draws samples of a run, and edits data by it, with the sampling that each call asks for.

    A sample depends on the run, the seed, its own number and the options, not on how many are drawn
    with it, how they are cut into batches, nor on how many devices draw them (to rounding).
    Compiled functions are kept: a call with options that were used before compiles nothing, and
    the guidance scale is free.

    Every method takes `options`, keys of `config.sampling` such as sampler, num_steps, grid,
    schedule, eta, clip_x0 and guidance_scale; the rest is as in the run's config. `label` is the
    class of all, or of each, of a class-conditional network; when samples are drawn the classes
    come in turn by default.
    All raise ValueError for an unknown option or one that can't be, and for data or a label that
    doesn't fit.

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
        """`num` samples (at least 1), (num, ..., C); `seed` is that of the noise."""
        return self._draw("sample", {}, (), num, seed, label, options)

    def labels(self, num: int, label: int | Sequence[int] | None = None) -> np.ndarray:
        """The classes that `num` samples are told, (num,); `label` as in a call."""
        classes = self.run.dataset.num_classes
        if label is None:
            return in_turn(num, classes)
        if not self.run.config.model.class_conditional:
            raise ValueError(f"label={label}: this network is not told classes")
        labels = np.broadcast_to(np.asarray(label), (num,)) if np.ndim(label) == 0 else label
        labels = np.asarray(labels)
        if labels.shape != (num,) or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"label={label}: a class, 0 to {classes - 1}, or one for each of {num}"
            )
        return labels

    def from_start(
        self, start: np.ndarray, seed: int = 0, label: Any = None, **options: Any
    ) -> np.ndarray:
        """Samples from given starts, (n, ..., C), such as those of `invert`."""
        return self._edit("from_start", {}, (start,), seed, label, options)

    def sdedit(
        self, x: np.ndarray, strength: float, seed: int = 0, label: Any = None, **options: Any
    ) -> np.ndarray:
        """x, (n, ..., C), noised by a share of the levels and sampled anew; `samplers.sdedit`."""
        return self._edit("sdedit", {"strength": strength}, (x,), seed, label, options)

    def inpaint(
        self,
        x: np.ndarray,
        mask: np.ndarray,
        seed: int = 0,
        label: Any = None,
        jump_length: int = 10,
        num_resamples: int = 10,
        **options: Any,
    ) -> np.ndarray:
        """x, (n, ..., C), where `mask` is 1, sampled to fit it where it is 0; `samplers.inpaint`.

        The mask broadcasts to x. Always by ancestral sampling: there is no choice of a sampler.
        """
        settings = {"jump_length": jump_length, "num_resamples": num_resamples}
        mask = np.broadcast_to(np.asarray(mask, np.float32), np.shape(x))
        return self._edit("inpaint", settings, (x, mask), seed, label, options)

    def invert(self, x: np.ndarray, label: Any = None, **options: Any) -> Inversion:
        """The starts from which DDIM gives x, (n, ..., C), again, and how nearly it does.

        See `samplers.invert` and `samplers.reconstruct`. There is no choice of a sampler.
        """
        return Inversion(*self._edit("invert", {}, (x,), 0, label, options))

    def interpolate(
        self,
        a: np.ndarray,
        b: np.ndarray,
        shares: Sequence[float],
        label: int | Sequence[int] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """From a to b, (..., C) each, by way of their starts: (len(shares), ..., C).

        Both are inverted, the starts lie on the great circle between theirs
        (`samplers.interpolate`), and DDIM samples from them without clipping. `label`: the class of
        both, or that of a and that of b, of which each frame is told the nearer one's.
        """
        start = self.invert(np.stack([a, b]), label, **options).start
        between = np.asarray(interpolate(start[0], start[1], shares))
        if label is not None:
            label = np.broadcast_to(label, 2)[(np.asarray(shares) > 0.5).astype(int)]
        return self._edit("from_inversion", {}, (between,), 0, label, options)

    def _edit(
        self,
        name: str,
        settings: dict[str, Any],
        given: tuple[np.ndarray, ...],
        seed: int,
        label: Any,
        options: dict[str, Any],
    ) -> Any:
        given = tuple(np.asarray(array, np.float32) for array in given)
        shape = self.run.dataset.shape
        if given[0].ndim != len(shape) + 1 or given[0].shape[1:] != shape:
            raise ValueError(f"data of shape {given[0].shape}: this run's is (n, {str(shape)[1:]}")
        if label is None and self.run.config.model.class_conditional:
            raise ValueError("label=None: this network is told classes, so tell those of the data")
        return self._draw(name, settings, given, len(given[0]), seed, label, options)

    def _draw(
        self,
        name: str,
        settings: dict[str, Any],
        given: tuple[np.ndarray, ...],
        num: int,
        seed: int,
        label: Any,
        options: dict[str, Any],
    ) -> Any:
        if num < 1:
            raise ValueError(f"num={num}: at least 1 sample")
        config = self._config(name, options)
        draw, scale = self._drawer(config, name, settings), config.sampling.guidance_scale
        labels = self.labels(num, label)
        size = min(self._batch_size, -(-num // self._mesh.size) * self._mesh.size)
        key, parts = jax.random.key(seed), []
        for i in range(0, num, size):
            # the last batch is filled up with numbers that are not asked for, and cut afterwards
            numbers = np.arange(i, i + size)
            rows = np.minimum(numbers, num - 1)
            batch = {"number": numbers, "label": labels[rows], "given": [x[rows] for x in given]}
            parts.append(draw(self._state, key, parallel.place_batch(batch, self._mesh), scale))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:num], *jax.device_get(parts))

    def _config(self, name: str, options: dict[str, Any]) -> Any:
        config = config_lib.from_json(config_lib.to_json(self.run.config))
        solver_options = ("sampler", *sampler_keywords())
        unread = solver_options if name in _OWN_SOLVER else ()
        unread += ("clip_x0", "dynamic_threshold") if name in _UNCLIPPED else ()
        if name in _OWN_SOLVER:
            config.sampling.update(dict.fromkeys(solver_options) | {"sampler": "ddim"})
        for option, value in options.items():
            if option not in config.sampling:
                raise ValueError(f"no option {option!r}; allowed are {', '.join(config.sampling)}")
            if option in unread:
                raise ValueError(f"{option}={value!r}: {name} takes no {option}")
            try:
                config.sampling[option] = value
            except TypeError as error:
                raise ValueError(f"{option}={value!r}: {error}") from None
        config_lib.validate(config)
        return config

    def _drawer(self, config: Any, name: str, settings: dict[str, Any]) -> Callable:
        """The compiled function of these options; the scale is an argument of it."""
        guided = config.sampling.guidance_scale != 1
        known = config_lib.from_json(config_lib.to_json(config))
        known.sampling.guidance_scale = 2.0 if guided else 1.0
        key = json.dumps([name, settings, config_lib.to_json(known)])
        if key not in self._compiled:
            operation = functools.partial(_OPERATIONS[name], **settings)
            sampler = training.make_sampler(config, self.run.model, self.run.dataset, operation)

            def draw(state, key, batch, scale):
                fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
                keys = fold_in(key, batch["number"])
                return sampler(state, keys, batch["label"], scale, *batch["given"])

            self._compiled[key] = jax.jit(draw, out_shardings=parallel.split(self._mesh))
        return self._compiled[key]


def in_turn(num: int, num_classes: int) -> np.ndarray:
    """The classes of `num` samples for which none are asked, (num,)."""
    return np.arange(num) % max(num_classes, 1)


# --- operations: (keys, predict, schedule, shape, *given, **settings and sampling's options) ------


def _taken(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a function has a keyword for."""
    return {k: v for k, v in options.items() if k in inspect.signature(function).parameters}


def _from_start(keys, predict, schedule, shape, start, **options):
    return samplers.sample(keys, predict, schedule, shape, x_init=start, **options)


def _from_inversion(keys, predict, schedule, shape, start, **options):
    options = _taken(samplers.invert, options)
    return samplers.sample(keys, predict, schedule, shape, "ddim", x_init=start, **options)


def _sdedit(keys, predict, schedule, shape, x, strength, **options):
    return samplers.sdedit(keys, predict, schedule, x, strength, **options)


def _inpaint(keys, predict, schedule, shape, x, mask, **options):
    options = _taken(samplers.inpaint, options)
    return samplers.inpaint(keys, predict, schedule, x, mask, **options)


def _invert(keys, predict, schedule, shape, x, **options):
    options = _taken(samplers.invert, options)
    start = samplers.invert(predict, schedule, x, **options)
    return start, *samplers.reconstruct(predict, schedule, start, x, **options)


_OPERATIONS: dict[str, Callable] = {
    "sample": samplers.sample,
    "from_start": _from_start,
    "from_inversion": _from_inversion,
    "sdedit": _sdedit,
    "inpaint": _inpaint,
    "invert": _invert,
}
# What reads neither the choice of a sampler nor its options; and those that clip nothing.
_OWN_SOLVER = ("from_inversion", "inpaint", "invert")
_UNCLIPPED = ("from_inversion", "invert")
