"""The numbers of a fixed schedule as arguments of the compiled step: one program for all values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MIXTURE, assert_close, compiled_quickly, first_state, small_config

from diffax import config as config_lib
from diffax import distributed, schedules, training
from diffax.data import sources
from diffax.distributed import steps
from diffax.schedules.fields import numbers, with_numbers

pytestmark = pytest.mark.usefixtures("hasty_compiler")


def fixed_schedules():
    for name in schedules.names():
        if name != "learned":
            own = schedules.get(name)
            between = schedules.with_endpoints(own, 6.0, -6.0)
            yield name, own
            yield f"{name} between", between
            yield f"{name} between, scaled", schedules.input_scaled(between, 0.7)
    line = schedules.linear_logsnr()
    yield "stretched", schedules.with_endpoints(line, 5.0, -7.0, how="stretch")
    yield "zero terminal", schedules.zero_terminal_snr(schedules.linear())
    yield "table", schedules.frozen(line, 9)


FIXED = dict(fixed_schedules())


@pytest.mark.parametrize("name", FIXED)
def test_the_formulas_take_their_numbers_traced(name):
    """To rounding, and where they are traced by an outer loop."""
    schedule, t = FIXED[name], jnp.linspace(0.0, 1.0, 65)
    values = jnp.asarray(numbers(schedule))
    assert with_numbers(schedule, iter(numbers(schedule))) == schedule

    def levels(schedule):
        log_snr, slope = schedule.log_snr_and_slope(t)
        inverse = schedule.inverse_log_snr(jnp.linspace(5.0, -5.0, 65))
        return log_snr, slope, inverse, schedule.alpha(t), schedule.sigma(t)

    def traced(values):
        def within(_, values):
            return None, levels(with_numbers(schedule, iter(values)))

        return jax.tree.map(lambda a: a[0], jax.lax.scan(within, None, values[None])[1])

    for found, expected in zip(jax.jit(traced)(values), jax.jit(lambda: levels(schedule))()):
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(found), finite)
        np.testing.assert_allclose(found[finite], expected[finite], rtol=2e-4, atol=5e-6)


@pytest.fixture
def programs(tmp_path):
    """Where compiled programs are kept."""
    with compiled_quickly(tmp_path / "programs"):
        yield tmp_path / "programs"


def steps_compiled(programs):
    return len(list(programs.glob("jit_run-*-cache")))


def changed(**changes):
    return small_config(**{"schedule__input_scale": 0.8, "training__steps_per_call": 3, **changes})


def test_two_trials_read_once_and_compile_one_step(programs, tmp_path, monkeypatch):
    """With other values of every number; another family is another program."""
    read, load = [], sources.load
    monkeypatch.setattr(sources, "load", lambda config: read.append(config) or load(config))
    sources._cached.cache_clear()
    training.train(changed(schedule__s=0.01), tmp_path / "a")
    assert steps_compiled(programs) == 1
    ends = {"schedule__log_snr_max": 5.0, "schedule__log_snr_min": -7.0}
    state, _ = training.train(
        changed(schedule__s=0.05, schedule__input_scale=1.1, **ends), tmp_path / "b"
    )
    assert steps_compiled(programs) == 1
    for found in (state.schedule, training.load(tmp_path / "b").state.schedule):
        assert not jax.tree.leaves(found)
        first, last = schedules.concrete_ends(found)
        np.testing.assert_allclose(first - last, 12, rtol=1e-6)
    training.train(changed(schedule__name="sigmoid"), tmp_path / "c")
    assert steps_compiled(programs) == 2
    assert len(read) == 1


@pytest.mark.parametrize("mode", ["mesh", "pmap"])
def test_a_training_is_as_with_constants(mode, tmp_path, monkeypatch):
    """And goes on from a checkpoint of one."""
    config = changed(schedule__s=0.03, parallel__mode=mode, parallel__num_devices=2)

    def stop(step, run):
        return step >= 6

    training.train(config, tmp_path / "own", stop)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "_has_numbers", lambda node: False)
        expected, metrics = training.train(config, tmp_path / "constants")
        training.train(config, tmp_path / "resumed", stop)
    for folder in ("own", "resumed"):
        state, found = training.train(config, tmp_path / folder)
        assert state.schedule == expected.schedule
        assert_close(state.params, expected.params, rtol=1e-4, atol=1e-6)
        assert found == pytest.approx(metrics, rel=1e-4)


def test_measures_and_samples_share_their_programs_over_values(monkeypatch):
    """And give what they give with constants."""
    traced = []
    for s in (0.01, 0.2):
        config = changed(schedule__s=s)
        method = config_lib.build_method(config, MIXTURE)
        state = first_state(config, method)
        keys = jax.random.split(jax.random.key(0), 3)

        def sample(state, keys, s=s, method=method):
            traced.append(s)
            return method.sample(state, keys, {})

        if s == 0.01:
            shared = distributed.jit_over_numbers(sample)
        found = shared(state, keys)
        np.testing.assert_allclose(found, jax.jit(sample)(state, keys), rtol=1e-4, atol=1e-5)
    assert traced == [0.01, 0.01, 0.2]  # the shared one once, and each with constants


def test_what_is_taken_out_is_put_back():
    config = changed(schedule__s=0.03)
    state = first_state(config, config_lib.build_method(config, MIXTURE))
    arrays, template = steps.numbers_out(state)
    assert jax.tree.structure(steps.numbers_in(arrays, template)) == jax.tree.structure(state)
    other = first_state(c := changed(schedule__s=0.3), config_lib.build_method(c, MIXTURE))
    assert steps.numbers_out(other)[1] == template
    learned = changed(schedule__name="learned", schedule__size=8)
    learned = first_state(learned, config_lib.build_method(learned, MIXTURE))
    assert jax.tree.structure(steps.numbers_out(learned)[0]) == jax.tree.structure(learned)
