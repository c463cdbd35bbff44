"""Each solver needs a grid of its own.

Networks of the cosine schedule in continuous time, log-SNR from 10 to -10. For ddim, dpmpp_2m and
unipc in 10 steps the levels are found by dynamic programming on the network (`diffax grid`). Each
solver is then run along the levels of each. Measured: of each solver the Fréchet distance along its
own levels over the geometric mean of those along the two others'. Supported: it is below 1 for all
three. Contradicted: it is above 1 for one.
"""

import functools

import jax
import numpy as np
from laboratory import between_equal_ends
from verdicts import column, judge, ratio_of

from diffax import config as config_lib
from diffax.samplers import Level
from diffax.training import grids

CLAIM = "Each solver needs a grid of its own."
NETWORKS = {"cosine": between_equal_ends("cosine")}
SOLVERS = ("ddim", "dpmpp_2m", "unipc")
COLUMNS = {
    f"{solver} on {other}": f"distance, {solver} on the levels of {other}"
    for solver in SOLVERS
    for other in SOLVERS
}


def _levels(trained, solver):
    own = {"sampling.sampler": solver, "sampling.num_steps": 10}
    (entry,) = grids.find(
        trained.run.under(config_lib.changed(trained.run.config, own)), "dp", [10]
    )
    return Level(*(np.asarray(entry[key], np.float32) for key in ("t", "log_snrs")))


def measure(lab, trained, seed):
    run, num = trained.run, lab.scale.num_samples
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(num))
    levels, found = {solver: _levels(trained, solver) for solver in SOLVERS}, {}
    for solver in SOLVERS:
        draw = jax.jit(functools.partial(run.method.sample, sampler=solver))
        for other in SOLVERS:
            samples = np.asarray(draw(run.state, keys, {}, grid=levels[other]))
            samples = samples.reshape(num, *lab.images(trained.kind).shape)
            found[f"{solver} on {other}"] = lab.frechet(trained, samples)
    return found


def verdict(raw):
    def of(solver, other):
        return column(raw, "cosine", f"{solver} on {other}")

    def others(solver):
        return np.exp(np.mean([np.log(of(solver, o)) for o in SOLVERS if o != solver], axis=0))

    return judge(
        *(
            ratio_of(
                f"distance of {solver}, own levels over those of the others",
                of(solver, solver),
                others(solver),
                high=1.0,
                inside=f"{solver} is better on its own levels",
                outside=f"{solver} is worse on its own levels",
            )
            for solver in SOLVERS
        )
    )
