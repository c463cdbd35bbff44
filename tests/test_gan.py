"""Methods with a discriminator against what is known of them in closed form."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import MIXTURE, assert_close, assert_equal, batch_of, small_config, step_of

import diffax
from diffax import ablation, methods, process, training, tuning
from diffax import config as config_lib
from diffax.ablation import runner
from diffax.config.methods import PARTS
from diffax.distributed import LOCAL
from diffax.evaluation import run as evaluating
from diffax.methods import adversarial, gan
from diffax.methods.adversarial import Game, Turn, judged

pytestmark = pytest.mark.usefixtures("hasty_compiler")

GAN = dict(
    method__name="gan",
    method__latent_size=4,
    model__name="generator",
    model__generator__channels=8,
    model__generator__channel_mults=(1,),
    model__generator__num_blocks=1,
    discriminator__residual__channels=8,
    discriminator__residual__channel_mults=(1,),
    discriminator__residual__num_blocks=1,
    sampling__num_steps=1,
)


def method_of(name="gan", parts=None, **changes):
    """The method of a small config on points, with other parts."""
    config = small_config(**{**GAN, "method__name": name, **changes})
    taken = methods.arguments_of(name)
    made = {part: make(config, MIXTURE) for part, make in PARTS.items() if part in taken}
    options = {k: v for k, v in config.method.items() if k in taken and v is not None}
    return methods.get(name, **{**made, **options, **(parts or {})})


def game_of(play, loss="relativistic", r1=1.0, r2=1.0, **fields):
    sgd = optax.sgd(0.1)
    own = dict(
        init=None, draw=None, play=play, loss=adversarial.LOSSES[loss], r1_weight=r1, r2_weight=r2,
        conditions={}, optimizer=sgd, discriminator_optimizer=sgd, learning_rate=lambda step: 0.1,
        ema_decay=0.9, grad_accumulation=1,
    )  # fmt: skip
    return Game(**{**own, **fields})


# --- the losses and the penalties ----------------------------------------------------------------


def linear_judge(params, x):
    return x @ params["w"] + params["b"], x


def test_the_penalty_of_a_linear_discriminator_is_exact():
    """d logit / dx = w: |w|^2 for every example, whose gradient by w is 2 w."""
    params = {"w": jnp.array([0.5, -2.0, 1.0]), "b": jnp.array(0.3)}
    x = jax.random.normal(jax.random.key(0), (7, 3))
    logits, features, penalty = judged(linear_judge, params, x)
    np.testing.assert_allclose(logits, x @ params["w"] + 0.3, rtol=1e-6)
    np.testing.assert_array_equal(features, x)
    np.testing.assert_allclose(penalty, np.full(7, 5.25), rtol=1e-6)
    play = lambda _, rows: Turn(rows["x"], -rows["x"], linear_judge, linear_judge)  # noqa: E731
    with_penalties, without = (
        jax.grad(game_of(play, r1=r1, r2=r2).discriminator_loss, has_aux=True)(params, {}, {"x": x})
        for r1, r2 in ((3.0, 5.0), (0.0, 0.0))
    )
    added = with_penalties[0]["w"] - without[0]["w"]
    np.testing.assert_allclose(added, (3.0 + 5.0) / 2 * 2 * params["w"], rtol=1e-5)
    assert {"r1", "r2"} <= with_penalties[1].keys() and not {"r1", "r2"} & without[1].keys()


@pytest.mark.parametrize("loss", adversarial.LOSSES)
def test_a_constant_discriminator_is_optimal_where_the_samples_are_the_data(loss):
    """Over paired real and fake sets that are the same points, the loss of any linear
    discriminator is least at w = 0, where the gradient is zero for both players; there it is that
    of a coin, log 2 for each logit or pair."""
    x = jax.random.normal(jax.random.key(1), (64, 3))
    # Every real point against every fake one.
    real, fake = jnp.repeat(x, len(x), axis=0), jnp.tile(x, (len(x), 1))
    play = lambda shift, rows: Turn(real, fake + shift, linear_judge, linear_judge)  # noqa: E731
    game = game_of(play, loss)
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    value = jax.value_and_grad(game.discriminator_loss, has_aux=True)
    (least, found), gradient = value(params, jnp.zeros(3), {})
    coins = {"non_saturating": 2, "relativistic": 1}[loss]
    assert float(least) == pytest.approx(coins * np.log(2), rel=1e-5)
    assert_close(gradient, params, atol=5e-6)
    assert float(found["sign_rate"]) == 0
    pull = jax.grad(game.generator_loss)(jnp.zeros(3), params, {})
    np.testing.assert_allclose(pull, 0, atol=1e-7)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = {"w": jnp.asarray(0.3 * rng.normal(size=3)), "b": jnp.asarray(rng.normal())}
        assert game.discriminator_loss(other, jnp.zeros(3), {})[0] > least


@pytest.mark.parametrize("loss", adversarial.LOSSES)
def test_losses_are_those_of_the_papers(loss):
    real, fake = jnp.array([1.0, -0.5]), jnp.array([0.2, 3.0])
    sigmoid = lambda a: 1 / (1 + np.exp(-np.asarray(a, np.float64)))  # noqa: E731
    found = adversarial.LOSSES[loss]
    judge, maker = {
        "non_saturating": (sigmoid(real) * (1 - sigmoid(fake)), sigmoid(fake)),
        "relativistic": (sigmoid(real - fake), sigmoid(fake - real)),
    }[loss]
    np.testing.assert_allclose(found.discriminator(real, fake), -np.log(judge), rtol=1e-5)
    np.testing.assert_allclose(found.generator(real, fake), -np.log(maker), rtol=1e-5)


# --- the two updates -----------------------------------------------------------------------------


@functools.cache
def one_step():
    """A method with SGD, the state before and after a step, and the metrics."""
    sgd = dict(optimizer=optax.sgd(0.1, momentum=0.9))
    sgd |= dict(discriminator_optimizer=optax.sgd(0.2, momentum=0.5))
    method = method_of(parts=sgd)
    state = jax.jit(method.init)(jax.random.key(0))
    after, metrics = jax.jit(step_of(method))(state, batch_of(8))
    return method, state, after, metrics


def momentum(opt_state):
    return opt_state[0].trace


def test_neither_update_leaks_into_the_other():
    """Each optimiser has seen the gradient of its own loss by its own parameters alone, taken anew
    here: the discriminator's at the generator as it was, the generator's at the new
    discriminator. The averages are of the generator."""
    method, state, after, metrics = one_step()
    game = method.step.__self__
    keys = jax.random.split(jax.random.fold_in(state.key, 0))
    rows = jax.jit(lambda key: game.rows(state, batch_of(8), key, LOCAL))
    first, second = map(rows, keys)
    gradient = jax.jit(jax.grad(game.discriminator_loss, has_aux=True))
    of_judge, _ = gradient(state.discriminator, state.params, first)
    assert_close(momentum(after.discriminator_opt_state), of_judge, rtol=1e-4, atol=1e-6)
    moved = jax.tree.map(lambda p, g: p - 0.2 * g, state.discriminator, of_judge)
    assert_close(after.discriminator, moved, rtol=1e-5, atol=1e-6)
    gradient = jax.jit(jax.grad(game.generator_loss))
    of_maker = gradient(state.params, after.discriminator, second)
    halves = game._replace(grad_accumulation=2).generator_gradient
    against = state.replace(discriminator=after.discriminator)
    in_halves = jax.jit(lambda rows: halves(against, rows, LOCAL)[1])(second)
    assert_close(in_halves, of_maker, rtol=1e-4, atol=1e-6)
    assert_close(momentum(after.opt_state), of_maker, rtol=1e-4, atol=1e-6)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, of_maker)
    assert_close(after.params, moved, rtol=1e-5, atol=1e-6)
    average = methods.moving_average(state.ema_params, after.params, 0.999, 0)
    assert_close(after.ema_params, average, rtol=1e-5, atol=1e-6)
    for name, gradient in (("discriminator_grad_norm", of_judge), ("grad_norm", of_maker)):
        np.testing.assert_allclose(metrics[name], optax.tree.norm(gradient), rtol=1e-4)


def test_gradients_are_those_of_finite_differences():
    """In a random direction, of both players, through the networks and the penalties; float64."""
    method, state, after, _ = one_step()
    game, rng = method.step.__self__, np.random.default_rng(0)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.float64(a)), tree)  # noqa: E731
        rows = game.rows(state, batch_of(8), jax.random.key(3), LOCAL)
        rows = {k: wide(rows[k]) for k in ("x", "z")} | {"cond": {}}
        judge, maker = wide(after.discriminator), wide(after.params)
        cases = (
            (jax.jit(lambda p: game.discriminator_loss(p, maker, rows)[0]), judge),
            (jax.jit(lambda p: game.generator_loss(p, judge, rows)), maker),
        )
        for loss, at in cases:
            way = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), at)
            slope = optax.tree.vdot(jax.grad(loss)(at), way)
            far = optax.tree.scale(1e-3, way)
            ends = [loss(optax.tree.add(at, far)), loss(optax.tree.sub(at, far))]
            # The networks compute in float32.
            assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / 2e-3, rel=2e-2)


def test_a_step_that_is_not_finite_in_one_player_changes_neither():
    method, state, _, _ = one_step()
    broken = state.replace(discriminator=jax.tree.map(lambda a: a * jnp.nan, state.discriminator))
    after, metrics = jax.jit(step_of(method))(broken, batch_of(8))
    assert np.isnan(metrics["discriminator_loss"])
    assert_equal(after.params, state.params)
    assert int(after.step) == 1


# --- noise before the discriminator --------------------------------------------------------------


class Seen(nn.Module):
    """A discriminator whose features are what it sees."""

    @nn.compact
    def __call__(self, x, noise_level=None, label=None, given=None):
        w = self.param("w", nn.initializers.ones, ())
        return w * jnp.sum(x, axis=-1), jnp.concatenate([x, noise_level[:, None]], axis=-1)


NOISED = dict(method__noised=True, method__noise_examples=1000, schedule__name="cosine")


@pytest.mark.parametrize("num_steps", [0, 50])
def test_what_the_discriminator_sees_is_q_sample(num_steps):
    """At times up to what the strength allows; half of it is clean."""
    method = method_of(parts=dict(discriminator=Seen()), schedule__num_steps=num_steps, **NOISED)
    state, game = method.init(jax.random.key(0)), method.step.__self__
    batch = batch_of(2000)
    for strength in (0.0, 0.5, 1.0):
        state.adapted["strength"] = jnp.float32(strength)
        rows = game.rows(state, batch, jax.random.key(1), LOCAL)
        turn = game.play(state.params, rows)
        schedule = config_lib.build_schedule(small_config(**NOISED, schedule__num_steps=num_steps))
        sides = {
            "noise": (turn.judge_real, turn.real),
            "noise_of_fake": (turn.judge_fake, turn.fake),
        }
        for noise, (judge, x) in sides.items():
            _, features = judge(state.discriminator, x)
            seen, level = features[:, :2], features[:, 2]
            np.testing.assert_array_equal(level, rows["log_snr"])
            clean = np.isposinf(level)
            assert np.mean(clean) == pytest.approx(0.5, abs=0.06)
            np.testing.assert_array_equal(seen[clean], x[clean])
            t = schedule.inverse_log_snr(level[~clean])
            most = gan.LEAST_TIME + (1 - gan.LEAST_TIME) * strength
            expected = process.q_sample(schedule, x[~clean], t, rows[noise][~clean])
            np.testing.assert_allclose(seen[~clean], expected, atol=2e-5)
            assert np.max(t) <= most * max(num_steps, 1) + 1e-5
            if strength and not num_steps:  # a density that rises with t: mean 2/3 of the most
                assert np.mean(t) == pytest.approx(2 / 3 * most, rel=0.05)


def test_the_strength_rises_while_the_discriminator_is_too_sure_and_falls_otherwise():
    method = method_of(**NOISED)
    game, state = method.step.__self__, jax.jit(method.init)(jax.random.key(0))
    strengths = []
    for step in range(12):
        sign = jnp.float32(0.9 if step < 8 else 0.1)
        adapted, metrics = game.adapt(state, sign, 10)
        strengths.append(float(adapted["strength"]))
        state = state.replace(step=state.step + 1, adapted=adapted)
    change = 4 * 10 / 1000
    expected = [0] * 3 + [change] * 4 + [2 * change] * 4 + [change]
    np.testing.assert_allclose(strengths, expected, rtol=1e-5)


# --- a collapse is said --------------------------------------------------------------------------


def test_a_collapse_is_measured_and_said():
    method = method_of()
    state = jax.jit(method.init)(jax.random.key(0))
    zero = state.replace(ema_params=jax.tree.map(jnp.zeros_like, state.params))
    batch = {**batch_of(64), "number": np.arange(64)}
    measure = method.measures["sample_variance"]
    for own, expected in ((zero, 0.0), (state, None)):
        found = measure.per_example(own, jax.random.key(1), batch)
        found = {name: np.asarray(values)[None] for name, values in found.items()}
        ratio = measure.summary(found)["sample_variance"]
        if expected is None:
            made = method.sample(own, jax.random.split(jax.random.key(2), 64), {})
            expected = float(np.var(made, axis=0).sum() / np.var(batch["x"], axis=0).sum())
        assert ratio == pytest.approx(expected, rel=0.5)
    assert "have collapsed" not in method.notice({"feature_variance": 0.5})
    assert "vary by 0.03 of what the data do" in method.notice({"feature_variance": 0.03})


def test_the_log_says_it(tmp_path, caplog):
    """Of a generator that nothing has taught yet."""
    still = dict(optimizer__learning_rate=1e-9, discriminator__learning_rate=0.0)
    training.train(small_config(**GAN, **still, training__num_steps=4), tmp_path)
    assert "step 4: the samples are nearly all alike" in caplog.text


# --- what can't be asked of it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model__name="mlp"), "MLP does not: set model.name='generator'"),
        (dict(sampling__num_steps=4), "sampling.num_steps is 4, and method 'gan' .* set it to 1"),
        (dict(model__class_conditional=True, sampling__guidance_scale=2.0),
         "sampling.guidance_scale is 2, and method 'gan' has no guidance: set it to 1"),
        (dict(sampling__schedule="cosine"), "method 'gan' samples under no other schedule"),
        (dict(method__noised=True, schedule__name="learned"), "'gan' learns no schedule"),
        (dict(method__r1_weight=-1.0), "method.r1_weight is -1.0; it must be a number of at least"),
        (dict(method__latent_size=0), "method.latent_size is 0; it must be at least 1"),
        (dict(method__adversarial_loss="hinge"), "adversarial loss='hinge'.*: allowed are non_sat"),
        (dict(method__noise_target=2.0), "noise_target is 2.0; it must be between -1 and 1"),
        (dict(discriminator__name="plain"), "discriminator.name is 'plain'; it must be one of"),
        (dict(method__name="diffusion", method__latent_size=None, sampling__num_steps=4),
         "'diffusion' trains a network that denoises, and Generator does not"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        config_lib.validate(small_config(**{**GAN, **changes}))


def test_a_bound_guidance_and_edits_are_refused(tmp_path):
    training.train(small_config(**GAN, training__num_steps=1), tmp_path)
    generate = diffax.Generator(tmp_path)
    with pytest.raises(ValueError, match="bpd.*allowed are sample_variance"):
        diffax.evaluation.evaluate(
            generate.run, diffax.data.load(generate.run.config.data), ["bpd"]
        )
    with pytest.raises(ValueError, match="sampling: guidance_scale=2 needs"):
        generate(2, guidance_scale=2.0)
    with pytest.raises(ValueError, match="set it to 1"):
        generate(2, num_steps=5)
    with pytest.raises(ValueError, match="inpaint: method 'gan' edits no data"):
        generate.inpaint(np.zeros((2, 2)), np.ones((2, 2)))
    np.testing.assert_array_equal(generate(3, seed=1)[:2], generate(2, seed=1))
    assert np.abs(generate(8, clip_x0=0.01)).max() <= 0.01


def test_it_is_an_arm_beside_diffusion_judged_by_the_modes_that_it_keeps(tmp_path):
    """Two seeds of each; of the bound the GAN has nothing, and the report says so."""
    config = small_config(
        data__modes=25,
        evaluation__metrics=("modes",),
        evaluation__num_samples=40,
        evaluation__repeats=2,
        training__num_steps=3,
        **{key: value for key, value in GAN.items() if key.startswith(("model__gen", "discr"))},
    )
    own = ("method.name", "method.latent_size", "model.name", "sampling.num_steps")
    overrides = {key: GAN[key.replace(".", "__")] for key in own}
    arms = [ablation.Arm("diffusion", {}), ablation.Arm("gan", overrides)]
    spec = ablation.Spec("Modes", "Which keeps more modes?", "diffusion", ())
    report = runner.run_ablation(spec, config, arms, [0, 1], tmp_path, 1)
    found = {
        path.parts[-3]: json.loads(path.read_text())["result"]["metrics"]
        for path in sorted(tmp_path.glob("runs/*/*/result.json"))
    }
    assert "bpd" in found["diffusion"] and "bpd" not in found["gan"]
    assert "sample_variance" in found["gan"]
    assert all(0 <= run["off_modes"] <= 1 and run["modes_kept"] <= 25 for run in found.values())
    assert "Modes kept" in report.markdown.read_text()


# --- labels, and a search ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A GAN of points at -0.7 and 0.7 on the first axis, which their class says, trained."""
    folder = tmp_path_factory.mktemp("labelled")
    label = np.arange(240) % 2
    x = np.random.default_rng(0).normal(0, 0.05, (240, 2))
    x[:, 0] += 1.4 * label - 0.7
    np.savez(folder / "points.npz", x=x.astype(np.float32), label=label)
    config = small_config(
        data__name="npz",
        data__path=str(folder / "points.npz"),
        data__range=(-1.0, 1.0),
        model__class_conditional=True,
        training__num_steps=400,
        training__steps_per_call=100,
        training__log_every=100,
        discriminator__learning_rate=1e-2,
        method__r1_weight=0.1,
        method__r2_weight=0.1,
        evaluation__num_samples=32,
        **GAN,
    )
    training.train(config, folder / "run")
    return training.load(folder / "run")


def test_a_gan_learns_what_the_label_says(labelled):
    generate = diffax.Generator(labelled)
    for label, centre in ((0, -0.7), (1, 0.7)):
        made = generate(64, label=label)
        assert np.mean(np.abs(made[:, 0] - centre) < 0.5) > 0.9
    assert (np.sign(generate(8)[:, 0]) == [-1, 1] * 4).all()  # the classes in turn


def test_a_search_goes_by_the_distance_of_a_gans_samples(labelled, tmp_path):
    """A GAN has no bound to search by. The first trial is the config as it is."""
    config = labelled.config
    search = functools.partial(
        tuning.tune, config, ["method.r1_weight=0.05:0.2"], tmp_path, 1, confirm=0, workers=1
    )
    with pytest.raises(ValueError, match="metric='bpd'.*allowed are .*swd"):
        search()
    found = search(metric="swd", num_rungs=1)
    own = evaluating.evaluate(labelled, config_lib.load_data(config), ["swd"], config.seed)
    assert found.trials[0].measured == pytest.approx({400: own["swd"]["swd"]}, rel=1e-5)
    assert found.trials[0].values == {"method.r1_weight": 0.1}
