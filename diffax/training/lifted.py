"""One compiled step for all values of a fixed schedule's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffax.schedules.fields import numbers, with_numbers
from diffax.training import parallel
from diffax.training.spread import Spread
from diffax.training.state import TrainState
from diffax.training.vectorised import ALONE, Form


def compile_step(
    make_step: Callable[[Spread], Callable],
    mesh: Mesh,
    state: TrainState,
    mode: str,
    form: Form = ALONE,
) -> parallel.Compiled:
    """`parallel.compile_step` of the runs that `form` says, to whose program the numbers of a fixed
    schedule are an argument. `make_step` and `state` are of one run.

    As constants of the program, cosine's s or the endpoints would make each trial of a search and
    each arm of an ablation compile a step of its own; so, what was compiled for one value is found
    in the compilation cache for all others. To the caller the schedule is as it was, without
    leaves. A schedule that has arrays, learned or discrete, has its numbers there already.
    """
    fixed = state.schedule
    values = np.asarray(numbers(fixed), jnp.result_type(float))

    def of_runs(make: Callable[[Spread], Callable], state: TrainState) -> parallel.Compiled:
        whole = jax.eval_shape(form.whole, state)
        return parallel.compile_step(form.make_step(make), mesh, whole, mode)

    if jax.tree.leaves(fixed) or not len(values):
        return of_runs(make_step, state)

    def make(spread: Spread) -> Callable:
        step = make_step(spread)

        def lifted(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
            schedule = with_numbers(fixed, iter(state.schedule))
            after, metrics = step(state.replace(schedule=schedule), batch)
            return after.replace(schedule=state.schedule), metrics

        return lifted

    compiled, given = of_runs(make, state.replace(schedule=values)), form.repeat(values)

    def step(state: TrainState, batches: Any) -> tuple[TrainState, Any]:
        after, metrics = compiled.step(state.replace(schedule=given), batches)
        return after.replace(schedule=fixed), metrics

    return parallel.Compiled(compiled.place, step)
