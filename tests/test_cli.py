"""Every command on a tiny config, through the same `main` as the console script's."""

import contextlib
import functools
import json
import platform
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import write_tiny_config

import diffax
from diffax import cli, evaluation, generator, plots, samplers, training
from diffax.config import defaults

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return write_tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", f"--config={config_file}", f"--workdir={workdir}"]) == 0
    return workdir


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_train_leaves_config_metrics_and_checkpoint(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4]
    assert json.loads((trained / "config.json").read_text())["training"]["batch_size"] == 16
    assert any((trained / "checkpoints").iterdir())


def test_train_ends_with_where_all_lies_and_the_next_command(trained, config_file, capsys):
    assert cli.main(["train", f"--config={config_file}", f"--workdir={trained}"]) == 0
    out, errors = capsys.readouterr()
    table = dict(
        re.fullmatch(r"([a-z ]+): +([0-9.e+-]{1,10})", line).groups() for line in out.splitlines()
    )
    assert {"loss", "loss variance", "gradient norm", "learning rate"} <= {*table}
    assert [line.split() for line in errors.splitlines()[-3:]] == [
        ["checkpoint:", str(trained / "checkpoints" / "4")],
        ["metrics:", str(trained / "metrics.jsonl")],
        ["next:", "diffax", "sample", f"--workdir={trained}"],
    ]
    words = ["train", f"--config={config_file}", f"--workdir={trained}", "--json"]
    assert cli.main(words) == 0
    assert f"{json.loads(capsys.readouterr().out)['loss']:.4g}" == table["loss"]


def test_overrides_reach_the_config(config_file):
    config = cli.read_config(config_file, ["--config.schedule.name=learned", "--config.seed=7"])
    assert (config.schedule.name, config.seed) == ("learned", 7)


@pytest.mark.parametrize(
    "override, said",
    [
        ("--config.schedule.name=cosin", "cosine"),
        ("--config.training.batch_sze=3", "batch_sze"),
        ("--config.training.batch_size=none", "batch_size"),
        ("--config.objective.prediction=epsilon", "x0"),
    ],
)
def test_a_wrong_override_is_one_sentence_and_leaves_nothing(
    override, said, config_file, tmp_path, capsys
):
    workdir = tmp_path / "run"
    assert cli.main(["train", f"--config={config_file}", f"--workdir={workdir}", override]) == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "Traceback" not in error
    assert not workdir.exists()


def test_a_changed_config_is_refused_with_the_difference(trained, config_file, capsys):
    command = ["train", f"--config={config_file}", f"--workdir={trained}"]
    assert cli.main([*command, "--config.optimizer.learning_rate=0.5"]) == 1
    *_, said = capsys.readouterr().err.splitlines()  # after what is read, and remarks
    assert "holds a run with another config: optimizer.learning_rate was 0.0003 and is 0.5" in said


DIVERGES = [
    "--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_steps=0",
    "--config.training.max_skipped=0",
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["train"], ["diffax train: ", "step 1", "learning_rate"]),
        (
            ["ablate", "--axis=sampling.num_steps=2,3", "--seeds=1", "--workers=1"],
            ["diffax ablate: 2 of 2 runs failed", "num_steps=2 seed 0, ", "learning_rate"],
        ),
    ],
)
def test_a_run_that_diverges_is_one_sentence(flags, said, config_file, tmp_path, capsys):
    command, *rest = flags
    arguments = [command, f"--config={config_file}", f"--workdir={tmp_path}", *rest, *DIVERGES]
    assert cli.main(arguments) == 1
    errors = capsys.readouterr().err
    last = errors.strip().splitlines()[-1]
    assert all(words in last for words in said) and "Traceback" not in errors


def test_what_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["schedules", "--names=linear", f"--out={tmp_path / 'file'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("diffax schedules: ") and str(tmp_path / "file") in said
    assert said.count("\n") == 1


def test_unknown_flag_and_missing_config_are_refused(config_file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", f"--workdir={tmp_path}", "--stepz=3"])
    assert "--stepz" in capsys.readouterr().err
    assert cli.main(["train", "--config=no/such.py", f"--workdir={tmp_path}"]) == 1
    assert "no/such.py" in capsys.readouterr().err


FILES = ["--config=none.py", "--workdir=none"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "'trian' (did you mean train?): allowed are train, sample, "),
        (["train", "--confg=x.py"], "no flag --confg (did you mean --config?)"),
        (["train", *FILES, "--config.model.chanels=8"], "none.py"),
        (["sample", "--workdir=none", "--stepz", "3"], "no flag --stepz (did you mean --steps?)"),
        (["sample", "--workdir=none", "--edit=sdeit"], "'sdeit' (did you mean sdedit?): allowed"),
        (["sample", "--workdir=none", "--sampler=dpmp_2m"], "(did you mean dpmpp_2m?)"),
        (["sample", "--workdir=none", "--config.seed=1"], "no flag --config.seed"),
        (["ablate", *FILES, "--axis=seed=1", "--seeds-together=alwys"], "(did you mean always?)"),
        (["ablate", *FILES, "--axis=seed=1", "--seeds=0"], "argument --seeds: '0': must be at l"),
        (["ablate", *FILES, "--axis=seed=1", "--metrics=kid,kid"], "must read A,B,..., each once"),
        (["tune", *FILES, "--search=seed=1", "--budget=nan"], "argument --budget: 'nan': takes"),
        (["tune", *FILES, "--search=seed=1", "--trials=-1"], "argument --trials: '-1': must be"),
        (["metrics", "convert-incepton", "x"], "(did you mean convert-inception?)"),
        (["schedules", "--names=cosin"], "(did you mean cosine?)"),
        (["evaluate", "--samples=x", "--data=digits", "--image-size=2.5"], "takes a whole number"),
        (["config", "schedule.nme"], "no key 'schedule.nme' (did you mean schedule.name?)"),
        (["config", "shedule"], "no key 'shedule' (did you mean schedule?)"),
    ],
)
def test_what_is_misspelt_is_answered_with_what_is_near(words, said, capsys):
    with contextlib.suppress(SystemExit):
        assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_override_takes_its_value_as_the_next_word_too(config_file, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train", lambda config, _: seen.append(config) or (None, {}))
    words = ["--config.seed", "3", "--config.training.tensorboard", f"--workdir={tmp_path}"]
    assert cli.main(["train", f"--config={config_file}", *words, "--config.seed=5"]) == 0
    assert (seen[0].seed, seen[0].training.tensorboard) == (5, True)


def test_config_lists_every_key_with_its_meaning_default_and_type(capsys):
    assert cli.main(["config"]) == 0
    every = capsys.readouterr().out
    for name, key in defaults.keys().items():
        assert f"{name} = {key.default!r}  ({key.kind})\n    " in every
    assert cli.main(["config", "ema"]) == 0
    assert capsys.readouterr().out == (
        "ema.decay = 0.999  (float)\n"
        "    of the parameters' moving average; in step k: min(decay, (1 + k) / (10 + k))\n"
        "    must be at least 0 and below 1, in float32\n"
    )


def test_the_version_is_told_and_the_package_can_be_run():
    run = [sys.executable, "-m", "diffax", "--version"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == (
        f"diffax {diffax.__version__} (jax {jax.__version__}, Python {platform.python_version()})\n"
    )


def test_sample_writes_a_png_and_an_npz_and_depends_on_the_seed(trained, tmp_path):
    drawn = {}
    for name, flags in {
        "a": ["--seed=0"],
        "b": ["--seed=1"],
        "c": ["--seed=0", "--steps=5", "--sampler=ddpm"],
        "d": ["--seed=0", "--low-order-finish=false"],
    }.items():
        out = tmp_path / name
        arguments = ["sample", f"--workdir={trained}", "--num=9", f"--out={out}", *flags]
        assert cli.main(arguments) == 0
        drawn[name] = np.load(f"{out}.npz")["samples"]
        assert drawn[name].shape == (9, 8, 8, 1)
        assert min(Image.open(f"{out}.png").size) >= 24
    assert not np.array_equal(drawn["a"], drawn["b"])
    assert not np.array_equal(drawn["a"], drawn["c"])
    assert not np.array_equal(drawn["a"], drawn["d"])


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("a.v1", ["a.v1.npz", "a.v1.png"]),
        ("a.v2.npz", ["a.v2.npz", "a.v2.png"]),
        ("b.png", ["b.npz", "b.png"]),
    ],
)
def test_what_follows_a_dot_is_part_of_a_name(out, names, trained, tmp_path, monkeypatch):
    """Two names must not become one file."""
    monkeypatch.setattr(generator.Generator, "_draw", lambda *_: np.zeros((1, 8, 8, 1)))
    assert cli.main(["sample", f"--workdir={trained}", "--num=1", f"--out={tmp_path / out}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_samples_are_kept_when_their_picture_fails(trained, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no font")

    monkeypatch.setattr(plots, "picture", fail)
    monkeypatch.setattr(generator.Generator, "_draw", lambda *_: np.zeros((2, 8, 8, 1)))
    out = tmp_path / "x"
    assert cli.main(["sample", f"--workdir={trained}", "--num=2", f"--out={out}"]) == 1
    said = capsys.readouterr().err
    assert f"{out}.npz is written, and no picture of it: no font" in said
    assert np.load(f"{out}.npz")["samples"].shape == (2, 8, 8, 1)


def test_samples_that_are_not_finite_are_written_and_said(trained, tmp_path, monkeypatch, capsys):
    """Of a network that overflows, say; the exit status tells it too."""
    x = np.zeros((3, 8, 8, 1))
    x[1, 2] = np.nan
    monkeypatch.setattr(generator.Generator, "_draw", lambda *_: x)
    command = ["sample", f"--workdir={trained}", "--num=3", f"--out={tmp_path / 'x'}"]
    for steps, said in (
        ("3", "1 of 3 in 'samples'"),
        ("2,3", "1 of 3 in 'samples_2', 1 of 3 in 'samples_3'"),
    ):
        assert cli.main([*command, f"--steps={steps}"]) == 1
        errors = capsys.readouterr().err
        assert f"x.npz: {said}\n" in errors and "Warning" not in errors
        assert (tmp_path / "x.npz").exists() and (tmp_path / "x.png").exists()


def test_sample_draws_a_comparison_of_step_counts(trained, tmp_path, capsys):
    arguments = ["sample", f"--workdir={trained}", "--num=4", "--sampler=dpmpp_2m"]
    assert cli.main([*arguments, "--steps=2,6", f"--out={tmp_path}/both"]) == 0
    assert cli.main([*arguments, "--steps=6", f"--out={tmp_path}/one"]) == 0
    both, one = (np.load(tmp_path / f"{name}.npz") for name in ("both", "one"))
    assert sorted(both) == ["samples_2", "samples_6"]
    np.testing.assert_array_equal(both["samples_6"], one["samples"])
    assert not np.array_equal(both["samples_2"], both["samples_6"])
    assert Image.open(tmp_path / "both.png").size[0] > 500
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--steps=5,many"])
    assert "N,N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "flags", "name", "num"),
    [
        ("sdedit", ["--strength=0.3", "--steps=4"], "edited", 16),
        ("inpaint", ["--mask=left", "--jump-length=2", "--num-resamples=2"], "inpainted", 16),
        ("invert", ["--steps=5"], "reconstruction", 16),
        ("interpolate", ["--frames=3", "--steps=5"], "interpolated", 3),
    ],
)
def test_sample_edits_given_data(edit, flags, name, num, trained, tmp_path, capsys):
    arguments = ["sample", f"--workdir={trained}", f"--edit={edit}", f"--out={tmp_path}/x"]
    assert cli.main([*arguments, *flags]) == 0
    arrays = np.load(tmp_path / "x.npz")
    assert arrays[name].shape == (num, 8, 8, 1)
    assert arrays["given"].shape == (2 if edit == "interpolate" else 16, 8, 8, 1)
    assert Image.open(tmp_path / "x.png").size[0] > 400
    if edit == "invert":
        said = f"mean {arrays['error'].mean():.3g},"
        assert said in capsys.readouterr().out


def test_outputs_are_checked_before_the_work(trained, tmp_path, monkeypatch, capsys):
    """And a place that can't be written loses nothing; the file that is there stays."""
    for part in ("npz", "evaluation.json"):
        (tmp_path / f"taken.{part}").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "kept.json").write_text("no results")
    long = "n" * 250
    monkeypatch.setattr(generator.Generator, "_draw", lambda *_: pytest.fail("drawn"))
    monkeypatch.setattr(evaluation, "measurements", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(plots, "draw_schedules", lambda *_: pytest.fail("drawn"))
    sample, evaluate = (f"{command} --workdir={trained}" for command in ("sample", "evaluate"))
    for command, out, said in (
        (sample, "taken", "taken.npz can't be written: it is there already, and is no plain file"),
        (sample, "file/x", "x.npz can't be written (File exists)"),
        (sample, f"{long}", "can't be written (File name too long)"),
        (sample, "folder/", "folder/: name a file"),
        ("schedules", "file", "can't be written (File exists)"),
        ("report --workdir=none", "file", "report.html can't be written (File exists)"),
        ("metrics convert-inception none.pth", "file/x", "x can't be written (File exists)"),
        (evaluate, "taken.evaluation.json", "it is there already, and is no plain file"),
        (evaluate, "kept.json", "kept.json is there and holds no results of diffax evaluate"),
    ):
        assert cli.main([*command.split(), f"--out={tmp_path}/{out}"]) == 1
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file", "kept.json", "taken.evaluation.json", "taken.npz"
    ]  # fmt: skip


def test_what_was_drawn_is_edited(trained, tmp_path):
    arguments = ["sample", f"--workdir={trained}", "--steps=4", "--clip-x0=1"]
    assert cli.main([*arguments, "--num=3", f"--out={tmp_path}/drawn"]) == 0
    edit = ["--edit=sdedit", f"--input={tmp_path}/drawn.npz", f"--out={tmp_path}/edited"]
    assert cli.main([*arguments, *edit]) == 0
    given = np.load(tmp_path / "edited.npz")["given"]
    np.testing.assert_array_equal(given, np.load(tmp_path / "drawn.npz")["samples"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--strength=0.3"], "--strength=0.3: only with --edit=sdedit"),
        (["--input=a.png"], "--input=['a.png']: only with --edit=sdedit or inpaint"),
        (["--edit=invert", "--mask=left"], "--mask=left: only with --edit=inpaint"),
        (["--edit=invert", "--steps=2,3"], "--steps=2,3: one count"),
        (["--edit=inpaint", "--input=a.png"], "--input=a.png: no such file"),
        (["--edit=interpolate", "--num=3"], "between two examples, and 3 are given"),
        (["--edit=invert", "--seed=3"], "--seed=3: --edit=invert draws no noise"),
        (["--edit=inpaint", "--low-order-finish=false"], "inpaint takes no low_order_finish"),
        (["--edit=inpaint", "--num=100000"], "--num=100000: the evaluation split has"),
        (["--label=1"], "label=1: this network is not conditioned on classes"),
    ],
)
def test_edits_on_the_command_line_refuse(flags, said, trained, tmp_path, capsys):
    assert cli.main(["sample", f"--workdir={trained}", f"--out={tmp_path}/x", *flags]) == 1
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_sample_under_another_schedule(trained, tmp_path, capsys):
    drawn = {}
    for name in ("cosine", "linear_logsnr"):
        arguments = ["sample", f"--workdir={trained}", "--num=4", "--sampler=ddpm"]
        arguments += [f"--out={tmp_path}/{name}", "--steps=5"]
        assert cli.main([*arguments, f"--sampling-schedule={name}"]) == 0
        drawn[name] = np.load(tmp_path / f"{name}.npz")["samples"]
    assert cli.main([*arguments, f"--out={tmp_path}/own"]) == 0
    own = np.load(tmp_path / "own.npz")["samples"]  # cosine between the same ends
    np.testing.assert_allclose(drawn["cosine"], own, atol=1e-4)
    assert not np.allclose(drawn["linear_logsnr"], own, atol=1e-2)
    assert cli.main([*arguments, "--sampling-schedule=learned"]) == 1
    assert "untrained" in capsys.readouterr().err


def test_help_names_every_sampler(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    text = capsys.readouterr().out.split()
    assert set(samplers.SAMPLERS) <= {word.strip(",") for word in text}


def test_sample_refuses_what_the_sampler_does_not_take(trained, capsys):
    assert cli.main(["sample", f"--workdir={trained}", "--sampler=ddpm", "--eta=0.5"]) == 1
    assert "eta" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sample", f"--workdir={trained}", "--steps=0"])
    assert "argument --steps: '0': must be at least" in capsys.readouterr().err


def test_sample_of_a_directory_without_a_run_says_so(tmp_path, capsys):
    assert cli.main(["sample", f"--workdir={tmp_path}"]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_evaluate_says_what_each_number_depends_on(trained, capsys):
    assert cli.main(["evaluate", f"--workdir={trained}", "--metrics=bpd", "--json"]) == 0
    result = json.loads((trained / "evaluation.json").read_text())["bpd"]
    assert result == json.loads(capsys.readouterr().out)["bpd"]
    parts = result["prior"] + result["diffusion"] + result["reconstruction"]
    assert result["bpd"] == pytest.approx(parts)
    assert (result["num_examples"], result["repeats"], result["step"]) == (64, 2, 4)
    assert cli.main(["evaluate", f"--workdir={trained}", "--metrics=fd"]) == 1
    assert "frechet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", f"--workdir={trained}", "--num-samples=0"])
    assert "argument --num-samples: '0': must be at least 1" in capsys.readouterr().err


def test_evaluate_writes_what_is_not_finite_as_null(trained, monkeypatch, tmp_path):
    """NaN, which json writes unless told otherwise, is no JSON."""
    found = {"bpd": float("nan"), "prior": 0.5}
    monkeypatch.setattr(evaluation, "measurements", lambda *_: {"bpd": lambda: found})
    out = tmp_path / "found.json"
    assert cli.main(["evaluate", f"--workdir={trained}", f"--out={out}"]) == 0
    read = json.loads(out.read_text(), parse_constant=pytest.fail)
    hashed = read["bpd"].pop("weights_hash")
    assert len(hashed) >= 16 and read == {"bpd": {"bpd": None, "prior": 0.5}}


def test_evaluate_keeps_what_is_measured_when_something_fails(
    trained, monkeypatch, tmp_path, capsys
):
    """A metric, or the writing of the file: the rest is there, the failure named, status 1."""
    out = tmp_path / "found.json"

    def fail():
        assert "kid" in json.loads(out.read_text())  # written as it came
        raise RuntimeError("out of memory")

    def too_late():
        out.unlink()
        out.mkdir()
        return {"swd": 0.25}

    by_name = {"kid": lambda: {"kid": 0.5}, "prdc": fail, "frechet": lambda: {"frechet": 1.5}}
    monkeypatch.setattr(evaluation, "measurements", lambda *_: by_name)
    command = ["evaluate", f"--workdir={trained}", f"--out={out}"]
    assert cli.main(command) == 1
    printed = capsys.readouterr()
    *said, last = printed.err.splitlines()
    assert last == "diffax evaluate: prdc failed (out of memory)"
    # Without the time, and without what only a slow machine says.
    said = [line.split(" ", 1)[1] for line in said if "so far" not in line]
    assert said[0].startswith(f"the run in {trained}: checkpoint of step ")
    assert said[-3:] == ["measuring kid", "measuring prdc", "measuring frechet"]
    assert [line.split()[:2] for line in printed.out.splitlines()[1:3]] == [
        ["kid", "0.5"], ["frechet", "1.5"]
    ]  # fmt: skip
    assert list(json.loads(out.read_text())) == ["kid", "frechet"]
    by_name = {"swd": too_late}
    assert cli.main(command) == 1
    printed = capsys.readouterr()
    assert "found.json can't be written" in printed.err and "stand above" in printed.err
    assert json.loads(printed.out)["swd"]["swd"] == 0.25


def _given(value, *_):
    return value


def test_evaluate_adds_to_what_was_measured(trained, monkeypatch, tmp_path, capsys):
    """By metric; and says in a table what is measured now."""
    out = tmp_path / "found.json"
    for name, value in (("kid", 0.5), ("swd", 0.25)):
        entry = {name: value, "standard_error": 0.1, "num_samples": 64, "seed": 0}
        by_name = {name: functools.partial(dict, entry)}
        monkeypatch.setattr(evaluation, "measurements", functools.partial(_given, by_name))
        assert cli.main(["evaluate", f"--workdir={trained}", f"--out={out}"]) == 0
    assert list(json.loads(out.read_text())) == ["kid", "swd"]
    table = capsys.readouterr().out.splitlines()
    assert table[-2].split() == "swd 0.25 ± 0.1 64 samples Sliced Wasserstein distance".split()


def test_evaluate_measures_what_the_config_of_the_run_asks_for(trained, monkeypatch):
    """Unless the flag asks for something else."""
    asked = []
    monkeypatch.setattr(evaluation, "measurements", lambda *args: asked.append(args[2]) or {})
    path = trained / "config.json"
    written = path.read_text()
    changed = json.loads(written)
    for names, expected in (((), ["bpd", "frechet"]), (("kid", "prdc"), ["bpd", "kid", "prdc"])):
        changed["evaluation"]["metrics"] = names
        path.write_text(json.dumps(changed))
        out = f"--out={trained / 'other.json'}"
        assert cli.main(["evaluate", f"--workdir={trained}", out]) == 0
        assert cli.main(["evaluate", f"--workdir={trained}", out, "--metrics=swd"]) == 0
        assert asked[-2:] == [expected, ["swd"]]
    path.write_text(written)


def test_schedules_draws_curves_and_noised_images(tmp_path):
    assert cli.main(["schedules", "--names=linear,cosine", f"--out={tmp_path}"]) == 0
    for name in ("curves.png", "noised.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert min(pixels.shape) > 200 and pixels.std() > 5
    shutil.rmtree(tmp_path)


def test_schedules_refuses_an_unknown_name(tmp_path, capsys):
    assert cli.main(["schedules", "--names=cosin", f"--out={tmp_path}"]) == 1
    assert "cosine" in capsys.readouterr().err
