"""What may be searched, the search by toy objectives, and what it leaves behind."""

import csv
import importlib.util
import math

import numpy as np
import pytest
from small_runs import compiled_quickly, small_config

from diffax import cli
from diffax import config as config_lib
from diffax.tuning import results, run, search, space
from diffax.tuning.search import Trial, Unfit, best, rungs
from diffax.tuning.space import Choice, Range, Space


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


def make_space(*texts, **changes):
    config = small_config(**changes)
    return Space(config, [space.read(text) for text in texts])


# --- what may be tried ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schedule.s=0.001:0.1:log", Range("schedule.s", 0.001, 0.1, log=True)),
        ("schedule.start=-4:-2", Range("schedule.start", -4.0, -2.0)),
        ("model.mlp.width=8:32:log", Range("model.mlp.width", 8, 32, log=True)),
        ("schedule.name=cosine,linear", Choice("schedule.name", ("cosine", "linear"))),
        ("schedule.zero_terminal_snr=true,false", Choice("schedule.zero_terminal_snr", (1, 0))),
        ("schedule.input_scale=0.5,1,2", Choice("schedule.input_scale", (0.5, 1.0, 2.0))),
    ],
)
def test_a_range_or_values_are_read_as_the_keys_type(text, expected):
    found = space.read(text)
    assert found == expected
    assert {type(x) for x in found.examples()} == {
        bool if "zero" in text else type(expected.examples()[0])
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schedule.s", "must read KEY=LOW:HIGH"),
        ("schedule.sss=0.1:0.2", "no key 'schedule.sss'"),
        ("nowhere.s=0.1:0.2", "no key 'nowhere'"),
        ("schedule.s=a:b", "takes a number"),
        ("schedule.s=0.2:0.1", "LOW < HIGH"),
        ("schedule.s=0:0.1:log", "0 < LOW < HIGH"),
        ("schedule.s=0:inf", "both finite"),
        ("schedule.s=0.1:0.2:lin", "LOW:HIGH:log"),
        ("schedule.name=a:b", "in numbers"),
        ("schedule.s=None:0.1", "in numbers"),
        ("schedule=1,2", "schedule is a section"),
        ("schedule.name=cosine", "two or more"),
        ("schedule.zero_terminal_snr=yes,no", "takes true or false"),
        ("model.unet.channel_mults=1,2", "type tuple, can't be searched"),
        ("data.name=digits,mixture2d", "can't be compared"),
        ("training.num_steps=10:20", "can't be compared"),
        ("seed=0:9", "can't be compared"),
    ],
)
def test_what_cannot_be_searched_is_refused(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        space.read(text)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "one at least"),
        (["schedule.s=0.1:0.2", "schedule.s=0.1:0.3"], "searched once"),
        (["schedule.tau=0.5:2"], "no schedule here takes it: cosine"),
        (["schedule.name=cosine,cosin"], "cosin"),
        (["optimizer.name=adam,adamm"], "adamm"),
        (["schedule.input_scale=-2:-1"], "input_scale"),
    ],
)
def test_a_space_that_the_config_refuses_is_refused(texts, words):
    with pytest.raises(ValueError, match=words):
        make_space(*texts)


def test_a_range_may_be_possible_at_one_end_alone():
    """start must be below end, 3: the other end is so together with other values of end."""
    make_space("schedule.start=-3:4", "schedule.end=1:6", schedule__name="sigmoid")


class Lowest:
    """A trial of which each suggestion is the lowest or first value, or one that is given."""

    def __init__(self, **given):
        self.given = given

    def suggest_float(self, key, low, high, log):
        return low

    def suggest_categorical(self, key, values):
        return self.given.get(key.rpartition(".")[2], values[0])


TEXTS = ("schedule.s=0.001:0.1:log", "schedule.tau=0.5:2", "schedule.name=cosine,sigmoid")


def test_a_keyword_that_the_schedule_does_not_take_is_left_out():
    found = make_space(*TEXTS, schedule__s=0.02)
    assert found.suggest(Lowest()) == {"schedule.name": "cosine", "schedule.s": 0.001}
    values = found.suggest(Lowest(name="sigmoid"))
    assert values == {"schedule.name": "sigmoid", "schedule.tau": 0.5}
    overrides = found.overrides(values)
    assert overrides == values | {"schedule.s": None}  # the config's own s is cosine's
    config_lib.validate(config_lib.changed(found.config, overrides))


def test_a_field_of_another_network_is_left_out():
    found = make_space("model.unet.dropout=0.1:0.5", "model.name=mlp,unet", model__name="mlp")
    assert found.suggest(Lowest()) == {"model.name": "mlp"} == found.default()
    assert found.suggest(Lowest(name="unet")) == {"model.name": "unet", "model.unet.dropout": 0.1}
    assert found.networks() == {"mlp", "unet"}
    with pytest.raises(ValueError, match="model.unet.dropout is searched, but no network here"):
        make_space("model.unet.dropout=0.1:0.5", model__name="mlp")


def test_the_configs_own_values_are_found():
    assert make_space(*TEXTS).default() == {"schedule.name": "cosine", "schedule.s": 0.008}
    own = make_space(*TEXTS, schedule__s=0.02).default()
    assert own == {"schedule.name": "cosine", "schedule.s": 0.02}
    assert make_space("schedule.s=0.1:0.2").default() is None
    assert make_space("schedule.input_scale=0.5:2").default() == {"schedule.input_scale": 1.0}


def test_settings_of_a_search_with_flat_fields_of_networks_are_known_again():
    now = {"metric": "bpd", "config.model.name": "mlp", "config.model.mlp.width": 8}
    now["config.training.max_skipped"] = 10
    was = {"metric": "bpd", "config.model.name": "mlp", "config.model.width": 8}
    was["config.model.channels"] = 64
    assert run._upgraded(was, now) == now
    assert run._upgraded(now, now) == now
    assert run._upgraded({**was, "config.model.width": 9}, now) != now


# --- the search -----------------------------------------------------------------------------

STEPS = [25, 50, 100]
BOWL = ("schedule.s=0.001:1:log", "schedule.input_scale=0.3:3:log")


def bowl(values):
    """Lowest, 0, at s = 0.1 and b = 2."""
    s, b = values["schedule.s"], values["schedule.input_scale"]
    return math.log10(s / 0.1) ** 2 + 4 * math.log10(b / 2) ** 2


def train_bowl(number, values, report):
    """Falls to the bowl's value as a network's metric does, in every trial alike."""
    for step in STEPS:
        if report(step, bowl(values) + 10 / step):
            return


def run_search(path, objective=train_bowl, num_trials=12, texts=BOWL, **options):
    return search.search(objective, make_space(*texts), path, STEPS, num_trials, **options)


def plain(found):
    """All of the trials but their time."""
    return [(t.number, t.values, t.status, t.measured, t.message) for t in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_search(tmp_path_factory.mktemp("whole") / "journal", num_trials=25)


def test_rungs():
    assert rungs(100, 3) == STEPS and rungs(7, 3) == [1, 2, 7] and rungs(7, 1) == [7]
    for num_steps, count in ((3, 3), (5, 0)):
        with pytest.raises(ValueError, match=f"rungs={count}"):
            rungs(num_steps, count)


def test_the_search_finds_the_lowest(whole):
    """The best of 25 is where fewer than one random point in a hundred is."""
    rng = np.random.default_rng(0)
    s, b = 10 ** rng.uniform(-3, 0, 10_000), 10 ** rng.uniform(*np.log10([0.3, 3]), 10_000)
    random = [bowl(dict(zip(("schedule.s", "schedule.input_scale"), xy))) for xy in zip(s, b)]
    assert bowl(best(whole).values) < np.quantile(random, 0.01)


def test_the_first_trial_is_the_config_as_it_is(whole):
    assert whole[0].values == {"schedule.s": 0.008, "schedule.input_scale": 1.0}
    assert whole[0].status == "complete"


def test_halving_stops_those_behind_at_the_first_rung_that_shows_it(whole):
    """A trial goes on from a rung if it is in the better half of those that have reached it."""
    assert {t.status for t in whole} == {"complete", "pruned"}
    for trial in whole:
        assert list(trial.measured) == STEPS[: len(trial.measured)]
        for step in trial.measured:
            there = [t.measured[step] for t in whole[: trial.number] if step in t.measured]
            goes_on = trial.measured[step] <= sorted(there)[max(len(there) // 2 - 1, 0)]
            assert (trial.step > step) == (goes_on and step < 100) or step == 100
    steps = sum(trial.step for trial in whole)
    assert steps < 0.75 * 100 * len(whole)  # each next one is better, so that many go on


@pytest.mark.parametrize("pruner", ["median", "none"])
def test_other_pruners(pruner, tmp_path):
    found = run_search(tmp_path / "journal", num_trials=8, pruner=pruner)
    stopped = [t.number for t in found if t.status == "pruned"]
    assert (stopped == []) == (pruner == "none")
    assert all(number > 5 for number in stopped)  # a median of fewer is not trusted


def test_a_search_that_was_killed_makes_the_trials_of_one_that_was_not(whole, tmp_path):
    """Killed in the middle of trials: those under way leave no trace in what is found."""
    path, begun, stops = tmp_path / "journal", [], [(1, 25), (7, 50)]

    def killed(number, values, report):
        begun.append(number)

        def killing(step, value):
            if (number, step) in stops and begun.count(number) == 1:
                raise KeyboardInterrupt
            return report(step, value)

        train_bowl(number, values, killing)

    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run_search(path, killed, num_trials=9)
    found = run_search(path, killed, num_trials=9)
    assert plain(found) == plain(whole[:9])
    assert len(begun) == 9 + len(stops)
    assert run_search(path, killed, num_trials=9) == found  # complete: only read


def test_another_seed_tries_other_values(whole, tmp_path):
    found = run_search(tmp_path / "journal", num_trials=3, seed=1)
    assert found[0].values == whole[0].values and found[1].values != whole[1].values


def test_values_that_cannot_be_tried_are_kept_with_the_reason(tmp_path):
    def partly(number, values, report):
        if values["schedule.s"] > 0.03:
            raise Unfit("too much")
        if values["schedule.input_scale"] > 2:
            report(25, math.nan)
        train_bowl(number, values, report)

    found = run_search(tmp_path / "journal", partly)
    unfit = [t for t in found if t.status == "unfit"]
    assert {t.message for t in unfit} == {"too much", "the metric is nan at step 25"}
    assert all(t.metric is None and t.step == 0 for t in unfit)
    assert best(found).values["schedule.s"] <= 0.03
    with pytest.raises(ValueError, match="no trial could be measured: too much"):
        best(unfit)


def test_the_budget_counts_trials_of_earlier_calls(tmp_path, monkeypatch):
    """By a clock on which a report takes 60 s: trials of 60, 120 or 180 s, none begun after 300."""
    now = [0]
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])

    def objective(number, values, report):
        def timed(step, value):
            now[0] += 60
            return report(step, value)

        train_bowl(number, values, timed)

    told = []
    path = tmp_path / "journal"
    assert len(run_search(path, objective, num_trials=1)) == 1  # 180 s
    found = run_search(
        path, objective, None, budget=300.0, on_progress=lambda *said: told.append(said)
    )
    assert sum(t.seconds for t in found) >= 300 > sum(t.seconds for t in found[:-1])
    assert [left for _, _, left in told] == [max(0.0, 300 - spent) for _, spent, _ in told]
    with pytest.raises(ValueError, match="needs a bound"):
        run_search(path, objective, None)


def test_the_time_left_is_that_of_the_trials_to_come(tmp_path, monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])

    def objective(number, values, report):
        for step in STEPS:
            now[0] += 10.0
            report(step, 1.0)

    run_search(
        tmp_path / "journal", objective, num_trials=3, on_progress=lambda *said: told.append(said)
    )
    # Each trial takes 30 s; told at each rung and at the end.
    left = [left for _, _, left in told]
    assert left == [None, None, None, 60.0, 50.0, 40.0, 30.0, 30.0, 20.0, 10.0, 0.0, 0.0]
    assert told[-1][1] == 90.0


def test_a_search_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "journal"
    run_search(path, num_trials=1, settings={"metric": "bpd"})
    with pytest.raises(ValueError, match="metric was 'bpd' and is 'frechet'; seed was 0 and is 1"):
        run_search(path, num_trials=1, seed=1, settings={"metric": "frechet"})
    with pytest.raises(ValueError, match="pruner='hyperband': allowed are halving, median, none"):
        run_search(path, pruner="hyperband")


# --- what is left behind --------------------------------------------------------------------


def test_table_and_picture_show_every_trial(whole):
    found, around = whole[:12], make_space(*BOWL)
    lines = results.format_table(found, around, "bpd").splitlines()
    assert [line.split()[0].rstrip("*") for line in lines[1:]] == [str(i) for i in range(1, 13)]
    assert [i for i, line in enumerate(lines) if "*" in line] == [best(found).number]
    rows = list(csv.DictReader(results.to_csv(found, around, "bpd").splitlines()))
    assert [float(row["bpd"]) for row in rows] == [t.metric for t in found]
    assert [float(row["schedule.s"]) for row in rows] == [t.values["schedule.s"] for t in found]

    first, second, progress = results.draw(found, around, "bpd").axes
    for axes, key in ((first, "schedule.s"), (second, "schedule.input_scale")):
        points = np.concatenate([c.get_offsets() for c in axes.collections])
        expected = [(t.values[key], t.metric) for t in found]
        np.testing.assert_allclose(sorted(points.tolist()), sorted(expected))
    (line,) = progress.lines
    complete = [t.metric for t in found if t.status == "complete"]
    assert line.get_ydata()[-1] == min(complete)
    assert line.get_xdata()[-1] == sum(t.step for t in found)


def test_the_picture_has_room_for_names_and_for_trials_without_a_value():
    around = make_space(*TEXTS)
    made = [
        Trial(1, {"schedule.name": "cosine", "schedule.s": 0.008}, "complete", {100: 2.0}, 1.0),
        Trial(2, {"schedule.name": "sigmoid", "schedule.tau": 1.0}, "complete", {100: 1.0}, 1.0),
        Trial(3, {"schedule.name": "sigmoid", "schedule.tau": 1.9}, "unfit", {}, 1.0, "why"),
    ]
    name, s, tau, _ = results.draw(made, around, "bpd").axes[:4]
    assert [text.get_text() for text in name.get_xticklabels()] == ["cosine", "sigmoid"]
    shown = [sum(len(c.get_offsets()) for c in axes.collections) for axes in (name, s, tau)]
    assert shown == [2, 1, 1]


@pytest.mark.parametrize(
    "says",
    [
        "Trial 3 of 4.",
        'A """\nraise SystemExit("run")\n""" in it',
        'ends in a quote"',
        "ends in a backslash\\",
        '\\"""\nraise SystemExit',
        "{text} 'Größe' \t\r\x0c\u2028 \ud800 \0 end",
    ],
)
def test_the_best_config_is_a_config_file_whatever_it_says(says, tmp_path):
    config = small_config(data__path="it's '''odd''' \\ here", schedule__s=0.123)
    path = tmp_path / "best.py"
    path.write_text(results.to_python(config, says), encoding="utf-8")
    assert config_lib.differences(cli.read_config(str(path), []), config) == {}
    spec = importlib.util.spec_from_file_location("best", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    assert module.__doc__ == says
