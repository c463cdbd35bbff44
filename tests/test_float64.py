"""JAX's 64-bit mode, in the library and from training to evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schedule_cases
from exact import independent
from small_runs import LEARNED, compiled_quickly, small_config

import diffax
from diffax import data, evaluation, likelihood, objectives, samplers, schedules, training

KEY = jax.random.key(0)
# Made in float32, before the mode is on, as a run's schedule is.
EARLIER = {
    name: make()
    for name, make in schedule_cases.REPRESENTATIVE.items()
    if name in ("bounded sigmoid_beta", "learned(monotone, learned ends)", "discrete linear")
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", EARLIER)
def test_the_library_takes_float32_and_float64(name, dtype):
    """Shapes alone: what mixes the two ends in an error of a scan's or a branch's types."""
    with jax.enable_x64(True):
        schedule, predict = EARLIER[name], independent(0.3, 0.4)
        x = jnp.linspace(-1, 1, 24).reshape(4, 3, 2).astype(dtype)
        t = jnp.array([1, 3, 7, 9]) if schedule.num_steps else jnp.array([0.1, 0.2, 0.5, 0.9])
        s = t - 1 if schedule.num_steps else t / 2
        of_data = {
            "q_sample": lambda: diffax.q_sample(schedule, x, t, x),
            "q_step": lambda: diffax.q_step(schedule, x, t, x, s),
            "q_posterior": lambda: diffax.q_posterior(schedule, x, x, t, s)[0],
            "sdedit": lambda: samplers.sdedit(KEY, predict, schedule, x, 0.5, 6),
            "inpaint": lambda: samplers.inpaint(KEY, predict, schedule, x, jnp.ones(2), 6),
            "invert": lambda: samplers.invert(predict, schedule, x, 6),
        }
        for what, function in of_data.items():
            assert jax.eval_shape(function).dtype == dtype, what
        jax.eval_shape(lambda: objectives.training_loss(KEY, predict, schedule, x, t))
        if all(map(np.isfinite, schedules.concrete_ends(schedule))):
            jax.eval_shape(lambda: diffax.vlb(KEY, predict, schedule, x))
            for steps in (3, None):
                by_ode = jax.eval_shape(
                    lambda n=steps: likelihood.ode_bits_per_dim(
                        predict, schedule, x, key=KEY, num_steps=n
                    )
                )
                assert by_ode.dtype == dtype
        if schedule.num_steps is None and jax.tree.leaves(schedule):
            gradient = jax.eval_shape(
                lambda: objectives.schedule_gradient(KEY, predict, schedule, x)
            )
            assert jax.tree.structure(gradient) == jax.tree.structure(schedule)


def test_a_run_is_trained_sampled_and_evaluated(tmp_path):
    config = small_config(
        **LEARNED,
        training__num_steps=4,
        training__eval_every=4,
        evaluation__ode_num_steps=3,
        evaluation__gradient_batches=2,
        evaluation__num_examples=20,
        evaluation__repeats=1,
    )
    with jax.enable_x64(True), compiled_quickly(tmp_path / "programs"):
        _, metrics = training.train(config, tmp_path / "run")
        run = training.load(tmp_path / "run")
        drawn = diffax.Generator(run)(6, sampler="plms")
        found = evaluation.evaluate(run, data.load(config.data), ["bpd", "bpd_ode"])
    assert all(map(np.isfinite, metrics.values()))
    assert np.all(np.isfinite(drawn)) and drawn.shape == (6, 2)
    assert np.isfinite(found["bpd"]["bpd"]) and np.isfinite(found["bpd_ode"]["bpd"])
