"""What the library's functions ask of their arguments: one set of checks for programs and commands.

A traced value can't be looked at: of it only shape and dtype are checked.
"""

import functools
import inspect
import math
import operator
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SEEDS = 2**32  # a key is made of 32 bits: beyond them two seeds would be one
MOST_STEPS = 1_000_000  # of a sampler, an ODE or discrete time; arrays are made of so many
MOST_EXAMPLES = 10_000_000  # that one call draws
MOST_NUMBERS = 2**36  # of one array: 256 GiB in float32
MOST_LEVELS = 2**16  # of quantised data: 16 bits
# Of clip_x0. Data are of about unit size: outside it would make all zero, or limit nothing.
CLIP = (1e-3, 1e6)


def concrete(value: Any) -> np.ndarray | None:
    """The values as an array of NumPy; None if they are traced, or lie on another host."""
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, jax.core.Tracer):
            return None
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return None
    return np.asarray(value)


# --- numbers ------------------------------------------------------------------------------------


def whole(name: str, value: Any, least: int, most: int) -> int:
    """`value` as an int: a whole number of Python's, NumPy's or JAX's, from `least` to `most`.

    Raises:
      ValueError: another value, or a bool; names the argument and what is allowed.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"{name} is traced: it decides what is compiled, so give a plain number")
    found = None
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        found = int(value)
    elif not isinstance(value, (bool, np.bool_)):
        try:
            found = operator.index(value)
        except TypeError:  # no whole number; said below
            found = None
    if found is None or not least <= found <= most:
        raise ValueError(f"{name}={_written(value)}: must be a whole number from {least} to {most}")
    return found


def number(
    name: str, value: Any, holds: Callable[[float], bool], words: str, traced: bool = False
) -> Any:
    """`value` as a float: a number of Python's, NumPy's or JAX's for which `holds` is true.

    `traced`: one that is traced is allowed too, and given back as it is.

    Raises:
      ValueError: another value, or a bool; says `words`, what is allowed.
    """
    if isinstance(value, jax.core.Tracer):
        if traced and value.ndim == 0:
            return value
        raise ValueError(f"{name} is traced: it decides what is compiled, so give a plain number")
    found = plain(value)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    is_float = is_number and (abs(found) <= sys.float_info.max or abs(found) == math.inf)
    if not (is_float and holds(found)):
        raise ValueError(f"{name}={_written(value)}: {words}")
    return float(found)


def clip(value: Any) -> Any:
    """A clip_x0 as a float, or None; ValueError for another than a number within `CLIP`.

    A traced one is given back as it is.
    """
    if value is None:
        return None
    words = f"must be a number from {CLIP[0]:g} to {CLIP[1]:g}, or None for no clipping"
    return number("clip_x0", value, lambda bound: CLIP[0] <= bound <= CLIP[1], words, True)


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """The shape of data, (batch, ..., C), as a tuple; ValueError for anything else, and for more
    than `MOST_NUMBERS`."""
    if isinstance(value, str) or np.ndim(value) != 1 or len(value) == 0:
        raise ValueError(f"{name}={_written(value)}: must be the sizes of data, (batch, ..., C)")
    found = tuple(whole(name, size, 0, MOST_NUMBERS) for size in value)
    if math.prod(found) > MOST_NUMBERS:
        raise ValueError(
            f"{name}={found}: {math.prod(found):,} numbers, and at most {MOST_NUMBERS:,} are made"
        )
    return found


def plain(value: Any) -> Any:
    """A number of NumPy's or JAX's as Python's own, an array of them as a tuple; others as is."""
    if isinstance(value, (np.ndarray, jax.Array, np.generic)) and value.ndim < 2:
        values = np.asarray(value).tolist()
        return tuple(values) if isinstance(values, list) else values
    return value


def seeded(seed: Any) -> jax.Array:
    """The PRNG key of a seed.

    Raises:
      ValueError: no whole number, or one outside 0 to 2**32 - 1, which would be another seed's.
    """
    return jax.random.key(check_seed(seed))


def check_seed(seed: Any) -> int:
    """A seed as an int; ValueError as in `seeded`."""
    return whole("seed", seed, 0, SEEDS - 1)


def check_within(name: str, value: Any, last: float, words: str) -> None:
    """Raises ValueError, saying `words`, for a number below 0 or above `last`, or NaN."""
    check_real(name, value, bools=False)
    values = concrete(value)
    if values is None:
        return
    outside = ~((values >= 0) & (values <= last))
    if outside.any():
        raise ValueError(f"{name}={values[outside].flat[0]}: {words}")


def check_time(t: Any, num_steps: int | None) -> None:
    """Raises ValueError for a time outside a schedule: of [0, 1], or an index of 0 .. T - 1."""
    if num_steps is None:
        words = "the time of a continuous schedule runs from 0 to 1; indices belong to a discrete"
        check_within("t", t, 1, f"{words} one, as of discretize(T)")
    else:
        last = num_steps - 1
        check_within("t", t, last, f"this discrete schedule has the indices 0 to {last}")


def check_labels(label: Any, most: int = 2**31 - 1) -> None:
    """Raises ValueError for a class that is not from 0 to `most`: a device keeps 32 bits of it."""
    values = concrete(label)
    if values is not None and values.size and values.dtype.kind in "iu":
        for extreme in (values.min(), values.max()):
            whole("label", extreme, 0, most)


def check_before(s: Any, t: Any) -> None:
    """Raises ValueError where the earlier time `s` is after `t`."""
    earlier, later = concrete(s), concrete(t)
    if earlier is not None and later is not None and (earlier > later).any():
        raise ValueError(f"s={earlier} is after t={later}: s is the earlier time")


# --- arrays -------------------------------------------------------------------------------------


def check_real(name: str, value: Any, bools: bool = True) -> None:
    """Raises ValueError for text, objects, None, complex numbers; and bools, unless they count."""
    dtype = getattr(value, "dtype", None)
    if dtype is None and any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        dtype = jnp.result_type(*jax.tree.leaves(value))
    elif dtype is None:
        try:
            dtype = np.asarray(value).dtype
        except ValueError:  # lists of different lengths
            dtype = np.dtype(object)
    is_bool = dtype == np.bool_
    is_real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    if not (is_real or (is_bool and bools)):
        raise ValueError(f"{name} is {_described(value)}: must be real numbers")


def check_finite(name: str, x: jax.Array) -> None:
    """Raises ValueError for NaN and infinities, unless they are traced."""
    values = concrete(x)
    if values is not None and not np.isfinite(values).all():
        wrong = values[~np.isfinite(values)].flat[0]
        raise ValueError(f"{name} has the value {wrong}: must be finite numbers")


def examples(name: str, x: Any) -> jax.Array:
    """`data`, (batch, ...), with one example or more.

    Raises:
      ValueError: as `data`; no axis of a batch, or nothing in it; NaN or infinities.
    """
    x = data(name, x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}: must be (batch, ..., C), none of them 0")
    check_finite(name, x)
    return x


def data(name: str, x: Any, shape: tuple[int, ...] | None = None) -> jax.Array:
    """`x` as floats; integers that are no bytes are taken as numbers.

    Raises:
      ValueError: no real numbers; bytes or bools, which are no data yet; or another shape than
        `shape`.
    """
    check_real(name, x)
    x = jnp.asarray(x)
    if x.dtype in (jnp.uint8, jnp.bool_):
        raise ValueError(
            f"{name} has dtype {x.dtype}: data are floats, and images lie in [-1, 1]; bytes become"
            f" so by {name} / 127.5 - 1"
        )
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
    if shape is not None and x.shape != tuple(shape):
        raise ValueError(f"{name} has shape {x.shape}, and {tuple(shape)} is needed")
    return x


def quantised(name: str, x: Any, levels: int | None) -> jax.Array:
    """`data` that a likelihood takes: with `levels`, half a bin beyond [-1, 1] at most.

    Raises:
      ValueError: as `examples`; numbers outside, or fewer than two levels.
    """
    x = examples(name, x)
    if levels is None:
        return x
    most = 1 + 1 / (whole("levels", levels, 2, MOST_LEVELS) - 1)
    values = concrete(x)
    if values is not None and values.size and not (np.abs(values) <= most).all():
        raise ValueError(
            f"{name} has values from {values.min():g} to {values.max():g}: data of {levels} levels"
            " lie in [-1, 1]; real-valued data have levels=None"
        )
    return x


def check_fits(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless an array broadcasts with one of a shape."""
    own = jnp.shape(value)
    if any(a != b and 1 not in (a, b) for a, b in zip(own[::-1], shape[::-1])):
        raise ValueError(f"{name} has shape {own}, which does not broadcast with {shape}")


def check_per_example(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless there is one `value`, or one for each example of data of `shape`."""
    if np.shape(value) not in ((), shape[:1]):
        raise ValueError(
            f"{name} has shape {np.shape(value)} and the data {shape}: one for all, or one for"
            " each example"
        )


def mask(value: Any, shape: tuple[int, ...]) -> jax.Array:
    """A mask as floats of `shape`: 1 where the data are known, 0 where not, a share between.

    Raises:
      ValueError: numbers outside [0, 1], NaN, or a shape that doesn't broadcast.
    """
    check_real("mask", value)
    values = concrete(value)
    if values is not None and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"mask has values from {values.min():g} to {values.max():g}: allowed are bools and 0"
            " (drawn anew) to 1 (known)"
        )
    try:
        return jnp.broadcast_to(jnp.asarray(value, jnp.result_type(float)), shape)
    except ValueError:
        raise ValueError(
            f"mask has shape {jnp.shape(value)}, which does not broadcast to the data's {shape}"
        ) from None


# --- the order: key, predict, schedule, data ----------------------------------------------------


def check_order(called: str, **given: Any) -> None:
    """Raises ValueError for a key, predictor, schedule or data that is something else.

    `called`: the function's name; `given`: its first arguments in their order. A key may be None
    where the function needs none.
    """
    for name, value in given.items():
        holds, remedy = _WANTED[name]
        if not holds(value):
            raise ValueError(
                f"{name} is {_described(value)}{remedy(value)}; the order is"
                f" {called}({', '.join(given)}, ...)"
            )


def formerly(*names: str) -> Callable[[Callable], Callable]:
    """A function that began with these, the schedule first, still takes them so, with a warning."""

    def decorate(function: Callable) -> Callable:
        now = list(inspect.signature(function).parameters)
        before = [*names, *now[len(names) :]]

        @functools.wraps(function)
        def in_either_order(*args: Any, **kwargs: Any) -> Any:
            if not (args and _is_schedule(args[0])):
                return function(*args, **kwargs)
            called = function.__name__
            warnings.warn(
                f"{called}({', '.join(names)}, ...) is the order of before; it is now"
                f" {called}({', '.join(now[: len(names)])}, ...)",
                DeprecationWarning,
                stacklevel=2,
            )
            return function(**dict(zip(before, args)), **kwargs)

        return in_either_order

    return decorate


def _is_schedule(value: Any) -> bool:
    return hasattr(value, "log_snr") and not isinstance(value, type)


def _is_key(value: Any) -> bool:
    if value is None:
        return True
    dtype = getattr(value, "dtype", None)
    if dtype is None or _is_typed_key(value):
        return dtype is not None
    if dtype != jnp.uint32 or not value.ndim:
        return False
    try:
        jax.eval_shape(jax.random.wrap_key_data, value)
    except (TypeError, ValueError):  # not as many numbers as a key has
        return False
    return True


def _is_module(value: Any) -> bool:
    return hasattr(value, "apply") and hasattr(value, "bind")


def _has_shape(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not _is_typed_key(value)


def _is_typed_key(value: Any) -> bool:
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _remedy_of_key(value: Any) -> str:
    is_seed = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return f": pass jax.random.key({value})" if is_seed else ""


def _remedy_of_predict(value: Any) -> str:
    return ": pass training.predictor(model, params)" if _is_module(value) else ""


def _remedy_of_schedule(value: Any) -> str:
    if isinstance(value, type):
        return ": pass an object of it"
    return f": pass diffax.schedules.get({value!r})" if isinstance(value, str) else ""


# argument -> whether a value is one, and what to do about another
_WANTED: dict[str, tuple[Callable[[Any], bool], Callable[[Any], str]]] = {
    "key": (_is_key, _remedy_of_key),
    "predict": (lambda value: callable(value) and not _is_module(value), _remedy_of_predict),
    "schedule": (_is_schedule, _remedy_of_schedule),
    "x0": (_has_shape, lambda value: ""),
    "x": (_has_shape, lambda value: ""),
    "known": (_has_shape, lambda value: ""),
    "x_prev": (_has_shape, lambda value: ""),
}


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"the string {value!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if _is_schedule(value):
        return f"a schedule ({type(value).__name__})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        if _is_typed_key(value):
            return "a PRNG key"
        return f"an array of {value.dtype} and shape {tuple(value.shape)}"
    if _is_module(value):
        return f"the network's module ({type(value).__name__})"
    if callable(value):
        return "a function"
    return f"{_written(value)}, of type {type(value).__name__}"


def _written(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
