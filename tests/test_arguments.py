"""What public functions refuse: other orders, other types, times and shapes that don't fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import arguments, likelihood, objectives, process, samplers, schedules, time_sampling

KEY = jax.random.key(0)
COSINE = schedules.cosine()
LINE = schedules.linear_logsnr()
TABLE = LINE.discretize(10)
X = jnp.zeros((4, 2))
T = jnp.full((4,), 0.5)


@process.by_log_snr
def predict(x, log_snr):
    return 0.5 * x


# --- the order ----------------------------------------------------------------------------------


def test_the_former_order_of_the_schedules_gradient_is_taken_with_a_warning(monkeypatch):
    """Every argument arrives where it belongs, whether by place or by name."""
    monkeypatch.setattr(likelihood, "vlb", lambda *args: args)
    asked = {"told": lambda schedule, bound, num_steps: (bound(schedule, num_steps), None)}
    monkeypatch.setattr(objectives, "SCHEDULE_OBJECTIVES", asked)
    key, told, *rest = objectives.schedule_gradient(KEY, predict, LINE, X, "told", num_steps=3)
    assert (key, told.function, *rest[:3]) == (KEY, predict, LINE, X, 3)
    for args, kwargs in (
        ((LINE, predict, X, KEY, "told"), {}),
        ((LINE, predict), dict(x0=X, key=KEY, objective="told")),
    ):
        with pytest.warns(DeprecationWarning, match=r"schedule_gradient\(key, predict, schedule"):
            found = objectives.schedule_gradient(*args, **kwargs, num_steps=3)
        assert (found[0], found[1].function, *found[2:]) == (key, predict, *rest)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: diffax.vlb(0, predict, LINE, X), "key is 0, of type int: pass jax.random.key(0)"),
        (lambda: diffax.vlb(LINE, predict, X, KEY), "key is a schedule (LinearLogSnr); the order"),
        (
            lambda: diffax.vlb(KEY, predict, "cosine", X),
            "schedule is the string 'cosine': pass diffax.schedules.get('cosine')",
        ),
        (lambda: diffax.vlb(KEY, LINE, predict, X), "predict is a schedule (LinearLogSnr)"),
        (lambda: diffax.vlb(None, predict, LINE, X), "key is None"),
        (
            lambda: diffax.sample(KEY, predict, "linear", (4, 2)),
            "the order is sample(key, predict, schedule, ...)",
        ),
        (lambda: diffax.sample(KEY, X, LINE, (4, 2)), "predict is an array of float32 and shape"),
        (lambda: diffax.sample(jax.random.split(KEY, 3), predict, LINE, (4, 2)), "key has shape"),
        (lambda: diffax.q_sample("cosine", X, T, X), "schedule is the string 'cosine'"),
        (lambda: diffax.q_sample(X, COSINE, T, X), "schedule is an array"),
        (
            lambda: likelihood.ode_log_likelihood(KEY, predict, LINE, key=KEY),
            "predict is a PRNG key; the order is ode_log_likelihood(predict, schedule, x0",
        ),
        (lambda: objectives.training_loss(KEY, predict, LINE, 3.0, T), "x0 is 3.0, of type float"),
        (
            lambda: objectives.schedule_gradient(KEY, LINE, predict, X),
            "the order is schedule_gradient(key, predict, schedule, x0, ...)",
        ),
        (lambda: samplers.sdedit(KEY, predict, LINE, [1.0], 0.5), "x is [1.0], of type list"),
    ],
)
def test_other_arguments_are_named(call, said):
    with pytest.raises(ValueError) as refused:
        call()
    assert said in str(refused.value)


def test_a_module_is_no_predictor():
    model = diffax.models.get("mlp")
    with pytest.raises(ValueError, match=r"module \(MLP\): pass training.predictor"):
        diffax.sample(KEY, model, LINE, (4, 2))


# --- times --------------------------------------------------------------------------------------

CONTINUOUS = {
    "log_snr": lambda t: COSINE.log_snr(t),
    "alpha": lambda t: LINE.alpha(t),
    "sigma": lambda t: schedules.linear().sigma(t),
    "alpha_bar": lambda t: schedules.learned(size=4).alpha_bar(t),
    "slope": lambda t: COSINE.log_snr_and_slope(t),
    "truncated": lambda t: schedules.with_endpoints(COSINE, 5.0, -5.0).log_snr(t),
    "q_sample": lambda t: diffax.q_sample(COSINE, X, t, X),
    "q_step, t": lambda t: diffax.q_step(COSINE, X, t, X, s=0.0),
    "q_step, s": lambda t: diffax.q_step(COSINE, X, 1.0, X, s=t),
    "q_posterior": lambda t: diffax.q_posterior(COSINE, X, X, t, s=0.0),
    "training_loss": lambda t: objectives.training_loss(KEY, predict, COSINE, X, t),
    "times_of": lambda t: time_sampling.times_of(COSINE, jnp.asarray(t)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("t", [500, 1.5, -0.1, np.nan, np.array([0.5, 0.5, 1.1, 0.5], np.float32)])
def test_concrete_times_outside_continuous_time_are_refused(name, t):
    with pytest.raises(ValueError, match="=(500|1.5|-0.1|nan|1.1)"):
        CONTINUOUS[name](t)


@pytest.mark.parametrize("t", [10, -1, np.array([0, 3, 10, 2])])
def test_concrete_indices_outside_a_table_are_refused(t):
    for call in (
        TABLE.log_snr,
        TABLE.alpha,
        TABLE.beta,
        TABLE.log_snr_and_slope,
        lambda t: diffax.q_sample(TABLE, X, t, X),
        lambda t: diffax.q_step(TABLE, X, t, X),
        lambda t: diffax.q_posterior(TABLE, X, X, t),
    ):
        with pytest.raises(ValueError, match="=(10|-1): this discrete schedule has the .* 0 to 9"):
            call(t)


def test_traced_times_pass_and_the_ends_belong_to_time():
    for schedule, ends in ((COSINE, (0, 1, 0.0, 1.0)), (TABLE, (0, 9))):
        for end in ends:
            assert jax.jit(schedule.log_snr)(end) == schedule.log_snr(end)
    with pytest.raises(ValueError, match="s=0.9 is after t=0.5"):
        diffax.q_step(COSINE, X, 0.5, X, s=0.9)


# --- data, shapes and numbers -------------------------------------------------------------------

BYTES = np.full((4, 2), 200, np.uint8)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: diffax.q_sample(COSINE, BYTES, T, X), "x0 has dtype uint8"),
        (lambda: diffax.vlb(KEY, predict, LINE, BYTES), "x0 has dtype uint8"),
        (lambda: samplers.sdedit(KEY, predict, LINE, BYTES, 0.5), "x has dtype uint8"),
        (lambda: samplers.inpaint(KEY, predict, LINE, BYTES, 1.0), "known has dtype uint8"),
        (lambda: samplers.invert(predict, LINE, BYTES), "x0 has dtype uint8"),
        (lambda: samplers.interpolate(BYTES, BYTES, [0.5]), "a has dtype uint8"),
        (lambda: samplers.interpolate(X, X, [1.5]), "shares=1.5"),
        (lambda: samplers.interpolate(X, X[:2], [0.5]), r"\(2, 2\), and \(4, 2\)"),
        (lambda: diffax.vlb(KEY, predict, LINE, X + 100), "from 100 to 100: data of 256 levels"),
        (lambda: diffax.q_sample(COSINE, X, T, X[:1]), r"noise has shape \(1, 2\), and \(4, 2\)"),
        (lambda: diffax.q_sample(COSINE, X, T[:2], X), r"t has shape \(2,\) and the data \(4, 2\)"),
        (
            lambda: samplers.inpaint(KEY, predict, LINE, X, 255 * np.eye(4, 2)),
            "mask has values from 0 to 255: allowed are bools and 0",
        ),
        (lambda: samplers.inpaint(KEY, predict, LINE, X, np.nan), "mask has values from nan"),
        (lambda: samplers.inpaint(KEY, predict, LINE, X, np.ones(3)), r"shape \(3,\), which does"),
        (
            lambda: samplers.inpaint(KEY, predict, LINE, X, 1.0, 5, jump_length=5),
            "jump_length=5: must be a whole number from 1 to 4",
        ),
        (
            lambda: samplers.guidance.classifier_free(predict, np.array([1, 2**32 + 3]), 4),
            "label=4294967299",
        ),
        (lambda: diffax.sample(KEY, predict, LINE, (4, 2), log_snr_max=-30.0), "log_snr_max=-30"),
        (lambda: diffax.vlb(KEY, predict, LINE, X, True), "num_steps=True"),
        (lambda: diffax.sample(KEY, predict, LINE, (4, 2), num_steps=True), "num_steps=True"),
        (  # two times that are one in float32; two levels that are
            lambda: diffax.sample(KEY, predict, LINE, (4, 2), grid=[0.5, 0.5 - 1e-9]),
            "explicit times decrease strictly",
        ),
        (
            lambda: diffax.sample(KEY, predict, COSINE, (4, 2), grid=[1.0, 1 - 1e-7, 0.5]),
            "1 of its 3 levels are as noisy as the one before, in float32, the first of them at",
        ),
        (lambda: LINE.discretize(True), "num_steps=True"),
    ],
)
def test_data_and_numbers_that_do_not_fit_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_whole_numbers():
    for value in (3, np.int64(3), np.uint8(3), jnp.asarray(3), 3.0, np.float32(3)):
        found = arguments.whole("n", value, 1, 3)
        assert found == 3 and type(found) is int
    for value in (True, np.True_, 0, 4, 2.5, "3", None, float("nan"), [3]):
        with pytest.raises(ValueError, match="n=.*: must be a whole number from 1 to 3"):
            arguments.whole("n", value, 1, 3)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 3, True, 1.5, "0"])
def test_seeds_of_more_bits_than_a_key_has_are_refused(seed):
    with pytest.raises(ValueError, match="seed=.*from 0 to 4294967295"):
        arguments.seeded(seed)
    assert arguments.seeded(np.int64(7)) == jax.random.key(7)


# --- edits --------------------------------------------------------------------------------------


def test_what_is_unknown_does_not_matter_to_inpainting():
    known = jnp.array([[0.3, jnp.nan], [-0.2, jnp.inf]])
    clean = jnp.where(jnp.isfinite(known), known, 0.7)
    mask = np.array([True, False])
    found, expected = (
        samplers.inpaint(KEY, predict, LINE, x, mask, num_steps=4, num_resamples=2)
        for x in (known, clean)
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found[:, 0], clean[:, 0], atol=1e-5)


def test_the_range_of_an_sdedit_is_the_samplers():
    """Its first level, which the noise is for, lies in the range too."""
    x = jnp.ones((1, 1))
    narrow, wide = (
        samplers.sdedit(KEY, predict, COSINE, x, 1.0, num_steps=3, log_snr_min=low)
        for low in (-1.0, -20.0)
    )
    assert not np.allclose(narrow, wide)


# --- what has another type, or can't be a value ---------------------------------------------------


def draw(**options):
    given = dict(shape=(4, 2), num_steps=2, prediction="x0") | options
    return diffax.sample(given.pop("key", KEY), given.pop("predict", predict), LINE, **given)


def answer(value):
    return lambda: draw(predict=lambda x, t: value)


NUMBERS = np.zeros((4, 2))
NOISY = dict(prediction="x0", num_steps=2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: draw(key=None), "key is None, and random numbers are drawn: pass jax.random.key"),
        (lambda: draw(key=np.zeros(3, np.uint32)), r"key is an array of uint32 and shape \(3,\)"),
        (lambda: draw(shape=()), r"shape=\(\): must be the sizes of data, \(batch, ..., C\)"),
        (lambda: draw(shape=4), "shape=4: must be the sizes"),
        (lambda: draw(shape=(2**40, 2)), "shape=1099511627776: must be a whole number f"),
        (lambda: draw(shape=(2**20,) * 2), "1,099,511,627,776 numbers, and at most 68,719,476,736"),
        (lambda: draw(shape=(2**18,) * 2, num_steps=9, return_trajectory=True), "trajectory=.* at"),
        (lambda: draw(num_steps=2**40), "num_steps=1099511627776: must be .* from 1 to 1000000"),
        (lambda: draw(num_steps=None), "num_steps=None: must be a whole number"),
        (lambda: LINE.discretize(2**40), "num_steps=1099511627776: must be .* from 1 to 1000000"),
        (answer(None), "predictor gave what is of type NoneType: must be an array"),
        (answer((X, X)), "predictor gave what is of type tuple"),
        (answer(0.0), "predictor gave what is of type float"),
        (answer(1j * X), "what the predictor gave is .*complex64.*: must be real numbers"),
        (lambda: diffax.vlb(KEY, predict, type(LINE), X), "schedule is the class LinearLogSnr: "),
        (lambda: diffax.vlb(KEY, predict, LINE, X[0, 0]), r"x0 has shape \(\): must be \(batch,"),
        (lambda: diffax.vlb(KEY, predict, LINE, X[:0]), r"x0 has shape \(0, 2\): must be"),
        (lambda: diffax.vlb(KEY, predict, LINE, X * np.nan, levels=None), "x0 has the value nan"),
        (lambda: diffax.vlb(KEY, predict, LINE, X, 10**8), "num_steps=100000000: must be .* from"),
        (lambda: diffax.vlb(KEY, predict, LINE, X, levels=2**40), "levels=.* from 2 to 65536"),
        (
            lambda: diffax.likelihood.ode_log_likelihood(
                predict, LINE, X, key=KEY, num_probes=10**8
            ),
            "num_probes=100000000: must be .* from 1 to 1000000",
        ),
        (
            lambda: diffax.vlb(jax.random.split(KEY, 4), predict, LINE, X),
            r"key has shape \(4,\): times are drawn for all together, by one key",
        ),
        (lambda: draw(prediction=["eps"]), r"prediction=\['eps'\].*: allowed are eps, x0"),
        (lambda: draw(clip_x0="a"), "clip_x0='a': must be a number from 0.001 to 1e"),
        (lambda: draw(clip_x0=True), "clip_x0=True: must be"),
        (lambda: draw(clip_x0=1e-30), "clip_x0=1e-30: must be"),
        (lambda: draw(clip_x0=np.inf), "clip_x0=inf: must be"),
        (lambda: draw(dynamic_threshold="a"), "dynamic_threshold='a': a share"),
        (lambda: draw(dynamic_threshold=True), "dynamic_threshold=True: a share"),
        (lambda: draw(log_snr_max="a"), "log_snr_max='a': must be a number"),
        (lambda: draw(log_snr_min=np.nan), "log_snr_min=nan: must be a number"),
        (lambda: draw(eta="1"), "eta='1': DDIM takes 0"),
        (lambda: draw(sampler="dpm_solver", order=True), "order=True: must be a whole number"),
        (lambda: draw(sampler="dpm_solver", order=2.5), "order=2.5: must be a whole number"),
        (lambda: draw(x_init="zeros"), "x_init is the string 'zeros': must be real numbers"),
        (lambda: draw(x_init=X * np.nan), "x_init has the value nan: must be finite"),
        (lambda: draw(x_init=1j * X), "x_init is an array of complex64 .*: must be real numbers"),
        (lambda: diffax.q_sample(LINE, X * 1j, T, X), "x0 is an array of complex64"),
        (lambda: diffax.q_sample(LINE, NUMBERS.astype(object), T, X), "x0 is an array of object"),
        (lambda: diffax.q_sample(LINE, NUMBERS.astype(str), T, X), "x0 is an array of <U"),
        (lambda: diffax.q_sample(LINE, X, "a", X), "t is the string 'a': must be real numbers"),
        (lambda: diffax.q_sample(LINE, X, None, X), "t is None, of type NoneType: must be real"),
        (lambda: diffax.q_sample(LINE, X, True, X), "t is True, of type bool: must be real"),
        (lambda: LINE.log_snr("a"), "t is the string 'a': must be real numbers"),
        (lambda: samplers.sdedit(KEY, predict, LINE, X, True, **NOISY), "strength=True: must be"),
        (lambda: samplers.sdedit(KEY, predict, LINE, X, "0.5", **NOISY), "strength='0.5': must"),
        (lambda: samplers.sdedit(KEY, predict, LINE, X, [0.5], **NOISY), r"strength=\(?\[0.5\]"),
        (lambda: samplers.inpaint(KEY, predict, LINE, X, "left"), "mask is the string 'left'"),
        (lambda: samplers.inpaint(KEY, predict, LINE, X, 1j * X), "mask is an array of complex64"),
        (
            lambda: samplers.inpaint(KEY, predict, LINE, X, X, num_steps=20, num_resamples=10**5),
            "num_resamples=100000 and num_steps=20 make 2,000,000 steps: at most 1,000,000",
        ),
        (lambda: draw(grid=["a"]), r"grid is \['a'\], of type list: must be real numbers"),
        (lambda: draw(grid=[True, False]), r"grid is \[True, False\], of type list: must be real"),
    ],
)
def test_values_of_another_type_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_indices_may_be_unsigned():
    found, expected = (
        samplers.visited_levels(TABLE, 2, np.array([9, 5], dtype)).t for dtype in (np.uint8, int)
    )
    np.testing.assert_array_equal(found, expected)


def test_traced_data_and_times_pass():
    """Nothing of them is looked at, or fetched from the device."""

    @jax.jit
    def traced(x, t):
        start = draw(x_init=x, prediction="x0")
        terms = diffax.vlb(KEY, predict, LINE, x, levels=None)
        return start, terms, diffax.q_sample(LINE, x, t, x)

    assert jnp.isnan(traced(X * np.nan, T)[2]).all()


def test_levels_of_another_number_of_examples_are_not_converted():
    with pytest.raises(ValueError, match=r"alpha has shape \(3, 1\), which .* \(4, 2\)"):
        diffax.convert(X, X, jnp.full(3, 0.6), jnp.full(3, 0.8), "eps", "x0")


def test_a_prediction_of_bytes_is_not_converted():
    for pred, x_t, name in ((X.astype(jnp.uint8), X, "pred"), (X, X.astype(jnp.uint8), "x_t")):
        with pytest.raises(ValueError, match=f"{name} has dtype uint8: data are floats"):
            diffax.convert(pred, x_t, 0.6, 0.8, "eps", "x0")
