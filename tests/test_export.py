"""A run's weights for other programs, and the card beside them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import compiled_quickly, first_state, run_of, small_config

import diffax
from diffax import cli, training
from diffax.config.storage import read_file
from diffax.interop import diffusers
from diffax.interop.export import export
from diffax.training import codecs

DIGITS = training.DatasetInfo("digits", (8, 8, 1), 10, None, ())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run on digits, not trained, whose network diffusers has too."""
    config = small_config(
        data__name="digits", model__name="unet", model__unet__channels=8, schedule__num_steps=20,
        model__unet__channel_mults=(1,), model__unet__num_blocks=1, model__unet__num_groups=4,
        model__unet__conditioning="step", model__unet__attention_resolutions=(),
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("images")
    with compiled_quickly(workdir / "cache"):
        state = first_state(config, codecs.build_method(config, DIGITS))
    evaluated = {
        "frechet": {"frechet": 2.5, "low": 2.0, "high": 3.0, "num_samples": 64, "step": 0},
        "kid": {"kid": 0.5, "step": 1},  # of another checkpoint
    }
    (workdir / "evaluation.json").write_text(json.dumps(evaluated))
    return run_of(config, state, DIGITS)._replace(workdir=workdir)


def test_a_pipelines_folder_for_diffusers(images, tmp_path):
    assert export(images, tmp_path, license="mit") == tmp_path
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    found = diffusers.load_scheduler(tmp_path)
    levels = images.state.schedule.log_snrs
    np.testing.assert_allclose(found.schedule.log_snrs, levels, atol=1e-4)
    assert (found.prediction, found.clip_x0) == ("eps", None)
    model, params = diffusers.load_unet(tmp_path)
    assert model.conditioning == "step" and model.num_groups == 4
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(images.state.ema_params))
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\ntags:\n- diffax\n")
    assert "| frechet | 2.5 | 2 to 3 | 64 samples |" in card
    assert "kid" not in card and "use_clipped_model_output" not in card
    assert "| data | digits, 8 x 8 x 1, 10 classes |" in card
    assert re.search(r"\| schedule \| cosine, log-SNR [\d.]+ to -6, 20 steps \|", card)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """The workdir of a run on the mixture."""
    folder = tmp_path_factory.mktemp("points")
    with compiled_quickly(folder / "cache"):
        training.train(small_config(training__num_steps=1), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("to", "weights", "read"),
    [("safetensors", "average", load_file), ("npz", "raw", np.load)],
)
def test_a_file_of_arrays(to, weights, read, points, tmp_path, capsys):
    words = [f"--workdir={points}", f"--out={tmp_path}", f"--to={to}", f"--weights={weights}"]
    assert cli.main(["export", *words]) == 0
    assert str(tmp_path / "README.md") in capsys.readouterr().out
    state = training.load(points).state
    params = {"average": state.ema_params, "raw": state.params}[weights]
    found = read(tmp_path / f"model.{to}")
    np.testing.assert_array_equal(found["dense_0/kernel"], params["dense_0"]["kernel"])
    config = diffax.config.from_json((tmp_path / "config.json").read_text())
    assert config.model.mlp.width == 16
    card = (tmp_path / "README.md").read_text()
    assert f"| weights | {'raw' if weights == 'raw' else 'moving average, decay 0.999'} |" in card


def test_what_is_not_known_is_refused(points, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    for words, said in (
        ([], "model.name=mlp: only a U-Net has a form in diffusers"),
        (["--to=onnx"], "to='onnx': allowed are diffusers, safetensors, npz"),
        (["--weights=ema"], "weights='ema': allowed are average, raw"),
    ):
        assert cli.main(["export", f"--workdir={points}", out, *words]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def changed(run, **changes):
    """The run under another config, without any training."""
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return run._replace(config=config)


def test_a_run_goes_under_the_schedule_that_it_is_sampled_under(images, tmp_path):
    run = changed(images, sampling__schedule="linear_logsnr", sampling__clip_x0=1.0)
    export(run, tmp_path, sampler="ddpm", weights="raw")
    found = diffusers.load_scheduler(tmp_path)
    first = float(images.state.schedule.log_snrs[0])  # the ends are those of the trained one
    steps = np.diff(found.schedule.log_snrs)
    np.testing.assert_allclose(steps, steps.mean(), atol=1e-3)
    np.testing.assert_allclose(found.schedule.log_snrs[-1], -6, atol=1e-4)
    assert first - 0.6 < found.schedule.log_snrs[0] < first + 1e-4
    assert found.clip_x0 == 1.0
    card = (tmp_path / "README.md").read_text()
    assert "frechet" not in card  # which is of the averaged weights
    assert "num_inference_steps=50)" in card  # a word that DDPMPipeline does not know is not there
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    export(run, tmp_path)
    assert "use_clipped_model_output=True" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, dict(sampler="dpmpp_2m"), "sampler='dpmpp_2m'.*: allowed are ddim, ddpm"),
        ({}, dict(weights="ema"), "weights='ema'.*: allowed are average, raw"),
        (dict(model__unet__num_groups=0), {}, "num_groups is 0, a number of groups for each width"),
        (dict(objective__learned_variance=True), {}, "no network with a variance"),
        (dict(objective__prediction="score"), {}, "prediction='score'.*: allowed are eps"),
        (dict(method__name="autoencoder"), {}, "method.name=autoencoder, codec.name=identity"),
    ],
)
def test_what_diffusers_has_no_word_for_is_refused_and_nothing_written(
    changes, options, said, images, tmp_path
):
    with pytest.raises(ValueError, match=said):
        export(changed(images, **changes), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_average_that_there_is_not_is_refused(images, tmp_path):
    run = images._replace(state=SimpleNamespace(step=0, params=images.state.params))
    with pytest.raises(ValueError, match="keeps no moving average; set weights='raw'"):
        export(run, tmp_path / "out", to="npz")
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out", to="npz", weights="raw")


def test_the_example_of_the_docs_goes_to_diffusers(tmp_path):
    """configs/digits.py does by the one flag that the page of diffusers adds to it."""
    root = Path(__file__).parent.parent
    page = (root / "docs" / "diffusers.md").read_text(encoding="utf-8")
    assert "--config=configs/digits.py --workdir=runs/grouped" in page
    (groups,) = re.findall(r"--config\.model\.unet\.num_groups=(\d+)", page)
    config = read_file(str(root / "configs" / "digits.py"))
    assert config.model.unet.num_groups == 0  # what diffusers has no word for
    config.model.unet.num_groups = int(groups)
    method = codecs.build_method(config, DIGITS)
    shapes = jax.eval_shape(method.init, jax.random.key(0)).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    schedule = diffax.config.build_schedule(config)
    state = SimpleNamespace(step=0, params=params, ema_params=params, schedule=schedule)
    export(training.Run(config, method, state, DIGITS), tmp_path)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["norm_num_groups"] == 8
