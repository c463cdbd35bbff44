"""Does a set that is larger than memory train in little memory, as fast as one in memory?

    python experiments/data_beyond_memory.py --gigabytes 8 --folder /tmp/large
    python experiments/data_beyond_memory.py --gigabytes 0.1 --folder /tmp/small --steps 20

A file of random images of 32x32x3 is made in the folder, which must have the room, and stays there.
Each measurement is a process of its own:

  feed    images per second of `data.batches` alone, from the file, and from memory (of as many
          images as a gigabyte holds);
  train   a small network over the file, to its end; and again, killed (SIGKILL) after its first
          checkpoint and resumed. The last metrics of the two must be equal.

It prints them, with the most resident memory of each process (VmHWM), as lines of a table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (32, 32, 3)
BATCH = 256
CHUNK = 2**14  # images made at a time
IN_MEMORY = 2**30  # bytes of the set that is compared, in memory


def make(path: Path, gigabytes: float) -> None:
    """Writes the set, if it isn't there."""
    num = int(gigabytes * 1e9 / np.prod(SHAPE))
    if path.exists() and np.load(path, mmap_mode="r").shape[0] == num:
        return
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (num, *SHAPE)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, num, CHUNK):
            file.write(rng.integers(0, 256, (min(CHUNK, num - start), *SHAPE), np.uint8))


def feed(path: Path, storage: str, seconds: float) -> dict[str, float]:
    """Images per second of the batches alone."""
    from diffax import data

    if storage == "memory":
        some = np.load(path, mmap_mode="r")[: IN_MEMORY // int(np.prod(SHAPE))]
        split = data.Split(np.array(some))
    else:
        split = data.load({"name": "npz", "path": str(path), "storage": storage}).train
    batches = data.batches(split, BATCH, seed=0)
    for _ in range(20):
        next(batches)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        next(batches)
        count += BATCH
    return {"images_per_second": count / (time.perf_counter() - begun)}


def train(path: Path, workdir: Path, steps: int) -> dict[str, Any]:
    """Trains to the end; the last metrics."""
    from diffax import config as config_lib
    from diffax import training

    config = config_lib.default_config()
    config.data.update(name="npz", path=str(path), storage="disk")
    config.model.unet.update(
        channels=8, channel_mults=(1, 1), num_blocks=1, attention_resolutions=(), head_width=8
    )
    config.schedule.update(log_snr_max=10.0, log_snr_min=-10.0)
    config.training.update(
        batch_size=BATCH, num_steps=steps, checkpoint_every=max(1, steps // 4), log_every=steps
    )
    config.parallel.num_devices = 1
    begun = time.perf_counter()
    _, metrics = training.train(config, workdir)
    return {"metrics": metrics, "seconds": time.perf_counter() - begun}


def peak_memory() -> float:
    """The most resident memory that this process has had, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(found) * 1024 / 1e9


def child(*words: Any) -> dict[str, Any]:
    """What a process of its own prints as its last line."""
    done = subprocess.run(_command(words), stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def killed(workdir: Path, *words: Any) -> None:
    """Begins a process, and kills it when its run has a checkpoint."""
    process = subprocess.Popen(_command(words), stdout=subprocess.DEVNULL)
    folder = workdir / "checkpoints"
    while not (folder.exists() and any(name.isdecimal() for name in os.listdir(folder))):
        if process.poll() is not None:
            raise RuntimeError("the run ended before it could be killed")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _command(words: tuple[Any, ...]) -> list[str]:
    return [sys.executable, __file__, *map(str, words)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--part", choices=("feed", "train"), help="one measurement, as JSON")
    parser.add_argument("--storage", default="disk")
    parser.add_argument("--workdir", type=Path)
    args = parser.parse_args()
    path = args.folder / "images.npy"
    if args.part:
        made = (
            feed(path, args.storage, args.seconds)
            if args.part == "feed"
            else train(path, args.workdir, args.steps)
        )
        print(json.dumps(made | {"peak_gb": peak_memory()}))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    make(path, args.gigabytes)
    print(f"{path.stat().st_size / 1e9:.1f} GB\n\n| | | most resident memory |\n|---|---|---|")
    part = ("--folder", args.folder, "--part")
    for storage in ("disk", "memory"):
        found = child(*part, "feed", "--storage", storage, "--seconds", args.seconds)
        speed = f"{found['images_per_second']:,.0f} images a second"
        print(f"| batches from {storage} | {speed} | {found['peak_gb']:.2f} GB |", flush=True)
    whole, stopped = args.folder / "whole", args.folder / "killed"
    for workdir in (whole, stopped):
        shutil.rmtree(workdir, ignore_errors=True)
    of_train = (*part, "train", "--steps", args.steps, "--workdir")
    first = child(*of_train, whole)
    killed(stopped, *of_train, stopped)
    again = child(*of_train, stopped)
    for name, found in (("to its end", first), ("killed and resumed", again)):
        print(f"| training, {name} | {found['seconds']:.0f} s | {found['peak_gb']:.2f} GB |")
    if first["metrics"] != again["metrics"]:
        raise SystemExit(f"the metrics differ: {first['metrics']} and {again['metrics']}")
    print("\nThe last metrics of the two are equal.")


if __name__ == "__main__":
    main()
