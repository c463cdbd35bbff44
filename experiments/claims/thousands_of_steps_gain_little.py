"""T of 2000 to 5000 improves quality marginally at proportional cost.

The cosine schedule with its betas for T = 1000, 2000 and 5000, each trained with its own T and
sampled by the ancestral sampler in all its steps. Measured: the ratio of Fréchet distances to that
of T = 1000, and that of the processor times of drawing, compiled before. Supported: both distances
are 0.9 to 1 times that of T = 1000, and the times 1.8 to 2.2 and 4.5 to 5.5 times. Contradicted:
one is not so.
"""

import time

from laboratory import published
from verdicts import column, judge, ratio_of

from diffax import Generator

CLAIM = "T of 2000 to 5000 improves quality marginally at proportional cost."
NETWORKS = {f"T = {steps}": published("cosine", steps) for steps in (1000, 2000, 5000)}
COLUMNS = {"frechet": "distance, DDPM all steps", "seconds": "processor seconds, 100 samples"}
DRAWN = 100


def measure(lab, trained, seed):
    steps = trained.run.config.schedule.num_steps
    generate = Generator(trained.run, DRAWN, num_devices=1)
    generate(DRAWN, seed, sampler="ddpm", num_steps=steps)
    begin = time.process_time()
    generate(DRAWN, seed + 1, sampler="ddpm", num_steps=steps)
    seconds = time.process_time() - begin
    return {
        "frechet": lab.distance(trained, seed, sampler="ddpm", num_steps=steps),
        "seconds": seconds,
    }


def verdict(raw):
    def over(steps, key):
        return column(raw, f"T = {steps}", key), column(raw, "T = 1000", key)

    return judge(
        *(
            ratio_of(
                f"distance, T = {steps} over T = 1000",
                *over(steps, "frechet"),
                0.9,
                1.0,
                inside=f"T = {steps} is better, by less than a tenth",
                below=f"T = {steps} is better by more than a tenth",
                above=f"T = {steps} is worse",
            )
            for steps in (2000, 5000)
        ),
        *(
            ratio_of(
                f"processor time, T = {steps} over T = 1000",
                *over(steps, "seconds"),
                0.9 * steps / 1000,
                1.1 * steps / 1000,
                inside=f"T = {steps} costs in proportion",
                below=f"T = {steps} costs less than in proportion",
                above=f"T = {steps} costs more than in proportion",
            )
            for steps in (2000, 5000)
        ),
    )
