"""What the tests of `sample` share."""

import jax
import schedule_cases

import diffax
from diffax.process import by_log_snr

KEY = jax.random.key(0)
CASES = {**schedule_cases.CONTINUOUS, **schedule_cases.DISCRETE}
HALF = by_log_snr(lambda x, log_snr: 0.5 * x)  # where any predictor will do


def draw(schedule, shape=(4, 2), predict=HALF, key=KEY, x_init=None, **options):
    """`sample`, compiled, with the schedule and the start as arguments."""

    def run(key, schedule, x_init):
        return diffax.sample(key, predict, schedule, shape, x_init=x_init, **options)

    return jax.jit(run)(key, schedule, x_init)
