"""Schedules of one's own, and what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import schedule_cases
from schedule_cases import DISCRETE

import diffax
from diffax import schedules

# --- one's own ----------------------------------------------------------------------------------


def _power_log_snr(t, power):
    return 10.0 - 20.0 * t**power


@pytest.mark.usefixtures("registering")
def test_registering_ones_own():
    schedules.register(
        "power", lambda power=2.0: schedules.from_log_snr(_power_log_snr, power=power)
    )
    assert "power" in schedules.names()
    assert schedules.keywords("power") == ("power",)
    schedule = schedules.get("power", power=3.0)
    np.testing.assert_allclose(schedule.log_snr(0.5), 7.5)
    np.testing.assert_allclose(schedule.inverse_log_snr(7.5), 0.5, rtol=1e-6)
    assert schedule == schedules.get("power", power=3.0)
    assert hash(schedule) == hash(schedules.get("power", power=3.0))
    bounded = diffax.schedules.with_endpoints(schedule, 5.0, -5.0)
    assert bounded.discretize(10).log_snr(9) == -5.0
    with pytest.raises(ValueError, match="'power' is registered already"):
        schedules.register("power", schedules.cosine)


def test_names_and_constructors_agree():
    for name in schedules.names():
        assert callable(getattr(schedules, name))
        assert schedules.keywords(name) is not None


# --- errors -------------------------------------------------------------------------------------

ERRORS = {
    "unknown name": (
        lambda: schedules.get("cosin"),
        ["'cosin'", "did you mean cosine", "linear_logsnr"],
    ),
    "unknown keyword": (lambda: schedules.get("cosine", tau=1), ["'tau'", "'cosine'", "are s"]),
    "no keywords": (lambda: schedules.get("alpha_bar_linear", s=1), ["'s'", "are none"]),
    "beta order": (
        lambda: schedules.linear(beta_min=0.03, beta_max=0.02),
        ["beta_min=0.03", "beta_max=0.02", "0 < beta_min <= beta_max < 1"],
    ),
    "beta nan": (lambda: schedules.quadratic(beta_min=math.nan), ["beta_min=nan", "beta_max < 1"]),
    "s": (lambda: schedules.cosine(s=0), ["s=0", "positive"]),
    "sigmoid order": (lambda: schedules.sigmoid(start=3, end=-3), ["start=3", "end=-3", "start <"]),
    "tau": (lambda: schedules.sigmoid(tau=0), ["tau=0", "positive"]),
    "start": (lambda: schedules.sigmoid(start=-math.inf), ["start=-inf", "finite"]),
    "endpoints": (
        lambda: schedules.laplace(log_snr_max=-1, log_snr_min=1),
        ["log_snr_max=-1", "log_snr_min=1", "log_snr_max > log_snr_min"],
    ),
    "infinite endpoint": (
        lambda: schedules.linear_logsnr(log_snr_min=-math.inf),
        ["log_snr_min=-inf", "finite"],
    ),
    "b": (lambda: schedules.laplace(b=-1), ["b=-1", "positive"]),
    "mu": (lambda: schedules.laplace(mu=math.nan), ["mu=nan", "finite"]),
    "std": (lambda: schedules.edm(std=math.inf), ["std=inf", "finite"]),
    "mean": (lambda: schedules.edm(mean=math.inf), ["mean=inf", "finite"]),
    "scale": (lambda: schedules.sigmoid_logsnr(scale=0), ["scale=0", "positive"]),
    "too few steps": (
        lambda: schedules.linear().discretize(20),
        ["num_steps=20", "beta of 1,", "21 steps or more"],
    ),
    "too few steps, sigmoid": (
        lambda: schedules.sigmoid_beta().discretize(19),
        ["num_steps=19", "20 steps or more"],
    ),
    "no steps": (lambda: schedules.cosine().discretize(0), ["num_steps=0", "whole number"]),
    "half steps": (lambda: schedules.cosine().discretize(2.5), ["num_steps", "2.5"]),
    "betas shape": (lambda: schedules.from_betas(np.ones((2, 3)) / 2), ["betas", "(2, 3)", "(T,)"]),
    "betas empty": (lambda: schedules.from_betas([]), ["betas", "(0,)"]),
    "betas range": (
        lambda: schedules.from_betas([0.1, 1.2, 0.3]),
        ["betas[1]", "1.2", "(0, 1)"],
    ),
    "betas one too early": (lambda: schedules.from_betas([0.1, 1.0, 0.3]), ["betas[1]", "last"]),
    "betas nan": (lambda: schedules.from_betas([0.1, math.nan]), ["betas[1]", "nan"]),
    "log_snr function": (
        lambda: schedules.from_log_snr(_power_log_snr, pow=2),
        ["_power_log_snr", "pow"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_field_value_and_what_is_allowed(case):
    schedule_cases.check_refusal(*ERRORS[case])


def test_the_smallest_number_of_steps_that_the_message_names_is_accepted():
    assert schedules.linear().discretize(21).num_steps == 21
    assert schedules.sigmoid_beta().discretize(20).num_steps == 20


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_time_is_an_integer(name):
    with pytest.raises(TypeError, match="integers 0 .. T - 1, got t of dtype float32"):
        DISCRETE[name]().log_snr(jnp.asarray(0.5))
