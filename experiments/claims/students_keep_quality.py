"""Progressive distillation and consistency models keep most of the quality in 1 to 4 steps.

A teacher of cosine's schedule, and of it a progressive student and a consistency model tuned from
its weights, each trained for at most as many operations again (`contestants`). Measured: Fréchet
distances, the teacher's in 100 steps of DDIM. Supported: the progressive student in 4 steps has at
most 1.2 times the teacher's distance, the consistency model in 2 steps at most 1.5 times, and each
in one step at most 1.5 times. Contradicted: one has more.
"""

from contestants import consistency, diffusion, distance, progressive
from verdicts import column, judge, ratio_of

CLAIM = "Progressive distillation and consistency models keep most of the quality in 1 to 4 steps."
TEACHER = diffusion()
NETWORKS = {
    "teacher": TEACHER,
    "progressive": progressive(TEACHER),
    "consistency": consistency(TEACHER),
}
COUNTS = {"diffusion": (1, 2, 4, 100), "progressive": (1, 2, 4), "consistency": (1, 2, 4)}
COLUMNS = {f"frechet-{n}": f"distance, {n} step{'s' * (n > 1)}" for n in (1, 2, 4, 100)}
KEPT = {("progressive", 4): 1.2, ("progressive", 1): 1.5, ("consistency", 2): 1.5,
        ("consistency", 1): 1.5}  # fmt: skip


def measure(lab, trained, seed):
    counts = COUNTS[trained.run.config.method.name]
    return {f"frechet-{n}": distance(lab, trained, seed, n) for n in counts}


def verdict(raw):
    best = column(raw, "teacher", "frechet-100")
    return judge(
        *(
            ratio_of(
                f"distance, {name} in {n} step{'s' * (n > 1)} over the teacher in 100",
                column(raw, name, f"frechet-{n}"),
                best,
                high=high,
                inside=f"{name} in {n} keeps within {high:g} times the teacher's distance",
                outside=f"{name} in {n} has more than {high:g} times the teacher's distance",
            )
            for (name, n), high in KEPT.items()
        )
    )
