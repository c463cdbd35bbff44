"""Networks that train in seconds, shared by the tests of training."""

import contextlib
import functools

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from diffax import config as config_lib
from diffax import distributed, training
from diffax.training import codecs

MIXTURE = training.DatasetInfo("mixture2d", (2,), 0, None, ())
# A config file for the command line.
TINY = """
from diffax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digits"
    config.model.unet.channels = 8
    config.model.unet.channel_mults = (1,)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = ()
    config.model.unet.head_width = 8
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.training.batch_size = 16
    config.training.num_steps = 4
    config.parallel.num_devices = 1  # the tests have eight, which share two cores
    config.training.log_every = 2
    config.sampling.num_steps = 3
    config.evaluation.repeats = 2
    config.evaluation.num_examples = 64
    config.evaluation.num_samples = 64
    config.evaluation.gradient_batches = 0
    return config
"""
LEARNED = dict(schedule__name="learned", schedule__size=8)


@contextlib.contextmanager
def compiled_quickly(directory):
    """Without optimisation, and what was compiled before is read from a directory.

    Most of a short run is compilation, and many of the runs here have the same programs.
    """
    values = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in values}

    def use(settings):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(values)
    try:
        yield
    finally:
        use(before)


def small_config(**changes):
    """A network that trains in a second on the mixture; `changes` are keys with __ for the dot."""
    config = config_lib.default_config()
    config.data.name = "mixture2d"
    config.model.name = "mlp"
    config.model.mlp.width = 16
    config.model.mlp.depth = 1
    config.schedule.log_snr_max = 6.0
    config.schedule.log_snr_min = -6.0
    config.optimizer.warmup_steps = 5
    config.optimizer.learning_rate = 1e-2
    config.training.batch_size = 32
    config.training.num_steps = 12
    config.training.log_every = 4
    config.training.checkpoint_every = 0
    config.evaluation.num_examples = 100
    config.evaluation.batch_size = 64
    config.evaluation.gradient_batches = 0
    config.sampling.num_samples = 16
    config.sampling.num_steps = 4
    config.parallel.num_devices = 1
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def prepare(config, info=MIXTURE):
    """The compiled step and the first state of a config."""
    method = codecs.build_method(config, info)
    return jax.jit(step_of(method)), first_state(config, method)


def step_of(method):
    """(state, batch) -> (state, metrics), with all examples on one device."""
    return _step(method.step)


@functools.lru_cache(maxsize=16)  # JAX compiles one object once
def _step(step):
    return functools.partial(step, sharding=distributed.LOCAL)


def first_state(config, method):
    return jax.jit(method.init)(jax.random.key(config.seed))


def a_method():
    """That of a small config."""
    return codecs.build_method(small_config(), MIXTURE)


def run_of(config, state, info=MIXTURE):
    """A run of a config that is in this state."""
    return training.Run(config, codecs.build_method(config, info), state, info)


def batch_of(size=32, shape=(2,), seed=0):
    rng = np.random.default_rng(seed)
    x = np.clip(rng.standard_normal((size, *shape)), -1, 1).astype(np.float32)
    return {"x": x, "label": np.arange(size, dtype=np.int32) % 10}


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def train_steps(config, num, batch_seed=0):
    step, state = prepare(config)
    metrics = []
    for i in range(num):
        state, measured = step(state, batch_of(seed=batch_seed + i))
        metrics.append(jax.device_get(measured))
    return state, metrics


class PowerCut(RuntimeError):
    """Stops a run without any farewell."""


def cut_after(monkeypatch, steps):
    """Lets a run make so many steps, then cuts it off."""
    compile_step = distributed.compile_step

    def compile_limited(*args):
        compiled, made = compile_step(*args), []

        def limited(state, batches):
            if len(made) == steps:
                raise PowerCut
            made.append(None)
            return compiled.step(state, batches)

        return compiled._replace(step=limited)

    monkeypatch.setattr(distributed, "compile_step", compile_limited)


def write_tiny_config(folder):
    """The path of `TINY` as a file in a folder."""
    path = folder / "tiny.py"
    path.write_text(TINY)
    return str(path)
