"""Tables of names: what may be registered, what is said of an unknown name."""

import flax.linen as nn
import jax.numpy as jnp
import pytest
from small_runs import MIXTURE, small_config

from diffax import config as config_lib
from diffax import (
    data,
    evaluation,
    models,
    objectives,
    registry,
    samplers,
    schedules,
    time_sampling,
)
from diffax.ablation import measure
from diffax.samplers import grids

# what registers in a table, the table, an entry for it, what asks for a name
TABLES = {
    "schedule": (schedules.register, schedules.SCHEDULES, lambda p=2.0: None, schedules.get),
    "sampler": (samplers.register, samplers.SAMPLERS, lambda mu=0.5: None, samplers.get),
    "grid": (samplers.register_grid, samplers.GRIDS, lambda over, n: None, grids.GRIDS.lookup),
    "model": (models.register, models.MODELS, type("Net", (nn.Module,), {}), models.get),
    "weighting": (
        objectives.register_weighting,
        objectives.WEIGHTINGS,
        lambda log_snr, minus_dlogsnr_dt, scale: scale,
        objectives.get_weighting,
    ),
    "time_sampling": (
        time_sampling.register,
        time_sampling.TIME_SAMPLERS,
        lambda: time_sampling.uniform(),
        time_sampling.get,
    ),
    "extractor": (
        evaluation.register_extractor,
        evaluation.EXTRACTORS,
        lambda: None,
        evaluation.get_extractor,
    ),
    "measure": (
        evaluation.register_measure,
        evaluation.MEASURES,
        evaluation.Measure(lambda seen: {}, lambda width: 1, {}, over="values"),
        lambda name: evaluation.check_names([name]),
    ),
    "data source": (data.register, data.SOURCES, lambda turns=2: None, data.SOURCES.lookup),
    "optimizer": (
        config_lib.register_optimizer,
        config_lib.OPTIMIZERS,
        lambda learning_rate: None,
        config_lib.OPTIMIZERS.lookup,
    ),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.usefixtures("registering")
def test_every_table_is_registered_in_and_asked_alike(kind):
    """A name is found after it is registered, can't be taken twice, and is suggested."""
    register, table, entry, ask = TABLES[kind]
    own = list(table)
    register("newcomer", entry)
    register("newcomer", entry)  # the same again
    assert [*table] == [*own, "newcomer"] == [*table.names()]
    assert getattr(table["newcomer"], "load", entry) is entry is not table[own[0]]
    with pytest.raises(ValueError, match=f"a {kind} named '{own[0]}' is registered already"):
        register(own[0], entry)
    with pytest.raises(ValueError, match="='newcomr' .did you mean newcomer.*: allowed are "):
        ask("newcomr")
    registry.forget([(table.kind, "newcomer")])
    assert [*table] == own


@pytest.mark.usefixtures("registering")
def test_a_cell_of_a_notebook_may_be_run_again():
    code = "from diffax import schedules\nschedules.register('newcomer', lambda p={}: None)"
    for value in (1.0, 2.0):
        exec(code.format(value), {"__name__": "__main__"})
    assert schedules.SCHEDULES["newcomer"].__defaults__ == (2.0,)
    with pytest.raises(ValueError, match="is registered already, by __main__"):
        exec(code.format(3.0), {"__name__": "elsewhere"})


@pytest.mark.parametrize("name", ["", "two words", "a,b", "k=v", "1st", "None", "../x", 3, None])
def test_names_that_a_command_line_could_not_hold_are_refused(name):
    with pytest.raises(ValueError, match="can't be named"):
        schedules.register(name, lambda: None)


def test_suggestions():
    suggest = registry.suggestion
    assert suggest("cosin", ["linear", "cosine"]) == " (did you mean cosine?)"
    assert suggest("Num-Steps", ["num_steps"]) == " (did you mean num_steps?)"
    assert suggest(3, ["cosine"]) == suggest("xyz", []) == ""


def _strange(value: jnp.ndarray):
    return value


@pytest.mark.parametrize(
    ("constructor", "words"),
    [
        (lambda p: None, "argument 'p' isn't known; give it a default"),
        (lambda p=None: None, "argument 'p' isn't known"),
        (_strange, "argument 'value' isn't known"),
        (lambda **options: None, r"takes \*\*options"),
        (lambda *values: None, r"takes \*values"),
        (lambda s="small": None, "'s' is of type str, that of 'cosine' of type float"),
        ("cosine", "must be a function"),
    ],
)
def test_constructors_whose_arguments_can_be_no_keys_are_refused(constructor, words):
    with pytest.raises(ValueError, match=words):
        schedules.register("newcomer", constructor)
    assert "newcomer" not in schedules.names()


def _annotated(
    a: "int | None" = None,
    b: float = 2,
    c: tuple[int, ...] = (),
    d=True,
    activation=nn.silu,
):
    return a, b, c, d, activation


def test_types_of_arguments():
    """By the annotation first; what no config can hold stays at its default."""
    found = registry.arguments("it", _annotated)
    assert found == {"a": int, "b": float, "c": tuple, "d": bool}


def test_networks_that_can_be_no_models_are_refused():
    class NoDefault(nn.Module):
        width: int

    with pytest.raises(ValueError, match="its field 'width' needs a default"):
        models.register("newcomer", NoDefault)
    with pytest.raises(ValueError, match="must be a class of flax modules"):
        models.register("newcomer", lambda: None)
    with pytest.raises(ValueError, match="can't be named 'new.comer'"):
        models.register("new.comer", models.MLP)


def test_a_measure_can_not_take_the_name_of_another_score():
    kid = evaluation.MEASURES["kid"]
    with pytest.raises(ValueError, match="can't be named 'fd': 'fid' is another score"):
        evaluation.register_measure("fd", kid)
    with pytest.raises(ValueError, match="'fid' is another score"):
        evaluation.register_measure("fid", kid._replace(over="values"))


def test_names_of_what_else_is_measured_are_taken():
    """A score of that name would never be measured, or two numbers would have one key."""
    method = config_lib.build_method(small_config(), MIXTURE)
    others = {*method.measures, *(metric.key for metric in measure.METRICS)}
    assert others | {"latent_bound"} == {*evaluation.OTHER_NUMBERS}  # of a run in latents
    gap = evaluation.Measure(
        lambda seen: {}, lambda width: 1, {"value": evaluation.Metric("value", "Gap")}
    )
    precision = gap._replace(
        numbers={"precision": evaluation.Metric("precision", "P")}, over="values"
    )
    for name, given in {"bpd": gap, "prior": gap, "precise": precision}.items():
        with pytest.raises(ValueError, match=f"can't be named '{name}'"):
            evaluation.register_measure(name, given)
    with pytest.raises(ValueError, match="must be a Measure, over one of any"):
        evaluation.register_measure("gap", lambda seen: 1.0)
    with pytest.raises(ValueError, match="can't be named 'classifier'"):
        evaluation.register_extractor("classifier", lambda: None)


@pytest.mark.usefixtures("registering")
def test_functions_that_give_something_else_are_said():
    schedules.register("none", lambda: None)
    samplers.register("none", lambda: 3)
    time_sampling.register("none", lambda: "u")
    evaluation.register_extractor("none", lambda: ())
    for get, words in {
        schedules.get: "schedule 'none': its function gave NoneType, which is no schedule",
        samplers.get: "sampler 'none': its function gave int, which is no Sampler",
        time_sampling.get: "time_sampling='none': its function gave str, which is no TimeSampler",
        evaluation.get_extractor: "'none': its function gave tuple, which is no Extractor",
    }.items():
        with pytest.raises(ValueError, match=words):
            get("none")
    empty = evaluation.Measure(
        lambda seen: {}, lambda n: 1, {"value": evaluation.Metric("value", "E")}
    )
    evaluation.register_measure("empty", empty._replace(over="values"))
    points = data.load({"name": "mixture2d"})
    with pytest.raises(ValueError, match="'empty': its function must give a dict with 'value'"):
        evaluation.score(points.eval.x[:8], evaluation.Reference.of(points), ["empty"])


def test_earlier_names_register_in_the_same_tables():
    """Plugins that are kept in the workdirs of runs may use the names of before."""
    from diffax import metrics, scoring

    assert scoring.register is evaluation.register_measure
    assert metrics.register is evaluation.register_extractor
    assert scoring.measurements is evaluation.pending
    reading = scoring.Reading("Gap", "G", False, "log", 2, "How far.")
    assert (reading.label, reading.short, reading.digits) == ("Gap", "G", 2)
    assert (reading.lower_is_better, reading.scale, reading.meaning) == (False, "log", "How far.")
    for name in {*evaluation.__all__} - {"measurements"}:
        assert getattr(scoring, name) is getattr(metrics, name) is getattr(evaluation, name)
