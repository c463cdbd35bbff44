"""Grids that are found for a run, and kept with it.

    workdir/grids/METHOD-SAMPLER-STEPS.json         levels, errors, cost, and what they were found
                                                    under
    workdir/grids/METHOD-SAMPLER-STEPS-HASH.json    the same, where that file is of other sampling
                                                    options; HASH is of its own

A config names one by its method, as sampling.grid="dp"; the solver "learned" has one of its own
for each number of steps. It is of use to the very network, schedule and guidance that it was found
for: of others it is refused.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import process
from diffax.config import conditions
from diffax.files import content_hash, read_json, write_json
from diffax.places import make_folder
from diffax.samplers import Level, grid_search
from diffax.samplers.base import standard_normal
from diffax.training import codecs
from diffax.training.workdir import Run

_LOG = logging.getLogger("diffax")
FOLDER = "grids"
# A network's gradient costs far more than an exact denoiser's: fewer starts and iterations do.
NUM_STARTS, ITERATIONS, BEGINS = 32, 60, 1
_STARTS = 0x67726964  # folded into the seed's key: other noise than that of samples
# Keys of config.sampling that change neither a network's predictions nor a solver's steps.
_NO_MATTER = ("num_samples", "grid")
_KEYS = ("fingerprint", "sampling", "t", "log_snrs", "coefficients")  # that are read


def method_of(config: ConfigDict) -> str | None:
    """How the grid that a config samples on is found; None if it is a fixed one."""
    section = config.sampling
    if section.sampler == "learned":
        return None if section.coefficients else "learned"
    return section.grid if section.grid in grid_search.METHODS else None


def find(
    run: Run,
    method: str,
    steps: Sequence[int],
    num: int = NUM_STARTS,
    seed: int = 0,
    iterations: int = ITERATIONS,
    begins: int = BEGINS,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Finds the grids of some numbers of steps for a run, sampled as its config says; writes each
    to the workdir as soon as it is found.

    The starts have the conditions that scored samples have: captions and controls of the held-out
    examples in turn with the classes of the same examples, or else the classes in turn.

    Args:
      method: of `grid_search`; num: starts; seed: of their noise.
      iterations, begins: see `grid_search.search`, whose own are larger.
      settings: other arguments of `grid_search.search`.

    Returns:
      What is kept of each: "log_snrs", "coefficients", "error", "held_out", "fixed", "calls" and
      "seconds" of its own, "shared": those of all together.

    Raises:
      ValueError: the run's method has no predictor, or what `grid_search.search` refuses.
    """
    inside = codecs.method_inside(run.config, run.dataset)
    if inside.edit is None:
        raise ValueError(
            "a grid of noise levels is found for diffusion models alone, and method.name is"
            f" {run.config.method.name!r}"
        )
    numbers = np.arange(num)
    key = jax.random.fold_in(jax.random.key(seed), _STARTS)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    conditional = run.config.model.class_conditional
    follow = conditions.follow_examples(run.config)
    held_out = config_lib.load_data(run.config).eval if follow else None
    cond = {}
    if conditional:
        cond["label"] = conditions.sample_labels(num, run.dataset.num_classes, held_out)
    if config_lib.control_names(run.config):
        cond["control"] = conditions.control_table(run.config, held_out, num)[numbers]
    if run.config.condition.text:
        captions = conditions.captions_in_turn(held_out, num)
        cond["text"] = conditions.text_table(run.config, captions)[numbers]

    kept = []

    def keep(num_steps: int, search: grid_search.Search) -> None:
        found = search.found[num_steps]
        config = config_lib.changed(run.config, {"sampling.num_steps": num_steps})
        entry = {
            **_subject(run, config),
            "starts": num,
            "seed": seed,
            "t": np.asarray(found.levels.t),
            "log_snrs": np.asarray(found.levels.log_snr),
            "coefficients": found.coefficients,
            "error": found.error,
            "held_out": found.held_out,
            "fixed": found.fixed,
            "calls": found.calls,
            "seconds": found.seconds,
            "shared": {"calls": search.calls, "seconds": search.seconds},
        }
        path = _path(run, config, method)
        make_folder(path.parent)
        write_json(path, jax.tree.map(_plain, entry))
        kept.append(read_json(path))

    def searched(keys, predict, schedule, shape, num_steps, grid, sampler, **options):
        start = standard_normal(process.split_key(keys)[0], shape)
        asked = (predict, schedule, start, steps, sampler, method)
        effort = {"iterations": iterations, "begins": begins, "on_found": keep}
        return grid_search.search(*asked, **effort, **settings, **options)

    inside.edit(run.state, keys, cond, searched)
    return kept


def options_of(run: Run, config: ConfigDict) -> dict[str, Any]:
    """The options of `samplers.sample` for the grid that a config names, as kept with the run.

    Raises:
      ValueError: there is none of that sampler and number of steps, or it was found for another
        network, schedule or guidance.
    """
    method = method_of(config)
    if method is None:
        return {}
    path = _path(run, config, method)
    section = config.sampling
    again = (
        f"diffax grid --workdir={shlex.quote(str(run.workdir))} --method={method}"
        f" --steps={section.num_steps} --sampler={section.sampler} finds one"
    )
    if not path.exists():
        other = _first_path(run, config, method)
        if other.exists():
            key, (own, asked) = next(iter(_differences(other, config).items()))
            raise ValueError(
                f"grid={method!r}: {other} was found with {key}={own!r}, and {asked!r} is asked"
                f" for; {again}, with the same options"
            )
        raise ValueError(
            f"grid={method!r}: there is none of {section.num_steps} steps of {section.sampler} in"
            f" {path.parent}; {again}"
        )
    entry = read_json(path, _KEYS)
    if entry["fingerprint"] != _subject(run, config)["fingerprint"]:
        raise ValueError(
            f"grid={method!r}: {path} was found for another checkpoint or schedule; {again}"
        )
    levels = Level(*(jnp.asarray(entry[name]) for name in ("t", "log_snrs")))
    if entry["coefficients"] is None:
        return {"grid": levels}
    return {"grid": levels, "coefficients": tuple(np.ravel(entry["coefficients"]).tolist())}


def ensure(run: Run) -> dict[str, Any] | None:
    """What is kept of the grid that the run's config names, found now if it is missing, which the
    log says with its cost; None of a fixed grid."""
    method = method_of(run.config)
    if method is None:
        return None
    path = _path(run, run.config, method)
    if not path.exists():
        (found,) = find(run, method, [run.config.sampling.num_steps])
        cost = [found[name] + found["shared"][name] for name in ("calls", "seconds")]
        words = "%s: found in %.0f s, by %d network calls for each of %d starts"
        _LOG.info(words, path.name, cost[1], cost[0], found["starts"])
    options_of(run, run.config)
    return read_json(path)


def _path(run: Run, config: ConfigDict, method: str) -> Path:
    """Of the grid for a config, which may not be there yet. Each combination of sampling options
    has a file of its own; the first that is found has the plain name."""
    path = _first_path(run, config, method)
    if path.exists() and _differences(path, config):
        return path.with_name(f"{path.stem}-{content_hash(_options(config))[:8]}.json")
    return path


def _differences(path: Path, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Key -> what the grid in a file was found with, and what a config has, where they differ."""
    own, asked = read_json(path, _KEYS)["sampling"], _options(config)
    return {k: (own.get(k), asked[k]) for k in asked if own.get(k) != asked[k]}


def _options(config: ConfigDict) -> dict[str, Any]:
    """The sampling options that a grid depends on, as JSON has them."""
    section = config.sampling.to_dict()
    return json.loads(json.dumps({k: v for k, v in section.items() if k not in _NO_MATTER}))


def _first_path(run: Run, config: ConfigDict, method: str) -> Path:
    if run.workdir is None:
        raise ValueError(f"grid={method!r}: it is kept in a workdir, and this run has none")
    name = f"{method}-{config.sampling.sampler}-{config.sampling.num_steps}.json"
    return run.workdir / FOLDER / name


def _subject(run: Run, config: ConfigDict) -> dict[str, Any]:
    """What a grid is found for."""
    state = run.state
    params = getattr(state, "ema_params", state.params)
    leaves = jax.tree.leaves(jax.device_get((params, getattr(state, "schedule", ()))))
    return {"fingerprint": content_hash(*leaves), "sampling": _options(config)}


def _plain(leaf: Any) -> Any:
    return leaf.tolist() if isinstance(leaf, (np.ndarray, np.generic)) else leaf
