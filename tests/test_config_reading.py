"""What is written in flags and config files: how it is read, and what is said of what can't be."""

import json
import re

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from diffax import config as config_lib
from diffax.config import defaults, kinds, reading, storage


def overridden(*assignments):
    config = config_lib.default_config()
    reading.override(config, assignments)
    return config


def refusal(function, *arguments):
    """The one sentence of a refusal."""
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# --- the table of keys ----------------------------------------------------------------------


def test_every_key_has_a_meaning():
    unsaid = [k for k, key in defaults.keys().items() if not re.search("[a-z]{2}", key.meaning)]
    assert not unsaid


def test_every_default_is_of_its_keys_kind_and_every_key_in_a_config():
    config = config_lib.default_config()
    flat = config_lib.storage.flat(config)
    assert flat.keys() == defaults.keys().keys()
    for name, key in defaults.keys().items():
        assert key.kind.holds(key.default)
        assert flat[name] == key.default


# --- values of a kind -----------------------------------------------------------------------

READ = [
    ("training.batch_size=7", 7),
    ("seed=+5", 5),
    ("schedule.s=0.02", 0.02),
    ("schedule.s=1e-3", 1e-3),
    ("schedule.s=2", 2.0),
    ("schedule.s=inf", float("inf")),  # what is allowed is for the config's check to say
    ("schedule.s=None", None),
    ("schedule.size=16", 16),
    ("schedule.kind=monotone", "monotone"),
    ("schedule.learn_endpoints=true", True),
    ("training.tensorboard=False", False),
    ("training.tensorboard", True),
    ("model.unet.channel_mults=(1, 2, 3)", (1, 2, 3)),
    ("model.unet.channel_mults=[1]", (1,)),
    ("model.unet.channel_mults=(4,)", (4,)),
    ("model.unet.channel_mults=2,3", (2, 3)),
    ("model.unet.attention_resolutions=()", ()),
    ("sampling.guidance_interval=(-5,5)", (-5.0, 5.0)),
    ("evaluation.metrics=(kid,prdc)", ("kid", "prdc")),
    ("evaluation.metrics=('kid', \"prdc\")", ("kid", "prdc")),
    ("data.path=", ""),
    ("data.path=a=b, c", "a=b, c"),
    ("data.path=Bilder/Größe", "Bilder/Größe"),
]


@pytest.mark.parametrize(("text", "value"), READ)
def test_a_word_is_read_as_the_keys_kind(text, value):
    found = config_lib.storage.flat(overridden(text))[text.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)


def test_the_last_of_several_holds():
    config = overridden(
        "model.unet.channel_mults=(1,)", "model.unet.channel_mults=(2,3)", "seed=1", "seed=2"
    )
    assert (config.model.unet.channel_mults, config.seed) == ((2, 3), 2)
    key = "model.unet.attention_resolutions"
    config = overridden(f"{key}=(4,)", f"{key}=()")
    assert config.model.unet.attention_resolutions == ()


def test_none_is_set_back():
    config = config_lib.default_config()
    config.schedule.log_snr_max = 10.0
    reading.override(config, ["schedule.log_snr_max=None"])
    assert config.schedule.log_snr_max is None
    config_lib.validate(config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training.batch_size=none", "takes a whole number"),
        ("training.batch_size=1.5", "takes a whole number"),
        ("training.batch_size=1e3", "takes a whole number"),
        ("training.batch_size=None", "takes a whole number"),
        ("training.batch_size=", "takes a whole number"),
        ("training.batch_size=٣", "takes a whole number"),
        ("training.batch_size=1_000", "takes a whole number"),
        ("training.batch_size=" + "9" * 5000, "takes a whole number"),
        ("training.batch_size", "must read KEY=VALUE"),
        ("optimizer.learning_rate=fast", "takes a number"),
        ("optimizer.learning_rate=nan", "takes a number"),
        ("optimizer.learning_rate=0x10", "takes a number"),
        ("schedule.s=small", "takes a number, or None"),
        ("training.tensorboard=yes", "takes true or false"),
        ("data.name=None", "takes text"),
        ("model.unet.channel_mults=2", "takes whole numbers in brackets, as (1,2)"),
        ("model.unet.channel_mults=(1.5,)", "takes whole numbers in brackets"),
        ('model.unet.channel_mults=("a",)', "takes whole numbers in brackets"),
        ("model.unet.channel_mults=(,)", "takes whole numbers in brackets"),
        ("model.unet.channel_mults=(1,(2,))", "takes whole numbers in brackets"),
        ("model.unet.channel_mults=" + "(" * 5000, "takes whole numbers in brackets"),
        ("model.unet.channel_mults=__import__('os')", "takes whole numbers in brackets"),
        ("sampling.guidance_interval=(a,b)", "takes numbers in brackets, as (-5,5), or None"),
        ("evaluation.metrics=(kid,,prdc)", "takes words in brackets"),
        ("nope=1", "config has no key 'nope'; the top level has seed, data"),
        ("model.unet.chanels=8", "(did you mean model.unet.channels?); model.unet has channels,"),
        ("model.chanels=8", "model.generator.channels or model.unet.channels?);"),
        ("model.channels=8", "model.generator.channels or model.unet.channels?);"),
        ("model.dropout=0.1", "(did you mean model.unet.dropout?)"),
        ("model.dtype=float32", "model.generator.dtype or model.mlp.dtype or model.unet.dtype?)"),
        ("model.Channel-Mults=(1,)", "generator.channel_mults or model.unet.channel_mults?"),
        ("optimiser.name=adam", "did you mean optimizer?"),
        ("batch_size=3", "did you mean training.batch_size or evaluation.batch_size?"),
        ("model=unet", "model is a section; name one of its keys, name, class_conditional"),
        ("schedule.name.x=1", "schedule.name is a key, not a section"),
        ("=3", "config has no key ''"),
        (".=3", "config has no key '.'"),
        ("model.=3", "config has no key 'model.'"),
    ],
)
def test_an_override_that_cannot_be_is_one_sentence(text, said):
    message = refusal(overridden, text)
    assert message.startswith(f"--config.{text}: ") and said in message


def test_a_config_without_the_section_is_refused():
    message = refusal(reading.override, ConfigDict({"model": 3}), ["model.unet.channels=8"])
    assert message.startswith("--config.model.unet.channels=8: config.model.unet is missing")


@pytest.mark.parametrize(
    ("annotation", "default", "kind"),
    [
        (int, 3, kinds.Kind(int)),
        (float | None, None, kinds.Kind(float, None, True)),
        (tuple[int, ...], (), kinds.Kind(tuple, int)),
        (list[str], (), kinds.Kind(tuple, str)),
        (tuple[float, float] | None, None, kinds.Kind(tuple, float, True)),
        (None, (1, 2), kinds.Kind(tuple, int)),
        (tuple, (), kinds.Kind(tuple)),
        (None, False, kinds.Kind(bool)),
        (int | str, 3, kinds.Kind(int)),
        (ConfigDict, None, None),
    ],
)
def test_kinds_come_from_annotations_and_defaults(annotation, default, kind):
    assert kinds.kind_of(annotation, default) == kind


def test_a_tuple_of_anything_takes_each_entry_as_it_looks():
    kind = kinds.Kind(tuple)
    assert kind.read("(1,2.5,true,word)") == (1, 2.5, True, "word")
    assert kind.holds((1, 2.5, True, "word")) and not kind.holds((None,)) and not kind.holds(1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluation.metrics", (1.5,)),
        ("model.unet.channel_mults", ("a",)),
        ("model.unet.attention_resolutions", (1.5,)),
        ("model.unet.remat_levels", (True,)),
        ("sampling.guidance_interval", ("low", "high")),
    ],
)
def test_entries_of_a_tuple_have_a_type(key, value):
    config = config_lib.default_config()
    config.update_from_flattened_dict({key: value})
    message = refusal(config_lib.validate, config)
    assert f"config.{key} is {value!r}" in message and "it must be of type tuple of " in message


# --- config files ---------------------------------------------------------------------------

START = "from diffax.config import default_config\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:\n", "line 1: SyntaxError: "),
        ("x = 1\nimport nothing_of_that_name\n", "line 2: ModuleNotFoundError: No module named"),
        (START + "def get_config():\n    return default_config().modle\n", "line 3: AttributeErro"),
        (
            START + "def get_config():\n    c = default_config()\n    c.seed = 'a'\n",
            "line 4: TypeError: Could not override field 'seed'",
        ),
        ("def get_config():\n    raise SystemExit\n", "line 2: SystemExit: no message"),
        ("def get_config():\n    raise KeyError('a\\nb')\n", "line 2: KeyError: 'a\\nb'"),
        ("def get_config(name):\n    return name\n", "TypeError: get_config() missing 1 required"),
        ("def get_config():\n    return get_config()\n", "line 2: RecursionError: "),
        (
            "def get_config():\n    pass\n",
            "get_config() returned NoneType; it must return the Conf",
        ),
        ("def get_config():\n    return {}\n", "get_config() returned dict; it must return"),
        ("get_config = 3\n", "has no function get_config()"),
        ("", "has no function get_config()"),
        (json.dumps({"seed": 3, "data": None}), "is JSON; it must be Python"),
        ("\0\1\2", "is a binary file"),
        ("x = '\udcff'\n", "SyntaxError: "),
    ],
)
def test_a_config_file_that_is_none_is_one_sentence_with_its_line(text, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(storage.read_file, str(path))
    assert message.startswith(str(path)) and said in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c.training = 5", "TypeError: Could not override field 'training'"),
        ("c.update({'training': {'num_steps': 1.5}})", "TypeError: Could not override field 'num_"),
        ("c.training.num_steps = 'abc'", "TypeError: Could not override field 'num_steps'"),
        ("c['ema']['decay'] = ()", "TypeError: Could not override field 'decay'"),
        ("c.seed = (1, 2)", "TypeError: Could not override field 'seed'"),
        ("c.seed.x = 3", "AttributeError: 'int' object has no attribute 'x'"),
        ("c.get('seed', 1, 2)", "TypeError: "),
    ],
)
def test_a_value_that_a_key_cannot_have_is_named_with_the_line(line, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(START + f"\n\ndef get_config():\n    c = default_config()\n    {line}\n")
    message = refusal(storage.read_file, str(path))
    assert message.startswith(f"{path}, line {START.count(chr(10)) + 5}: {said}")


def test_what_is_no_file_is_refused(tmp_path):
    assert "is a directory" in refusal(storage.read_file, str(tmp_path))
    assert "no such file" in refusal(storage.read_file, str(tmp_path / "none.py"))
    assert "no such file" in refusal(storage.read_file, "")
    assert "null" in refusal(storage.read_file, "a\0b")


def test_an_error_in_another_file_names_the_line_that_leads_there(tmp_path, monkeypatch):
    (tmp_path / "helper_of_mine.py").write_text("def f():\n\n\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "mine.py"
    path.write_text("import helper_of_mine\n\nget_config = helper_of_mine.f()\n")
    message = refusal(storage.read_file, str(path))
    assert message == f"{path}, line 3: ZeroDivisionError: division by zero"


def test_a_frozen_config_can_be_overridden(tmp_path):
    path = tmp_path / "mine.py"
    frozen = "from ml_collections import FrozenConfigDict\n"
    path.write_text(
        START + frozen + "def get_config():\n    return FrozenConfigDict(default_config())\n"
    )
    config = storage.read_file(str(path))
    reading.override(config, ["seed=3", "schedule.s=0.5", "model.unet.channel_mults=(1,)"])
    assert not isinstance(config, FrozenConfigDict)
    config_lib.validate(config)
    assert (config.seed, config.schedule.s, config.model.unet.channel_mults) == (3, 0.5, (1,))
