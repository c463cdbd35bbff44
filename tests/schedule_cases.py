"""The one list of schedules that the tests walk.

A schedule joins it by being registered: every name that `schedules.get` knows is here, alone,
between finite endpoints and discretised; other arguments and the transforms follow. Each case is a
factory, since a schedule's arrays take the float type that is in force when it is made.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax import rates, schedules

Factory = Callable[[], schedules.Schedule | schedules.DiscreteSchedule]

NUM_STEPS = 100  # of the discrete cases


def bounded(schedule: schedules.Schedule) -> schedules.Schedule:
    """The schedule truncated to log-SNR 6 to -6, which lies within every schedule's range."""
    return schedules.with_endpoints(schedule, 6.0, -6.0)


def randomised(schedule: schedules.Schedule, seed: int = 0, scale: float = 1.0):
    """A learned schedule with noise of this deviation added to its shape (not to its endpoints)."""
    leaves, tree = jax.tree.flatten(schedule)
    is_end = jax.tree.leaves(schedule.endpoint_mask())
    keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
    noisy = [
        leaf if end else leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, end, key in zip(leaves, is_end, keys)
    ]
    return jax.tree.unflatten(tree, noisy)


def in_float64(schedule):
    """The same schedule with its arrays, if any, in float64; inside `jax.enable_x64(True)`."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), schedule)


def check_refusal(action: Callable, words: list[str]) -> None:
    """`action` raises ValueError with one line that holds each of the words."""
    with pytest.raises(ValueError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def table_of(levels) -> schedules.DiscreteSchedule:
    """The discrete schedule whose steps are the levels that a sampler visits."""
    log_snrs = levels.log_snr[::-1]
    return schedules.from_log_snr_table(log_snrs, zero_terminal=bool(jnp.isneginf(log_snrs[-1])))


def _registered() -> dict[str, Factory]:
    return {name: partial(schedules.get, name) for name in schedules.names()}


def _with_arguments() -> dict[str, Factory]:
    return {
        "cosine(s=0.1)": lambda: schedules.cosine(s=0.1),
        "sigmoid(0, 3, 0.3)": lambda: schedules.sigmoid(start=0.0, end=3.0, tau=0.3),
        "cosine_logsnr(20, -20)": lambda: schedules.cosine_logsnr(20.0, -20.0),
        "sigmoid_logsnr(off centre)": lambda: schedules.sigmoid_logsnr(location=-2.0, scale=2.0),
        "laplace(off centre)": lambda: schedules.laplace(12.0, -7.0, mu=1.0, b=1.5),
        "from_rate(uneven)": lambda: schedules.from_rate(
            rates.make_rate([-12.0, -3.0, -2.5, 4.0, 9.0], [0.02, 1.0, 0.1, 0.5, 0.3]), 8.0, -9.0
        ),
        "from_rate(spectral)": lambda: schedules.from_rate(
            rates.spectral([0.01, 0.3, 2.0], 15, -14), 12.0, -11.0
        ),
        "edm(off centre)": lambda: schedules.edm(9.0, -11.0, mean=-1.0, std=3.0),
    }


def _learned() -> dict[str, Factory]:
    def make(kind: str, learn_endpoints: bool):
        start = schedules.get(
            "learned", kind=kind, learn_endpoints=learn_endpoints, log_snr_max=8.0, log_snr_min=-9.0
        )
        return randomised(start, seed=1, scale=0.3)

    return {
        f"learned({kind}, {ends} ends)": partial(make, kind, ends == "learned")
        for kind in ("monotone", "piecewise_linear", "polynomial")
        for ends in ("fixed", "learned")
    }


def _transformed() -> dict[str, Factory]:
    zero_terminal, get = schedules.zero_terminal_snr, schedules.get
    ends = schedules.with_endpoints
    return {
        **{f"bounded {name}": lambda name=name: bounded(get(name)) for name in schedules.names()},
        "zero_terminal_snr linear": lambda: zero_terminal(get("linear")),
        "zero_terminal_snr cosine_logsnr": lambda: zero_terminal(get("cosine_logsnr")),
        "zero_terminal_snr learned": lambda: zero_terminal(get("learned")),
        "zero_terminal_snr bounded shifted cosine": lambda: zero_terminal(
            bounded(schedules.shifted(get("cosine"), 128, 64))
        ),
        "input_scaled linear": lambda: schedules.input_scaled(get("linear"), 0.5),
        "input_scaled learned": lambda: schedules.input_scaled(get("learned"), 2.0),
        "shifted cosine_logsnr": lambda: schedules.shifted(get("cosine_logsnr"), 256, 64),
        "stretched bounded linear": lambda: ends(bounded(get("linear")), 12, -9, how="stretch"),
        "stretched edm": lambda: ends(get("edm"), -1, -9, how="stretch"),
        "stretched learned": lambda: ends(get("learned"), 12, 1, how="stretch"),
        "frozen bounded cosine": lambda: schedules.frozen(bounded(get("cosine")), 64),
        "frozen learned": lambda: schedules.frozen(get("learned"), 64),
    }


def _discrete() -> dict[str, Factory]:
    linear = lambda: schedules.linear().discretize(NUM_STEPS)  # noqa: E731
    return {
        **{
            f"discrete {name}": lambda name=name: schedules.get(name).discretize(NUM_STEPS)
            for name in schedules.names()
        },
        "from_betas": lambda: schedules.from_betas(np.linspace(0.01, 0.3, 30) ** 1.5),
        "discrete learned(polynomial)": lambda: randomised(
            schedules.get("learned", kind="polynomial"), seed=2, scale=0.3
        ).discretize(NUM_STEPS),
        "zero_terminal_snr discrete linear": lambda: schedules.zero_terminal_snr(linear()),
        "input_scaled discrete linear": lambda: schedules.input_scaled(linear(), 0.5),
        "stretched discrete linear": lambda: schedules.with_endpoints(linear(), 7, -7, "stretch"),
    }


REGISTERED = _registered()
CONTINUOUS = {**REGISTERED, **_with_arguments(), **_learned(), **_transformed()}
DISCRETE = _discrete()

# One of each kind, for what is too slow to run on all.
REPRESENTATIVE = {
    name: {**CONTINUOUS, **DISCRETE}[name]
    for name in (
        "cosine",
        "laplace",
        "bounded sigmoid_beta",
        "zero_terminal_snr linear",
        "frozen learned",
        "learned(monotone, learned ends)",
        "learned(piecewise_linear, fixed ends)",
        "discrete linear",
        "zero_terminal_snr discrete linear",
    )
}
