"""What a data source delivers, a `Dataset` of two `Split`s held in memory; and what a run keeps of
it, a `DatasetInfo`."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import numpy as np

from diffax.data.stored import Stored, extremes, taken
from diffax.files import content_hash


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The fields of `config.data`, with their defaults.

    Attributes:
      name: a key of `diffax.data.SOURCES`, or the name of a TFDS image set ("fashion_mnist",
        "emnist/letters", "cifar10:3.0.2", ...).
      path: the folder of `folder`, the file of `npz`, the name or folder of `huggingface`.
      data_dir: where TFDS sets are prepared; empty: the environment variable TFDS_DATA_DIR, or else
        ~/tensorflow_datasets. Sources that are no TFDS set ignore it.
      image_size: images are resized (shorter side, antialiased) and centre-cropped to this many
        pixels a side; 0 keeps their own size.
      pad_to: images are then framed in black to this many pixels a side; 0 for no frame.
      storage: where the decoded examples of `folder`, `npz` and TFDS are: memory; disk, in a file
        from which each batch is read; auto, on disk if they are more than half of the free memory.
      flip: horizontal flips as augmentation in training; read by the training loop, which hands it
        to `batches`.
      train_split, eval_split: names of splits; of TFDS slices as in "train[:90%]" included.
      channels: of `folder` and `huggingface`; 1 grey, 3 colour, 0 grey if every file is. Of `npz`;
        the length of the array's last axis, 0 to find it.
      array: of `npz`; the key of the array, empty to find it.
      range: of `npz`; (low, high), the values that become -1 and 1, such as (0, 255) or (0, 1).
        (): uint8 and int16 have the range of their type, and floats must lie in [-1, 1].
        (-1, 1): floats as they are, whatever they are.
      skip_bad: of `folder`; leave out the files that can't be read, instead of refusing them all.
      modes: of `mixture2d`; as many round modes on a square grid, such as 25; 0 for the eight
        elongated ones of `diffax.data.default_mixture`.
      mode_deviation: of `mixture2d` with `modes`; a mode's deviation over the distance of
        neighbours on the grid.
    """

    name: str = "digits"
    path: str = ""
    data_dir: str = ""
    image_size: int = 0
    pad_to: int = 0
    storage: str = "auto"
    flip: bool = False
    train_split: str = "train"
    eval_split: str = "test"
    channels: int = 0
    array: str = ""
    range: tuple[float, ...] = ()
    skip_bad: bool = False
    modes: int = 0
    mode_deviation: float = 0.025


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples.

    Attributes:
      x: (N, ..., C), as stored: uint8 for 8-bit data, float32 for real data; an array, or `Stored`
        rows of a file.
      label: (N,) int32, or None.
      arrays: what else is known of each example, by name: "text", (N,) words; "control",
        (N, ..., C), numbers as in x. Each is an array of N rows, or has a length and, indexed by
        integers, gives a pytree of arrays, as a `Table` does.
      mirrored: each example flipped left to right, as x; None where that is x with its columns
        reversed, as of images. Of latents it is not.

    Raises:
      ValueError: if a dtype is another one, the split is empty, or the lengths differ.
    """

    x: np.ndarray | Stored
    label: np.ndarray | None = None
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mirrored: np.ndarray | None = None

    def __post_init__(self):
        if self.x.dtype not in (np.uint8, np.float32) or self.x.ndim < 2 or len(self.x) == 0:
            raise ValueError(
                "Split.x must be a uint8 or float32 array (N, ..., C) with N > 0; "
                f"got {self.x.dtype} {self.x.shape}."
            )
        other = self.x if self.mirrored is None else self.mirrored
        if (other.dtype, other.shape) != (self.x.dtype, self.x.shape):
            raise ValueError(
                f"Split.mirrored must be {self.x.dtype} {self.x.shape} as x is; "
                f"got {other.dtype} {other.shape}."
            )
        label = self.label
        if label is not None and (label.dtype != np.int32 or label.shape != self.x.shape[:1]):
            raise ValueError(
                f"Split.label must be int32 of shape ({len(self.x)},); "
                f"got {label.dtype} {label.shape}."
            )
        for name, rows in self.arrays.items():
            if name in ("x", "label", "number") or len(rows) != len(self.x):
                raise ValueError(
                    f"Split.arrays[{name!r}] has {len(rows)} rows; it must have {len(self.x)}, and"
                    " another name than x, label and number."
                )

    def __len__(self) -> int:
        return len(self.x)

    def array(self, indices=None) -> np.ndarray:
        """x (all, or those at `indices`) as float32: 8-bit k as k / 127.5 - 1, real data as is."""
        return to_float(self.x[:] if indices is None else self.x[indices])

    def take(self, indices: np.ndarray) -> Self:
        """The examples at `indices` as a split; what lies in a file stays there."""
        label = None if self.label is None else self.label[indices]
        mirrored = None if self.mirrored is None else self.mirrored[indices]
        arrays = {name: taken(rows, indices) for name, rows in self.arrays.items()}
        return dataclasses.replace(
            self, x=taken(self.x, indices), label=label, arrays=arrays, mirrored=mirrored
        )

    def batch(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> dict[str, Any]:
        """The examples at `indices`, (n,): "x", "label", which may be None, and a pytree for each
        of `arrays`.

        Words are left out, since no device takes them; 8-bit numbers become floats, as in x.
        `mirrored`, (n,) booleans: the examples whose images, arrays (n, H, W, C), are mirrored left
        to right.
        """

        def ready(array: np.ndarray, flipped: np.ndarray | None = None) -> np.ndarray:
            if mirrored is not None and array.ndim == 4:
                other = array[mirrored][:, :, ::-1]
                array[mirrored] = other if flipped is None else flipped[indices[mirrored]]
            return to_float(array) if array.dtype == np.uint8 else array

        rows = {name: rows for name, rows in self.arrays.items() if not is_text(rows)}
        return {
            "x": ready(self.x[indices], self.mirrored),
            "label": None if self.label is None else self.label[indices],
            **{name: jax.tree.map(ready, array[indices]) for name, array in rows.items()},
        }


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of which many are equal, each kept once: row i is that of number `index`[i].

    Attributes:
      values: a pytree of arrays (M, ...).
      index: (N,) integers.
    """

    values: Any
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, indices: Any) -> Any:
        rows = self.index[indices]
        return jax.tree.map(lambda array: array[rows], self.values)


def is_text(rows: Any) -> bool:
    """Whether these are words: an array of strings."""
    return isinstance(rows, np.ndarray) and rows.dtype.kind == "U"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
      name: as in the config.
      shape: of one example, (..., C).
      num_classes: 0 if there are no labels.
      levels: 256 for 8-bit data, None for real data.
      train, eval: the two splits.
      label_names: `num_classes` names, in the order of the labels.
      definition: of data that are computed: says all that determines them.
      mixture: of points drawn from a known `diffax.data.GaussianMixture`: that; else None.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    levels: int | None
    train: Split
    eval: Split
    label_names: tuple[str, ...] = ()
    definition: str = ""
    mixture: Any = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of all examples, labels and further arrays as they are here: decoded, resized,
        in order. Arrays that are computed from these are left out.

        Of computed data it is the hash of their definition, since the last digits of computed
        values depend on the machine and on its compiler.
        """
        if self.definition:
            return content_hash(self.definition)
        splits = (self.train, self.eval)
        parts = [part for split in splits for part in (split.x, split.label)]
        for split in splits:
            given = {k: v for k, v in split.arrays.items() if not getattr(v, "is_computed", False)}
            for name, rows in sorted(given.items()):
                parts += [name, rows.tolist() if is_text(rows) else rows[np.arange(len(split))]]
        return content_hash(*parts)


def make_dataset(
    name: str,
    train: Split,
    evaluation: Split,
    label_names: tuple[str, ...] = (),
    definition: str = "",
    mixture: Any = None,
) -> Dataset:
    """The `Dataset` of two splits; shape and levels are those of their arrays.

    Data that are computed give a `definition`, a text that says all that determines them. Those
    drawn from a `GaussianMixture` give that.

    Raises:
      ValueError: the splits differ in shape or dtype, values are not finite, or labels are no
        numbers of the classes; names the split.
    """
    if train.x.shape[1:] != evaluation.x.shape[1:] or train.x.dtype != evaluation.x.dtype:
        raise ValueError(
            f"data.name={name!r}: examples of the train split are {train.x.dtype} "
            f"{train.x.shape[1:]}, those of the eval split {evaluation.x.dtype} "
            f"{evaluation.x.shape[1:]}; they must agree (data.image_size makes sizes equal)."
        )
    for split, said in ((train, "train"), (evaluation, "eval")):
        if split.x.dtype != np.uint8 and not np.isfinite(extremes(split.x)).all():
            raise ValueError(
                f"data.name={name!r}: the {said} split has values that are not finite."
            )
        if (split.label is None) != (not label_names):
            had = "has no labels" if split.label is None else "has labels"
            raise ValueError(
                f"data.name={name!r}: the {said} split {had}, and there are {len(label_names)} "
                "names of classes."
            )
        if label_names and not 0 <= split.label.min() <= split.label.max() < len(label_names):
            raise ValueError(
                f"data.name={name!r}: the labels of the {said} split go from {split.label.min()} "
                f"to {split.label.max()}, and the {len(label_names)} classes are numbered from 0."
            )
    kinds = [{k: _kind(rows) for k, rows in split.arrays.items()} for split in (train, evaluation)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"data.name={name!r}: the train split has beside its examples {kinds[0] or 'nothing'},"
            f" the eval split {kinds[1] or 'nothing'}; they must agree."
        )
    shape, levels = train.x.shape[1:], 256 if train.x.dtype == np.uint8 else None
    splits = (train, evaluation)
    return Dataset(name, shape, len(label_names), levels, *splits, label_names, definition, mixture)


def _kind(rows: Any) -> tuple[str, tuple[int, ...]]:
    """ "text" or the dtype of an array's entries, and the shape of one row."""
    return "text" if is_text(rows) else str(rows.dtype), tuple(rows.shape[1:])


def to_float(x: np.ndarray) -> np.ndarray:
    """8-bit values k as float32 k / 127.5 - 1 (correctly rounded); float32 unchanged."""
    if x.dtype == np.float32:
        return x
    out = x.astype(np.float32)
    out -= 127.5  # exact; k / 127.5 - 1 in this order would round twice
    out /= 127.5
    return out


def to_8_bits(x: np.ndarray) -> np.ndarray:
    """float x as uint8, the nearest to (x + 1) * 127.5 after clipping to [-1, 1]; uint8 unchanged.

    What an image file keeps of x.
    """
    if x.dtype == np.uint8:
        return x
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def check_flip(flip: bool, shape: tuple[int, ...]) -> None:
    """Refuses horizontal flips of examples (of shape `shape`) that are no images (H, W, C)."""
    if flip and len(shape) != 3:
        raise ValueError(
            f"data.flip=True mirrors images (H, W, C), not examples of shape {shape}: set it False."
        )


def cut(num: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted train and eval indices of a set without splits: the last tenth of `order` is eval."""
    num_eval = max(1, round(num / 10))
    return np.sort(order[:-num_eval]), np.sort(order[-num_eval:])


# --- what a run keeps, so that it can be sampled and evaluated without its data -------------------


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a network, a sampler and a likelihood must know of a `diffax.data.Dataset`.

    Attributes:
      name, shape, num_classes, levels, label_names: the data set's own.
      num_train, num_eval, fingerprint: of the examples a run was trained on; 0 and "" if not known.
      arrays: (name, shape of one row) for each further array of the examples, such as
        ("text", ()) and ("control", (64, 64, 1)).
      codec: the fingerprint of the codec that a run's method works through; "" for none.
      latent_mean, latent_deviation: of the training split's latents, per channel, by which the
        method sees them normalised; () for latents as the codec gives them.
      teacher: the fingerprint of the run that a run's method starts from; "" for none.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    levels: int | None
    label_names: tuple[str, ...]
    num_train: int = 0
    num_eval: int = 0
    fingerprint: str = ""
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()
    codec: str = ""
    teacher: str = ""
    latent_mean: tuple[float, ...] = ()
    latent_deviation: tuple[float, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The description of a data set."""
        return cls(
            dataset.name,
            tuple(dataset.shape),
            dataset.num_classes,
            dataset.levels,
            tuple(dataset.label_names),
            *(len(dataset.train), len(dataset.eval), dataset.fingerprint),
            tuple((name, _kind(rows)[1]) for name, rows in sorted(dataset.train.arrays.items())),
        )

    def to_json(self) -> str:
        """As text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The description that `to_json` wrote.

        Raises:
          ValueError: the text isn't JSON, or a field is missing, unknown or of another type.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        for field in dataclasses.fields(cls):
            if field.name not in values and field.default is dataclasses.MISSING:
                raise ValueError(f"it has no {field.name!r}")
        for name, value in values.items():
            if name not in _IS_FIELD:
                raise ValueError(f"what is {name!r}?")
            if not _IS_FIELD[name](value):
                raise ValueError(f"{name!r} is {value!r}")
        return cls(**{name: _as_tuple(value) for name, value in values.items()})

    def changes(self, new: Self) -> list[str]:
        """In what another data set differs, in words; what isn't known of this one is left out."""
        both_known = self.fingerprint and new.fingerprint
        names = [field.name for field in dataclasses.fields(self)]
        pairs = [
            (name.replace("_", " "), getattr(self, name), getattr(new, name))
            for name in (names if both_known else names[: names.index("num_train")])
        ]
        # A codec that isn't named is no change: measures and reports look at the data alone.
        # Nor are another teacher, and what follows from data and codec: no part of the data.
        no_part = ("teacher", "latent mean", "latent deviation")
        differing = [
            pair
            for pair in pairs
            if pair[1] != pair[2] and pair[::2] != ("codec", "") and pair[0] not in no_part
        ]
        if [name for name, _, _ in differing] == ["fingerprint"]:
            return ["as many examples have another content"]
        return [
            f"{name} was {old!r} and is {now!r}"
            for name, old, now in differing
            if name != "fingerprint"
        ]


def _as_tuple(value: Any) -> Any:
    """Lists, at any depth, as tuples."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list) and all(map(holds, values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


# What a field of `DatasetInfo` is in JSON.
_IS_FIELD: dict[str, Callable[[Any], bool]] = {
    "shape": lambda value: _all(_is_count)(value) and len(value) > 0 and 0 not in value,
    "levels": lambda value: value is None or (_is_count(value) and value > 1),
    "label_names": _all(_is_text),
    "arrays": _all(
        lambda pair: (
            len(pair) == 2 and _is_text(pair[0]) and _all(_is_count)(pair[1])
            if isinstance(pair, list)
            else False
        )
    ),
    **dict.fromkeys(("name", "fingerprint", "codec", "teacher"), _is_text),
    **dict.fromkeys(("latent_mean", "latent_deviation"), _all(_is_finite)),
    **dict.fromkeys(("num_classes", "num_train", "num_eval"), _is_count),
}
