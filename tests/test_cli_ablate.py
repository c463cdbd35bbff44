"""`diffax ablate`: the grid of the flags, what is refused before any work, one run of it."""

import json

import pytest
from small_runs import small_config, write_tiny_config

from diffax import cli, data, metrics, scoring
from diffax.ablation import Metric, measure, runner
from diffax.cli import ablate


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return write_tiny_config(tmp_path_factory.mktemp("config"))


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
    assert "\nnum_steps=3   " in text and "95% interval" in text  # a row of the table
    (one, *_), means = report["runs"], report["summary"]["sampling.num_steps=2"]
    assert {"vlb_variance", "bpd", "frechet"} < set(means) and one["arm"] == "sampling.num_steps=2"
    for number in scoring.numbers("prdc"):
        assert means[number.key]["mean"] == one["evaluation"]["prdc"][number.entry]
    assert (workdir / "report.html").exists()
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
        ("fd_lite", "metrics='fd_lite': allowed are frechet, "),
        ("frechet,bpd", "metrics='bpd': allowed are frechet, "),
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


def test_the_metrics_are_those_given_and_then_those_measured():
    digits, mixture = (data.load({"name": name}) for name in ("digits", "mixture2d"))

    def keys(given, dataset, *configs):
        return [m.key for m in measure.measured_metrics(given, configs, dataset)]

    config, rest = small_config(), ["prior", "diffusion", "reconstruction", "bpd_own"]
    assert keys(runner.METRICS, digits, config) == ["vlb_variance", "bpd", "frechet", *rest]
    assert keys(runner.METRICS, mixture, config) == ["vlb_variance", "bpd", "swd", *rest]
    of_gradient = small_config(evaluation__gradient_batches=4)
    assert "grad_variance" in keys(runner.METRICS, mixture, of_gradient)
    discrete = small_config(schedule__num_steps=10)
    assert "bpd_own" not in keys(runner.METRICS, mixture, discrete)
    scores = small_config(evaluation__metrics=("kid", "prdc_lite0", "kid"))
    shares = [f"{share}_lite0" for share in metrics.PRDC._fields]
    assert keys((), digits, scores, config) == [
        *("vlb_variance", "bpd", "kid", *shares, "frechet", *rest),
    ]
    first, own = measure.score_metrics(["kid"]), Metric("bpd", "Bound")
    assert keys([*first, own], digits, scores)[:3] == ["kid", "bpd", "vlb_variance"]
    assert own in measure.measured_metrics([own], [config], digits)
    with pytest.raises(ValueError, match="metric 'frechet' is not measured: the runs have vlb_v"):
        keys(measure.score_metrics(["frechet"]), digits, scores)


def axis(text):
    return ablate._axis(text, small_config())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("schedule.name=linear,cosine", ["linear", "cosine"]),
        ("schedule.num_steps=250,1000", [250, 1000]),
        ("schedule.log_snr_max=6,1e1,None", [6.0, 10.0, None]),
        ("sampling.low_order_finish=true,False", [True, False]),
        ("sampling.guidance_interval=(-5,5),None,(-2.5,2)", [(-5, 5), None, (-2.5, 2)]),
        ("model.channel_mults=(1,2),(1, 2, 2),[1]", [(1, 2), (1, 2, 2), (1,)]),
        ("model.attention_resolutions=(),(4,)", [(), (4,)]),
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
        ("training.num_steps=1.5", "takes values of type int"),
        ("sampling.low_order_finish=maybe", "takes values of type bool"),
        ("model.channel_mults=1,2", "takes values of type tuple"),
        ("model.channel_mults=(1,2", "takes values of type tuple"),
        ("seed=0,1", "see --seeds"),
    ],
)
def test_what_is_no_axis_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        axis(text)


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
            {"schedule.name": ["learned"], "model.conditioning": ["step"]},
            "no arm of the grid",
        ),
        ({"schedule.nme": ["linear"]}, "schedule.nme"),
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


def test_the_command_of_a_part_is_that_of_the_whole(monkeypatch):
    words = ["ablate", "--shard=1/4", "--axis=model.channel_mults=(1,2)", "--shard", "2/4"]
    monkeypatch.setattr("sys.argv", ["diffax", *words, "--seeds=2"])
    assert ablate._command() == "diffax ablate '--axis=model.channel_mults=(1,2)' --seeds=2"
