"""Settings of the process."""

import logging
import os
import platform
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import small_config, write_tiny_config

from diffax import cli, runtime, training

# Page faults of writing to 64 MB that were had and given back before.
FAULTS = """
import ctypes, resource
from diffax import runtime

if {reuse}:
    runtime.reuse_memory()
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(reuse, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS.format(reuse=reuse)],
        env=kept | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_what_the_compiler_freed_is_given_back():
    """Many small blocks are freed below one that stays; a long compilation's end is what counts."""
    program = """
import ctypes, resource
from pathlib import Path
from diffax import runtime

runtime.reuse_memory()
import jax
from jax import monitoring

events = []
monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
jax.jit(lambda x: x + 1)(1.0)
print(events.count(runtime._COMPILED))

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
blocks = [libc.malloc(1 << 20) for _ in range(101)]
for block in blocks:
    libc.memset(block, 1, 1 << 20)
for block in blocks[:-1]:
    libc.free(block)
before = held()
for seconds in (0.5, 2.0):
    monitoring.record_event_duration_secs(runtime._COMPILED, seconds)
    print(round(before - held()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    compiled, kept, given_back = map(int, ran.stdout.split())
    assert compiled == 1 and kept < 10 and given_back > 90


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_memory_that_was_freed_is_used_again():
    """64 MB are 16,384 pages of 4 kB, or 32 of 2 MB; fewer where the pages are larger still."""
    new = faults(False)
    assert new >= 16
    assert faults(True) < new / 4
    # Who tells glibc by the environment is left alone.
    assert faults(True, MALLOC_ARENA_MAX="2") > new / 2


# --- what a user needn't see ------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """Within the settings of a process; undone afterwards."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ["JAX_COMPILATION_CACHE_DIR"])
    logger = logging.getLogger("diffax")
    before = logger.handlers[:], logger.propagate
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runtime.start()
        yield caught
    logger.handlers[:], logger.propagate = before


def test_warnings_that_tell_a_user_nothing_are_kept_back(started):
    warnings.warn("Some donated buffers were not usable: f32[3]", stacklevel=1)
    code = "import warnings; warnings.warn('pmap is deprecated', DeprecationWarning, stacklevel=1)"
    exec(code, {"__name__": "jax._src.api"})
    assert not started
    warnings.warn("samples are not finite", stacklevel=1)
    exec(code, {"__name__": "mine"})
    assert [str(w.message) for w in started] == ["samples are not finite", "pmap is deprecated"]


def test_callbacks_that_come_too_late_say_nothing(monkeypatch, caplog):
    """Those of a checkpoint's other arrays, when one could not be written: up to 82 tracebacks."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])
    caplog.set_level(logging.ERROR, "asyncio")
    runtime.watch_callbacks()
    runtime.watch_callbacks()  # the second time changes nothing
    folder = Path("site-packages", "orbax", "checkpoint.py")
    theirs, own = (
        SimpleNamespace(cr_code=SimpleNamespace(co_filename=f)) for f in (folder, "a.py")
    )
    for error, of in (
        (RuntimeError("Event loop is closed"), None),
        (ValueError("of orbax"), theirs),
        (ValueError("another"), None),
        (ValueError("a third"), own),
    ):
        sys.unraisablehook(SimpleNamespace(exc_value=error, object=of))
    assert [str(lost.exc_value) for lost in said] == ["another", "a third"]
    for message in ("Future exception was never retrieved [tensorstore_spec='{}']", "another"):
        logging.getLogger("asyncio").error(message)
    assert [record.getMessage() for record in caplog.records] == ["another"]


# --- places -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "  ", "s3://bucket", Path("gs://b/run")])
def test_a_place_where_no_file_can_be_made_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="workdir .*(must name a place|not on this machine's)"):
        training.train(small_config(), place)
    for function in (training.steps_done, training.load, training.outcome):
        with pytest.raises(ValueError, match="workdir"):
            function(place)
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.local_path("~/runs/a") == tmp_path / "runs" / "a"
    assert runtime.local_path("runs/a:b") == Path("runs/a:b")
    with pytest.raises(ValueError, match="workdir ~nobody-of-that-name/x: "):
        runtime.local_path("~nobody-of-that-name/x")


PLACES = [
    *(
        (command, flag)
        for command in ("train", "ablate", "tune", "sample", "evaluate", "report")
        for flag in ("--workdir=s3://bucket/run", "--workdir=")
    ),
    *((command, "--out=s3://b/x") for command in ("sample", "evaluate", "report")),
]


@pytest.mark.parametrize(("command", "flag"), PLACES)
def test_every_command_refuses_such_a_place(command, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_tiny_config(tmp_path)
    needed = {"ablate": ["--axis=seed=0,1"], "tune": ["--search=schedule.s=0.1:0.2"]}
    words = [command, flag, *needed.get(command, [])]
    if command in ("train", "ablate", "tune"):
        words.append(f"--config={config}")
    if flag.startswith("--out"):
        words.append("--workdir=run")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"diffax {command}: {flag.partition('=')[0]}") and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# --- signals ----------------------------------------------------------------------------------


def begin(*words, **options):
    """The command line in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffax", *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def has_imported(process, name):
    """Whether a library of that name is in the process's memory."""
    return name in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("library", ["_datetime", "_multiarray_umath", "_jax"])
def test_a_program_that_is_stopped_while_it_starts_says_so_in_one_line(library, tmp_path):
    """In the midst of its imports, where an exception becomes another one, or a crash."""
    config = write_tiny_config(tmp_path)
    process = begin(
        "ablate", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--axis=seed=0,1"
    )
    while not has_imported(process, library):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "diffax: interrupted\n"
    assert process.returncode == 130 and not (tmp_path / "run").exists()


def children(process):
    found = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(number) for path in found for number in path.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_an_ablation_that_is_stopped_says_how_to_go_on(number, word, tmp_path):
    """While its workers start, to which the signal comes too; nothing of them is left."""
    config = write_tiny_config(tmp_path)
    process = begin(
        "ablate", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--seeds=1", "--workers=2",
        "--axis=schedule.name=linear,cosine", "--metrics=swd",
    )  # fmt: skip
    while len(children(process)) < 3:  # two workers, and who tracks what they share
        assert process.poll() is None
        time.sleep(0.01)
    workers = children(process)
    os.killpg(process.pid, number)
    *lines, last = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 128 + number
    assert last == (
        f"diffax ablate: {word}: the same command goes on from what was saved, if anything was"
    )
    assert lines[0] == f"2 arms x 1 seed = 2 runs; results in {tmp_path / 'run'}"
    assert not [
        line
        for line in lines
        if not re.search("started|starting|left$|results in|reading|prepar|in all", line)
    ]
    end = time.monotonic() + 30
    while any(map(runs, workers)):  # who tracks what they share ends after them
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not list((tmp_path / "run").glob("lock*"))


def runs(process: int) -> bool:
    """Whether there is such a process, which has not ended."""
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_signal_is_not_lost_in_a_callback_or_in_another_error():
    with runtime.stoppable() as came:
        with pytest.raises(runtime.Interrupted) as stop:
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM] and stop.value.exit_status == 143
        with pytest.raises(runtime.Interrupted):
            runtime._in_callback(print, SimpleNamespace(exc_value=stop.value, object=None))
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


_COMPILING = """
import hashlib, os, signal
from diffax import runtime
with runtime.stoppable(), runtime.Interruption() as signals:
    with signals.at_once("stopped before it began"):
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes of C code
"""


def test_a_signal_ends_a_compilation_at_once():
    """Which is C code, in whose midst no handler of Python's is called."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", _COMPILING], **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert (said, process.returncode) == ("diffax: stopped before it began\n", 143)


def test_who_gave_a_command_repeats_a_command_and_a_program_a_call(tmp_path):
    assert runtime.the_same() == "the same call"
    with runtime.as_command():
        assert runtime.the_same() == "the same command"
        said = [sys.executable, "-c", "from diffax import runtime; print(runtime.the_same())"]
        assert subprocess.run(said, capture_output=True, text=True).stdout == "the same command\n"
        with runtime.as_command():
            pass
        assert runtime.the_same() == "the same command"
    assert runtime.the_same() == "the same call"
