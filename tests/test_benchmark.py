"""The benchmark: its networks are those of its peers, and its figures are where they should be."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest


def load_benchmark():
    path = Path(__file__).parents[1] / "experiments" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The benchmark


@pytest.mark.parametrize("name, parameters", [("A", 6.47e6), ("B", 1.62e6), ("C", 1.00e6)])
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
    monkeypatch.setattr(benchmark, "COMMON_FIELDS", {})
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
    if name == "D":
        assert result["sample"]["ratio_to_forward"] > 0
