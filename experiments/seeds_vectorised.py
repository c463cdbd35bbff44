"""Are several seeds faster as one vectorised program, or one after the other?

    taskset -c 0 python experiments/seeds_vectorised.py                   # on one core, as a worker
    taskset -c 0 python experiments/seeds_vectorised.py --networks unet --seeds 2 --plain

An ablation trains the same network with several seeds. `training.train_together` makes one program
of them, by `jax.vmap`; otherwise the laboratory spreads them over processes, each with a core or a
device. The steps of both are timed in turn: processor time of one core to the step and seed. What
was found is in results/seeds_vectorised.md, and in diffax/ablation/measure.py what follows.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, training
from diffax.distributed import LOCAL, SINGLE, RunLayout, VmappedRuns
from diffax.models import platform


def mlp(width: int) -> ConfigDict:
    """An MLP on points in the plane; of width 64, that of configs/mixture2d.py."""
    config = config_lib.default_config()
    config.data.name = "mixture2d"
    config.model.name = "mlp"
    config.model.mlp.width = width
    config.training.batch_size = 256
    return config


def unet() -> ConfigDict:
    """The U-Net of configs/ablation_digits.py."""
    config = config_lib.default_config()
    config.data.name = "digits"
    config.model.unet.update(
        channels=16,
        channel_mults=(1, 2),
        num_blocks=1,
        attention_resolutions=(4,),
        head_width=32,
    )
    config.training.batch_size = 64
    return config


CONFIGS: dict[str, Callable[[], ConfigDict]] = {
    **{f"mlp{width}": functools.partial(mlp, width) for width in (32, 64, 128, 256)},
    "unet": unet,
}


def steps(config: ConfigDict, layout: RunLayout) -> Iterator[float]:
    """The seconds that compiling takes, then the processor time to the seed of step after step."""
    dataset = data.load(config.data)
    info = training.DatasetInfo.of(dataset)
    method = config_lib.build_method(config, info)
    make = layout.make_step(lambda sharding: functools.partial(method.step, sharding=sharding))
    create = jax.jit(method.init, compiler_options=platform.run_once())
    state = layout.stack([create(jax.random.key(seed)) for seed in range(layout.count)])
    each = [data.batches(dataset.train, config.training.batch_size, s) for s in range(layout.count)]
    batch: dict[str, Any] = jax.device_put({"x": next(layout.batches(each))["x"], "label": None})
    start = time.perf_counter()
    step = jax.jit(make(LOCAL), donate_argnums=0).lower(state, batch).compile()
    yield time.perf_counter() - start
    while True:
        start = time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        yield (time.process_time() - start) / layout.count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 4, 8], help="(default 2 4 8)")
    parser.add_argument("--repeats", type=int, default=40, help="steps timed (default 40)")
    parser.add_argument(
        "--plain", action="store_true", help="without the convolutions that are made for a CPU"
    )
    args = parser.parse_args()
    if args.plain:
        platform.alone = lambda: False
    print("| network | seeds | alone, ms | vectorised, ms | ratio | compiling, s |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in args.networks:
        for seeds in args.seeds:
            both = [steps(CONFIGS[name](), layout) for layout in (SINGLE, VmappedRuns(seeds))]
            compiling = [next(each) for each in both]
            times = np.array([[next(each) for each in both] for _ in range(args.repeats + 2)])
            # Other work on the machine only adds.
            alone, together = 1e3 * np.min(times[2:], axis=0)
            row = f"| {name} | {seeds} | {alone:.2f} | {together:.2f} | {together / alone:.2f} |"
            print(f"{row} {compiling[0]:.0f}, {compiling[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
