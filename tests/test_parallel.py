"""Devices: every mode gives one device's numbers, and a state moves from one to any other."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from small_runs import (
    LEARNED,
    MIXTURE,
    assert_close,
    assert_equal,
    batch_of,
    compiled_quickly,
    small_config,
)

from diffax import config as config_lib
from diffax import data, distributed, training
from diffax.distributed import mesh as mesh_lib
from diffax.training import loop, writers
from diffax.training.checkpoint import Checkpoints

# Every kind of state that depends on other examples than its own: a learned schedule, the
# histories of an importance sampler, stratified times.
CHANGES = dict(
    **LEARNED,
    schedule__kind="polynomial",
    schedule_learning__clip_norm=1.0,  # its moments no larger than others
    objective__time_sampling="importance",
    model__mlp__width=32,
)
STEPS = 4

ONE = dict(num_devices=1)
LAYOUTS = {
    "data": dict(num_devices=8),
    "fsdp": dict(num_devices=8, fsdp=8),
    "both": dict(num_devices=8, fsdp=4),
    "pmap": dict(num_devices=8, mode="pmap"),
}


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(tmp_path_factory):
    with compiled_quickly(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(autouse=True)
def _small_arrays_are_split_too(monkeypatch):
    monkeypatch.setattr(mesh_lib, "LEAST_SPLIT", 64)


def config_of(layout, **changes):
    where = {f"parallel__{key}": value for key, value in layout.items()}
    return small_config(**{**CHANGES, **where, **changes})


def begin(config, info=MIXTURE):
    """The first state of a config where it belongs, and the compiled steps."""
    method = config_lib.build_method(config, info)
    mesh = distributed.make_mesh(config.parallel.num_devices, config.parallel.fsdp)
    _, init, compiled = loop.compile_run(config, method, mesh)
    return init(jax.random.key(config.seed)), compiled


def after_steps(config, num=STEPS):
    """The state after so many steps, and each step's metrics."""
    state, compiled = begin(config)
    per_call, metrics = config.training.steps_per_call, []
    for first in range(0, num, per_call):
        batches = [batch_of(seed=first + i) for i in range(per_call)]
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
        state, measured = compiled.step(state, compiled.place(stacked))
        metrics.append(jax.device_get(measured))  # waits: eight devices share the cores here
    return state, jax.tree.map(lambda *values: np.concatenate(values), *metrics)


def plain(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


@functools.cache
def one_device():
    state, metrics = after_steps(config_of(ONE))
    return plain(state), metrics


# --- the numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout, per_call, micro_batches",
    [
        (LAYOUTS["data"], 1, 1),
        (LAYOUTS["both"], 2, 1),
        (LAYOUTS["fsdp"], 1, 2),
        (LAYOUTS["pmap"], 1, 1),
        (dict(num_devices=4, mode="pmap"), 2, 4),
    ],
)
def test_every_layout_gives_the_numbers_of_one_device(layout, per_call, micro_batches):
    """The batch and its noise are the same; only the order of float32 sums differs."""
    changes = dict(training__steps_per_call=per_call, training__grad_accumulation=micro_batches)
    state, metrics = after_steps(config_of(layout, **changes))
    assert len(state.params["first"]["kernel"].sharding.device_set) == layout["num_devices"]
    expected_state, expected_metrics = one_device()
    assert_close(plain(state), expected_state, rtol=1e-5, atol=1e-5)
    assert_close(metrics, expected_metrics, rtol=1e-5, atol=1e-5)


def test_without_clipping_too_all_but_the_schedules_moments_are_those_of_one_device():
    """These are as large as its gradient, of which the order of sums shows more than 1e-5."""
    (one, numbers), (split, found) = (
        after_steps(config_of(layout, schedule_learning__clip_norm=0.0))
        for layout in (ONE, LAYOUTS["both"])
    )
    for name in ("params", "ema_params", "schedule", "opt_state", "time_sampler_state"):
        whole, parts = (jax.device_get(getattr(state, name)) for state in (one, split))
        assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert_close(found, numbers, rtol=1e-5, atol=1e-5)


def test_an_online_rate_too():
    """Its histogram is of the whole batch, and so are its draws."""
    changes = dict(objective__time_sampling="rate", schedule__name="cosine_logsnr")
    (one, numbers), (split, found) = (
        after_steps(small_config(**changes, **where))
        for where in (
            dict(parallel__num_devices=1),
            dict(parallel__num_devices=8, parallel__fsdp=2, training__grad_accumulation=2),
        )
    )
    assert_close(plain(split), plain(one), rtol=1e-5, atol=1e-5)
    assert_close(found, numbers, rtol=1e-5, atol=1e-5)
    assert one.time_sampler_state.count.sum() > 31 * STEPS


def test_a_unet_with_attention_too():
    """Its convolutions, group norms and heads, split over two devices while the batch is over four,
    with blocks that are computed again."""
    images = dataclasses.replace(MIXTURE, shape=(8, 8, 1), levels=256)
    x = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 1)).astype(np.float32)
    found = []
    for layout in (ONE, dict(num_devices=4, fsdp=2)):
        where = {f"parallel__{key}": value for key, value in layout.items()}
        config = small_config(**where, model__name="unet", model__unet__remat=layout is not ONE)
        config.model.unet.update(
            channels=8, channel_mults=(1,), num_blocks=1, attention_resolutions=(8,), head_width=8
        )
        state, compiled = begin(config, images)
        for _ in range(2):
            batch = compiled.place({"x": x[None], "label": None})
            state, metrics = compiled.step(state, batch)
            found.append(jax.device_get((state.params, state.ema_params, metrics)))
    for one, split in zip(found[:2], found[2:]):
        assert_close(split, one, rtol=1e-5, atol=1e-5)


# --- where arrays lie -----------------------------------------------------------------------


def test_large_arrays_are_split_over_fsdp_and_whole_along_data():
    """Before and after a step: parameters, their average and the optimiser's moments."""
    state, compiled = begin(config_of(LAYOUTS["both"]))
    assert splits(state) >= 8
    batch = {key: value[None] for key, value in batch_of().items()}
    state, _ = compiled.step(state, compiled.place(batch))
    assert splits(state) >= 8


def splits(state):
    """Counts the arrays that four devices share, and finds that these are the right ones."""
    adam, num = state.opt_state[1][0], 0
    for leaf in jax.tree.leaves((state.params, state.ema_params, adam.mu, adam.nu)):
        ways = 4 if leaf.size >= 64 and any(n % 4 == 0 for n in leaf.shape) else 1
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // ways}
        num += ways > 1
    return num


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((3, 3, 64, 128), (None, None, None, "fsdp")),
        ((3, 3, 128, 64), (None, None, "fsdp")),
        ((64, 64), (None, "fsdp")),  # of two as long, the last
        ((63, 64), (None, "fsdp")),
        ((4, 15), ()),  # small
        ((1001, 1001), ()),  # nothing that four devices could share
        ((), ()),
    ],
)
def test_the_rule_on_shapes(shape, expected):
    mesh = distributed.make_mesh(8, 4)
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    sharding = distributed.state_sharding({"x": leaf}, mesh)["x"]
    assert sharding.spec == PartitionSpec(*expected)
    assert distributed.state_sharding(leaf, distributed.make_mesh(8)).spec == PartitionSpec()


def test_a_state_moves_from_every_layout_to_every_other(tmp_path):
    """Bit by bit, through a checkpoint; and it lies there as if it had begun there."""
    configs = {name: config_of(layout) for name, layout in {**LAYOUTS, "one": ONE}.items()}
    begun = {name: begin(config)[0] for name, config in configs.items()}
    expected = plain(after_steps(configs["both"], 2)[0])
    for written, like in begun.items():
        where = jax.tree.map(lambda leaf: leaf.sharding, like)
        store = Checkpoints(tmp_path / written)
        placed = jax.tree.map(
            jax.device_put, expected.replace(key=jax.random.wrap_key_data(expected.key)), where
        )
        store.save(2, placed, {})
        store.wait()
        for other in begun.values():
            there = jax.tree.map(lambda leaf: leaf.sharding, other)
            restored, _ = store.restore(jax.eval_shape(lambda: expected), there)
            assert_equal(jax.device_get(restored), expected)
            assert jax.tree.leaves(jax.tree.map(lambda leaf: leaf.sharding, restored)) == (
                jax.tree.leaves(there)
            )
        store.close()


def test_a_run_goes_on_in_another_layout(tmp_path):
    """Four steps in each, one workdir: the run that one device makes."""
    whole, _ = training.train(config_of(ONE), tmp_path / "whole")
    for i, layout in enumerate([LAYOUTS["both"], LAYOUTS["pmap"], ONE]):
        end = 4 * (i + 1)
        state, _ = training.train(
            config_of(layout), tmp_path / "moving", lambda step, _, end=end: step == end
        )
        assert len(state.step.sharding.device_set) == layout["num_devices"]
        loaded = training.load(tmp_path / "moving").state
        assert len(loaded.step.sharding.device_set) == 1
        assert_equal(plain(loaded), plain(state))
    assert_close(plain(state), plain(whole), rtol=2e-5, atol=2e-5)
    for a, b in zip(lines(tmp_path / "moving"), lines(tmp_path / "whole"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def lines(workdir):
    return writers.read_json_lines(workdir / "metrics.jsonl")


# --- several steps in a call ----------------------------------------------------------------


@given(done=st.integers(0, 50), num_steps=st.integers(0, 60), per_call=st.integers(1, 12))
def test_calls_end_at_multiples_and_at_the_end(done, num_steps, per_call):
    ends = list(np.cumsum([done, *loop.sizes_of_calls(done, num_steps, per_call)]))[1:]
    assert ends[-1:] == ([num_steps] if num_steps > done else [])
    assert all(end % per_call == 0 for end in ends[:-1])
    assert all(0 < b - a <= per_call for a, b in zip([done, *ends], ends))


def test_several_steps_in_a_call_make_the_same_log(tmp_path):
    common = dict(training__num_steps=12, training__checkpoint_every=6, training__log_every=4)
    training.train(small_config(**common), tmp_path / "one")
    training.train(small_config(**common, training__steps_per_call=2), tmp_path / "two")
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert training.load(tmp_path / "two", step=6).state.step == 6


@pytest.mark.parametrize(
    "per_call, every, expected",
    [(1, 5, [5, 10, 11]), (2, 5, [6, 10, 11]), (4, 5, [8, 11]), (4, 1, [4, 8, 11]), (4, 0, [])],
)
def test_what_is_due_within_a_call_comes_after_it(per_call, every, expected):
    ends = list(np.cumsum([0, *loop.sizes_of_calls(0, 11, per_call)]))
    found = [b for a, b in zip(ends, ends[1:]) if loop.is_due(a, b, every, last=b == 11)]
    assert found == expected


def test_a_feed_remembers_what_was_handed_out():
    """Its state is that of the batches behind those that lie ready ahead of them."""
    split = data.load(small_config().data).train
    batches = data.batches(split, 8, seed=0)
    sizes = loop.sizes_of_calls(0, 7, 3)
    supply = loop.DevicePrefetcher(batches, lambda stacked: stacked, sizes, ahead=2)
    seen = []
    for size, stacked in supply:
        seen.append(stacked["x"])
        assert len(stacked["x"]) == size
        after = data.batches(split, 8, seed=0)
        after.set_state(json.loads(json.dumps(supply.get_state())))
        reference = data.batches(split, 8, seed=0)
        for _ in range(sum(map(len, seen))):
            last = next(reference)
        np.testing.assert_array_equal(seen[-1][-1], last["x"])
        np.testing.assert_array_equal(next(after)["x"], next(reference)["x"])
    assert [len(x) for x in seen] == [3, 3, 1]


# --- what can't be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout, changes, words",
    [
        (dict(num_devices=9), {}, "num_devices is 9, but there are 8 devices"),
        (dict(num_devices=8, fsdp=3), {}, "fsdp is 3; it must divide the number of devices, 8"),
        (dict(num_devices=8, fsdp=2, mode="pmap"), {}, "fsdp is 2, but in mode 'pmap'"),
        (dict(mode="pjit"), {}, "mode is 'pjit'; it must be one of mesh, pmap"),
        (
            dict(num_devices=8),
            dict(training__batch_size=24),
            r"batch_size is 24; it must be a multiple of 16: 8, the number of devices .* times 2",
        ),
        (
            dict(num_devices=4),
            dict(training__grad_accumulation=8),
            r"batch_size is 32; it must be a multiple of 64: 4, .* times 8, config.*accumulation",
        ),
    ],
)
def test_what_cannot_be_is_refused(layout, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        training.train(config_of(layout, **changes), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_mode_is_looked_at_before_the_data_are_read(monkeypatch, tmp_path):
    unread = lambda config: pytest.fail("read before the check")  # noqa: E731
    monkeypatch.setattr(loop.data, "load_cached", unread)
    with pytest.raises(ValueError, match="mode is 'pjit'; it must be one of mesh, pmap"):
        training.train(config_of(dict(mode="pjit")), tmp_path)


def test_every_process_has_as_many_devices(monkeypatch):
    fakes = [types.SimpleNamespace(process_index=i // 2, id=i) for i in range(4)]
    monkeypatch.setattr(mesh_lib.jax, "devices", lambda: fakes)
    monkeypatch.setattr(mesh_lib.jax, "process_count", lambda: 2)
    for num in (2, 3):  # none in the second, or one
        with pytest.raises(ValueError, match=f"num_devices is {num}, which is not the same number"):
            distributed.make_mesh(num)
