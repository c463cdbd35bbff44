"""A learned grid at 10 calls is as good as a uniform one at 20.

Networks of the cosine schedule in continuous time, log-SNR from 10 to -10. The levels and the
coefficients of a multistep solver are learned together, with the network's own samples of many
steps as the teacher (`diffax grid --method=learned`; Frankel 2025), and the levels of dpmpp_2m
alone (`--method=gradient`; Tong 2025). Measured: ratios of Fréchet distances of the same network.
Supported: both in 10 calls have at most 1.1 times the distance of dpmpp_2m in 20, uniform in t.
Contradicted: one has more.
"""

from laboratory import between_equal_ends
from verdicts import AS_GOOD, column, judge, ratio_of

from diffax import config as config_lib
from diffax.training import grids

CLAIM = "A learned grid at 10 calls is as good as a uniform one at 20."
NETWORKS = {"cosine": between_equal_ends("cosine")}
COLUMNS = {
    "learned-10": "distance, 10 calls, levels and coefficients learned",
    "gradient-10": "10 calls of dpmpp_2m, levels learned",
    "uniform-10": "10 calls of dpmpp_2m, uniform",
    "uniform-20": "20 calls of dpmpp_2m, uniform",
}


def measure(lab, trained, seed):
    found = {}
    for name, sampler in (("learned", "learned"), ("gradient", "dpmpp_2m")):
        own = {"sampling.sampler": sampler, "sampling.num_steps": 10}
        grids.find(trained.run.under(config_lib.changed(trained.run.config, own)), name, [10])
        found[f"{name}-10"] = lab.distance(
            trained, seed, sampler=sampler, num_steps=10, grid=None if name == "learned" else name
        )
    for steps in (10, 20):
        found[f"uniform-{steps}"] = lab.distance(
            trained, seed, sampler="dpmpp_2m", num_steps=steps, grid="uniform"
        )
    return found


def verdict(raw):
    return judge(
        *(
            ratio_of(
                f"distance, {words}, 10 calls over uniform 20",
                column(raw, "cosine", f"{name}-10"),
                column(raw, "cosine", "uniform-20"),
                high=AS_GOOD,
                inside=f"10 calls with {words} match 20 uniform ones",
                outside=f"10 calls with {words} do not match 20 uniform ones",
            )
            for name, words in (
                ("learned", "learned levels and coefficients"),
                ("gradient", "learned levels"),
            )
        )
    )
