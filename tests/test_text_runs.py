"""Runs that are conditioned on captions: trained, sampled, edited and measured."""

import contextlib
import io
import json
import logging
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import TINY, assert_close, assert_equal, small_config

import diffax
from diffax import cli, data, distributed, edits, evaluation, training
from diffax import config as config_lib
from diffax.training import grids, run_logger

pytestmark = pytest.mark.usefixtures("hasty_compiler")
COLOURS = {"dark": 30, "grey": 128, "light": 220}
CAPTIONS = [f"{colour} {shape}" for colour in COLOURS for shape in ("bar", "box")]


class State(NamedTuple):
    step: jax.Array


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six drawings, each of which is there five times."""
    from PIL import Image

    root, lines = tmp_path_factory.mktemp("drawn"), []
    for i in range(30):
        colour, shape = CAPTIONS[i % 6].split()
        pixels = np.full((8, 8), 255, np.uint8)
        pixels[2:6, 3:5] = COLOURS[colour]
        if shape == "box":
            pixels[2:6, 2:6] = COLOURS[colour]
        Image.fromarray(pixels).save(root / f"{i:02}.png")
        lines.append(json.dumps({"file_name": f"{i:02}.png", "text": CAPTIONS[i % 6]}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def config_file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "captioned.py"
    changes = f"""
    config.data.name = "folder"
    config.data.path = {str(folder)!r}
    config.condition.text = "bytes"
    config.condition.text_length = 12
    config.condition.text_width = 8
    config.condition.text_depth = 1
    config.optimizer.warmup_steps = 0
    config.optimizer.learning_rate = 1e-2
    config.sampling.num_samples = 4
    config.evaluation.num_samples = 8
    return config"""
    path.write_text(TINY.replace("    return config", changes))
    return path


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    more = ["--config.training.sample_every=4", "--config.training.eval_every=4"]
    more += ["--config.parallel.num_devices=4", "--config.parallel.fsdp=2"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert cli.main(["train", f"--config={config_file}", f"--workdir={workdir}", *more]) == 0
    assert f"diffax sample --workdir={workdir} '--text=" in said.getvalue()  # of a held-out one
    return workdir


@pytest.fixture(scope="module")
def generate(trained):
    return diffax.Generator(trained, num_devices=1)


def conditions_of_search(run, monkeypatch):
    """What the eight starts of a search for a grid are conditioned on; nothing is searched."""
    seen = {}

    def edit(state, keys, cond, operation):
        seen.update(cond)
        raise StopIteration

    with monkeypatch.context() as patch:
        patch.setattr(grids.codecs, "method_inside", lambda *_: SimpleNamespace(edit=edit))
        with pytest.raises(StopIteration):
            grids.find(run, "dp", [2], num=8)
    return seen


def test_a_grid_is_found_under_the_held_out_captions(trained, monkeypatch):
    run = training.load(trained)
    seen = conditions_of_search(run, monkeypatch)
    captions = config_lib.load_data(run.config).eval.arrays["text"].tolist()
    given = [captions[i % len(captions)] for i in range(8)]
    want = config_lib.conditions.text_table(run.config, given)
    assert_equal(seen, {"text": want[np.arange(8)]})


def test_a_class_and_a_caption_of_one_sample_are_of_one_example(tmp_path, monkeypatch):
    """Wherever samples have the captions of held-out examples: scores, grids and pictures."""
    path, names = tmp_path / "two.npz", np.array(["dark", "light"])
    label = np.arange(80) // 4 % 2
    x = np.where(label, 220, 30)[:, None, None, None] * np.ones((1, 8, 8, 1))
    np.savez(path, x=x.astype(np.uint8), label=label, text=names[label])
    changes = dict(model__class_conditional=True, condition__text="bytes", data__name="npz")
    config = small_config(data__path=str(path), sampling__num_samples=8, **changes)
    dataset = config_lib.load_data(config)
    info = data.DatasetInfo.of(dataset)
    expected = [*map(names.tolist().index, dataset.eval.arrays["text"])]
    assert len(expected) == 8 and set(expected) == {0, 1} and expected != [0, 1] * 4
    assert evaluation.classes_of_samples(config, dataset, 8).tolist() == expected

    def drawn(num, seed, label, text):
        return [names.tolist().index(each) for each in text], np.asarray(label).tolist()

    run = SimpleNamespace(config=config, dataset=info, state=None)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.run, "Generator", lambda *_, **__: drawn)
        assert evaluation.draw(run, 8, 0, dataset) == (expected, expected)

    assert conditions_of_search(run, monkeypatch)["label"].tolist() == expected

    def preview(state, keys, batch):
        return jnp.ones((8, 8, 8, 1)) * batch["label"][:, None, None, None]

    monkeypatch.setattr(run_logger.plots, "picture", lambda x: x[:, 0, 0].astype(np.uint8))
    method, mesh = SimpleNamespace(preview=preview), distributed.make_mesh(1)
    seen = config_lib.conditions.encoded_dataset(config, dataset)
    draw = run_logger.make_drawing(config, method, seen, tmp_path, mesh)
    assert draw(State(jnp.zeros((), int)))[0, :, 0].tolist() == expected


def test_the_encoder_is_trained_along(trained):
    run = training.load(trained)
    assert run.dataset.arrays == (("text", ()),)
    # What isn't trained equals its own average.
    trained_to, average = (getattr(run.state, name) for name in ("params", "ema_params"))
    of_text = [np.asarray(each["text"]["bytes"]["embedding"]) for each in (trained_to, average)]
    assert np.abs(of_text[0] - of_text[1]).max() > 1e-4
    assert list((trained / "samples").glob("*.png"))
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any(key.startswith("eval_") for line in logged for key in line)


def test_on_one_device_it_is_as_on_several(trained, tmp_path):
    """And the operations of captions count: those of the encoder, and of attending to it."""
    several = training.load(trained)
    config = config_lib.changed(several.config, {"parallel.num_devices": 1, "parallel.fsdp": 1})
    config.training.update(sample_every=0, eval_every=0)
    state, _ = training.train(config, tmp_path)
    assert_close(state.params, several.state.params, rtol=1e-2, atol=1e-3)
    plain = config_lib.changed(config, {"condition.text": ""})
    dataset = config_lib.load_data(config)
    counted = [training.operations(each, dataset) for each in (config, plain)]
    assert counted[0] > 1.05 * counted[1] > 0


def test_samples_follow_their_own_prompts(generate):
    prompts = ["dark bar", "", "light box"]
    x = generate(3, seed=1, text=prompts)
    plain = generate(3, seed=1)
    np.testing.assert_allclose(x[1], plain[1], rtol=1e-4, atol=1e-5)
    assert np.abs(x - plain).max(axis=(1, 2, 3))[[0, 2]].min() > 1e-4
    np.testing.assert_allclose(generate(3, seed=1, text="light box")[2], x[2], rtol=1e-4, atol=1e-5)
    guided = generate(3, seed=1, text=prompts, guidance_scale=3.0)
    np.testing.assert_allclose(guided[1], x[1], rtol=1e-3, atol=1e-4)
    assert np.abs(guided - x).max(axis=(1, 2, 3))[[0, 2]].min() > 1e-4


def test_what_is_said_of_prompts(generate, caplog):
    with caplog.at_level(logging.WARNING, "diffax"):
        generate(2, text=["a prompt of many bytes", " "])
    assert "has 22 tokens, and the first 12 count" in caplog.text
    assert "an empty prompt is no condition" in caplog.text
    with pytest.raises(ValueError, match="text has 2 entries: a caption of all, or one for each"):
        generate(3, text=["a", "b"])
    for text in (3, b"red", iter("ab")):
        with pytest.raises(ValueError, match="^text=.*: a caption is a string; give one of all"):
            generate.texts(2, text)
    with pytest.raises(ValueError, match="text has None as entry 1: each caption is a string"):
        generate.texts(2, ["a", None])
    assert generate.texts(2, np.array("red")) == generate.texts(2, np.array(["red", "red"]))


def test_edits_take_captions(generate, folder):
    x = data.load({"name": "folder", "path": str(folder)}).eval.array()[:2]
    captions = ["dark bar", "light box"]
    plain, edited = (generate.sdedit(x, 1.0, text=text) for text in (None, captions))
    assert np.abs(plain - edited).max(axis=(1, 2, 3)).min() > 1e-5
    drawn = edits.edit(generate, "sdedit", None, 2, None, {}, {})
    known = data.load({"name": "folder", "path": str(folder)}).eval.arrays["text"][:2].tolist()
    np.testing.assert_allclose(
        drawn.arrays["edited"], generate.sdedit(x, 0.5, text=known), rtol=1e-4, atol=1e-5
    )


def test_the_command_line_takes_prompts(trained, tmp_path, capsys):
    # As Windows' editor saves it.
    (tmp_path / "prompts.txt").write_text("light bar\n\n grey box \n", encoding="utf-8-sig")
    out = tmp_path / "drawn"
    words = ["sample", f"--workdir={trained}", f"--out={out}", "--num=5", "--guidance-scale=2"]
    prompts = ["--text=dark bar", f"--prompts={tmp_path / 'prompts.txt'}"]
    assert cli.main([*words, *prompts]) == 0
    saved = np.load(f"{out}.npz")
    three = ["dark bar", "light bar", "grey box"]
    assert saved["text"].tolist() == [*three, *three[:2]]
    assert saved["samples"].shape == (5, 8, 8, 1)
    (tmp_path / "prompts.txt").write_text("\n")
    assert cli.main([*words, prompts[1]]) == 1
    assert "holds no prompt" in capsys.readouterr().err


def test_scores_are_of_held_out_captions(trained):
    run = training.load(trained)
    dataset = data.load(run.config.data)
    found = evaluation.draw(run, 4, 0, dataset)
    captions = (dataset.eval.arrays["text"].tolist() * 2)[:4]
    expected = diffax.Generator(run, num_devices=1)(4, 0, text=captions)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    bound = evaluation.bits_per_dim(run, dataset)
    assert np.isfinite(bound["bpd"])


def test_what_cannot_be_conditioned_on_captions_is_refused(config_file, trained, tmp_path):
    def refused(match, **changes):
        config = config_lib.from_json((trained / "config.json").read_text())
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        with pytest.raises(ValueError, match=match):
            training.train(config, tmp_path / "run")

    digits = {"data__name": "digits", "data__path": ""}
    refused("condition.text='bytes', but the data set 'digits' has no captions", **digits)
    refused("condition.text is set, and MLP takes no text", model__name="mlp")
    refused("condition.text is 'byte'; it must be one of", condition__text="byte")
    refused("'text_width'", condition__text="minilm")
    refused(
        "condition.text_dropout above 0",
        **{"condition__text_dropout": 0.0, "sampling__guidance_scale": 2.0},
    )
