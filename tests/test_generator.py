"""The sampling object: what a sample depends on, what is compiled again, what is refused."""

import gc
import weakref

import jax
import numpy as np
import pytest
from small_runs import compiled_quickly, first_state, run_of, small_config

import diffax
from diffax import config as config_lib
from diffax import generator, training

INFO = training.DatasetInfo("points", (2,), 4, None, ("cat", "dog", "7", "2"))


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


def make_run(**changes):
    """A run whose network has random weights everywhere, so that every input matters."""
    config = small_config(**{"model__class_conditional": True, **changes})
    config_lib.validate(config)
    state = first_state(config, config_lib.build_method(config, INFO))
    leaves, tree = jax.tree.flatten(state.ema_params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return run_of(config, state.replace(ema_params=tree.unflatten(noisy)), INFO)


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_sample_does_not_depend_on_the_batches_nor_on_the_devices(run, sampler):
    whole = diffax.Generator(run, num_devices=1)(20, seed=3, sampler=sampler)
    assert whole.shape == (20, 2)
    assert len(np.unique(whole)) == whole.size
    for generate in (
        diffax.Generator(run, batch_size=6, num_devices=1),
        diffax.Generator(run, batch_size=5, num_devices=8),
        diffax.Generator(run, num_devices=8),
    ):
        found = generate(20, seed=3, sampler=sampler)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        generate(3, seed=3, sampler=sampler), whole[:3], rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(generate(20, seed=4, sampler=sampler), whole)


def test_what_was_compiled_is_used_again(run, monkeypatch):
    made = []
    original = config_lib.build_method
    monkeypatch.setattr(config_lib, "build_method", lambda *a: made.append(a) or original(*a))
    generate = diffax.Generator(run, num_devices=1)
    for seed in range(2):
        generate(4, seed=seed)
        generate(4, seed=seed, guidance_scale=2.0)
        generate(4, seed=seed, guidance_scale=3.5)
        generate(4, seed=seed, num_steps=6)
        generate(4, seed=seed, num_steps=np.int32(6), label=1)
    assert len(made) == 2  # of ten steps, guided or not, and of six
    assert programs(generate) == [2, 1]


def test_one_program_takes_any_value_of_a_number(run):
    """And gives what `samplers` gives for that value."""
    generate = diffax.Generator(run, num_devices=1)
    guided = [{"guidance_rescale": share} for share in (0.3, 0.9)]
    guided += [{"guidance_interval": span} for span in ((-2.0, 2.0), (-5.0, 0.0))]
    guided += [both | one for both, one in zip(guided[:2], guided[2:])]
    guided = [{"guidance_scale": 3.0, "clip_x0": 1.0} | options for options in guided]
    outs = [generate(4, **options) for options in guided]
    assert programs(generate) == [3]
    for i, (out, options) in enumerate(zip(outs, guided)):
        assert all(not np.allclose(out, other, rtol=1e-3) for other in outs[:i])
        config = run.config.copy_and_resolve_references()
        config.sampling.update(options)
        np.testing.assert_allclose(out, direct(config, run), rtol=1e-5, atol=1e-6)

    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    drawn = [generate(4, eta=eta, clip_x0=clip) for eta, clip in ((0.5, 1.0), (1.0, 0.7))]
    drawn += [generate(4, clip_x0=1.0, dynamic_threshold=share) for share in (0.5, 0.9)]
    assert programs(generate) == [3 + 2]
    for one in drawn:
        assert all(not np.allclose(one, other, rtol=1e-3) for other in drawn if other is not one)
    options = dict(label=1, eta=0.5, num_steps=10)
    edited = [generate.sdedit(x, share, **options) for share in (0.5, 0.52, 0.48, 0.8)]
    assert len(generate._compiled) == 3  # sdedit's are of five levels and of eight
    np.testing.assert_array_equal(edited[0], edited[1])
    np.testing.assert_array_equal(edited[0], edited[2])
    config = run.config.copy_and_resolve_references()
    config.sampling.update(eta=0.5, clip_x0=1.0)
    np.testing.assert_allclose(drawn[0], direct(config, run), rtol=1e-5, atol=1e-6)


def programs(generate):
    """How many programs each of a generator's functions has been compiled to."""
    return [function.compiled._cache_size() for function in generate._compiled.values()]


def direct(config, run):
    """Four samples by the method itself, its options those of the config."""
    method = config_lib.build_method(config, run.dataset)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(4))
    return jax.jit(method.sample)(run.state, keys, {"label": np.arange(4) % 4})


def test_few_compiled_functions_are_kept(run, monkeypatch):
    """The latest used, of as many distinct options as one likes; the others' memory is free."""
    monkeypatch.setattr(generator, "KEPT_PROGRAMS", 2)
    generate = diffax.Generator(run, num_devices=1)
    generate(2, num_steps=2)
    functions = []
    for steps in (3, 2, 4, 2, 5):
        generate(2, num_steps=steps)
        functions.append(weakref.ref(next(reversed(generate._compiled.values()))))
    gc.collect()
    assert [function() is not None for function in functions] == [False, True, False, True, True]
    assert len(generate._compiled) == 2


def test_samples_that_are_not_finite_are_said(run):
    state = run.state.replace(ema_params=jax.tree.map(lambda x: x * np.nan, run.state.ema_params))
    generate = diffax.Generator(run._replace(state=state), num_devices=1)
    with pytest.warns(generator.NotFinite, match="3 of 3 samples are not finite"):
        generate(3)


def test_labels_and_guidance_change_what_is_drawn(run):
    generate = diffax.Generator(run, num_devices=1)
    in_turn, all_ones = generate(8), generate(8, label=1)
    np.testing.assert_allclose(all_ones[[1, 5]], in_turn[[1, 5]], rtol=1e-5)
    assert not np.allclose(all_ones[[0, 2]], in_turn[[0, 2]], rtol=1e-3)
    np.testing.assert_array_equal(generate(8, label=np.arange(8) % 4), in_turn)
    # by name; a number that is a name too is that name
    by_name = generate(np.int64(8), label=["cat", "dog", "7", "3"] * 2, seed=np.uint32(0))
    np.testing.assert_array_equal(by_name, in_turn)
    assert generate.labels(4, ["2", "1", 1, np.int8(2)]).tolist() == [3, 1, 1, 2]
    guided, more = (generate(8, guidance_scale=scale) for scale in (2.0, 4.0))
    assert not np.allclose(guided, in_turn, rtol=1e-3)
    assert not np.allclose(guided, more, rtol=1e-3)
    # nowhere guided: the conditional model
    nowhere = generate(8, guidance_scale=4.0, guidance_interval=(50.0, 60.0))
    np.testing.assert_allclose(nowhere, in_turn, rtol=1e-4, atol=1e-5)


def test_a_workdir_is_loaded_once(tmp_path, monkeypatch):
    training.train(small_config(), tmp_path)
    generate = diffax.Generator(tmp_path, num_devices=1)
    monkeypatch.setattr(training, "load", None)
    assert generate(2).shape == (2, 2)


BYTES = np.full((5, 2), 200, np.uint8)
GIVEN = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
EDITS = {
    "from_start": lambda generate, x: generate.from_start(x, label=1),
    "sdedit": lambda generate, x: generate.sdedit(x, 0.7, label=1, sampler="ddpm"),
    "inpaint": lambda generate, x: generate.inpaint(
        x, [1.0, 0.0], label=1, jump_length=2, num_resamples=2
    ),
    "invert": lambda generate, x: generate.invert(x, label=1).reconstruction,
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_does_not_depend_on_the_batches_nor_on_the_devices(run, name):
    whole = EDITS[name](diffax.Generator(run, num_devices=1), GIVEN)
    assert whole.shape == GIVEN.shape and np.isfinite(whole).all()
    for generate in (
        diffax.Generator(run, batch_size=2, num_devices=1),
        diffax.Generator(run, num_devices=8),
    ):
        np.testing.assert_allclose(EDITS[name](generate, GIVEN), whole, rtol=1e-3, atol=1e-4)


def test_edits_do_what_they_say(run):
    generate = diffax.Generator(run, num_devices=1)
    known = generate.inpaint(GIVEN, [1.0, 0.0], label=1)
    np.testing.assert_allclose(known[:, 0], GIVEN[:, 0], atol=1e-5)
    assert np.abs(known[:, 1] - GIVEN[:, 1]).max() > 1e-2
    unknown = np.where([True, False], GIVEN, np.nan)
    np.testing.assert_array_equal(generate.inpaint(unknown, [True, False], label="dog"), known)
    # from its start DDIM gives the reconstruction, and the ends of an interpolation are those
    found = generate.invert(GIVEN, label=1)
    again = generate.from_start(found.start, label=1, sampler="ddim", clip_x0=None)
    np.testing.assert_allclose(again, found.reconstruction, rtol=1e-4, atol=1e-5)
    error = np.sqrt(np.mean((found.reconstruction - GIVEN) ** 2, axis=1))
    np.testing.assert_allclose(found.error, error, rtol=1e-4)
    between = generate.interpolate(GIVEN[0], GIVEN[1], [0.0, 0.5, 1.0], label=1)
    np.testing.assert_allclose(between[[0, 2]], found.reconstruction[:2], rtol=1e-3, atol=1e-4)
    ends = generate.interpolate(GIVEN[0], GIVEN[1], [0.0, 0.5, 1.0], label=(0, 1))
    np.testing.assert_allclose(ends[2], between[2], rtol=1e-3, atol=1e-4)
    one = generate.invert(GIVEN[:1], label=0).reconstruction[0]
    np.testing.assert_allclose(ends[0], one, rtol=1e-3, atol=1e-4)
    assert not np.allclose(ends[0], between[0], rtol=1e-2)


def test_edits_work_on_a_run_that_samples_with_its_learned_variance():
    changes = {
        "objective__learned_variance": True,
        "schedule__num_steps": 12,
        "sampling__sampler": "ddpm",
    }
    run = make_run(**changes, sampling__variance="learned")
    generate = diffax.Generator(run, num_devices=1)
    for name, edit in EDITS.items():
        assert name == "from_start" or np.isfinite(edit(generate, GIVEN)).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda g: g.invert(GIVEN, label=1, sampler="heun"), "invert takes no sampler"),
        (lambda g: g.invert(GIVEN, label=1, clip_x0=1.0), "invert takes no clip_x0"),
        (lambda g: g.inpaint(GIVEN, 1.0, label=1, eta=1.0), "inpaint takes no eta"),
        (lambda g: g.inpaint(GIVEN, 1, label=1, low_order_finish=False), "no low_order_finish"),
        (lambda g: g.invert(GIVEN, label=1, low_order_finish=False), "no low_order_finish"),
        (lambda g: g.inpaint(GIVEN, 255, label=1), "mask has values from 255 to 255"),
        (lambda g: g.inpaint(GIVEN, np.ones(3), label=1), r"mask has shape \(3,\)"),
        (lambda g: g.inpaint(GIVEN, 1, label=1, jump_length=4), "jump_length=4: .* from 1 to 3"),
        (lambda g: g.inpaint(BYTES, 1, label=1), "x has dtype uint8"),
        (lambda g: g.sdedit(BYTES, 0.5, label=1), "x has dtype uint8"),
        (lambda g: g.invert(BYTES, label=1), "x has dtype uint8"),
        (lambda g: g.from_start(BYTES, label=1), "start has dtype uint8"),
        (lambda g: g.interpolate(*BYTES[:2], [0.5], label=1), "a has dtype uint8"),
        (lambda g: g.interpolate(GIVEN[0], GIVEN[1:3], [0.5], label=1), "b has shape"),
        (lambda g: g.interpolate(*GIVEN[:2], [0.5, 2.0], label=1), "shares=2.0: each lies between"),
        (lambda g: g.interpolate(*GIVEN[:2], [], label=1), "shares="),
        (lambda g: g.invert(GIVEN * np.nan, label=1), "x: 5 of 5 examples are not finite"),
        (lambda g: g.invert(GIVEN[:0], label=1), r"x has shape \(0, 2\)"),
        (lambda g: g.inpaint(GIVEN, 1.0), "conditioned on classes"),
        (
            lambda g: g.sdedit(GIVEN[:, :1], 0.5, label=1),
            r"x has shape \(5, 1\): this run's data are \(n, 2,",
        ),
        (lambda g: g.sdedit(GIVEN, 1.5, label=1), "strength=1.5"),
        (lambda g: g.sdedit(GIVEN, "0.5", label=1), "strength='0.5': must be above 0"),
        (lambda g: g.sdedit(GIVEN, None, label=1), "strength=None: must be above 0"),
        (lambda g: g.inpaint(GIVEN, "left", label=1), "mask is the string 'left'"),
        (lambda g: g.inpaint(GIVEN, None, label=1), "mask is None"),
        (lambda g: g.inpaint(None, 1.0, label=1), "x is None"),
    ],
)
def test_edits_refuse(run, call, said):
    with pytest.raises(ValueError, match=said):
        call(diffax.Generator(run, num_devices=1))


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        (
            {},
            dict(steps=3),
            r"no option 'steps' \(did you mean num_steps\?\): allowed are clip_x0, ",
        ),
        ({}, dict(num_steps="many"), "num_steps='many': must be of type int"),
        ({}, dict(num_steps=5.0), "num_steps=5.0: must be of type int"),
        ({}, dict(grid=[1.0, 0.5]), r"grid=\[1.0, 0.5\]: must be of type str"),
        ({}, dict(clip_x0=float("inf")), "clip_x0 is inf; it must be from 0.001 to 1e"),
        ({}, dict(sampler="euler", eta=1.0), "eta"),
        ({}, dict(num_samples=3), "no option 'num_samples'"),
        ({}, dict(num_steps=True), "num_steps is True"),
        ({}, dict(seed=-1), "seed=-1: must be a whole number from 0 to 4294967295"),
        ({}, dict(seed=2**32 + 3), "seed=4294967299"),
        ({}, dict(label=4), r"label=4: the classes are 0 to 3 \(cat, dog, 7, 2\)"),
        ({}, dict(label=2**32 + 3), "label=4294967299: the classes are 0 to 3"),
        ({}, dict(label=[0, 1, 2, 3, 2**32]), "label=4294967296"),
        ({}, dict(label=1.5), "label=1.5"),
        ({}, dict(label=True), "label=True"),
        ({}, dict(label="dgo"), r"label='dgo' \(did you mean dog\?\): the classes are 0 to 3"),
        ({}, dict(label="-1"), "label='-1': the classes"),
        ({}, dict(label=[1, 2]), "label has 2 entries: .* one for each of 5"),
        ({"model__class_conditional": False}, dict(label=1), "not conditioned on classes"),
        ({"model__class_conditional": False}, dict(guidance_scale=2.0), "class_conditional"),
        ({"model__label_dropout": 0.0}, dict(guidance_scale=2.0), "label_dropout above 0"),
        ({"model__mlp__conditioning": "step"}, dict(guidance_scale=2.0), "conditioning='log_snr'"),
        ({"model__mlp__conditioning": "step"}, dict(schedule="cosine"), "must be 'log_snr'"),
    ],
)
def test_refusals(changes, arguments, said):
    with pytest.raises(ValueError, match=said):
        diffax.Generator(make_run(**changes), num_devices=1)(5, **arguments)


def test_no_samples_and_no_batch_are_refused(run):
    for num in (0, True, 2.5):
        with pytest.raises(ValueError, match=f"num={num}: must be a whole number from 1 to"):
            diffax.Generator(run)(num)
    with pytest.raises(ValueError, match="batch_size=0"):
        diffax.Generator(run, batch_size=0)


def test_eight_bit_data_have_a_range():
    """Numbers of 0 to 255 that are no bytes by their type; what is unknown may be anything."""
    x = np.full((2, 2), 200.0)
    generator.check_range("x", x, None)
    with pytest.raises(ValueError, match=r"x has values from 200 to 200: .* in \[-1, 1\]"):
        generator.check_range("x", x, 256)
