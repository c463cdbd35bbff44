"""The space of a search: config keys, each with the range or the values that are tried."""

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import schedules
from diffax.config import reading
from diffax.config.defaults import is_relevant, schedule_keywords
from diffax.schedules import registry

_NAME, _NETWORK = "schedule.name", "model.name"
_ENDS = ("log_snr_max", "log_snr_min")  # which every schedule takes, by `with_endpoints` if need be

# Keys that decide what is measured, and with how much compute: under them trials can't be compared.
_FIXED = ("seed", "data.", "evaluation.", "parallel.", "training.num_steps")


@dataclass(frozen=True)
class Range:
    """A number between two ends, both included; `log`: drawn evenly in its logarithm."""

    key: str
    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Any) -> float:
        whole = isinstance(self.low, int)
        draw = trial.suggest_int if whole else trial.suggest_float
        return draw(self.key, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        return self.low <= value <= self.high

    def examples(self) -> tuple[float, ...]:
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    key: str
    values: tuple[Any, ...]

    def suggest(self, trial: Any) -> Any:
        return trial.suggest_categorical(self.key, self.values)

    def holds(self, value: Any) -> bool:
        return value in self.values

    def examples(self) -> tuple[Any, ...]:
        return self.values


Parameter = Range | Choice


def read(text: str) -> Parameter:
    """A parameter from KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,..., read as the key's type.

    Raises:
      ValueError: another form, no such key, a key that must stay as it is, values of a wrong type,
        an empty range, a logarithmic one that is not positive, or one value alone.
    """
    key, _, written = text.partition("=")
    if not (key and written):
        raise ValueError(f"--search {text}: must read KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B")
    if key.startswith(_FIXED):
        raise ValueError(
            f"--search {text}: {key} decides what is measured or how much is computed, so trials"
            " that differ in it can't be compared"
        )
    ends = written.split(":")
    try:
        kind = reading.find(key).kind.type
        if kind not in _SEARCHED:
            raise ValueError(f"{key}, of type {kind.__name__}, can't be searched")
        values = ends[:2] if len(ends) > 1 else written.split(",")
        values = [reading.read(key, value) for value in values]
    except ValueError as error:
        raise ValueError(f"--search {text}: {error}") from None
    if len(ends) == 1:
        if len(set(values)) < max(2, len(values)):
            raise ValueError(f"--search {text}: two or more values are needed, each once")
        return Choice(key, tuple(values))
    if kind not in (int, float) or None in values or ends[2:] not in ([], ["log"]):
        raise ValueError(f"--search {text}: a range reads LOW:HIGH or LOW:HIGH:log, in numbers")
    low, high = values
    log = ends[2:] == ["log"]
    if not (-math.inf < low < high < math.inf) or (log and low <= 0):
        wanted = "0 < LOW < HIGH" if log else "LOW < HIGH"
        raise ValueError(f"--search {text}: it must hold that {wanted}, both finite")
    return Range(key, low, high, log)


# Of other types are no values that can be drawn, or compared.
_SEARCHED = (int, float, str, bool)


class Space:
    """Parameters around a config: what is not searched stays as the config has it.

    A keyword that the trial's schedule does not take (tau, of cosine) is left out of that trial. So
    is a field of another network.

    Raises:
      ValueError: no parameter, one key twice, or a value that the config refuses by itself.
    """

    def __init__(self, config: ConfigDict, parameters: Iterable[Parameter]):
        # The names first, since they decide which of the others there are.
        self.parameters = sorted(parameters, key=lambda p: p.key not in (_NAME, _NETWORK))
        self.config = config
        keys = [p.key for p in self.parameters]
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"each key must be searched once, and one at least; got {keys}")
        for parameter in self.parameters:
            self._check(parameter)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Key -> value of what an optuna trial is to try."""
        values = {}
        for parameter in self.parameters:
            if self._is_active(parameter.key, values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def default(self) -> dict[str, Any] | None:
        """The config's own values of what is searched; None if one of them is not in the space."""
        values = {}
        for parameter in self.parameters:
            if self._is_active(parameter.key, values):
                value = self._own(parameter.key)
                if value is None or not parameter.holds(value):
                    return None
                values[parameter.key] = value
        return values

    def overrides(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values, and None for keywords of the config's schedule that the trial's does not take."""
        given = [k for k in schedule_keywords() if self.config.schedule[k] is not None]
        keys = [f"schedule.{keyword}" for keyword in given]
        return {**{k: None for k in keys if not self._is_active(k, values)}, **values}

    def networks(self) -> set[str]:
        """The networks of the trials."""
        searched = [p.examples() for p in self.parameters if p.key == _NETWORK]
        return {self.config.model.name, *(name for names in searched for name in names)}

    def _is_active(self, key: str, values: dict[str, Any]) -> bool:
        """Whether a key matters in a trial of some values, which the config has completed."""
        name = values.get(_NAME, self.config.schedule.name)
        if not is_relevant(key, values.get(_NETWORK, self.config.model.name)):
            return False
        section, _, last = key.partition(".")
        if section != "schedule" or last not in schedule_keywords() or last in _ENDS:
            return True
        return last in schedules.keywords(name)

    def _own(self, key: str) -> Any:
        """The value in the config or, where it is None, the default of the schedule's keyword."""
        found = self.config
        for part in key.split("."):
            found = found[part]
        section, _, last = key.partition(".")
        signature = inspect.signature(registry.constructor(self.config.schedule.name)).parameters
        if found is None and section == "schedule" and last in signature:
            found = signature[last].default
        return found

    def _check(self, parameter: Parameter) -> None:
        """A choice must be possible in every value, a range at one end (the other may be so
        together with other keys)."""
        is_field = parameter.key.startswith("model.")
        decides, own = (_NETWORK, "model") if is_field else (_NAME, "schedule")
        names = [c for p in self.parameters if p.key == decides for c in p.examples()]
        names = [*(names or [self.config[own].name])]
        taking = [name for name in names if self._is_active(parameter.key, {decides: name})]
        if not taking:
            raise ValueError(
                f"{parameter.key} is searched, but no {'network' if is_field else own} here takes"
                f" it: {', '.join(names)}"
            )
        errors = []
        for value in parameter.examples():
            values = {decides: taking[0], parameter.key: value}
            try:
                config_lib.validate(config_lib.changed(self.config, self.overrides(values)))
            except ValueError as error:
                errors.append(f"--search {parameter.key}={value}: {error}")
        if len(errors) == len(parameter.examples()) or (errors and isinstance(parameter, Choice)):
            raise ValueError(errors[0])


def words(values: dict[str, Any]) -> str:
    """Values in one line: "name=cosine, s=0.0123"."""
    shown = [f"{key.rpartition('.')[2]}={number(v)}" for key, v in values.items()]
    return ", ".join(shown) or "the config as it is"


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
