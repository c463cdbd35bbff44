"""Which platform JAX computes on, and what is chosen by it while a function is traced."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax

_PLAIN = contextvars.ContextVar("plain", default=False)


def on_cpu() -> bool:
    """Whether JAX's default backend is the CPU, outside `plain`."""
    return jax.default_backend() == "cpu" and not _PLAIN.get()


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Within, functions are traced as on an accelerator, so that their operations are counted
    alike on every platform: the forms for a CPU save some, depending on the number of devices."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def alone() -> bool:
    """Whether JAX has one device, a CPU, and is not inside a `jax.shard_map` or under a mesh.

    Chunks of a batch that devices share would cost transfers; and the primitives of
    `cpu.winograd` know nothing of mesh axes, along which their arguments may vary.
    """
    one = on_cpu() and jax.device_count() == 1
    return one and jax.sharding.get_abstract_mesh().empty


def run_once() -> dict[str, int] | None:
    """The `compiler_options` with which to `jax.jit` what runs only once, as a network's init does.

    Drawing every parameter makes a long program: XLA's CPU compiler takes 16 s over a small U-Net's
    and, without optimising it, 3 s. The numbers drawn agree to rounding.
    """
    return {"xla_backend_optimization_level": 0} if on_cpu() else None


def train_step_options() -> dict[str, str] | None:
    """The `compiler_options` with which to `jax.jit` a training step.

    XLA's CPU compiler orders operations so that many can run at once, by default, which keeps much
    in memory; asked to spare memory, it needs a quarter less for a U-Net's step, in the same time.
    """
    order = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return order if on_cpu() and _knows(tuple(order.items())) else None


@functools.cache
def _knows(options: tuple[tuple[str, str], ...]) -> bool:
    """Whether this XLA has these `compiler_options`: JAX 0.7's lacks the scheduler's."""
    try:
        jax.jit(lambda x: x, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def by_platform(cpu: Callable, plain: Callable) -> Callable:
    """The function that calls `cpu` on the CPU backend and `plain` on any other."""

    @functools.wraps(plain)
    def chosen(*args):
        return (cpu if on_cpu() else plain)(*args)

    return chosen
