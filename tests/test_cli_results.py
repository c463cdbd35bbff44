"""The file of `diffax evaluate`: what is merged, what is kept apart."""

import json

import pytest
from small_runs import a_method

from diffax.cli.evaluate import merge, read_results, results_table


def entry(value, **about):
    about = {"step": 10, "weights_hash": "a", "seed": 0, "num_samples": 64, **about}
    return {"value": value, "interval": [value - 0.5, value + 0.5], "low": None, **about}


def test_metrics_stand_side_by_side_and_what_is_replaced_is_kept():
    found = merge({}, "kid", entry(1.0))
    found = merge(found, "swd", entry(2.0, seed=3))
    assert found == {"kid": entry(1.0), "swd": entry(2.0, seed=3)}
    later = entry(3.0, step=20, weights_hash="b")
    found = merge(found, "kid", later)
    assert found == {"swd": entry(2.0, seed=3), "kid": later, "earlier": found["earlier"]}
    assert found["earlier"] == [{"metric": "kid", **entry(1.0)}]
    assert merge(found, "kid", later) == found
    found = merge(found, "kid", entry(4.0))
    assert [(e["metric"], e["value"]) for e in found["earlier"]] == [("kid", 1.0), ("kid", 3.0)]


@pytest.mark.parametrize("text", ["{", "[1]", '{"kid": 1}', "\xff"])
def test_a_file_of_something_else_is_not_overwritten(text, tmp_path):
    path = tmp_path / "found.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="found.json is there and holds no results"):
        read_results(path)
    assert read_results(tmp_path / "none.json") == {}


def test_what_is_written_is_read():
    found = json.loads(json.dumps(merge({}, "kid", entry(1.0))))
    assert merge(found, "kid", entry(1.0)) == found


def test_the_table_has_a_line_for_each_number():
    prdc = dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)
    found = {
        "bpd": {"bpd": 3.21987, "standard_error": 0.0123, "num_examples": 50},
        "fid": {"fid": 12.5, "low": 11.0, "high": 14.0, "floor": 1.5, "num_samples": 64},
        "prdc": {**prdc, "num_samples": 64},
        "kid": {"kid": None, "num_samples": 64},
    }
    measures = {name: m.metrics for name, m in a_method().measures.items()}
    lines = [line.split() for line in results_table(found, measures).splitlines()]
    assert [line[:2] for line in lines[1:]] == [
        ["bpd", "3.22"], ["fid", "12.5"], ["precision", "0.5"], ["recall", "0.5"],
        ["density", "0.5"], ["coverage", "0.5"], ["kid", "not"],
    ]  # fmt: skip
    assert lines[1][2:6] == ["±", "0.0123", "50", "examples"]
    assert " ".join(lines[2][2:]) == "11 to 14 64 samples FID (of held-out data 1.5)"
