"""Grids that are kept with a run: found, used by name, refused where they don't belong."""

import json
import signal

import jax
import numpy as np
import pytest
from small_runs import compiled_quickly, small_config

import diffax
from diffax import cli, rates, samplers, time_sampling, training
from diffax import config as config_lib
from diffax.ablation import measure
from diffax.samplers import Level, grid_search
from diffax.training import grids


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    with compiled_quickly(folder / "programs"):
        config = small_config(sampling__sampler="dpmpp_2m", sampling__num_steps=3)
        training.train(config, folder / "a run")
        run = training.load(folder / "a run")
        grids.find(run, "dp", [3, 4], num=16, teacher_steps=100, candidates=16)
        yield run


def under(run, **sampling):
    names = {f"sampling.{key}": value for key, value in sampling.items()}
    return run.under(config_lib.changed(run.config, names))


def test_what_is_found_is_kept_with_its_cost(run):
    assert sorted(p.name for p in (run.workdir / "grids").iterdir()) == [
        "dp-dpmpp_2m-3.json", "dp-dpmpp_2m-4.json",
    ]  # fmt: skip
    entry = json.loads((run.workdir / "grids" / "dp-dpmpp_2m-4.json").read_text())
    assert len(entry["log_snrs"]) == len(entry["t"]) == 4
    assert entry["error"] <= min(error for error, _ in entry["fixed"].values())
    assert entry["calls"] > 0 and entry["seconds"] > 0 and entry["shared"]["calls"] > 100
    assert entry["starts"] == 16 and entry["coefficients"] is None


def test_a_grid_is_used_by_its_name(run):
    """The samples are those of the levels that are kept."""
    entry = json.loads((run.workdir / "grids" / "dp-dpmpp_2m-4.json").read_text())
    levels = Level(*(np.asarray(entry[k], np.float32) for k in ("t", "log_snrs")))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), np.arange(5))
    want = run.method.sample(run.state, keys, {}, grid=levels)
    generate = diffax.Generator(run)
    np.testing.assert_allclose(generate(5, seed=3, grid="dp", num_steps=4), want, atol=1e-4)
    assert not np.allclose(generate(5, seed=3, num_steps=4), want, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=5), "there is none of 5 steps of dpmpp_2m in .*--steps=5 .*finds one"),
        (dict(sampler="heun"), "there is none of 3 steps of heun"),
        (dict(sampler="ddpm"), "grid='dp' is found for solvers without noise, not for 'ddpm'"),
        (dict(clip_x0=1.0), "was found with clip_x0=None, and 1.0 is asked for"),
        (dict(sampler="learned"), "the solver 'learned' has a grid of its own"),
        (dict(grid="learned"), "the solver 'learned' has a grid of its own"),
        (dict(grid="ays"), "grid='ays': there is none of 3 steps"),
    ],
)
def test_a_grid_that_is_not_there_or_not_for_this_is_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        diffax.Generator(run)(2, **{"grid": "dp", **options})


def test_a_rate_by_its_name_is_the_grid_of_equal_rate(run):
    """Of the run's own network, kept with it; both ends are visited."""
    three, four = grids.find(run, "entropy", [3, 4], num=16, teacher_steps=100)
    ends = np.asarray(run.state.schedule.log_snr(np.array([1.0, 0.0])))
    for entry in (three, four):
        np.testing.assert_allclose([entry["log_snrs"][0], entry["log_snrs"][-1]], ends, atol=1e-3)
    levels = Level(*(np.asarray(three[k], np.float32) for k in ("t", "log_snrs")))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), np.arange(5))
    want = run.method.sample(run.state, keys, {}, grid=levels)
    np.testing.assert_allclose(diffax.Generator(run)(5, seed=3, grid="entropy"), want, atol=1e-4)


def test_one_file_is_the_schedule_the_density_and_the_grid_of_a_run(tmp_path):
    """The log-SNRs that are visited are of equal rate, and t is the share of the rate above."""
    rate = rates.spectral([2.0, 0.1])
    path = str(tmp_path / "rate.json")
    (tmp_path / "rate.json").write_text(rate.to_json())
    config = small_config(
        schedule__name="from_rate", schedule__path=path, objective__time_sampling="rate",
        objective__path=path, sampling__grid=path, sampling__num_steps=5,
        sampling__sampler="dpmpp_2m",
    )  # fmt: skip
    with compiled_quickly(tmp_path / "programs"):
        training.train(config, tmp_path / "run")
        found = training.load(tmp_path / "run")
        schedule = found.state.schedule
        levels = samplers.visited_levels(schedule, 5, path)
        shares = rate.cumulative(levels.log_snr)
        np.testing.assert_allclose(shares, np.linspace(shares[0], shares[-1], 5), atol=1e-3)
        np.testing.assert_allclose(levels.t, np.linspace(1, 0, 5), atol=1e-3)
        want = diffax.Generator(found)(6, grid="uniform")
        x = diffax.Generator(found)(6)
        assert np.isfinite(x).all() and not np.allclose(x, want, atol=1e-3)
    times = time_sampling.get("rate", path=path)
    u, _ = times.sample(times.along(times.init(), schedule), jax.random.key(0), 1000)
    np.testing.assert_allclose(np.sort(u), (np.arange(1000) + 0.5) / 1000, atol=0.01)


def test_a_grid_of_another_network_is_refused(run):
    other = run._replace(
        state=run.state.replace(ema_params=jax.tree.map(lambda a: a + 1, run.state.ema_params))
    )
    with pytest.raises(ValueError, match="was found for another checkpoint or schedule"):
        diffax.Generator(other)(2, grid="dp")
    with pytest.raises(ValueError, match="it is kept in a workdir, and this run has none"):
        diffax.Generator(run._replace(workdir=None))(2, grid="dp")


def test_edits_take_no_grid_that_was_found(run):
    x = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="grid='dp' is found for samples from noise: sdedit takes"):
        diffax.Generator(run).sdedit(x, 0.5, grid="dp")


def test_the_learned_solver_has_its_own_grid_and_coefficients(run):
    learned = under(run, sampler="learned")
    (entry,) = grids.find(learned, "learned", [3], num=16)
    assert np.shape(entry["coefficients"]) == (3, 4)
    levels = Level(*(np.asarray(entry[k], np.float32) for k in ("t", "log_snrs")))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(5))
    want = run.method.sample(
        run.state, keys, {}, sampler="learned", grid=levels,
        coefficients=tuple(np.ravel(entry["coefficients"]).tolist()),
    )  # fmt: skip
    np.testing.assert_allclose(diffax.Generator(learned)(5), want, atol=1e-4)


def test_an_ablation_finds_what_is_missing_for_each_network(run, tmp_path, caplog):
    """A grid of the run's own, once; its cost is part of the result, and said."""
    caplog.set_level("INFO", "diffax")
    asked = under(run, grid="dp", num_steps=2)
    path = run.workdir / "grids" / "dp-dpmpp_2m-2.json"
    assert not path.exists()
    found = measure.sample_and_score(asked, tmp_path)
    assert found["grid"]["calls"] > 0 and len(found["grid"]["log_snrs"]) == 2
    assert "dp-dpmpp_2m-2.json: found in" in caplog.text
    written = path.stat().st_mtime_ns
    again = measure.sample_and_score(asked, tmp_path)
    assert again["grid"] == found["grid"] and path.stat().st_mtime_ns == written
    assert again["metrics"] == found["metrics"]
    assert measure.sample_and_score(under(run, grid="logsnr"), tmp_path)["grid"] is None


def test_each_combination_of_sampling_options_has_a_grid_of_its_own(run):
    """So arms that share a training can differ in any option; the first has the plain name."""
    arms = [under(run, grid="entropy", num_steps=5, clip_x0=clip) for clip in (None, 0.5)]
    found = [grids.ensure(arm) for arm in arms]
    assert [entry["sampling"]["clip_x0"] for entry in found] == [None, 0.5]
    assert [grids.ensure(arm) for arm in arms] == found
    names = sorted(path.name for path in (run.workdir / "grids").glob("entropy-dpmpp_2m-5*"))
    assert len(names) == 2 and "entropy-dpmpp_2m-5.json" in names
    assert all(diffax.Generator(arm)(2).shape == (2, 2) for arm in arms)


def test_each_grid_is_written_as_soon_as_it_is_found(run, monkeypatch):
    of_dp = grid_search.METHODS["dp"]

    def interrupted(first):
        solve, calls = of_dp(first)

        def until_seven(task):
            if task.num == 7:
                raise KeyboardInterrupt
            return solve(task)

        return until_seven, calls

    monkeypatch.setitem(grid_search.METHODS, "dp", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grids.find(run, "dp", [6, 7], num=16, teacher_steps=100, candidates=16)
    assert diffax.Generator(run)(2, grid="dp", num_steps=6).shape == (2, 2)
    assert not (run.workdir / "grids" / "dp-dpmpp_2m-7.json").exists()


def test_a_method_that_has_no_grid_is_named(run):
    names = {"method.name": "mean_flow", "objective.prediction": "flow"}
    names["sampling.sampler"] = "ddim"
    config = config_lib.changed(run.config, names)
    with pytest.raises(ValueError, match="for diffusion models alone, and method.name is 'mean_fl"):
        grids.find(run.under(config), "dp", [3])


def test_the_command_finds_draws_and_says_what_is_next(run, capsys):
    command = ["grid", f"--workdir={run.workdir}", "--num=8", "--steps=2,3", "--sampler=ddim"]
    command.append("--clip-x0=1.0")
    assert cli.main([*command, "--method=ays"]) == 0
    said = capsys.readouterr().out
    assert "network calls for each of 8 starts" in said and "--sampler=ddim --grid=ays" in said
    assert said.endswith(" --steps=2 --clip-x0=1.0\n")
    assert f"next:    diffax sample --workdir='{run.workdir}' " in said
    assert (run.workdir / "grids.png").exists()
    assert (run.workdir / "grids" / "ays-ddim-2.json").exists()
    assert cli.main([*command, "--method=best"]) == 1
    assert "--method=best: one of dp, gradient, ays, entropy" in capsys.readouterr().err
    assert cli.main([*command, "--grid=uniform"]) == 1
    assert "that is what is found, by --method" in capsys.readouterr().err
    assert cli.main(["sample", f"--workdir={run.workdir}", "--num=2", "--sampler=ddim",
                     "--grid=ays", "--steps=2", "--clip-x0=1.0"]) == 0  # fmt: skip


def test_a_search_is_stopped_in_the_midst_of_a_program(run, monkeypatch):
    """Whose steps are no Python: what watches for signals then is a thread."""
    watched = []

    def find(*given):
        watched.append(signal.set_wakeup_fd(-1))
        signal.set_wakeup_fd(watched[0])
        raise ValueError("enough")

    monkeypatch.setattr(grids, "find", find)
    assert cli.main(["grid", f"--workdir={run.workdir}"]) == 1
    assert watched[0] != -1
