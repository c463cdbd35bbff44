"""A training step is compiled once: what it gives back has the types of what it took."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MIXTURE, batch_of, small_config

from diffax import config as config_lib
from diffax import distributed, schedules
from diffax.config import optimizers
from diffax.models import platform
from diffax.schedules import registry
from diffax.schedules.fields import pytree
from diffax.training import loop

pytestmark = pytest.mark.usefixtures("hasty_compiler")

LEARNED = dict(schedule__name="learned", schedule__size=8)
DISCRETE = dict(schedule__num_steps=30, schedule__log_snr_max=None, schedule__log_snr_min=None)
PMAP = dict(parallel__mode="pmap", parallel__num_devices=2)
CASES = {
    "laplace": dict(schedule__name="laplace", objective__time_sampling="importance"),
    "linear, discrete": dict(DISCRETE, schedule__name="linear", model__mlp__dtype="bfloat16"),
    "learned variance": dict(DISCRETE, objective__learned_variance=True),
    "monotone": LEARNED,
    "monotone, learned ends, discrete": dict(
        LEARNED, schedule__learn_endpoints=True, schedule__num_steps=20
    ),
    "piecewise_linear, learned ends, accumulated": dict(
        LEARNED,
        schedule__kind="piecewise_linear",
        schedule__learn_endpoints=True,
        training__grad_accumulation=2,
    ),
    "polynomial, transformed, now and then": dict(
        LEARNED,
        schedule__kind="polynomial",
        schedule__input_scale=0.5,
        schedule_learning__update_every=3,
    ),
    "of one's own": dict(
        schedule__name="weak", schedule__log_snr_max=None, schedule__log_snr_min=None
    ),
    "pmap": dict(LEARNED, **PMAP),
    "pmap, importance, accumulated": dict(
        LEARNED, **PMAP, objective__time_sampling="importance", training__grad_accumulation=2
    ),
    "mesh": dict(
        LEARNED, parallel__num_devices=2, parallel__fsdp=2, schedule_learning__optimizer="adamw"
    ),
}


@pytree
class Weak(schedules.Schedule):
    """A learned schedule whose parameter has the weak type of a Python number."""

    reach: jax.Array

    def log_snr(self, t):
        return self.reach * (1 - 2 * schedules.base.as_float(t))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(registry.SCHEDULES, "weak", lambda: Weak(jnp.full((), 6.0)))
    # What is compiled with options of the compiler can't be traced by another transformation.
    monkeypatch.setattr(platform, "train_step_options", lambda: None)


@functools.cache  # both tests of a case trace its step once
def compiled(case):
    """A run's first state, as it is made and as shapes, its steps and a batch."""
    config = small_config(**CASES[case])
    mesh = distributed.make_mesh(config.parallel.num_devices, config.parallel.fsdp)
    method = config_lib.build_method(config, MIXTURE)
    like, init, steps = loop.compile_run(config, method, mesh)
    batch = steps.place(jax.tree.map(lambda a: np.asarray(a)[None], batch_of() | {"label": None}))
    return like, init, steps.step, batch


def types(tree):
    return {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.weak_type)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("case", CASES)
def test_the_state_keeps_its_types(case):
    like, _, step, batch = compiled(case)
    after, _ = jax.eval_shape(step, like, batch)
    assert types(after) == types(like)
    assert not any(weak for *_, weak in types(like).values())


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_an_optimiser_s_state_keeps_its_types(name):
    """Of the network and of a schedule, whose optimiser is told its parameters too."""
    parameters = {"network": jnp.zeros((3, 2)), "schedule": schedules.learned(size=4)}
    optimizer = optimizers.optimizer(name, lambda step: 0.1, clip_norm=1.0)
    state = optimizer.init(parameters)
    updates, after = jax.eval_shape(optimizer.update, parameters, state, parameters)
    assert types(after) == types(jax.eval_shape(lambda: state))
    assert types(updates) == types(jax.eval_shape(lambda: parameters))


@pytest.mark.parametrize("case", ["monotone", "pmap"])
def test_the_second_and_the_third_step_compile_nothing(case, caplog):
    _, init, step, batch = compiled(case)
    state, _ = step(init(jax.random.key(0)), batch)
    with jax.log_compiles():
        for _ in range(2):
            state, _ = step(state, batch)
    assert int(state.step) == 3
    assert not [record for record in caplog.records if "ompiling" in record.getMessage()]
