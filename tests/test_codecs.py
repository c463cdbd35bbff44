"""Methods that work in the latents of an autoencoder: trained, resumed, sampled and measured."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from small_runs import assert_equal, small_config

import diffax
from diffax import codecs, data, evaluation, training
from diffax import config as config_lib
from diffax.interop.export import export
from diffax.methods.codec import coarsest, through
from diffax.training import codecs as training_codecs
from diffax.training import latents, teachers
from diffax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("hasty_compiler")


def config_of(path, **changes):
    of_data = dict(data__name="npz", data__path=str(path), data__range=(-1.0, 1.0))
    return small_config(**of_data, **changes)


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """A file of 160 signals, 8 numbers of 2 channels."""
    path = tmp_path_factory.mktemp("signals") / "signals.npz"
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (160, 1, 2))
    np.savez(path, x=np.sin(np.linspace(0, 3, 8)[None, :, None] + phase).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def trained(signals, tmp_path_factory):
    """The workdir of an autoencoder of them, with latents of 4 numbers of 3 channels."""
    workdir = tmp_path_factory.mktemp("autoencoder")
    config = config_of(
        signals,
        method__name="autoencoder",
        model__name="autoencoder",
        model__autoencoder__channels=8,
        model__autoencoder__latent_channels=3,
        training__num_steps=150,
        training__steps_per_call=50,
        ema__decay=0.9,
    )
    training.train(config, workdir)
    return workdir


def latent_config(signals, trained, **changes):
    return config_of(
        signals,
        codec__name="run",
        codec__path=str(trained),
        model__name="unet",
        model__unet__channels=8,
        model__unet__channel_mults=(1,),
        model__unet__num_blocks=1,
        model__unet__attention_resolutions=(),
        model__unet__head_width=8,
        **changes,
    )


def test_a_config_allows_the_codecs_that_there_are():
    """The rule is written apart from the table, which needs what a config builds."""
    allowed = f"it must be one of {', '.join(codecs.CODECS)}$"
    with pytest.raises(ValueError, match=allowed):
        config_lib.validate(small_config(codec__name="none_of_these"))


def test_latents_have_unit_variance_and_come_back(signals, trained):
    codec, x = codecs.load(trained), np.load(signals)["x"]
    z = codec.encode(x)
    assert codec.shape == (4, 3) and z.shape == (160, 4, 3)
    np.testing.assert_allclose(np.std(z, (0, 1)), 1, atol=0.2)
    np.testing.assert_allclose(np.mean(z, (0, 1)), 0, atol=0.2)
    run = training.load(trained)
    made = run.model.apply({"params": run.state.ema_params}, x)
    np.testing.assert_allclose(codec.decode(z), made, rtol=1e-4, atol=1e-5)
    assert codec.fingerprint == codecs.load(str(trained)).fingerprint != ""


def test_a_run_works_in_latents(signals, trained, tmp_path):
    """The network sees latents, samples are data, and it resumes exactly."""
    config = latent_config(signals, trained, training__eval_every=6, training__checkpoint_every=6)
    whole, metrics = training.train(config, tmp_path / "whole")
    training.train(config, tmp_path / "cut", stop=lambda step, run: step == 6)
    resumed, _ = training.train(config, tmp_path / "cut")
    assert_equal(resumed.params, whole.params)
    assert whole.params["last"]["kernel"].shape[-1] == 3
    run, dataset = training.load(tmp_path / "whole"), data.load_cached(config.data)
    assert run.dataset.shape == (8, 2) and run.dataset.codec == codecs.load(trained).fingerprint
    samples = diffax.Generator(run, num_devices=1)(5, seed=1)
    assert samples.shape == (5, 8, 2) and np.all(np.isfinite(samples))
    found = evaluation.evaluate(run, dataset, ["latent_bound"])["latent_bound"]
    assert found["space"] == "latents of shape (4, 3)" and found["levels"] is None
    assert np.isfinite(metrics["eval_latent_bound"])
    compared = evaluation.compare(run, dataset)
    assert list(compared) == ["latent_bound", "latent_bound_own"]
    for name in ("bpd", "bpd_vlb", "bpd_ode"):
        with pytest.raises(
            ValueError, match="in bits/dim is one of the data, and this run works in"
        ):
            evaluation.evaluate(run, dataset, [name])
    assert_edits(diffax.Generator(run, num_devices=1), dataset.eval.array()[:5])
    out = export(run, tmp_path / "out", to="npz")
    beside = np.load(out / "beside.npz")
    np.testing.assert_allclose(beside["latents/mean"], run.dataset.latent_mean)
    np.testing.assert_allclose(beside["latents/deviation"], run.dataset.latent_deviation)
    assert f"codec.path={str(trained)!r}, is not part of this" in (out / "README.md").read_text()


def assert_edits(generate, x):
    """Data in, data out; what is known stays as it is, bit for bit."""
    mask = (np.arange(8) < 5)[:, None] * np.ones_like(x)
    made = generate.inpaint(x, mask)
    np.testing.assert_array_equal(made[mask == 1], x[mask == 1])
    assert np.all(np.isfinite(made)) and np.abs(made - x)[mask == 0].max() > 0
    other = generate.inpaint(np.where(mask == 1, x, 0.3), mask)
    np.testing.assert_array_equal(other, made)  # what is unknown doesn't matter
    x = x[:2]
    found = generate.invert(x, num_steps=8)
    assert found.start.shape == (2, 4, 3) and found.reconstruction.shape == x.shape
    apart = np.sqrt(np.mean((found.reconstruction - x) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(found.error, apart, rtol=1e-5)
    ends = generate.interpolate(*x, [0.0, 1.0], num_steps=8)
    np.testing.assert_allclose(ends, found.reconstruction, rtol=1e-3, atol=1e-3)
    with pytest.raises(
        ValueError, match=r"start has shape \(2, 8, 2\): this run's data are \(n, 4, 3"
    ):
        generate.from_start(x)


def test_a_latent_is_known_if_all_that_it_stands_for_is():
    mask = np.ones((2, 6, 4, 3), np.float32)
    mask[0, 1, 3, 2] = 0
    mask[1, 2:] = 0.5
    expected = np.ones((2, 3, 2, 1))
    expected[0, 0, 1] = 0
    expected[1, 1:] = 0.5
    np.testing.assert_array_equal(coarsest(mask, (3, 2, 16)), expected)


def test_the_bound_is_that_of_the_latents(signals, trained):
    """As of a run on the latents as data."""
    codec, dataset = codecs.load(trained), data.load_cached(config_of(signals).data)
    info = training.DatasetInfo.of(dataset)
    config = latent_config(signals, trained)
    inner = config_lib.build_method(
        config, dataclasses.replace(info, shape=codec.shape, levels=None)
    )
    outer, state = through(inner, codec), inner.init(jax.random.key(0))
    x, number = dataset.eval.array()[:8], np.arange(8)
    key = jax.random.key(3)
    found = outer.measures["latent_bound"].per_example(state, key, {"x": x, "number": number})
    z = codec.encode(x)
    expected = inner.measures["latent_bound"].per_example(state, key, {"x": z, "number": number})
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def test_another_autoencoder_under_the_same_path_is_refused(
    signals, trained, tmp_path, monkeypatch
):
    moved = shutil.copytree(trained, tmp_path / "autoencoder")
    config = latent_config(signals, moved, training__num_steps=2)
    training.train(config, tmp_path / "run")
    elsewhere = shutil.copytree(trained, tmp_path / "elsewhere")
    config.codec.path = str(elsewhere)
    training.train(config, tmp_path / "run")  # a copy of it is the same
    again = config_lib.from_json((elsewhere / "config.json").read_text())
    again.training.num_steps = 152
    training.train(again, elsewhere)
    monkeypatch.setattr(latents, "prepared", None)  # errors come before the encoding
    with pytest.raises(ValueError, match="has changed since this run was .* copy of it that was"):
        training.load(tmp_path / "run")
    config.training.num_steps = 3
    with pytest.raises(ValueError, match="codec was '.*' and is '.*'"):
        training.train(config, tmp_path / "run")
    config.codec.path, config.optimizer.learning_rate = str(moved), 0.5
    with pytest.raises(ValueError, match="another config: .*optimizer.learning_rate was"):
        training.train(config, tmp_path / "run")
    config.training.batch_size = 1000
    with pytest.raises(ValueError, match="training.batch_size=1000 must be from 1 to"):
        training.train(config, tmp_path / "other")


def test_an_autoencoder_in_the_place_of_another_is_read_anew(trained, tmp_path):
    """In one process, at the same path and step."""
    place = shutil.copytree(trained, tmp_path / "autoencoder")
    before, run = codecs.load(place), training.load(place)
    checkpoints = Checkpoints(place / "checkpoints")
    loop, step = checkpoints.remembered(), training.steps_done(place)
    checkpoints.remove([step])
    moved = run.state.latent_mean + 1
    checkpoints.save(step, run.state.replace(latent_mean=moved), loop)
    checkpoints.close()
    after = codecs.load(place)
    assert training.steps_done(place) == step and after.fingerprint != before.fingerprint
    x = np.zeros((1, 8, 2), np.float32)
    assert not np.allclose(after.encode(x), before.encode(x))


@pytest.mark.parametrize(
    "changes",
    [
        dict(codec__name="run", codec__path="runs/none"),
        dict(codec__name="taef2", codec__path="runs/none"),
        dict(method__name="consistency", method__distill=True, method__teacher="runs/none"),
        dict(training__init_from="runs/none"),
        dict(condition__base="runs/none"),
    ],
)
def test_a_relative_path_to_nothing_says_where_it_starts(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = training.DatasetInfo("npz", (8, 8, 3), 0, None, ())
    for root, said in (("", True), (f"{tmp_path}/", False)):
        config = small_config(
            **{k: f"{root}{v}" if v == "runs/none" else v for k, v in changes.items()}
        )
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            if config.codec.path:
                training_codecs.codec_of(config, info)
            teachers.starting_params(config, info, None)
            teachers.teacher_of(config, info)
        assert f"is '{root}runs/none'" in str(error.value)
        assert (f"where the command runs, here {tmp_path}" in str(error.value)) == said


def test_what_is_no_autoencoder_is_refused_before_work(signals, trained, tmp_path):
    with pytest.raises(ValueError, match="path is the workdir of a trained autoencoder"):
        config_lib.validate(config_of(signals, codec__name="run"))
    with pytest.raises(ValueError, match="path is '.*', which holds no run"):
        training.train(latent_config(signals, tmp_path / "nothing"), tmp_path / "run")
    config = latent_config(signals, "", training__num_steps=1)
    config.codec.update(name="identity", path="")
    training.train(config, tmp_path / "diffusion")
    with pytest.raises(ValueError, match="holds a run of method 'diffusion'; it must hold one of"):
        training.train(latent_config(signals, tmp_path / "diffusion"), tmp_path / "run")
    images = tmp_path / "images.npz"
    np.savez(images, x=np.zeros((20, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match="whose autoencoder can't take these data: x has 1 chan"):
        training.train(latent_config(images, trained), tmp_path / "run")
