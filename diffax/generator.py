"""A trained run as a function that draws samples, for programs.

generate = diffax.Generator("runs/digits")
x = generate(100, seed=1, sampler="dpmpp_2m", num_steps=20)
x = generate.inpaint(images, mask)
"""

import collections
import functools
import json
import logging
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax import arguments, distributed, samplers, training
from diffax import config as config_lib
from diffax.config.defaults import keys, sampler_keywords
from diffax.data import Split, Table, controls
from diffax.registry import suggestion
from diffax.samplers import interpolate
from diffax.samplers.editing import OPERATIONS
from diffax.training import Run, codecs, grids
from diffax.training.progress import doing

_LOG = logging.getLogger("diffax")
KEPT_PROGRAMS = 16  # of a few megabytes each
_MOST = 2**20  # examples at a time, and devices
OF_DATA = ("sdedit", "invert")  # edits of whole data, whose controls can be computed from them


class NotFinite(RuntimeWarning):
    """Some of what was drawn is NaN or infinite."""


class Inversion(NamedTuple):
    """What `Generator.invert` finds."""

    start: np.ndarray  # (n, ..., C), the noise, or that of the latents, that DDIM turns into them
    reconstruction: np.ndarray  # (n, ..., C), what DDIM makes of it
    error: np.ndarray  # (n,), the root mean square of reconstruction - data


class Generator:
    """Draws samples of a run, and edits data by it, with the sampling that each call asks for.

    A sample depends on the run, the seed, its own number and the options, not on how many are drawn
    with it, how they are cut into batches, nor on how many devices draw them (to rounding).
    The latest 16 compiled functions are kept: a call with options that one of them was made for
    compiles nothing. Seed, labels and the options of guidance are free.

    Every method takes `options`, keys of `config.sampling` such as sampler, num_steps, grid,
    schedule, eta, clip_x0 and guidance_scale; the rest is as in the run's config. `seed` is from 0
    to 2**32 - 1. `label` is the class of all, or of each, of a class-conditional network, by its
    name or its number; when samples are drawn the classes come in turn by default. `text` is the
    caption of all, or of each, of a network that takes captions; none by default. `control`, of a
    network that follows one, is that of all, (..., C'), or of each, (n, ..., C'), in [-1, 1]; of
    several controls a list. When samples are drawn it is by default that of the evaluation split's
    examples in turn, and so are their classes; of data that are edited, what is computed from them.
    `control_strength` is a number, or one for each control. Data are floats, those of 8 bits in
    [-1, 1] as samples are.
    All raise ValueError for an unknown option or one that can't be, and for a number, data or a
    label that doesn't fit, and warn (`NotFinite`) of samples that are not finite.

    Args:
      run: of `diffax.training.load`, or the workdir itself, read once. The copies of plugins that a
        workdir holds are run as Python: load only what you would run.
      batch_size: samples drawn at a time over all devices, rounded up to fill them.
      num_devices: the first so many; 0 for all.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint.
      ValueError: there are fewer devices, or the run's method draws no samples.
    """

    def __init__(
        self, run: Run | str | os.PathLike, batch_size: int = 256, num_devices: int = 0
    ) -> None:
        self.run = run if isinstance(run, Run) else training.load(run)
        if self.run.method.sample is None:
            raise ValueError(f"method {self.run.config.method.name!r} draws no samples")
        self._mesh = distributed.make_mesh(arguments.whole("num_devices", num_devices, 0, _MOST))
        batch_size = arguments.whole("batch_size", batch_size, 1, _MOST)
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._state = jax.device_put(self.run.state, distributed.replicated(self._mesh))
        self._compiled: collections.OrderedDict[str, Callable] = collections.OrderedDict()

    def __call__(
        self,
        num: int,
        seed: int = 0,
        label: int | str | Sequence[int | str] | None = None,
        text: str | Sequence[str] | None = None,
        control: np.ndarray | Sequence[np.ndarray] | None = None,
        control_strength: float | Sequence[float] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """`num` samples (at least 1), (num, ..., C); `seed` is that of the noise."""
        asked = _asked(label, text, control, control_strength)
        return self._draw("sample", {}, (), num, seed, asked, options)

    def labels(
        self,
        num: int,
        label: int | str | Sequence[int | str] | None = None,
        control: Any = None,
    ) -> np.ndarray:
        """The numbers of the classes of `num` samples, (num,); the arguments are as in a call."""
        num_classes = self.run.dataset.num_classes
        if label is None and control is None and self._follows_held_out():
            return config_lib.conditions.sample_labels(num, num_classes, self._held_out)
        if label is None:
            return config_lib.conditions.sample_labels(num, num_classes)
        if not self.run.config.model.class_conditional:
            raise ValueError(f"label={label}: this network is not conditioned on classes")
        of_all = isinstance(label, str) or np.ndim(label) == 0
        given = [label] if of_all else list(label)
        if not of_all and len(given) != num:
            raise ValueError(
                f"label has {len(given)} entries: a class of all, or one for each of {num}"
            )
        numbers = np.array([class_number(one, self.run.dataset) for one in given])
        return np.broadcast_to(numbers, (num,))

    def texts(self, num: int, text: str | Sequence[str] | None = None) -> list[str]:
        """The captions of `num` samples, empty ones where none are asked; `text` as in a call.

        The log says which are longer than the network reads, and that empty ones are none.
        """
        if text is None:
            return [""] * num
        config = self.run.config
        if not config.condition.text:
            raise ValueError(f"text={text!r}: this network is not conditioned on captions")
        text = text.item() if getattr(text, "shape", None) == () else text
        if isinstance(text, bytes) or not isinstance(text, Collection):
            raise ValueError(
                f"text={text!r}: a caption is a string; give one of all, or a list of one for each"
                f" of {num}"
            )
        given = [text] * num if isinstance(text, str) else list(text)
        for i, one in enumerate(given):
            if not isinstance(one, str):
                raise ValueError(
                    f'text has {one!r} as entry {i}: each caption is a string, and "" is none'
                )
        if len(given) != num:
            raise ValueError(
                f"text has {len(given)} entries: a caption of all, or one for each of {num}"
            )
        for remark in config_lib.conditions.remarks_on(config, given):
            _LOG.warning("%s", remark)
        return given

    def controls(
        self, num: int, control: Any = None, strength: Any = None, x: np.ndarray | None = None
    ) -> Table | None:
        """The controls of `num` samples, or of data x that are edited; `control` and `strength` as
        in a call. None of a network that follows none."""
        config, names = self.run.config, config_lib.control_names(self.run.config)
        if not names:
            if control is not None or strength is not None:
                raise ValueError("control: this network follows no control (condition.control)")
            return None
        strength = 1.0 if strength is None else strength
        if control is None and names.count(controls.FILES) > 1:
            raise ValueError(
                f"control=None: this network follows {', '.join(names)}, and the files of each"
                " ControlNet are of its own data: give control, an array for each"
            )
        if control is not None:
            image, index = self._given_controls(names, num, control)
        elif x is None:
            table = config_lib.conditions.control_table(config, self._held_out, num)
            image, index = table.values["image"], table.index
        else:
            image, index = controls.of_data(x, names), np.arange(num)
        return config_lib.conditions.table_of_controls(config, image, strength, index)

    @functools.cached_property
    def _held_out(self) -> Split:
        """The evaluation split."""
        try:
            return config_lib.load_data(self.run.config).eval
        except (ValueError, OSError) as error:
            raise ValueError(
                f"control=None: controls are then those of the evaluation split, which can't be"
                f" read ({error}); give control"
            ) from None

    def _given_controls(
        self, names: Sequence[str], num: int, control: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The controls that are given side by side, (m, ..., C'), and which one each sample has."""
        listed = isinstance(control, list | tuple)
        # Numbers in lists within lists are an array, and not one of each control.
        of_one = len(names) == 1 and listed and not any(hasattr(one, "shape") for one in control)
        several = list(control) if listed and not of_one else [control]
        if len(several) != len(names):
            raise ValueError(
                f"control has {len(several)} entries: this network follows {', '.join(names)}, an"
                " array for each"
            )
        arrays = []
        for name, shape, one in zip(names, self._control_shapes(), several):
            x = np.asarray(arguments.data("control", one), np.float32)
            x = x[None] if x.ndim == len(shape) else x
            if x.shape[1:] != shape or len(x) not in (1, num):
                raise ValueError(
                    f"control has shape {np.shape(one)}: {name!r} is {shape} for all, or"
                    f" {(num, *shape)} for each of {num}"
                )
            check_finite("control", x)
            check_range("control", x, 256)
            arrays.append(x)
        rows = max(map(len, arrays))
        wide = [np.broadcast_to(x, (rows, *x.shape[1:])) for x in arrays]
        index = np.arange(num) if rows == num else np.zeros(num, int)
        return np.concatenate(wide, axis=-1), index

    def _follows_held_out(self) -> bool:
        """Whether samples follow the controls of held-out examples of known classes by default."""
        config = self.run.config
        return bool(config_lib.control_names(config)) and config.model.class_conditional

    def _control_shapes(self) -> list[tuple[int, ...]]:
        return config_lib.control_shapes(self.run.config, self.run.dataset)

    def _conditions(
        self,
        num: int,
        label: Any,
        text: Any,
        control: Any = None,
        control_strength: Any = None,
        x: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Condition -> what `num` samples, or edits of x, have of it, by their numbers."""
        table = self.controls(num, control, control_strength, x)
        labels, texts = self.labels(num, label, control), self.texts(num, text)
        config = self.run.config
        found: dict[str, Any] = {"label": labels} if config.model.class_conditional else {}
        if config.condition.text:
            found["text"] = config_lib.conditions.text_table(config, texts)
        return found if table is None else {**found, "control": table}

    def from_start(
        self,
        start: np.ndarray,
        seed: int = 0,
        label: Any = None,
        text: Any = None,
        control: Any = None,
        control_strength: Any = None,
        **options: Any,
    ) -> np.ndarray:
        """Samples from given starts, (n, ..., C), such as those of `invert`; of a run that works in
        latents they have the latents' shape."""
        start = np.asarray(arguments.data("start", start), np.float32)
        check_examples("start", start, codecs.inside(self.run.config, self.run.dataset).shape)
        asked = _asked(label, text, control, control_strength)
        return self._edit("from_start", {}, (start,), seed, asked, options)

    def sdedit(
        self,
        x: np.ndarray,
        strength: float,
        seed: int = 0,
        label: Any = None,
        text: Any = None,
        control: Any = None,
        control_strength: Any = None,
        **options: Any,
    ) -> np.ndarray:
        """x, (n, ..., C), noised by a share of the levels and sampled anew; `samplers.sdedit`."""
        # As a number of levels: those of one number are one program.
        num_steps = self._config("sdedit", options).sampling.num_steps
        settings = {"strength": samplers.kept_levels(strength, num_steps) / num_steps}
        asked = _asked(label, text, control, control_strength)
        return self._edit("sdedit", settings, (self._data("x", x),), seed, asked, options)

    def inpaint(
        self,
        x: np.ndarray,
        mask: np.ndarray,
        seed: int = 0,
        label: Any = None,
        text: Any = None,
        control: Any = None,
        control_strength: Any = None,
        jump_length: int | None = None,
        num_resamples: int = 10,
        **options: Any,
    ) -> np.ndarray:
        """x, (n, ..., C), where `mask` is 1, sampled to fit it where it is 0; `samplers.inpaint`.

        The mask broadcasts to x; what x holds where it is 0 doesn't matter. Always by ancestral
        sampling: there is no choice of a sampler. Of a run that works in latents, those whose whole
        area of x is known are kept, and what is known of x is put in after decoding.
        """
        settings = {"jump_length": jump_length, "num_resamples": num_resamples}
        settings = {name: arguments.plain(value) for name, value in settings.items()}
        x = np.asarray(arguments.data("x", x))
        mask = np.asarray(arguments.mask(mask, x.shape))
        x = self._data("x", np.where(mask > 0, x, np.zeros((), x.dtype)))
        asked = _asked(label, text, control, control_strength)
        return self._edit("inpaint", settings, (x, mask), seed, asked, options)

    def invert(
        self,
        x: np.ndarray,
        label: Any = None,
        text: Any = None,
        control: Any = None,
        control_strength: Any = None,
        **options: Any,
    ) -> Inversion:
        """The starts from which DDIM gives x, (n, ..., C), again, and how nearly it does.

        See `samplers.invert` and `samplers.reconstruct`. There is no choice of a sampler.
        """
        asked = _asked(label, text, control, control_strength)
        return Inversion(*self._edit("invert", {}, (self._data("x", x),), 0, asked, options))

    def interpolate(
        self,
        a: np.ndarray,
        b: np.ndarray,
        shares: Sequence[float],
        label: int | str | Sequence[int | str] | None = None,
        text: str | Sequence[str] | None = None,
        control: np.ndarray | Sequence[np.ndarray] | None = None,
        control_strength: float | Sequence[float] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """From a to b, (..., C) each, by way of their starts: (len(shares), ..., C).

        Both are inverted, the starts lie on the great circle between theirs
        (`samplers.interpolate`), and DDIM samples from them without clipping. `label`: the class of
        both, or that of a and that of b, of which each frame has the nearer one's; `text` and
        `control` likewise.
        """
        arguments.check_within("shares", shares, 1, "each lies between 0 and 1")
        if np.ndim(shares) != 1 or len(shares) == 0:
            raise ValueError(f"shares={shares}: a list of numbers between 0 and 1")
        a, b = (self._data(name, np.asarray(x)[None]) for name, x in (("a", a), ("b", b)))
        both = np.concatenate([a, b])
        table = self.controls(2, control, control_strength, both)
        if table is not None:
            control = self._apart(table)
        asked = _asked(label, text, control, control_strength)
        start = self.invert(both, **asked, **options).start
        between = np.asarray(interpolate(start[0], start[1], shares))
        nearer = (np.asarray(shares) > 0.5).astype(int)
        asked |= {
            name: one if one is None else np.broadcast_to(one, 2)[nearer].tolist()
            for name, one in (("label", label), ("text", text))
        }
        if table is not None:
            asked["control"] = [image[nearer] for image in control]
        return self._edit("from_inversion", {}, (between,), 0, asked, options)

    def _apart(self, table: Table) -> list[np.ndarray]:
        """The controls of a table, an array of all rows for each."""
        ends = np.cumsum([shape[-1] for shape in self._control_shapes()])[:-1]
        return np.split(table.values["image"][table.index], ends, axis=-1)

    def _edit(self, name, settings, given, seed, asked, options) -> Any:
        if asked["label"] is None and self.run.config.model.class_conditional:
            raise ValueError(
                "label=None: this network is conditioned on classes: give those of the data"
            )
        if config_lib.control_names(self.run.config) and asked["control"] is None:
            if name not in OF_DATA:
                raise ValueError(
                    f"control=None: this network follows a control: give that of the {name} data"
                )
            asked = {**asked, "x": given[0]}
        return self._draw(name, settings, given, len(given[0]), seed, asked, options)

    def _draw(self, name, settings, given, num, seed, asked, options) -> Any:
        """An operation by its name, of examples `given`, with its own `settings`, under the
        conditions that are `asked`."""
        num = arguments.whole("num", num, 1, arguments.MOST_EXAMPLES)
        arguments.sizes("num", (num, *self.run.dataset.shape))
        key = arguments.seeded(seed)
        if name != "sample" and self.run.method.edit is None:
            raise ValueError(f"{name}: method {self.run.config.method.name!r} edits no data")
        config = self._config(name, options)
        traced = _traced(config)
        found = self._found_grid(name, config)
        draw = self._drawer(config, name, settings, traced, found)
        of_all = self._conditions(num, **asked)
        size = min(self._batch_size, -(-num // self._mesh.size) * self._mesh.size)
        parts = []
        with doing(f"compiling and drawing {num} samples in {config.sampling.num_steps} steps"):
            for i in range(0, num, size):
                # The last batch is filled up with numbers not asked for, and cut afterwards.
                numbers = np.arange(i, i + size)
                rows = np.minimum(numbers, num - 1)
                given_rows = [x[rows] for x in given]
                cond = {condition: each[rows] for condition, each in of_all.items()}
                batch = {"number": numbers, "cond": cond, "given": given_rows}
                placed = distributed.place_batch(batch, self._mesh)
                parts.append(draw(self._state, key, placed, traced))
            parts = jax.device_get(parts)
        drawn = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:num], *parts)
        wrong = sum(num_not_finite(array) for array in jax.tree.leaves(drawn)[:1])
        if wrong:
            warnings.warn(f"{wrong} of {num} samples are not finite", NotFinite, stacklevel=3)
        return drawn

    def _data(self, name: str, x: Any) -> np.ndarray:
        """Examples as float32; ValueError for another shape than the run's, bytes, NaN, or numbers
        outside the range of the run's data."""
        x = np.asarray(arguments.data(name, x), np.float32)
        check_examples(name, x, self.run.dataset.shape)
        check_range(name, x, self.run.dataset.levels)
        return x

    def _config(self, name: str, options: dict[str, Any]) -> Any:
        config = config_lib.from_json(config_lib.to_json(self.run.config))
        solver_options = ("sampler", *sampler_keywords())
        of_loop = ("low_order_finish", "clip_x0", "dynamic_threshold")
        unread = OPERATIONS[name].unread((*solver_options, *of_loop)) if name in OPERATIONS else ()
        known = [option for option in config.sampling if option != "num_samples"]
        if "sampler" in unread:
            config.sampling.update(dict.fromkeys(solver_options) | {"sampler": "ddim"})
        for option, value in options.items():
            if option not in known:
                near = suggestion(option, known)
                raise ValueError(f"no option {option!r}{near}: allowed are {', '.join(known)}")
            if option in unread:
                raise ValueError(f"{option}={value!r}: {name} takes no {option}")
            try:
                config.sampling[option] = arguments.plain(value)
            except TypeError:
                kind = keys()[f"sampling.{option}"].kind
                raise ValueError(f"{option}={value!r}: must be of type {kind}") from None
        config_lib.validate(config)
        return config

    def _found_grid(self, name: str, config: Any) -> dict[str, Any]:
        method = grids.method_of(config)
        if method and name not in ("sample", "from_start"):
            raise ValueError(f"grid={method!r} is found for samples from noise: {name} takes none")
        return grids.options_of(self.run, config)

    def _drawer(
        self,
        config: Any,
        name: str,
        settings: dict[str, Any],
        traced: dict[str, Any],
        found: dict[str, Any],
    ) -> Callable:
        """The compiled function of these options, which takes the values of those in `traced`.
        `found` is what a grid that was found for the run adds to the config's options."""
        known = config_lib.from_json(config_lib.to_json(config))
        known.sampling.update({option: keys()[f"sampling.{option}"].default for option in traced})
        fixed = jax.tree.map(np.ndarray.tolist, jax.device_get(found.get("grid")))
        fixed = [fixed, found.get("coefficients")]
        key = json.dumps([name, settings, config_lib.to_json(known), fixed])
        if key in self._compiled:
            self._compiled.move_to_end(key)
        else:
            method = codecs.build_method(known, self.run.dataset)
            if fault := method.sampling_fault(self.run.state):
                raise ValueError(fault)
            sample = method.sample
            if name != "sample":
                operation = OPERATIONS[name].under(**settings)
                sample = functools.partial(method.edit, operation=operation)
            if found:
                sample = functools.partial(sample, **found)
            self._compiled[key] = distributed.jit_over_numbers(
                _drawing(sample, edits=name != "sample"),
                out_shardings=distributed.split(self._mesh),
            )
            if len(self._compiled) > KEPT_PROGRAMS:
                self._compiled.popitem(last=False)
        return self._compiled[key]


def _asked(label: Any, text: Any, control: Any, control_strength: Any) -> dict[str, Any]:
    """The conditions that are asked for, as `Generator._conditions` takes them."""
    return {
        "label": label,
        "text": text,
        "control": control,
        "control_strength": control_strength,
    }


@functools.lru_cache(maxsize=8)
def _drawing(sample: Callable, edits: bool) -> Callable:
    """What a `Generator` compiles: samples, or edits, of the rows of a batch."""

    def draw(state: Any, key: jax.Array, batch: Any, traced: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["number"])
        given = {"given": batch["given"]} if edits else {}
        return sample(state, keys, batch["cond"], **traced, **given)

    return draw


def _traced(config: Any) -> dict[str, Any]:
    """The options of samples whose values a compiled function takes, but those that are off."""
    sampling = config.sampling
    names = ["clip_x0", "dynamic_threshold", *samplers.TRACED.get(sampling.sampler, ())]
    if sampling.guidance_scale != 1:
        names += ["guidance_scale", "guidance_interval", "guidance_rescale"]
    # 0 and None are off. A scale of 0 isn't: it is the unconditional model.
    on = [name for name in names if sampling[name] or name == "guidance_scale"]
    return {name: jax.tree.map(np.float32, sampling[name]) for name in on}


def class_number(label: int | str, dataset: training.DatasetInfo) -> int:
    """The number of a class, given by its name, or by its number where no class has that name.

    Raises:
      ValueError: no such class; says which there are.
    """
    names, num = dataset.label_names, dataset.num_classes
    if isinstance(label, str) and label in names:
        return names.index(label)
    is_name = isinstance(label, str) and not label.lstrip("-").isdecimal()
    number = label if is_name or not isinstance(label, str) else int(label)
    try:
        return arguments.whole("label", number, 0, num - 1)
    except ValueError:
        near = suggestion(label, names) if is_name else ""
        called = f" ({', '.join(names[:20])}{', ...' if num > 20 else ''})" if names else ""
        raise ValueError(f"label={label!r}{near}: the classes are 0 to {num - 1}{called}") from None


def num_not_finite(x: np.ndarray) -> int:
    """How many of the examples, (n, ...), hold a number that is not finite."""
    return int(np.sum(~np.isfinite(x).reshape(len(x), -1).all(axis=1)))


def check_examples(name: str, x: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `x` is finite and of shape (n, *shape), n at least 1."""
    if x.shape[1:] != shape or x.ndim != len(shape) + 1 or len(x) == 0:
        raise ValueError(f"{name} has shape {x.shape}: this run's data are (n, {str(shape)[1:]}")
    check_finite(name, x)


def check_finite(name: str, x: np.ndarray) -> None:
    """Raises ValueError if an example of `x`, (n, ...), holds a number that is not finite."""
    if wrong := num_not_finite(x):
        raise ValueError(f"{name}: {wrong} of {len(x)} examples are not finite")


def check_range(name: str, x: np.ndarray, levels: int | None) -> None:
    """Raises ValueError for data far outside [-1, 1], where they have `levels`.

    What samples are clipped by when they become images is within 2.
    """
    if levels is not None and np.abs(x).max() > 2:
        raise ValueError(
            f"{name} has values from {x.min():g} to {x.max():g}: this run's data are in [-1, 1]"
        )
