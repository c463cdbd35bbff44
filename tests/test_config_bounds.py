"""Extreme values of a config: refused in one sentence, before anything of their size is made."""

import math
import time

import jax
import jax.numpy as jnp
import pytest
from small_runs import MIXTURE, small_config

from diffax import config as config_lib
from diffax import data, distributed, schedules
from diffax.config import checks, defaults
from diffax.training import loop


def refusal(**changes):
    """What validation says, in little time."""
    config = config_lib.default_config()
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        config_lib.validate(config)
    assert time.process_time() - start < 5
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("size", [2**31, 2**63, 10**30, -1])
@pytest.mark.parametrize(
    "key",
    [name for name, key in defaults.keys().items() if int in (key.kind.type, key.kind.element)],
)
def test_absurd_sizes_are_refused(key, size):
    """By the rule, and so before a table of that size is made."""
    if key.startswith("data.") or key == "sampling.order":
        return  # by the data's own check, and the solver's
    if key == "seed" and size == 2**31:
        return
    value = (size,) if defaults.keys()[key].kind.type is tuple else size
    with pytest.raises(ValueError, match="must be"):
        checks.check_value(key, value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(schedule__num_steps=2**31), "config.schedule.num_steps is 2147483648; it must be at"),
        (dict(sampling__num_steps=2**63), "config.sampling.num_steps is 9223372036854775808; it"),
        (dict(evaluation__vlb_num_steps=10**9), "config.evaluation.vlb_num_steps is 1000000000;"),
        (dict(model__unet__channels=2**31), "config.model.unet.channels is 2147483648; it"),
        (dict(model__unet__channel_mults=(1,) * 40), "config.model.unet.channel_mults is (1, 1,"),
        (
            dict(optimizer__learning_rate=1e-320),
            "config.optimizer.learning_rate is 1e-320; it must",
        ),
        (
            dict(model__name="mlp", model__mlp__width=65_536, model__mlp__depth=1000),
            "config.model: a network of this size has more than 12,884,901,888,000 parameters; at",
        ),
        (
            dict(
                model__unet__channels=16_384,
                model__unet__channel_mults=(64,) * 16,
                model__unet__num_blocks=32,
            ),
            "config.model: a network of this size has more than 6,860,",
        ),
        (dict(optimizer__learning_rate=1e308), "must be a positive number that float32 holds"),
        (
            dict(optimizer__name="adamw", optimizer__weight_decay=1e5),
            "config.optimizer: weight_decay=100000 and learning_rate=0.0003: their product must",
        ),
        (dict(objective__hybrid_weight=1e30), "config.objective.hybrid_weight is 1e+30; it must"),
        (dict(optimizer__clip_norm=1e-320), "must be a number of at least 0 that float32 holds"),
        (
            dict(ema__decay=0.999999999),
            "config.ema.decay is 0.999999999; it must be at least 0 and",
        ),
        (
            dict(sampling__guidance_scale=1e38),
            "config.sampling.guidance_scale is 1e+38; it must be",
        ),
        (dict(sampling__clip_x0=1e-320), "config.sampling.clip_x0 is 1e-320; it must be"),
        (dict(schedule__input_scale=1e10), "config.schedule.input_scale is 10000000000.0; it must"),
        (dict(schedule__s=1e308), "config.schedule: the log-SNR "),
        (
            dict(schedule__name="linear_logsnr", schedule__log_snr_max=1e308),
            "log_snr_max is 1e+308",
        ),
        (
            dict(schedule__name="sigmoid", schedule__tau=1e-320),
            "config.schedule: the log-SNR is nan",
        ),
        (
            dict(schedule__name="sigmoid", schedule__tau=0.01),
            " at t=0.0005; between its ends it must be",
        ),
        (dict(schedule__name="sigmoid", schedule__tau=1e300), "config.schedule: the log-SNR "),
        (dict(schedule__name="laplace", schedule__b=1e-20), "the log-SNR falls by 1.3"),
        (
            dict(schedule__name="laplace", schedule__b=1e-3, schedule__mu=9.0),
            "the log-SNR falls by 0.0138149 in all; it must fall by 0.1",
        ),
        (dict(schedule__name="laplace", schedule__mu=1e308), "the log-SNR is nan at t=0.0005"),
        (dict(schedule__name="edm", schedule__std=1e38), "config.schedule: the log-SNR "),
        (dict(schedule__name="linear", schedule__num_steps=10), "would make a beta of"),
    ],
)
def test_extreme_values_are_refused(changes, said):
    assert said in refusal(**changes)


def test_the_schedule_that_is_sampled_under_is_looked_at_too(monkeypatch):
    rising = schedules.from_log_snr(lambda t: 3.0 + t)
    config = config_lib.default_config()
    monkeypatch.setattr(checks.build, "build_sampling_schedule", lambda *_: rising)
    config.sampling.schedule = "linear"
    with pytest.raises(
        ValueError, match="config.sampling: the log-SNR must fall, and is 3.0005 at"
    ):
        config_lib.validate(config)


def test_a_learned_schedule_is_sampled_under_another():
    config = small_config(schedule__name="learned", sampling__schedule="linear_logsnr")
    config_lib.validate(config)


def test_a_number_beyond_a_float_is_refused():
    with pytest.raises(ValueError, match="schedule.s is 1000.*must be a number that a float can h"):
        checks._check_type("schedule.s", 10**400, defaults.keys()["schedule.s"].kind)


def test_a_warm_up_beyond_the_training_is_said():
    config = small_config(optimizer__warmup_steps=48)
    assert config_lib.remarks(config) == [
        "optimizer.warmup_steps=48 is more than training.num_steps=12: the learning rate rises to"
        " 0.25 of optimizer.learning_rate at most"
    ]
    config.optimizer.warmup_steps = 12
    assert not config_lib.remarks(config)


def test_attention_at_a_size_that_no_level_has_is_said():
    config = config_lib.default_config()
    config.model.unet.attention_resolutions = (16, 8, 7)
    signals = data.DatasetInfo("signals", (32, 1), 0, None, ())
    assert config_lib.remarks(config, signals) == [
        "model.unet.attention_resolutions names 7, and no level has that size: the levels of these"
        " data have 32, 16, 8"
    ]
    images = data.DatasetInfo("images", (16, 8, 1), 0, None, ())
    config.model.unet.attention_resolutions = (4,)
    assert not any("attention" in remark for remark in config_lib.remarks(config, images))
    assert not config_lib.remarks(small_config(), MIXTURE)


@pytest.mark.parametrize(
    "changes",
    [
        dict(model__name="mlp", model__mlp__width=32, model__mlp__depth=3),
        dict(model__name="unet", model__unet__channels=8, model__unet__channel_mults=(1, 2)),
    ],
)
def test_no_network_has_fewer_parameters_than_its_bound_says(changes):
    config = small_config(**changes)
    shape = (2,) if config.model.name == "mlp" else (16, 1)
    network = config_lib.build_model(config, data.DatasetInfo("a", shape, 0, None, ()))
    inputs = jnp.zeros((1, *shape)), jnp.zeros(1)
    made = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))
    assert network.least_parameters() < count < 4 * network.least_parameters()


def test_a_network_beyond_memory_is_refused_before_it_is_made():
    mesh = distributed.make_mesh(num_devices=1)

    def shapes(**changes):
        config = small_config(**changes)
        return jax.eval_shape(config_lib.build_method(config, MIXTURE).init, jax.random.key(0))

    said = (
        r"a network of [0-9]+,[0-9]{3},[0-9]{3},[0-9]{3} parameters, which take [0-9,.]+ GB on each"
    )
    with pytest.raises(ValueError, match=said):
        loop.check_memory(shapes(model__mlp__width=65_536, model__mlp__depth=3), mesh)
    loop.check_memory(shapes(), mesh)
