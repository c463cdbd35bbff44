"""diffusers' schedulers and U-Nets in and out, against numbers that diffusers itself gave."""

import json
from pathlib import Path

import interop_cases as cases
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import diffax
from diffax import models
from diffax.interop import diffusers
from diffax.interop.diffusers import schedulers, unets
from diffax.models import text
from diffax.models.embeddings import noise_position, sinusoidal

GIVEN = json.loads(Path(__file__).with_name("diffusers_schedulers.json").read_text())
EXPECTED = {  # prediction, bound of x0, learned variance
    "ddim": ("eps", 1.0, False),
    "ddim, scaled": ("eps", None, False),
    "ddim, zero SNR": ("v", None, False),
    "ddpm, cosine": ("x0", 2.0, False),
    "ddpm, sigmoid": ("eps", 1.0, True),
    "ddim, own betas": ("eps", 1.0, False),
    "dpm": ("eps", None, False),
    "dpm, leading": ("eps", None, False),
    "unipc, trailing": ("eps", None, False),
    "flow": ("flow", None, False),
}


def kept(folder, config):
    (folder / schedulers.CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", cases.READ)
def test_a_config_of_diffusers_is_read_as_diffusers_reads_it(name, tmp_path):
    given = GIVEN["read"][name]
    found = diffusers.load_scheduler(kept(tmp_path, given["config"]))
    assert (found.prediction, found.clip_x0, found.learned_variance) == EXPECTED[name]
    if "sigmas" in given:
        sigmas = jax.nn.sigmoid(-found.schedule.log_snr(np.array(found.grid(cases.NUM_STEPS))) / 2)
        np.testing.assert_allclose(sigmas, given["sigmas"], rtol=1e-5)
        return
    assert found.grid(cases.NUM_STEPS) == given["timesteps"]
    alpha_bar = np.asarray(found.schedule.alphas_cumprod)
    at = [i for i in cases.AT if i < len(alpha_bar)]
    # diffusers multiplies a thousand numbers in float32.
    np.testing.assert_allclose(alpha_bar[at], given["alphas_cumprod"], rtol=3e-4, atol=1e-7)


@pytest.mark.parametrize("name", cases.WRITTEN)
def test_diffusers_draws_the_same_by_what_is_written(name, tmp_path):
    cases.written(name, tmp_path)
    theirs = np.array(GIVEN["written"][name]["samples"])
    found = cases.drawn(name, tmp_path)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_a_schedule_comes_back_as_it_went(tmp_path):
    schedule = diffax.schedules.get("linear").discretize(1000)
    file = diffusers.save_scheduler(tmp_path, schedule, prediction="v", clip_x0=1.5)
    assert file == tmp_path / "scheduler_config.json"
    for path in (file, tmp_path):
        found = diffusers.load_scheduler(path)
        assert (found.prediction, found.clip_x0) == ("v", 1.5)
        np.testing.assert_allclose(found.schedule.log_snrs, schedule.log_snrs, atol=1e-5)
        assert found.grid(4) == [999, 749, 499, 249]


def test_a_rescaled_schedule_is_not_rescaled_twice(tmp_path):
    schedule = diffax.schedules.zero_terminal_snr(diffax.schedules.get("linear").discretize(100))
    diffusers.save_scheduler(tmp_path, schedule, prediction="v")
    config = json.loads((tmp_path / schedulers.CONFIG).read_text())
    assert config["trained_betas"][-1] == 1 and not config["rescale_betas_zero_snr"]
    found = diffusers.load_scheduler(tmp_path).schedule
    np.testing.assert_allclose(found.alphas_cumprod, schedule.alphas_cumprod, atol=1e-6)


def test_the_scheduler_of_a_pipelines_folder_is_found(tmp_path):
    diffusers.save_scheduler(tmp_path / "scheduler", diffax.schedules.get("cosine"), num_steps=10)
    assert diffusers.load_scheduler(tmp_path).schedule.num_steps == 10
    with pytest.raises(FileNotFoundError, match=r"holds no scheduler_config.json"):
        diffusers.load_scheduler(tmp_path / "unet")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "LCMScheduler"}, "_class_name='LCMScheduler'.*: allowed are DDIM"),
        ({"beta_schedule": "linaer"}, "beta_schedule='linaer' .did you mean linear"),
        ({"prediction_type": "score"}, "prediction_type='score'.*: allowed are epsilon"),
        ({"timestep_spacing": "even"}, "timestep_spacing='even'.*: allowed are leading"),
        ({"thresholding": True}, "thresholding=True is not known; only false is"),
    ],
)
def test_a_config_that_is_not_known_is_refused(config, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        diffusers.load_scheduler(kept(tmp_path, {"_class_name": "DDIMScheduler", **config}))


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / schedulers.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="scheduler_config.json is no JSON: "):
        diffusers.load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("schedule", "options", "said"),
    [
        ("cosine", dict(prediction="score"), "prediction='score'.*: allowed are eps, x0, v, flow"),
        ("cosine", dict(sampler="plms"), "sampler='plms'.*: allowed are ddim, ddpm, dpmpp_2m"),
        ("cosine", dict(prediction="flow"), "goes with schedule 'rectified_flow', shifted or not"),
        ("sigmoid_beta", dict(sampler="unipc", clip_x0=1.0), "clip_x0=1: .* clips nothing"),
        ("rectified_flow", {}, "prediction='eps' is undefined at zero SNR"),
    ],
)
def test_what_diffusers_has_no_scheduler_for_is_refused(schedule, options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        diffusers.save_scheduler(tmp_path, diffax.schedules.get(schedule), **options)
    assert not any(tmp_path.iterdir())


# --- U-Nets -----------------------------------------------------------------------------------

UNETS = json.loads(Path(__file__).with_name("diffusers_unets.json").read_text())


def close(found, theirs):
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", cases.UNETS)
def test_a_unet_goes_out_and_answers_as_diffusers_does(name, tmp_path):
    model, params = cases.unet(name)
    shape = cases.UNETS[name][1]
    close(cases.answer(model, params, shape), np.array(UNETS["unets"][name]))
    diffusers.save_unet(tmp_path, model, params, shape, cases.LEVELS)
    written = load_file(tmp_path / unets.WEIGHTS)
    expected = 50 if model.conditioning == "log_snr" else None
    assert json.loads((tmp_path / unets.CONFIG).read_text()).get("num_train_timesteps") == expected
    with safe_open(tmp_path / unets.WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}
    if expected is None:
        again, back = diffusers.load_unet(tmp_path)
        assert again == model
        jax.tree.map(np.testing.assert_array_equal, back, params)
    else:
        waves = written["time_proj.weight"]
        level = noise_position(cases.LEVELS.log_snrs, "log_snr", model.step_log_snrs)
        np.testing.assert_array_equal(waves, sinusoidal(level, model.channels))


@pytest.mark.parametrize("name", cases.OWN_UNETS)
def test_a_unet_of_diffusers_comes_in_and_answers_as_it_did(name, tmp_path):
    given = UNETS["own_unets"][name]
    cases.own_unet(tmp_path, cases.OWN_UNETS[name], given["shapes"])
    model, params = diffusers.load_unet(tmp_path)
    config = cases.OWN_UNETS[name]
    shape = (config["sample_size"], config["sample_size"], config["in_channels"])
    close(cases.answer(model, params, shape), np.array(given["answer"]))


@pytest.mark.parametrize("name", ["ddpm", "of text"])
def test_a_unet_that_came_in_goes_out_as_it_was(name, tmp_path):
    """Its frequencies too, which are a period here and a shift there."""
    shapes, config = UNETS["own_unets"][name]["shapes"], cases.OWN_UNETS[name]
    cases.own_unet(tmp_path / "in", config, shapes)
    model, params = diffusers.load_unet(tmp_path / "in")
    diffusers.save_unet(tmp_path / "out", model, params, (8, 8, 1))
    written = json.loads((tmp_path / "out" / unets.CONFIG).read_text())
    assert written["freq_shift"] == pytest.approx(config.get("freq_shift", 0), abs=1e-9)
    assert {key: written[key] for key in config if key != "freq_shift"} == {
        key: value for key, value in config.items() if key != "freq_shift"
    }
    before, after = (load_file(tmp_path / way / unets.WEIGHTS) for way in ("in", "out"))
    if name == "of text":  # two biases are added, and one is enough
        before["time_embedding.linear_2.bias"] += before["class_embedding.bias"]
        before["class_embedding.bias"] *= 0
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key])


def test_a_text_without_pooled_features_or_with_layers_as_convolutions(tmp_path):
    """As of most published U-Nets of a text."""
    config = cases.OWN_UNETS["of text"] | {"class_embed_type": None, "use_linear_projection": False}
    del config["projection_class_embeddings_input_dim"]
    shapes = {
        name: [*shape, 1, 1] if ".proj_" in name and len(shape) == 2 else shape
        for name, shape in UNETS["own_unets"]["of text"]["shapes"].items()
        if "class_embedding" not in name
    }
    cases.own_unet(tmp_path / "in", config, shapes)
    model, params = diffusers.load_unet(tmp_path / "in")
    assert not params["text_pooled"]["dense"]["kernel"].any()
    diffusers.save_unet(tmp_path / "out", model, params, (8, 8, 1))
    assert "class_embed_type" not in json.loads((tmp_path / "out" / unets.CONFIG).read_text())
    before, after = (load_file(tmp_path / way / unets.WEIGHTS) for way in ("in", "out"))
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(after[key].ravel(), before[key].ravel())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(attention_head_dim=2), "attention_head_dim=2 makes heads of different widths"),
        (dict(addition_embed_type="text"), "addition_embed_type='text' is not known; only None is"),
        (dict(transformer_layers_per_block=2), "transformer_layers_per_block=2 is not known"),
        (dict(projection_class_embeddings_input_dim=5), "only that of cross_attention_dim=6"),
        (dict(cross_attention_dim=[6, 4]), "only one number is known"),
        (dict(down_block_types=["SimpleCrossAttnDownBlock2D"] * 2), "known are CrossAttnDownBlock"),
    ],
)
def test_a_unet_of_text_that_is_not_known_is_refused(change, said, tmp_path):
    config = cases.OWN_UNETS["of text"] | {
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    }
    cases.own_unet(tmp_path, config | change, UNETS["own_unets"]["of text"]["shapes"])
    with pytest.raises(ValueError, match=said):
        diffusers.load_unet(tmp_path)


def test_old_names_of_attention_and_a_pipelines_folder_are_known(tmp_path):
    def old(name):
        if "attentions" not in name:
            return name
        for before, now in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            name = name.replace(now, before)
        return name.replace("to_out.0", "proj_attn")

    given = UNETS["own_unets"]["ddpm"]["shapes"]
    cases.own_unet(tmp_path / "unet", cases.OWN_UNETS["ddpm"], given, old)
    cases.own_unet(tmp_path / "new", cases.OWN_UNETS["ddpm"], given)
    (_, found), (_, wanted) = map(diffusers.load_unet, (tmp_path, tmp_path / "new"))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(_class_name="UNet3DConditionModel"), "_class_name is 'UNet3DConditionModel', not"),
        (dict(time_embedding_type="fourier"), "only 'positional' or 'learned' is"),
        (dict(act_fn="gelu"), "act_fn='gelu' is not known; only 'silu' is"),
        (dict(down_block_types=["DownBlock2D", "SkipDownBlock2D"]), "names SkipDownBlock2D; known"),
        (dict(up_block_types=["UpBlock2D", "UpBlock2D"]), "is not the mirror image of"),
        (dict(block_out_channels=[8, 12]), "no multiples of the first"),
        (dict(attn_norm_num_groups=2), "attn_norm_num_groups=2; only norm_num_groups=4"),
        (dict(layers_per_block=2), "has shape None, and its config asks for"),
        (dict(in_channels=2), r"first/kernel has shape \(3, 3, 1, 8\), and its config asks for"),
        (dict(num_class_embeds=3), "noise_embedding/classes/embedding has shape None"),
    ],
)
def test_a_unet_that_is_not_known_is_refused(change, said, tmp_path):
    given = UNETS["own_unets"]["ddpm"]["shapes"]
    cases.own_unet(tmp_path, cases.OWN_UNETS["ddpm"] | change, given)
    with pytest.raises(ValueError, match=said):
        diffusers.load_unet(tmp_path)


def test_arrays_that_no_unet_has_are_named(tmp_path):
    given = UNETS["own_unets"]["ddpm"]["shapes"]
    cases.own_unet(tmp_path, cases.OWN_UNETS["ddpm"], given | {"extra.weight": [2]})
    with pytest.raises(ValueError, match="extra.weight is no array that is known"):
        diffusers.load_unet(tmp_path)
    (tmp_path / unets.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="holds no diffusion_pytorch_model.safetensors"):
        diffusers.load_unet(tmp_path)


FROZEN = text.FrozenFeatures(5, 6, np.float32)
TRAINED, OF_TEXT = text.BytesNetwork(8, 8, 1, np.float32), {"attention": "transformer"}


@pytest.mark.parametrize(
    ("fields", "shape", "schedule", "said"),
    [
        (dict(num_groups=0), (8, 8, 1), cases.LEVELS, "num_groups is 0, .* train with model.unet"),
        ({}, (8, 8, 1), None, "schedule is None: the network is conditioned on its log-SNR"),
        ({}, (8, 4, 1), cases.LEVELS, "takes square images"),
        (dict(control_shape=(8, 8, 1)), (8, 8, 1), cases.LEVELS, "the network takes a control"),
        (dict(attention="transformer"), (8, 8, 1), cases.LEVELS, "always attends to a text"),
        (dict(text=FROZEN), (8, 8, 1), cases.LEVELS, "attention='plain', a form of which"),
        (dict(text=TRAINED, **OF_TEXT), (8, 8, 1), None, "encoder that is trained along"),
        (dict(text=FROZEN, **OF_TEXT), (8, 8, 1), cases.LEVELS, "has no time embedding of one row"),
        (
            dict(head_width=16, attention_resolutions=(8,), channel_mults=(1, 4)),
            (8, 8, 1),
            cases.LEVELS,
            "head_width=16 exceeds a width with attention, 8, which",
        ),
    ],
)
def test_a_unet_that_diffusers_has_not_is_refused(fields, shape, schedule, said, tmp_path):
    model = models.UNet(**cases.UNETS["log-SNR"][0] | fields)
    _, params = cases.unet("log-SNR")
    with pytest.raises(ValueError, match=said):
        diffusers.save_unet(tmp_path, model, params, shape, schedule)
    assert not any(tmp_path.iterdir())
