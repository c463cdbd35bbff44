"""A schedule chosen for the teacher is the best for the student too.

Teachers of the linear, cosine and sigmoid schedules in continuous time between equal ends, log-SNR
10 and -10, and of each a progressive student on the same schedule, distilled from 16 steps to 4
(`contestants`). Measured: Fréchet distances, the teachers' in 100 steps of DDIM, the students' in
4. The schedule of the teachers with the lowest mean distance is chosen. Supported: its students
have lower distances than those of both others. Contradicted: they have higher ones than some.

As measured, the choice itself is within noise: the teachers of sigmoid and of cosine have 6.45 and
6.52. Their students differ by more, 8.8 and 9.4, and in favour of the chosen schedule.
"""

import numpy as np
from contestants import diffusion, distance, progressive
from verdicts import column, judge, ratio_of

CLAIM = "A schedule chosen for the teacher is the best for the student too."
SCHEDULES = ("linear", "cosine", "sigmoid")
TEACHERS = {name: diffusion(schedule__name=name) for name in SCHEDULES}
_TO_FOUR = {
    "method__last_steps": 4,
    "training__num_steps": 800,
    "sampling__num_steps": 4,
}
NETWORKS = {
    **{f"{name}, teacher": teacher for name, teacher in TEACHERS.items()},
    **{f"{name}, student": progressive(t, **_TO_FOUR) for name, t in TEACHERS.items()},
}
COLUMNS = {"frechet": "distance"}


def measure(lab, trained, seed):
    calls = 100 if trained.run.config.method.name == "diffusion" else 4
    return {"frechet": distance(lab, trained, seed, calls)}


def verdict(raw):
    def of(name, kind):
        return column(raw, f"{name}, {kind}", "frechet")

    chosen = min(SCHEDULES, key=lambda name: np.mean(np.log(of(name, "teacher"))))
    return judge(
        *(
            ratio_of(
                f"students' distance, {chosen} (the teachers' best) over {other}",
                of(chosen, "student"),
                of(other, "student"),
                high=1.0,
                inside=f"students of {chosen}, the teachers' best, are better than of {other}",
                outside=f"students of {chosen}, the teachers' best, are worse than of {other}",
            )
            for other in SCHEDULES
            if other != chosen
        )
    )
