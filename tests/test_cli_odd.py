"""Odd command lines, drawn by a seed: whatever is typed, the answer is one sentence."""

import random

import pytest
from small_runs import write_tiny_config

from diffax import cli, data, training
from diffax.config import defaults

WORDS = [
    "", " ", "0", "-1", "1", "1.5", "nan", "-inf", "1e400", "9" * 500, "None", "none", "true",
    "()", "(1,", "(1,2)", "(a,)", "a,b", ",", "=", "a=b", "Größe", "\udcff", "a\nb", "a\0b", "{}",
    "../..", "$(x)", "'", '"""', "%s%d", "--", "-", "-h,", "@file", "cosin", "1/0", "2/1", "\u202e",
    "seed=0,1", "schedule.name", "schedule.name=", "schedule.name=linear,,cosine", "=linear,cosine",
    "schedule=linear", "schedule.nme=linear,cosine", "schedule.name=linear,linear",
    "model.unet.channels=8,many", "model.unet.channel_mults=(1),(2)", "optimizer.name=adam,adamm",
    "schedule.s=0.2:0.1", "schedule.s=0:0.1:log", "schedule.s=:", "schedule.s=1:2:3:4",
    "schedule.s=nan:1", "training.num_steps=1:2", "frechet,frechet", "fd_lite,kid", "bpd",
]  # fmt: skip
KEYS = ["nope", "seed.x", "", ".", "model", "schedule.", "a.b.c.d", "schedule.Name", "größe"]


class Accepted(Exception):
    """All is read and checked; the work would begin now."""


def accept(*args, **kwargs):
    raise Accepted


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A command line by a random generator."""
    folder = tmp_path_factory.mktemp("odd")
    config = write_tiny_config(folder)
    keys = list(defaults.keys())
    needed = {
        "train": [f"--config={config}", f"--workdir={folder}/run"],
        "sample": [f"--workdir={folder}"],
        "evaluate": [f"--workdir={folder}"],
        "ablate": [
            *(f"--config={config}", f"--workdir={folder}/run"),
            "--axis=sampling.num_steps=2,3",
        ],
        "tune": [
            *(f"--config={config}", f"--workdir={folder}/run"),
            "--search=schedule.input_scale=1:2",
        ],
        "grid": [f"--workdir={folder}"],
        "export": [f"--workdir={folder}", f"--out={folder}/out"],
        "import": [f"--path={folder}/none", f"--workdir={folder}/run"],
        "report": [f"--workdir={folder}"],
        "metrics": ["convert-inception", f"{folder}/none.pth"],
        "schedules": ["--names=cosine"],
        "config": ["schedule.nme"],
    }
    assert needed.keys() == cli.COMMANDS.keys()
    parser = cli.make_parser()

    def misspelt(rng, word):
        place = rng.randrange(2, len(word) + 1)
        return word[:place] + rng.choice(["x", "-", "", "_"]) + word[place + rng.choice([0, 1]) :]

    def line(rng):
        command = rng.choice(list(needed))
        words = list(needed[command])
        flags = parser.commands[command].flags()
        for _ in range(rng.randrange(1, 3)):
            kind = rng.randrange(8)
            if kind == 0:
                words.append(misspelt(rng, rng.choice(flags)) + rng.choice(["", "=1"]))
            elif kind == 1:
                words.append(rng.choice(WORDS))
            elif kind == 2 and len(words) > 1:
                words.pop(rng.randrange(len(words)))
            elif kind < 5 and (cli.COMMANDS[command].takes_config or kind == 4):
                key = rng.choice([*keys, *KEYS])
                words.append(f"--config.{key}{rng.choice(['=', '=', ''])}{rng.choice(WORDS)}")
            else:
                flag = rng.choice(flags[2:] or ["--out"])  # without --help
                words += rng.choice([[f"{flag}={rng.choice(WORDS)}"], [flag, rng.choice(WORDS)]])
        return [misspelt(rng, command) if rng.random() < 0.05 else command, *words]

    return line


@pytest.mark.parametrize("seed", range(6))
def test_odd_command_lines_are_answered_in_one_sentence(seed, odd, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "train", accept)
    for name in ("load", "load_cached"):
        monkeypatch.setattr(data, name, accept)
    monkeypatch.chdir(tmp_path)  # where a word is the name of a folder
    rng = random.Random(seed)
    for _ in range(60):
        words, before = odd(rng), sorted(tmp_path.rglob("*"))
        try:
            status = cli.main(words)
        except SystemExit as stop:
            status = stop.code
        except Accepted:
            status = 0
        error = capsys.readouterr().err.rstrip("\n")
        assert status in (0, 1, 2), words
        if status:
            assert error.startswith("diffax") and "Traceback" not in error, words
            assert len(error.splitlines()) == 1, (words, error)
            assert sorted(tmp_path.rglob("*")) == before, words


@pytest.mark.parametrize(
    "line", ["schedules --plugin=--", "sample --workdir=--", "train --config=--"]
)
def test_two_dashes_are_no_value(line, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    assert stop.value.code == 2 and "=--: -- is no value" in capsys.readouterr().err
