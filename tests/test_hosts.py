"""Several processes on one machine, which find each other as those of several hosts do."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error

import jax
import numpy as np
import pytest
from killable import Killable, on_disk, wait_until
from small_runs import LEARNED, assert_close, assert_equal, compiled_quickly, small_config

from diffax import training
from diffax.distributed import hosts
from diffax.training import writers

# --- two real processes -----------------------------------------------------------------------


def two_processes():
    """The environments of two processes with two devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
    }
    return [{**common, "JAX_PROCESS_ID": str(i)} for i in range(2)]


def config_of(**changes):
    return small_config(
        **LEARNED,
        schedule__kind="polynomial",
        schedule_learning__clip_norm=1.0,  # its moments no larger than others
        objective__time_sampling="rate",  # whose histogram is of the whole batch
        training__checkpoint_every=4,
        evaluation__num_examples=64,  # a batch that needs no filling up on any number of devices
        **changes,
    )


LOOKED_AT = dict(training__sample_every=12, training__eval_every=12, evaluation__gradient_batches=2)
SPLIT = config_of(parallel__num_devices=0, parallel__fsdp=4, **LOOKED_AT)


def plain(workdir):
    state = training.load(workdir).state
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def lines(workdir):
    return writers.read_json_lines(workdir / "metrics.jsonl")


def everything(workdir):
    """The state, and every file but those of the checkpoints, which hold times."""
    paths = [path for path in workdir.rglob("*") if path.is_file()]
    rest = [path for path in paths if "checkpoints" not in path.parts]
    return plain(workdir), {path.relative_to(workdir): path.read_bytes() for path in rest}


@pytest.fixture(scope="module")
def killable(tmp_path_factory):
    program = Killable(tmp_path_factory.mktemp("compiled"))
    yield program
    program.close()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The run on one device, in this process."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        training.train(config_of(**LOOKED_AT), workdir)
    return workdir


@pytest.fixture(scope="module")
def together(killable, tmp_path_factory):
    """The run of two processes, undisturbed."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    killable.start(SPLIT, workdir, two_processes())
    assert killable.wait() == [0, 0]
    return workdir


def assert_same_run(workdir, expected):
    """The numbers of one run are those of another, but for the order of float32 sums."""
    assert_close(plain(workdir), plain(expected), rtol=1e-5, atol=1e-5)
    for a, b in zip(lines(workdir), lines(expected), strict=True):
        assert a == pytest.approx({name: b[name] for name in a}, rel=1e-4)


def test_two_processes_make_the_run_of_one(together, one_process):
    """The same global batches in the same order, each process reading its half."""
    assert_same_run(together, one_process)
    logged = lines(together)[-1].keys()
    assert logged == lines(one_process)[-1].keys()
    assert logged >= {"loss", "eval_vlb", "eval_grad_variance"}
    names = [{p.name for p in (w / "samples").iterdir()} for w in (together, one_process)]
    assert names[0] == names[1] == {"step_000012.png"}


def test_each_process_writes_its_part_of_a_checkpoint(together):
    """Large arrays are split over the devices of both."""
    for process in range(2):
        folder = together / "checkpoints" / "12" / "state" / f"ocdbt.process_{process}" / "d"
        assert sum(path.stat().st_size for path in folder.iterdir()) > 4000


def test_pmap_over_two_processes_too(killable, one_process, tmp_path):
    config = config_of(parallel__num_devices=0, parallel__mode="pmap")
    killable.start(config, tmp_path / "run", two_processes())
    assert killable.wait() == [0, 0]
    assert_same_run(tmp_path / "run", one_process)


def test_a_killed_process_ends_the_job_which_goes_on_exactly(killable, together, tmp_path):
    """The other process ends by itself, with an error; started again, both end as undisturbed."""
    workdir = tmp_path / "run"
    pids = killable.start(SPLIT, workdir, two_processes())
    wait_until(lambda: 4 in on_disk(workdir)[0])
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    first, second = killable.wait()
    assert first != 0 and second == -signal.SIGKILL
    assert time.monotonic() - begin < 60
    assert max(on_disk(workdir)[0]) < 12
    killable.start(SPLIT, workdir, two_processes())
    assert killable.wait() == [0, 0]
    found, expected = everything(workdir), everything(together)
    assert_equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_an_autoencoder_in_two_processes_goes_on_after_a_kill_as_in_one(killable, tmp_path):
    """A method without a schedule, a bound or a sampler."""
    data = tmp_path / "signals.npz"
    phase = np.random.default_rng(0).uniform(0, 6, (160, 1, 2))
    np.savez(data, x=np.sin(np.linspace(0, 3, 8)[:, None] + phase).astype(np.float32))
    config = small_config(
        method__name="autoencoder", model__name="autoencoder", model__autoencoder__channels=8,
        data__name="npz", data__path=str(data), data__range=(-1.0, 1.0),
        training__checkpoint_every=4, training__eval_every=12,
    )  # fmt: skip
    with compiled_quickly(tmp_path / "compiled"):
        training.train(config, tmp_path / "one")
    config.update_from_flattened_dict({"parallel.num_devices": 0, "parallel.fsdp": 4})
    pids = killable.start(config, tmp_path / "two", two_processes())
    wait_until(lambda: 4 in on_disk(tmp_path / "two")[0])
    os.kill(pids[0], signal.SIGKILL)
    assert -signal.SIGKILL in killable.wait() and max(on_disk(tmp_path / "two")[0]) < 12
    killable.start(config, tmp_path / "two", two_processes())
    assert killable.wait() == [0, 0]
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert lines(tmp_path / "two")[-1].keys() >= {"loss", "eval_psnr", "eval_rate"}
    # Each process loads a codec, and the run from which another starts on other data.
    np.savez(tmp_path / "half.npz", x=np.load(data)["x"] / 2)
    in_latents = small_config(
        codec__name="run", codec__path=str(tmp_path / "one"), data__name="npz",
        data__path=str(data), data__range=(-1.0, 1.0), training__num_steps=2,
        model__name="unet", model__unet__channels=8, model__unet__channel_mults=(1,),
        model__unet__num_blocks=1, evaluation__gradient_batches=0,
    )  # fmt: skip
    with compiled_quickly(tmp_path / "compiled"):
        training.train(in_latents, tmp_path / "start")
        in_latents.training.init_from = str(tmp_path / "start")
        in_latents.data.path = str(tmp_path / "half.npz")
        training.train(in_latents, tmp_path / "one_from_start")
    in_latents.parallel.num_devices = 0
    killable.start(in_latents, tmp_path / "two_from_start", two_processes())
    assert killable.wait() == [0, 0]
    assert_same_run(tmp_path / "two_from_start", tmp_path / "one_from_start")
    start, found = (training.load(tmp_path / name).dataset for name in ("start", "two_from_start"))
    assert found.latent_deviation == start.latent_deviation  # of its own data it would be half


def test_damage_that_one_process_alone_sees_is_passed_over_by_both(killable, tmp_path):
    """In a network so large that a file of one process's parts is read by that process alone."""
    workdir = tmp_path / "run"
    config = config_of(
        model__mlp__width=128, parallel__num_devices=0, parallel__fsdp=4, training__num_steps=8
    )
    killable.start(config, workdir, two_processes())
    assert killable.wait() == [0, 0]
    expected = plain(workdir)
    parts = workdir / "checkpoints" / "8" / "state" / "ocdbt.process_1"
    largest = max(parts.rglob("d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    killable.start(config, workdir, two_processes())
    assert killable.wait() == [0, 0]
    assert (workdir / "checkpoints" / "damaged-8").is_dir()
    assert_equal(plain(workdir), expected)


def test_one_that_is_told_to_stop_saves_with_all(killable, tmp_path):
    workdir = tmp_path / "run"
    config = config_of(parallel__num_devices=0, parallel__fsdp=4, training__num_steps=100_000)
    pids = killable.start(config, workdir, two_processes())
    wait_until(lambda: on_disk(workdir)[0])
    os.kill(pids[1], signal.SIGTERM)
    assert killable.wait() == [143, 143]
    assert training.load(workdir).state.step == max(on_disk(workdir)[0]) < 100_000


def test_one_that_is_told_to_stop_while_the_job_starts_ends():
    """`jax.distributed` takes SIGTERM for itself."""
    program = (
        "import os, signal, time; from diffax.distributed import hosts; hosts.join(True);"
        " os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    environment = {**os.environ, **two_processes()[0], "JAX_NUM_PROCESSES": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=50)
    assert done.returncode == -signal.SIGTERM


# --- who the others are -----------------------------------------------------------------------

VARIABLES = (
    "JAX_NUM_PROCESSES", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_NTASKS",
    "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY",
)  # fmt: skip


@pytest.mark.parametrize(
    "environment, found",
    [
        ({}, None),
        ({"JAX_NUM_PROCESSES": "1"}, None),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES"),
        ({"SLURM_NTASKS": "4"}, None),  # in the script of sbatch, not in a step of srun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n[0-3]"}, "SLURM"),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_other_processes_are_detected(environment, found, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: [])
    assert [name for name, detect in hosts.DETECTIONS.items() if detect()] == [found][: bool(found)]


@pytest.mark.parametrize(
    "chips, answer, found",
    [
        (["/dev/accel0"], b"a:1:10.0.0.1,b:2:10.0.0.2", True),
        (["/dev/vfio/0"], b"10.0.0.1", False),  # a slice of one host
        (["/dev/accel0"], None, False),  # not in that cloud
        ([], b"10.0.0.1,10.0.0.2", False),  # in it, but without a TPU
    ],
)
def test_a_tpu_slice_is_detected_by_what_the_cloud_says(chips, answer, found, monkeypatch):
    def ask(request, timeout):
        assert request.full_url.startswith("http://metadata.google.internal/")
        assert request.headers == {"Metadata-flavor": "Google"}
        if answer is None:
            raise urllib.error.URLError("no such host")
        return io.BytesIO(answer)

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: [p for p in chips if p[:8] in pattern])
    monkeypatch.setattr(hosts.urllib.request, "urlopen", ask)
    assert hosts.DETECTIONS["TPU"]() is found


def test_joining_is_refused_where_it_cannot_be(monkeypatch):
    """JAX's devices are in use here already; and a number that is none is named."""
    np.asarray(jax.devices())
    with pytest.raises(ValueError, match="could not join the others .* before any JAX calls"):
        hosts.join(True)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two'; it must be a whole number"):
        hosts.join()


def test_a_process_alone_does_not_ask():
    assert hosts.is_first()
    assert [hosts.agreed(15, ask=ask) for ask in (True, False)] == [15, 15]
