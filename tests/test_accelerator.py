"""The program for a GPU: every part runs on tiny sizes, and what goes wrong is a row."""

import json
import sys

import pytest
from test_benchmark import EXPERIMENTS, STUB, load

from diffax.evaluation import extractors
from diffax.models import platform

NAMES = ("device", "operations", "alone", "bf16_128", "sampling", "input", "equality")


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))  # parts import what they need when they run
    return load("accelerator")


@pytest.fixture
def options(tmp_path, accelerator):
    path = str(tmp_path / "random.npz")
    accelerator.write_random_images(path)
    return dict(
        tiny=True, data=path, training_steps=4, training_seconds=30.0, peer_python="", limit=200.0
    )


@pytest.fixture
def stub_peer(monkeypatch):
    """Both sides of a comparison replaced by a program that needs no library."""
    pairing = load("pairing")
    child = pairing.Child
    monkeypatch.setattr(
        pairing, "Child", lambda name, _: child(name, [sys.executable, "-c", STUB, "1000"])
    )


def rows_of(accelerator, name, options):
    part = accelerator.tiny(accelerator.PARTS[name])
    rows = list(accelerator.SERVED[part.function](options, **part.arguments))
    return [json.loads(json.dumps(dict(part=name) | row)) for row in rows]


def test_every_part_gives_rows_and_the_table_shows_them(
    accelerator, options, stub_peer, hasty_compiler, monkeypatch, tmp_path
):
    """What another process would do is done in this one."""

    class Here:
        def __init__(self, function, arguments):
            self.rows = list(accelerator.SERVED[function](options, **arguments))
            self.returncode = 0

        def wait(self):
            return self.returncode

    def start(options, function, arguments, platform=""):
        return Here(function, arguments)

    tables = load("accelerator_table").TABLES
    monkeypatch.setattr(accelerator, "start_process", start)
    monkeypatch.setattr(platform, "on_cpu", platform.on_cpu)  # a part changes it for its process
    # Three times the same, to compile once.
    steps = accelerator.ten_steps(options)
    monkeypatch.setattr(accelerator, "ten_steps", lambda options: steps)
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path))
    monkeypatch.setitem(extractors.SETTINGS, "steps", 4)
    rows = [row for name in NAMES for row in rows_of(accelerator, name, options)]
    rows += [dict(part="training") | row for row in accelerator.arm(options, "learned", 0)]
    kinds = {row["kind"] for row in rows}
    assert kinds == {*tables} - {"error", "end"}
    pairs = {row["part"]: row["ours"]["wall_seconds"] for row in rows if row["kind"] == "pair"}
    assert pairs == dict(bf16_128=0.5, sampling=1.0)  # a second for two calls and for one
    equal = [row for row in rows if row["kind"] == "equality"]
    assert [row["precision"] for row in equal] == ["highest", "default"]
    assert all(row["loss_difference"] == row["of_movement"] == 0 for row in equal)
    run = {}
    for row in rows:
        run |= row if row["kind"] == "training" else {}
    assert run["steps"] == 4 and run["bpd"] > 0 and run["distance"]["frechet"] > 0
    text = accelerator.markdown(rows)
    for title, columns, _ in (tables[kind] for kind in kinds):
        assert f"## {title}" in text and f"| {' | '.join(columns)} |" in text
    assert "| learned | 0 | 4 |" in text


def test_what_goes_wrong_is_a_row_and_the_rest_goes_on(accelerator, monkeypatch, tmp_path, capsys):
    """One part fails, one is stopped after a row, one works, for one no time is left."""
    row = dict(kind="peak", dtype="a", flops_per_second=1e9)
    says = f"import json; print('a library speaks'); print(json.dumps({row}), flush=True)"
    programs = {
        "device": "import sys; sys.exit(7)",
        "input": f"{says}; import time; time.sleep(60)",
        "remat": says,
    }
    popen = accelerator.subprocess.Popen

    def start(options, function, arguments, platform="", **more):
        return popen([sys.executable, "-c", programs[function]], **more)

    monkeypatch.setattr(accelerator, "start_process", start)
    limits = dict(device=19.0, input=2.0, remat=19.0)
    parts = {name: accelerator.Part(name, {}, limit) for name, limit in limits.items()}
    monkeypatch.setattr(
        accelerator, "PARTS", parts | dict(eager=accelerator.Part("none", {}, 1000.0))
    )
    results = accelerator.Results(tmp_path)
    names = ["device", "input", "remat"]
    accelerator.run(names, dict(tiny=False), results, budget=300.0)
    accelerator.run(["eager"], dict(tiny=False), results, budget=10.0)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    how = {row["part"]: row["how"] for row in rows if row["kind"] == "end"}
    assert how == dict(
        device="failed with status 7", input="stopped at its limit of 2 s", remat="done",
        eager=accelerator.NOTHING_RUN,
    )  # fmt: skip
    assert [row["part"] for row in rows if row["kind"] == "peak"] == ["input", "remat"]
    assert capsys.readouterr().out.splitlines() == [json.dumps(row) for row in rows]
    text = (tmp_path / "table.md").read_text()
    assert text == accelerator.markdown(rows)
    assert "| eager | not run: the time was spent | 0 |" in text


def test_a_process_that_fails_says_what_it_was(accelerator, monkeypatch, capfd):
    def broken(options):
        yield dict(kind="peak")
        raise ValueError("no such thing")

    monkeypatch.setitem(accelerator.SERVED, "broken", broken)
    with pytest.raises(ValueError):
        accelerator.serve(dict(function="broken", options={}, arguments={}))
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert first == dict(kind="peak")
    assert second == dict(kind="error", of={}, what="ValueError: no such thing")


def test_parts_limits_and_stages_fit(accelerator):
    """Every part has its stage and a function, and what is worth most fits into nine minutes."""
    assert sorted(sum(accelerator.STAGES, ())) == sorted(accelerator.PARTS)
    for part in accelerator.PARTS.values():
        assert part.function in accelerator.SERVED
    with pytest.raises(SystemExit):
        accelerator.main(["--parts=device,none"])
