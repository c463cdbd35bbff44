"""The denoising GAN against the forward process and its posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MIXTURE, batch_of, small_config
from test_gan import GAN

import diffax
from diffax import config as config_lib
from diffax import process, training
from diffax.distributed import LOCAL

pytestmark = pytest.mark.usefixtures("hasty_compiler")

OWN = {
    **{key: value for key, value in GAN.items() if not key.startswith("model")},
    "method__name": "denoising_gan",
    "method__denoising_steps": 3,
    "sampling__num_steps": 3,
}


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        (dict(schedule__name="cosine"), [0, 1 / 3, 2 / 3, 1]),
        (dict(schedule__name="rectified_flow"), [0, 1 / 3, 2 / 3, 1]),
        # After 20, 40 and 60 steps; index t is after t + 1 steps.
        (dict(schedule__name="linear", schedule__num_steps=60), [-1, 19, 39, 59]),
    ],
)
def test_a_turn_is_of_the_forward_process_and_its_posterior(changes, times):
    """x_t and x_s as `q_sample`, `q_step` and `q_posterior` make them of the same noise and times,
    with the posterior at the generated x0; at the last step x_s is that x0."""
    ends = dict.fromkeys(("schedule__log_snr_max", "schedule__log_snr_min"))
    config = small_config(**{**OWN, **(ends if "num_steps" not in str(changes) else {}), **changes})
    config_lib.validate(config)
    method, schedule = config_lib.build_method(config, MIXTURE), config_lib.build_schedule(config)
    state, game = jax.jit(method.init)(jax.random.key(0)), method.step.__self__
    rng = np.random.default_rng(0)  # a network whose x0 is not zero
    params = jax.tree.map(lambda a: a + np.float32(0.1 * rng.normal(size=a.shape)), state.params)
    rows = game.rows(state, batch_of(64), jax.random.key(1), LOCAL)
    turn = game.play(params, rows)
    taken = 0
    for s, t in zip(times, times[1:]):
        # Samplers lay the times between the log-SNRs of -20 and 20, which moves them a little.
        level = jnp.maximum(schedule.log_snr(jnp.asarray(t)), -20.0)
        here = np.isclose(rows["log_snr_t"], level, atol=1e-2)
        taken += here.sum()
        x0, noise, z = (rows[name][here] for name in ("x", "step_noise", "z"))
        at = {"t": jnp.full(len(x0), t), "s": jnp.full(len(x0), s)}
        x_s = x0 if s == times[0] else process.q_sample(schedule, x0, at["s"], rows["noise"][here])
        np.testing.assert_allclose(turn.real[here], x_s, atol=2e-4)
        if s == times[0]:
            x_t = process.q_sample(schedule, x0, at["t"], noise)
        else:
            x_t = process.q_step(schedule, x_s, at["t"], noise, at["s"])
        seen = turn.judge_fake.__closure__
        x_t_seen = next(c.cell_contents for c in seen if np.shape(c.cell_contents) == (64, 2))[here]
        np.testing.assert_allclose(x_t_seen, x_t, atol=1e-3)
        made = config_lib.build_model(config, MIXTURE).apply(
            {"params": params}, x_t_seen, rows["log_snr_t"][here], latent=z
        )
        expected = made
        if s != times[0]:
            mean, variance = process.q_posterior(schedule, made, x_t_seen, at["t"], at["s"])
            expected = mean + jnp.sqrt(variance) * rows["posterior_noise"][here]
        np.testing.assert_allclose(turn.fake[here], expected, atol=1e-3)
        assert np.abs(made).mean() > 0.01
    assert taken == 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(sampling__num_steps=2),
            "sampling.num_steps is 2, and method 'denoising_gan' .* to 3",
        ),
        (dict(method__denoising_steps=0), "method.denoising_steps is 0; it must be at least 1"),
        (
            dict(schedule__num_steps=2),
            "num_steps=3: must be a whole number from 1 to 2, the schedule",
        ),
        (dict(schedule__name="learned"), "'denoising_gan' learns no schedule"),
        (dict(model__name="generator"), "denoises, and Generator does not"),
        (dict(model__mlp__conditioning="step"), "needs a network with conditioning='log_snr'"),
        (dict(model__class_conditional=True, sampling__guidance_scale=2.0), "has no guidance"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        config_lib.validate(small_config(**{**OWN, **changes}))


def test_samples_depend_on_their_key_alone_and_edits_are_refused(tmp_path):
    training.train(small_config(**OWN, training__num_steps=2), tmp_path)
    generate = diffax.Generator(tmp_path)
    few, many = generate(2, seed=3), generate(5, seed=3)
    np.testing.assert_allclose(few, many[:2], atol=1e-5)
    assert np.abs(generate(5, seed=4) - many).min() > 0
    with pytest.raises(ValueError, match="sdedit: method 'denoising_gan' edits no data"):
        generate.sdedit(many, 0.5)
    with pytest.raises(ValueError, match="set it to 3"):
        generate(2, num_steps=50)
