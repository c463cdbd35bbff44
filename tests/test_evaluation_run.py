"""Evaluation of runs whose network is exact, so that every number is known."""

import dataclasses
import json
import logging
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from exact import entropy, predicts, three_modes

from diffax import config as config_lib
from diffax import data, evaluation, schedules, training
from diffax.evaluation import extractors
from diffax.evaluation import run as run_module
from diffax.methods import diffusion, diffusion_measures
from diffax.process import by_log_snr

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.fixture(scope="module")
def run_and_data(tmp_path_factory):
    config = config_lib.default_config()
    config.data.name = "mixture2d"
    config.model.name = "mlp"
    config.schedule.update(name="linear_logsnr", log_snr_max=8.0, log_snr_min=-8.0)
    config.training.update(num_steps=300, batch_size=256)
    config.optimizer.learning_rate = 2e-3
    config.evaluation.update(num_examples=1000, repeats=8)
    config.sampling.num_steps = 20
    config.parallel.num_devices = 1
    directory = tmp_path_factory.mktemp("run")
    training.train(config, directory)
    return training.load(directory), data.load(config.data)


def test_the_bound_says_what_it_depends_on_and_adds_up(run_and_data):
    run, dataset = run_and_data
    found = evaluation.evaluate(run, dataset, ["bpd"], seed=3)["bpd"]
    assert found["bpd"] == pytest.approx(
        found["prior"] + found["diffusion"] + found["reconstruction"], rel=1e-6
    )
    assert (found["num_examples"], found["repeats"], found["seed"]) == (1000, 8, 3)
    assert (found["levels"], found["step"]) == (None, 300)
    nats = entropy(data.default_mixture())
    assert found["bpd"] > nats / (2 * math.log(2)) - 5 * found["standard_error"]
    assert found == evaluation.evaluate(run, dataset, ["bpd"], seed=3)["bpd"]


def test_other_data_than_a_run_was_trained_on_are_told(run_and_data, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffax"), "propagate", True)
    run, dataset = run_and_data
    evaluation.evaluate(run, dataset, [])
    assert not caplog.records
    fewer = dataclasses.replace(dataset, train=data.Split(dataset.train.x[:100]))
    evaluation.evaluate(run, fewer, [])
    assert "trained on other data: num train was 50000 and is 100" in caplog.text


def test_the_bound_says_in_how_many_steps_it_is(run_and_data):
    run, dataset = run_and_data
    assert evaluation.bits_per_dim(run, dataset)["time"] == "continuous"
    for key, steps in (("evaluation.vlb_num_steps", 5), ("schedule.num_steps", 7)):
        config = config_lib.changed(run.config, {key: steps, "evaluation.num_examples": 64})
        acting = schedules.effective(run.state.schedule, config.schedule.num_steps)
        other = run.under(config)._replace(state=run.state.replace(schedule=acting))
        assert evaluation.bits_per_dim(other, dataset)["time"] == f"{steps} steps"


def test_what_a_single_value_does_not_tell_is_left_out_or_refused(run_and_data):
    run, dataset = run_and_data
    one = {"evaluation.num_examples": 1}
    single = run.under(config_lib.changed(run.config, one))
    found = evaluation.evaluate(single, dataset, ["bpd", "bpd_ode"])
    assert found["bpd"]["vlb_variance"] > 0
    for bound in found.values():
        assert bound["num_examples"] == 1 and "standard_error" not in bound
    json.dumps(found, allow_nan=False)
    once = single.under(config_lib.changed(single.config, {"evaluation.repeats": 1}))
    with pytest.raises(ValueError, match="evaluation.repeats=1 with 1 example: .* at least 2"):
        evaluation.bits_per_dim(once, dataset)


def test_along_another_schedule_the_bound_agrees_and_its_variance_is_that_schedules(run_and_data):
    run, dataset = run_and_data
    own = evaluation.bits_per_dim(run, dataset)
    cosine = schedules.with_endpoints(schedules.cosine(), 8.0, -8.0)
    under = run._replace(state=run.state.replace(schedule=cosine))
    other = evaluation.bits_per_dim(under, dataset)
    error = math.sqrt((own["vlb_variance"] + other["vlb_variance"]) / 8000)
    assert abs(own["bpd"] - other["bpd"]) < 5 * error
    assert other["vlb_variance"] > 1.5 * own["vlb_variance"]


def test_bits_per_dim_by_the_ode(run_and_data):
    """Near the entropy, which the exact density would reach; the bound lies above it."""
    run, dataset = run_and_data
    found = evaluation.evaluate(run, dataset, ["bpd_ode", "bpd_vlb"], seed=3)
    ode, vlb = found["bpd_ode"], found["bpd_vlb"]
    assert (ode["num_examples"], ode["num_steps"], ode["seed"]) == (1000, 50, 3)
    # at the clean end, log-SNR 8, the density is wider than the data's: 0.05 bits/dim above it
    nats = entropy(data.default_mixture())
    error = math.hypot(ode["standard_error"], vlb["standard_error"])
    assert abs(ode["bpd"] - nats / (2 * math.log(2))) < 0.3
    assert ode["bpd"] < vlb["bpd"] + 4 * error


def test_samples_follow_the_seed_and_the_count(run_and_data):
    run, _ = run_and_data
    samples = evaluation.draw(run, 130, seed=1, batch_size=50)
    assert samples.shape == (130, 2) and np.all(np.isfinite(samples))
    np.testing.assert_array_equal(samples, evaluation.draw(run, 130, seed=1, batch_size=50))
    assert not np.array_equal(samples, evaluation.draw(run, 130, seed=2, batch_size=50))


def test_loss_by_log_snr_of_the_exact_predictor(run_and_data, monkeypatch):
    """With the exact predictor in the network's place the curve is the exact minimum."""
    run, _ = run_and_data
    mixture = three_modes()
    split = data.Split(np.asarray(mixture.sample(jax.random.key(0), 4000)))
    exact = by_log_snr(predicts(mixture))
    monkeypatch.setattr(diffusion, "predictor", lambda *args, **kwargs: exact)
    monkeypatch.setattr(diffusion_measures, "PROFILE_LEVELS", 5)
    curve = evaluation.profiles(run, split, num_examples=4000)["loss_by_log_snr"]
    np.testing.assert_allclose(curve["log_snr"], [-8, -4, 0, 4, 8], atol=1e-4)
    assert np.all(np.diff(curve["loss"]) > 0)  # the cleaner, the less the noise can be told
    assert curve["loss"][0] < 0.01 and 0.5 < curve["loss"][-1] < 1


class Points(nn.Module):
    """Points stand for their features."""

    def __call__(self, x):
        return x, x


def test_distances_of_samples(run_and_data, monkeypatch):
    """The samples are drawn once."""
    run, dataset = run_and_data
    run.config.evaluation.num_samples = 300
    classifier = evaluation.Extractor("classifier", Points(), {}, "f", {"classifier_accuracy": 0.9})
    monkeypatch.setattr(extractors, "get_classifier", lambda dataset, seed: classifier)
    draw, drawn = evaluation.draw, []
    monkeypatch.setattr(run_module, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    found = evaluation.evaluate(run, dataset, ["bpd", "frechet", "kid", "prdc", "swd"], seed=2)
    (samples,), train = drawn, dataset.train.x
    assert list(found) == ["bpd", "frechet", "kid", "prdc", "swd"]
    own, some = samples[evaluation.shuffled(300, 2)], train[evaluation.shuffled(len(train), 2)]
    kid = evaluation.kernel_distance(own, some[:300])
    assert (found["kid"]["kid"], found["kid"]["standard_error"]) == kid
    held_out = dataset.eval.x[evaluation.shuffled(len(dataset.eval), 2)[:300]]
    assert found["kid"]["floor"] == evaluation.kernel_distance(held_out, some[:300]).value
    assert evaluation.prdc(own, some[:300]).coverage == found["prdc"]["coverage"]
    assert found["swd"]["swd"] == evaluation.sliced_wasserstein(own, some[:10_000], seed=2)
    assert found["swd"]["swd"] > found["swd"]["floor"] > 0 and found["swd"]["num_floor"] == 300
    frechet = found["frechet"]
    both = map(evaluation.FeatureStatistics.of, (samples, train))
    assert frechet["frechet"] == pytest.approx(evaluation.frechet_distance(*both))
    assert frechet["low"] < frechet["frechet"] < frechet["high"]
    assert frechet["floor"] < frechet["frechet"] and frechet["num_floor"] == len(dataset.eval)
    assert frechet["classifier_accuracy"] == 0.9
    for name in ("frechet", "kid", "prdc", "swd"):
        about = found[name]
        assert (about["num_samples"], about["seed"], about["step"]) == (300, 2, 300)
        assert (about["sampling"]["sampler"], about["sampling"]["num_steps"]) == ("ddim", 20)
    for name in ("kid", "prdc"):
        assert found[name]["reference"] == "mixture2d, train, 300 examples"


def test_refusals(run_and_data):
    run, dataset = run_and_data
    with pytest.raises(ValueError, match="'fd'.* bpd, bpd_vlb, bpd_ode, frechet, .*swd"):
        evaluation.evaluate(run, dataset, ["bpd", "fd"])
    with pytest.raises(ValueError, match="labelled"):
        evaluation.evaluate(run, dataset, ["frechet"])
