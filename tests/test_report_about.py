"""What an ablation was made of, as the top of its report tells."""

import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import small_config

from diffax import data, evaluation, training
from diffax.ablation import measure, runner
from diffax.methods import moving_average
from diffax.report import build, sections


def test_the_subject_is_data_network_and_length():
    digits, mixture = (data.load({"name": name}) for name in ("digits", "mixture2d"))
    configs = [small_config(), small_config(training__num_steps=2000)]
    assert runner.subject(configs, digits) == {
        "data": "digits: 1,442 examples to train on, 355 held out, 8 × 8 × 1, 10 classes",
        "network": "mlp",
        "steps": "12 or 2,000",
        "batch": "32",
    }
    parts = small_config(training__grad_accumulation=2)
    told = runner.subject([parts], mixture)
    assert told["data"].endswith(", 2, no classes") and told["batch"] == "32 in 2 parts"


@pytest.mark.parametrize(("decay", "steps"), [(0.999, 1), (0.999, 3), (0.2, 5), (0.0, 1), (0.5, 0)])
def test_the_share_of_the_start_is_what_the_average_keeps_of_it(decay, steps):
    average = jnp.float32(1.0)
    for step in range(steps):
        average = moving_average(average, 0.0, decay, step)
    product = np.prod([min(decay, (1 + k) / (10 + k)) for k in range(steps)])
    assert training.fraction_of_start(decay, steps) == pytest.approx(product, rel=1e-5)
    assert float(average) == pytest.approx(product, rel=1e-5)


def test_a_short_training_is_remarked_upon():
    assert runner.remarks([small_config()]) == []
    (average, rising) = runner.remarks([small_config(training__num_steps=1), small_config()])
    assert "after 1 step the moving average of the weights" in average
    assert "is still 10% the untrained network" in average
    assert "it ended after 1 step, within the learning rate’s warm-up of 5." in rising
    long = small_config(training__num_steps=10**12)
    assert runner.remarks([long]) == []


def test_wall_time_is_the_union_of_the_runs():
    runs = [
        {"finished": 30.0, "seconds": 30.0},
        {"finished": 20.0, "seconds": 10.0},  # beside the first
        {"finished": 35.0, "seconds": 10.0},  # goes on beyond it
        {"finished": 110.0, "seconds": 10.0},  # after a break
    ]
    assert sections.wall_seconds(runs) == pytest.approx(35.0 + 10.0)
    assert sections.wall_seconds([*runs, {"seconds": 3.0}]) is None


def test_every_measure_says_what_it_means():
    numbers = [n for name in evaluation.scores() for n in evaluation.numbers(name)]
    silent = [m.key for m in (*measure.METRICS, *numbers) if not m.meaning.endswith(".")]
    assert silent == []
    (found,) = measure.score_metrics(["frechet"])
    assert found.meaning == evaluation.numbers("frechet")[0].meaning


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    source = tmp_path / "diffax" / "report" / "build.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    monkeypatch.setattr(build, "__file__", str(source))
    find = build._commit.__wrapped__
    assert find() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "One"], ["tag", "v1"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    head = subprocess.run(
        ["git", "-C", tmp_path, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    assert find() == head.stdout[:12]
    source.write_text("x = 1\n")
    assert find() == f"{head.stdout[:12]} (files changed)"
