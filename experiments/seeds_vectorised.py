"""Are several seeds faster as one vectorised program, or one after the other?

    taskset -c 0 python experiments/seeds_vectorised.py      # on one core, as a worker has

An ablation trains the same network with several seeds. `jax.vmap` over the train step makes one
program of them; the laboratory spreads them over processes instead, each with a core or a device.
Both are timed on the same steps: processor time of one core to the step and seed. What was found is
in results/seeds_vectorised.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import data, training


def mixture() -> ConfigDict:
    """An MLP on points in the plane."""
    config = config_lib.default_config()
    config.data.name = "mixture2d"
    config.model.update(name="mlp", width=64)
    config.training.batch_size = 256
    return config


def digits() -> ConfigDict:
    """The U-Net of configs/ablation_digits.py."""
    config = config_lib.default_config()
    config.data.name = "digits"
    config.model.update(
        channels=16,
        channel_mults=(1, 2),
        num_blocks=1,
        attention_resolutions=(4,),
        head_width=32,
    )
    config.training.batch_size = 64
    return config


CONFIGS: dict[str, Callable[[], ConfigDict]] = {"mixture2d, MLP": mixture, "digits, U-Net": digits}


def seconds_per_step(step: Callable, state, batch, repeats: int) -> float:
    """The median processor time of a step, after two that compile and settle."""
    times = []
    for _ in range(repeats + 2):
        start = time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.process_time() - start)
    return statistics.median(times[2:])


def measure(config: ConfigDict, seeds: int, repeats: int) -> tuple[float, float]:
    """Processor time to the step and seed: (one after the other, vectorised)."""
    dataset = data.load(config.data)
    info = training.DatasetInfo.of(dataset)
    model = config_lib.build_model(config, info)
    step = training.make_train_step(config, model, info)

    def create(key: jax.Array):
        return training.create_state(config, model, info, key)

    keys = jax.random.split(jax.random.key(0), seeds)
    batch = next(data.batches(dataset.train, config.training.batch_size, 0))
    batch = {"x": jnp.asarray(batch["x"]), "label": None}
    states = list(map(jax.jit(create), keys))
    one = seconds_per_step(jax.jit(step), states[0], batch, repeats)
    each = {"x": jnp.broadcast_to(batch["x"], (seeds, *batch["x"].shape)), "label": None}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return one, seconds_per_step(jax.jit(jax.vmap(step)), stacked, each, repeats) / seeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20, help="steps timed (default 20)")
    args = parser.parse_args()
    print(f"| network | alone, ms | of {args.seeds} vectorised, ms | vectorised / alone |")
    print("|---|---:|---:|---:|")
    for name, make in CONFIGS.items():
        one, several = measure(make(), args.seeds, args.repeats)
        row = f"| {name} | {1e3 * one:.2f} | {1e3 * several:.2f} | {several / one:.2f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
