"""The main experiment's arms are configs that can be run, at every choice of endpoints."""

import importlib.util
from pathlib import Path

import pytest

from diffax import config as config_lib
from diffax.ablation import runner

ROOT = Path(__file__).parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPERIMENT = load(ROOT / "experiments" / "learned_vs_cosine.py")


@pytest.mark.parametrize("endpoints", EXPERIMENT.ENDPOINTS)
def test_every_arm_can_be_run(endpoints):
    config = EXPERIMENT.load_config(ROOT / "configs" / "ablation_digits.py")
    arms = EXPERIMENT.make_arms(endpoints)
    assert [arm.name for arm in arms] == list(EXPERIMENT.ARMS)
    for arm in arms:
        config_lib.validate(runner.arm_config(config, arm, seed=0))
    spec = EXPERIMENT.make_spec("command", endpoints, config)
    assert "600 steps" in spec.method and "simple loss" in spec.question
