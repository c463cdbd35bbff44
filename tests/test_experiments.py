"""The main experiment's arms can be run; sampler_quality counts, reads and reuses rightly."""

import argparse
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import small_config

import diffax
from diffax import config as config_lib
from diffax import methods, samplers
from diffax.ablation import runner

ROOT = Path(__file__).parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPERIMENT = load(ROOT / "experiments" / "learned_vs_cosine.py")
QUALITY = load(ROOT / "experiments" / "sampler_quality.py")
EMOJI = load(ROOT / "experiments" / "text_to_emoji.py")
CELLS = load(ROOT / "experiments" / "control_cells.py")
DOMAINS = load(ROOT / "experiments" / "domains.py")
RESULTS = ROOT / "experiments" / "results"
pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.mark.parametrize("endpoints", EXPERIMENT.ENDPOINTS)
def test_every_arm_can_be_run(endpoints):
    config = EXPERIMENT.load_config(ROOT / "configs" / "ablation_digits.py")
    arms = EXPERIMENT.make_arms(endpoints)
    assert [arm.name for arm in arms] == list(EXPERIMENT.ARMS)
    for arm in arms:
        config_lib.validate(runner.arm_config(config, arm, seed=0))
    spec = EXPERIMENT.make_spec("command", endpoints, config)
    assert "600 steps" in spec.method and "simple loss" in spec.question
    assert [m.key for m in spec.metrics] == ["vlb_variance"]  # the headline


def test_the_page_on_emoji_has_the_table_of_its_numbers():
    folder = ROOT / "experiments" / "results"
    raw = json.loads((folder / "text_to_emoji.json").read_text())
    assert EMOJI.page(raw) in (folder / "text_to_emoji.md").read_text()
    assert set(EMOJI.HELD_OUT) < set(EMOJI.COMBINATIONS)
    seen = set(EMOJI.COMBINATIONS) - set(EMOJI.HELD_OUT)
    words = [set(" ".join(part).split()) for part in (EMOJI.HELD_OUT, seen)]
    assert words[0] == words[1]  # each colour and shape is seen


def test_the_page_on_cells_holds_what_the_committed_numbers_give():
    raw = json.loads((RESULTS / "control_cells.json").read_text("utf-8"))
    page = (RESULTS / "control_cells.md").read_text("utf-8")
    assert all(table in page for table in CELLS.page(raw).split("\n\n"))
    claims = CELLS.raw_of_claims(raw["found"] | {"cpu_seconds": 60.0}, argparse.Namespace(**raw))
    for name, own in claims.items():
        kept = json.loads((RESULTS / "claims" / f"{name}.json").read_text("utf-8"))
        for arm, columns in own["arms"].items():
            for key, values in columns.items():
                np.testing.assert_allclose(values, kept["arms"][arm][key], atol=1e-4)


def test_the_page_on_domains_holds_what_the_committed_numbers_give():
    raw = json.loads((RESULTS / "domains.json").read_text("utf-8"))
    page = (RESULTS / "domains.md").read_text("utf-8")
    assert all(table in page for table in DOMAINS.tables(raw).split("\n\n"))
    kept = json.loads((RESULTS / "claims" / f"{DOMAINS.CLAIM}.json").read_text("utf-8"))
    assert kept["arms"] == DOMAINS.raw_of_claim(raw)["arms"]
    for found in raw["domains"].values():
        assert found["winner"] == min(found["search"], key=found["search"].__getitem__)


@pytest.mark.parametrize("setting", DOMAINS.SETTINGS)
def test_every_setting_of_a_domain_is_valid(setting, tmp_path):
    config = DOMAINS.config_of("cells", tmp_path, tmp_path, 10)
    config_lib.validate(config_lib.changed(config, DOMAINS.SETTINGS[setting]))


def test_every_sampler_has_a_curve():
    assert {options["sampling.sampler"] for options in QUALITY.CURVES.values()} == {
        *samplers.SAMPLERS
    }


@pytest.mark.parametrize("curve", QUALITY.CURVES)
def test_network_calls_are_those_that_a_compiled_program_makes(curve):
    """As many as fit into nine: with one step more it would be more than nine."""
    config = small_config(schedule__name="linear_logsnr")
    cost = QUALITY.cost_of(config, curve)
    arm, claimed = QUALITY.make_points(config, {curve: cost}, [9])[curve, 9]
    options = config_lib.sampling_options(runner.arm_config(config, arm, seed=0))
    calls = []

    def counted(x, log_snr):
        jax.debug.callback(lambda _: calls.append(1), log_snr)
        return 0.5 * x

    def made(num_steps):
        calls.clear()
        given = options | {"num_steps": num_steps}
        predict, schedule = diffax.by_log_snr(counted), config_lib.build_schedule(config)
        run = jax.jit(lambda key: diffax.sample(key, predict, schedule, (1, 2), **given))
        run(jax.random.key(0)).block_until_ready()
        jax.effects_barrier()
        return len(calls)

    steps = options["num_steps"]
    assert made(steps) == claimed <= 9 < made(steps + 1)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([0.50, 0.52, 0.48], "0.50 times the distance of ddim in 50 calls"),
        ([0.50, 0.52, 0.48], ": better."),
        ([0.99, 1.00, 1.01], ": as good, within the margin."),
        ([1.04, 1.05, 1.06], ": worse, but within the margin."),
        ([1.08, 1.10, 1.12], ": worse, and whether within the margin can't be told."),
        ([1.40, 1.50, 1.60], ": worse, by more than the margin."),
        ([0.50, 1.00, 2.00], ": whether it is as good can't be told."),
        ([0.90, 1.00, 1.10], ": whether it is as good can't be told."),
    ],
)
def test_sentences_follow_from_the_intervals(ratios, said):
    few, many = ("dpmpp_2m", 20), ("ddim", 50)
    distances = np.array([3.0, 4.0, 5.0])
    measured = {few: distances * ratios, many: distances}
    assert said in QUALITY.sentence(few, many, measured, floor=0.5, margin=1.1)


def test_an_interval_is_over_networks_and_of_one_network_over_batches():
    np.testing.assert_allclose(QUALITY.units([[1.0, 4.0], [2.0, 8.0]]), [2.0, 4.0])
    np.testing.assert_allclose(QUALITY.units([[1.0, 4.0]]), [1.0, 4.0])


def test_results_are_reused_and_those_of_another_setting_refused(tmp_path, monkeypatch, capsys):
    """One small network, two samplers; a distance that needs no classifier."""
    drawn, draw = [], QUALITY.evaluation.draw
    monkeypatch.setattr(QUALITY.evaluation, "draw", lambda *a: drawn.append(a) or draw(*a))

    def evaluate(run, dataset, names, seed, samples):
        return {name: {name: float(np.square(samples).mean())} for name in names}

    monkeypatch.setattr(QUALITY.evaluation, "evaluate", evaluate)
    monkeypatch.setattr(QUALITY.runtime, "start", lambda: None)
    for name, value in dict(FURTHER={}, CANDIDATES=[("plms", 5)], REFERENCES=[("ddim", 5)]).items():
        monkeypatch.setattr(QUALITY, name, value)
    config = tmp_path / "config.py"
    config.write_text(
        "from small_runs import small_config\n"
        "get_config = lambda: small_config(schedule__name='linear_logsnr')\n"
    )
    arguments = ["--config", config, "--workdir", tmp_path, "--seeds=1", "--batches=2"]
    arguments = [*map(str, arguments), "--samplers=ddim,plms", "--counts=5"]

    def printed(*more):
        QUALITY.main([*arguments, *more])
        return capsys.readouterr().out

    first = printed("--num-samples=8")
    assert "plms in 5 calls has" in first and "sampling is covered, training is not" in first
    assert {path.suffix for path in tmp_path.glob("sampler_quality.*")} == {".json", ".md", ".png"}
    assert len(drawn) == 2
    assert printed("--num-samples=8") == first and len(drawn) == 2
    with pytest.raises(ValueError, match="evaluation.num_samples was 8, is 9"):
        printed("--num-samples=9")


# --- found grids on samples ---------------------------------------------------------------------

GRIDS = load(ROOT / "experiments" / "schedules_for_samples.py")


def made_up(**at_ten):
    """Raw numbers of three seeds: 10 for every grid and count, but for those at ten calls."""
    counts = [str(n) for n in GRIDS.COUNTS]
    seeds = []
    for noise in (0.99, 1.0, 1.01):
        found = {
            grid: dict.fromkeys(counts, 10.0) | {"10": noise * at_ten.get(grid, 10.0)}
            for grid in (*GRIDS.FIXED, "dp", "learned")
        }
        cost = dict(
            calls=5, seconds=1.0, shared={"calls": 9, "seconds": 2.0}, held_out=1.0,
            fixed={"uniform": [1.0, 2.0]},
        )  # fmt: skip
        costs = {name: dict.fromkeys(counts, cost) for name in ("dp", "learned")}
        seeds.append({"dpmpp_2m": {"distances": found, "found": costs, "fine": 9.0}})
    return {"mlp": {"numbers": [0, 1, 2], "seeds": seeds}}


@pytest.mark.parametrize(
    ("dp", "learned", "said"),
    [(8.0, 9.0, ["met", "met"]), (9.0, 11.0, ["not met", "not met"])],
)
def test_aims_are_met_or_not_by_the_intervals(dp, learned, said):
    raw = made_up(dp=dp, learned=learned)
    lines = GRIDS.aims(raw["mlp"], "dpmpp_2m").splitlines()
    assert [line.partition("**")[2].removesuffix("**.") for line in lines] == said
    assert f"{dp / 10:.2f}" in lines[0] and f"{learned / 10:.2f}" in lines[1]
    page = GRIDS.spliced(f"before\n{GRIDS.BEGIN}\nold\n{GRIDS.END}\nafter\n", GRIDS.tables(raw))
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page
    assert page.count("| dp |") == 5  # distances, ratios twice, errors and cost


def test_scales_of_the_search_can_be_trained(tmp_path):
    for name in ("mlp", "long"):
        config_lib.validate(GRIDS.SCALES[name].config(tmp_path / name, 0))


LEARNED = load(ROOT / "experiments" / "learned_for_samples.py")


def test_the_page_on_samples_holds_what_the_committed_numbers_give():
    folder = ROOT / "experiments" / "results"
    page = (folder / "schedules_for_samples.md").read_text(encoding="utf-8")
    raw = json.loads((folder / "schedules_for_samples.json").read_text(encoding="utf-8"))
    assert GRIDS.spliced(page, GRIDS.tables(raw)) == page
    for file in ("learned_for_samples.json", "learned_for_samples_unet.json"):
        learned = json.loads((folder / file).read_text(encoding="utf-8"))
        assert LEARNED.tables(learned) in page and set(learned) == set(LEARNED.NETWORKS)


def test_the_numbers_of_an_ablation_become_those_of_the_table():
    numbers = {"bpd": 5.0, "vlb_variance": 2.0, "frechet": 3.0}
    runs = [
        {"arm": f"{name}, {along}", "seed": seed, "metrics": numbers | {"frechet": frechet + seed}}
        for name in LEARNED.NETWORKS
        for along, frechet in (("own levels", 3.0), ("cosine's levels", 7.0))
        for seed in (1, 0)
        if (name, along) != ("cosine", "cosine's levels")
    ]
    found = LEARNED.of_runs(runs)
    assert found["cosine"][1] == {"bpd": 5.0, "variance": 2.0, "own": 4.0, "cosine": 4.0}
    assert found["learned"][0] == {"bpd": 5.0, "variance": 2.0, "own": 3.0, "cosine": 7.0}


FEW_STEPS = load(ROOT / "experiments" / "few_steps.py")


@pytest.mark.parametrize("name", FEW_STEPS.SETTINGS)
def test_every_method_of_few_steps_can_be_trained_and_sampled(name, tmp_path):
    args = argparse.Namespace(data=name, workdir=tmp_path)
    for method, entry in FEW_STEPS.SETTINGS[name].methods.items():
        config = FEW_STEPS.config_of(args, method, 0, 1000)
        assert {*entry.shown} <= {*entry.counts}
        for count in {entry.counts[0], entry.counts[-1]}:
            config_lib.validate(config_lib.changed(config, {"sampling.num_steps": count}))
        assert bool(config.method.teacher) == entry.taught
    assert {FEW_STEPS.config_of(args, m, 0, 8).method.name for m in FEW_STEPS.METHODS} == {
        *methods.METHODS
    } - {"autoencoder"}


def test_the_tables_of_few_steps_have_intervals_over_seeds():
    setting = FEW_STEPS.SETTINGS["mixture"]
    numbers = dict.fromkeys(setting.numbers, 2.0) | {"seconds_per_sample": 0.001}
    one = dict(parameters=10, training_steps=20, operations=3e9, seconds=5.0)
    one["curve"] = [{"step": step, "count": 1, "swd": 4.0} for step in (5, 10, 15)]
    one["at"] = {"1": numbers}
    other = json.loads(json.dumps(one))
    other["at"]["1"]["modes_kept"] = 5.0
    teacher = one | {"at": {str(n): numbers | {"swd": 1.0} for n in (1, 2, 4, 8, 25, 100)}}
    found = {"diffusion": dict.fromkeys(range(3), teacher), "GAN": {0: one, 1: one, 2: other}}
    assert FEW_STEPS.costs(found).splitlines()[-1] == "| GAN | 10 | 20 | 3e+09 | 5 |"
    row = FEW_STEPS.table(setting, found).splitlines()[-1]
    assert row.startswith("| GAN | 1 | 3 (-1.3 to 7.3) | 2 (2 to 2) |")
    assert row.endswith("| 2 (2 to 2) | 2 (2 to 2) | 1 |")
    assert FEW_STEPS.cell([2.0, 4.0]) == FEW_STEPS.ratio([4.0, 4.0], [2.0, 1.0]) == "2, 4"
    lines = FEW_STEPS.draw_curves(setting, found).axes[0].lines
    assert lines[-1].get_label() == "GAN, 1 step"
    assert lines[-1].get_ydata() == pytest.approx([4, 4, 4, 2])


LATENT = load(ROOT / "experiments" / "latent_compute.py")


@pytest.mark.parametrize("name", LATENT.ARMS)
def test_every_arm_of_latent_compute_can_be_trained(name, tmp_path):
    """In latents the U-Net is that in pixels without its upper levels, down to 4 a side."""
    arm = LATENT.ARMS[name]
    config = LATENT.network_config(tmp_path, arm, 0)
    config_lib.validate(config)
    assert len(config.model.unet.channel_mults) == arm.levels
    assert 16 // arm.factor // 2 ** (arm.levels - 1) == 4
    assert all(step > 0 for step in LATENT.points(arm.steps))
    if arm.factor > 1:
        own = LATENT.autoencoder_config(arm, 0)
        config_lib.validate(own)
        assert 2 ** (len(own.model.autoencoder.channel_mults) - 1) == arm.factor


def test_compute_to_equal_distance():
    """Of curves distance = (a / step)^(1/2), lines in logarithms: step = a / distance^2."""

    def arm(a, each, cost):
        steps = (1, 4, 16, 64)
        curve = [{"step": s, "frechet": (a / s) ** 0.5} for s in steps]
        own = {"operations": cost} if cost else None
        return dict(curve=curve, operations_per_step=each, seconds_per_step=1.0, autoencoder=own,
                    encoding=cost / 4)  # fmt: skip

    pixels, latents = arm(640.0, 100.0, 0.0), arm(1600.0, 2.0, 80.0)
    found = LATENT.compared(pixels, latents)
    assert found["target"] == pytest.approx(5.0)  # of the latents, at their last step
    assert found["latents_network"] == pytest.approx(2 * 64)
    assert found["latents_whole"] == pytest.approx(2 * 64 + 100)
    assert found["pixels_network"] == pytest.approx(100 * 640 / 25)
    with pytest.raises(ValueError, match="does not reach"):
        LATENT.steps_to(latents, 1.0)


def test_the_page_on_latents_holds_what_the_committed_numbers_give():
    folder = ROOT / "experiments" / "results"
    found = json.loads((folder / "latent_compute.json").read_text(encoding="utf-8"))
    page = (folder / "latent_compute.md").read_text(encoding="utf-8")
    assert all(table in page for table in LATENT.tables(found).split("\n\n"))
    claim = json.loads((folder / "claims" / "latent_cuts_compute.json").read_text("utf-8"))
    assert claim["arms"] == LATENT.raw(found, len(claim["seeds"]))["arms"]
