"""What training times by an online rate cost: steps with them and with stratified times, in turn.

    taskset -c 0 python experiments/time_sampling_cost.py

The ratio is that of the processor times of two neighbouring steps of one core: its median over the
pairs, with a 95% interval from the order statistics. What was found is in results/performance.md.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats
from seeds_vectorised import CONFIGS, steps

from diffax.distributed import SINGLE


def ratios(network: str, name: str, pairs: int) -> np.ndarray:
    """Processor time of a step with time sampler `name` over that with stratified times."""
    sides = []
    for time_sampling in (name, "stratified"):
        config = CONFIGS[network]()
        config.objective.time_sampling = time_sampling
        sides.append(steps(config, SINGLE))
        next(sides[-1])  # compiles
    found = []
    for i in range(pairs + 3):
        order = (0, 1) if i % 2 else (1, 0)
        taken = {side: next(sides[side]) for side in order}
        found.append(taken[0] / taken[1])
    return np.array(found[3:])  # the first steps touch new memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["unet", "mlp64"], choices=CONFIGS)
    parser.add_argument("--pairs", type=int, default=200)
    args = parser.parse_args()
    for network in args.networks:
        found = np.sort(ratios(network, "rate", args.pairs))
        low, high = stats.binom.ppf([0.025, 0.975], len(found), 0.5).astype(int)
        print(f"{network}: {np.median(found):.3f} ({found[low]:.3f} to {found[high]:.3f})")


if __name__ == "__main__":
    main()
