"""DPM-Solver++ with 25 steps matches 50 of the standard sampler; 20 are visibly worse for DDPM.

Networks of the cosine schedule with T = 1000 as published. The standard sampler is taken to be
DDIM, and DDPM as well. Measured: ratios of Fréchet distances of the same network. Supported:
dpmpp_2m in 25 steps has at most 1.1 times the distance of each in 50, and DDPM in 20 steps more
than 1.1 times its own in 1000. Contradicted: one of these is not so.
"""

from laboratory import published
from verdicts import AS_GOOD, column, judge, ratio_of

CLAIM = (
    "DPM-Solver++ with 25 steps matches 50 steps of the standard sampler, 20 is visibly worse for"
    " DDPM."
)
NETWORKS = {"cosine": published("cosine")}
SAMPLERS = (("dpmpp_2m", 25), ("ddim", 50), ("ddpm", 50), ("ddpm", 20), ("ddpm", 1000))
COLUMNS = {f"{name}-{steps}": f"distance, {name} {steps} steps" for name, steps in SAMPLERS}


def measure(lab, trained, seed):
    return {
        f"{name}-{steps}": lab.distance(trained, seed, sampler=name, num_steps=steps)
        for name, steps in SAMPLERS
    }


def verdict(raw):
    found = {key: column(raw, "cosine", key) for key in COLUMNS}
    return judge(
        *(
            ratio_of(
                f"distance, dpmpp_2m 25 over {other} 50",
                found["dpmpp_2m-25"],
                found[f"{other}-50"],
                high=AS_GOOD,
                inside=f"25 steps of DPM-Solver++ match 50 of {other.upper()}",
                outside=f"25 steps of DPM-Solver++ do not match 50 of {other.upper()}",
            )
            for other in ("ddim", "ddpm")
        ),
        ratio_of(
            "distance, ddpm 20 over ddpm 1000",
            found["ddpm-20"],
            found["ddpm-1000"],
            low=AS_GOOD,
            inside="20 steps of DDPM are visibly worse than 1000",
            outside="20 steps of DDPM are within a tenth of 1000, or better",
        ),
    )
