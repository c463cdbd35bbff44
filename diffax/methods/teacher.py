"""The run that a student starts from, and may learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffax.data import DatasetInfo
from diffax.process import AnySchedule


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained diffusion run, as far as a method needs it.

    Where a run is only read its teacher is not loaded: then it has a path alone, and a method's
    `init` makes no state that can be trained from, only one of the right shapes.

    Attributes:
      path: the workdir.
      params: the averaged parameters of its network; None where it isn't loaded.
      schedule: as it was trained, in continuous time where it was.
      prediction: what its network predicts.
      fingerprint: tells its parameters and schedule from others.
      data: what is known of the data that it was trained on.
    """

    path: str
    params: Any = None
    schedule: AnySchedule | None = None
    prediction: str = ""
    fingerprint: str = ""
    data: DatasetInfo | None = None
