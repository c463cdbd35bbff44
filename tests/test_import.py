"""A network of diffusers becomes a run, as docs/coming_from.md says: found, loaded, sampled,
fine-tuned under a learned schedule, exported, and sampled by diffusers again."""

import importlib.util
import json
from pathlib import Path

import interop_cases as cases
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import assert_equal

import diffax
from diffax import cli, training
from diffax.interop import diffusers
from diffax.interop.diffusers import unets
from diffax.interop.export import export
from diffax.interop.imports import SOURCES
from diffax.models.embeddings import rows_at, step_at
from diffax.training import teachers

GIVEN = json.loads(Path(__file__).with_name("diffusers_unets.json").read_text())
SHAPES = GIVEN["own_unets"]["ddpm"]["shapes"]

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers") / "pipeline"
    cases.pipeline(folder, SHAPES)
    return folder


@pytest.fixture(scope="module")
def imported(pipeline):
    workdir = pipeline.parent / "imported"
    words = [f"--path={pipeline}", f"--workdir={workdir}", "--data=digits"]
    assert cli.main(["import", "--from=diffusers", *words]) == 0
    return workdir


@pytest.fixture(scope="module")
def tuned(imported):
    """Fine-tuned under a learned schedule, for a few steps."""
    config = cases.fine_tuning(imported)
    config.training.update(num_steps=3, batch_size=16, log_every=3)
    config.schedule_learning.learning_rate = 0.1
    config.parallel.num_devices = 1
    training.train(config, imported.parent / "tuned")
    return imported.parent / "tuned"


def test_its_samples_are_those_of_diffusers(imported):
    run = training.load(imported)
    assert int(run.state.step) == 0 and run.dataset.num_train == 1442
    assert (run.config.sampling.grid, run.config.sampling.clip_x0) == ("leading", None)
    theirs = np.array(GIVEN["pipeline"])
    found = cases.drawn_by(run)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_the_run_is_sampled_under_another_schedule(imported, tmp_path):
    words = [f"--workdir={imported}", "--num=2", "--steps=3", f"--out={tmp_path / 'x.png'}"]
    assert cli.main(["sample", *words, "--sampling-schedule=linear_logsnr"]) == 0
    assert (tmp_path / "x.png").exists()


def test_fine_tuning_starts_from_it_and_learns_a_schedule(imported, tuned):
    before, after = training.load(imported).state, training.load(tuned).state
    apart = jax.tree.map(lambda a, b: abs(a - b).max(), before.ema_params, after.params)
    assert 0 < max(jax.tree.leaves(apart)) < 0.01  # by three steps of Adam
    first, last = (
        json.loads((tuned / "schedule" / f"step_00000{i}.json").read_text())["log_snr"]
        for i in (0, 3)
    )
    assert np.abs(np.subtract(first, last)).max() > 0.01


def test_what_was_fine_tuned_goes_back_and_comes_in_again(tuned, tmp_path):
    run = training.load(tuned)
    export(run, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert config["time_embedding_type"] == "learned" and config["num_train_timesteps"] == 1000
    again = SOURCES["diffusers"](tmp_path / "out")
    levels = np.asarray(run.state.schedule.discretize(1000).log_snrs)
    assert again.config.model.unet.step_rows == 1000
    np.testing.assert_allclose(again.config.model.unet.step_log_snrs, levels, atol=1e-3)
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed; experiments/interop_diffusers.py draws by it")
    from diffusers import DiffusionPipeline

    ours, theirs = (
        cases.drawn_by(run, "trailing"),
        cases.drawn_by_diffusers(
            DiffusionPipeline.from_pretrained(tmp_path / "out"), cases.starts()
        ),
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_a_network_conditioned_on_the_log_snr_comes_back_as_it_went(tmp_path):
    model, params = cases.unet("log-SNR")
    diffusers.save_scheduler(tmp_path / "scheduler", cases.LEVELS)
    diffusers.save_unet(tmp_path / "unet", model, params, (8, 8, 1), cases.LEVELS)
    again = SOURCES["diffusers"](tmp_path)
    fields = again.config.model.unet
    assert {name: getattr(model, name) for name in fields} == fields.to_dict()
    assert_equal(again.params, params)
    # Trained on there, the rows are kept as they are.
    file = tmp_path / "unet" / unets.WEIGHTS
    arrays = load_file(file)
    arrays["time_proj.weight"][20, 0] += 0.01
    unets.save_arrays(file, arrays, "pt")
    again = SOURCES["diffusers"](tmp_path)
    rows = again.params["noise_embedding"]["steps"]
    np.testing.assert_array_equal(rows, arrays["time_proj.weight"])
    assert len(again.config.model.unet.step_log_snrs) == again.config.model.unet.step_rows == 50
    diffusers.save_scheduler(tmp_path / "scheduler", diffax.schedules.cosine(), num_steps=10)
    with pytest.raises(ValueError, match="embedding of 50 rows, and its scheduler 10 steps"):
        SOURCES["diffusers"](tmp_path)


def test_between_two_rows_of_a_time_embedding_it_is_in_proportion():
    table = np.array([[0.0, 1.0], [1.0, 3.0], [4.0, -1.0]], "f")
    found = rows_at(table, np.array([-1.0, 0.0, 0.25, 1.0, 2.0, 9.0], "f"))
    wanted = [table[0], table[0], [0.25, 1.5], table[1], table[2], table[2]]
    np.testing.assert_array_equal(found, np.array(wanted, "f"))


def test_a_step_has_its_own_number_and_between_two_it_is_in_proportion():
    table = (4.0, 1.0, -3.0)
    at = step_at(np.array([np.inf, 4.0, 2.5, 1.0, -1.0, -3.0, -np.inf], "f"), table)
    np.testing.assert_array_equal(at, np.array([0, 0, 0.5, 1, 1.5, 2, 2], "f"))


def test_what_can_not_be_imported_is_refused_and_nothing_is_written(
    pipeline, imported, tmp_path, capsys
):
    def refused(*words):
        assert cli.main(["import", *words]) == 1
        assert not (tmp_path / "run" / "config.json").exists()
        return capsys.readouterr().err

    path, workdir = f"--path={pipeline}", f"--workdir={tmp_path / 'run'}"
    assert "from='flax': allowed are diffusers" in refused(path, workdir, "--from=flax")
    assert "holds no scheduler_config.json" in refused(f"--path={tmp_path}", workdir)
    said = refused(path, workdir, "--data=digits", "--image-size=16")
    assert "examples have shape (16, 16, 1), and the network takes (8, 8, 1)" in said
    assert "--image-size=16: only with --data" in refused(path, workdir, "--image-size=16")
    assert "holds a run already" in refused(path, f"--workdir={imported}")


def test_a_start_that_does_not_fit_is_refused(imported, tmp_path):
    config = cases.fine_tuning(imported)
    run = training.load(imported)
    like = run.state.replace(params=jax.tree.map(lambda a: a[..., :1], run.state.params))
    with pytest.raises(ValueError, match="is not that of config.model: .* has shape"):
        teachers.starting_params(config, run.dataset, like)
    config.training.init_from = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="init_from is .*none': .* holds no run"):
        teachers.starting_params(config, run.dataset, like)
    config.method.teacher = str(imported)
    with pytest.raises(ValueError, match="leave training.init_from empty"):
        teachers.starting_params(config, run.dataset, like)


def test_betas_stand_in_for_the_named_schedule():
    config = diffax.config.default_config()
    config.schedule.betas = (0.1, 0.2, 0.5)
    found = diffax.config.build_schedule(config)
    np.testing.assert_allclose(found.alphas_cumprod, [0.9, 0.72, 0.36], rtol=1e-6)
    config.schedule.betas = (0.1, 1.5)
    with pytest.raises(ValueError, match=r"config.schedule: betas\[1\] is 1.5; betas lie in"):
        diffax.config.validate(config)
