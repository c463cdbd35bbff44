"""Configs: defaults, every refusal, JSON, command-line overrides, and what configs build."""

import importlib
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax import models, objectives, process, samplers, schedules, time_sampling
from diffax.config import checks, optimizers, reading, storage
from diffax.config.storage import flat
from diffax.training import DatasetInfo

CONFIGS = sorted(path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
IMAGES = DatasetInfo("images", (8, 8, 1), 10, 256, ())
POINTS = DatasetInfo("points", (2,), 0, None, ())


def with_values(changes: dict) -> ConfigDict:
    """The default config with some keys set, whatever their types and whether they exist."""
    tree = config_lib.default_config().to_dict()
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return ConfigDict(tree)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("training.batchsize", 3, ["training.batchsize", "did you mean training.batch_size"]),
        ("training.batchsize", 3, ["training has", "num_steps", "log_every"]),
        ("optimiser.name", "adam", ["optimiser", "did you mean optimizer", "the top level has"]),
        ("batch_size", 3, ["did you mean", "training.batch_size", "evaluation.batch_size"]),
        ("optimizer.adam.beta", 0.9, ["optimizer.adam", "optimizer has"]),
        ("training.batch_size", "many", ["training.batch_size", "'many'", "str", "int"]),
        ("training.batch_size", 1.5, ["training.batch_size", "1.5", "float", "int"]),
        ("training.batch_size", True, ["training.batch_size", "True", "bool", "int"]),
        ("training.batch_size", None, ["training.batch_size", "None", "int"]),
        ("training.tensorboard", 1, ["training.tensorboard", "bool"]),
        ("model.unet.channel_mults", 2, ["model.unet.channel_mults", "tuple"]),
        ("schedule.s", "small", ["schedule.s", "'small'", "float or None"]),
        ("training.batch_size", 0, ["training.batch_size is 0", "at least 1"]),
        ("training.num_steps", 0, ["training.num_steps is 0", "at least 1"]),
        ("training.log_every", 0, ["training.log_every is 0", "at least 1"]),
        ("training.keep_checkpoints", 0, ["training.keep_checkpoints is 0", "at least 1"]),
        ("training.checkpoint_every", -1, ["training.checkpoint_every is -1", "at least 0"]),
        ("optimizer.learning_rate", -1e-3, ["optimizer.learning_rate is -0.001", "positive"]),
        ("optimizer.learning_rate", float("inf"), ["optimizer.learning_rate is inf", "positive"]),
        ("optimizer.learning_rate", float("nan"), ["optimizer.learning_rate is nan"]),
        ("optimizer.clip_norm", -1.0, ["optimizer.clip_norm is -1.0", "at least 0"]),
        ("optimizer.weight_decay", 0.1, ["weight_decay=0.1", "'adam'", "adamw", "lion"]),
        ("ema.decay", 1.0, ["ema.decay is 1.0", "below 1"]),
        ("model.label_dropout", 1.5, ["model.label_dropout is 1.5", "between 0 and 1"]),
        ("seed", -1, ["seed is -1", "at least 0"]),
        ("parallel.num_devices", -1, ["parallel.num_devices is -1", "at least 0"]),
        ("schedule.input_scale", 0.0, ["schedule.input_scale is 0.0", "positive"]),
        ("schedule.s", -1.0, ["config.schedule", "s=-1", "positive"]),
        ("schedule.tau", 1.0, ["'cosine'", "'tau'", "allowed are s"]),
        ("schedule.log_snr_max", 5.0, ["log_snr_max and log_snr_min", "both or neither"]),
        ("schedule.zero_terminal_snr", True, ["prediction='eps'", "prediction='v'"]),
        ("schedule.num_steps", 20, ["config.sampling", "num_steps=50", "1 to 20"]),
        ("model.unet.channels", 33, ["config.model", "channels is 33", "even"]),
        ("model.unet.conditioning", "steps", ["conditioning is 'steps'", "log_snr, step"]),
        ("sampling.num_steps", 0, ["sampling.num_steps is 0", "at least 1"]),
        ("sampling.eta", 2.0, ["config.sampling", "eta=2.0", "0 (deterministic) to 1"]),
        ("sampling.variance", "learned", ["'ddim'", "'variance'", "allowed are eta"]),
        ("objective.learned_variance", True, ["learned_variance", "schedule.num_steps"]),
        ("evaluation.metrics", ("fd_lite",), ["metrics='fd_lite'", "did you mean fd_lite0"]),
        ("training.eval_every", 5, ["eval_every=5", "finite", "schedule.log_snr_max"]),
        ("schedule_learning.objective", "vlb", ["objective='vlb'", "num_steps", "at least 1"]),
    ],
)
def test_refused(key, value, words):
    """One sentence that names the key, the value and what is allowed."""
    with pytest.raises(ValueError) as caught:
        config_lib.validate(with_values({key: value}))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule.num_steps": 20}, ["config.sampling", "num_steps=50", "1 to 20"]),
        ({"schedule.num_steps": 1}, ["config.sampling", "num_steps=50", "1 to 1, the"]),
        ({"model.unet.conditioning": "step"}, ["conditioning='step'", "log_snr"]),
        ({"training.batch_size": 33}, ["training.batch_size is 33", "even"]),
        ({"schedule.kind": "spline"}, ["kind='spline'", "monotone, piecewise_linear, polynomial"]),
    ],
)
def test_refused_with_a_learned_schedule(changes, words):
    with pytest.raises(ValueError) as caught:
        config_lib.validate(with_values({"schedule.name": "learned", **changes}))
    for word in words:
        assert word in str(caught.value)


def test_infinite_ends_are_refused_for_what_is_learned():
    """A learned schedule whose SNR ends at zero exactly has no bound to follow."""
    config = with_values(
        {
            "schedule.name": "learned",
            "schedule.zero_terminal_snr": True,
            "objective.prediction": "v",
        }
    )
    with pytest.raises(ValueError, match="learning the schedule needs finite log-SNR"):
        config_lib.validate(config)


# Keys that take a name, with the table that the names come from.
NAMED = {
    "model.name": models.MODELS,
    "schedule.name": schedules.names(),
    "schedule_learning.objective": objectives.SCHEDULE_OBJECTIVES,
    "schedule_learning.optimizer": optimizers.OPTIMIZERS,
    "schedule_learning.decay": optimizers.DECAYS,
    "objective.prediction": process.PREDICTIONS,
    "objective.weighting": objectives.WEIGHTINGS,
    "objective.time_sampling": time_sampling.TIME_SAMPLERS,
    "optimizer.name": optimizers.OPTIMIZERS,
    "optimizer.decay": optimizers.DECAYS,
    "sampling.sampler": samplers.SAMPLERS,
    "sampling.grid": (*samplers.GRIDS, *samplers.grid_search.METHODS),
}


@pytest.mark.parametrize("key", NAMED)
def test_unknown_names_are_refused_with_the_allowed_ones(key):
    with pytest.raises(ValueError) as caught:
        config_lib.validate(with_values({key: "nonsense"}))
    assert str(caught.value) == (
        f"config.{key} is 'nonsense'; it must be one of {', '.join(checks_order(key))}"
    )


def checks_order(key):
    """The allowed names, in the order that the message gives them."""
    return sorted(NAMED[key]) if key == "model.name" else list(NAMED[key])


@pytest.mark.parametrize("key", NAMED)
def test_every_name_of_every_table_is_allowed(key):
    """Alone the rule is asked: some names need other keys to fit."""
    for name in NAMED[key]:
        assert checks.RULES[key].holds(name)


def test_a_missing_key_is_refused():
    config = config_lib.default_config()
    del config.ema.decay
    with pytest.raises(ValueError, match=r"config.ema.decay is missing"):
        config_lib.validate(config)


def test_rules_are_for_keys_that_exist():
    assert set(checks.RULES) <= set(flat(config_lib.default_config()))


# --- what is allowed ------------------------------------------------------------------------


def test_default_config_is_valid():
    config_lib.validate(config_lib.default_config())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_in_the_folder_are_valid(name):
    """Each has a docstring with its command, and a config that passes every check."""
    module = importlib.import_module(f"configs.{name}")
    command = rf"^    (diffax train --config=configs/{name}.py --workdir=|python experiments/)"
    assert re.search(command, module.__doc__, re.MULTILINE)
    config = module.get_config()
    config_lib.validate(config)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again) == {}


@pytest.mark.parametrize("name", schedules.names())
def test_every_schedule_can_be_built_at_given_ends(name):
    config = with_values(
        {"schedule.name": name, "schedule.log_snr_max": 6.0, "schedule.log_snr_min": -6.0}
    )
    config_lib.validate(config)
    schedule = config_lib.build_schedule(config)
    ends = np.asarray(schedules.ends_of(schedule))
    np.testing.assert_allclose(ends, [6.0, -6.0], atol=1e-4)
    assert schedules.is_learned(schedule) == (name == "learned")


@pytest.mark.usefixtures("registering")
def test_a_registered_schedule_has_keys_of_its_own():
    """Its keywords appear in the config, with the types of their defaults."""
    schedules.register(
        "power", lambda power=2.0: schedules.from_log_snr(_power_log_snr, power=power)
    )
    config = config_lib.default_config()
    assert config.schedule.power is None
    config.schedule.name = "power"
    config.schedule.power = 3
    config_lib.validate(config)
    assert float(config_lib.build_schedule(config).log_snr(0.5)) == pytest.approx(10 - 20 / 8)


def _power_log_snr(t, power):
    return 10.0 - 20.0 * t**power


def test_transforms_are_applied_in_the_documented_order():
    changes = {
        "schedule.name": "linear_logsnr",
        "schedule.log_snr_max": 8.0,
        "schedule.input_scale": 0.5,
        "schedule.base_resolution": 32,
    }
    config = with_values(changes)
    schedule = config_lib.build_schedule(config, shape=(64, 48, 3))
    shift = 2 * np.log(0.5) + 2 * np.log(32 / 64)
    t = jnp.linspace(0.0, 1.0, 5)
    np.testing.assert_allclose(schedule.log_snr(t), 8 - 18 * t + shift, rtol=1e-5)

    config = with_values(changes | {"schedule.zero_terminal_snr": True, "schedule.num_steps": 10})
    schedule = config_lib.build_schedule(config, shape=(64, 48, 3))
    assert schedule.num_steps == 10
    assert schedule.zero_terminal
    assert float(schedule.log_snr(9)) == -np.inf
    assert not schedules.is_learned(schedule)


def test_learned_schedules_take_their_options_and_their_key():
    config = with_values({"schedule.name": "learned", "schedule.size": 5})
    first, second = (config_lib.build_schedule(config, key=jax.random.key(k)) for k in (1, 2))
    assert first.shape["steepness"].shape == (5,)
    assert not np.array_equal(first.shape["steepness"], second.shape["steepness"])
    config.schedule.learn_endpoints = True
    assert config_lib.build_schedule(config).ends.shape == (2,)


# --- optimisers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_descends(name):
    optimizer = optimizers.optimizer(name, 0.05, clip_norm=1.0)
    x = jnp.array([1.0, -2.0])
    state = optimizer.init(x)
    for _ in range(20):
        updates, state = optimizer.update(2 * x, state, x)
        x = optax.apply_updates(x, updates)
    assert float(jnp.sum(x**2)) < 0.9 * 5


def test_clip_norm_clips():
    optimizer = optimizers.optimizer("sgd", 1.0, clip_norm=0.5)
    update, _ = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(jnp.zeros(2)))
    np.testing.assert_allclose(update, [-0.3, -0.4], rtol=1e-6)
    free = optimizers.optimizer("sgd", 1.0, clip_norm=0.0)
    update, _ = free.update(jnp.array([3.0, 4.0]), free.init(jnp.zeros(2)))
    np.testing.assert_allclose(update, [-3.0, -4.0], rtol=1e-6)


def test_learning_rate_follows_its_formula():
    at = {decay: optimizers.learning_rate(2.0, 10, decay, 110) for decay in optimizers.DECAYS}
    for rate in at.values():
        assert float(rate(0)) == pytest.approx(0.2)
        assert float(rate(9)) == pytest.approx(2.0)
        assert float(rate(10)) == pytest.approx(2.0)
    assert [float(at[decay](60)) for decay in ("constant", "cosine", "linear")] == pytest.approx(
        [2.0, 1.0, 1.0]
    )
    assert float(at["cosine"](35)) == pytest.approx(1 + np.cos(np.pi / 4))
    assert [float(at[decay](200)) for decay in at] == pytest.approx([2.0, 0.0, 0.0], abs=1e-6)
    assert float(optimizers.learning_rate(2.0, 0, "cosine", 100)(0)) == 2.0


# --- models ---------------------------------------------------------------------------------


def test_model_is_told_classes_and_variance():
    config = with_values({"model.class_conditional": True, "objective.learned_variance": True})
    model = config_lib.build_model(config, IMAGES)
    assert (model.num_classes, model.learned_variance) == (10, True)
    assert config_lib.build_model(config_lib.default_config(), IMAGES).num_classes == 0
    with pytest.raises(ValueError, match=r"class_conditional=True, but .* 'points' has no labels"):
        config_lib.build_model(config, POINTS)


# --- storage --------------------------------------------------------------------------------


def test_json_keeps_every_value():
    config = with_values({"schedule.s": 0.01, "model.unet.channel_mults": (1, 3), "seed": 7})
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again) == {}
    assert (again.schedule.s, again.model.unet.channel_mults, again.seed) == (0.01, (1, 3), 7)
    config_lib.validate(again)


def test_json_that_is_no_config_is_refused():
    for text in ("{", '{"seed": "x"}', '{"training": 3}'):
        with pytest.raises(ValueError, match="not a saved config"):
            config_lib.from_json(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", r"not a saved config: it holds \[\], and no keys"),
        ("null", "not a saved config: it holds None"),
        ('{"training": 5}', "training is 5, of type int; it is a section of keys"),
        ('{"model": {"mlp": {"width": "64"}}}', "model.mlp.width is '64', of type str; it must be"),
    ],
)
def test_json_of_another_type_is_named(text, said):
    with pytest.raises(ValueError, match=said):
        config_lib.from_json(text)


def test_a_number_of_the_likelihood_is_no_score_of_samples():
    config = config_lib.default_config()
    config.evaluation.metrics = ("bpd", "bpd")
    with pytest.raises(ValueError, match="metrics='bpd': metrics are scores of samples"):
        config_lib.validate(config)


def test_json_of_an_older_config_gets_new_keys_by_default():
    assert config_lib.from_json('{"seed": 3}').training.batch_size == 128


# Fields of all networks lay side by side; None was a network's default.
FLAT = {
    "name": "mlp", "class_conditional": True, "label_dropout": 0.2, "channels": 64,
    "channel_mults": [1, 2, 2], "conditioning": "log_snr", "width": 32, "depth": None, "chanels": 3,
}  # fmt: skip


def test_a_config_saved_with_flat_fields_of_networks_gets_them_by_its_network():
    saved = config_lib.saved(json.dumps({"seed": 3, "model": FLAT}))
    assert config_lib.unknown_keys(saved) == ["model.chanels"]
    own = {key: value for key, value in FLAT.items() if key != "chanels"}
    text = json.dumps({"seed": 3, "model": own})
    config = config_lib.from_json(text)
    config_lib.validate(config)
    assert (config.seed, config.model.label_dropout, config.model.mlp.width) == (3, 0.2, 32)
    assert config.model.to_dict().keys() == config_lib.default_config().model.to_dict().keys()
    now = with_values(
        {"seed": 3, "model.name": "mlp", "model.class_conditional": True, "model.mlp.width": 32,
         "model.label_dropout": 0.2}
    )  # fmt: skip
    assert config_lib.differences(config_lib.saved(text), now) == {}
    assert config_lib.differences(config, now) == {}
    own["name"] = "unet"
    assert config_lib.from_json(json.dumps({"model": own})).model.unet.channels == 64


def test_fields_of_other_networks_count_nowhere():
    config, other = with_values({"model.mlp.width": 64}), config_lib.default_config()
    config_lib.validate(config)
    assert config_lib.differences(config, other) == {}
    assert config_lib.relevant(config) == config_lib.relevant(other)
    assert "mlp" not in config_lib.relevant(config)["model"]
    assert config_lib.relevant(config, ["mlp"])["model"]["mlp"]["width"] == 64
    assert "model.mlp.width has no effect" in config_lib.remarks(config)[0]
    config.model.name = "mlp"
    assert config_lib.differences(config, other) == {"model.name": ("mlp", "unet")}
    config_lib.validate(config)
    with config.unlocked(), config.ignore_type():
        config.model.unet.channels = "many"  # of no consequence
    config_lib.validate(config)


def test_networks_may_have_fields_of_one_name_and_different_types(registering):
    class Wide(models.MLP):
        width: str = "broad"

    models.register("wide", Wide)
    config = config_lib.default_config()
    assert (config.model.wide.width, config.model.mlp.width) == ("broad", 128)
    models.register("class_conditional", models.MLP)
    with pytest.raises(ValueError, match="a network can't be named 'class_conditional'"):
        config_lib.default_config()


def test_differences_name_each_key():
    new = with_values({"seed": 1, "schedule.s": 0.1})
    assert config_lib.differences(config_lib.default_config(), new) == {
        "seed": (0, 1),
        "schedule.s": (None, 0.1),
    }


def test_the_advice_in_the_config_of_emoji_clips_no_latents():
    path = pathlib.Path(__file__).parent.parent / "configs" / "emoji.py"
    config = storage.read_file(str(path))
    advised = re.findall(r"--config\.(\S+=\S+)", path.read_text().partition("in the latents")[0])
    advised = advised[[text.startswith("codec.name=") for text in advised].index(True) :]
    reading.override(config, advised)
    assert config.codec.name == "taef2" and config.data.image_size == 64
    assert not [remark for remark in checks.remarks(config) if "clip_x0" in remark]
