"""The variance of the gradient of the network's loss, where it is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MIXTURE, compiled_quickly, first_state, small_config

from diffax import config as config_lib
from diffax import data, distributed, evaluation, methods, objectives, time_sampling, training
from diffax.config.methods import PARTS


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


class Constant(nn.Module):
    """Predicts one number, whatever it is asked."""

    conditioning: str = "log_snr"

    @nn.compact
    def __call__(self, x, noise_level, label=None, train=False):
        w = self.param("w", nn.initializers.constant(0.5), ())
        return jnp.full_like(x, 1.0) * w


def method_with(config, model):
    """The method of a config, with another network."""
    taken = methods.arguments_of("diffusion")
    parts = {name: make(config, MIXTURE) for name, make in PARTS.items() if name in taken}
    return methods.get("diffusion", **{**parts, "network": model})


def variance_of(config, model, num_batches, devices=1, fsdp=1, seed=0):
    method = method_with(config, model)
    mesh = distributed.make_mesh(devices, fsdp)
    function = training.make_gradient_variance(
        method, data.load(config.data).train, mesh, config.training.batch_size, num_batches
    )
    return function(method.init(jax.random.key(config.seed)), seed)


def test_of_a_constant_prediction_of_noise():
    """The gradient is 2 mean(w - eps) over 32 points of 2 numbers: its variance 4 / 64."""
    num = 1500
    found = variance_of(small_config(), Constant(), num)
    # of a normal variable's sample variance, 5 of its deviations
    assert found == pytest.approx(4 / 64, rel=5 * np.sqrt(2 / (num - 1)))
    accumulated = small_config(training__grad_accumulation=4)
    assert variance_of(accumulated, Constant(), 300) == pytest.approx(
        4 / 64, rel=5 * np.sqrt(2 / 299)
    )


def test_it_is_the_trace_of_the_covariance_of_gradients():
    """Against gradients taken one by one, in float64."""
    config = small_config(objective__weighting="min_snr")
    dataset, model = data.load(config.data), config_lib.build_model(config, MIXTURE)
    state = first_state(config, method_with(config, model))

    @jax.jit
    def gradient(x0, key):
        keys = jax.random.split(key, 5)
        u, _ = time_sampling.stratified().sample((), keys[0], 32)
        noise = jax.random.normal(keys[1], x0.shape)

        def loss(params):
            predict = training.predictor(model, params)
            losses, _ = objectives.training_loss(
                None, predict, state.schedule, x0, u, weighting="min_snr", noise=noise
            )
            return jnp.mean(losses)

        return jax.grad(loss)(state.params)

    rng, rows = np.random.default_rng(3), []
    for i in range(6):
        x0 = dataset.train.array(rng.choice(len(dataset.train), 32, replace=False))
        tree = gradient(x0, jax.random.fold_in(jax.random.key(3), i))
        rows.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))
    expected = np.var(np.asarray(rows, np.float64), axis=0, ddof=1).sum()
    for layout in ((1, 1), (4, 2)):
        assert variance_of(config, model, 6, *layout, seed=3) == pytest.approx(expected, rel=1e-3)


def test_larger_batches_have_less_of_it():
    """Four times the batch, a quarter of the variance, where times are drawn independently."""
    small = small_config(objective__time_sampling="uniform")
    large = config_lib.changed(small, {"training.batch_size": 128})
    model = config_lib.build_model(small, MIXTURE)
    ratio = variance_of(small, model, 200) / variance_of(large, model, 200)
    assert 2.5 < ratio < 6


def test_training_logs_it_and_a_run_has_it(tmp_path):
    changes = {"training__eval_every": 6, "evaluation__gradient_batches": 3}
    config = small_config(**changes, ema__decay=0.5)
    _, logged = training.train(config, tmp_path)
    run, dataset = training.load(tmp_path), data.load(config.data)
    found = evaluation.gradient_variance(run, dataset, config.seed)
    assert found["grad_variance"] == pytest.approx(logged["eval_grad_variance"], rel=1e-5)
    assert found["grad_variance"] > 0
    assert (found["num_batches"], found["batch_size"]) == (3, 32)


def test_one_batch_has_no_variance():
    with pytest.raises(ValueError, match="gradient_batches is 1; .* at least 2 and .* or 0"):
        config_lib.validate(small_config(evaluation__gradient_batches=1))
    with pytest.raises(ValueError, match="gradient_batches is 0; the variance of the gradient"):
        variance_of(small_config(), Constant(), 0)
