"""The benchmark: its networks are those of its peers, and its figures are where they should be."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

pytestmark = pytest.mark.usefixtures("hasty_compiler")


def load(name):
    """A module beside the benchmark, as a run of it imports it."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXPERIMENTS))


def load_benchmark():
    return load("benchmark")


# The benchmark


@pytest.mark.parametrize(
    "name, parameters", [("A", 6.47e6), ("B", 1.62e6), ("C", 1.00e6), ("cifar10", 35.7e6)]
)
def test_the_benchmark_networks_have_the_sizes_of_their_peers(name, parameters):
    benchmark = load_benchmark()
    got = benchmark.count_parameters(name)
    assert abs(got - parameters) < 0.005 * parameters


@pytest.mark.parametrize("name, parts", [("C", ("train", "forward")), ("D", ("sample", "forward"))])
def test_the_benchmark_prints_one_line_of_json(name, parts, monkeypatch, capsys):
    benchmark = load_benchmark()
    network = benchmark.WORKLOADS[name]["network"]
    tiny = dict(shape=(4, 1), fields=dict(channels=4, channel_mults=(1,), num_blocks=1))
    monkeypatch.setitem(benchmark.NETWORKS, network, tiny)
    monkeypatch.setattr(load("workloads"), "COMMON_FIELDS", {})
    monkeypatch.setitem(benchmark.MATRIX_SIZES, "cpu", 64)
    benchmark.main([f"--workload={name}", "--json", "--repeats=1"])
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["workload"] == name
    assert result["batch"] == benchmark.WORKLOADS[name]["batch"]
    assert result["backend"] == jax.default_backend()
    assert result["seconds_per_step"] == result[parts[0]]["seconds_per_step"]
    for part in parts:
        for key in ("seconds_per_step", "compile_seconds", "peak_memory_mb"):
            assert result[part][key] > 0
        assert result[part]["images_per_second"] > 0
        if part != "sample":
            figures = result[part]
            assert figures["flops_per_second"] * figures["seconds_per_step"] > 1e4
            share = figures["flops_per_second"] / result["peak_flops_per_second"]
            assert figures["share_of_peak"] == share
    ratio = {"C": ("input", "ratio_to_train"), "D": ("sample", "ratio_to_forward")}[name]
    assert result[ratio[0]][ratio[1]] > 0
    if name == "C":
        each = result["input"]["seconds_per_step"]
        assert result["input"]["images_per_second"] == pytest.approx(result["batch"] / each)


# In turn with a peer

# A program of the protocol that needs no library. Its runs take a second of both clocks by its own
# account; the word "break" ends it.
STUB = """
import json, sys
print(json.dumps(dict(parameters=int(sys.argv[1]), versions=dict(stub="1.0"))), flush=True)
for line in sys.stdin:
    if line.strip() == "break":
        sys.exit(3)
    print(json.dumps(dict(wall=1.0, cpu=1.0, peak_memory_mb=5.0)), flush=True)
"""

# A child by `pairing.serve`: prints among its answers, and counts how often a part was prepared.
SERVED = """
import sys
sys.path.insert(0, sys.argv[1])
import pairing
prepared = []
def part():
    print("noise")
    prepared.append(1)
    return lambda: dict(compile_seconds=float(len(prepared)))
pairing.serve(lambda: (dict(parameters=7), dict(train=part, forward=part)))
"""


def test_programs_run_in_turn_and_their_ratios_are_medians():
    pairing = load("pairing")
    asked = []

    class Told:
        def __init__(self, name, times):
            self.name, self.times = name, iter(times)

        def run(self, part):
            asked.append((self.name, part))
            wall = next(self.times)
            return dict(wall=wall, cpu=2 * wall, peak_memory_mb=wall)

    ours, theirs = Told("ours", [9.0, 1.0, 2.0, 6.0]), Told("theirs", [9.0, 2.0, 2.0, 2.0])
    result = pairing.in_turn(ours, theirs, "train", 3)
    assert [name[0] for name, _ in asked] == list("otottoot")  # a first time, then turn about
    assert {part for _, part in asked} == {"train"}
    assert result["wall_ratio"] == result["cpu_ratio"] == 1.0
    assert result["wall_ratio_range"] == [0.5, 3.0]
    assert result["ours"]["wall_seconds"] == 2.0 and result["ours"]["cpu_seconds"] == 4.0
    assert result["ours"]["first_seconds"] == 9.0 and result["ours"]["peak_memory_mb"] == 6.0


def test_a_served_program_answers_on_a_clean_line_and_prepares_a_part_once():
    pairing = load("pairing")
    command = [sys.executable, "-c", SERVED, str(EXPERIMENTS)]
    with pairing.Child("served", command) as child:
        assert child.about == dict(parameters=7)
        answers = [child.run(part) for part in ("train", "train", "forward")]
    assert [answer["compile_seconds"] for answer in answers] == [1.0, 1.0, 2.0]
    assert all(answer["wall"] > 0 and answer["peak_memory_mb"] > 0 for answer in answers)


def test_a_program_that_ends_early_is_an_error():
    pairing = load("pairing")
    with pairing.Child("stub", [sys.executable, "-c", STUB, "1"]) as child:
        with pytest.raises(RuntimeError, match="stub ended with status 3, without an answer"):
            child.run("break")


@pytest.fixture
def stubs(monkeypatch):
    """The benchmark with both its programs replaced: `stubs(ours, theirs)` by parameter counts."""
    benchmark = load_benchmark()
    child = benchmark.pairing.Child

    def install(ours, theirs):
        counts = dict(diffax=ours, diffusers=theirs)
        monkeypatch.setattr(
            benchmark.pairing,
            "Child",
            lambda name, _: child(name, [sys.executable, "-c", STUB, str(counts[name])]),
        )
        return benchmark

    return install


def test_the_benchmark_prints_ratios_to_its_peer(stubs, capsys):
    benchmark = stubs(1000, 1005)
    arguments = ["--workload=all", "--against=diffusers", "--repeats=2", "--json"]
    benchmark.main(arguments)
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["workload"] for result in results] == ["A", "B", "C", "D"]
    for result in results:
        assert result["peer_parameters"] == 1005 and result["stub"] == "1.0"
        for part in benchmark.WORKLOADS[result["workload"]]["shared"]:
            assert result[part]["cpu_ratio"] == result[part]["wall_ratio"] == 1.0
            assert result[part]["repeats"] == 2


def test_networks_of_different_size_are_not_compared(stubs, capsys):
    benchmark = stubs(1000, 1011)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--workload=C", "--against=diffusers"])
    assert stopped.value.code == 1
    assert "1000 parameters and theirs 1011; they must agree within 1%" in capsys.readouterr().err


def test_a_peer_python_is_a_program_and_has_a_use(capsys):
    benchmark = load_benchmark()
    arguments = ["--workload=C", "--peer-python=/no/python"]
    for more, status, message in (
        (["--against=diffusers"], 1, "'/no/python'; it must be a program that can be run"),
        ([], 2, "'/no/python', which only --against uses"),
    ):
        with pytest.raises(SystemExit) as stopped:
            benchmark.main(arguments + more)
        assert stopped.value.code == status
        assert message in capsys.readouterr().err


def test_a_missing_library_is_one_sentence_with_the_command():
    """Isolated from what is installed (-S), no Python has these libraries."""
    task = json.dumps(dict(core=None))
    child = subprocess.run(
        [sys.executable, "-S", str(EXPERIMENTS / "diffusers_peer.py"), task],
        input="", capture_output=True, text=True, check=True,
    )  # fmt: skip
    error = json.loads(child.stdout)["error"]
    assert "has no torch and no diffusers" in error and "pip install '.[bench]'" in error
    assert child.stderr == ""


def test_a_peer_is_told_the_network_of_the_workload():
    benchmark = load_benchmark()
    task = benchmark.peer_task("A", "bfloat16")
    assert json.loads(json.dumps(task)) == dict(
        workload="A", shape=[32, 32, 3], batch=16, channels=64, channel_mults=[1, 2, 2],
        attention_resolutions=[16], num_blocks=2, head_width=64, embedding="add", norm_groups=16,
        num_steps=50, dtype="bfloat16", remat=False, device="cpu", calls=1, mode="eager",
        core=max(benchmark.pairing.cores(), default=None),
    )  # fmt: skip
    assert benchmark.peer_task("A", "float32", mode="compile")["mode"] == "compile"
