"""Which levels should a solver visit? Fixed grids and grids found for it, with an exact denoiser.

    python experiments/grids.py                       # two CPU cores, a few minutes

The data are nine Gaussians of deviation 0.08 at the points of {-1, 0, 1}^2, of which the best
denoiser is known. A grid's distance is the root mean square, over 4,000 starts that no search has
seen, of the distance between what the solver makes of a start and where the exact probability flow
takes it. The schedule trained with has log-SNR from 10 to -10, linear in t. Two tables come out:
the solvers' default grids under four schedules, of a Gaussian too; and the grids that are found.

Each row is kept as it is measured, in --workdir: the same command goes on where it was interrupted.
What was found is in results/grids.md.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import runtime, samplers, schedules
from diffax.data.mixture import GaussianMixture
from diffax.files import read_json, write_json
from diffax.samplers import grid_search

ROOT = Path(__file__).resolve().parent.parent
LINE = schedules.linear_logsnr(10.0, -10.0)
COSINE = schedules.with_endpoints(schedules.cosine(), 10.0, -10.0)
SCHEDULES = {
    "cosine": schedules.cosine(),
    "sigmoid": schedules.sigmoid(),
    "linear": schedules.linear(),
    "linear_logsnr": LINE,
}
# name -> sampler, options, calls of a step, and calls besides
SOLVERS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "ddim": ("ddim", {}, 1, 0),
    "euler": ("euler", {}, 1, 0),
    "heun": ("heun", {}, 2, -1),
    "plms": ("plms", {}, 1, 1),
    "dpm_solver, order 2": ("dpm_solver", {"order": 2}, 2, -1),
    "dpm_solver, order 3": ("dpm_solver", {"order": 3}, 3, -2),
    "dpmpp_2s": ("dpmpp_2s", {}, 2, -1),
    "dpmpp_2m": ("dpmpp_2m", {}, 1, 0),
    "unipc": ("unipc", {}, 1, 0),
}
SEARCHED = ("ddim", "dpmpp_2m", "heun", "unipc")
COUNTS = (5, 8, 10, 20)
FIXED = ("uniform", "uniform on cosine", "quadratic", "logsnr", "karras", "angle")
METHODS = ("dp", "gradient", "ays", "learned")


def mixtures() -> dict[str, GaussianMixture]:
    points = np.array([[a, b] for a in (-1, 0, 1) for b in (-1, 0, 1)], np.float32)
    nine = GaussianMixture(
        np.full(9, 1 / 9, np.float32),
        points,
        np.tile(0.08**2 * np.eye(2, dtype=np.float32), (9, 1, 1)),
    )
    mean, covariance = np.array([1.0, 0.2]), np.array([[0.25, 0.1], [0.1, 0.5]])
    return {"nine": nine, "one": GaussianMixture.gaussian(mean, covariance)}


DATA = mixtures()


@functools.partial(jax.jit, static_argnames=("data", "sampler", "options"))
def drawn(
    levels: samplers.Level, x: jax.Array, data: str, sampler: str, options: tuple = ()
) -> jax.Array:
    predict = diffax.by_log_snr(DATA[data].eps)
    return diffax.sample(
        jax.random.key(0), predict, LINE, x.shape, sampler, grid=levels, x_init=x, **dict(options)
    )


def distance(found: jax.Array, exact: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.sum((found - exact) ** 2, axis=1))))


def steps_of(solver: str, calls: int) -> int:
    _, _, per_step, besides = SOLVERS[solver]
    return (calls - besides) // per_step


@functools.cache
def exact_flow(data: str, schedule: str) -> tuple[jax.Array, jax.Array]:
    """4,000 starts, and where the flow takes them."""
    x = jax.random.normal(jax.random.key(8), (4000, 2))
    levels = samplers.visited_levels(SCHEDULES[schedule], 4000, "logsnr")
    return x, drawn(levels, x, data, "unipc")


# --- rows -----------------------------------------------------------------------------------------


def defaults_of(solver: str) -> dict[str, dict[str, float]]:
    """Calls -> grid -> the geometric mean of its distance over schedules and data."""
    sampler, options, *_ = SOLVERS[solver]
    found: dict[str, dict[str, float]] = {}
    for calls in (10, 20):
        for grid in ("uniform", "angle", "quadratic", "logsnr", "karras"):
            logs = []
            for schedule in SCHEDULES:
                for data in DATA:
                    x, exact = exact_flow(data, schedule)
                    steps = steps_of(solver, calls)
                    levels = samplers.visited_levels(SCHEDULES[schedule], steps, grid)
                    result = drawn(levels, x, data, sampler, tuple(options.items()))
                    logs.append(np.log(distance(result, exact)))
            found.setdefault(str(calls), {})[grid] = float(np.exp(np.mean(logs)))
    return found


def fixed_of(solver: str) -> dict[str, dict[str, float]]:
    """Calls -> grid -> its distance."""
    sampler, options, *_ = SOLVERS[solver]
    x, exact = exact_flow("nine", "linear_logsnr")
    found: dict[str, dict[str, float]] = {}
    for calls in COUNTS:
        for grid in FIXED:
            name, _, on = grid.partition(" on ")
            schedule = COSINE if on else LINE
            levels = samplers.visited_levels(schedule, steps_of(solver, calls), name)
            result = drawn(levels, x, "nine", sampler, tuple(options.items()))
            found.setdefault(str(calls), {})[grid] = distance(result, exact)
    return found


def searched_of(solver: str, method: str) -> dict[str, Any]:
    """Calls -> distance, errors, cost and levels of what a method finds."""
    sampler, options, *_ = SOLVERS[solver]
    x, exact = exact_flow("nine", "linear_logsnr")
    learns = method == "learned"
    steps = {calls: steps_of(solver, calls) for calls in COUNTS}
    searched = grid_search.search(
        diffax.by_log_snr(DATA["nine"].eps), LINE, jax.random.normal(jax.random.key(7), (1024, 2)),
        sorted(set(steps.values())), "learned" if learns else sampler, method, **options,
    )  # fmt: skip
    found: dict[str, Any] = {"calls": searched.calls, "seconds": searched.seconds}
    for calls, num in steps.items():
        one = searched.found[num]
        how = (sampler, tuple(options.items()))
        if learns:
            how = ("learned", (("coefficients", tuple(map(float, one.coefficients.ravel()))),))
        found[str(calls)] = {
            "distance": distance(drawn(one.levels, x, "nine", *how), exact),
            "error": one.error,
            "held_out": one.held_out,
            "calls": one.calls,
            "seconds": one.seconds,
            "log_snrs": np.asarray(one.levels.log_snr).tolist(),
        }
    return found


# --- tables ---------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def defaults_table(rows: dict[str, Any]) -> str:
    grids = list(next(iter(rows.values()))["20"])
    head = ["solver", "default", *(f"{grid}, {n}" for n in (10, 20) for grid in grids)]
    body = []
    for solver, found in rows.items():
        sampler, options, *_ = SOLVERS[solver]
        cells = [f"{found[str(n)][grid]:.3f}" for n in (10, 20) for grid in grids]
        body.append([solver, samplers.get(sampler, **options).grid, *cells])
    return table([head, *body])


def searched_table(fixed: dict[str, Any], searched: dict[str, dict[str, Any]]) -> str:
    methods = [m for m in METHODS if any(m in found for found in searched.values())]
    body = [["solver", "calls", *FIXED, *methods, "least found / least fixed"]]
    for solver, found in searched.items():
        for calls in map(str, COUNTS):
            least = min(fixed[solver][calls].values())
            mine = {m: found[m][calls]["distance"] for m in methods if m in found}
            cells = [f"{fixed[solver][calls][grid]:.3f}" for grid in FIXED]
            cells += [f"{mine[m]:.4f}" if m in mine else "" for m in methods]
            body.append([solver, calls, *cells, f"{min(mine.values()) / least:.2f}"])
    return table(body)


def cost_table(searched: dict[str, dict[str, Any]]) -> str:
    body = [["solver", "method", "calls for all", "s", *(f"{n}: calls, s" for n in COUNTS)]]
    for solver, found in searched.items():
        for method, one in found.items():
            each = [f"{one[str(n)]['calls']:,}, {one[str(n)]['seconds']:.0f}" for n in COUNTS]
            body.append([solver, method, f"{one['calls']:,}", f"{one['seconds']:.0f}", *each])
    return table(body)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "grids")
    args = parser.parse_args(argv)
    runtime.start()

    def kept(name: str, measure: Any) -> Any:
        path = args.workdir / f"{name}.json"
        if not path.exists():
            began = time.monotonic()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, measure())
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        return read_json(path)

    defaults = {s: kept(f"defaults {s}", lambda s=s: defaults_of(s)) for s in SOLVERS}
    fixed = {s: kept(f"fixed {s}", lambda s=s: fixed_of(s)) for s in SEARCHED}
    searched = {
        s: {
            m: kept(f"{m} {s}", lambda s=s, m=m: searched_of(s, m))
            for m in METHODS
            if m != "learned" or s == "dpmpp_2m"
        }
        for s in SEARCHED
    }
    tables = {
        "Default grids": defaults_table(defaults),
        "Grids that are found": searched_table(fixed, searched),
        "What they cost": cost_table(searched),
    }
    text = "\n\n".join(f"## {title}\n\n{rows}" for title, rows in tables.items()) + "\n"
    (args.workdir / "grids.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
