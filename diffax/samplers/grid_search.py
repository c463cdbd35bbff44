"""Grids made for a network, a solver and a number of steps, from starts alone: no data are needed.

A teacher takes the starts along many levels to x0. The error of a grid is the root mean square
distance of what the solver makes of the same starts to the teacher's x0. The methods:

dp: dynamic programming over candidate levels. The cost of a step from level i to level j is
    sqrt(E|J_j e_ij|^2) or its square: e_ij is the error of the solver's own step, begun on the
    teacher's path, and J_j the Jacobian of the flow from level j to x0, which says how far later
    steps contract it. |J e|^2 is estimated by random probes v: one pass backwards along the path
    gives v J for all levels. A multistep solver's cost depends on the level before too, so that the
    path is one through pairs of levels; steps still earlier are taken to be as long as that one.
    The costs serve all step counts. What they leave out, errors that cancel and that grow along the
    solver's own path, the last part puts right: single levels are moved, to and fro, while the
    error falls.
ays: dynamic programming over the bound of Sabour 2024 (2404.14507) on the KL divergence between the
    paths of the reverse SDE and of its discretisation, which holds x0 fixed within a step,
    1/2 int E|x0(x_l) - x0(x_i)|^2 dSNR over a step from level i, x_i and x_l of one noised path.
    It knows no solver, and keeps the noisy end.
gradient: Adam on the levels through the solver (Tong 2025, LD3, learns times so), begun from those
    fixed grids that have the least error; the best levels met are kept, so that on the starts it
    sees it is never worse than any.
entropy, second_moment, constant_change, transport: equal rate per step, of that rate in
    `diffax.rates`, which is estimated from the network on the teacher's x0. They know no solver,
    and keep both ends. A rate of |eps - eps_hat|^2 weighs a network's own error of x0 by e^l, the
    signal-to-noise ratio: with a trained network most steps may go to the clean end.
learned: the same as gradient, for the solver "learned". From the levels found for dpmpp_2m the
    weights by which a step combines the network's x0 of several steps are learned with them
    (Frankel 2025, S4S, learns both).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax

from diffax import arguments, process, rates
from diffax.process import AnySchedule, Predict
from diffax.registry import unknown
from diffax.samplers import grids
from diffax.samplers.base import Denoised, Level, Sampler, Step, standard_normal
from diffax.samplers.learned import as_dpmpp_2m
from diffax.samplers.loop import get, make_denoiser, range_of, sample

TEACHER_STEPS = 400
CANDIDATES = 64
HELD_OUT = 4  # every so many starts are held out
_PROBES = 4
_REMEMBERED = 3  # steps before, of a multistep solver
_MOVES = (16, 8, 4, 2, 1)  # of the teacher's levels, by which a level is moved
_ROUNDS = 4  # of all levels by each
ITERATIONS, BEGINS = 200, 3  # of Adam, and grids from which it begins
_ADAM_RATE = 0.1
_GRADIENT = 3  # network calls that a gradient costs


class Found(NamedTuple):
    """A grid, and how good it is.

    Attributes:
      levels: fields of shape (steps,), as `sample(grid=...)` takes them.
      error: on the starts that were used, the distance to the teacher's x0: the root mean square,
        over the starts, of the norm.
      held_out: the same on the starts that were not.
      fixed: name of a fixed grid -> its error, and its error on the starts held out.
      calls, seconds: network calls for each start and time, of this number of steps alone; a
        gradient counts as three calls.
      coefficients: of the solver "learned", (steps, 4); None of others.
    """

    levels: Level
    error: float
    held_out: float
    fixed: dict[str, tuple[float, float]]
    calls: int
    seconds: float
    coefficients: np.ndarray | None = None


class Search(NamedTuple):
    """Steps -> what was found; calls and seconds of what served all of them."""

    found: dict[int, Found]
    calls: int
    seconds: float


class _Path(NamedTuple):
    """The teacher's path from all starts, (batch, ..., C)."""

    fine: Level  # (L,), all of its levels
    kept: np.ndarray  # (M,), those of them that are candidates
    levels: Level  # (M,)
    states: jax.Array  # (M, batch, ..., C)
    x0: jax.Array  # the network's at the states
    eps: jax.Array
    end: jax.Array  # (batch, ..., C)


class _Task(NamedTuple):
    """What a method is given."""

    key: jax.Array
    over: grids.Range
    solver: Sampler
    predict: Predict
    prediction: str
    denoise: Callable[[jax.Array, Level], Denoised]
    start: jax.Array  # (batch, ..., C)
    used: np.ndarray  # the numbers of the starts that are not held out
    path: _Path
    fixed: dict[str, Level]  # of the asked number of steps, the least error first
    error: Callable[..., jax.Array]  # levels, coefficients -> on the starts that are used
    traced_error: Callable[..., jax.Array]  # the same, to be differentiated
    num: int  # of steps
    cost: int  # network calls of one sample
    iterations: int
    begins: int


# Of one step count: its task -> levels, coefficients, network calls. A method makes it of the first
# task, and says how many calls that took, which serve all step counts.
_Solve = Callable[[_Task], tuple[Level, Any, int]]


def _at(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda a: a[i], tree)


def _compiled(function: Callable) -> Callable:
    """jax.jit, but that what `function` closes over, such as a network's weights, is an argument of
    the program and no constant in it: other weights then find the same program, which JAX keeps on
    disk where it has a folder for them."""
    programs: dict[Any, tuple[Callable, list, Any]] = {}

    def call(*args: Any) -> Any:
        flat, tree = jax.tree.flatten(args)
        shapes = tuple((jnp.shape(a), jnp.result_type(a)) for a in flat)
        if (tree, shapes) not in programs:
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)

            def run(constants: list, flat: list) -> list:
                own = closed.replace(consts=constants)
                return jax.extend.core.jaxpr_as_fun(own)(*flat)

            programs[tree, shapes] = jax.jit(run), closed.consts, jax.tree.structure(shape)
        run, constants, out = programs[tree, shapes]
        return jax.tree.unflatten(out, run(constants, flat))

    return call


def _ended(levels: Level) -> Level:
    """With x0 after the last."""
    return Level(jnp.append(levels.t, levels.t[-1]), jnp.append(levels.log_snr, jnp.inf))


# --- dynamic programming --------------------------------------------------------------------------


def shortest_path(begin: np.ndarray, costs: np.ndarray, num: int) -> np.ndarray:
    """The `num` levels, (num,), of the least sum of costs.

    Args:
      begin: (M,), the cost of beginning at a level.
      costs: (H, M, M + 1): of the step from level i to level j, M for x0, after one from level h; h
        = i where there was none. H is M, or 1 if the level before doesn't matter.
    """
    size = len(begin)
    best = begin[None] if len(costs) == 1 else np.where(np.eye(size, dtype=bool), begin, np.inf)
    choices = []
    for _ in range(num - 1):
        total = best[:, :, None] + costs[:, :, :size]  # (h, i, j)
        axis = 0 if len(costs) > 1 else 1
        choices.append(np.argmin(total, axis))
        best = np.min(total, axis)
    h, i = np.unravel_index(np.argmin(best + costs[:, :, size]), best.shape)
    path = [i]
    for choice in reversed(choices):
        h, i = (choice[h, i], h) if len(costs) > 1 else (0, choice[0, i])
        path.insert(0, i)
    return np.array(path)


def _sensitivities(task: _Task) -> jax.Array:
    """v J_j for each level j, and v itself for x0: (M + 1, probes, batch, ..., C)."""
    path = task.path
    shape = (_PROBES, *path.end.shape)
    probes = jax.random.rademacher(jax.random.fold_in(task.key, 1), shape, path.end.dtype)

    def back(seen: jax.Array, at: tuple[jax.Array, Level, Level]) -> tuple[jax.Array, jax.Array]:
        x, now, after = at
        _, pull = jax.vjp(lambda x: after.of(*task.denoise(x, now)[:2]), x)
        seen = jax.vmap(pull)(seen)[0]
        return seen, seen

    steps = (path.states, path.levels, _at(_ended(path.levels), slice(1, None)))
    _, found = jax.lax.scan(back, probes, steps, reverse=True)
    return jnp.concatenate([found, probes[None]])


def _step_costs(task: _Task) -> tuple[np.ndarray, np.ndarray]:
    """E|J e|^2 of beginning at each level, and of each step, as `shortest_path` takes them."""
    path, solver, over = task.path, task.solver, task.over
    size, levels = len(path.kept), _ended(path.levels)
    ends = jnp.concatenate([path.states, path.end[None]])
    sensitivities = _sensitivities(task)
    none = solver.init(path.states[0])
    remembers = bool(jax.tree.leaves(none))

    def level_at(log_snr: jax.Array) -> Level:
        inner = over.num_steps is None
        return Level(over.schedule.inverse_log_snr(log_snr) if inner else levels.t[0], log_snr)

    def step(i: jax.Array, j: jax.Array, x: jax.Array, carry: Any, known: bool) -> Any:
        now = _at(levels, i)

        def denoise(asked: jax.Array, level: Level) -> Denoised:
            on_path = level is now and (known or asked is path_state)
            return (
                Denoised(path.x0[i], path.eps[i], None) if on_path else task.denoise(asked, level)
            )

        path_state = x
        return solver.step(x, carry, Step(task.key, now, _at(levels, j), denoise, level_at))

    def history(h: jax.Array, i: jax.Array) -> Any:
        before = [i, *(jnp.maximum(h - k * (i - h), 0) for k in range(_REMEMBERED))]
        carry = none
        for source, target in reversed(list(zip(before[1:], before))):
            _, new = step(source, target, path.states[source], carry, True)
            made = source < target
            carry = jax.tree.map(lambda a, b, made=made: jnp.where(made, a, b), new, carry)
        return carry

    def weighed(error: jax.Array, j: jax.Array) -> jax.Array:
        seen = (sensitivities[j] * error).reshape(*sensitivities.shape[1:3], -1)
        return jnp.mean(jnp.sum(seen, axis=-1)[:, task.used] ** 2)

    def cost(triple: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        h, i, j = triple
        x, carry = step(i, j, path.states[i], history(h, i) if remembers else none, False)
        if solver.corrects:  # a step of no length shows the state that the next call corrects
            k = jnp.minimum(j, size - 1)
            x = jnp.where(j < size, step(k, k, x, carry, True)[0], x)
        return weighed(x - ends[j], j)

    before = (lambda i: range(i + 1)) if remembers else (lambda i: (0,))
    triples = [(h, i, j) for j in range(size + 1) for i in range(j) for h in before(i)]
    index = tuple(np.array(triples).T)
    costs = np.full((size if remembers else 1, size, size + 1), np.inf)
    costs[index] = jax.lax.map(cost, tuple(map(jnp.asarray, index)))
    begin = jax.lax.map(lambda i: weighed(task.start - path.states[i], i), jnp.arange(size))
    return np.asarray(begin, np.float64), costs


def _moved(
    error: Callable[[np.ndarray], float], chosen: np.ndarray, size: int
) -> tuple[np.ndarray, int]:
    """Positions among `size`, moved singly while the error falls; and how often it was measured."""
    best, count = error(chosen), 1
    for move in _MOVES:
        for _ in range(_ROUNDS):
            before = best
            for k, by in [(k, by) for k in range(len(chosen)) for by in (-move, move)]:
                other = chosen.copy()
                other[k] += by
                if 0 <= other[0] and other[-1] < size and np.all(np.diff(other) > 0):
                    found, count = error(other), count + 1
                    if found < best:
                        best, chosen = found, other
            if best == before:
                break
    return chosen, count


def _dp(first: _Task) -> tuple[_Solve, int]:
    path = first.path
    begin, costs = _step_costs(first)
    size = len(path.kept)
    between = size * (size - 1) // 2 * (-(-first.cost // first.num) - 1)  # calls within steps

    def solve(task: _Task) -> tuple[Level, None, int]:
        def error(chosen: np.ndarray) -> float:
            return float(task.error(_at(path.fine, chosen), None))

        num = task.num
        starts = [path.kept[shortest_path(begin**p, costs**p, num)] for p in (0.5, 1.0)]
        fine = np.asarray(path.fine.log_snr)[1:]  # the first may be minus infinity
        for levels in task.fixed.values():
            near = np.argmin(np.abs(fine - np.asarray(levels.log_snr)[1:, None]), axis=1) + 1
            near = np.append(np.argmin(np.abs(np.asarray(path.fine.t) - float(levels.t[0]))), near)
            starts += [near] if np.all(np.diff(near) > 0) else []
        chosen, count = _moved(error, min(starts, key=error), len(path.fine.t))
        return _at(path.fine, chosen), None, (count + len(starts)) * task.cost

    return solve, size * (1 + 2 * _PROBES) + between


def _ays(first: _Task) -> tuple[_Solve, int]:
    levels, x = first.path.levels, first.path.end
    snr = np.exp(np.asarray(levels.log_snr, np.float64))
    cleanest = _at(levels, -1)
    keys = jax.random.split(jax.random.fold_in(first.key, 2), len(snr))
    x = cleanest.of(x, standard_normal(keys[-1], x.shape, x.dtype))

    def noised(x: jax.Array, at: tuple[jax.Array, Level, Level]) -> tuple[jax.Array, jax.Array]:
        key, now, cleaner = at
        beta = process.transition_variance(now.log_snr, cleaner.log_snr)
        x = jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * standard_normal(key, x.shape, x.dtype)
        return x, x

    steps = (keys[:-1], _at(levels, slice(None, -1)), _at(levels, slice(1, None)))
    _, states = jax.lax.scan(noised, x, steps, reverse=True)
    states = jnp.concatenate([states, x[None]])
    x0 = jax.lax.map(lambda at: first.denoise(*at).x0, (states, levels))
    flat = np.asarray(x0[:, first.used], np.float64).reshape(len(snr), -1)
    squares = np.sum(flat**2, axis=1)
    apart = (squares[:, None] + squares - 2 * flat @ flat.T) / len(first.used)
    # Of a step from i: the integral over SNR by trapezia, up to each level; the last is up to x0.
    pieces = np.triu(0.25 * (apart[:, 1:] + apart[:, :-1]) * np.diff(snr))
    costs = np.pad(np.cumsum(pieces, axis=1), ((0, 0), (1, 0)))
    costs = np.concatenate(
        [np.where(np.triu(np.ones_like(apart), 1), costs, np.inf), costs[:, -1:]], 1
    )
    begin = np.where(np.arange(len(snr)) == 0, 0.0, np.inf)

    def solve(task: _Task) -> tuple[Level, None, int]:
        chosen = shortest_path(begin, costs[None], task.num)
        return _at(levels, chosen), None, 0

    return solve, len(snr)


# --- by gradient ----------------------------------------------------------------------------------


def _gradient(first: _Task, coefficients: bool = False) -> tuple[_Solve, int]:
    over = first.over
    low, high = over.log_snr_noisy, over.log_snr_clean

    def levels_of(params: dict[str, jax.Array]) -> Level:
        shares = jnp.cumsum(jax.nn.softmax(params["gaps"]))[:-1]
        log_snr = low + (high - low) * shares
        return Level(over.schedule.inverse_log_snr(log_snr), log_snr)

    def params_of(levels: Level) -> dict[str, jax.Array]:
        inner = jnp.clip(levels.log_snr, low, high)
        gaps = jnp.diff(jnp.concatenate([low[None], inner, high[None]]))
        return {"gaps": jnp.log(jnp.maximum(gaps, 1e-3 * (high - low) / len(gaps)))}

    def solve(task: _Task) -> tuple[Level, Any, int]:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            return jnp.log(task.traced_error(levels_of(params), params.get("coefficients")))

        @_compiled
        def descended(params: dict[str, jax.Array], rate: jax.Array) -> tuple[Any, jax.Array]:
            optimizer = optax.adam(optax.cosine_decay_schedule(rate, task.iterations))

            def step(state: Any, _: None) -> tuple[Any, None]:
                params, opt_state, best, least = state
                value, gradient = jax.value_and_grad(loss)(params)
                best = jax.tree.map(lambda a, b: jnp.where(value < least, a, b), params, best)
                updates, opt_state = optimizer.update(gradient, opt_state)
                params = optax.apply_updates(params, updates)
                return (params, opt_state, best, jnp.minimum(value, least)), None

            start = (params, optimizer.init(params), params, jnp.inf)
            (_, _, best, least), _ = jax.lax.scan(step, start, None, task.iterations)
            return best, least

        starts = [params_of(levels) for levels in list(task.fixed.values())[: task.begins]]
        tried = [descended(start, _ADAM_RATE) for start in starts]
        best, _ = min(tried, key=lambda pair: pair[1])
        if coefficients:
            weights = as_dpmpp_2m(levels_of(best))
            best, _ = descended(best | {"coefficients": weights}, _ADAM_RATE / 10)
        levels, weights = levels_of(best), best.get("coefficients")
        if over.num_steps is not None:
            levels = over.nearest(levels.log_snr)
        fixed = next(iter(task.fixed.values()))
        if not task.error(levels, weights) <= task.error(fixed, None):
            levels, weights = fixed, as_dpmpp_2m(fixed) if coefficients else None
        descents = len(starts) + coefficients
        return levels, weights, (_GRADIENT * task.iterations * descents + 2) * task.cost

    return solve, 0


# --- of equal rate --------------------------------------------------------------------------------

_RATE_LEVELS = 65


def _equal_rate(
    estimate: Callable[..., rates.Rate], calls: int, first: _Task
) -> tuple[_Solve, int]:
    """`calls`: of the network for each level of the estimate."""
    over = first.over
    rate = estimate(
        first.predict, over.schedule, first.path.end, jax.random.fold_in(first.key, 3),
        prediction=first.prediction, num_levels=_RATE_LEVELS,
        log_snr_max=float(over.log_snr_clean), log_snr_min=float(over.log_snr_noisy),
    )  # fmt: skip

    def solve(task: _Task) -> tuple[Level, None, int]:
        return grids.levels(over, rate, task.num), None, 0

    return solve, calls * len(rate.log_snrs)


METHODS: dict[str, Callable[[_Task], tuple[_Solve, int]]] = {
    "dp": _dp,
    "gradient": _gradient,
    "ays": _ays,
    "entropy": functools.partial(_equal_rate, rates.entropy, 1),
    "second_moment": functools.partial(_equal_rate, rates.second_moment, 1),
    "constant_change": functools.partial(_equal_rate, rates.constant_change, 2),
    "transport": functools.partial(_equal_rate, rates.transport, 2),
    "learned": functools.partial(_gradient, coefficients=True),
}


def search(
    predict: Predict,
    schedule: AnySchedule,
    x_init: jax.Array,
    steps: Sequence[int],
    sampler: str = "ddim",
    method: str = "dp",
    *,
    prediction: str = "eps",
    key: jax.Array | None = None,
    log_snr_max: float = 20.0,
    log_snr_min: float = -20.0,
    teacher_steps: int = TEACHER_STEPS,
    candidates: int = CANDIDATES,
    iterations: int = ITERATIONS,
    begins: int = BEGINS,
    on_found: Callable[[int, Search], None] | None = None,
    **options: object,
) -> Search:
    """Grids of each number of steps for one network and solver; see the module.

    Args:
      predict, schedule, prediction, log_snr_max, log_snr_min, options: as in `sample`.
      x_init: (batch, ..., C), starts as `sample` draws them, 8 or more; every fourth is held out.
      steps: numbers of steps, each at most `candidates`.
      sampler: a deterministic one.
      method: of `METHODS`; "learned" is for the sampler "learned", and it alone.
      key: of the probes and of the noise of "ays"; none need be given.
      teacher_steps: levels of the teacher, which is dpmpp_2m on levels equal in log-SNR.
      candidates: levels that dynamic programming chooses from.
      iterations, begins: of "gradient" and "learned", Adam's steps, and how many fixed grids it
        begins from. Their cost is in proportion to both; "learned" takes `iterations` more.
      on_found: called after each number of steps, with it and what is found so far.

    Raises:
      ValueError: a stochastic solver, an unknown method, too few starts or candidates, a gradient
        in discrete time for a predictor conditioned on the index, or what `sample` or an estimate
        of `diffax.rates` refuses.
    """
    arguments.check_order("search", predict=predict, schedule=schedule)
    if method not in METHODS:
        raise ValueError(unknown("method", method, METHODS))
    if (method == "learned") != (sampler == "learned"):
        raise ValueError(
            f"method={method!r} with sampler={sampler!r}: the method 'learned' is for the sampler"
            " 'learned', and it alone"
        )
    sampler = "dpmpp_2m" if sampler == "learned" else sampler  # from which it begins
    limits = {k: options.pop(k) for k in ("clip_x0", "dynamic_threshold") if k in options}
    finish = {k: options.pop(k) for k in ("low_order_finish",) if k in options}
    solver = get(sampler, **options)
    if solver.stochastic:
        raise ValueError(f"sampler={sampler!r} draws noise: a grid is found for deterministic ones")
    if (
        method in ("gradient", "learned")
        and schedule.num_steps
        and not process.takes_log_snr(predict)
    ):
        raise ValueError(
            f"method={method!r} moves levels continuously, which a predictor conditioned on the"
            " index of a discrete schedule can't follow: take 'dp', or give one by_log_snr"
        )
    x = process.widened(arguments.examples("x_init", x_init))
    if len(x) < 2 * HELD_OUT:
        raise ValueError(f"x_init has {len(x)} starts: at least {2 * HELD_OUT} are needed")
    over = range_of(schedule, prediction, log_snr_max, log_snr_min)
    most = min(candidates, schedule.num_steps or candidates)
    steps = [arguments.whole("steps", n, 1, most) for n in steps]
    effort = [
        arguments.whole(*given)
        for given in (("iterations", iterations, 1, 100_000), ("begins", begins, 1, 100))
    ]
    key = jax.random.key(0) if key is None else process.typed(key)
    began = time.monotonic()
    common = dict(prediction=prediction, log_snr_max=log_snr_max, log_snr_min=log_snr_min, **limits)
    lean = _remat(predict)

    def draw(start: jax.Array, levels: Level, sampler: str, **given: Any) -> Any:
        return sample(
            key, lean, schedule, start.shape, sampler, grid=levels, x_init=start, **common, **given
        )

    denoise = make_denoiser(predict, prediction, **limits)
    fine = grids.logsnr(over, min(teacher_steps, schedule.num_steps or teacher_steps))
    kept = np.unique(np.round(np.linspace(0, len(fine.t) - 1, most)).astype(int))
    numbers = np.arange(len(x))
    is_held = numbers % HELD_OUT == HELD_OUT - 1
    used, held = numbers[~is_held], numbers[is_held]

    @_compiled
    def taught(x: jax.Array) -> tuple[jax.Array, ...]:
        end, states = draw(x, fine, "dpmpp_2m", return_trajectory=True)
        states = states[kept]
        x0, eps = jax.lax.map(lambda at: denoise(*at)[:2], (states, _at(fine, kept)))
        return end, states, x0, eps

    end, *on_path = taught(x)
    path = _Path(fine, kept, _at(fine, kept), *on_path, end)

    def errors_of(levels: Level, weights: Any) -> jax.Array:
        """On the starts that are used, and on those held out; drawn together, since a predictor may
        have a condition for each."""
        own = dict(sampler=sampler, **options)
        how = own if weights is None else dict(sampler="learned", coefficients=weights)
        apart = draw(x, levels, **how, **finish) - end
        squares = jnp.sum(apart.reshape(len(x), -1) ** 2, axis=1)
        return jnp.sqrt(jnp.stack([jnp.mean(squares[used]), jnp.mean(squares[held])]))

    measured = _compiled(errors_of)

    def error(levels: Level, weights: Any) -> jax.Array:
        return measured(levels, weights)[0]

    def traced_error(levels: Level, weights: Any) -> jax.Array:
        return errors_of(levels, weights)[0]

    def both(levels: Level, weights: Any) -> tuple[float, float]:
        return tuple(map(float, measured(levels, weights)))

    solve, shared, found = None, len(fine.t) + most, {}
    for num in steps:
        start = time.monotonic()
        fixed = {name: grids.levels(over, name, num) for name in grids.GRIDS}
        errors = {name: both(levels, None) for name, levels in fixed.items()}
        ranked = {name: fixed[name] for name in sorted(fixed, key=errors.get)}
        cost = _calls(schedule, num, sampler, common, options)
        task = _Task(
            key, over, solver, predict, prediction, denoise, x, used, path, ranked, error,
            traced_error, num, cost, *effort,
        )  # fmt: skip
        if solve is None:
            solve, more = METHODS[method](task)
            shared, seconds = shared + more, time.monotonic() - began
            start = time.monotonic()
        levels, weights, calls = solve(task)
        error_of, held_out = both(levels, weights)
        calls += len(errors) * cost
        weights = None if weights is None else np.asarray(weights)
        seconds_of = time.monotonic() - start
        found[num] = Found(levels, error_of, held_out, errors, calls, seconds_of, weights)
        if on_found is not None:
            on_found(num, Search(found, shared, seconds))
    return Search(found, shared, seconds)


def _remat(predict: Predict) -> Predict:
    """The same, whose inner results are computed anew in a gradient, not kept."""
    lean = jax.checkpoint(predict)
    return process.by_log_snr(lean) if process.takes_log_snr(predict) else lean


def _calls(schedule: AnySchedule, num: int, sampler: str, common: Any, options: Any) -> int:
    """The network calls of one sample; counted where a scan is a loop, so that each is made."""
    calls = []

    def predict(x: jax.Array, log_snr: jax.Array) -> jax.Array:
        calls.append(log_snr)
        return x

    with jax.disable_jit():
        shape, key = (1, 1), jax.random.key(0)
        by_level = process.by_log_snr(predict)
        sample(key, by_level, schedule, shape, sampler, num, **common, **options)
    return len(calls)
