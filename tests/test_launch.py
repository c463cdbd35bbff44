"""The scripts under experiments/launch: what can be known of them without a cluster."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from diffax import config as config_lib

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "launch"
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")


def file_name(path):
    return path.name


def commands(path):
    """The script without its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


@pytest.mark.parametrize("path", SCRIPTS, ids=file_name)
def test_a_script_parses_and_says_whether_it_was_run(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^# (Not run|It was run)", text, re.MULTILINE)
    assert f"`{path.name}" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SCRIPTS, ids=file_name)
def test_a_script_trains_with_files_and_keys_that_are_there(path):
    text = commands(path)
    assert "diffax train" in text
    configs = re.findall(r"--config=(\S+)", text)
    assert configs and all((ROOT / config).is_file() for config in configs)
    known = config_lib.default_config()
    keys = re.findall(r"--config\.([\w.]+)=", text)
    assert "parallel.multihost" in keys
    for key in keys:
        section, _, name = key.rpartition(".")
        assert name in known[section], key


def start_local(tmp_path, diffax, *arguments, **environment):
    """local.sh with something else in the place of `diffax`."""
    program = tmp_path / "diffax"
    program.write_text(f"#!/usr/bin/env bash\n{diffax}\n")
    program.chmod(0o755)
    return subprocess.Popen(
        [FOLDER / "local.sh", *arguments],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_local_tells_each_process_who_the_others_are(tmp_path):
    said = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*"'
    script = start_local(tmp_path, said, "2", "--workdir=here", PORT="1234")
    lines = script.communicate(timeout=30)[0].splitlines()
    assert script.returncode == 0
    words = "of 2 at 127.0.0.1:1234: train --config.parallel.multihost=true --workdir=here"
    assert sorted(lines) == [f"[{i}] {i} {words}" for i in range(2)]


def test_local_ends_all_processes_when_one_fails(tmp_path):
    one_fails = "if ((JAX_PROCESS_ID == 1)); then exit 3; else exec sleep 1000; fi"
    assert start_local(tmp_path, one_fails, "3", GRACE="0.2").wait(timeout=30) == 3
    assert start_local(tmp_path, "exit 0", "none").wait(timeout=30) == 2


def terminate(script):
    script.terminate()


def press_ctrl_c(script):
    """All processes of the terminal get it: also the script's `sleep` and what labels the lines."""
    os.killpg(script.pid, signal.SIGINT)


@pytest.mark.parametrize("send", [terminate, press_ctrl_c])
def test_local_hands_a_signal_on_and_lets_all_processes_save(tmp_path, send):
    """Also the one that takes longer than the other."""
    saves = "trap 'sleep 0.$JAX_PROCESS_ID; echo saved; exit 143' TERM"
    waits = "for i in {1..300}; do sleep 0.1; done"
    script = start_local(tmp_path, f"{saves}; echo ready; {waits}", "2", GRACE="60")
    ready = [script.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
    send(script)
    assert sorted(script.stdout.readline() for _ in range(2)) == ["[0] saved\n", "[1] saved\n"]
    assert script.wait(timeout=30) == 143


def test_local_hands_on_a_signal_that_comes_before_all_are_started(tmp_path):
    """One that came between a start and the line that notes it used to miss that process."""
    first_tells = "if ((JAX_PROCESS_ID == 0)); then kill -TERM $PPID; fi; exec sleep 1000"
    assert start_local(tmp_path, first_tells, "30", GRACE="60").wait(timeout=30) == 143
