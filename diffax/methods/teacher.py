"""Another run that a method needs: a student's teacher, or the base of a ControlNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from diffax import schedules
from diffax.data import DatasetInfo
from diffax.process import AnySchedule


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained diffusion run, as far as a method needs it.

    A student starts from it, and may learn from it; a ControlNet is trained beside it. Where a run
    is only read its teacher is not loaded: then it has a path alone, and a method's
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

    def check_fits(self, prediction: str, params: Any, schedule: AnySchedule, role: str) -> None:
        """Raises ValueError, in a sentence, where a run can't take over the parameters, or the
        learned schedule, of this one, which is loaded.

        Args:
          prediction: what the run's network predicts.
          params, schedule: in the run's shapes.
          role: what this one is to it, such as "teacher".
        """
        if self.prediction != prediction:
            raise ValueError(
                f"objective.prediction is {prediction!r}, and the {role} in {self.path} predicts"
                f" {self.prediction!r}: its weights are taken over; name the same"
            )
        ours, theirs = (
            {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}
            for leaves in map(jax.tree_util.tree_leaves_with_path, (params, self.params))
        )
        if ours != theirs:
            where = next(k for k in [*ours, *theirs] if ours.get(k) != theirs.get(k))
            raise ValueError(
                f"the network can't start from the weights of the {role} in {self.path}: {where} is"
                f" {ours.get(where, 'not there')} here and {theirs.get(where, 'not there')} there;"
                f" give config.model the {role}'s values"
            )
        if schedules.is_learned(schedule):
            learned = jax.tree.structure(schedule), jax.tree.structure(self.schedule)
            if learned[0] != learned[1]:
                raise ValueError(
                    f"a learned schedule is the {role}'s as it was trained, and the {role} in"
                    f" {self.path} has another one: give config.schedule the {role}'s values"
                )

    def schedule_or(self, own: AnySchedule) -> AnySchedule:
        """This one's schedule where a run's own is a learned one, as far as it is loaded."""
        return self.schedule if schedules.is_learned(own) and self.schedule is not None else own
