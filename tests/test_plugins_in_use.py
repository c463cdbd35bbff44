"""What a user registers, from training to the report: in other processes, later and elsewhere."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from plugin_cases import afresh

import diffax
from diffax import cli, plugins, registry, runtime, schedules, training
from diffax import config as config_lib
from diffax.ablation import Arm, Spec, runner

pytestmark = pytest.mark.usefixtures("registering")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The README's own example, as the top of a config file.
(POWER,) = re.findall(r"```python\n(from diffax import schedules\n.*?)```", README, re.DOTALL)
CONFIG = """
from diffax.config import default_config


def get_config():
    config = default_config()
    config.schedule.name = "power"
    config.schedule.p = 1.5
    config.data.name = "spiral"
    config.data.turns = 1.0
    config.model.name = "tower"
    config.model.tower.gain = 0.5
    config.objective.weighting = "flat"
    config.objective.time_sampling = "plain"
    config.optimizer.name = "gentle"
    config.sampling.sampler = "halfway"
    config.sampling.grid = "even"
    config.sampling.num_steps = 3
    config.training.batch_size = 32
    config.training.num_steps = 4
    config.parallel.num_devices = 1
    config.evaluation.metrics = ("reach",)
    config.evaluation.num_samples = 32
    config.evaluation.repeats = 2
    config.evaluation.gradient_batches = 0
    return config
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The config file and the plugin, in a folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in workers
    monkeypatch.setattr(runtime, "start", lambda *_, **__: None)
    (tmp_path / "mine.py").write_text(POWER + CONFIG)
    shutil.copy(ROOT / "tests" / "own_things.py", tmp_path / "own.py")
    return tmp_path


def run(*words):
    """A command, as in a process of its own."""
    afresh()
    assert cli.main(list(words)) == 0


def test_what_is_registered_is_known_to_every_command(files, capsys):
    run("train", "--config=mine.py", "--plugin=own.py", "--workdir=run")
    names = json.loads(Path("run/config.json").read_text())["plugins"]
    assert [name.partition("#")[0] for name in names] == ["own.py", "mine.py"]
    assert sorted(path.name[33:] for path in Path("run/plugins").glob("*-*.py")) == [
        "mine.py",
        "own.py",
    ]
    # Elsewhere: the files that were named are not there.
    Path("run").rename("elsewhere")
    for name in ("own.py", "mine.py"):
        Path(name).rename(f"{name}.gone")
    run("sample", "--workdir=elsewhere", "--num=4", "--out=drawn")
    run("sample", "--workdir=elsewhere", "--num=4", "--out=pulled", "--sampling.pull=0.25")
    drawn, pulled = (np.load(f"{name}.npz")["samples"] for name in ("drawn", "pulled"))
    assert drawn.shape == (4, 2) and not np.allclose(drawn, pulled)
    capsys.readouterr()
    run("evaluate", "--workdir=elsewhere", "--metrics=bpd,reach")
    assert re.search("^reach +[0-9.]+ ", capsys.readouterr().out, re.MULTILINE)
    generate = diffax.Generator("elsewhere")
    assert generate(3).shape == (3, 2)
    assert generate.run.config.schedule.p == 1.5 and generate.run.model.width == 8
    assert generate.run.config.model.mlp.width == 128  # a field of that name of another network

    # Another version of a plugin is said, and is no reason to train on.
    for name in ("own.py", "mine.py"):
        Path(f"{name}.gone").rename(name)
    Path("mine.py").write_text(Path("mine.py").read_text().replace("20.0", "21.0"))
    afresh()
    words = ["train", "--config=mine.py", "--plugin=own.py", "--workdir=elsewhere"]
    assert cli.main(words) == 1
    assert "another config: plugins was ('own.py#" in capsys.readouterr().err
    run("sample", "--workdir=elsewhere", "--num=4", "--out=again")
    run("sample", "--workdir=elsewhere", "--num=4", "--out=asked", "--plugin=mine.py")
    again, asked = (np.load(f"{name}.npz")["samples"] for name in ("again", "asked"))
    assert np.array_equal(again, drawn) and not np.allclose(asked, drawn)


def test_what_is_registered_is_known_to_the_workers_of_an_ablation(files, monkeypatch):
    """The arm with a built-in schedule included. The report itself, which asks nothing that is
    registered, is not drawn."""
    drawn = SimpleNamespace(table="", html="", markdown="", json="")
    monkeypatch.setattr(runner, "build_report", lambda *_, **__: drawn)
    config = ["--config=mine.py", "--plugin=own.py", "--config.schedule.p=None"]
    axis = ["--axis=schedule.name=power,cosine_logsnr", "--seeds=1", "--workers=2"]
    ends = ["--config.schedule.log_snr_max=10", "--config.schedule.log_snr_min=-10"]
    run("ablate", "--workdir=work", *config, *axis, *ends)
    results = [json.loads(path.read_text()) for path in Path("work/runs").glob("*/*/result.json")]
    assert len(results) == 2
    assert all({"reach", "bpd"} <= result["result"]["metrics"].keys() for result in results)
    assert {path.name[33:] for path in Path("work/plugins").glob("*-*.py")} == {"own.py", "mine.py"}
    (home, *_) = Path("work/trainings").glob("*power*/seed0")
    afresh()
    assert training.load(home).config.data.turns == 1.0


def test_a_config_of_a_program(files):
    """Keys that a plugin brings are there once it is loaded, also in a config from before."""
    first, second = config_lib.default_config(), config_lib.default_config()
    for config in (first, second):
        config.plugins = ("own.py", str(files / "mine.py"), "own.py")
        config.data.name, config.model.name = "spiral", "tower"
        config_lib.validate(config)
        assert config.data.turns is None and config.model.tower.gain == 1.0
        assert len(config.plugins) == 2 and all("#" in name for name in config.plugins)
    again = config_lib.from_json(config_lib.to_json(first))
    assert config_lib.differences(again, second) == {}
    afresh()
    with pytest.raises(ValueError, match="plugin own.py#.*: it is not loaded; name its file"):
        config_lib.from_json(config_lib.to_json(first))
    assert config_lib.saved(config_lib.to_json(first))["model.tower.gain"] == 1.0
    plugins.load("own.py")
    plugins.load("mine.py")
    assert config_lib.from_json(config_lib.to_json(first)).model.tower.gain == 1.0


def test_a_plugin_that_is_not_there_or_is_stopped_ends_the_command(files, capsys):
    Path("stop.py").write_text("raise KeyboardInterrupt")
    for given, status, said in (("stop.py", 130, "interrupted"), ("no.py", 1, "no such file")):
        assert cli.main(["schedules", f"--plugin={given}"]) == status
        assert said in capsys.readouterr().err


NETWORK = """
class Network(nn.Module):
    width: str = "x"  # of another type than another network's


models.register("{}", Network)
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("schedules.register('it', lambda num_steps=3: None)", "'num_steps' can be no argument of"),
        ("schedules.register('it', lambda p=3: None)", "'p' is of type int, that of 'power'"),
        (NETWORK.format("label_dropout"), "a network can't be named 'label_dropout'"),
        ("data.register('it', lambda name=3: None)", "'name' is of type int"),
    ],
)
def test_a_plugin_whose_keys_cannot_be_is_refused_and_leaves_nothing(code, words, files):
    Path("it.py").write_text(f"import flax.linen as nn\nfrom diffax import *\n{code}\n")
    plugins.load("mine.py")
    before, config = registry.added(), config_lib.default_config()
    config.plugins = ("it.py",)
    with pytest.raises(ValueError, match=words):
        config_lib.validate(config)
    assert registry.added() == before
    config_lib.validate(config_lib.default_config())


def test_what_no_plugin_registers_stays_in_its_program(files, monkeypatch, caplog):
    """No worker is asked for it, and elsewhere the run says what is missing."""
    plugins.load("own.py")
    schedules.register("here", lambda q=2.0: schedules.linear_logsnr(q, -q))
    config = config_lib.default_config()
    config.plugins = ("own.py",)
    config.data.name, config.model.name, config.schedule.name = "spiral", "tower", "here"
    config.evaluation.metrics = ("reach",)
    asked = {}

    def run_grid(*args, workers, **rest):
        asked["workers"] = workers
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_grid", run_grid)
    spec, arms = Spec("T", "Q?", "a", ()), [Arm("a"), Arm("b", {"schedule.q": 3.0})]
    with pytest.raises(KeyboardInterrupt):
        runner.run_ablation(spec, config, arms, [0], files / "work", workers=2)
    assert asked == {"workers": 1}
    assert "all runs are made in this process" in caplog.text

    (files / "run").mkdir()
    (files / "run" / "config.json").write_text(config_lib.to_json(config))
    plugins.keep(config.plugins, files / "run" / "plugins")
    afresh()
    registry.forget([("schedule", "here")])
    with pytest.raises(ValueError, match="no config has here, schedule.q: .* by --plugin"):
        training.load(files / "run")
