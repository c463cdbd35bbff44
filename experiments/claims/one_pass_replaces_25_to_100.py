"""A GAN samples in one pass where diffusion takes 25 to 100.

A GAN and diffusion of cosine's schedule, of equal training compute (`contestants`). Measured: the
Fréchet distance of diffusion in 10, 25 and 100 steps of DDIM and of the GAN in one pass, and the
processor time of their samples, compiled before. Supported: 25 steps have at most 1.1 times the
distance of 100, and 10 have more; and a sample of the GAN costs less by 25 times, and by 100, to
within a factor of 2. Contradicted: one is not so. That the GAN's samples are as good is no part of
this claim: see its distance in the table.

As measured, a call of diffusion costs less than a pass of the GAN, whose network is another one:
100 calls cost 43 passes.
"""

from contestants import diffusion, distance, gan, seconds
from verdicts import AS_GOOD, column, judge, ratio_of

CLAIM = "A GAN samples in one pass where diffusion takes 25 to 100."
NETWORKS = {"diffusion": diffusion(), "GAN": gan()}
COUNTS = {"diffusion": (10, 25, 100), "GAN": (1,)}
COLUMNS = {
    **{f"frechet-{n}": f"distance, {n} call{'s' * (n > 1)}" for n in (1, 10, 25, 100)},
    **{
        f"seconds-{n}": f"processor seconds of 1,000 samples, {n} call{'s' * (n > 1)}"
        for n in (1, 25, 100)
    },
}


def measure(lab, trained, seed):
    is_gan = trained.run.config.method.name == "gan"
    counts = COUNTS["GAN" if is_gan else "diffusion"]
    drawn = 50_000 if is_gan else 4000
    return {
        **{f"frechet-{n}": distance(lab, trained, seed, n) for n in counts},
        **{f"seconds-{n}": seconds(trained, seed, n, drawn) for n in counts if n != 10},
    }


def verdict(raw):
    best = column(raw, "diffusion", "frechet-100")
    return judge(
        ratio_of(
            "distance of diffusion, 25 calls over 100",
            column(raw, "diffusion", "frechet-25"),
            best,
            high=AS_GOOD,
            inside="25 calls of diffusion are as good as 100",
            outside="25 calls of diffusion are not as good as 100",
        ),
        ratio_of(
            "distance of diffusion, 10 calls over 100",
            column(raw, "diffusion", "frechet-10"),
            best,
            low=AS_GOOD,
            inside="10 calls are not",
            outside="10 calls are as good as 100 too",
        ),
        *(
            ratio_of(
                f"processor time, {calls} calls of diffusion over a pass of the GAN",
                column(raw, "diffusion", f"seconds-{calls}"),
                column(raw, "GAN", "seconds-1"),
                calls / 2,
                calls * 2,
                inside=f"{calls} calls cost about {calls} times a pass of the GAN",
                below=f"{calls} calls cost less than {calls // 2} times a pass of the GAN",
                above=f"{calls} calls cost more than {calls * 2} times a pass of the GAN",
            )
            for calls in (25, 100)
        ),
    )
