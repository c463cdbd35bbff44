"""Learned reverse variance improves bits/dim and few-step sampling (Nichol & Dhariwal 2021).

The cosine schedule with T = 1000 as published, trained with the simple loss, or with the hybrid
loss, by which the network also learns the variance of the reverse steps. Measured: the bound in
bits/dim on held-out images, all T terms with one noise each, of the hybrid network with its own
variance and of the other with the fixed small and large ones (Ho 2020); and Fréchet distances by
the ancestral sampler in 25 steps. Supported: learned is lower than both fixed ones in both.
Contradicted: one of the four goes the other way.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from laboratory import published
from verdicts import column, difference_of, judge, ratio_of

from diffax import likelihood, objectives, process, schedules, training

CLAIM = "Learned reverse variance improves bits/dim and few-step sampling."
NETWORKS = {
    "fixed": published("cosine"),
    "learned": published("cosine", objective__learned_variance=True),
}
FIXED = {"fixed_small": -1.0, "fixed_large": 1.0}  # the network's second half that means it
COLUMNS = {
    f"{key} {variance}": f"{words}, {variance}"
    for key, words in (("bpd", "bits/dim"), ("ddpm", "distance, DDPM 25 steps"))
    for variance in (*FIXED, "learned")
}
MOST = 500  # images in the bound


def bits_per_dim(trained, variance, seed):
    """All T terms and the prior, bits/dim: -log p(x0) <= prior + sum over t of the step's term."""
    run, schedule = trained.run, trained.run.state.schedule
    x0 = jnp.asarray(trained.dataset.eval.array()[:MOST])
    predict = training.predictor(run.model, run.state.ema_params)
    learned = run.config.objective.learned_variance

    def term(inputs):
        t, key = inputs
        noise = jax.random.normal(key, x0.shape)
        times = jnp.full(x0.shape[:1], t)
        log_snr = schedule.log_snr(times)
        x_t = process.q_sample_at(x0, log_snr, noise)
        out = process.call_predictor(predict, x_t, times, log_snr, halves=2 if learned else 1)
        if learned:
            eps, fraction = jnp.split(out, 2, axis=-1)
        else:
            eps, fraction = out, jnp.full(x0.shape, FIXED[variance])
        levels = schedules.alpha_of(log_snr), schedules.sigma_of(log_snr)
        mean_x0 = process.convert(eps, x_t, *levels, "eps", "x0")
        return jnp.mean(objectives.variance_term(schedule, fraction, mean_x0, x0, x_t, times))

    steps = jnp.arange(schedule.num_steps)
    keys = jax.random.split(jax.random.key(seed), len(steps))
    terms = jax.jit(lambda: jax.lax.map(term, (steps, keys)))()
    nats = jnp.mean(likelihood.prior_term(x0, schedule.log_snrs[-1]))
    prior = float(nats) / (math.log(2) * math.prod(x0.shape[1:]))
    return float(np.sum(np.asarray(terms, np.float64))) + prior


def measure(lab, trained, seed):
    learned = trained.run.config.objective.learned_variance
    found = {}
    for variance in ("learned",) if learned else FIXED:
        options = dict(sampler="ddpm", num_steps=25, variance=variance)
        found[f"bpd {variance}"] = bits_per_dim(trained, variance, seed)
        found[f"ddpm {variance}"] = lab.distance(trained, seed, **options)
    return found


def verdict(raw):
    def pair(key, which):
        fixed = column(raw, "fixed", f"{key} fixed_{which}")
        return column(raw, "learned", f"{key} learned"), fixed

    return judge(
        *(
            difference_of(
                f"bits/dim, learned less fixed {which}",
                *pair("bpd", which),
                high=0.0,
                inside=f"bits/dim are lower than with the {which} fixed variance",
                outside=f"bits/dim are higher than with the {which} fixed variance",
            )
            for which in ("small", "large")
        ),
        *(
            ratio_of(
                f"distance in 25 steps, learned over fixed {which}",
                *pair("ddpm", which),
                high=1.0,
                inside=f"the distance in 25 steps is smaller than with the {which} one",
                outside=f"the distance in 25 steps is larger than with the {which} one",
            )
            for which in ("small", "large")
        ),
    )
