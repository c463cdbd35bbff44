"""The settings of papers as configs: each builds its network and trains, narrowed, for a step."""

import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import batch_of, step_of

from diffax import cli, training
from diffax.training import codecs

FOLDER = Path(__file__).parents[1] / "configs" / "published"
CONFIGS = sorted(FOLDER.glob("*.py"))
# What each network sees, and how far its size may be from the published one.
SHAPES = {
    "ddpm_cifar10": ((32, 32, 3), 0.01),
    "improved_ddpm_cifar10": ((32, 32, 3), 0.06),  # their file's name says 50M
    "improved_ddpm_imagenet64": ((64, 64, 3), 0.03),
    "vdm_cifar10": ((32, 32, 3), None),  # not published
    "edm_cifar10": ((32, 32, 3), 0.06),
    "dit_xl2_imagenet256": ((32, 32, 4), 0.01),
}
DIGITS = training.DatasetInfo("digits", (8, 8, 1), 10, 256, tuple("0123456789"))

pytestmark = pytest.mark.usefixtures("hasty_compiler")


def named(path):
    return path.stem


def read(path):
    config = cli.read_config(str(path), [])
    config.codec.name, config.codec.path = "identity", ""  # the latents are what the shape says
    return config


def test_each_config_is_tried():
    assert {path.stem for path in CONFIGS} == SHAPES.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_the_network_has_the_published_size(path):
    shape, tolerance = SHAPES[path.stem]
    info = training.DatasetInfo("of the paper", shape, 1000, 256, tuple(map(str, range(1000))))
    state = jax.eval_shape(codecs.build_method(read(path), info).init, jax.random.key(0))
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    text = " ".join(path.read_text(encoding="utf-8").split('"""')[1].split())
    for part in ("diffax train --config=configs/published/", "Published", "Hardware", "Run here"):
        assert part in text
    assert "Not theirs" in text
    told = re.findall(r"([\d.]+)M parameters", text)
    assert bool(told) == (tolerance is not None)
    if told:
        assert abs(size / (1e6 * float(told[0])) - 1) < tolerance, size


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_a_narrowed_copy_trains(path):
    config = read(path)
    config.data.name = "digits"
    unet, dit = config.model.unet, config.model.dit
    unet.channels, unet.head_width, unet.num_blocks = 8, 8, 1
    unet.channel_mults, unet.dropout = (1,), 0.0
    unet.attention_resolutions = ()  # in the middle alone
    dit.width, dit.depth, dit.head_width = 16, 1, 8
    unet.dtype = dit.dtype = "float32"
    config.training.batch_size = 8
    config.schedule_learning.update_every = 0  # tests/test_learned_schedule.py tries that
    config.schedule.num_steps = min(config.schedule.num_steps, 50)
    method = codecs.build_method(config, DIGITS)
    step = step_of(method)

    @jax.jit  # one program of both
    def first_step(key, batch):
        return step(method.init(key), batch)

    state, metrics = first_step(jax.random.key(0), batch_of(8, (8, 8, 1)))
    assert np.isfinite(metrics["loss"]) and int(state.step) == 1
    assert "skipped_steps" not in metrics
