"""The schedule that minimises Var(VLB) is the entropy-rate schedule.

A learned schedule follows the variance of the bound's estimate (Kingma 2021); the entropy-rate one
spends equal |eps - eps_hat|^2 per unit of t (Stancevic 2025). For the exact minimiser the second
moment of |eps - eps_hat|^2 takes the place of its mean. Networks with a learned schedule, log-SNR
from 10 to -10, trained on the bound; both rates are estimated of the same network, on its held-out
data. Measured: the largest distance between the shares of t that two schedules spend above a
log-SNR, and Var(VLB) of the network along either schedule. Supported: the shares of the learned and
of the entropy-rate schedule are nowhere further apart than 0.05, and the variance along the latter
is at most 1.1 times that along the former. Contradicted: one of these is not so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from laboratory import between_equal_ends
from verdicts import AS_GOOD, column, difference_of, judge, ratio_of

from diffax import evaluation, rates, schedules, training

CLAIM = "The schedule that minimises Var(VLB) is the entropy-rate schedule."
NETWORKS = {"learned": between_equal_ends("learned", objective__weighting="elbo")}
APART = 0.05
COLUMNS = {
    "apart_entropy": "largest distance to the entropy-rate schedule",
    "apart_second_moment": "to that of the second moment",
    "apart_line": "to log-SNR-linear",
    "variance": "Var(VLB), (bits/dim)², learned",
    "variance_entropy": "along the entropy-rate schedule",
    "variance_second_moment": "along that of the second moment",
}


def _variance(trained, schedule, seed):
    run = trained.run._replace(state=trained.run.state.replace(schedule=schedule))
    found = evaluation.compare(run, trained.dataset, seed, ["bpd_own"])
    return found["bpd_own"]["vlb_variance"]


def measure(lab, trained, seed):
    run, x0 = trained.run, jnp.asarray(trained.dataset.eval.array())
    learned = run.state.schedule
    predict = training.predictor(run.model, run.state.ema_params)
    first, last = schedules.concrete_ends(learned)
    levels = np.linspace(last, first, 401)
    share = np.asarray(learned.inverse_log_snr(jnp.asarray(levels)))
    others = {"line": schedules.linear_logsnr(first, last)}
    for name in ("entropy", "second_moment"):
        rate = getattr(rates, name)(predict, learned, x0, jax.random.key(seed))
        others[name] = schedules.from_rate(rate, first, last)
    found = {"variance": _variance(trained, learned, seed)}
    for name, other in others.items():
        own = np.asarray(other.inverse_log_snr(jnp.asarray(levels)))
        found[f"apart_{name}"] = float(np.max(np.abs(own - share)))
        if name != "line":
            found[f"variance_{name}"] = _variance(trained, other, seed)
    return found


def verdict(raw):
    apart = column(raw, "learned", "apart_entropy")
    return judge(
        difference_of(
            "largest distance of the shares of t",
            apart,
            0 * apart,
            high=APART,
            inside="the two schedules are one but for 0.05 of t",
            outside="the two schedules are further apart than 0.05 of t",
        ),
        ratio_of(
            "Var(VLB), along the entropy-rate schedule over along the learned",
            column(raw, "learned", "variance_entropy"),
            column(raw, "learned", "variance"),
            high=AS_GOOD,
            inside="the entropy-rate schedule has as low a variance",
            outside="the entropy-rate schedule has a larger variance",
        ),
    )
