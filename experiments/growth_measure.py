"""The measurements of growth.py, each in a process of its own.

    python experiments/growth_measure.py KIND ARGUMENTS

KIND is one of MEASURES; the arguments and the result are JSON.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import workloads
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import distributed, runtime, training
from diffax.models import platform
from diffax.training import loop, writers
from diffax.training.checkpoint import Checkpoints

HERE = Path(__file__).resolve().parent

# layout -> the keys of config.parallel for so many devices
LAYOUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "data": lambda n: dict(num_devices=n),
    "fsdp": lambda n: dict(num_devices=n, fsdp=n),
    "both": lambda n: dict(num_devices=n, fsdp=n // 2),
    "pmap": lambda n: dict(num_devices=n, mode="pmap"),
}


def layouts_of(num_devices: int) -> list[str]:
    """The layouts that are not another one by another name."""
    if num_devices == 1:
        return ["pmap"]
    return [name for name in LAYOUTS if name != "both" or num_devices >= 4]


class Begun(NamedTuple):
    """A run before its first step."""

    state: Any
    sharding: Any
    compiled: distributed.Compiled


def begin(config: ConfigDict, shape: tuple[int, ...]) -> Begun:
    """The first state of a config where it belongs, and the step, for examples of a shape."""
    info = training.DatasetInfo("noise", shape, 0, None, ())
    method = config_lib.build_method(config, info)
    mesh = distributed.make_mesh(config.parallel.num_devices, config.parallel.fsdp)
    like, init, compiled = loop.compile_run(config, method, mesh)
    sharding = distributed.state_sharding(like, mesh)
    return Begun(init(jax.random.key(config.seed)), sharding, compiled)


def noise(num: int, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """A batch for one step."""
    x = np.random.default_rng(seed).standard_normal((1, num, *shape)).clip(-1, 1)
    return {"x": x.astype(np.float32), "label": np.zeros((1, num), np.int32)}


def base_config(**changes: Any) -> ConfigDict:
    """The defaults between finite ends, with keys changed; __ stands for a dot."""
    config = config_lib.default_config()
    config.schedule.update(log_snr_max=10.0, log_snr_min=-10.0)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def stopwatch() -> Callable[[], tuple[float, float]]:
    """Gives (seconds, CPU seconds of the process) since now."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    return lambda: (time.perf_counter() - begun, time.process_time() - begun_cpu)


def measure_checkpoint(state: Any, sharding: Any, times: int) -> dict[str, Any]:
    """Seconds from the call until all is written, and until all is read; bytes."""
    saving, restoring = [], []
    with tempfile.TemporaryDirectory() as directory:
        store = Checkpoints(directory, keep=times)
        for step in range(times):
            watch = stopwatch()
            store.save(step, state, {})
            store.wait()
            saving.append(watch()[0])
            watch = stopwatch()
            jax.block_until_ready(store.restore(state, sharding, step)[0])
            restoring.append(watch()[0])
        written = sum(f.stat().st_size for f in Path(directory, "0").rglob("*") if f.is_file())
        store.close()
    return dict(save=saving, restore=restoring, checkpoint_mb=written / 1e6)


def measure_step(batch: int, size: int, channels: int, times: int, compiled: str) -> dict[str, Any]:
    """A training step of a U-Net on images of (size, size, 1). `compiled`: where programs lie."""
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = base_config(
        model__unet__channels=channels,
        model__unet__channel_mults=(1, 2),
        model__unet__num_blocks=1,
        model__unet__attention_resolutions=(4,),
        parallel__num_devices=1,
    )
    shape = (size, size, 1)
    options = platform.train_step_options()
    platform.train_step_options = lambda: None  # they are given to the whole program, below
    state, sharding, (place, step) = begin(config, shape)
    examples = place(noise(batch, shape, seed=0))
    watch = stopwatch()
    program = jax.jit(step, donate_argnums=0).lower(state, examples).compile(options)
    compiling = watch()
    taken = []
    for _ in range(times + 1):
        watch = stopwatch()
        state, _ = jax.block_until_ready(program(state, examples))
        taken.append(watch())
    process_mb = workloads.peak_memory_mb()
    plan = program.memory_analysis()
    of_program = (
        plan.argument_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )
    return dict(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        compile=compiling[0],
        compile_cpu=compiling[1],
        step=[wall for wall, _ in taken[1:]],  # the first also loads the program
        step_cpu=[cpu for _, cpu in taken[1:]],
        process_mb=process_mb,
        program_mb=of_program / 1e6,
        backend=jax.default_backend(),
        device=jax.devices()[0].device_kind,
        **measure_checkpoint(state, sharding, times=3),
    )


def compare(run: tuple[Any, Any], reference: tuple[Any, Any]) -> dict[str, float]:
    """How far (parameters, losses) are from a reference's, relative to it.

    parameters: the norm of the difference of all over the norm of all. array: the largest
    difference in an array over that array's largest number, at worst. losses: of any step.
    """
    (found, losses), (expected, expected_losses) = run, reference
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    apart = math.hypot(*(np.linalg.norm(a - b) for a, b in pairs))
    of_arrays = [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs if b.any()]
    return dict(
        parameters=apart / math.hypot(*(np.linalg.norm(b) for _, b in pairs)),
        array=float(max(of_arrays)),
        losses=float(np.max(np.abs(np.divide(losses, expected_losses) - 1))),
    )


def measure_devices(devices: Sequence[int], num_steps: int = 4) -> list[dict[str, Any]]:
    """How far an MLP's run on so many devices, in every layout, is from that on one."""

    def run(where: Mapping[str, Any]) -> tuple[Any, Any]:
        config = base_config(
            model__name="mlp",
            model__mlp__width=128,
            model__mlp__depth=1,
            objective__time_sampling="importance",  # looks at the losses of the whole batch
            optimizer__learning_rate=1e-2,
            optimizer__warmup_steps=5,
            **{f"parallel__{key}": value for key, value in where.items()},
        )
        state, _, (place, step) = begin(config, (2,))
        losses = []
        for i in range(num_steps):
            state, metrics = step(state, place(noise(64, (2,), seed=i)))
            losses.append(jax.device_get(metrics["loss"]))  # waits: the devices share the cores
        return jax.device_get((state.params, state.ema_params)), np.concatenate(losses)

    reference = run(dict(num_devices=1))
    return [
        dict(devices=num, layout=name, **compare(run(LAYOUTS[name](num)), reference))
        for num in devices
        for name in layouts_of(num)
    ]


def measure_processes(layouts: Sequence[str]) -> list[dict[str, Any]]:
    """How far `diffax train` in two processes of two devices each is from that on one device."""
    script = HERE / "launch" / "local.sh"
    common = {"model.mlp.width": 128, "training.num_steps": 8, "training.log_every": 1}
    common |= {"training.eval_every": 0, "training.sample_every": 0}

    def run(processes: int, where: Mapping[str, Any]) -> tuple[Any, Any]:
        changes = common | {f"parallel.{key}": value for key, value in where.items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with tempfile.TemporaryDirectory() as directory:
            config = HERE.parent / "configs" / "mixture2d.py"
            command = [script, str(processes), f"--config={config}", f"--workdir={directory}"]
            done = subprocess.run(
                command + [f"--config.{key}={value}" for key, value in changes.items()],
                env=os.environ | {"PATH": path, "XLA_FLAGS": host_devices(2)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                output = done.stdout + done.stderr
                raise RuntimeError(f"{script.name} ended with status {done.returncode}:\n{output}")
            state = training.load(directory).state
            lines = writers.read_json_lines(Path(directory) / "metrics.jsonl")
        parameters = jax.device_get((state.params, state.ema_params))
        return parameters, [line["loss"] for line in lines]

    reference = run(1, dict(num_devices=1))
    return [
        dict(devices=4, layout=name, **compare(run(2, LAYOUTS[name](4)), reference))
        for name in layouts
    ]


def host_devices(num: int) -> str:
    """XLA_FLAGS for so many devices of the CPU."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num}".strip()


MEASURES: dict[str, Callable[..., Any]] = {
    "step": measure_step,
    "devices": measure_devices,
    "processes": measure_processes,
}


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every wait
    runtime.reuse_memory()  # as `diffax train` does
    kind, arguments = sys.argv[1:]
    print(json.dumps(MEASURES[kind](**json.loads(arguments))))
