"""The fuzzer judges rightly, finds what ends a process, and a few of its inputs are as they should
be. (Many more are tried by test_cli_odd, test_config_bounds and test_data_fuzz.)"""

from pathlib import Path

import numpy as np
import pytest
from test_experiments import load

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return load(EXPERIMENTS / "fuzz.py")


@pytest.fixture
def inputs(fuzz, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFAX_FUZZ", str(tmp_path))
    return load(EXPERIMENTS / "fuzz_inputs.py")


def raising(error):
    def run():
        raise error

    return run


def test_every_outcome_is_told_apart(fuzz, inputs):
    case = inputs.Case
    good, other = {"x": np.ones(2)}, {"x": np.zeros(2)}
    expected = {
        "refused": case("", raising(ValueError("x is 3; it must be 2"))),
        "worked": case("", lambda: good, right=True, expected=good),
        "wrongly refused": case("", raising(ValueError("no")), right=True),
        "no sentence": case("", raising(ValueError(""))),
        "nonsense": case("", lambda: good, wrong=True),
        "not finite": case("", lambda: {"x": np.array([1.0, np.nan])}),
        "traceback": case("", raising(KeyError("x"))),
    }
    assert {name: inputs.verdict(one)[0] for name, one in expected.items()} == {
        name: name for name in expected
    }
    assert inputs.verdict(case("", lambda: other, expected=good))[0] == "nonsense"
    # A TypeError of Python's own, which a user's value got as far as, is no refusal.
    assert inputs.verdict(case("", raising(TypeError("unsupported operand"))))[0] == "traceback"
    assert {*expected, "abort", "hung"} == {*fuzz.OUTCOMES}


def test_a_child_that_dies_or_hangs_is_counted_and_started_again(fuzz, monkeypatch, tmp_path):
    says = "import sys, os, time, json\nfor line in sys.stdin:\n    kind = line.split()[0]\n"
    says += "    kind == 'dies' and os.abort()\n    kind == 'hangs' and time.sleep(60)\n"
    says += "    while kind == 'computes': pass\n"
    says += "    kind == 'grows' and bytearray(2**31)\n"
    says += "    print(json.dumps(dict(kind=kind, outcome='worked')), flush=True)\n"
    script = tmp_path / "child.py"
    script.write_text(says)
    monkeypatch.setattr(fuzz, "__file__", str(script))
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "SECONDS_IN_ALL", 3)
    monkeypatch.setattr(fuzz, "GIGABYTES", 1)
    child = fuzz.Child()
    kinds = ("fine", "dies", "hangs", "grows", "computes", "fine")
    found = [child.try_one(kind, 0)["outcome"] for kind in kinds]
    child.close()
    assert found == ["worked", "abort", "hung", "abort", "hung", "worked"]


@pytest.mark.parametrize("kind, num", [("files", 12), ("calls", 12)])
def test_some_inputs_are_refused_or_work(fuzz, inputs, kind, num, monkeypatch):
    monkeypatch.setattr(inputs, "_workdir", inputs._npz)  # without the training
    records = [inputs.try_one(kind, number) for number in range(num)]
    assert not [record for record in records if not fuzz.OUTCOMES[record["outcome"]]]
    assert f"| {kind} | {num} |" in fuzz.table(records)


def test_the_shares_of_the_kinds_make_up_the_number(fuzz):
    found = fuzz.numbers(200, list(fuzz.KINDS), first=5)
    assert len(found) == 200 and {kind for kind, _ in found} == {*fuzz.KINDS}
    assert min(number for _, number in found) == 5
    assert {kind for kind, _ in found[:8]} == {*fuzz.KINDS}


def test_what_is_tried_is_kept_now_and_then(fuzz, monkeypatch, tmp_path):
    monkeypatch.setattr(
        fuzz.Child,
        "try_one",
        lambda self, kind, number: dict(kind=kind, number=number, outcome="refused"),
    )
    kept = []
    fuzz.try_all(fuzz.numbers(50, ["keys", "calls"], 0), 1, kept.append)
    assert list(map(len, kept)) == [20, 40]
    assert fuzz.main(["--num=20", f"--out={tmp_path / 'a.md'}"]) == 0
    assert "| all | 20 | 20 | 0 |" in (tmp_path / "a.md").read_text()
