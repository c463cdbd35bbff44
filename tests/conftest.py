"""Settings that every test shares; they must stand before JAX looks at its devices.

They are environment variables, so that the processes which tests start inherit them.
"""

import atexit
import logging
import os
import shutil
import signal
import tempfile

# The tests ask for eight devices to show pmap and shard_map, on any machine. Another platform
# can be named from outside.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each process of the tests has a core of its own: threads within an operation would only contend.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # of NumPy and SciPy
    os.environ.setdefault(variable, "1")
# Small programs, of which most here are, compile faster by XLA's older emitters: the samplers'
# tests take 0.6 of the CPU time, all together 0.8.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
for flag in FLAGS:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

# A shell that starts the tests in the background has Ctrl-C ignored, which they would inherit, and
# so would the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What diffax keeps for the user (prepared data, compiled programs, classifiers) goes to a folder
# of this run alone, which its xdist workers share: no test sees what an earlier run left behind.
if "PYTEST_XDIST_WORKER" not in os.environ:
    cache = tempfile.mkdtemp(prefix="diffax-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["DIFFAX_CACHE"] = cache
    os.environ.setdefault("TFDS_DATA_DIR", os.path.join(cache, "tfds"))
    # Most of the time is compilation, and many small programs are those of other files.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from diffax import plugins, registry  # noqa: E402
from diffax.training import codecs  # noqa: E402

# Derandomised: a run draws the same examples every time, so that a failure is there for
# everybody. Compilation falls into the first example, hence no deadline.
settings.register_profile("diffax", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("diffax")


# Files that take longest with fewest tests: begun last, one of them would keep one process busy
# while the others are done. (xdist gives out files in this order by --no-loadscope-reorder.)
SLOWEST = ("test_cli.py", "test_notebooks.py", "test_train_step.py", "test_schedule_gradient.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture(scope="module")
def hasty_compiler():
    """For files that compile much and compute little; slower where much is computed."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def registering():
    """What a test registers is forgotten after it."""
    before, loaded = registry.added(), dict(plugins._LOADED)
    yield
    registry.forget(registry.added()[len(before) :])
    plugins._LOADED.clear()
    plugins._LOADED.update(loaded)


def _pristine():
    """diffax's log as an import leaves it: pytest sees every line once."""
    logger = logging.getLogger("diffax")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _log_of_its_own():
    """No test hears what the command line in another has made of the log."""
    _pristine()
    yield
    _pristine()


@pytest.fixture(autouse=True)
def _methods_of_its_own(request):
    """A test that replaces parts of diffax builds methods of them, which no other test is given."""
    forget = codecs._method.cache_clear if "monkeypatch" in request.fixturenames else bool
    forget()
    yield
    forget()


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """What one file compiles no other file calls, and it adds up to gigabytes."""
    yield
    jax.clear_caches()
