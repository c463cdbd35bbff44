"""A small ablation with invented results, which several tests look at."""

import itertools

import numpy as np

from diffax.report.spec import Metric, Spec

VARIANCE = Metric("var", "Var(VLB)", "bits²", scale="log")
BPD = Metric("bpd", "Bits per dimension", "bits/dim", digits=3)
PARTS = [Metric(k, k.title(), "bits/dim", main=False, digits=4) for k in ("prior", "rest")]
ARMS, SEEDS = ["linear", "cosine", "learned"], [0, 1, 2]
SPEC = Spec(
    "Learned against fixed",
    "Is it worth it?",
    "cosine",
    [VARIANCE, BPD, *PARTS],
    command="make ablation",
    config={"training": {"num_steps": 500}, "data": {"name": "digits"}},
    focus="learned",
    labels={"linear": "linear beta"},
    method="All else equal.\n\nSame noise.",
    environment={"device": "two cores"},
)


def make_results(arms=ARMS, seeds=SEEDS):
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 17)
    results = []
    for seed, arm in itertools.product(seeds, arms):
        level = {"linear": 6.0, "cosine": 2.0}.get(arm, 0.5)
        prior, rest = 0.001, 1.8 + rng.normal(0, 0.01)
        curves = {
            "schedule": {"t": t, "log_snr": 10 - 20 * t + 0.1 * seed * t * (1 - t)},
            "loss_by_log_snr": {"log_snr": [-5.0, 0.0, 5.0], "loss": [level, 0.5 * level, None]},
            "training_loss": {"step": np.arange(900), "loss": np.exp(-np.arange(900) / 200)},
        }
        if arm == "learned":
            curves["schedule"]["log_snr_before"] = 10 - 20 * t
        results.append(
            {
                "arm": arm,
                "seed": seed,
                "seconds": 20.0,
                "metrics": {
                    "var": level * np.exp(rng.normal(0, 0.1)),
                    "bpd": prior + rest,
                    "prior": prior,
                    "rest": rest,
                },
                "curves": curves,
                "samples": rng.integers(0, 256, (7, 4, 4), np.uint8),
            }
        )
    return results


def values(results, arm, key):
    return [r["metrics"][key] for r in results if r["arm"] == arm]


def make_design(axes, value, seeds=SEEDS, metrics=(BPD,), without=(), trained_by=None):
    """The spec and the results of a design: `value(seed, levels)` gives a cell's metrics.

    Args:
      axes: key -> levels; the first of each is the baseline's.
      without: combinations, tuples of levels, that no arm has.
      trained_by: the axes that decide a training; None: results don't tell.
    """
    design = {
        ",".join(f"{k}={v}" for k, v in zip(axes, levels)): dict(zip(axes, levels))
        for levels in itertools.product(*axes.values())
        if levels not in without
    }
    results = []
    for seed, (arm, levels) in itertools.product(seeds, design.items()):
        result = {"arm": arm, "seed": seed, "metrics": value(seed, levels)}
        if trained_by is not None:
            name = ",".join(levels[axis] for axis in trained_by)
            result["training"] = {"directory": f"trainings/{name}/seed{seed}", "seconds": 1.0}
        results.append(result)
    return Spec("T", "Q?", next(iter(design)), list(metrics), design=design), results
