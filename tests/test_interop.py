"""diffusers' schedulers in and out, against numbers that diffusers itself gave."""

import json
from pathlib import Path

import interop_cases as cases
import jax
import numpy as np
import pytest

from diffax import schedules
from diffax.interop import diffusers

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
    (folder / diffusers.CONFIG).write_text(json.dumps(config))
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
    schedule = schedules.get("linear").discretize(1000)
    file = diffusers.save_scheduler(tmp_path, schedule, prediction="v", clip_x0=1.5)
    assert file == tmp_path / "scheduler_config.json"
    for path in (file, tmp_path):
        found = diffusers.load_scheduler(path)
        assert (found.prediction, found.clip_x0) == ("v", 1.5)
        np.testing.assert_allclose(found.schedule.log_snrs, schedule.log_snrs, atol=1e-5)
        assert found.grid(4) == [999, 749, 499, 249]


def test_a_rescaled_schedule_is_not_rescaled_twice(tmp_path):
    schedule = schedules.zero_terminal_snr(schedules.get("linear").discretize(100))
    diffusers.save_scheduler(tmp_path, schedule, prediction="v")
    config = json.loads((tmp_path / diffusers.CONFIG).read_text())
    assert config["trained_betas"][-1] == 1 and not config["rescale_betas_zero_snr"]
    found = diffusers.load_scheduler(tmp_path).schedule
    np.testing.assert_allclose(found.alphas_cumprod, schedule.alphas_cumprod, atol=1e-6)


def test_the_scheduler_of_a_pipelines_folder_is_found(tmp_path):
    diffusers.save_scheduler(tmp_path / "scheduler", schedules.get("cosine"), num_steps=10)
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
    (tmp_path / diffusers.CONFIG).write_text("{")
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
        diffusers.save_scheduler(tmp_path, schedules.get(schedule), **options)
    assert not any(tmp_path.iterdir())
