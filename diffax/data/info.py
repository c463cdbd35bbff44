"""What a run keeps of its data, so that it can be sampled and evaluated without them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from diffax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a network, a sampler and a likelihood must know of a `diffax.data.Dataset`.

    Attributes:
      name, shape, num_classes, levels, label_names: the data set's own.
      num_train, num_eval, fingerprint: of the examples a run was trained on; 0 and "" if not known.
      codec: the fingerprint of the codec that a run's method works through; "" for none.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    levels: int | None
    label_names: tuple[str, ...]
    num_train: int = 0
    num_eval: int = 0
    fingerprint: str = ""
    codec: str = ""

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetInfo:
        """The description of a data set."""
        return cls(
            name=dataset.name,
            shape=tuple(dataset.shape),
            num_classes=dataset.num_classes,
            levels=dataset.levels,
            label_names=tuple(dataset.label_names),
            num_train=len(dataset.train),
            num_eval=len(dataset.eval),
            fingerprint=dataset.fingerprint,
        )

    def to_json(self) -> str:
        """As text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> DatasetInfo:
        """The description that `to_json` wrote.

        Raises:
          ValueError: the text isn't JSON, or a field is missing, unknown or of another type.
        """
        values = json.loads(text)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        missing = [
            name
            for name, field in fields.items()
            if name not in values and field.default is dataclasses.MISSING
        ]
        if missing or values.keys() - fields.keys():
            unknown = sorted(values.keys() - fields.keys())
            raise ValueError(f"it has no {missing[0]!r}" if missing else f"what is {unknown[0]!r}?")
        for name, value in values.items():
            if not _IS_FIELD[name](value):
                raise ValueError(f"{name!r} is {value!r}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def changes(self, new: DatasetInfo) -> list[str]:
        """In what another data set differs, in words; what isn't known of this one is left out."""
        both_known = self.fingerprint and new.fingerprint
        names = [field.name for field in dataclasses.fields(self)]
        pairs = [
            (name.replace("_", " "), getattr(self, name), getattr(new, name))
            for name in (names if both_known else names[: names.index("num_train")])
        ]
        # What isn't told of a codec is no change: measures and reports look at the data alone.
        differing = [pair for pair in pairs if pair[1] != pair[2] and pair[::2] != ("codec", "")]
        if [name for name, _, _ in differing] == ["fingerprint"]:
            return ["as many examples have another content"]
        return [
            f"{name} was {old!r} and is {now!r}"
            for name, old, now in differing
            if name != "fingerprint"
        ]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list) and all(map(holds, values))


# What a field of `DatasetInfo` is in JSON.
_IS_FIELD: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "shape": lambda value: _all(_is_count)(value) and len(value) > 0 and 0 not in value,
    "num_classes": _is_count,
    "levels": lambda value: value is None or (_is_count(value) and value > 1),
    "label_names": _all(lambda value: isinstance(value, str)),
    "num_train": _is_count,
    "num_eval": _is_count,
    "fingerprint": lambda value: isinstance(value, str),
    "codec": lambda value: isinstance(value, str),
}
