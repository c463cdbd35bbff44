"""A run's weights for other programs, and the card beside them."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import compiled_quickly, first_state, run_of, small_config

import diffax
from diffax import cli, training
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
    evaluated = {"frechet": {"frechet": 2.5, "low": 2.0, "high": 3.0, "num_samples": 64}}
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
    assert "use_clipped_model_output=True" in card
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
        (["--to=onnx"], "--to='onnx': allowed are diffusers, safetensors, npz"),
        (["--weights=ema"], "--weights='ema': allowed are average, raw"),
    ):
        assert cli.main(["export", f"--workdir={points}", out, *words]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_method_that_diffusers_has_not_is_refused(images, tmp_path):
    other = images.config.copy_and_resolve_references()
    other.method.name = "autoencoder"
    with pytest.raises(ValueError, match="method.name=autoencoder, codec.name=identity: diffusers"):
        export(images._replace(config=other), tmp_path)
