"""What a GPU makes of diffax, in one call of at most nine minutes.

    python experiments/accelerator.py --out=runs/accelerator
    python experiments/accelerator.py --out=runs/accelerator --parts=device,bf16_128 --budget=200
    JAX_PLATFORMS=cpu python experiments/accelerator.py --out=/tmp/tried --tiny   # whether it works

On an H200 a first train step takes 70 s, of which 41 s are XLA's, so not all parts fit into nine
minutes: --parts chooses. experiments/results/accelerator.md holds what was measured so far.

Each part runs in processes of its own and has a time limit of its own, the most valuable first; a
part that fails or runs out of time is a row that says so, and the rest goes on. What it finds is
written as it comes: rows to OUT/results.jsonl, tables made from them to OUT/table.md, what the
processes say to OUT/log.txt. The whole ends after --budget seconds; parts that there was no time
for are named.

device: the device, the versions, and its peak, the rate of a large matrix product.
alone: a train step of ours in bfloat16, 128 images, which needs no other library.
bf16_128, bf16_512, float32_128: a train step of the CIFAR-10 U-Net of Ho 2020 (35.7M; eps-MSE,
  Adam) in turn with the same of diffusers under torch.compile, channels last; float32 may use tf32
  on both sides. The ratio is time ours / theirs, below 1 where diffax is faster. A share of the
  peak is of the operations that XLA counts in the plain network (Adam left out), the same for both.
  Memory: the most that arrays held; in brackets, ours, what the compiler planned. First: seconds
  from building the network to the end of the first turn, compiling included (both at once).
eager: bf16_128 with diffusers as it is, not compiled.
sampling: 50 DDIM steps of 256 images, in turn with diffusers.
remat: ours alone, 512 images, every block computed again in the backward pass.
input: the input pipeline alone; `fed` is its images/s over those of `alone`.
equality: ten train steps of a small U-Net with a learned schedule on the device against a CPU, in
  float32, matrix products at the highest precision and at the default one: the largest relative
  difference of a loss, and the distance between the parameters over their norm and over how far
  they were moved.
training: the small U-Net of configs/fashion_mnist.py on Fashion-MNIST, cosine against learned, two
  seeds, all four at once: so its steps/s are not those of a run alone.

It needs `pip install ".[bench]"`, and Fashion-MNIST: prepared for TFDS, or --data=FILE.npz with
`x`, uint8 (N, 32, 32, 1), and `label`. Where there is no network but jax, flax, optax, orbax,
scikit-learn, Pillow, matplotlib and PyTorch are there, carry the file and these wheels, 12 MB:
array-record, clu, diffusers, grain, huggingface-hub, ml-collections, portpicker.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from accelerator_table import markdown

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
LIBRARIES = ("jax", "flax", "optax", "torch", "diffusers")
EVALUATION_SECONDS = 110
NOTHING_RUN = "not run: the time was spent"


# --- what is measured: each yields rows -------------------------------------------------------


def device(options: dict) -> Iterator[dict]:
    """The device, the versions, the peaks."""
    import jax
    import workloads

    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "none"
    said = "none"
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    kind = jax.devices()[0].device_kind
    yield dict(kind="machine", device=kind, nvidia_smi=said, cores=os.cpu_count(), **versions)
    size = 256 if options["tiny"] else 16384
    for dtype in ("bfloat16", "float32"):
        rate = workloads.matrix_rate(dtype, size)
        yield dict(kind="peak", dtype=dtype, flops_per_second=rate)
    with jax.default_matmul_precision("highest"):
        rate = workloads.matrix_rate("float32", size)
    yield dict(kind="peak", dtype="float32, highest precision", flops_per_second=rate)


def operations(options: dict) -> Iterator[dict]:
    """Operations of a train step and of a forward pass for one image, by XLA's count."""
    import jax
    import jax.numpy as jnp
    import workloads

    from diffax.models import platform

    network = "tiny" if options["tiny"] else "cifar10"
    module, shape = workloads.build(network)
    key = jax.random.key(0)
    variables = jax.eval_shape(functools.partial(workloads.init, module, shape), key)

    def loss(variables, x, log_snr):
        return jnp.mean(module.apply(variables, x, log_snr, train=True) ** 2)

    images = 2
    given = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
    levels = jax.ShapeDtypeStruct((images,), jnp.float32)
    with platform.plain():
        counts = {
            name: jax.jit(function).lower(variables, given, levels).cost_analysis()["flops"]
            / images
            for name, function in (("train", jax.grad(loss)), ("sample", module.apply))
        }
    yield dict(kind="operations", network=network, **counts)


def pair(
    options: dict, workload: str, dtype: str, part: str = "train", mode: str = "compile"
) -> Iterator[dict]:
    """A part of a workload in turn with diffusers'."""
    import benchmark
    import workloads

    found = benchmark.against(
        "diffusers", workload, dtype, python=options["peer_python"], mode=mode, parts=[part]
    )
    steps = workloads.NUM_STEPS if part == "sample" else 1
    yield dict(kind="pair", step=part, num_steps=steps, **found.pop(part), **found)


def alone(options: dict, workload: str, dtype: str, remat: bool) -> Iterator[dict]:
    """A train step of ours alone."""
    import workloads

    about = workloads.WORKLOADS[workload]
    program = workloads.train(about["network"], about["batch"], dtype, remat)
    for _ in range(about["repeats"]):
        program.run(about["calls"])
    yield dict(kind="alone", batch=about["batch"], dtype=dtype, remat=remat, **program.figures())


def feeding(options: dict, workload: str) -> Iterator[dict]:
    """The input pipeline alone."""
    import workloads

    about = workloads.WORKLOADS[workload]
    pipeline = workloads.Input(about["network"], about["batch"])
    for _ in range(3):
        pipeline.run()
    yield dict(kind="input", batch=about["batch"], **pipeline.figures())


def small_run(options: dict, schedule: str, seed: int):
    """The config of a run on the data, small if this is only tried."""
    from learned_vs_cosine import load_config

    config = load_config(str(ROOT / "configs" / "fashion_mnist.py"))
    config.schedule.name, config.seed = schedule, seed
    name = options["data"]
    config.data.name = "npz" if name.endswith(".npz") else name
    if name.endswith(".npz"):
        config.data.update(path=str(Path(name).absolute()), pad_to=0)
    config.training.sample_every, config.training.checkpoint_every = 0, 0
    config.training.num_steps, config.training.log_every = options["training_steps"], 50
    config.evaluation.gradient_batches = 0
    config.evaluation.update(num_examples=2000, repeats=4, num_samples=2000)
    if options["tiny"]:
        config.model.unet.update(
            channels=8, channel_mults=(1,), num_blocks=1, attention_resolutions=(), head_width=8
        )
        config.training.batch_size = 16
        config.sampling.num_steps = 2
        config.evaluation.update(num_examples=16, repeats=2, num_samples=32, batch_size=32)
    return config


def ten_steps(options: dict) -> dict:
    """The losses of ten steps, and the parameters before and after; all in float32."""
    import jax
    import numpy as np

    from diffax import config as config_lib
    from diffax import data, distributed, training
    from diffax.models import platform

    config = small_run(options, "learned", 0)
    if not options["tiny"]:  # compiled three times
        config.model.unet.update(channels=16, channel_mults=(1, 2), num_blocks=1)
    dataset = data.load(config.data)
    info = training.DatasetInfo.of(dataset)
    method = config_lib.build_method(config, info)
    create = jax.jit(method.init, compiler_options=platform.run_once())
    state = create(jax.random.key(config.seed))

    def numbers(state):
        leaves = jax.tree.leaves((state.params, state.schedule))
        return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])

    before, losses = numbers(state), []
    step = functools.partial(method.step, sharding=distributed.LOCAL)
    step = jax.jit(step, donate_argnums=0)
    batches = data.batches(dataset.train, config.training.batch_size, 0)
    for _ in range(10):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return dict(losses=np.array(losses), before=before, after=numbers(state))


def write_ten_steps(options: dict, path: str) -> Iterator[dict]:
    """`ten_steps` into a file: the side of equality that another process does."""
    import numpy as np

    np.savez(path, **ten_steps(options))
    yield from ()


def equality(options: dict) -> Iterator[dict]:
    """Ten steps here against ten steps on a CPU."""
    import jax
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cpu.npz"
        other = start_process(options, "write_ten_steps", dict(path=str(path)), "cpu")
        ours = {}
        for precision in ("highest", "default"):
            with jax.default_matmul_precision(precision):
                ours[precision] = ten_steps(options)
        if other.wait():
            raise RuntimeError(f"the steps on the CPU ended with status {other.returncode}")
        cpu = dict(np.load(path))
    for precision, found in ours.items():
        apart = np.linalg.norm(found["after"] - cpu["after"])
        yield dict(
            kind="equality",
            precision=precision,
            loss_difference=float(np.max(np.abs(found["losses"] / cpu["losses"] - 1))),
            first_loss_difference=float(abs(found["losses"][0] / cpu["losses"][0] - 1)),
            of_norm=float(apart / np.linalg.norm(cpu["after"])),
            of_movement=float(apart / np.linalg.norm(cpu["after"] - cpu["before"])),
        )


def arm(options: dict, schedule: str, seed: int) -> Iterator[dict]:
    """One training, its bound and its distance."""
    from diffax import data, evaluation, training

    config = small_run(options, schedule, seed)
    about = dict(kind="training", arm=schedule, seed=seed)
    began = []

    def stop(step, run):
        began[:] = began or [(time.monotonic(), step)]
        return time.monotonic() - began[0][0] > options["training_seconds"]

    with tempfile.TemporaryDirectory() as workdir:
        begin = time.monotonic()
        state, metrics = training.train(config, workdir, stop)
        seconds, steps = time.monotonic() - began[0][0], int(state.step)
        yield about | dict(
            steps=steps,
            steps_per_second=(steps - began[0][1]) / seconds,
            first_seconds=began[0][0] - begin,
            loss=float(metrics["loss"]),
            loss_variance=float(metrics["loss_variance"]),
        )
        run, dataset = training.load(workdir), data.load(config.data)
        bound = evaluation.evaluate(run, dataset, ["bpd"])["bpd"]
        yield about | {key: bound[key] for key in ("bpd", "standard_error", "vlb_variance")}
        distance = evaluation.evaluate(run, dataset, ["frechet"])["frechet"]
        value = {key: distance[key] for key in distance if isinstance(distance[key], float)}
        yield about | dict(distance=value)


def trainings(options: dict) -> Iterator[dict]:
    """All arms at once, each a process whose rows go where this one's go."""
    # What remains must do for compiling and for evaluation.
    seconds = min(options["training_seconds"], max(options["limit"] - EVALUATION_SECONDS, 10))
    options = options | dict(training_seconds=seconds)
    arms = [
        start_process(options, "arm", dict(schedule=schedule, seed=seed))
        for schedule in ("cosine", "learned")
        for seed in range(2)
    ]
    failed = sum(process.wait() != 0 for process in arms)
    if failed:
        raise RuntimeError(f"{failed} of {len(arms)} trainings failed")
    yield from ()


SERVED: dict[str, Callable[..., Iterator[dict]]] = {
    function.__name__: function
    for function in (
        device, operations, pair, alone, feeding, equality, write_ten_steps, trainings, arm,
    )
}  # fmt: skip


# --- the plan ---------------------------------------------------------------------------------


class Part(NamedTuple):
    """A name in --parts: what it does, with which arguments, and its limit in seconds."""

    function: str
    arguments: dict
    limit: float
    platform: str = ""  # of JAX; empty: its own choice


PARTS = {
    "device": Part("device", {}, 40),
    "operations": Part("operations", {}, 60, "cpu"),
    "alone": Part("alone", dict(workload="E", dtype="bfloat16", remat=False), 120),
    "bf16_128": Part("pair", dict(workload="E", dtype="bfloat16"), 240),
    "bf16_512": Part("pair", dict(workload="F", dtype="bfloat16"), 240),
    "input": Part("feeding", dict(workload="E"), 25),
    "equality": Part("equality", {}, 190),
    "training": Part("trainings", {}, 190),
    "float32_128": Part("pair", dict(workload="E", dtype="float32"), 240),
    "sampling": Part("pair", dict(workload="G", dtype="bfloat16", part="sample"), 240),
    "remat": Part("alone", dict(workload="F", dtype="bfloat16", remat=True), 150),
    "eager": Part("pair", dict(workload="E", dtype="bfloat16", mode="eager"), 120),
}
# What runs at once: nothing beside what is timed.
STAGES = (
    ("device", "operations"),
    ("alone",),
    ("input",),
    ("bf16_128",),
    ("equality", "training"),
    ("bf16_512",),
    ("float32_128",),
    ("sampling",),
    ("remat",),
    ("eager",),
)
TINY = {"E": "tiny", "F": "tiny", "G": "tiny_sampling"}


def tiny(part: Part) -> Part:
    """The part with a workload that takes no time."""
    changed = {k: TINY[v] for k, v in part.arguments.items() if k == "workload"}
    return part._replace(arguments=part.arguments | changed)


def start_process(
    options: dict, function: str, arguments: dict, platform: str = "", **more
) -> subprocess.Popen:
    """A process that serves a function; its rows go to this one's output unless `more` differs."""
    told = json.dumps(dict(function=function, arguments=arguments, options=options))
    environment = os.environ | ({"JAX_PLATFORMS": platform} if platform else {})
    command = [sys.executable, str(HERE), f"--serve={told}"]
    return subprocess.Popen(command, env=environment, **more)


def serve(told: dict) -> None:
    """What such a process does: one line of JSON for each row."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    try:
        for row in SERVED[told["function"]](told["options"], **told["arguments"]):
            print(json.dumps(row), file=answers)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps(dict(kind="error", of=told["arguments"], what=what)), file=answers)
        raise


def write_random_images(path: str) -> None:
    """An .npz that stands for a data set where the program is only tried."""
    import numpy as np

    rng = np.random.default_rng(0)
    label = np.arange(400, dtype=np.int32) % 4
    np.savez(path, x=rng.integers(0, 256, (400, 8, 8, 1), np.uint8), label=label)


class Results:
    """The rows so far, on disk as soon as they are there, and the tables made from them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rows, self._lock = folder / "results.jsonl", threading.Lock()
        self._table, self.log = folder / "table.md", folder / "log.txt"
        self._rows.write_text("")
        self.log.write_text("")

    def add(self, part: str, row: dict) -> None:
        """Writes a row, and the tables again."""
        with self._lock:
            line = json.dumps(dict(part=part) | row)
            with self._rows.open("a") as file:
                file.write(line + "\n")
            rows = [json.loads(each) for each in self._rows.read_text().splitlines()]
            self._table.write_text(markdown(rows))
            print(line, flush=True)


def run_part(name: str, part: Part, options: dict, results: Results, limit: float) -> None:
    """Runs a part to its end or its limit; its rows, then one on how it ended."""
    begin = time.monotonic()
    with results.log.open("a") as log:
        process = start_process(
            options | dict(limit=limit), part.function, part.arguments, part.platform,
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, end)
        timer.start()
        for line in process.stdout:
            if line.startswith("{"):
                results.add(name, json.loads(line))
            else:  # a library's
                log.write(line)
        status = process.wait()
        timer.cancel()
    how = "done" if status == 0 else f"failed with status {status}"
    if late.is_set():
        how = f"stopped at its limit of {limit:.0f} s"
    results.add(name, dict(kind="end", how=how, seconds=time.monotonic() - begin))


def run(names: list[str], options: dict, results: Results, budget: float) -> None:
    """The stages in turn, as far as the time goes."""
    end = time.monotonic() + budget
    for stage in STAGES:
        chosen = [name for name in stage if name in names]
        threads = []
        for name in chosen:
            part = tiny(PARTS[name]) if options["tiny"] else PARTS[name]
            left = end - time.monotonic()
            if left < min(20, part.limit):
                results.add(name, dict(kind="end", how=NOTHING_RUN, seconds=0.0))
                continue
            given = name, part, options, results, min(part.limit, left)
            threads.append(threading.Thread(target=run_part, args=given))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "accelerator")
    parser.add_argument("--parts", default=",".join(PARTS), help="(default: all)")
    parser.add_argument("--budget", type=float, default=520, help="seconds in all (default 520)")
    parser.add_argument("--data", default="fashion_mnist", help="TFDS name or .npz of training")
    parser.add_argument("--training-steps", type=int, default=2000)
    parser.add_argument("--training-seconds", type=float, default=60, help="at most (default 60)")
    parser.add_argument("--peer-python", default="", help="the Python that has torch, diffusers")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the program")
    options = parser.parse_args(argv)
    if options.serve is not None:
        serve(options.serve)
        return
    names = options.parts.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        parser.error(f"--parts names {', '.join(unknown)}; there are {', '.join(PARTS)}")
    told = {
        key: getattr(options, key)
        for key in ("tiny", "data", "training_steps", "training_seconds", "peer_python")
    }
    with tempfile.TemporaryDirectory() as cache:
        # Compiling is timed, so nothing is there at first; what is compiled twice then is.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{cache}/jax"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}/inductor"
        # PyTorch needs its part of the device's memory.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if options.tiny and not options.data.endswith(".npz"):
            told["data"] = f"{cache}/random.npz"
            write_random_images(told["data"])
        run(names, told, Results(options.out), options.budget)


if __name__ == "__main__":
    main()
