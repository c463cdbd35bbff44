"""The claims ledger: its rule, its page from the raw numbers, and one claim from end to end."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from small_runs import small_config

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "claims"))

import laboratory
import ledger
import verdicts
from laboratory import SCALES, Laboratory

from diffax import config as config_lib

pytestmark = pytest.mark.usefixtures("hasty_compiler")
NAME = ledger.NAMES[0]
SUPPORTED, CONTRADICTED, UNDECIDED = (
    verdicts.SUPPORTED,
    verdicts.CONTRADICTED,
    verdicts.UNDECIDED,
)


# --- the rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "outcome", "said"),
    [
        ([0.90, 0.91, 0.89], SUPPORTED, "Within."),
        ([0.70, 0.71, 0.69], CONTRADICTED, "More."),
        ([1.20, 1.21, 1.19], CONTRADICTED, "Less."),
        ([0.80, 0.90, 1.00], UNDECIDED, "Whether within can't be told."),
        ([0.94, 0.95, 0.96], UNDECIDED, "Whether within can't be told."),
    ],
)
def test_a_quantity_is_judged_by_where_its_interval_lies(ratios, outcome, said):
    b = np.array([3.0, 4.0, 5.0])
    part = verdicts.ratio_of(
        "a over b", b * ratios, b, 0.85, 0.95, inside="within", below="more", above="less"
    )
    found = verdicts.judge(part)
    assert (found.outcome, found.sentence) == (outcome, said)


def _part(values, **region):
    zero = np.zeros(len(values))
    return verdicts.difference_of("d", values, zero, **region, inside="so", outside="not so")


@pytest.mark.parametrize(
    ("second", "outcome", "said"),
    [
        ([2.0, 2.1, 1.9], SUPPORTED, "So; so."),
        ([-9.0, 9.0, 1.0], UNDECIDED, "So; whether so can't be told."),
        ([-2.0, -2.1, -1.9], CONTRADICTED, "So; not so."),
    ],
)
def test_one_part_is_enough_to_contradict_and_all_are_needed_to_support(second, outcome, said):
    found = verdicts.judge(_part([1.0, 1.1, 0.9], low=0.0), _part(second, low=0.0))
    assert (found.outcome, found.sentence) == (outcome, said)


def test_intervals_of_several_parts_are_wider():
    """At 95% this interval is above 0, at the 99% that each of five parts takes it is not."""
    values = [1.0, 1.4, 0.7]
    part = _part(values, low=0.0)
    assert verdicts.judge(part).outcome == SUPPORTED
    assert verdicts.judge(*[part] * 5).outcome == UNDECIDED
    (finding, *_) = verdicts.judge(*[part] * 5).figures
    assert finding.estimate.confidence == pytest.approx(0.99)


def test_a_ratio_without_a_direction_is_taken_either_way():
    """Above 1.1 or below 1 / 1.1 alike; the interval of the reciprocal is the reciprocal's."""
    b = np.array([3.0, 4.0, 5.0])
    says = dict(low=1.1, inside="shifts", outside="stays")
    for ratios in ([1.3, 1.32, 1.28], [0.7, 0.72, 0.69]):
        part = verdicts.ratio_of("q", b * ratios, b, **says)
        found = verdicts.judge(verdicts.either_way(part))
        assert found.outcome == SUPPORTED and found.figures[0].estimate.mean > 1.1
        once, other = part.estimate(0.95), verdicts.either_way(part).estimate(0.95)
        assert {once.low, once.high} in ({other.low, other.high}, {1 / other.low, 1 / other.high})
    for ratios, outcome in (([0.99, 1.0, 1.02], CONTRADICTED), ([0.7, 1.0, 1.2], UNDECIDED)):
        part = verdicts.either_way(verdicts.ratio_of("q", b * ratios, b, **says))
        assert verdicts.judge(part).outcome == outcome


def test_an_exact_number_has_no_interval():
    said = dict(inside="left", outside="none")
    assert verdicts.judge(verdicts.exact("x", 0.006, low=1e-6, **said)).outcome == SUPPORTED
    assert verdicts.judge(verdicts.exact("x", 0.0, low=1e-6, **said)).outcome == CONTRADICTED


def test_a_share_has_an_exact_interval_of_which_none_is_wide():
    """Clopper & Pearson: of none of n the upper end is 1 - ((1 - level) / 2)^(1 / n)."""
    said = dict(inside="many", outside="few", low=0.1)
    none, most = ([False] * 10, [True] * 9 + [False])
    found = verdicts.judge(verdicts.share_of("s", none, **said))
    assert found.outcome == UNDECIDED
    assert found.figures[0].estimate.high == pytest.approx(1 - 0.025**0.1)
    assert verdicts.judge(verdicts.share_of("s", most, **said)).outcome == SUPPORTED
    assert verdicts.judge(verdicts.share_of("s", [False] * 60, **said)).outcome == CONTRADICTED


def test_regions_in_words():
    def words(*args, **kwargs):
        return verdicts.region(verdicts.ratio_of("q", *args, [1, 1], [1, 1], **kwargs, inside=""))

    assert words(low=0.85, high=0.95) == "0.85 to 0.95"
    assert words(high=1.0) == "below 1"
    assert words(high=1.1) == "at most 1.1"
    assert words(low=1.1) == "above 1.1"
    assert verdicts.region(_part([0, 1], low=0.0)) == "above 0"
    assert verdicts.region(_part([0, 1], high=0.0)) == "below 0"


# --- the claims ---------------------------------------------------------------------------------

# claim -> {arm: {metric: value}} by which the claim holds; and what is changed so that it does not
HOLDS = {
    "cosine_beats_linear": {"linear": dict(ddpm=10, ddim=20), "cosine": dict(ddpm=9, ddim=18)},
    "learned_gains_less_than_cosine": {
        "linear": dict(frechet=20), "cosine": dict(frechet=10), "learned": dict(frechet=8),
    },
    "quarter_of_the_steps": {
        "T = 1000": dict(frechet=8, seconds=4), "T = 250": dict(frechet=9, seconds=1),
    },
    "cosine_250_beats_linear_1000": {
        "cosine, T = 250": dict(frechet=9), "linear, T = 1000": dict(frechet=10),
    },
    "ddim_100_keeps_quality": {name: dict(ddpm=10, ddim=10.5) for name in ("linear", "cosine")},
    "dpm_solver_25_matches_50": {
        "cosine": {
            "dpmpp_2m-25": 10, "ddim-50": 10, "ddpm-50": 12, "ddpm-20": 20, "ddpm-1000": 10,
        }
    },
    "zero_terminal_snr_repairs_brightness": {
        "linear": dict(left=0.006, spread=0.8),
        "linear, zero terminal SNR": dict(left=0.0, spread=0.95),
    },
    "guidance_trades_diversity": {
        "cosine": {
            "accuracy-1": 0.8, "accuracy-4": 0.9, "precision-1": 0.7, "precision-4": 0.8,
            "recall-1": 0.8, "recall-4": 0.5,
        }
    },
    "sigmoid_trains_stably": {
        "linear": dict(grad_norm=3, loss_variance=3),
        "cosine": dict(grad_norm=2, loss_variance=2),
        "sigmoid": dict(grad_norm=1, loss_variance=1),
    },
    "input_scaling_helps_large_images": {
        "8x8, b = 1": dict(frechet=10), "8x8, b = 0.5": dict(frechet=11),
        "16x16, b = 1": dict(frechet=20), "16x16, b = 0.5": dict(frechet=20),
        "32x32, b = 1": dict(frechet=40), "32x32, b = 0.5": dict(frechet=30),
    },
    "learned_schedule_lowers_variance": {
        "learned": dict(variance=1, early=5), "log-SNR-linear": dict(variance=10, early=6),
        "linear": dict(variance=50, early=7), "cosine": dict(variance=60, early=7),
    },
    "learned_variance_improves_bound": {
        "fixed": {
            "bpd fixed_small": 5, "bpd fixed_large": 6, "ddpm fixed_small": 50,
            "ddpm fixed_large": 60,
        },
        "learned": {"bpd learned": 4.5, "ddpm learned": 40},
    },
    "variance_schedule_is_entropy_rate": {
        "learned": dict(apart_entropy=0.02, variance=10, variance_entropy=10.2)
    },
    "learned_grid_10_matches_20": {
        "cosine": {"learned-10": 9, "gradient-10": 10, "uniform-20": 10}
    },
    "each_solver_needs_its_grid": {
        "cosine": {
            f"{solver} on {other}": 8 if solver == other else 10
            for solver in ("ddim", "dpmpp_2m", "unipc")
            for other in ("ddim", "dpmpp_2m", "unipc")
        }
    },
    "learned_times_save_steps": {
        "uniform, 3,000 steps": dict(frechet=10), "uniform, 2,100 steps": dict(frechet=12),
        "learned, 2,100 steps": dict(frechet=9),
    },
    "flow_matching_beats_cosine": {
        "flow matching": {"frechet-25": 8}, "cosine, noise": {"frechet-25": 10},
        "cosine, v": {"frechet-25": 9},
    },
    "schedule_changes_quality_untrained": {
        "cosine": dict(cosine=10, linear=12, sigmoid=8, linear_logsnr=20)
    },
    "schedule_and_prediction_interact": {
        f"{name}, {words}": dict(frechet=value)
        for name, values in (("cosine", (10, 10, 10)), ("linear", (12, 10, 15)))
        for words, value in zip(("the noise", "v", "x0"), values)
    },
    "latent_cuts_compute": {"factor 4": dict(pixels=50, network=1)},
    "covariance_is_enough": {
        "spectral": dict(frechet=10, variance=3, bpd=6),
        "of a network": dict(frechet=10, variance=3, bpd=6.1),
    },
    "thousands_of_steps_gain_little": {
        "T = 1000": dict(frechet=10, seconds=1), "T = 2000": dict(frechet=9.7, seconds=2),
        "T = 5000": dict(frechet=9.5, seconds=5),
    },
    "one_pass_replaces_25_to_100": {
        "diffusion": {
            "frechet-10": 12, "frechet-25": 10, "frechet-100": 10, "seconds-25": 25,
            "seconds-100": 100,
        },
        "GAN": {"seconds-1": 1},
    },
    "diffusion_trains_more_stably": {
        "diffusion": dict(frechet=10),
        "GAN": dict(frechet=np.tile([1, 1.5], 5), variance=0.01),
    },
    "gan_drops_modes": {
        "diffusion": dict(recall=0.9), "GAN": dict(recall=0.5),
        "diffusion, 25 modes": dict(modes_kept=25, modes_kl=0.1),
        "GAN, 25 modes": dict(modes_kept=20, modes_kl=0.5),
    },
    "diffusion_needs_less_data": {
        f"{name}, {size}": dict(frechet=frechet, copies=0.5 if name == "GAN" else 0.2)
        for name, distances in (("diffusion", (10, 11, 12)), ("GAN", (10, 20, 30)))
        for size, frechet in zip(("all", "a third", "a tenth"), distances)
    },
    "students_keep_quality": {
        **{f"teacher, {name}": {"frechet-100": 10} for name in ("v", "x0")},
        **{f"progressive, {name}": {"frechet-1": 14, "frechet-4": 11} for name in ("v", "x0")},
        "consistency, v": {"frechet-1": 14, "frechet-2": 14},
    },
    "hybrid_is_as_good_and_as_fast": {
        "diffusion": dict(frechet=10), "hybrid": dict(frechet=10, seconds=4),
        "GAN": dict(seconds=1),
    },
    "gan_is_cheaper_and_restarts_more": {
        "diffusion": dict(operations=20),
        "GAN": dict(operations=1, frechet=np.tile([1, 9], 5)),
    },
    "teachers_schedule_suits_the_student": {
        f"{name}, {kind}": dict(frechet=value)
        for kind in ("teacher", "student")
        for name, value in (("linear", 12), ("cosine", 10), ("sigmoid", 11))
    },
    "strong_guidance_suits_text": {
        "text": {f"right-{scale}": 0.9 if scale > 5 else 0.7 for scale in (1, 2, 3, 5, 7, 9)},
        "digits by class": {
            f"{key}-{scale}": 0.9 if scale == 4 else 0.6
            for key in ("precision", "recall")
            for scale in (1, 2, 4, 8)
        },
    },
    "control_composes": {"controlnet": dict(plain=0.8, guided=0.8, linear=0.79)},
    "gentle_noise_keeps_anatomy": {
        "cells": dict(kept=0.87, untouched=0.9, moved=0.06, apart=0.3)
    },
    "default_schedules_rarely_optimal": {
        name: dict(cosine=10, winner=8) for name in ("cells", "satellite", "sound")
    },
}  # fmt: skip
FAILS = {
    "cosine_beats_linear": ("cosine", "ddim", 14),
    "learned_gains_less_than_cosine": ("learned", "frechet", 30),
    "quarter_of_the_steps": ("T = 250", "seconds", 2),
    "cosine_250_beats_linear_1000": ("cosine, T = 250", "frechet", 11),
    "ddim_100_keeps_quality": ("linear", "ddim", 12),
    "dpm_solver_25_matches_50": ("cosine", "ddpm-20", 10.5),
    "zero_terminal_snr_repairs_brightness": ("linear, zero terminal SNR", "spread", 0.7),
    "guidance_trades_diversity": ("cosine", "recall-4", 0.9),
    "sigmoid_trains_stably": ("sigmoid", "grad_norm", 2.5),
    "input_scaling_helps_large_images": ("8x8, b = 0.5", "frechet", 7),
    "learned_schedule_lowers_variance": ("log-SNR-linear", "early", 4.5),
    "learned_variance_improves_bound": ("learned", "bpd learned", 5.5),
    "variance_schedule_is_entropy_rate": ("learned", "variance_entropy", 20),
    "learned_grid_10_matches_20": ("cosine", "gradient-10", 12),
    "each_solver_needs_its_grid": ("cosine", "unipc on unipc", 12),
    "learned_times_save_steps": ("learned, 2,100 steps", "frechet", 11),
    "flow_matching_beats_cosine": ("cosine, v", "frechet-25", 7),
    "schedule_changes_quality_untrained": ("cosine", "sigmoid", 9.8),
    "schedule_and_prediction_interact": ("linear, v", "frechet", 12.2),
    "thousands_of_steps_gain_little": ("T = 2000", "frechet", 11),
    "one_pass_replaces_25_to_100": ("GAN", "seconds-1", 5),
    "diffusion_trains_more_stably": ("diffusion", "frechet", np.tile([1, 1e9], 5)),
    "gan_drops_modes": ("GAN, 25 modes", "modes_kept", 25),
    "diffusion_needs_less_data": ("diffusion, a tenth", "copies", 0.9),
    "students_keep_quality": ("progressive, x0", "frechet-1", 20),
    "hybrid_is_as_good_and_as_fast": ("hybrid", "seconds", 8),
    "gan_is_cheaper_and_restarts_more": ("GAN", "operations", 30),
    "teachers_schedule_suits_the_student": ("cosine, student", "frechet", 13),
    "latent_cuts_compute": ("factor 4", "network", 5),
    "covariance_is_enough": ("spectral", "frechet", 13),
    "strong_guidance_suits_text": ("text", "right-2", 1.0),
    "control_composes": ("controlnet", "linear", 0.5),
    "gentle_noise_keeps_anatomy": ("cells", "kept", 0.6),
    "default_schedules_rarely_optimal": ("sound", "winner", 10),
}


def made_up(name, noise, changed=None):
    """Raw results of three seeds, or as many as the claim names, with noise of its own in every
    arm and metric."""
    rng, num = np.random.default_rng(0), getattr(ledger.CLAIMS[name], "SEEDS", 3)
    arms = {arm: dict(metrics) for arm, metrics in HOLDS[name].items()}
    if changed:
        arm, metric, value = changed
        arms[arm][metric] = value
    return {
        "arms": {
            arm: {
                key: value * np.exp(noise * rng.standard_normal(num)) for key, value in of.items()
            }
            for arm, of in arms.items()
        }
    }


@pytest.mark.parametrize("name", ledger.NAMES)
def test_every_claim_can_be_supported_contradicted_and_left_open(name):
    verdict = ledger.CLAIMS[name].verdict
    assert verdict(made_up(name, 1e-3)).outcome == SUPPORTED
    assert verdict(made_up(name, 1e-3, FAILS[name])).outcome == CONTRADICTED
    assert verdict(made_up(name, 1.0)).outcome == UNDECIDED


def arms_of(claim):
    """Networks, or what an experiment of its own compares."""
    return claim.ARMS if hasattr(claim, "EXPERIMENT") else claim.NETWORKS


@pytest.mark.parametrize("name", ledger.NAMES)
def test_made_up_results_have_the_arms_and_metrics_that_are_measured(name):
    claim = ledger.CLAIMS[name]
    assert set(HOLDS[name]) <= set(arms_of(claim))
    assert {key for metrics in HOLDS[name].values() for key in metrics} <= set(claim.COLUMNS)


def test_every_network_can_be_trained(tmp_path):
    """The same overrides of both scales' configs; checked in full of one, each config once."""
    labs, seen = [Laboratory(scale, tmp_path) for scale in SCALES.values()], set()
    for claim in ledger.CLAIMS.values():
        for network in claim.NETWORKS.values():
            small, large = (lab.config(network, seed=0) for lab in labs)
            assert all(network.data in lab.scale.data for lab in labs)
            small.schedule.path = large.schedule.path = None  # a rate's file, made when trained
            assert small.schedule == large.schedule
            assert small.model.name != large.model.name or small.model.name == "generator"
            if (text := config_lib.to_json(small)) not in seen:
                config_lib.validate(large)
            seen.add(text)
    assert len(seen) > 15


# --- the page -----------------------------------------------------------------------------------


def test_the_page_is_what_the_committed_numbers_give():
    page = (ledger.RESULTS / "claims.md").read_text(encoding="utf-8")
    assert page == ledger.write(ledger.RESULTS)


def test_committed_numbers_are_those_of_the_committed_claims():
    for name, raw in ledger.read_raw(SCALES["digits"], ledger.RESULTS).items():
        claim = ledger.CLAIMS[name]
        networks = {name: network.about() for name, network in claim.NETWORKS.items()}
        assert raw["claim"] == name and raw["networks"] == networks
        assert set(raw["arms"]) == set(arms_of(claim))
        for metrics in raw["arms"].values():
            assert {len(values) for values in metrics.values()} == {len(raw["seeds"])}


def test_what_was_not_run_is_said_so(tmp_path):
    page = ledger.write(tmp_path)
    assert page.count("Not run yet") == len(SCALES) and "--scale=gpu" in page


def test_without_an_accelerator_the_large_scale_is_refused(capsys):
    with pytest.raises(SystemExit):
        ledger.parse(["--scale=gpu"])
    assert "JAX finds no accelerator" in capsys.readouterr().err
    args = ledger.parse(["--scale=gpu", "--from-raw"])
    assert ledger.seeds_of("cosine_beats_linear", args) == 3
    assert ledger.seeds_of("diffusion_trains_more_stably", args) == 10
    args.seeds = 4
    assert ledger.seeds_of("diffusion_trains_more_stably", args) == 4


# --- the laboratory -----------------------------------------------------------------------------


@pytest.fixture
def few_images(monkeypatch):
    """Instead of the digits: forty images of noise."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    monkeypatch.setattr(laboratory, "whole", lambda **source: (x, np.arange(40) % 10))
    return x


def test_data_sets_of_other_sizes_say_the_same(few_images, tmp_path):
    lab = Laboratory(SCALES["digits"], tmp_path)
    plain, middle, half = (lab.images(kind) for kind in ("plain", "middle", "half inverted"))
    samples = middle.train.array()
    trained = laboratory.Trained(None, tmp_path, middle, "middle")
    np.testing.assert_allclose(lab.seen(trained, samples), plain.train.array(), atol=1e-6)
    (inverted, _), (same, _) = laboratory.half_inverted(2), laboratory.enlarged(2)
    np.testing.assert_array_equal(inverted[1::2], 255 - same[1::2])
    np.testing.assert_array_equal(inverted[::2], same[::2])
    assert half.shape == middle.shape == (16, 16, 1) and len(half.train) == 36


def test_a_claim_is_measured_once_and_written_to_the_ledger(
    few_images, tmp_path, monkeypatch, capsys
):
    """What is found again is neither trained nor measured."""
    measured = []

    def measure(lab, trained, seed):
        measured.append(seed)
        return {"loss": laboratory.logged(trained, "loss", after=0.5)}

    def verdict(raw):
        loss = verdicts.column(raw, "arm", "loss")
        says = dict(inside="the loss is positive", outside="the loss is negative")
        return verdicts.judge(verdicts.difference_of("loss", loss, 0 * loss, low=0.0, **says))

    claim = types.SimpleNamespace(
        CLAIM="A loss is positive.",
        NETWORKS={"arm": laboratory.between_equal_ends("linear_logsnr")},
        COLUMNS={"loss": "loss"},
        measure=measure,
        verdict=verdict,
    )
    monkeypatch.setitem(ledger.CLAIMS, NAME, claim)
    scale = SCALES["digits"]._replace(base=lambda: small_config(optimizer__clip_norm=1.0))
    monkeypatch.setitem(SCALES, "digits", scale)
    monkeypatch.setattr(ledger.runtime, "start", lambda: None)
    arguments = [
        "--workdir",
        tmp_path / "work",
        "--results",
        tmp_path,
        f"--only={NAME}",
        "--seeds=2",
    ]
    pages = []
    for _ in range(2):
        ledger.main([*map(str, arguments)])
        pages.append((tmp_path / "claims.md").read_text(encoding="utf-8"))
    assert pages[0] == pages[1] and measured == [0, 1]
    assert "**Supported.** The loss is positive." in pages[0]
    assert f"{NAME}: A loss is positive.\n   supported" in capsys.readouterr().out
    raw = json.loads((tmp_path / "claims" / f"{NAME}.json").read_text(encoding="utf-8"))
    assert np.shape(raw["arms"]["arm"]["loss"]) == (2,) and raw["cpu_minutes"] > 0
